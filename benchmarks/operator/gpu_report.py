# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""All figures of the operator on one GPU in one short run: correctness first, then operators, then whole networks.

    python -m benchmarks.operator.gpu_report --out report.json
    python -m benchmarks.operator.gpu_report --device cpu --scale 0.1 --seconds 60 --out rehearsal.json

Needs PyTorch, torchvision and this package, nothing else. Every figure is written as soon as it is there; a part that
fails is recorded and the next one runs; nothing starts after ``--seconds``, and a hanging run is ended.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.operator import benchmark_op as operator
from benchmarks.operator import networks as whole
from benchmarks.operator import roofline, tuning
from benchmarks.operator.clocks import capture, cold, queued
from benchmarks.timing import conditions, race, summary

PRECISIONS = ('bfloat16', 'tf32', 'float16', 'float32')
# Of the largest value, root mean square, against float64.
LIMITS = {'float32': 1e-5, 'tf32': 2e-3, 'float16': 4e-3, 'bfloat16': 2e-2}


class Report:
    """What was found so far, on disk."""

    def __init__(self, path: Path, seconds: float, device: str) -> None:
        self.path, self.start, self.seconds = path, time.monotonic(), seconds
        self.kept: dict[str, Any] = {'conditions': conditions(device), 'results': {}, 'failed': {}}

    def attempt(self, name: str, work: Callable[[], Any], needs: float = 5.0) -> None:
        """Run one part, if ``needs`` seconds are left for it."""
        spent = time.monotonic() - self.start
        try:
            if spent + needs > self.seconds:
                raise TimeoutError(f'{spent:.0f} of {self.seconds:.0f} seconds were spent')
            found = work()
        except Exception as error:  # whatever it is, the other parts are worth running
            self.kept['failed'][name] = f'{type(error).__name__}: {str(error)[:300]}'
            print(f'FAILED {name}: {self.kept["failed"][name]}', flush=True)
        else:
            self.kept['results'][name] = found
            print('\n'.join(lines({name: found})), flush=True)
        self.kept['seconds'] = time.monotonic() - self.start
        self.path.write_text(json.dumps(self.kept, indent=1) + '\n')


@contextlib.contextmanager
def precision(name: str) -> Iterator[torch.dtype]:
    """The dtype of tensors, and whether products may use TF32, which is a precision of float32."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = name == 'tf32'
    try:
        yield torch.float32 if name in ('tf32', 'float32') else getattr(torch, name)
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


def gradients(function, inputs, grad):
    """Output and gradients; a convolution has none for offsets."""
    output = function(*inputs)
    found = torch.autograd.grad(output, inputs, grad, allow_unused=True)
    return (output.detach(), *(g for g in found if g is not None))


def gate(name: str, device: str, last: bool) -> dict[str, Any]:
    """Correct against float64, the same in every run, and the same from a CUDA graph."""
    with precision(name) as dtype:
        inputs, grad = operator.make((2, 64, 24, 24), dtype, device)
        if last:
            inputs = [t.detach().contiguous(memory_format=torch.channels_last).requires_grad_() for t in inputs]
        exact = [t.detach().double().requires_grad_() for t in inputs]
        expected = gradients(operator.ours('reference'), exact, grad.double())
        found, again = (gradients(operator.ours('auto'), inputs, grad) for _ in range(2))
        errors = [
            float((f.double() - e).square().mean().sqrt() / e.abs().max()) for f, e in zip(found, expected, strict=True)
        ]
        captured = captured_equals_eager(inputs, grad, found) if device == 'cuda' else None
    result = {
        'errors': errors,
        'deterministic': all(torch.equal(a, b) for a, b in zip(found, again, strict=True)),
        'graph': captured,
    }
    if not (max(errors) < LIMITS[name] and result['deterministic'] and captured is not False):
        raise ArithmeticError(json.dumps(result))
    return result


def captured_equals_eager(inputs, grad, found) -> bool:
    """Whether a graph that was captured on other values replays to the eager result on these."""
    fixed = [torch.rand_like(t).requires_grad_() for t in inputs]
    graph, results = capture(lambda: gradients(operator.ours('auto'), fixed, grad))
    with torch.no_grad():
        for static, tensor in zip(fixed, inputs, strict=True):
            static.copy_(tensor)
    graph.replay()
    torch.cuda.synchronize()
    return all(torch.equal(r, f) for r, f in zip(results, found, strict=True))


def operator_times(shape, name: str, device: str) -> dict[str, Any]:
    """Milliseconds of each candidate in one precision."""
    found: dict[str, Any] = {}
    with precision(name) as dtype:
        inputs, grad = operator.make(shape, dtype, device)
        candidates = {'conv': operator.plain, 'ours': operator.ours('auto')}
        if name != 'bfloat16':  # torchvision has none
            candidates['torchvision'] = operator._torchvision()
        for candidate, function in candidates.items():
            both = lambda f=function: gradients(f, inputs, grad)  # noqa: E731
            row = {'cold': cold(both, device), 'queue': queued(both, device)}
            with torch.no_grad():
                row |= {'forward_cold': cold(lambda f=function: f(*inputs), device)}
                row |= {'forward_queue': queued(lambda f=function: f(*inputs), device)}
            if device == 'cuda':
                torch.cuda.reset_peak_memory_stats()
                before = torch.cuda.memory_allocated()
                both()
                row['peak_mb'] = (torch.cuda.max_memory_allocated() - before) / 2**20
                with contextlib.suppress(RuntimeError):  # of another operator
                    row['graph'] = queued(capture(both)[0].replay, device)
            found[candidate] = row
        if name in ('bfloat16', 'tf32'):
            found['error_over_conv'] = operator.error_ratio(operator.ours('auto'), shape, dtype, device)
    return found


def network_times(network: whole.Network, device: str, scale: float, autocast: bool) -> dict[str, Any]:
    """Training step and inference of the plain network, the upgraded ones, and those with torchvision's operator."""
    arms: dict[str, Any] = {'plain': (None, contextlib.nullcontext)}
    for title, targets in network.targets.items():
        arms[title] = (targets, contextlib.nullcontext)
        arms[f'{title}, torchvision'] = (targets, whole.operator_of_torchvision)
    train, infer, memory = {}, {}, {}
    for title, (targets, context) in arms.items():
        steps = whole.prepared(network, targets, device, scale)

        def run(step, context=context):
            with context(), torch.autocast(device, torch.bfloat16, enabled=autocast):
                step()

        train[title], infer[title] = (lambda s=s, run=run: run(s) for s in (steps.train, steps.infer))
        if device == 'cuda':
            train[title]()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            train[title]()
            memory[title] = (torch.cuda.max_memory_allocated() - before) / 2**20
    repetitions = 8 if scale == 1 else 1
    timed = {'train': race(train, repetitions, device), 'infer': race(infer, repetitions, device)}
    return {kind: {title: summary(times) for title, times in rows.items()} for kind, rows in timed.items()} | {
        'peak_mb': memory
    }


def lines(results: dict[str, Any]) -> Iterator[str]:
    """The report, short."""
    for name, row in results.items():
        if name.startswith('operator'):
            ours, conv = row['ours'], row['conv']
            peer = row.get('torchvision')
            text = [f'{k} {ours[k]:.3f} ({ours[k] / conv[k]:.2f} conv' + (f', {peer[k] / ours[k]:.2f}x tv)' if peer and k in peer else ')')
                    for k in ('cold', 'queue', 'graph', 'forward_queue') if k in ours]  # yapf: disable
            yield f'{name}: ' + ', '.join(text) + f', error/conv {row.get("error_over_conv", float("nan")):.2f}'
        elif name.startswith('network'):
            for kind in ('train', 'infer'):
                base = row[kind]['plain']['median']
                rest = ', '.join(f'{t} {s["median"] / base:.3f}' for t, s in row[kind].items() if t != 'plain')
                yield f'{name} {kind}: plain {base:.1f} ms, {rest}'
        else:
            yield f'{name}: {json.dumps(row)[:150]}'


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--device', default='cuda', choices=['cpu', 'cuda'])
    parser.add_argument('--scale', type=float, default=1.0, help='of maps and pictures; 1 but for a rehearsal')
    parser.add_argument('--seconds', type=float, default=150.0)
    parser.add_argument('--out', type=Path, default=Path(os.environ.get('OUT', '.')) / 'gpu_report.json')
    args = parser.parse_args(argv)
    faulthandler.dump_traceback_later(args.seconds + 5, exit=True)
    report, device = Report(args.out, args.seconds, args.device), args.device
    shapes = operator.SHAPES['cuda'] if args.scale == 1 else [(1, 32, 8, 8)]
    compilers = tuning.compile_in_background(12) if device == 'cuda' else []
    report.attempt('ceilings', lambda: roofline.ceilings(device))
    report.attempt('compiled', lambda: roofline.waited(compilers, 35.0))
    for name in PRECISIONS:
        for last in (False, True):
            report.attempt(f'gate {name} channels_last={last}', lambda n=name, c=last: gate(n, device, c))
    for name in PRECISIONS[:2]:
        for shape in shapes:
            report.attempt(f'before {_title(shape, name)}', lambda s=shape, n=name: operator_times(s, n, device))
    if device == 'cuda':
        profiles(report, 'before', shapes, device)
    values = tune(report, shapes, device)
    with tuning.applied(values):
        for name in PRECISIONS:
            report.attempt(f'gate tuned {name}', lambda n=name: gate(n, device, True))
        operators(report, PRECISIONS[:2], shapes, device)
        for title, network in whole.networks().items():
            report.attempt(
                f'network {title} tf32', lambda n=network: _network(n, args, False), 12.0 if args.scale == 1 else 5.0
            )
        operators(report, PRECISIONS[2:3], shapes, device)
        if device == 'cuda':
            profiles(report, 'tuned', shapes, device)
        for title, network in whole.networks().items():
            report.attempt(f'network {title} autocast', lambda n=network: _network(n, args, True), 12.0)
        operators(report, PRECISIONS[3:], shapes, device)


def _title(shape, name: str) -> str:
    return f'operator {"x".join(map(str, shape))} {name}'


def operators(report: Report, precisions, shapes, device: str) -> None:
    for name in precisions:
        for shape in shapes:
            report.attempt(_title(shape, name), lambda s=shape, n=name: operator_times(s, n, device))


def profiles(report: Report, when: str, shapes, device: str) -> None:
    """Time of every kernel, of ours over their floors."""
    for name in PRECISIONS[:2]:
        for shape in shapes:
            report.attempt(
                f'profile {when} {_title(shape, name)}', lambda s=shape, n=name: profiled(report, s, n, device)
            )


def profiled(report: Report, shape, name: str, device: str) -> dict[str, Any]:
    with precision(name) as dtype:
        inputs, grad = operator.make(shape, dtype, device)
        times = roofline.kernel_times(lambda: gradients(operator.ours('auto'), inputs, grad))
        least = roofline.floors(shape, dtype.itemsize, report.kept['results']['ceilings'])
    return {'over floor': roofline.against_floors(times, least), 'floors': least, 'kernels': times}


def tune(report: Report, shapes, device: str) -> dict[str, Any]:
    """Try the settings on every shape, the products too; the fastest constants."""
    clock = lambda function: queued(function, device, 4, 2)  # noqa: E731
    stop = lambda: time.monotonic() - report.start > report.seconds * 0.6  # noqa: E731
    tuned: dict[Any, Any] = {}
    for name in PRECISIONS[:2] if device == 'cuda' else PRECISIONS[1:2]:
        for shape in shapes:

            def work(shape=shape, name=name):
                with precision(name) as dtype:
                    tuned[tuple(shape), dtype.itemsize] = tuning.tune(shape, dtype, device, clock, LIMITS[name], stop)
                return tuned[tuple(shape), dtype.itemsize]

            report.attempt(f'settings {_title(shape, name)}', work)

            def multiply(shape=shape, name=name):
                with precision(name) as dtype:
                    return roofline.products(shape, dtype, device, clock)

            report.attempt(f'products {_title(shape, name)}', multiply)
    values: dict[str, Any] = {}
    report.attempt('winners', lambda: {k: str(v) for k, v in values.update(tuning.winners(tuned)) or values.items()})
    return values


def _network(network: whole.Network, args: argparse.Namespace, autocast: bool) -> dict[str, Any]:
    with precision('tf32'):
        found = network_times(network, args.device, args.scale, autocast)
    if args.device == 'cuda':
        torch.cuda.empty_cache()
    return found


if __name__ == '__main__':
    main()
