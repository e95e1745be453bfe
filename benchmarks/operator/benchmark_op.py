# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""Time deform_conv2d against every peer that is installed, and a plain convolution.

    python -m benchmarks.operator.benchmark_op --device cpu --out docs/results/op_cpu
    python -m benchmarks.operator.benchmark_op --device cuda --dtypes float32 bfloat16 --out docs/results/op_gpu

Each candidate must first agree with the specification. Candidates take turns, so that whatever else the machine does
hits all of them; a ratio is that of the fastest repetitions. Writes OUT.json, OUT.md and OUT.png.
"""

import argparse
import contextlib
import importlib
import json
import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F

from benchmarks.timing import conditions, now, summary
from mmdeform_upgrade.ops import deform_conv2d

SHAPES = {
    'cpu': [(2, 512, 16, 16), (2, 256, 32, 32), (2, 64, 80, 80), (1, 512, 32, 32)],
    'cuda': [(32, 512, 16, 16), (16, 512, 32, 32), (8, 256, 64, 64), (8, 128, 128, 128)],
}
SIGMA = 1.5  # of the random offsets, in pixels
GATE = {torch.float64: 1e-10, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}


def plain(x, offset, weight):
    return F.conv2d(x, weight, None, 1, 1)


def ours(backend):
    return lambda x, offset, weight: deform_conv2d(x, offset, weight, None, 1, 1, backend=backend)


def peers():
    """Other implementations, as far as they are installed and load."""
    found = {}
    for name, load in {'mmcv': _mmcv, 'torchvision': _torchvision, 'deformops': _deformops}.items():
        with contextlib.suppress(ImportError, OSError, RuntimeError, AttributeError):
            found[name] = load()
    return found


def _mmcv():
    function = importlib.import_module('mmcv.ops').deform_conv2d
    one = torch.zeros(1, 1, 1, 1)
    function(one, torch.zeros(1, 2, 1, 1), one)  # its compiled part may be missing
    return lambda x, offset, weight: function(x, offset, weight, 1, 1, 1, 1, 1)


def _torchvision():
    function = importlib.import_module('torchvision.ops').deform_conv2d
    one = torch.zeros(1, 1, 1, 1)
    function(one, torch.zeros(1, 2, 1, 1), one)  # its compiled part may be missing
    return lambda x, offset, weight: function(x, offset, weight, None, 1, 1)


def _deformops():
    function = importlib.import_module('deformops').deform_conv2d
    return lambda x, offset, weight: function(x, offset, weight, None, 1, 1)


def make(shape, dtype, device, channels=None):
    """Input, offset, weight and the gradient of the output."""
    n, c, h, w = shape
    c = channels or c
    torch.manual_seed(0)
    x, grad = torch.randn(n, c, h, w), torch.randn(n, c, h, w)
    offset, weight = torch.randn(n, 18, h, w) * SIGMA, torch.randn(c, c, 3, 3) / (9 * c) ** 0.5
    x, offset, weight = (t.to(device, dtype).requires_grad_() for t in (x, offset, weight))
    return (x, offset, weight), grad.to(device, dtype)


def relative(result, expected):
    return float((result.double() - expected).abs().max() / expected.abs().max())


def gate(function, shape, dtype, device):
    """Largest relative error of output and gradients against the specification in float64, on fewer channels."""
    inputs, grad = make((1, *shape[1:]), dtype, device, channels=16)
    exact = [t.detach().double().requires_grad_() for t in inputs]
    with torch.backends.cudnn.flags(allow_tf32=False):  # races have PyTorch's default
        output = function(*inputs)
        found = (output, *torch.autograd.grad(output, inputs, grad))
    output = ours('reference')(*exact)
    expected = (output, *torch.autograd.grad(output, exact, grad.double()))
    return max(relative(f.detach(), e.detach()) for f, e in zip(found, expected, strict=True))


def error_ratio(function, shape, dtype, device):
    """Error at zero offset over that of a plain convolution, both against float64."""
    (x, offset, weight), _ = make(shape, dtype, device)
    with torch.no_grad():
        exact = F.conv2d(x.double(), weight.double(), None, 1, 1)
        errors = [(f(x, offset * 0, weight).double() - exact).square().mean().sqrt() for f in (function, plain)]
    return float(errors[0] / errors[1])


def race(candidates, shape, dtype, device, repetitions):
    """Milliseconds of forward and forward+backward of each candidate, taking turns."""
    inputs, grad = make(shape, dtype, device)
    times = {name: ([], []) for name in candidates}
    for repetition in range(repetitions + 2):
        for name, function in candidates.items():
            for t in inputs:
                t.grad = None
            start = now(device)
            output = function(*inputs)
            middle = now(device)
            output.backward(grad)
            end = now(device)
            if repetition >= 2:  # the first ones warm up
                times[name][0].append((middle - start) * 1e3)
                times[name][1].append((end - start) * 1e3)
    return times


def peak_bytes(function, shape, dtype, device):
    """Most bytes that tensors hold during forward+backward beyond what was there before."""
    inputs, grad = make(shape, dtype, device)
    if device == 'cuda':
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        function(*inputs).backward(grad)
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        function(*inputs).backward(grad)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / 'trace.json'
        profile.export_chrome_trace(str(path))
        events = [e for e in json.loads(path.read_text())['traceEvents'] if e.get('name') == '[memory]']
    held = peak = 0
    for event in sorted(events, key=lambda e: e['ts']):
        held += event['args']['Bytes']
        peak = max(peak, held)
    return peak


def candidates_for(args, shape, dtype):
    """Candidates that run in this dtype and agree with the specification; the others with the reason."""
    passed, refused = {'conv': plain}, {}
    for name, function in {**{b: ours(b) for b in args.backends}, **peers()}.items():
        try:
            error = gate(function, shape, dtype, args.device)
        except Exception as problem:  # a peer may raise anything
            refused[name] = f'{type(problem).__name__}: {str(problem).splitlines()[0][:120]}'
            continue
        if error <= GATE[dtype]:
            passed[name] = function
        else:
            refused[name] = f'wrong: relative error {error:.1e}'
    return passed, refused


def measure(args, shape, dtype):
    candidates, refused = candidates_for(args, shape, dtype)
    times = race(candidates, shape, dtype, args.device, args.repetitions)
    rows = {}
    for name, function in candidates.items():
        rows[name] = {
            'forward_ms': summary(times[name][0]),
            'forward_backward_ms': summary(times[name][1]),
            'peak_bytes': peak_bytes(function, shape, dtype, args.device),
        }
        if name in args.backends:
            rows[name]['error_over_conv'] = error_ratio(function, shape, dtype, args.device)
    return {'shape': shape, 'dtype': str(dtype).removeprefix('torch.'), 'results': rows, 'refused': refused}


def table(report):
    """The report as Markdown."""
    kept = report['conditions']
    versions = ', '.join(f'{k} {v}' for k, v in kept['versions'].items())
    lines = [
        f'{kept["hardware"]}, {kept["threads"]} threads, {versions}; fastest of {kept["repetitions"]} interleaved '
        f'repetitions; 3x3, offsets sigma {kept["offset_sigma"]} px; load average before '
        f'{kept["load_average_before"][0]:.1f}.',
        '',
        '| shape | dtype | op | forward ms | forward+backward ms (quartiles) | over conv | peak MB | error/conv |',
        '|---|---|---|---|---|---|---|---|',
    ]
    for run in report['runs']:
        base = run['results']['conv']['forward_backward_ms']['fastest']
        for name, row in run['results'].items():
            both = row['forward_backward_ms']
            error = f'{row["error_over_conv"]:.2f}' if 'error_over_conv' in row else ''
            lines.append(
                f'| {"x".join(map(str, run["shape"]))} | {run["dtype"]} | {name} | '
                f'{row["forward_ms"]["fastest"]:.2f} | {both["fastest"]:.2f} '
                f'({both["lower_quartile"]:.2f}, {both["median"]:.2f}, {both["upper_quartile"]:.2f}) | '
                f'{both["fastest"] / base:.2f} | {row["peak_bytes"] / 2**20:.1f} | {error} |'
            )
        lines += [
            f'| {"x".join(map(str, run["shape"]))} | {run["dtype"]} | {name} | left out: {reason} | | | | |'
            for name, reason in run['refused'].items()
        ]
    return '\n'.join(lines) + '\n'


def plot(report, path):
    """Forward+backward over that of a plain convolution, one group of bars a shape."""
    import matplotlib

    matplotlib.use('Agg')
    from matplotlib import pyplot as plt

    runs = report['runs']
    names = sorted({n for run in runs for n in run['results']}, key=lambda n: (n != 'conv', n))
    figure, axes = plt.subplots(figsize=(2 + 1.6 * len(runs), 4), layout='constrained')
    for i, name in enumerate(names):
        found = [(j, run['results']) for j, run in enumerate(runs) if name in run['results']]
        heights = [
            r[name]['forward_backward_ms']['fastest'] / r['conv']['forward_backward_ms']['fastest'] for _, r in found
        ]
        bars = axes.bar(
            [j + 0.8 * (i + 0.5) / len(names) - 0.4 for j, _ in found], heights, 0.8 / len(names), label=name
        )
        axes.bar_label(bars, fmt='%.1f', fontsize=7)
    axes.set_yscale('log')
    axes.set_ylabel('forward+backward, plain conv = 1')
    axes.set_xticks(range(len(runs)), ['x'.join(map(str, r['shape'])) + '\n' + r['dtype'] for r in runs], fontsize=8)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=120)


def parse_args(argv):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--device', default='cpu', choices=['cpu', 'cuda'])
    parser.add_argument('--dtypes', nargs='+', default=['float32'], choices=['float32', 'float16', 'bfloat16'])
    parser.add_argument('--backends', nargs='+', help='of this package; default eager, on a GPU also triton')
    parser.add_argument('--shapes', nargs='+', help='such as 2x512x16x16; default: those of docs/development.md')
    parser.add_argument('--repetitions', type=int, default=15)
    parser.add_argument('--threads', type=int, default=2, help='CPU threads')
    parser.add_argument('--out', type=Path, help='where to write OUT.json, OUT.md and OUT.png')
    args = parser.parse_args(argv)
    args.backends = args.backends or (['eager', 'triton'] if args.device == 'cuda' else ['eager'])
    named = [tuple(map(int, s.split('x'))) for s in args.shapes] if args.shapes else SHAPES[args.device]
    args.shapes = named
    return args


def main(argv=None):
    args = parse_args(argv)
    torch.set_num_threads(args.threads)
    settings = {'repetitions': args.repetitions, 'offset_sigma': SIGMA}
    report = {'conditions': {**conditions(args.device), **settings}, 'runs': []}
    for dtype in (getattr(torch, name) for name in args.dtypes):
        for shape in args.shapes:
            report['runs'].append(measure(args, shape, dtype))
            if args.out:  # what is measured stays, should the next one fail
                args.out.parent.mkdir(parents=True, exist_ok=True)
                args.out.with_suffix('.json').write_text(json.dumps(report, indent=1) + '\n')
    print(table(report))
    if args.out:
        args.out.with_suffix('.md').write_text(table(report))
        plot(report, args.out.with_suffix('.png'))


if __name__ == '__main__':
    main()
