# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""What kind of file it is, by its first bytes and never by its name."""

from __future__ import annotations

import os
import re
import stat
import zipfile
from typing import Iterable, Tuple

from ..errors import CheckpointError
from .safetensors import looks_like_safetensors

_HEAD = 1024
_TORCH_MAGIC = b'\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.'  # the number that PyTorch's older format begins with
_STARTS: Tuple[Tuple[bytes, str], ...] = (
    (b'version https://git-lfs', 'a git-LFS pointer, not the file itself: run "git lfs pull", or download the file'),
    (b'\x89HDF\r\n\x1a\n', 'an HDF5 file, as Keras and Caffe write: there is no importer for it'),
    (b'\x1f\x8b', 'compressed with gzip: unpack it first'),
    (b'BZh', 'compressed with bzip2: unpack it first'),
    (b'\xfd7zXZ\x00', 'compressed with xz: unpack it first'),
    (b'\x28\xb5\x2f\xfd', 'compressed with zstd: unpack it first'),
    (b'7z\xbc\xaf\x27\x1c', 'a 7z archive: unpack it first'),
    (b'Rar!', 'a RAR archive: unpack it first'),
    (b'\x93NUMPY', 'a single NumPy array: a checkpoint has names'),
    (b'GGUF', 'a GGUF file: there is no importer for it'),
)


def existing_file(path: str) -> str:
    """The path with ``~`` expanded.

    Raises:
        CheckpointError: there is no such file.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise CheckpointError(f'the checkpoint is given as a {type(path).__name__}, expected the path of a file')
    path = os.path.expanduser(os.fspath(path))
    if os.path.isdir(path):
        raise CheckpointError(
            f'{path!r} is a folder: give the path of a checkpoint in it'
            + (
                ' (a TensorFlow SavedModel cannot be imported)'
                if os.path.exists(os.path.join(path, 'saved_model.pb'))
                else ''
            )
        )
    if not os.path.isfile(path):
        raise CheckpointError(f'there is no file {path!r}: give the path of a checkpoint')
    return path


def first_bytes(path: str) -> bytes:
    """The first bytes of a file, enough to tell what it is."""
    with open(path, 'rb') as file:
        return file.read(_HEAD)


def kind_of(path: str) -> str:
    """``'torch'``, ``'pickle'``, ``'safetensors'`` or ``'zip'`` (an archive that PyTorch did not write).

    Raises:
        CheckpointError: it is anything else; says what it looks like.
    """
    head = first_bytes(path)
    if head.startswith(b'PK\x03\x04'):
        return 'torch' if _is_torch_zip(path) else 'zip'
    if head.startswith(_TORCH_MAGIC):
        return 'torch'
    if looks_like_safetensors(head):
        return 'safetensors'
    if re.match(rb'\x80[\x02-\x05]|\(d|\}(?![ \r\n"])|ccollections\n', head):
        return 'pickle'
    raise CheckpointError(f'{path} is no readable checkpoint ({os.path.getsize(path)} bytes): {_looks_like(head)}')


def members(path: str) -> Tuple[str, ...]:
    """Names in a zip archive, none where its directory is damaged."""
    try:
        with zipfile.ZipFile(path) as archive:
            return tuple(archive.namelist())
    except (zipfile.BadZipFile, ValueError, NotImplementedError, OSError):
        return ()


def check_members(members: Iterable[zipfile.ZipInfo]) -> None:
    """Refuse an archive that would write elsewhere if somebody unpacked it. (The readers unpack nothing.)

    Raises:
        CheckpointError: a member is a link, or its name leads out of the archive.
    """
    for member in members:
        name = member.filename.replace('\\', '/')
        if stat.S_ISLNK(member.external_attr >> 16):
            raise CheckpointError(f'its member {member.filename[:80]!r} is a symbolic link, which no checkpoint needs')
        if name.startswith('/') or '..' in name.split('/') or re.match(r'[A-Za-z]:', name):
            raise CheckpointError(
                f'its member {member.filename[:80]!r} lies outside of the archive, which no checkpoint needs'
            )


def _is_torch_zip(path: str) -> bool:
    # One without a directory is left to PyTorch's reader, which says that it is truncated.
    names = members(path)
    return not names or any(re.search(r'(?:^|/)(?:data|constants)\.pkl$', name) for name in names)


def _looks_like(head: bytes) -> str:
    text = head.lstrip(b'\xef\xbb\xbf \t\r\n').lower()
    if not head:
        return 'it is empty; copy or download it again'
    for start, what in _STARTS:
        if head.startswith(start):
            return f'it looks like {what}' if what.startswith('a') else f'it is {what}'
    if text.startswith((b'<!doctype', b'<html', b'<head', b'<?xml')):
        return 'it looks like a web page, so the download failed (a login or error page was saved); download it again'
    if head[257:262] == b'ustar':
        return 'it looks like a tar archive: unpack it; a checkpoint of PyTorch 0.1 must be saved again by a newer one'
    if head[4:8] == b'TFL3':
        return 'it looks like a TensorFlow Lite model: there is no importer for it'
    if re.match(rb'\x08[\x01-\x14](?:\x12[\x01-\x40][ -~]{2}|[\x1a\x22\x28\x3a\x42])', head):
        return 'it looks like an ONNX model, a graph without the names of the network; give the checkpoint'
    if text[:1] in (b'{', b'['):
        return 'it looks like JSON, which holds no weights'
    if all(32 <= byte < 127 or byte in b'\t\r\n' for byte in head):
        return f'it looks like plain text ({head[:40]!r}...); give the checkpoint itself'
    return 'PyTorch, MXNet, safetensors and NumPy pickles begin otherwise; it may be damaged or another kind of file'
