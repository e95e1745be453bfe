# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""What kind of file it is, by its first bytes and never by its name."""

from __future__ import annotations

import os
import re
import stat
import zipfile

from ..errors import CheckpointError
from .mxnet import MAGIC as MXNET_MAGIC
from .pytorch import MAGIC as OLDER_MAGIC

_HEAD = 1024
_LOOKS = (
    (rb'version https://git-lfs', 'a git-LFS pointer, not the file itself: run "git lfs pull", or download the file'),
    (rb'\x89HDF\r\n\x1a\n', 'an HDF5 file, as Keras and Caffe write: there is no importer for it'),
    (rb'\x1f\x8b|BZh|\xfd7zXZ\0|\x28\xb5\x2f\xfd|7z\xbc\xaf\x27\x1c|Rar!', 'a compressed file: unpack it first'),
    (rb'\x93NUMPY', 'a single NumPy array: a checkpoint has names'),
    (rb'GGUF|.{4}TFL3', 'a GGUF or TensorFlow Lite model: there is no importer for it'),
    (
        rb'\s*<(?:!doctype|html|head|\?xml)',
        'a web page, so the download failed (a login or error page was saved); download it again',
    ),
    (rb'.{257}ustar', 'a tar archive: unpack it; a checkpoint of PyTorch 0.1 must be saved again by a newer one'),
    (
        rb'\x08[\x01-\x14](?:\x12[\x01-\x40][ -~]{2}|[\x1a\x22\x28\x3a\x42])',
        'an ONNX model, a graph without the names of the network; give the checkpoint',
    ),
    (rb'\s*[{\[]', 'JSON, which holds no weights'),
    (rb'[\x20-\x7e\t\r\n]+\Z', 'plain text ({}...); give the checkpoint itself'),
)


def split_key(path: str) -> tuple[str, str | None]:
    """``FILE::KEY``, a file and where in it the weights are, in two; a file may also have such a name."""
    path = os.path.expanduser(os.fspath(path))
    file, _, key = path.rpartition('::')
    return (file, key) if file and not os.path.exists(path) else (path, None)


def kind_of(path: str) -> str:
    """``'PyTorch checkpoint'``, ``'older PyTorch checkpoint'``, ``'pickle'``, ``'safetensors file'`` or ``'MXNet file'``.

    Raises:
        CheckpointError: it is anything else; says what it looks like.
    """
    with open(path, 'rb') as file:
        head = file.read(_HEAD)
    if head.startswith(b'PK\x03\x04'):
        return _kind_of_zip(path)
    if head.startswith(MXNET_MAGIC):
        return 'MXNet file'
    if len(head) > 8 and head[8:9] == b'{' and int.from_bytes(head[:8], 'little') <= 1 << 48:
        return 'safetensors file'
    if re.match(rb'\x80[\x02-\x05]|\(d|\}(?![ \r\n"])|ccollections\n', head):
        return 'older PyTorch checkpoint' if OLDER_MAGIC in head[:40] else 'pickle'
    if not head:
        raise CheckpointError('it is empty; copy or download it again')
    for pattern, what in _LOOKS:
        if re.match(pattern, head.removeprefix(b'\xef\xbb\xbf'), re.DOTALL | re.IGNORECASE):
            raise CheckpointError(f'it looks like {what.format(repr(head[:40]))}')
    raise CheckpointError(
        'PyTorch, MXNet, safetensors and NumPy pickles begin otherwise; it may be damaged or another kind of file'
    )


def _kind_of_zip(path: str) -> str:
    with zipfile.ZipFile(path) as archive:
        members, names = archive.infolist(), archive.namelist()
    for member, name in zip(members, names, strict=True):  # the readers unpack nothing, but somebody may
        if names.count(name) > 1:
            raise CheckpointError(f'the name {name[:80]!r} occurs twice')
        if stat.S_ISLNK(member.external_attr >> 16):
            raise CheckpointError(f'its member {name[:80]!r} is a symbolic link')
        if name.startswith('/') or '..' in re.split(r'[/\\]', name) or re.match(r'[A-Za-z]:\\', name):
            raise CheckpointError(f'its member {name[:80]!r} lies outside of the archive')
    if any(re.search(r'(?:^|/)(?:data|constants)\.pkl$', name) for name in names):
        return 'PyTorch checkpoint'
    endings = [name.rpartition('.')[2] for name in names]
    if endings == ['params'] or set(endings) == {'npy'}:  # of the model zoo, of MXNet 2
        return 'MXNet file'
    raise CheckpointError(
        f'it is a zip archive of {", ".join(names[:5]) or "nothing"}, which PyTorch did not write; unpack it and give '
        'the checkpoint in it'
    )
