# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""Why a config could not be checked: a fixed set of reasons, and telling errors apart."""

from __future__ import annotations

import os
import re
import site
import socket
import sysconfig
from contextlib import contextmanager
from typing import Iterator, Optional
from unittest import mock

PACKAGE = 'needs a package'
DOWNLOAD = 'needs a download'
NO_CONVS = 'backbone without convolutions'
SUBCLASSES = 'only subclasses of Conv2d'
DEFORMABLE = 'deformable already'
FROZEN = 'all frozen'
NO_MODEL = 'no model'
NO_PICTURE = 'no backbone for pictures'
GPU = 'needs a GPU'
DUPLICATE = 'duplicate'
STOCK = 'fails without the upgrade, too'
TOO_LONG = 'over the time limit'
OURS = 'our failure'

MEANING = {
    PACKAGE: 'a package that is not installed is imported by the config or by its model',
    DOWNLOAD: 'building the model reads something from the network',
    NO_CONVS: 'no convolution of the backbone is larger than 1x1; the neck was tried',
    SUBCLASSES: 'each spatial convolution of the backbone has a forward of its own and is refused; the neck was tried',
    DEFORMABLE: 'each convolution that is not frozen is deformable by the config; the neck was tried',
    FROZEN: 'the config keeps every convolution of the backbone from training; the neck was tried',
    NO_MODEL: 'a file of data sets, schedules or runtime settings',
    NO_PICTURE: 'the model has no backbone, or not one of pictures',
    GPU: 'the backbone has an operator that has no CPU implementation',
    DUPLICATE: 'the model is, key by key, that of a config that was checked',
    STOCK: 'the framework cannot load, build or run it before anything is upgraded',
    TOO_LONG: 'it was not done when its time was up',
    OURS: 'a bug of this package',
}

_PACKAGES = (
    r'mim install ([\w-]+)',
    r"No module named '([\w.]+)'",
    r'([\w-]+) is not installed',
    r'[Pp]lease install (?:the )?(?!required)([\w-]+)',
    r"custom modules from \{'imports': \[?'([\w.]+)",
    r'pip install (?:-U )?(-r [\w/.]+|[\w-]+)',
    r'requires the ([\w-]+) library',
)
_NETWORK = re.compile(
    r'NetworkRefused|huggingface\.co|URLError|HTTPError|ConnectionError|Max retries|offline|'
    r'[Cc]hecksum|Failed to (?:download|resolve)'
)


class NetworkRefusedError(OSError):
    """A model asked for the network while a sweep was building it."""


def reason_of(error: BaseException) -> tuple[str, str]:
    """Reason and detail for an error of the unchanged config, model or run."""
    chain = list(_chain(error))
    text = ' | '.join(f'{type(e).__name__}: {e}' for e in chain)
    package = _package(chain)
    if package:
        return PACKAGE, package
    if any(isinstance(e, NetworkRefusedError) for e in chain) or _NETWORK.search(text):
        return DOWNLOAD, short(f'{type(error).__name__}: {error}')
    if 'device cpu not found' in text or 'CPU is not supported' in text or 'Not compiled with GPU support' in text:
        return GPU, short(f'{type(error).__name__}: {error}')
    return STOCK, short(f'{type(error).__name__}: {error}')


def short(message: str, length: int = 160) -> str:
    """One line without this machine's folders."""
    for folder in {
        sysconfig.get_paths()['purelib'],
        *site.getsitepackages(),
        os.path.realpath(os.getcwd()),
        os.getcwd(),
        os.path.expanduser('~'),
    } - {'/'}:
        message = message.replace(folder.rstrip('/') + '/', '')
    message = ' '.join(message.split())
    return message if len(message) <= length else message[: length - 3] + '...'


@contextmanager
def no_network() -> Iterator[None]:
    """Whatever asks for the network is told no at once, on every machine alike."""

    def refuse(*args: object, **kwargs: object) -> None:
        raise NetworkRefusedError(f'NetworkRefused: {args[1] if len(args) > 1 else args}')

    def refuse_name(host: object, *args: object, **kwargs: object) -> None:
        raise NetworkRefusedError(f'NetworkRefused: {host}')

    with mock.patch.object(socket.socket, 'connect', refuse), mock.patch.object(socket, 'getaddrinfo', refuse_name):
        yield


def _package(chain: list[BaseException]) -> Optional[str]:
    for error in chain:
        needed = isinstance(error, (ImportError, AssertionError, RuntimeError, NameError, TypeError, KeyError))
        for pattern in _PACKAGES if needed else ():
            found = re.search(pattern, str(error))
            if found:
                name = found.group(1)
                return name if '/' in name else name.partition('.')[0]
    return None


def _chain(error: Optional[BaseException]) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
