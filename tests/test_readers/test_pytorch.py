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
from mmdeform_upgrade.readers import read_checkpoint


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
def test_a_checkpoint_that_would_run_code_is_refused(tmp_path, name, zipped, where):
    marker = tmp_path / 'marker'
    checkpoint = {'state_dict': {'a': torch.ones(1)}, 'meta': {}}
    checkpoint[where]['payload'] = dict(_payloads(marker))[name]
    torch.save(checkpoint, tmp_path / 'a.pth', _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match='was not loaded: it asks for'):
        load_baseline(tmp_path / 'a.pth')
    assert not marker.exists()


def test_a_file_cannot_set_attributes_of_classes(tmp_path):
    # GLOBAL torch.nn.parameter Parameter; BUILD with slot state: setattr(Parameter, 'evil', 1)
    data = b'\x80\x02ctorch.nn.parameter\nParameter\n}X\x04\x00\x00\x00evilK\x01s\x86b.'.replace(b'}X', b'N}X')
    with zipfile.ZipFile(tmp_path / 'a.pth', 'w') as archive:
        archive.writestr('archive/data.pkl', data)
        archive.writestr('archive/version', '3\n')
        archive.writestr('archive/byteorder', 'little')
    with pytest.raises(CheckpointError, match='sets the state of a'):
        read_checkpoint(tmp_path / 'a.pth')
    assert not hasattr(nn.Parameter, 'evil')


def _save(path):
    torch.save(_mm_checkpoint(), path)
    return path.read_bytes()


@pytest.mark.parametrize(
    'make,message',
    [
        (lambda data: data[: len(data) // 2], 'truncated'),
        (lambda data: data[:-7], 'truncated|readable'),
        (lambda data: b'', 'no readable checkpoint .0 bytes.: it is empty'),
        (lambda data: b'just some text, no checkpoint\n' * 9, 'it looks like plain text'),
        (lambda data: pickle.dumps([1, 2]), 'holds a list, expected names and arrays'),
    ],
)
def test_damaged_files_get_one_clear_error(tmp_path, make, message):
    path = tmp_path / 'a.pth'
    path.write_bytes(make(_save(path)))
    with pytest.raises(CheckpointError, match=message):
        load_baseline(path)


def test_other_files_get_one_clear_error(tmp_path):
    with pytest.raises(CheckpointError, match='there is no file'):
        load_baseline(tmp_path / 'none.pth')
    torch.save([torch.ones(1)], tmp_path / 'list.pth')
    with pytest.raises(CheckpointError, match='holds a list, expected a dict with a state_dict'):
        load_baseline(tmp_path / 'list.pth')
    torch.save({'net': {'a': torch.ones(1)}}, tmp_path / 'model.pth')
    with pytest.raises(CheckpointError, match='only tensors under the state dict, found others at net'):
        load_baseline(tmp_path / 'model.pth')
    torch.jit.script(nn.Linear(1, 1)).save(tmp_path / 'script.pth')
    with pytest.raises(CheckpointError, match='TorchScript program'):
        load_baseline(tmp_path / 'script.pth')
    torch.save({'state_dict': {}}, tmp_path / 'empty.pth')
    with pytest.raises(CheckpointError, match='empty'):
        load_baseline(tmp_path / 'empty.pth')


def test_a_zip_bomb_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / 'bomb.pth', 'w', zipfile.ZIP_DEFLATED) as archive:
        archive.writestr('archive/data.pkl', bytes(10**7))
    with pytest.raises(CheckpointError, match='compressed'):
        load_baseline(tmp_path / 'bomb.pth')


def test_weights_under_model_are_those_of_a_trainer(tmp_path):
    torch.save({'model': {'module.a': torch.ones(1)}, 'iteration': 7}, tmp_path / 'a.pth')
    assert list(load_baseline(tmp_path / 'a.pth')) == ['a']


class Huge:
    """A tensor or storage of a terabyte, in a file of a few hundred bytes."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    'payload,message',
    [
        (Huge(torch.UntypedStorage, 10**12), 'asks for a call of UntypedStorage'),
        (Huge(np.ndarray, (10**12,)), 'asks for a call of ArrayType'),
        (torch.ones(1).expand(10**11), 'claims more data than the file has'),
    ],
)
def test_a_small_file_cannot_ask_for_a_large_memory(tmp_path, payload, message):
    torch.save({'state_dict': {'a': torch.ones(1)}, 'meta': payload}, tmp_path / 'a.pth')
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(tmp_path / 'a.pth')


@pytest.mark.parametrize(
    'opcodes',
    [
        b'(I1000000000000\nitorch.storage\nUntypedStorage\n.',
        b'(ctorch.storage\nUntypedStorage\nI1000000000000\no.',
        b'ctorch.storage\nUntypedStorage\nI1000000000000\n\x85}\x92.',
    ],
)
def test_classes_are_made_by_no_other_opcode(tmp_path, opcodes):
    with zipfile.ZipFile(tmp_path / 'a.pth', 'w') as archive:
        archive.writestr('archive/data.pkl', b'\x80\x04' + opcodes)
        archive.writestr('archive/version', '3\n')
        archive.writestr('archive/byteorder', 'little')
    with pytest.raises(CheckpointError, match='makes objects in a way that no checkpoint needs'):
        read_checkpoint(tmp_path / 'a.pth')


def test_a_tensor_stays_within_its_storage(tmp_path):
    tensor = torch.arange(4.0)
    torch.save({'a': tensor[1:], 'b': tensor.view(2, 2).t()}, tmp_path / 'a.pth')
    loaded = load_baseline(tmp_path / 'a.pth')
    assert loaded['a'].tolist() == [1, 2, 3] and loaded['b'].tolist() == [[0, 2], [1, 3]]
    data = (tmp_path / 'a.pth').read_bytes()
    longer = data.replace(b'K\x03\x85', b'K\x09\x85')  # the shape (3,) of a becomes (9,)
    assert longer != data
    (tmp_path / 'b.pth').write_bytes(longer)
    with pytest.raises(CheckpointError, match=r'shape \(9,\) in a storage of 4 values'):
        load_baseline(tmp_path / 'b.pth')
