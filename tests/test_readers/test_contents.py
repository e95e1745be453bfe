"""Files are told apart by their content, and every other kind of file is named."""

import gzip
import io
import tarfile
import zipfile

import numpy as np
import pytest
import torch
from torch import nn

from mmdeform_upgrade import load_baseline
from mmdeform_upgrade.errors import CheckpointError
from mmdeform_upgrade.readers import read_tensors


def _zip(*names):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, 'w') as archive:
        for name in names:
            archive.writestr(name, 'x')
    return buffer.getvalue()


def _tar():
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode='w') as archive:
        archive.addfile(tarfile.TarInfo('storages'))
    return buffer.getvalue()


def _npy():
    buffer = io.BytesIO()
    np.save(buffer, np.ones(3))
    return buffer.getvalue()


@pytest.mark.parametrize(
    'data,message',
    [
        (b'', '0 bytes.: it is empty'),
        (b'<!DOCTYPE html><html><body>Sign in</body></html>', 'web page, so the download failed'),
        (b'\n  <html lang="en">', 'web page, so the download failed'),
        (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', 'web page, so the download failed'),
        (b'version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n', 'git-LFS pointer.*git lfs pull'),
        (b'\x89HDF\r\n\x1a\n' + bytes(100), 'HDF5 file, as Keras'),
        (b'\x08\x07\x12\x07pytorch\x1a\x051.8.0' + bytes(50), 'an ONNX model'),
        (b'\x1c\x00\x00\x00TFL3' + bytes(50), 'TensorFlow Lite'),
        (gzip.compress(b'x' * 100, mtime=0), 'compressed with gzip: unpack it'),
        (_tar(), 'tar archive'),
        (_npy(), 'a single NumPy array'),
        (b'{"classes": 80}', 'JSON'),
        (b'epoch 12: done', r'plain text .b.epoch 12: done.'),
        (bytes(range(200, 256)) * 9, 'begin otherwise'),
        (_zip('model/config.json', 'model.weights.h5'), 'zip archive of model/config.json, model.weights.h5'),
    ],
)
def test_other_kinds_of_files_are_named(tmp_path, data, message):
    (tmp_path / 'a.pth').write_bytes(data)
    with pytest.raises(CheckpointError, match=f'a.pth is no readable checkpoint.*{message}'):
        load_baseline(tmp_path / 'a.pth')


def test_folders_and_programs_are_named(tmp_path):
    with pytest.raises(CheckpointError, match='is a folder: give the path of a checkpoint in it$'):
        load_baseline(tmp_path)
    (tmp_path / 'saved_model.pb').write_bytes(b'x')
    with pytest.raises(CheckpointError, match='is a folder.*TensorFlow SavedModel'):
        load_baseline(tmp_path)
    torch.jit.script(nn.Linear(1, 1)).save(tmp_path / 'a.pkl')
    with pytest.raises(CheckpointError, match='TorchScript program'):
        load_baseline(tmp_path / 'a.pkl')
    torch.save(nn.Linear(1, 1), tmp_path / 'module.pth')
    with pytest.raises(CheckpointError, match='asks for torch.nn.modules.linear.Linear'):
        load_baseline(tmp_path / 'module.pth')


def test_the_name_of_a_file_says_nothing(tmp_path):
    torch.save({'a': torch.ones(1)}, tmp_path / 'a.pkl')
    assert read_tensors(tmp_path / 'a.pkl').container == 'PyTorch checkpoint'
    torch.save({'a': torch.ones(1)}, tmp_path / 'b.safetensors', _use_new_zipfile_serialization=False)
    assert read_tensors(tmp_path / 'b.safetensors').container == 'PyTorch checkpoint'


def test_what_stands_beside_the_weights_is_kept(tmp_path):
    ema = {'a': torch.zeros(1)}
    torch.save({'state_dict': {'a': torch.ones(1)}, 'ema_state_dict': ema, 'meta': {'epoch': 3}}, tmp_path / 'a.pth')
    contents = read_tensors(tmp_path / 'a.pth')
    assert set(contents.rest) == {'ema_state_dict', 'meta'} and contents.rest['ema_state_dict'] == ema
