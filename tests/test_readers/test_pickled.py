"""Pickles of NumPy arrays: read exactly, and never run."""

import io
import pickle
import random
import resource
import struct
from collections import OrderedDict

import numpy as np
import pytest
import torch

from mmdeform_upgrade import load_baseline
from mmdeform_upgrade.errors import CheckpointError
from mmdeform_upgrade.readers import kind_of, read_checkpoint

from .test_pytorch import _payloads

ARRAYS = {
    'a.weight': np.arange(6, dtype=np.float32).reshape(2, 3),
    'b': np.float64(2) * np.ones((1, 0, 2)),
    'c': np.array(3, dtype=np.int64),
    'd': np.asfortranarray(np.arange(4, dtype=np.float16).reshape(2, 2)),
    'e': np.arange(3, dtype='>f4'),
}


def _write(path, value, protocol=2):
    path.write_bytes(pickle.dumps(value, protocol))
    return path


@pytest.mark.parametrize('protocol', range(2, 6))
def test_detectron2_zoo_files_are_read_whole(tmp_path, protocol):
    path = _write(tmp_path / 'a', {'model': ARRAYS, '__author__': 'Detectron2 Model Zoo'}, protocol)
    checkpoint = read_checkpoint(path)
    tensors = checkpoint.pop('state_dict')
    assert (
        kind_of(path) == 'pickle'
        and checkpoint == {'__author__': 'Detectron2 Model Zoo'}
        and list(tensors) == list(ARRAYS)
    )
    for name, array in ARRAYS.items():
        tensor = tensors[name]
        assert tensor.shape == array.shape and tensor.numpy().dtype == array.dtype.newbyteorder('='), name
        assert np.array_equal(tensor.numpy(), array), name


def test_caffe2_files_keep_what_is_no_array_beside_the_weights(tmp_path):
    blobs = {**ARRAYS, 'lr': 0.1, 'weight_order': b'xyz'}
    for value in ({'blobs': blobs, 'cfg': 'a: 1'}, blobs, OrderedDict(blobs)):
        checkpoint = read_checkpoint(_write(tmp_path / 'a', value))
        assert list(checkpoint['state_dict']) == list(ARRAYS) and checkpoint['lr'] == 0.1


def test_pickles_of_python_2_are_read(tmp_path):
    # As Python 2 writes them: names and the arrays' bytes are both of the type str.
    raw = np.array([1.5, -2.0], np.float32).tobytes()
    data = (
        b'\x80\x02}q\x00U\x06conv_wq\x01cnumpy.core.multiarray\n_reconstruct\nq\x02cnumpy\nndarray\nq\x03K\x00\x85'
        b'U\x01b\x87Rq\x04(K\x01K\x02\x85cnumpy\ndtype\nq\x05U\x02f4K\x00K\x01\x87Rq\x06(K\x03U\x01<NNNJ\xff\xff\xff'
        b'\xffJ\xff\xff\xff\xffK\x00tb\x89U\x08' + raw + b'tbs.'
    )
    (tmp_path / 'a.pkl').write_bytes(data)
    assert read_checkpoint(tmp_path / 'a.pkl')['state_dict']['conv_w'].tolist() == [1.5, -2.0]


@pytest.mark.parametrize('name', [name for name, _ in _payloads('x')])
@pytest.mark.parametrize('protocol', [0, 2, 4])
def test_a_pickle_that_would_run_code_runs_none(tmp_path, name, protocol):
    marker = tmp_path / 'marker'
    value = {'model': {**ARRAYS, 'x.weight': dict(_payloads(marker))[name]}, '__author__': 'x'}
    with pytest.raises(CheckpointError, match=r'found others at x.weight \(<.*, not loaded>\)'):
        load_baseline(_write(tmp_path / 'a.pkl', value, protocol))
    assert not marker.exists()


@pytest.mark.parametrize('protocol', range(6))
def test_a_pickle_of_tensors_is_read(tmp_path, protocol):
    weights = {'a': torch.ones(2, 3).t(), 'b': torch.nn.Parameter(torch.zeros(1)), 'c': torch.tensor(3)}
    loaded = load_baseline(_write(tmp_path / 'a.pkl', {'state_dict': weights, 'epoch': 3}, protocol))
    assert all(torch.equal(loaded[name], value) for name, value in weights.items())


@pytest.mark.parametrize(
    'value,message',
    [
        ({'a.b': np.array([object()], dtype=object), 'c': np.ones(1)}, r'a.b \(<numpy.ndarray, not loaded>\)'),
        ({'a.b': np.zeros(2, dtype=[('x', 'f4')]), 'c': np.ones(1)}, r'a.b \(<numpy.ndarray, not loaded>\)'),
        ({'a': np.array(['x'])}, 'a is an array of <U1, which is no tensor'),
        ({'a': 1}, 'holds no tensors, only a'),
        ([1], 'holds a list'),
    ],
)
def test_other_pickles_get_one_clear_error(tmp_path, value, message):
    with pytest.raises(CheckpointError, match=message):
        load_baseline(_write(tmp_path / 'a.pkl', value))


def test_bytes_after_the_end_are_refused(tmp_path):
    path = _write(tmp_path / 'a.pkl', ARRAYS)
    path.write_bytes(path.read_bytes() + b'more')
    with pytest.raises(CheckpointError, match='4 bytes stand after the end'):
        load_baseline(path)


def test_an_array_has_exactly_the_bytes_that_its_shape_claims(tmp_path):
    data = pickle.dumps({'a': np.zeros(200, np.uint8)}, 2)
    assert data.count(b'K\xc8\x85') == 1
    (tmp_path / 'a.pkl').write_bytes(data.replace(b'K\xc8\x85', b'\x8a\x06\x00\x00\x00\x00\x00\x01\x85'))
    with pytest.raises(CheckpointError, match=r'shape \(1099511627776,\) and uint8 with 200 bytes'):
        load_baseline(tmp_path / 'a.pkl')


def mutated(data, rng):
    """One damaged copy: flipped bits, a cut, a huge length, a repeated or removed piece."""
    data = bytearray(data)
    kind = rng.randrange(5)
    where = rng.randrange(len(data))
    if kind == 0:
        for _ in range(rng.randrange(1, 8)):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif kind == 1:
        del data[where:]
    elif kind == 2:
        data[where : where + 8] = struct.pack('<Q', rng.choice([2**63 - 1, 2**40, 2**31 - 1, 2**32 - 1, 10**12]))
    elif kind == 3:
        data[where:where] = data[where : where + rng.randrange(64)]
    else:
        del data[where : where + rng.randrange(1, 32)]
    return bytes(data)


def survives(path, original, count, seed):
    """Read mutated files: each is refused by the package's error or read; memory stays small. Returns the refusals."""
    rng, refused = random.Random(seed), 0
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(count):
        path.write_bytes(mutated(original, rng))
        try:
            assert all(isinstance(value, torch.Tensor) for value in load_baseline(path).values())
        except CheckpointError:
            refused += 1
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert grown < 200, f'{grown} MiB'
    return refused


@pytest.mark.parametrize('protocol', [2, 4])
def test_damaged_pickles_are_refused_or_read(tmp_path, protocol):
    original = pickle.dumps({'model': ARRAYS, '__author__': 'x', 'set': {1, 2}, 'order': OrderedDict(a=1)}, protocol)
    assert survives(tmp_path / 'a.pkl', original, 500, protocol) > 250


@pytest.mark.parametrize('zipped', [True, False])
def test_damaged_pytorch_files_are_refused_or_read(tmp_path, zipped):
    buffer = io.BytesIO()
    torch.save(
        {'state_dict': {'a': torch.ones(3), 'b': torch.zeros(2, 2).t()}, 'meta': dict(x=np.float32(1))},
        buffer,
        _use_new_zipfile_serialization=zipped,
    )
    assert survives(tmp_path / 'a.pth', buffer.getvalue(), 300, zipped) > 100
