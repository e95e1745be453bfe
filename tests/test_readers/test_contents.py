"""Files are told apart by their content, and every other kind of file is named."""

import argparse
import collections
import datetime
import enum
import functools
import gzip
import io
import os
import pathlib
import tarfile
import zipfile

import numpy as np
import pytest
import torch
from mmengine.config import ConfigDict
from torch import nn

from mmdeform_upgrade import load_baseline
from mmdeform_upgrade.errors import CheckpointError
from mmdeform_upgrade.readers import Inert, drop_inert, kind_of, read_checkpoint


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
        (gzip.compress(b'x' * 100, mtime=0), 'a compressed file: unpack it'),
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


def test_folders_programs_and_files_without_weights_are_named(tmp_path):
    with pytest.raises(CheckpointError, match='there is no file'):
        load_baseline(tmp_path / 'none.pth')
    for content, message in (
        ([torch.ones(1)], 'holds a list, expected a dict with a state_dict'),
        ({'state_dict': {}}, 'empty'),
    ):
        torch.save(content, tmp_path / 'a.pth')
        with pytest.raises(CheckpointError, match=message):
            load_baseline(tmp_path / 'a.pth')
    with pytest.raises(CheckpointError, match='is a folder: give the path of a checkpoint in it$'):
        load_baseline(tmp_path)
    torch.jit.script(nn.Linear(1, 1)).save(tmp_path / 'a.pkl')
    with pytest.raises(CheckpointError, match='TorchScript program'):
        load_baseline(tmp_path / 'a.pkl')


def test_the_name_of_a_file_says_nothing(tmp_path):
    torch.save({'a': torch.ones(1)}, tmp_path / 'a.pkl')
    assert kind_of(tmp_path / 'a.pkl') == 'PyTorch checkpoint'
    torch.save({'a': torch.ones(1)}, tmp_path / 'b.safetensors', _use_new_zipfile_serialization=False)
    assert kind_of(tmp_path / 'b.safetensors') == 'older PyTorch checkpoint'


def test_what_stands_beside_the_weights_is_kept(tmp_path):
    ema = {'a': torch.zeros(1)}
    torch.save({'state_dict': {'a': torch.ones(1)}, 'ema_state_dict': ema, 'meta': {'epoch': 3}}, tmp_path / 'a.pth')
    checkpoint = read_checkpoint(tmp_path / 'a.pth')
    assert set(checkpoint) == {'state_dict', 'ema_state_dict', 'meta'} and checkpoint['ema_state_dict'] == ema


WEIGHTS = {'a.weight': torch.ones(2), 'a.bias': torch.zeros(1)}


@pytest.mark.parametrize(
    'content',
    [
        {
            'model_state_dict': WEIGHTS,
            'loss': torch.tensor(0.5),
            'loss_history': torch.ones(3),
            'optimizer_state_dict': {'state': {}, 'param_groups': []},
        },
        {'params_ema': WEIGHTS},
        {'net': WEIGHTS, 'acc': 93.1, 'epoch': 3, 'metadata': 'of another library'},
        {'module': WEIGHTS, 'optimizer': None},
        {'model_state': WEIGHTS, 'rng': {'cpu': torch.zeros(9, dtype=torch.uint8)}},
        {'model': WEIGHTS, 'model_ema': WEIGHTS, 'args': argparse.Namespace(lr=0.1)},
        {'state_dict': WEIGHTS, 'state_dict_ema': WEIGHTS},
        {'model': {name: value.numpy() for name, value in WEIGHTS.items()}},
        {**WEIGHTS, 'epoch': 3, 'args': argparse.Namespace(lr=0.1)},
    ],
    ids=lambda content: next(iter(content)),
)
def test_weights_are_read_where_it_is_unmistakable(tmp_path, content):
    torch.save(content, tmp_path / 'a.pth')
    loaded = load_baseline(tmp_path / 'a.pth')
    assert list(loaded) == list(WEIGHTS) and all(torch.equal(loaded[name], WEIGHTS[name]) for name in WEIGHTS)
    beside = {name for name, value in content.items() if value is not WEIGHTS and name not in {*WEIGHTS, 'model'}}
    assert beside <= set(read_checkpoint(tmp_path / 'a.pth'))


def test_candidates_are_named_and_a_key_chooses(tmp_path):
    other = {name: value + 1 for name, value in WEIGHTS.items()}
    torch.save({'student': WEIGHTS, 'teacher': other, 'deeper': {'ema': other, 'steps': 3}}, tmp_path / 'a.pth')
    with pytest.raises(CheckpointError, match="may be under 'student' or 'teacher': choose with FILE::NAME"):
        load_baseline(tmp_path / 'a.pth')
    for key in ('teacher', 'deeper.ema'):
        for chosen in (load_baseline(tmp_path / 'a.pth', key=key), load_baseline(f'{tmp_path}/a.pth::{key}')):
            assert torch.equal(chosen['a.weight'], other['a.weight'])
    with pytest.raises(CheckpointError, match="nothing under 'ema', only student, teacher, deeper"):
        load_baseline(tmp_path / 'a.pth', key='ema')


@pytest.mark.parametrize('wrap', [lambda model: model, lambda model: {'model': model, 'epoch': 3}])
@pytest.mark.parametrize('zipped', [True, False])
def test_a_whole_network_is_named_with_what_to_save_instead(tmp_path, wrap, zipped):
    torch.save(wrap(nn.Linear(1, 1)), tmp_path / 'a.pth', _use_new_zipfile_serialization=zipped)
    with pytest.raises(
        CheckpointError, match=r'whole network \(torch.nn.modules.linear.Linear\).*model.state_dict\(\)'
    ):
        load_baseline(tmp_path / 'a.pth')


class Callback:
    pass


class Kind(enum.Enum):
    A = 1


def test_unknown_things_are_inert_and_harmless_ones_real(tmp_path):
    inert = {
        'args': argparse.Namespace(lr=0.1),
        'class': torch.optim.SGD,
        'object': Callback(),
        'enum': Kind.A,
        'function': os.path.join,
        'partial': functools.partial(print, 1),
        'method': [].append,
        'dates': np.array(['2020-01-01'], 'M8[D]'),
    }
    real = {
        'keys': {(1, 'a'): 2, None: 3},
        'counts': collections.defaultdict(list, a=[1]),
        'queue': collections.deque([1, 2], 5),
        'when': datetime.datetime(2026, 1, 2, tzinfo=datetime.timezone.utc),
        'how long': datetime.timedelta(1, 2, 3),
        'where': pathlib.PurePosixPath('/a/b'),
        'range': range(1, 9, 2),
        'sets': [{1, 2}, frozenset('ab'), slice(1, 2), 1 + 2j, b'\0\xff', bytearray(b'a')],
        'config': {'a': {'b': (1, 2)}},
        'numbers': [np.float32(3.5), np.bool_(True), np.int64(4), np.dtype('>f4'), torch.float16, torch.Size([1, 2])],
    }
    saved = {**inert, **real, 'config': ConfigDict(real['config']), 'callbacks': {Callback: {'best': 1}}}
    for protocol in range(2, 6):
        torch.save({'state_dict': WEIGHTS, **saved}, tmp_path / 'a.pth', pickle_protocol=protocol)
        loaded = read_checkpoint(tmp_path / 'a.pth')
        assert all(isinstance(loaded[name], Inert) for name in inert)
        for name, value in real.items():
            assert loaded[name] == value and type(loaded[name]) is type(value), name
        assert loaded['counts']['new'] == [] and loaded['queue'].maxlen == 5
        assert [(repr(key), value) for key, value in loaded['callbacks'].items()] == [
            (f'<{__name__}.Callback, not loaded>', {'best': 1})
        ]


def test_a_weight_that_needs_unknown_code_stops_the_load(tmp_path):
    class Odd(torch.Tensor):
        def __reduce_ex__(self, protocol):
            return os.path.join, ('a', 'b')

    torch.save({'state_dict': {**WEIGHTS, 'b.weight': torch.ones(2).as_subclass(Odd)}}, tmp_path / 'a.pth')
    with pytest.raises(CheckpointError, match=r'found others at b.weight \(<posixpath.join, not loaded>\); save plain'):
        load_baseline(tmp_path / 'a.pth')


def test_what_nobody_knows_is_taken_out_before_it_reaches_a_runner():
    known = {'state': collections.OrderedDict(a=[{'x': 1}, Inert('f')])}
    again = {**known, Inert('key'): 1, 'function': Inert('f'), 'deep': {'function': Inert('f')}}
    again['itself'] = again
    assert drop_inert(again) is again and set(again) == {'state', 'deep', 'itself'} and again['deep'] == {}
