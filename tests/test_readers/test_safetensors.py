"""Safetensors files, by the library: what was written by hand and by us is read, damage is named."""

import json
import os
import resource
import struct

import pytest
import torch

from mmdeform_upgrade import load_baseline
from mmdeform_upgrade.errors import CheckpointError
from mmdeform_upgrade.files import write_safetensors
from mmdeform_upgrade.readers import read_checkpoint
from mmdeform_upgrade.release.contents import write_checkpoint

from .test_pickled import survives

DTYPES = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.bool,
]


def _file(path, header, data=b'', length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack('<Q', len(text) if length is None else length) + text + data)
    return path


def _entry(shape=(2,), offsets=(0, 8), dtype='F32'):
    return dict(dtype=dtype, shape=list(shape), data_offsets=list(offsets))


def test_a_file_written_by_hand_is_read(tmp_path):
    # Names need not be in the order of the data, and the header may be padded.
    header = (
        json.dumps(
            {
                'b': _entry((2,), (4, 8), 'BF16'),
                'a': _entry((), (0, 4)),
                'none': _entry((0, 3), (8, 8)),
                '__metadata__': {'format': 'pt'},
            }
        ).encode()
        + b'   '
    )
    path = _file(tmp_path / 'x', header, struct.pack('<f', 1.5) + b'\x80\x3f\x00\xc0')
    contents = read_checkpoint(path)
    tensors, metadata = contents['state_dict'], contents['metadata']
    assert metadata == {'format': 'pt'} and set(tensors) == {'a', 'b', 'none'}
    assert tensors['a'].item() == 1.5 and tensors['a'].shape == () and tensors['none'].shape == (0, 3)
    assert tensors['b'].tolist() == [1.0, -2.0] and tensors['b'].dtype == torch.bfloat16


@pytest.mark.parametrize(
    'text,meta',
    [
        ('{"epoch": 2, "dataset_meta": {"classes": ["a"]}}', {'epoch': 2, 'dataset_meta': {'classes': ['a']}}),
        ('what another library keeps there', None),
        ('[1]', None),
        ('', None),
    ],
)
def test_a_releases_meta_is_where_a_checkpoint_has_it(tmp_path, text, meta):
    write_safetensors(tmp_path / 'a.safetensors', {'w': torch.ones(1)}, {'meta': text})
    rest = read_checkpoint(tmp_path / 'a.safetensors')
    assert rest.pop('state_dict')['w'] == 1 and rest == {'metadata': {'meta': text}, **({'meta': meta} if meta else {})}


@pytest.mark.parametrize('text', ['{"epoch": 2', '{"a":' * 100000])
def test_a_damaged_meta_is_refused(tmp_path, text):
    write_safetensors(tmp_path / 'a.safetensors', {'w': torch.ones(1)}, {'meta': text})
    with pytest.raises(CheckpointError, match='truncated or damaged .(JSONDecode|Recursion)Error'):
        read_checkpoint(tmp_path / 'a.safetensors')


def test_what_is_written_is_read_back(tmp_path):
    tensors = {f'{dtype}': torch.tensor([[0, 1, 1]]).to(dtype) for dtype in DTYPES}
    shared = torch.randn(4, 5)
    tensors.update(
        strided=shared.t(),
        shared=shared,
        row=shared[1],
        scalar=torch.tensor(2.0),
        empty=torch.zeros(0, 2),
        parameter=torch.nn.Parameter(torch.ones(1)),
        **{'ünï"codé\n': torch.ones(1)},
    )
    write_safetensors(tmp_path / 'a.safetensors', tensors, {'made by': 'a test'})
    contents = read_checkpoint(tmp_path / 'a.safetensors')
    loaded = contents['state_dict']
    assert set(loaded) == set(tensors) and contents['metadata'] == {'made by': 'a test'}
    for name, value in tensors.items():
        assert torch.equal(loaded[name], value) and loaded[name].dtype == value.dtype, name


def test_a_file_may_be_read_by_whoever_reads_other_files_of_the_user(tmp_path):
    write_safetensors(tmp_path / 'a', {'x': torch.ones(3)})
    (tmp_path / 'b').write_text('any file')
    assert os.stat(tmp_path / 'a').st_mode == os.stat(tmp_path / 'b').st_mode


def test_the_same_contents_give_the_same_bytes(tmp_path):
    texts = {f'näme{number}\n': '"text"' * number for number in range(20)}
    for name in ('a', 'b', 'c'):
        write_safetensors(tmp_path / name, {'x': torch.ones(3), 'y': torch.zeros(2, 2)}, texts)
    assert (tmp_path / 'a').read_bytes() == (tmp_path / 'b').read_bytes() == (tmp_path / 'c').read_bytes()
    assert read_checkpoint(tmp_path / 'a')['metadata'] == texts


@pytest.mark.parametrize(
    'tensors,metadata,message',
    [
        ({'a': torch.ones(2).to_sparse()}, None, 'cannot hold'),
        ({'a': torch.ones(1)}, {'n': 1}, 'cannot hold this: .*metadata'),
    ],
)
def test_what_the_format_cannot_hold_is_refused_and_nothing_written(tmp_path, tensors, metadata, message):
    with pytest.raises(CheckpointError, match=message):
        write_safetensors(tmp_path / 'a', tensors, metadata)
    assert os.listdir(tmp_path) == []


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    write_safetensors(tmp_path / 'a', {'a': torch.ones(1)})
    monkeypatch.setattr(os, 'replace', lambda *paths: (_ for _ in ()).throw(OSError('disk full')))
    with pytest.raises(OSError, match='disk full'):
        write_safetensors(tmp_path / 'a', {'a': torch.zeros(1)})
    assert os.listdir(tmp_path) == ['a'] and read_checkpoint(tmp_path / 'a')['state_dict']['a'] == 1


@pytest.mark.parametrize(
    'header,data',
    [
        ({'a': _entry()}, bytes(7)),
        ({'a': _entry()}, bytes(9)),
        ({'a': _entry((3,))}, bytes(8)),
        ({'a': _entry((-2, -1))}, bytes(8)),
        ({'a': _entry(), 'b': _entry((1,), (4, 8))}, bytes(8)),
        ({'a': _entry((2,), (8, 0))}, bytes(8)),
        ({'a': _entry((2,), (0, 8), 'F33')}, bytes(8)),
        ({'a': dict(dtype='F32', shape=[2])}, bytes(8)),
        ({'__metadata__': {'a': 1}}, b''),
        (b'{"a":' * 10**5, b''),
        (b'{broken', b''),
        (b'{"\xff":1}', b''),
    ],
)
def test_a_header_that_does_not_describe_the_file_is_refused(tmp_path, header, data):
    with pytest.raises(CheckpointError, match='truncated or damaged .SafetensorError.*copy or download'):
        load_baseline(_file(tmp_path / 'a', header, data))


def test_a_header_longer_than_the_file_is_refused(tmp_path):
    for length in (10**6, 2**40):
        with pytest.raises(CheckpointError, match='truncated or damaged .SafetensorError'):
            load_baseline(_file(tmp_path / 'a', {'a': _entry()}, bytes(8), length))


def test_damaged_files_are_refused_or_read(tmp_path):
    write_safetensors(tmp_path / 'a', {'a.weight': torch.ones(3, 4), 'b': torch.ones(2, dtype=torch.bool)}, {'x': 'y'})
    assert survives(tmp_path / 'a', (tmp_path / 'a').read_bytes(), 1000, 3) > 500


@pytest.mark.parametrize('write', [write_safetensors, write_checkpoint])
def test_a_file_that_does_not_fit_is_an_error_of_the_system_and_leaves_nothing(tmp_path, write):
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limit[1]))
    try:
        with pytest.raises(OSError, match='File too large'):
            write(str(tmp_path / 'a'), {'w': torch.ones(1_000_000)}, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert list(tmp_path.iterdir()) == []


def test_a_link_stays_one_and_its_file_is_written(tmp_path):
    (tmp_path / 'real').write_bytes(b'old')
    (tmp_path / 'link').symlink_to('real')
    write_safetensors(str(tmp_path / 'link'), {'a': torch.ones(2)})
    assert (tmp_path / 'link').is_symlink() and (tmp_path / 'real').read_bytes() != b'old'
    assert sorted(path.name for path in tmp_path.iterdir()) == ['link', 'real']
