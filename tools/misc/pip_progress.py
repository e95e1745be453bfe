# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""pip with the progress of a long compilation shown: a count of compiled files; the output only on failure."""

import re
import subprocess
import sys
import time
from collections import deque

_STEP = re.compile(r'\[(\d+)/(\d+)\]')


def main(arguments):
    start, shown, tail = time.monotonic(), '', deque(maxlen=60)
    with subprocess.Popen(
        [sys.executable, '-m', 'pip', '--disable-pip-version-check', *arguments, '-v'],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors='replace',
    ) as process:
        for line in process.stdout:
            tail.append(line)
            found = _STEP.search(line)
            text = f'compiling: file {found[1]} of {found[2]}' if found else ''
            if not found and line.strip().startswith(('Collecting', 'Downloading', 'Building wheel', 'Successfully')):
                text = line.strip()[:100]
            if text and text != shown:
                shown = text
                end = '\r' if found and sys.stdout.isatty() else '\n'
                print(f'  {text}  ({(time.monotonic() - start) / 60:.1f} min)', end=end, flush=True)
    if process.returncode:
        sys.exit('\n' + ''.join(tail) + f'pip {" ".join(arguments)} failed with status {process.returncode}')
    print()


if __name__ == '__main__':
    main(sys.argv[1:])
