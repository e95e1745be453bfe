# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""The Triton kernels: convolve in one go, sample columns and differentiate them, and bring gradients to the pixels.

All of them read the map as channels-last rows (N*H*W, C). Where a tap looks is computed once for a block of
output positions, in float32, and used for all channels of its deform group; neighbouring lanes read neighbouring
channels. Offsets (N, G*K*2, L) and mask (N, G*K, L) are read in any dtype, contiguous or (LAST) with channels last.

The gradient of the input is gathered, not scattered: ``sample_kernel`` writes which cell of four pixels each sample
lies in, these keys are sorted, and ``gather_kernel`` sums for each pixel the samples of the four cells around it. So
nothing is added atomically.

Only ``triton_backend.py`` imports this module, since it needs the package triton.
"""

import triton
import triton.language as tl

_MAP = ['H', 'W', 'Ho', 'Wo']  # a kernel is compiled once for all sizes of maps


@triton.jit
def _entry(n, channel, position, channels, L, LAST: tl.constexpr):
    """Where entry (n, channel, position) of a map (N, channels, L) is."""
    if LAST:
        return (n.to(tl.int64) * L + position) * channels + channel
    return (n.to(tl.int64) * channels + channel) * L + position


@triton.jit
def _tap(offset_ptr, mask_ptr, p, live, k, g, H, W, Ho, Wo,
         KW: tl.constexpr, K: tl.constexpr, G: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr, PH: tl.constexpr,
         PW: tl.constexpr, DH: tl.constexpr, DW: tl.constexpr, MASKED: tl.constexpr, LAST: tl.constexpr):  # yapf: disable
    """Image n, upper left corner (y0, x0), distances (ly, lx) from it, and modulation, of a block of positions."""
    L = Ho * Wo
    n, position = p // L, p % L
    channel = g * K + k
    dy = tl.load(offset_ptr + _entry(n, channel * 2, position, G * K * 2, L, LAST), mask=live, other=0.0)
    dx = tl.load(offset_ptr + _entry(n, channel * 2 + 1, position, G * K * 2, L, LAST), mask=live, other=0.0)
    dy, dx = dy.to(tl.float32), dx.to(tl.float32)
    far = tl.zeros_like(dy) + 2 * (H + W + PH + PW + 2)  # Geometry.farthest
    dy = tl.where(dy > far, far, tl.where(dy < -far, -far, dy))  # a NaN stays one
    dx = tl.where(dx > far, far, tl.where(dx < -far, -far, dx))
    fy, fx = tl.floor(dy), tl.floor(dx)
    y0 = (position // Wo) * SH - PH + (k // KW) * DH + tl.where(fy == fy, fy, 0.0).to(tl.int32)
    x0 = (position % Wo) * SW - PW + (k % KW) * DW + tl.where(fx == fx, fx, 0.0).to(tl.int32)
    m = tl.zeros_like(dy) + 1.0
    if MASKED:
        at = _entry(n, channel, position, G * K, L, LAST)
        m = tl.load(mask_ptr + at, mask=live, other=0.0).to(tl.float32)
    return n, y0, x0, dy - fy, dx - fx, m


@triton.jit
def _corner(n, y, x, live, H, W, C):
    """Where the row of pixel (y, x) starts, and whether there is such a pixel."""
    row = ((n * H + y).to(tl.int64) * W + x) * C
    return row, live & (y >= 0) & (y < H) & (x >= 0) & (x < W)


@triton.jit
def _row(rows_ptr, row, there, c, some):
    """A block (positions, channels) of pixel values in float32; zero where there is no pixel."""
    return tl.load(rows_ptr + row[:, None] + c[None, :], mask=there[:, None] & some[None, :], other=0.0).to(tl.float32)


@triton.jit
def _mix(v00, v01, v10, v11, ly, lx, m):
    """A block (positions, channels) of samples from that of their corners."""
    total = v00 * ((1 - ly) * (1 - lx) * m)[:, None]
    total += v01 * ((1 - ly) * lx * m)[:, None]
    total += v10 * (ly * (1 - lx) * m)[:, None]
    return total + v11 * (ly * lx * m)[:, None]


@triton.jit
def _rounded(value):
    """float32 rounded to TF32's ten bits, where the matrix units would cut off the others."""
    bits = value.to(tl.int32, bitcast=True)
    return tl.where(value == value, ((bits + 0x1000) & -0x2000).to(tl.float32, bitcast=True), value)


@triton.jit(do_not_specialize=_MAP)
def convolve_kernel(rows_ptr, offset_ptr, mask_ptr, kernel_ptr, bias_ptr, output_ptr, P, C, O, L,  # noqa: E741
                    H, W, Ho, Wo,
                    KW: tl.constexpr, K: tl.constexpr, G: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr,
                    PH: tl.constexpr, PW: tl.constexpr, DH: tl.constexpr, DW: tl.constexpr, MASKED: tl.constexpr,
                    LAST: tl.constexpr, BIASED: tl.constexpr, TF32: tl.constexpr, OUTPUT_LAST: tl.constexpr,
                    BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_O: tl.constexpr):  # yapf: disable
    """The output (N, O, L) from a kernel (O, K * C), no columns in memory. Programs: positions, output channels.

    With TF32, the kernel has been rounded to it.
    """
    p = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    o = tl.program_id(1) * BLOCK_O + tl.arange(0, BLOCK_O)
    live, made = p < P, o < O
    per_group = C // G
    total = tl.zeros((BLOCK_P, BLOCK_O), dtype=tl.float32)
    for kg in range(0, K * G):
        k, g = kg // G, kg % G
        n, y0, x0, ly, lx, m = _tap(offset_ptr, mask_ptr, p, live, k, g, H, W, Ho, Wo,
                                    KW, K, G, SH, SW, PH, PW, DH, DW, MASKED, LAST)  # yapf: disable
        r00, t00 = _corner(n, y0, x0, live, H, W, C)
        r01, t01 = _corner(n, y0, x0 + 1, live, H, W, C)
        r10, t10 = _corner(n, y0 + 1, x0, live, H, W, C)
        r11, t11 = _corner(n, y0 + 1, x0 + 1, live, H, W, C)
        for start in range(0, per_group, BLOCK_C):
            c = start + tl.arange(0, BLOCK_C)
            some = c < per_group
            c += g * per_group
            value = _mix(
                _row(rows_ptr, r00, t00, c, some),
                _row(rows_ptr, r01, t01, c, some),
                _row(rows_ptr, r10, t10, c, some),
                _row(rows_ptr, r11, t11, c, some),
                ly,
                lx,
                m,
            )
            weight = tl.load(kernel_ptr + (k * C + c)[:, None] + o[None, :] * (K * C),
                             mask=some[:, None] & made[None, :], other=0.0)  # yapf: disable
            value = value.to(weight.dtype)
            if TF32:
                total = tl.dot(_rounded(value), weight, total, input_precision='tf32')
            else:
                total = tl.dot(value, weight, total, input_precision='ieee')
    if BIASED:
        total += tl.load(bias_ptr + o, mask=made, other=0.0).to(tl.float32)[None, :]
    out = output_ptr + _entry((p // L)[:, None], o[None, :], (p % L)[:, None], O, L, OUTPUT_LAST)
    tl.store(out, total.to(output_ptr.dtype.element_ty), mask=live[:, None] & made[None, :])


@triton.jit
def _store_cells(keys_ptr, weights_ptr, at, samples, image, y0, x0, ly, lx, m, H, W, live):
    """For ``gather_kernel``, the cell of each sample and its weights; ``image``: that of a sample's group of channels."""
    inside = (y0 >= -1) & (y0 < H) & (x0 >= -1) & (x0 < W)
    cell = ((image.to(keys_ptr.dtype.element_ty) * (H + 1) + y0 + 1) * (W + 1)) + x0 + 1
    tl.store(keys_ptr + at, tl.where(inside, cell, -1), mask=live)
    tl.store(weights_ptr + at, (1 - ly) * m, mask=live)
    tl.store(weights_ptr + samples + at, ly * m, mask=live)
    tl.store(weights_ptr + 2 * samples + at, lx, mask=live)


@triton.jit
def _store_slopes(grad_offset_ptr, grad_mask_ptr, d00, d01, d10, d11, ly, lx, m, n, channel, pixel, L, channels, live,
                  MASKED: tl.constexpr, LAST: tl.constexpr):  # yapf: disable
    """The gradients of a tap's offset and mask, from those of its four corners."""
    top, grad_y, grad_x = _slopes(d00, d01, d10, d11, ly, lx)
    kind = grad_offset_ptr.dtype.element_ty
    at_y = _entry(n, channel * 2, pixel, channels * 2, L, LAST)
    at_x = _entry(n, channel * 2 + 1, pixel, channels * 2, L, LAST)
    tl.store(grad_offset_ptr + at_y, (grad_y * m).to(kind), mask=live)
    tl.store(grad_offset_ptr + at_x, (grad_x * m).to(kind), mask=live)
    if MASKED:
        at_m = _entry(n, channel, pixel, channels, L, LAST)
        tl.store(grad_mask_ptr + at_m, (top + grad_y * ly).to(grad_mask_ptr.dtype.element_ty), mask=live)


@triton.jit(do_not_specialize=['samples', 'p_first', 'k_first', 'k_count', *_MAP])
def sample_kernel(rows_ptr, offset_ptr, mask_ptr, columns_ptr, grad_columns_ptr, grad_offset_ptr, grad_mask_ptr,
                  keys_ptr, weights_ptr, samples, p_first, p_count, k_first, k_count, C, H, W, Ho, Wo,
                  KW: tl.constexpr, K: tl.constexpr, G: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr,
                  PH: tl.constexpr, PW: tl.constexpr, DH: tl.constexpr, DW: tl.constexpr, MASKED: tl.constexpr,
                  LAST: tl.constexpr, COLUMNS: tl.constexpr, PLAN: tl.constexpr, KEYS: tl.constexpr,
                  BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr):  # yapf: disable
    """What is asked for of some positions and taps, with one reading of the rows.

    COLUMNS: the columns (p_count, k_count * C). PLAN: the gradients of offset and mask, from that of the columns.
    KEYS: for ``gather_kernel``, the cell of each sample and its weights (3, samples): of the upper
    corners, of the lower ones, and of the right ones among them. Programs: blocks of positions, taps, deform groups.
    """
    q = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    live = q < p_count
    k, g = tl.program_id(1), tl.program_id(2)
    p = q + p_first
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
                d00 += tl.sum(v00 * grad, axis=1)
                d01 += tl.sum(v01 * grad, axis=1)
                d10 += tl.sum(v10 * grad, axis=1)
                d11 += tl.sum(v11 * grad, axis=1)
            if COLUMNS:
                value = _mix(v00, v01, v10, v11, ly, lx, m).to(columns_ptr.dtype.element_ty)
                tl.store(columns_ptr + column[:, None] + c[None, :], value, mask=both)
        if PLAN:
            _store_slopes(grad_offset_ptr, grad_mask_ptr, d00, d01, d10, d11, ly, lx, m, n, g * K + k_first + k,
                          p % (Ho * Wo), Ho * Wo, G * K, live, MASKED, LAST)  # yapf: disable


@triton.jit
def _slopes(d00, d01, d10, d11, ly, lx):
    """Value on the upper edge and derivatives by y and x of a bilinear patch with these corners."""
    left, right = d01 - d00, d11 - d10
    top = d00 + left * lx
    return top, d10 + right * lx - top, left + (right - left) * ly


@triton.jit(do_not_specialize=['samples', 'H', 'W'])
def gather_kernel(grad_columns_ptr, order_ptr, weights_ptr, starts_ptr, grad_rows_ptr, samples, H, W, per_group,
                  G: tl.constexpr, ADDING: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_C: tl.constexpr):  # yapf: disable
    """Gradient of the rows (N*H*W, C): each pixel sums the samples of the four cells that it is a corner of.

    ``order`` are the samples sorted by cell, ``starts`` where those of a cell begin. Neighbouring cells of one row
    follow each other, so that a pixel has two runs: above it, where it is a lower corner, and below. Programs: pixels
    of deform groups, blocks of channels.
    """
    pixel = tl.program_id(0).to(tl.int64)  # (n, g, y, x)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    some = c < per_group
    x, y, map = pixel % W, pixel // W % H, pixel // W // H
    above = starts_ptr + (map * (H + 1) + y) * (W + 1) + x
    below = above + W + 1
    first_above, right_above, end_above = tl.load(above), tl.load(above + 1), tl.load(above + 2)
    first_below, right_below, end_below = tl.load(below), tl.load(below + 1), tl.load(below + 2)
    count_above = end_above - first_above
    count = count_above + end_below - first_below
    total = tl.zeros((BLOCK_E, BLOCK_C), dtype=tl.float32)
    for start in range(0, count, BLOCK_E):
        i = start + tl.arange(0, BLOCK_E)
        upper, mine = i < count_above, i < count
        at = tl.where(upper, first_above + i, first_below + i - count_above)
        left_cell = at < tl.where(upper, right_above, right_below)
        sample = tl.load(order_ptr + at, mask=mine, other=0).to(tl.int64)
        by_y = tl.load(weights_ptr + tl.where(upper, samples, 0) + sample, mask=mine, other=0.0)
        lx = tl.load(weights_ptr + 2 * samples + sample, mask=mine, other=0.0)
        weight = by_y * tl.where(left_cell, lx, 1 - lx)
        grad = tl.load(grad_columns_ptr + (sample * per_group)[:, None] + c[None, :],
                       mask=mine[:, None] & some[None, :], other=0.0)  # yapf: disable
        total += grad.to(tl.float32) * weight[:, None]
    n, g = map // G, map % G
    out = grad_rows_ptr + (((n * H + y) * W + x) * G + g) * per_group + c
    result = tl.sum(total, axis=0)
    if ADDING:
        result += tl.load(out, mask=some, other=0.0)
    tl.store(out, result.to(grad_rows_ptr.dtype.element_ty), mask=some)
