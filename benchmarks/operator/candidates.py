# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""Kernels that may be faster than those of the package, to be measured by ``gpu_report`` on a GPU first.

Sampling in another order of programs, with the sums over channels at the end; and the input's gradient gathered for
patches of 4x4 pixels, as a product on the matrix units, so that a sample is read 1.6 times instead of four.
"""

from functools import partial
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from mmdeform_upgrade.ops import matrices, triton_backend
from mmdeform_upgrade.ops.triton_kernels import (
    _MAP,
    _corner,
    _mix,
    _rounded,
    _row,
    _store_cells,
    _store_slopes,
    _tap,
)


class Sampling(NamedTuple):
    """In the place of ``sample_kernel``, launched as that is."""

    order: int  # of programs, see the kernel
    late: bool  # whether sums over channels are made at the end

    def __getitem__(self, grid: tuple[int, int, int]) -> Any:
        blocks, taps, groups = grid
        programs = blocks * groups * (1 if self.order == 2 else taps)
        return partial(ordered_sample_kernel[(programs,)], ORDER=self.order, LATE=self.late)


class GatherByPatches(NamedTuple):
    """In the place of ``triton_backend._gather``."""

    samples: int
    channels: int
    warps: int
    stages: int

    def __call__(self, grad_rows, grad_columns, keys, weights, geo, adding: bool) -> None:
        keys, order = torch.sort(keys, stable=True)
        cells = torch.arange(triton_backend._cells(geo) + 1, device=keys.device, dtype=keys.dtype)
        starts = torch.searchsorted(keys, cells, out_int32=len(keys) < 2**31)
        per_group = geo.C // geo.G
        channels = min(self.channels, triton_backend._power_of_2(per_group))
        patches = geo.N * geo.G * -(-geo.H // 4) * -(-geo.W // 4)
        patch_kernel[(patches, -(-per_group // channels))](
            grad_columns,
            keys,
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
            TF32=grad_columns.dtype != torch.float32 or matrices.tf32_allowed(),
            BLOCK_E=self.samples,
            BLOCK_C=channels,
            num_warps=self.warps,
            num_stages=self.stages,
        )


@triton.jit
def _ordered(blocks, k_count, G, ORDER: tl.constexpr):
    """The program's block of positions, its first and last tap, and its deform group.

    Programs: blocks of positions, taps and groups (ORDER 0), the other way round (1), all taps in one program (2).
    """
    program = tl.program_id(0)
    if ORDER == 0:
        block, k_low, g = program % blocks, program // blocks % k_count, program // (blocks * k_count)
        k_high = k_low + 1
    elif ORDER == 1:
        g, k_low, block = program % G, program // G % k_count, program // (G * k_count)
        k_high = k_low + 1
    else:
        g, block, k_low, k_high = program % G, program // G, 0, k_count
    return block, k_low, k_high, g


@triton.jit(do_not_specialize=['samples', 'p_first', 'k_first', 'k_count', *_MAP])
def ordered_sample_kernel(rows_ptr, offset_ptr, mask_ptr, columns_ptr, grad_columns_ptr, grad_offset_ptr, grad_mask_ptr,
                  keys_ptr, weights_ptr, samples, p_first, p_count, k_first, k_count, C, H, W, Ho, Wo,
                  KW: tl.constexpr, K: tl.constexpr, G: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr,
                  PH: tl.constexpr, PW: tl.constexpr, DH: tl.constexpr, DW: tl.constexpr, MASKED: tl.constexpr,
                  LAST: tl.constexpr, COLUMNS: tl.constexpr, PLAN: tl.constexpr, KEYS: tl.constexpr,
                  ORDER: tl.constexpr, LATE: tl.constexpr,
                  BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr):  # yapf: disable
    """The package's ``sample_kernel`` with its programs in another order; LATE: sums over channels after all of them."""
    block, k_low, k_high, g = _ordered(tl.cdiv(p_count, BLOCK_P), k_count, G, ORDER)
    q = block * BLOCK_P + tl.arange(0, BLOCK_P)
    live = q < p_count
    p = q + p_first
    for k in range(k_low, k_high):
        n, y0, x0, ly, lx, m = _tap(offset_ptr, mask_ptr, p, live, k_first + k, g, H, W, Ho, Wo,
                                    KW, K, G, SH, SW, PH, PW, DH, DW, MASKED, LAST)  # yapf: disable
        if KEYS:
            at = (q.to(tl.int64) * k_count + k) * G + g
            _store_cells(keys_ptr, weights_ptr, at, samples, n * G + g, y0, x0, ly, lx, m, H, W, live)
        if COLUMNS or PLAN:
            r00, t00 = _corner(n, y0, x0, live, H, W, C)
            r01, t01 = _corner(n, y0, x0 + 1, live, H, W, C)
            r10, t10 = _corner(n, y0 + 1, x0, live, H, W, C)
            r11, t11 = _corner(n, y0 + 1, x0 + 1, live, H, W, C)
            zero = tl.zeros_like(ly)  # not ly * 0.0, which a NaN turns into one
            d00, d01, d10, d11 = zero, zero, zero, zero
            if LATE:
                blank = tl.zeros((BLOCK_P, BLOCK_C), dtype=tl.float32)
                s00, s01, s10, s11 = blank, blank, blank, blank
            column = (q.to(tl.int64) * k_count + k) * C
            per_group = C // G
            for start in range(0, per_group, BLOCK_C):
                c = start + tl.arange(0, BLOCK_C)
                some = c < per_group
                c += g * per_group
                both = live[:, None] & some[None, :]
                v00, v01 = _row(rows_ptr, r00, t00, c, some), _row(rows_ptr, r01, t01, c, some)
                v10, v11 = _row(rows_ptr, r10, t10, c, some), _row(rows_ptr, r11, t11, c, some)
                if PLAN:
                    grad = tl.load(grad_columns_ptr + column[:, None] + c[None, :], mask=both, other=0.0).to(tl.float32)
                    if LATE:
                        s00 += v00 * grad
                        s01 += v01 * grad
                        s10 += v10 * grad
                        s11 += v11 * grad
                    else:
                        d00 += tl.sum(v00 * grad, axis=1)
                        d01 += tl.sum(v01 * grad, axis=1)
                        d10 += tl.sum(v10 * grad, axis=1)
                        d11 += tl.sum(v11 * grad, axis=1)
                if COLUMNS:
                    value = _mix(v00, v01, v10, v11, ly, lx, m).to(columns_ptr.dtype.element_ty)
                    tl.store(columns_ptr + column[:, None] + c[None, :], value, mask=both)
            if PLAN:
                if LATE:
                    d00, d01, d10, d11 = tl.sum(s00, 1), tl.sum(s01, 1), tl.sum(s10, 1), tl.sum(s11, 1)
                _store_slopes(grad_offset_ptr, grad_mask_ptr, d00, d01, d10, d11, ly, lx, m, n, g * K + k_first + k,
                              p % (Ho * Wo), Ho * Wo, G * K, live, MASKED, LAST)  # yapf: disable


@triton.jit
def _cells(starts_ptr, base, y, x, H, W, PATCH: tl.constexpr):
    """First sample and number of samples in the cells x to x + PATCH of row y of cells."""
    row = base + y * (W + 1)
    there = y <= H
    first = tl.load(starts_ptr + row + x, mask=there, other=0)
    return first, tl.load(starts_ptr + row + tl.minimum(x + PATCH + 1, W + 1), mask=there, other=0) - first


@triton.jit(do_not_specialize=['samples', 'H', 'W'])
def patch_kernel(grad_columns_ptr, keys_ptr, order_ptr, weights_ptr, starts_ptr, grad_rows_ptr, samples, H, W, per_group,
                 G: tl.constexpr, ADDING: tl.constexpr, TF32: tl.constexpr, BLOCK_E: tl.constexpr,
                 BLOCK_C: tl.constexpr):  # yapf: disable
    """Gradient of the rows (N*H*W, C), for patches of 4x4 pixels: a product of weights (16, samples) and samples.

    ``keys`` are sorted, ``order`` are the samples in that order, ``starts`` where those of a cell begin. A patch touches
    five rows of five cells, each row one run of samples. Programs: patches of deform groups, blocks of channels.
    """
    across, down = tl.cdiv(W, 4), tl.cdiv(H, 4)
    program = tl.program_id(0)
    left, top, map = program % across * 4, program // across % down * 4, (program // (across * down)).to(tl.int64)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    some = c < per_group
    pixel = tl.arange(0, 16)
    y, x = top + pixel // 4, left + pixel % 4
    base = map * (H + 1) * (W + 1)
    f0, n0 = _cells(starts_ptr, base, top, left, H, W, 4)
    f1, n1 = _cells(starts_ptr, base, top + 1, left, H, W, 4)
    f2, n2 = _cells(starts_ptr, base, top + 2, left, H, W, 4)
    f3, n3 = _cells(starts_ptr, base, top + 3, left, H, W, 4)
    f4, n4 = _cells(starts_ptr, base, top + 4, left, H, W, 4)
    n1 += n0
    n2 += n1
    n3 += n2
    n4 += n3
    total = tl.zeros((16, BLOCK_C), dtype=tl.float32)
    for start in range(0, n4, BLOCK_E):
        i = start + tl.arange(0, BLOCK_E)
        mine = i < n4
        first = tl.where(
            i < n0, f0, tl.where(i < n1, f1 - n0, tl.where(i < n2, f2 - n1, tl.where(i < n3, f3 - n2, f4 - n3)))
        )
        at = first + i
        cell = tl.load(keys_ptr + at, mask=mine, other=-1) - base
        sample = tl.load(order_ptr + at, mask=mine, other=0).to(tl.int64)
        upper = tl.load(weights_ptr + sample, mask=mine, other=0.0)
        lower = tl.load(weights_ptr + samples + sample, mask=mine, other=0.0)
        lx = tl.load(weights_ptr + 2 * samples + sample, mask=mine, other=0.0)
        dy = (cell // (W + 1))[None, :] - y[
            :, None
        ]  # 1 where the pixel is an upper corner of the cell, 0 where a lower one
        dx = (cell % (W + 1))[None, :] - x[:, None]
        weight = tl.where(dy == 1, upper[None, :], lower[None, :]) * tl.where(dx == 1, 1 - lx[None, :], lx[None, :])
        weight = tl.where((dy >= 0) & (dy <= 1) & (dx >= 0) & (dx <= 1) & mine[None, :], weight, 0.0)
        grad = tl.load(grad_columns_ptr + (sample * per_group)[:, None] + c[None, :],
                       mask=mine[:, None] & some[None, :], other=0.0).to(tl.float32)  # yapf: disable
        if TF32:
            total = tl.dot(_rounded(weight), _rounded(grad), total, input_precision='tf32')
        else:
            total = tl.dot(weight, grad, total, input_precision='ieee')
    n, g = map // G, map % G
    out = grad_rows_ptr + ((((n * H + y) * W + x) * G + g) * per_group)[:, None] + c[None, :]
    there = ((y < H) & (x < W))[:, None] & some[None, :]
    if ADDING:
        total += tl.load(out, mask=there, other=0.0)
    tl.store(out, total.to(grad_rows_ptr.dtype.element_ty), mask=there)
