"""Offsets that are no use, sizes that are unusual: what every backend has to make of them.

``test_extremes.py``, ``triton_cases.py`` and ``tests/faults/sweep_numbers.py`` run these checks.
"""

import contextlib

import numpy as np
import torch

from mmdeform_upgrade.ops import deform_conv2d

from .cases import TOLERANCE, Case, assert_close, grad_like_output, results

VALUES = (1e4, -1e4, 3e38, -3e38, float('inf'), -float('inf'), float('nan'))
# Coordinates above 2048, where half precision has no fractions left, and few positions.
WIDE = Case(batch=1, channels=3, size=(2, 2200), kernel=(1, 3), stride=(1, 200), padding=(0, 1), out_channels=2)
TALL = Case(batch=1, channels=3, size=(2200, 2), kernel=(3, 1), stride=(200, 1), padding=(1, 0), out_channels=2)
MANY = Case(batch=10_000, channels=1, size=(1, 1), kernel=(1, 1), padding=0, out_channels=1)


def planted(case, value, dtype=torch.float32):
    """Tensors of a case with ``value`` as the dy of one tap, the dx of another, and both of a third."""
    tensors = case.tensors(dtype, requires_grad=False)
    offset = tensors[1]
    last, (rows, columns) = offset.shape[1] - 1, offset.shape[2:]
    for image, channel, row, column in ((0, 0, 0, 0), (-1, last, rows - 1, columns - 1)):
        offset[image, channel, row, column] = value
    middle = last // 4 * 2
    offset[0, middle : middle + 2, rows // 2, columns // 2] = value
    return [None if t is None else t.requires_grad_() for t in tensors]


def agree(case, tensors, backend, tolerance=None):
    """Output and all gradients are those of the specification in float64: the same NaN, the rest close."""
    dtype = tensors[0].dtype
    grad = grad_like_output(case, dtype).to(tensors[0].device)
    exact = [None if t is None else t.detach().double().requires_grad_(t.requires_grad) for t in tensors]
    expected = results(deform_conv2d, case, exact, grad.double(), backend='reference')
    found = results(deform_conv2d, case, tensors, grad, backend=backend)
    for name, value in found.items():
        assert torch.equal(value.isnan(), expected[name].isnan()), f'{name}: NaN elsewhere'
        assert not value.isinf().any(), f'{name} is infinite'
    assert_close(
        *({name: value.nan_to_num(0.0) for name, value in part.items()} for part in (found, expected)),
        tolerance or TOLERANCE[dtype],
    )
    return found


@contextlib.contextmanager
def only_own_memory():
    """The interpreter of Triton's kernels may touch nothing but the tensors that a kernel was given."""
    from triton.runtime import interpreter

    allowed, touched = [], [0]
    machine, run = interpreter._interpreter, interpreter.GridExecutor.__call__

    def check(pointers, mask, width):
        pointers, mask = np.broadcast_arrays(pointers, mask)
        used = pointers[mask]
        touched[0] += used.size
        inside = np.zeros(used.shape, bool)
        for first, end in allowed:
            inside |= (used >= first) & (used + width <= end)
        assert inside.all(), f'{(~inside).sum()} of {used.size} accesses are outside of all tensors'

    class Checked:
        def __getattr__(self, name):
            return getattr(machine, name)

        def load(self, pointers, mask, other, kind):
            check(pointers, mask, np.dtype(kind).itemsize)
            return machine.load(pointers, mask, other, kind)

        def store(self, pointers, value, mask):
            check(pointers, mask, value.dtype.itemsize)
            return machine.store(pointers, value, mask)

        def atomic_rmw(self, kind, pointers, value, mask, order):
            check(pointers, mask, value.dtype.itemsize)
            return machine.atomic_rmw(kind, pointers, value, mask, order)

    def checked_run(self, *arguments, **options):

        def remember(*tensors, **named):
            allowed[:] = [
                (t.data_ptr(), t.data_ptr() + t.numel() * t.element_size())
                for t in (*tensors, *named.values())
                if isinstance(t, torch.Tensor)
            ]

        self.pre_run_hooks = [*self.pre_run_hooks, remember]
        return run(self, *arguments, **options)

    interpreter._interpreter, interpreter.GridExecutor.__call__ = Checked(), checked_run
    try:
        yield touched
    finally:
        interpreter._interpreter, interpreter.GridExecutor.__call__ = machine, run
