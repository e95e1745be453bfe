"""Neither the package nor its tests ask the network."""

import socket
import subprocess
import sys
import urllib.request

import pytest

from .conftest import ROOT

TOOLS = sorted(str(path.relative_to(ROOT)) for path in (ROOT / 'tools').rglob('*.py'))
HELP = """
import contextlib, io, runpy, socket, sys
def refuse(*arguments, **options):
    raise SystemError('a socket was made')
socket.socket.__init__ = socket.create_connection = socket.getaddrinfo = refuse
import mmdeform_upgrade
for tool in sys.argv[1:]:
    sys.argv[:] = [tool, '--help']
    try:
        with contextlib.redirect_stdout(io.StringIO()) as text:
            runpy.run_path(tool, run_name='__main__')
    except SystemExit as end:
        assert end.code in (0, None) and 'usage' in text.getvalue(), tool
    print(tool)
"""


def test_importing_the_package_and_asking_its_tools_for_help_makes_no_socket():
    result = subprocess.run(
        [sys.executable, '-c', HELP, *TOOLS], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    assert result.returncode == 0, result.stderr[-2000:]
    assert result.stdout.split() == TOOLS and len(TOOLS) >= 10


def test_tests_and_what_they_start_are_refused_the_network():
    for ask in (
        lambda: socket.create_connection(('192.0.2.1', 80), timeout=1),
        lambda: urllib.request.urlopen('http://example.org', timeout=1),
        lambda: socket.socket(socket.AF_INET6).connect(('2001:db8::1', 80)),
    ):
        with pytest.raises(RuntimeError, match='tests may not ask the network'):
            ask()
    code = "import urllib.request; urllib.request.urlopen('http://example.org', timeout=1)"
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=False)
    assert "tests may not ask the network, and something looked up 'example.org'" in result.stderr


def test_this_machine_may_be_asked():
    with socket.create_server(('127.0.0.1', 0)) as server:
        socket.create_connection(server.getsockname(), timeout=5).close()
        socket.create_connection(('localhost', server.getsockname()[1]), timeout=5).close()
