"""No test asks the network: look-ups of and connections to other machines are refused as soon as this is imported.

``conftest.py`` imports it, and has every Python process that a test starts import it, too.
"""

import ipaddress
import socket

_connect, _connect_ex, _getaddrinfo = socket.socket.connect, socket.socket.connect_ex, socket.getaddrinfo


class NetworkRefused(RuntimeError):
    """A test, or what it started, asked for another machine."""


def _check(host):
    host = host.decode() if isinstance(host, bytes) else host
    if host in (None, '', 'localhost', socket.gethostname()):
        return
    try:
        here = ipaddress.ip_address(host.partition('%')[0])
    except ValueError:
        raise NetworkRefused(f'tests may not ask the network, and something looked up {host!r}') from None
    if not (here.is_loopback or here.is_unspecified or host in _own_addresses()):
        raise NetworkRefused(f'tests may not ask the network, and something connected to {host}')


def _own_addresses():
    try:
        return {entry[4][0] for entry in _getaddrinfo(socket.gethostname(), None)}
    except OSError:
        return set()


def _checked(function):

    def call(self, address, *rest):
        if self.family in (socket.AF_INET, socket.AF_INET6):
            _check(address[0])
        return function(self, address, *rest)

    return call


def _looked_up(host, *rest, **options):
    _check(host)
    return _getaddrinfo(host, *rest, **options)


socket.socket.connect, socket.socket.connect_ex = _checked(_connect), _checked(_connect_ex)
socket.getaddrinfo = _looked_up
