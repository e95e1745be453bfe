"""Useless offsets in every case, dtype and backend of the operator, its memory watched; a few minutes of one core.

    python tests/faults/sweep_numbers.py

Outputs and gradients of each have to be those of the specification in float64, NaN included. The Triton kernels are
interpreted, and may touch nothing but their tensors. mmcv is compared, where it has its compiled part, and given a NaN
offset in a process of its own. Ends with status 1 where something differs.
"""

import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

os.environ['TRITON_INTERPRET'] = '1'
ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from mmdeform_upgrade.ops import deform_conv2d  # noqa: E402
from tests.test_ops.cases import CASES, Case, grad_like_output, results  # noqa: E402
from tests.test_ops.extremes import MANY, TALL, VALUES, WIDE, agree, only_own_memory, planted  # noqa: E402
from tests.test_ops.oracles import mmcv_op  # noqa: E402

MMCV_WITH_NAN = """
import torch
from mmcv.ops import deform_conv2d
offset = torch.zeros(1, 18, 64, 64)
offset[0, 3, 5, 5] = torch.nan
deform_conv2d(torch.ones(1, 2, 64, 64, requires_grad=True), offset, torch.ones(2, 2, 3, 3), 1, 1).sum().backward()
"""


NO_NEWS = (-1e4, 3e38, -3e38, float('inf'))  # the interpreter takes seconds a call, and these are as their neighbours


def backends(dtype):
    yield from ('eager', 'auto', 'reference')
    if dtype != torch.float64:
        yield 'triton'


def checks():
    """Names and calls."""
    for name, case in CASES.items():
        if case.batch == 0:
            continue
        for value in VALUES:
            for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
                if abs(value) > torch.finfo(dtype).max and abs(value) != torch.inf:
                    continue
                for backend in backends(dtype):
                    if backend == 'triton' and (dtype != torch.float32 or value in NO_NEWS):
                        continue
                    yield (
                        f'{name}, {value}, {dtype}, {backend}',
                        backend,
                        (
                            lambda case=case, value=value, dtype=dtype, backend=backend: agree(
                                case, planted(case, value, dtype), backend
                            )
                        ),
                    )
    for name, case in (('wide', WIDE), ('tall', TALL), ('10 000 maps', MANY)):
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            for backend in backends(dtype):
                yield (
                    f'{name}, {dtype}, {backend}',
                    backend,
                    (lambda case=case, dtype=dtype, backend=backend: agree(case, case.tensors(dtype), backend)),
                )
    for value in VALUES[:-1] if mmcv_op() else ():
        yield f'mmcv, {value}', 'mmcv', lambda value=value: compare_mmcv(value)


def compare_mmcv(value):
    case = Case(bias=False, size=(5, 4))
    tensors, grad = planted(case, value, torch.float64), grad_like_output(case)
    found, expected = (results(function, case, tensors, grad) for function in (deform_conv2d, mmcv_op()))
    for name in found:
        assert torch.allclose(found[name], expected[name], rtol=1e-9, atol=1e-9), name


def main():
    start, wrong, done = time.time(), [], Counter()
    torch.backends.cudnn.allow_tf32 = False  # which the interpreted kernels follow, too
    with only_own_memory() as touched:
        for name, backend, check in checks():
            torch.manual_seed(len(name))
            done[backend] += 1
            if sum(done.values()) % 200 == 0:
                print(f'{sum(done.values())} checks, {len(wrong)} wrong, {time.time() - start:.0f} s', flush=True)
            try:
                check()
            except Exception as error:
                wrong.append(f'{name}: {type(error).__name__}: {str(error)[:300]}')
    print(*wrong[:40], sep='\n')
    print(
        f'{sum(done.values())} checks ({", ".join(f"{name} {count}" for name, count in done.items())}), {len(wrong)} '
        f'wrong; {touched[0]} accesses of interpreted kernels, all inside; {time.time() - start:.0f} s'
    )
    if mmcv_op():
        nan = subprocess.run([sys.executable, '-c', MMCV_WITH_NAN], capture_output=True, text=True, check=False)
        print(f'mmcv with a NaN offset on a CPU: exit status {nan.returncode} (below 0: killed by that signal)')
    return 1 if wrong else 0


if __name__ == '__main__':
    sys.exit(main())
