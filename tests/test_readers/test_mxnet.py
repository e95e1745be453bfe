"""MXNet's parameter files: what was written is read, and nothing else gets through."""

import os
import struct
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch

from mmdeform_upgrade.errors import CheckpointError
from mmdeform_upgrade.readers import read_checkpoint
from mmdeform_upgrade.readers.mxnet import MAGIC, read_mxnet

from ..conftest import ROOT
from ..test_importers.gluoncv_files import CODES, array_bytes, list_bytes, names_bytes, write

# {'a': float32 [[1, 2]]}, version 2, put together by hand from MXNet's sources
VECTOR = bytes.fromhex(
    '120100000000000000000000000000000100000000000000c9fa93f9000000000200000001000000000000000200000000000000'
    '0100000000000000000000000000803f000000400100000000000000010000000000000061'
)
HEAD = MAGIC


def _read(tmp_path, data, name='a.params'):
    (tmp_path / name).write_bytes(data)
    return read_mxnet(str(tmp_path / name))


def test_a_vector_put_together_by_hand(tmp_path):
    assert len(VECTOR) == 89 and VECTOR.startswith(MAGIC)
    tensors = _read(tmp_path, VECTOR)
    assert list(tensors) == ['a'] and torch.equal(tensors['a'], torch.tensor([[1.0, 2.0]]))
    assert list_bytes(tensors) == VECTOR


@pytest.mark.parametrize('version', [0, 1, 2, 3])
@pytest.mark.parametrize('dtype', CODES)
def test_every_version_and_dtype_is_read(tmp_path, version, dtype):
    values = torch.tensor([[0, 1, 2], [3, 100, -7]]).to(dtype)
    written = {'arg:a.b': values, 'Gewicht-ß': values[1:, None], 'x' * 300: values[0]}
    read = read_mxnet(write(tmp_path / 'a.params', written, version))
    assert list(read) == list(written)
    for name, tensor in written.items():
        assert read[name].dtype == dtype and torch.equal(read[name], tensor)


@pytest.mark.parametrize('code,name', [(9, 'uint16'), (10, 'uint32'), (11, 'uint64')])
def test_unsigned_integers_are_read_where_torch_has_them(tmp_path, code, name):
    values = np.array([1, 2, 65000], dtype=name)
    data = HEAD + struct.pack('<QIiiq3i', 1, 0xF993FAC9, 0, 1, 3, 1, 0, code) + values.tobytes() + names_bytes(['a'])
    if hasattr(torch, name):
        assert _read(tmp_path, data)['a'].numpy().tolist() == values.tolist()
    else:
        with pytest.raises(CheckpointError, match=f'dtype {name}, which PyTorch .* lacks'):
            _read(tmp_path, data)


def test_scalars_and_empty_arrays_of_the_newest_version(tmp_path):
    written = {'scalar': torch.tensor(3.0), 'empty': torch.zeros(0, 5)}
    read = read_mxnet(write(tmp_path / 'a.params', written, version=3))
    assert read['scalar'].shape == () and read['scalar'] == 3 and read['empty'].shape == (0, 5)


def test_arrays_of_a_list_without_names_are_numbered(tmp_path):
    data = HEAD + struct.pack('<Q', 2) + array_bytes(torch.ones(1)) + array_bytes(torch.zeros(2)) + names_bytes([])
    assert {name: tuple(t.shape) for name, t in _read(tmp_path, data).items()} == {'0': (1,), '1': (2,)}


def test_what_was_read_can_be_written_to(tmp_path):
    tensor = read_mxnet(write(tmp_path / 'a.params', {'a': torch.zeros(3)}))['a']
    tensor += 1
    assert tensor.tolist() == [1, 1, 1]


def test_the_device_that_a_file_was_saved_from_is_ignored(tmp_path):
    data = HEAD + struct.pack('<Q', 1) + array_bytes(torch.ones(1), device=(2, 7)) + names_bytes(['a'])
    assert _read(tmp_path, data)['a'] == 1


def _message(value):
    return value if isinstance(value, str) else ''


def _v2(*fields, layout='', tail=b''):
    return HEAD + struct.pack('<QI' + layout, 1, 0xF993FAC9, *fields) + tail


_ONE = array_bytes(torch.ones(1))
_HUGE = 1 << 62


@pytest.mark.parametrize(
    'data,message',
    [
        (
            HEAD,
            r'damaged \(EOFError: 24 bytes expected, 16 are left\); copy or download',
        ),
        (HEAD + struct.pack('<Q', _HUGE), '4 bytes expected, 0 are left'),
        (VECTOR[:-1], '1 bytes expected, 0 are left'),
        (VECTOR[:66], '8 bytes expected, 2 are left'),
        (VECTOR + b'\0', 'damaged .EOFError: it has 1 names for 1 arrays, or more behind them'),
        (HEAD + struct.pack('<Q', 1) + _ONE + names_bytes(['a', 'b']), 'it has 2 names for 1 arrays'),
        (HEAD + struct.pack('<Q', 2) + _ONE * 2 + names_bytes(['a', 'a']), 'it has 1 names for 2 arrays'),
        (HEAD + struct.pack('<Q', 1) + _ONE + struct.pack('<QQ', 1, 2) + b'\xff\xff', 'damaged .UnicodeDecodeError'),
        (HEAD + struct.pack('<Q', 1) + _ONE + struct.pack('<QQ', 1, _HUGE), '4611686018427387904 bytes expected'),
        (_v2(1, 0, layout='ii', tail=bytes(99)), 'array 0 is sparse, expected a dense one: call tostype'),
        (_v2(0, 0, layout='ii', tail=bytes(99)), 'array 0 is undefined or damaged: it has 0 dimensions'),
        (_v2(0, 33, layout='ii', tail=bytes(999)), 'array 0 is undefined or damaged: it has 33 dimensions'),
        (_v2(0, -5, layout='ii', tail=bytes(99)), 'it has -5 dimensions'),
        (_v2(0, 2, 0, 4, layout='iiqq', tail=bytes(99)), r'array 0 is undefined or damaged: .*shape \(0, 4\)'),
        (
            _v2(0, 2, 1 << 30, 1 << 30, 1, 0, 0, layout='iiqqiii', tail=bytes(99)),
            '4611686018427387904 bytes expected, 99 are left',
        ),
        (_v2(0, 1, 1, 1, 0, 13, layout='iiqiii', tail=bytes(99)), 'array 0 has the dtype code 13'),
        (HEAD + struct.pack('<QI33I', 1, 33, *[1] * 33) + bytes(99), 'it has 33 dimensions'),
    ],
    ids=_message,
)
def test_damaged_files_are_refused_with_what_is_wrong(tmp_path, data, message):
    (tmp_path / 'a.params').write_bytes(data)
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(tmp_path / 'a.params')


def _zip(path, members, compression=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, 'w', compression) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return path


def test_the_model_zoos_zip_is_read(tmp_path):
    path = _zip(tmp_path / 'net-0123abcd.zip', [('net-0123abcd.params', VECTOR)])
    assert torch.equal(read_mxnet(path)['a'], torch.tensor([[1.0, 2.0]]))


@pytest.mark.parametrize(
    'members,message',
    [
        ([('a.params', VECTOR), ('b.params', VECTOR)], 'a zip archive of a.params, b.params'),
        ([('a.bin', VECTOR)], 'a zip archive of a.bin, which PyTorch did not write'),
        ([('../a.params', VECTOR)], r"member '../a.params' lies outside"),
        ([('a.params', VECTOR[:-1])], '1 bytes expected, 0 are left'),
    ],
    ids=_message,
)
def test_zips_of_something_else_are_refused(tmp_path, members, message):
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(_zip(tmp_path / 'a.zip', members))


def test_a_zip_that_lies_about_its_size_is_refused(tmp_path):
    path = _zip(tmp_path / 'a.zip', [('a.params', VECTOR + bytes(50000))])
    size = struct.pack('<I', len(VECTOR) + 50000)
    path.write_bytes(path.read_bytes().replace(size, struct.pack('<I', len(VECTOR))))
    with pytest.raises(CheckpointError, match="damaged .BadZipFile: Bad CRC-32 for file 'a.params'"):
        read_checkpoint(path)
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(CheckpointError, match='truncated'):
        read_checkpoint(path)


def test_the_npz_of_mxnet_2_is_read(tmp_path):
    arrays = {
        'a.weight': np.arange(6, dtype=np.float32).reshape(2, 3),
        'b': np.array(3),
        'c': np.zeros((0, 2)),
        'f': np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        'big': np.arange(3, dtype='>i4'),
    }
    np.savez(tmp_path / 'a.npz', **arrays)
    read = read_checkpoint(tmp_path / 'a.npz')['state_dict']
    assert list(read) == list(arrays)
    for name, array in arrays.items():
        assert read[name].numpy().dtype == array.dtype.newbyteorder('=') and read[name].shape == array.shape
        assert np.array_equal(read[name].numpy(), array)


def _npy(header, data=b'', version=(1, 0)):
    text = (header + '\n').encode()
    return b'\x93NUMPY' + bytes(version) + struct.pack('<H', len(text)) + text + data


@pytest.mark.parametrize(
    'data,message',
    [
        (_npy("{'descr': '|O', 'fortran_order': False, 'shape': (1,)}", b'cos\nsystem\n'), 'Object arrays cannot'),
        (_npy("{'descr': '<f4', 'fortran_order': False, 'shape': (9,)}", bytes(8)), 'damaged'),
        (_npy('__import__("os").system("true")'), 'damaged'),
        (b'text', r'holds no tensors, only a \(a bytes\);'),
    ],
    ids=_message,
)
def test_a_bad_npz_is_refused(tmp_path, data, message):
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(_zip(tmp_path / 'a.npz', [('a.npy', data)], zipfile.ZIP_STORED))


@pytest.mark.filterwarnings('ignore:Duplicate name')
def test_an_npz_with_a_name_twice_is_refused(tmp_path):
    member = 'a.npy', _npy("{'descr': '<f4', 'fortran_order': False, 'shape': ()}", bytes(4))
    with pytest.raises(CheckpointError, match="the name 'a.npy' occurs twice"):
        read_checkpoint(_zip(tmp_path / 'a.npz', [member, member]))


# Runs in a process of its own that may not take 64 MiB more than it has, nor 30 seconds of its processor.
_FUZZ = """
import random, resource, struct, sys, time, zipfile, io
import torch
from mmdeform_upgrade.errors import CheckpointError
from mmdeform_upgrade.readers import read_checkpoint
from tests.test_importers.gluoncv_files import list_bytes

resource.setrlimit(resource.RLIMIT_CPU, (int(time.process_time()) + 30, ) * 2)
pages = int(open('/proc/self/statm').read().split()[0])
limit = pages * resource.getpagesize() + (64 << 20)
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
draw = random.Random(0)
tensors = {f'layer{i}.weight': torch.arange(1 + 3 * i, dtype=dtype).reshape(-1, 1, 1)
           for i, dtype in enumerate([torch.float32, torch.int64, torch.float16, torch.uint8, torch.bfloat16])}
lists = [list_bytes(tensors, version) for version in range(4)]
stream = io.BytesIO()
with zipfile.ZipFile(stream, 'w', zipfile.ZIP_DEFLATED) as archive:
    archive.writestr('a.params', lists[2])
huge = [0, 1, 33, 2 ** 31 - 1, 2 ** 31, 2 ** 32 - 1, 2 ** 40, 2 ** 62, 2 ** 63, 2 ** 64 - 1]
refused = loaded = 0
for number in range(1000):
    data = bytearray(stream.getvalue() if number % 10 == 9 else draw.choice(lists))
    for _ in range(draw.choice([1, 1, 1, 2, 5])):
        at, kind = draw.randrange(len(data)), draw.randrange(4)
        if kind == 0:
            data[at] ^= 1 << draw.randrange(8)
        elif kind == 1:
            data[at & ~3:(at & ~3) + 8] = struct.pack('<Q', draw.choice(huge))
        elif kind == 2:
            data[at & ~3:(at & ~3) + 4] = struct.pack('<I', draw.choice(huge) & 0xFFFFFFFF)
        else:
            del data[at:at + draw.choice([1, 8, len(data)])]
            data = data or bytearray(1)
    with open(sys.argv[1], 'wb') as file:
        file.write(data)
    try:
        result = read_checkpoint(sys.argv[1])['state_dict']
    except CheckpointError:
        refused += 1
        continue
    loaded += 1
    if number % 10 == 9:
        continue  # a zip's content is covered by its checksum
    end = 0  # names and values stand in the file, in this order, without overlap
    for piece in [t.reshape(-1).view(torch.uint8).numpy().tobytes() for t in result.values()] + [
            name.encode() for name in result]:
        found = bytes(data).find(piece, end)
        assert found >= 0, number
        end = found + len(piece)
print(refused, loaded)
"""


def test_mutated_files_are_refused_or_read_right(tmp_path):
    result = subprocess.run(
        [sys.executable, '-c', _FUZZ, str(tmp_path / 'a.params')],
        cwd=ROOT,
        text=True,
        capture_output=True,
        timeout=300,
        check=False,
        env={**os.environ, 'OMP_NUM_THREADS': '1'},
    )
    assert result.returncode == 0, result.stderr[-3000:]
    refused, loaded = map(int, result.stdout.split())
    assert refused + loaded == 1000 and refused > 300 and loaded > 100
