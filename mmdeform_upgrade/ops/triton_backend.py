# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""Deformable convolution with Triton kernels. Imported only when the backend is chosen; needs triton.

Forward: one kernel that gathers and multiplies on tensor cores (for a grouped convolution: columns, then a
batched product). Backward: one kernel makes the columns, for the kernel's gradient, and the gradients of offset and
mask; the input's is gathered through the sorted list of where every sample lies. Nothing is added atomically, so
every gradient is deterministic. The host never waits for the GPU, so that all of it can be captured in a CUDA graph.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from . import matrices, passes
from .chunks import cut
from .geometry import Geometry
from .passes import Grads, Operands, Wanted
from .triton_kernels import convolve_kernel, gather_kernel, sample_kernel

FUSED = True  # whether the forward pass samples and multiplies in one kernel, where it can


class Tile(NamedTuple):
    """What one program works on at a time; of ``gather_kernel``, samples instead of positions."""

    positions: int
    channels: int
    warps: int
    outputs: int = 0
    stages: int = 3  # of the software pipeline


# The fastest, or nearly, of those tried on an H100 for the shapes of docs/development.md.
_SAMPLE = Tile(32, 64, 4)
_PLAN = Tile(16, 64, 4)
_GATHER = Tile(4, 128, 1)
# By bytes of a number; each for GPUs that lack the shared memory of the one before it.
_CONVOLVE = {
    2: (Tile(128, 32, 8, 256), Tile(128, 32, 8, 128), Tile(64, 32, 4, 128, 2)),
    4: (Tile(128, 32, 8, 128), Tile(64, 32, 8, 128), Tile(64, 32, 4, 128, 2), Tile(64, 32, 4, 64, 2)),
}
_NO_GRADS = Grads()
_fits: dict[tuple[torch.device, int], int] = {}  # which of them a device has the memory for


class Read(NamedTuple):
    """What the kernels read."""

    input: Tensor  # (N, C, H, W), channels-last
    offset: Tensor  # in one of the two memory formats, the mask in the same
    mask: Tensor | None
    last: bool  # whether offset and mask are channels-last


def _read(operands: Operands) -> Read:
    input, offset, _, _, mask = operands
    input = input.contiguous(memory_format=torch.channels_last)
    memory_format = matrices.format_of(offset)
    offset = offset.contiguous(memory_format=memory_format)
    mask = None if mask is None else mask.contiguous(memory_format=memory_format)
    return Read(input, offset, mask, memory_format is torch.channels_last)


def forward(operands: Operands, geo: Geometry) -> Tensor:
    """See :mod:`.passes`."""
    input, _, weight, bias, _ = operands
    read, memory_format = _read(operands), matrices.format_of(input)
    fused = FUSED and geo.groups == 1
    # Stores to a contiguous map are as wide as its rows are aligned.
    direct = memory_format if fused and geo.L % 16 == 0 else torch.channels_last
    shape = (geo.N, geo.O, geo.Ho, geo.Wo)
    output = torch.empty(shape, dtype=input.dtype, device=input.device, memory_format=direct)
    if output.numel():
        (_convolve if fused else _convolve_columns)(output, read, weight, bias, geo)
    return output.contiguous(memory_format=memory_format)


def backward(grad_output: Tensor, operands: Operands, geo: Geometry, wanted: Wanted) -> Grads:
    """See :mod:`.passes`."""
    read, input = _read(operands), operands.input
    cuts = cut(geo, input.itemsize, input.device.type)
    sums = input.dtype if cuts.whole else torch.float32
    grads = Grads(
        input=torch.empty_like(input, dtype=sums, memory_format=torch.channels_last) if wanted.input else None,
        offset=torch.empty_like(read.offset) if wanted.plan else None,
        mask=torch.empty_like(read.mask) if wanted.plan and read.mask is not None else None,
    )

    def step(positions: slice, taps: slice, grad_columns: Tensor | None) -> Tensor | None:
        columns = _new_columns(read, positions, taps, geo) if wanted.weight else None
        if grads.input is None or grad_columns is None:
            _sample(read, positions, taps, geo, columns, grad_columns, grads)
            return columns
        samples = (positions.stop - positions.start) * (taps.stop - taps.start) * geo.G
        keys = read.input.new_empty(samples, dtype=torch.int32 if _cells(geo) < 2**31 else torch.int64)
        weights = read.input.new_empty((3, samples), dtype=torch.float32)
        _sample(read, positions, taps, geo, columns, grad_columns, grads, keys, weights)
        adding = positions.start > 0 or taps.start > 0
        _gather(grads.input, grad_columns, keys, weights, geo, adding)
        return columns

    return grads._replace(weight=passes.differentiate(step, grad_output, operands.weight, wanted, cuts, geo))


def _cells(geo: Geometry) -> int:
    """Cells of four pixels, those at the borders included, of all deform groups."""
    return geo.N * geo.G * (geo.H + 1) * (geo.W + 1)


def _convolve(output: Tensor, read: Read, weight: Tensor, bias: Tensor | None, geo: Geometry) -> None:
    """Sample and multiply in one kernel, with the largest tile that the device has the memory for."""
    kernel = matrices.kernel_matrix(weight, slice(0, geo.K), geo)
    tf32 = kernel.dtype == torch.float32 and matrices.tf32_allowed()
    if tf32:
        kernel = ((kernel.view(torch.int32) + 0x1000) & -0x2000).view(torch.float32)  # see _rounded in the kernels
    tiles, device = _CONVOLVE[kernel.itemsize], (kernel.device, kernel.itemsize)
    for index in range(_fits.get(device, 0), len(tiles)):
        try:
            _launch_convolve(tiles[index], output, read, kernel, bias, tf32, geo)
        except triton.OutOfResources:
            if index + 1 == len(tiles):
                raise
        else:
            _fits[device] = index
            return


def _launch_convolve(
    tile: Tile, output: Tensor, read: Read, kernel: Tensor, bias: Tensor | None, tf32: bool, geo: Geometry
) -> None:
    positions, outputs = geo.N * geo.L, min(_power_of_2(geo.O), tile.outputs)
    convolve_kernel[(-(-positions // tile.positions), -(-geo.O // outputs))](
        read.input,
        read.offset,
        read.offset if read.mask is None else read.mask,
        kernel,
        kernel if bias is None else bias.contiguous(),
        output,
        positions,
        geo.C,
        geo.O,
        geo.L,
        **_options(tile, geo),
        MASKED=read.mask is not None,
        LAST=read.last,
        BIASED=bias is not None,
        TF32=tf32,
        OUTPUT_LAST=matrices.format_of(output) is torch.channels_last,
        BLOCK_O=outputs,
        num_stages=tile.stages,
    )


def _convolve_columns(output: Tensor, read: Read, weight: Tensor, bias: Tensor | None, geo: Geometry) -> None:
    """Sample some columns, multiply, forget them."""
    rows, cuts = matrices.map_to_rows(output, output.dtype), cut(geo, output.itemsize, output.device.type)
    total = rows if len(cuts.taps) == 1 else torch.empty_like(rows, dtype=torch.float32)

    def sample(positions: slice, taps: slice) -> Tensor:
        columns = _new_columns(read, positions, taps, geo)
        _sample(read, positions, taps, geo, columns)
        return columns

    passes.project(sample, total, weight, cuts, geo)
    rows.copy_(total if bias is None else total + bias)


def _new_columns(read: Read, positions: slice, taps: slice, geo: Geometry) -> Tensor:
    return read.input.new_empty((positions.stop - positions.start, (taps.stop - taps.start) * geo.C))


def _sample(
    read: Read,
    positions: slice,
    taps: slice,
    geo: Geometry,
    columns: Tensor | None,
    grad_columns: Tensor | None = None,
    grads: Grads = _NO_GRADS,
    keys: Tensor | None = None,
    weights: Tensor | None = None,
) -> None:
    """Write columns, gradients of offset and mask, and keys with their weights; whatever is not None."""
    input, offset, mask, last = read
    p_count, k_count = positions.stop - positions.start, taps.stop - taps.start
    tile = _SAMPLE if grads.offset is None else _PLAN
    optional = (mask, columns, grad_columns, grads.offset, grads.mask, keys, weights)
    sample_kernel[(-(-p_count // tile.positions), k_count, geo.G)](
        input,
        offset,
        *[offset if tensor is None else tensor for tensor in optional],
        p_count * k_count * geo.G,
        positions.start,
        p_count,
        taps.start,
        k_count,
        geo.C,
        **_options(tile, geo),
        MASKED=mask is not None,
        LAST=last,
        COLUMNS=columns is not None,
        PLAN=grads.offset is not None,
        KEYS=keys is not None,
    )


def _gather(
    grad_rows: Tensor, grad_columns: Tensor, keys: Tensor, weights: Tensor, geo: Geometry, adding: bool
) -> None:
    """Bring the columns' gradients to the pixels that the columns were sampled from."""
    keys, order = torch.sort(keys, stable=True)
    cells = torch.arange(_cells(geo) + 1, device=keys.device, dtype=keys.dtype)
    starts = torch.searchsorted(keys, cells, out_int32=len(keys) < 2**31)
    per_group = geo.C // geo.G
    channels = min(_GATHER.channels, _power_of_2(per_group))
    gather_kernel[(geo.N * geo.G * geo.H * geo.W, -(-per_group // channels))](
        grad_columns,
        order,
        weights,
        starts,
        grad_rows,
        len(keys),
        geo.H,
        geo.W,
        per_group,
        G=geo.G,
        ADDING=adding,
        BLOCK_E=_GATHER.positions,
        BLOCK_C=channels,
        num_warps=_GATHER.warps,
    )


def _power_of_2(size: int) -> int:
    """The next one, at least 16, which is what the matrix units take."""
    return 1 << max(size - 1, 15).bit_length()


@lru_cache(maxsize=1024)
def _options(tile: Tile, geo: Geometry) -> dict[str, Any]:
    """The arguments that the kernels share which look at positions and taps."""
    sizes = {name: getattr(geo, name) for name in ('H', 'W', 'Ho', 'Wo', 'K', 'G')}
    steps = {'SH': geo.stride_h, 'SW': geo.stride_w, 'PH': geo.pad_h, 'PW': geo.pad_w, 'DH': geo.dil_h, 'DW': geo.dil_w}
    channels = min(tile.channels, _power_of_2(geo.C // geo.G))
    blocks = {'KW': geo.kw, 'BLOCK_P': tile.positions, 'BLOCK_C': channels, 'num_warps': tile.warps}
    return {**sizes, **steps, **blocks}
