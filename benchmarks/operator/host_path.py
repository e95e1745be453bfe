# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""What the host spends on one call of the Triton backend, without a GPU.

    python -m benchmarks.operator.host_path
    python -m benchmarks.operator.host_path --capability 86 --channels 256 --dtype float32 --repetitions 5

The kernels are compiled for a GPU's compute capability and launched by Triton's own launcher into a driver that does
nothing; PyTorch's operations run on a CPU on a map so small that they take next to no time. The backward pass's two
products do: it is timed once more with the allocation of their results in their place. What is left is Python, the
dispatcher and autograd. What a GPU's driver and libraries spend on launches, the sort's included, is not in it.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from types import SimpleNamespace

import torch
import triton
from torch.utils._python_dispatch import TorchDispatchMode
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from mmdeform_upgrade.ops import deform_conv2d, functional, matrices

launches = 0


# Bytes of shared memory that a program may have, by compute capability.
SHARED_MEMORY = {80: 166912, 86: 101376, 89: 101376, 90: 232448}


class NullDriver:
    """A GPU on which nothing runs."""

    def __init__(self, capability=90):
        self.capability = capability
        self.utils = SimpleNamespace(
            load_binary=lambda *_: ('module', 'function', 0, 0, 1024),
            unload_module=lambda *_: None,
            get_device_properties=lambda *_: {'max_shared_mem': SHARED_MEMORY[capability], 'multiprocessor_count': 132},
        )
        self.launcher_cls = lambda source, metadata: _count

    def get_current_target(self):
        return GPUTarget('cuda', self.capability, 32)

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0


def _count(*_):
    global launches
    launches += 1


class Operations(TorchDispatchMode):
    """PyTorch's operations, by name."""

    def __init__(self):
        super().__init__()
        self.seen = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.seen[str(function)] += 1
        return function(*args, **(kwargs or {}))


def microseconds(forward, backward, repetitions):
    """The 5 % quantile and the median of both, taking turns."""
    times = ([], [])
    for _ in range(repetitions):
        start = time.perf_counter()
        output = forward()
        middle = time.perf_counter()
        backward(output)
        end = time.perf_counter()
        del output  # on nobody's clock
        times[0].append((middle - start) * 1e6)
        times[1].append((end - middle) * 1e6)
    ordered = [sorted(some[repetitions // 5 :]) for some in times]
    return [f'{some[len(some) // 20]:.0f}, {some[len(some) // 2]:.0f}' for some in ordered]


def without_products(forward, backward, repetitions):
    """As :func:`microseconds`, with products that allocate their results and compute nothing."""
    product = matrices._times
    matrices._times = lambda a, b: a.new_empty((len(a), b.shape[1]))
    try:
        return microseconds(forward, backward, repetitions)
    finally:
        matrices._times = product


def main(argv=None):
    global launches
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--repetitions', type=int, default=1000)
    parser.add_argument('--capability', type=int, default=90, choices=sorted(SHARED_MEMORY))
    parser.add_argument('--channels', type=int, default=16)
    parser.add_argument('--dtype', default='bfloat16', choices=['float32', 'float16', 'bfloat16'])
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    driver.set_active(NullDriver(args.capability))
    functional._check_triton = lambda input: None
    for channels_last in (True, False):
        x, offset = torch.randn(1, args.channels, 4, 4), torch.randn(1, 18, 4, 4)
        weight = torch.randn(args.channels, args.channels, 3, 3)
        if channels_last:
            x, weight = (t.contiguous(memory_format=torch.channels_last) for t in (x, weight))
        tensors = [t.to(getattr(torch, args.dtype)).requires_grad_() for t in (x, offset, weight)]
        grad = torch.randn_like(tensors[0])

        def forward(tensors=tensors):
            return deform_conv2d(*tensors, None, (1, 1), (1, 1), (1, 1), backend='triton')

        def backward(output, tensors=tensors, grad=grad):
            return torch.autograd.grad(output, tensors, grad)

        backward(forward())
        launches, counts = 0, []
        for function in (forward, lambda f=forward, b=backward: b(f())):
            with Operations() as operations:
                function()
            counts.append((launches, dict(operations.seen)))
            launches = 0
        layout = 'channels-last' if channels_last else 'contiguous'
        print(f'{layout}, microseconds, 5 % quantile and median')
        print(f'  forward alone {microseconds(forward, lambda output: None, args.repetitions)[0]}')
        for title, measure in (('all', microseconds), ('without the products', without_products)):
            print('  {}: forward {}; backward {}'.format(title, *measure(forward, backward, args.repetitions)))
        for name, (launched, seen) in zip(('forward', 'forward and backward'), counts, strict=True):
            print(f'  {name}: {launched} launches of Triton kernels; {seen}')
    print(f'torch {torch.__version__}, triton {triton.__version__}, Python {sys.version.split()[0]}')


if __name__ == '__main__':
    main()
