"""A few bytes that stand for more than any memory holds."""

import time

import pytest
import torch

from mmdeform_upgrade import load_baseline
from mmdeform_upgrade.errors import CheckpointError
from mmdeform_upgrade.readers import read_checkpoint, write_safetensors
from mmdeform_upgrade.release import inspect_checkpoint, publish


def _laughs(depth, kind=list):
    value = kind('ha')
    for _ in range(depth):
        value = kind([value] * 10)
    return value


def _itself():
    value = []
    value.append({'again': value})
    return value


def _nested(depth):
    value = 0
    for _ in range(depth):
        value = {'in': value}
    return value


@pytest.mark.parametrize(
    'value,message',
    [
        (_laughs(40), 'mention each other so often'),
        (_laughs(40, tuple), 'mention each other so often'),
        (_itself(), 'nested more than 200 deep, or hold themselves'),
        (_nested(300), 'nested more than 200 deep, or hold themselves'),
    ],
)
@pytest.mark.parametrize('zipped', [True, False])
def test_contents_that_nobody_can_walk_through_are_refused_at_once(tmp_path, value, message, zipped):
    path, start = tmp_path / 'a.pth', time.perf_counter()
    torch.save(
        {'state_dict': {'a': torch.ones(1)}, 'meta': {'deform_upgrade': value}},
        path,
        _use_new_zipfile_serialization=zipped,
    )
    for read in (load_baseline, inspect_checkpoint, lambda path: publish(str(path), str(tmp_path / 'zoo'))):
        with pytest.raises(CheckpointError, match=f'was not loaded: its contents .*{message[-20:]}'):
            read(path)
    assert time.perf_counter() - start < 5


def test_what_is_mentioned_often_and_is_small_is_read(tmp_path):
    colour = (120, 60, 20)
    value = {'palette': [colour] * 1000, 'more': [_laughs(3)] * 20, 'deep': _nested(100)}
    torch.save({'state_dict': {'a': torch.ones(1)}, 'meta': value}, tmp_path / 'a.pth')
    assert read_checkpoint(tmp_path / 'a.pth')['meta'] == value


def test_metadata_nested_without_end_are_damaged_metadata(tmp_path):
    write_safetensors(tmp_path / 'a', {'a': torch.ones(1)}, {'meta': '{"a":' * 500 + '1' + '}' * 500})
    with pytest.raises(CheckpointError, match="damaged entry 'meta'"):
        inspect_checkpoint(tmp_path / 'a')


@pytest.mark.parametrize('opcode', [b'\x95', b'\x8e', b'\x8d', b'\x96'])
def test_a_length_beyond_the_file_makes_no_buffer(tmp_path, opcode):
    """FRAME, BINBYTES8, BINUNICODE8 and BYTEARRAY8 of an exabyte, in PyTorch's older format, read from disk."""
    torch.save({'a': torch.ones(1)}, tmp_path / 'a.pth', _use_new_zipfile_serialization=False)
    data = (tmp_path / 'a.pth').read_bytes()
    start = data.index(b'.') + 1
    huge = b'\x80\x04' + opcode + (10**18).to_bytes(8, 'little')
    (tmp_path / 'a.pth').write_bytes(data[:start] + huge + data[start:])
    with pytest.raises(CheckpointError, match='claims more data than the file has'):
        load_baseline(tmp_path / 'a.pth')
