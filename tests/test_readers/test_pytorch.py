import contextlib
import io
import os
import pickle
import zipfile
from collections import Counter, OrderedDict

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer
from torch import nn

from mmdeform_upgrade import load_baseline
from mmdeform_upgrade.errors import CheckpointError
from mmdeform_upgrade.readers import Inert, kind_of, read_checkpoint


def _mm_checkpoint():
    """What MMEngine's runner saves, with every kind of object that it holds."""
    buffer = HistoryBuffer([1.0, 2.0], [1, 1])
    model = nn.Conv2d(2, 3, 1)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.zeros(1, 2, 1, 1)).sum().backward()
    optimizer.step()
    return {
        'meta': dict(
            epoch=1,
            iter=4,
            seed=np.int64(3),
            cfg='a = 1',
            time=np.float64(0.5),
            dataset_meta=dict(classes=('a', 'b'), palette=[(0, 0, 0)], array=np.arange(3, dtype=np.int32)),
        ),
        'state_dict': OrderedDict(model.state_dict()),
        'optimizer': optimizer.state_dict(),
        'param_schedulers': [dict(last_step=1, milestones=Counter([2, 3]))],
        'message_hub': dict(
            log_scalars=OrderedDict(loss=buffer),
            runtime_info=OrderedDict(lr=np.float32(0.1)),
            resumed_keys=OrderedDict(loss=True),
        ),
    }


@pytest.mark.parametrize('zipped', [True, False])
def test_a_real_checkpoint_is_read_whole(tmp_path, zipped):
    path, checkpoint = tmp_path / 'a.pth', _mm_checkpoint()
    torch.save(checkpoint, path, _use_new_zipfile_serialization=zipped)
    loaded = read_checkpoint(path)
    assert loaded['meta']['seed'] == 3 and loaded['meta']['time'] == 0.5
    assert np.array_equal(loaded['meta']['dataset_meta']['array'], [0, 1, 2])
    buffer = loaded['message_hub']['log_scalars']['loss']
    assert type(buffer) is HistoryBuffer and buffer.mean() == 1.5 and buffer.statistics('max') == 2
    buffer.update(6.0)
    assert buffer.current() == 6.0
    assert loaded['message_hub']['runtime_info']['lr'] == np.float32(0.1)
    for key, value in checkpoint['state_dict'].items():
        assert torch.equal(loaded['state_dict'][key], value)
    torch.optim.AdamW(nn.Conv2d(2, 3, 1).parameters()).load_state_dict(loaded['optimizer'])


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.bool])
def test_dtypes_survive(tmp_path, dtype):
    tensor = torch.tensor([0, 1, 1]).to(dtype)
    torch.save({'state_dict': {'module.a': tensor, 'b': tensor[1:]}}, tmp_path / 'a.pth')
    state_dict = load_baseline(tmp_path / 'a.pth')
    assert list(state_dict) == ['a', 'b'] and torch.equal(state_dict['a'], tensor) and state_dict['a'].dtype == dtype
    assert torch.equal(state_dict['b'], tensor[1:])


def test_a_bare_state_dict_and_parameters_are_read(tmp_path):
    torch.save({'a': nn.Parameter(torch.ones(2)), 'b': torch.zeros(1)}, tmp_path / 'a.pth')
    assert set(load_baseline(tmp_path / 'a.pth')) == {'a', 'b'}


class Payload:
    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def _payloads(marker):
    command = f'touch {marker}'
    import torch.serialization as serialization

    yield 'system', Payload(os.system, command)
    yield 'eval', Payload(eval, f"__import__('os').system({command!r})")
    yield 'getattr', Payload(getattr, OrderedDict, 'fromkeys')
    yield 'import', Payload(__import__, 'os')
    yield 'torch.load', Payload(torch.load, str(marker))
    yield 'loads', Payload(pickle.loads, pickle.dumps(Payload(os.system, command)))
    yield 'builder', Payload(nn.Sequential)
    yield 'open', Payload(io.open, str(marker), 'w')
    yield 'set_default', Payload(serialization.add_safe_globals, [os.system])
    yield 'buffer', Payload(getattr, HistoryBuffer, '__init__')


@pytest.mark.parametrize('name', [name for name, _ in _payloads('x')])
@pytest.mark.parametrize('zipped', [True, False])
@pytest.mark.parametrize('where', ['state_dict', 'meta'])
def test_what_would_run_code_is_inert_and_never_a_weight(tmp_path, name, zipped, where):
    marker = tmp_path / 'marker'
    checkpoint = {'state_dict': {'a': torch.ones(1)}, 'meta': {}}
    checkpoint[where]['payload'] = dict(_payloads(marker))[name]
    torch.save(checkpoint, tmp_path / 'a.pth', _use_new_zipfile_serialization=zipped)
    if where == 'state_dict':
        with pytest.raises(
            CheckpointError, match=r"only tensors under 'state_dict', found others at payload \(<.*, not loaded>\)"
        ):
            load_baseline(tmp_path / 'a.pth')
    else:
        assert isinstance(read_checkpoint(tmp_path / 'a.pth')['meta']['payload'], Inert)
    assert not marker.exists()


@pytest.mark.parametrize('name', ['_rebuild_device_tensor_from_numpy', '_rebuild_device_tensor_from_cpu_tensor'])
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_tensors_of_devices_without_storages_are_read(tmp_path, name, dtype):
    data = torch.tensor([1.0, 2.0])
    data = data.numpy() if name.endswith('numpy') else data
    weight = Payload(getattr(torch._utils, name), data, dtype, 'mps:0', True)
    torch.save({'state_dict': {'a.weight': weight}}, tmp_path / 'a.pth')
    loaded = load_baseline(tmp_path / 'a.pth')['a.weight']
    assert loaded.tolist() == [1, 2] and loaded.dtype == dtype and loaded.device.type == 'cpu'


def test_more_or_fewer_numbers_than_the_tensors_have_are_refused(tmp_path):
    torch.save({'a': torch.ones(2)}, tmp_path / 'a.pth', _use_new_zipfile_serialization=False)
    data = (tmp_path / 'a.pth').read_bytes()
    keys = data.rindex(b'\x80\x02]')  # the list of them, before the numbers
    (tmp_path / 'a.pth').write_bytes(data[:keys] + b'\x80\x02].')
    with pytest.raises(CheckpointError, match='damaged .EOFError: it has other tensors than it names'):
        load_baseline(tmp_path / 'a.pth')
    (tmp_path / 'a.pth').write_bytes(data + b'more')
    with pytest.raises(CheckpointError, match='something stands after its end'):
        load_baseline(tmp_path / 'a.pth')


@pytest.mark.parametrize('zipped', [True, False])
@pytest.mark.filterwarnings('ignore')
def test_quantised_weights_are_named_and_not_called_damaged(tmp_path, zipped):
    weight = torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)
    saved = {'state_dict': {'a.weight': weight, 'b.weight': torch.ones(2)}}
    torch.save(saved, tmp_path / 'a.pth', _use_new_zipfile_serialization=zipped)
    with pytest.raises(
        CheckpointError, match=r'found others at a.weight \(<torch._utils._rebuild_qtensor, not loaded>'
    ):
        load_baseline(tmp_path / 'a.pth')


def _raw(path, pickled):
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr('archive/data.pkl', pickled)
        archive.writestr('archive/version', '3\n')
        archive.writestr('archive/byteorder', 'little')
    return path


def test_a_file_cannot_set_attributes_of_classes(tmp_path):
    # GLOBAL torch.nn.parameter Parameter; BUILD with slot state: setattr(Parameter, 'evil', 1)
    data = b'\x80\x02ctorch.nn.parameter\nParameter\nN}X\x04\x00\x00\x00evilK\x01s\x86b.'
    with pytest.raises(CheckpointError, match=r'holds <torch.nn.parameter.Parameter, not loaded>'):
        read_checkpoint(_raw(tmp_path / 'a.pth', data))
    assert not hasattr(nn.Parameter, 'evil')


def _save(path):
    torch.save(_mm_checkpoint(), path)
    return path.read_bytes()


@pytest.mark.parametrize(
    'make,message',
    [
        (lambda data: data[: len(data) // 2], 'truncated'),
        (lambda data: data[:-7], 'truncated|readable'),
        (lambda data: pickle.dumps([1, 2]), 'holds a list, expected a dict'),
    ],
)
def test_damaged_files_get_one_clear_error(tmp_path, make, message):
    path = tmp_path / 'a.pth'
    path.write_bytes(make(_save(path)))
    with pytest.raises(CheckpointError, match=message):
        load_baseline(path)


@pytest.mark.parametrize('function', [torch.UntypedStorage, np.ndarray, np.empty, bytearray])
def test_a_small_file_cannot_ask_for_a_large_array(tmp_path, function):
    torch.save({'state_dict': {'a': torch.ones(1)}, 'meta': Payload(function, 10**15)}, tmp_path / 'a.pth')
    with contextlib.suppress(CheckpointError):
        assert isinstance(read_checkpoint(tmp_path / 'a.pth')['meta'], Inert)


@pytest.mark.parametrize('opcode', [b'\x95', b'\x8e', b'\x8d', b'\x96'])
def test_a_length_beyond_the_file_is_damage(tmp_path, opcode):
    """FRAME, BINBYTES8, BINUNICODE8 and BYTEARRAY8 of an exabyte, in PyTorch's older format, read from disk."""
    torch.save({'a': torch.ones(1)}, tmp_path / 'a.pth', _use_new_zipfile_serialization=False)
    data = (tmp_path / 'a.pth').read_bytes()
    start = data.index(b'.') + 1
    (tmp_path / 'a.pth').write_bytes(
        data[:start] + b'\x80\x04' + opcode + (10**18).to_bytes(8, 'little') + data[start:]
    )
    with pytest.raises(CheckpointError, match='truncated or damaged'):
        load_baseline(tmp_path / 'a.pth')


@pytest.mark.parametrize('protocol', range(2, 6))
@pytest.mark.parametrize('zipped', [True, False])
def test_both_containers_are_read_with_every_protocol(tmp_path, protocol, zipped):
    model = nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3))
    shared = torch.arange(12.0).reshape(3, 4)
    saved = {
        'state_dict': model.state_dict(),
        'ema_state_dict': {'a': shared.t(), 'b': shared[1], 'c': torch.zeros(0, 2)},
    }
    path = tmp_path / 'a.pth'
    torch.save(saved, path, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
    loaded = read_checkpoint(path)
    assert kind_of(path) == ('' if zipped else 'older ') + 'PyTorch checkpoint'
    assert loaded['state_dict']._metadata == model.state_dict()._metadata
    for key in saved:
        assert list(loaded[key]) == list(saved[key])
        assert all(torch.equal(loaded[key][name], value) for name, value in saved[key].items())


def test_a_flipped_bit_is_refused_by_the_name_of_its_member(tmp_path):
    path = tmp_path / 'a.pth'
    weight = torch.tensor([0.0479, 1.0])
    torch.save({'state_dict': {'a': weight}}, path)
    data = bytearray(path.read_bytes())
    data[bytes(data).index(weight.numpy().tobytes()) + 3] ^= 64
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"damaged .*Bad CRC-32 for file 'a/data/0'.*download it again"):
        load_baseline(path)


@pytest.mark.skipif(
    not hasattr(torch.serialization, 'set_crc32_options'), reason='this PyTorch always writes checksums'
)
def test_a_file_saved_without_checksums_is_read(tmp_path):
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({'state_dict': {'a': torch.ones(1)}}, tmp_path / 'a.pth')
    finally:
        torch.serialization.set_crc32_options(True)
    assert list(load_baseline(tmp_path / 'a.pth')) == ['a']


def test_a_colon_in_the_name_of_a_file_is_no_drive(tmp_path):
    torch.save({'state_dict': {'a': torch.ones(1)}}, tmp_path / 'C:epoch:12.pth')
    assert list(load_baseline(tmp_path / 'C:epoch:12.pth')) == ['a']


def test_a_tensor_stays_within_its_storage(tmp_path):
    tensor = torch.arange(4.0)
    torch.save({'a': tensor[1:]}, tmp_path / 'a.pth', _use_new_zipfile_serialization=False)
    assert load_baseline(tmp_path / 'a.pth')['a'].tolist() == [1, 2, 3]
    data = (tmp_path / 'a.pth').read_bytes()
    assert data.count(b'K\x03\x85') == 1
    (tmp_path / 'b.pth').write_bytes(data.replace(b'K\x03\x85', b'K\x09\x85'))  # the shape (3,) becomes (9,)
    with pytest.raises(CheckpointError, match=r'outside of its storage .*sizes \[9\]'):
        load_baseline(tmp_path / 'b.pth')
