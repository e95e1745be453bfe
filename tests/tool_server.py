"""Runs tools in processes forked from one that has imported the third-party packages, most of a short tool's time.

A process of its own, without threads and without a trace of the tests. It reads one JSON object a line: ``tool``,
``args``, ``cwd``, ``env``, ``out`` and ``err`` (files), ``timeout`` in seconds; and answers with the exit status, or
null if it had to kill the tool. What registers things (mmdet, mmseg, this package) is left to the tool.
"""

import contextlib
import importlib
import json
import os
import runpy
import signal
import sys
import time

PRELOADED = (
    'torch',
    'scipy.stats',
    'matplotlib.pyplot',
    'imgaug.augmenters',
    'pycocotools.coco',
    'mmcv.ops',
    'mmengine.runner',
    'mmengine.visualization',
)

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def main():
    for name in PRELOADED:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    for line in sys.stdin:
        request = json.loads(line)
        pid = os.fork()
        if pid == 0:
            become(**request)
            runpy.run_path(request['tool'], run_name='__main__')
            return  # and the interpreter ends as that of a script does
        print(json.dumps(waited(pid, request['timeout'])), flush=True)


def become(tool, args, cwd, env, out, err, timeout):
    """Make this process what it would be if Python had been started with the tool."""
    os.setsid()
    for stream, name, mode in (
        (0, os.devnull, os.O_RDONLY),
        (1, out, os.O_WRONLY | os.O_CREAT),
        (2, err, os.O_WRONLY | os.O_CREAT),
    ):
        file = os.open(name, mode)
        os.dup2(file, stream)
        os.close(file)
    sys.stdin = os.fdopen(0, encoding='utf8', closefd=False)  # not the server's, which has read ahead
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    sys.argv, sys.path[:1] = [tool, *args], [os.path.dirname(tool), ROOT]


def waited(pid, timeout):
    """The exit status as ``subprocess`` gives it; after a timeout None, the tool and what it started are killed."""
    deadline = time.monotonic() + timeout
    while True:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            os.killpg(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return None
        time.sleep(0.01)


if __name__ == '__main__':
    main()
