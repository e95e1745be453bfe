# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""The Triton kernels: sample columns, convolve in one go, and bring gradients back.

All of them read the map as channels-last rows (N*H*W, C). Where a tap looks is computed once for a block of
output positions, in float32, and used for all channels of its deform group; neighbouring lanes read neighbouring
channels. Offsets are (N, G, K, 2, L), the mask is (N, G, K, L), both float32.

The gradient of the input is gathered, not scattered: ``corner_kernel`` lists which pixel each corner of each sample
reads, the list is sorted, and ``gather_kernel`` sums each pixel's segment of it. So nothing is added atomically.

Only ``triton_backend.py`` imports this module, since it needs the package triton.
"""

import triton
import triton.language as tl


@triton.jit
def _tap(offset_ptr, mask_ptr, p, live, k, g, H, W, Ho, Wo, K, G, sh, sw, ph, pw, dh, dw, far,
         KW: tl.constexpr, MASKED: tl.constexpr):  # yapf: disable
    """Image n, upper left corner (y0, x0), distances (ly, lx) from it, and modulation, of a block of positions."""
    L = Ho * Wo
    n, position = p // L, p % L
    at = ((n * G + g) * K + k).to(tl.int64)
    dy = tl.load(offset_ptr + at * 2 * L + position, mask=live, other=0.0)
    dx = tl.load(offset_ptr + (at * 2 + 1) * L + position, mask=live, other=0.0)
    dy = tl.where(dy > far, far, tl.where(dy < -far, -far, dy))  # a NaN stays one
    dx = tl.where(dx > far, far, tl.where(dx < -far, -far, dx))
    fy, fx = tl.floor(dy), tl.floor(dx)
    y0 = (position // Wo) * sh - ph + (k // KW) * dh + tl.where(fy == fy, fy, 0.0).to(tl.int32)
    x0 = (position % Wo) * sw - pw + (k % KW) * dw + tl.where(fx == fx, fx, 0.0).to(tl.int32)
    m = tl.zeros_like(dy) + 1.0
    if MASKED:
        m = tl.load(mask_ptr + at * L + position, mask=live, other=0.0)
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
def _interpolate(rows_ptr, n, y0, x0, ly, lx, m, live, c, some, H, W, C):
    """A block (positions, channels) of samples in float32."""
    r00, t00 = _corner(n, y0, x0, live, H, W, C)
    r01, t01 = _corner(n, y0, x0 + 1, live, H, W, C)
    r10, t10 = _corner(n, y0 + 1, x0, live, H, W, C)
    r11, t11 = _corner(n, y0 + 1, x0 + 1, live, H, W, C)
    total = _row(rows_ptr, r00, t00, c, some) * ((1 - ly) * (1 - lx) * m)[:, None]
    total += _row(rows_ptr, r01, t01, c, some) * ((1 - ly) * lx * m)[:, None]
    total += _row(rows_ptr, r10, t10, c, some) * (ly * (1 - lx) * m)[:, None]
    total += _row(rows_ptr, r11, t11, c, some) * (ly * lx * m)[:, None]
    return total


@triton.jit
def sample_kernel(rows_ptr, offset_ptr, mask_ptr, columns_ptr, p_first, p_count, k_first, k_count, C,
                  H, W, Ho, Wo, K, G, sh, sw, ph, pw, dh, dw, far,
                  KW: tl.constexpr, MASKED: tl.constexpr, BLOCK_P: tl.constexpr,
                  BLOCK_C: tl.constexpr):  # yapf: disable
    """Columns (p_count, k_count * C). Programs: blocks of positions, taps, deform groups."""
    q = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    live = q < p_count
    k, g = tl.program_id(1), tl.program_id(2)
    n, y0, x0, ly, lx, m = _tap(offset_ptr, mask_ptr, q + p_first, live, k_first + k, g, H, W, Ho, Wo, K, G,
                                sh, sw, ph, pw, dh, dw, far, KW, MASKED)  # yapf: disable
    out = columns_ptr + (q.to(tl.int64) * k_count + k) * C
    per_group = C // G
    for start in range(0, per_group, BLOCK_C):
        c = start + tl.arange(0, BLOCK_C)
        some = c < per_group
        c += g * per_group
        value = _interpolate(rows_ptr, n, y0, x0, ly, lx, m, live, c, some, H, W, C)
        tl.store(out[:, None] + c[None, :], value.to(columns_ptr.dtype.element_ty), mask=live[:, None] & some[None, :])


@triton.jit
def _rounded(value):
    """float32 rounded to TF32's ten bits, where the matrix units would cut off the others."""
    bits = value.to(tl.int32, bitcast=True)
    return tl.where(value == value, ((bits + 0x1000) & -0x2000).to(tl.float32, bitcast=True), value)


@triton.jit
def convolve_kernel(rows_ptr, offset_ptr, mask_ptr, kernel_ptr, bias_ptr, output_ptr, P, C, O,  # noqa: E741
                    H, W, Ho, Wo, K, G, sh, sw, ph, pw, dh, dw, far,
                    KW: tl.constexpr, MASKED: tl.constexpr, BIASED: tl.constexpr, TF32: tl.constexpr,
                    UPCAST: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
                    BLOCK_O: tl.constexpr):  # yapf: disable
    """Output rows (P, O) from a kernel (O, K * C), no columns in memory. Programs: positions, output channels.

    With TF32, the kernel has been rounded to it.
    """
    p = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    o = tl.program_id(1) * BLOCK_O + tl.arange(0, BLOCK_O)
    live, made = p < P, o < O
    per_group = C // G
    total = tl.zeros((BLOCK_P, BLOCK_O), dtype=tl.float32)
    for kg in range(0, K * G):
        k, g = kg // G, kg % G
        n, y0, x0, ly, lx, m = _tap(offset_ptr, mask_ptr, p, live, k, g, H, W, Ho, Wo, K, G,
                                    sh, sw, ph, pw, dh, dw, far, KW, MASKED)  # yapf: disable
        for start in range(0, per_group, BLOCK_C):
            c = start + tl.arange(0, BLOCK_C)
            some = c < per_group
            c += g * per_group
            value = _interpolate(rows_ptr, n, y0, x0, ly, lx, m, live, c, some, H, W, C)
            weight = tl.load(kernel_ptr + (k * C + c)[:, None] + o[None, :] * (K * C),
                             mask=some[:, None] & made[None, :], other=0.0)  # yapf: disable
            value = value.to(weight.dtype)
            if UPCAST:
                value, weight = value.to(tl.float32), weight.to(tl.float32)
            if TF32:
                total = tl.dot(_rounded(value), weight, total, input_precision='tf32')
            else:
                total = tl.dot(value, weight, total, input_precision='ieee')
    if BIASED:
        total += tl.load(bias_ptr + o, mask=made, other=0.0).to(tl.float32)[None, :]
    out = output_ptr + p.to(tl.int64)[:, None] * O + o[None, :]
    tl.store(out, total.to(output_ptr.dtype.element_ty), mask=live[:, None] & made[None, :])


@triton.jit
def plan_kernel(rows_ptr, offset_ptr, mask_ptr, grad_columns_ptr, columns_ptr, grad_offset_ptr, grad_mask_ptr,
                p_first, p_count, k_first, k_count, C, H, W, Ho, Wo, K, G, sh, sw, ph, pw, dh, dw, far,
                KW: tl.constexpr, MASKED: tl.constexpr, SAMPLING: tl.constexpr, BLOCK_P: tl.constexpr,
                BLOCK_C: tl.constexpr):  # yapf: disable
    """Gradients of offset and mask from that of the columns; with SAMPLING also the columns, for one reading of rows.

    Programs as those of ``sample_kernel``.
    """
    q = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    live = q < p_count
    k, g = tl.program_id(1), tl.program_id(2)
    p = q + p_first
    n, y0, x0, ly, lx, m = _tap(offset_ptr, mask_ptr, p, live, k_first + k, g, H, W, Ho, Wo, K, G,
                                sh, sw, ph, pw, dh, dw, far, KW, MASKED)  # yapf: disable
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
        grad = tl.load(grad_columns_ptr + column[:, None] + c[None, :], mask=both, other=0.0).to(tl.float32)
        v00, v01 = _row(rows_ptr, r00, t00, c, some), _row(rows_ptr, r01, t01, c, some)
        v10, v11 = _row(rows_ptr, r10, t10, c, some), _row(rows_ptr, r11, t11, c, some)
        d00 += tl.sum(v00 * grad, axis=1)
        d01 += tl.sum(v01 * grad, axis=1)
        d10 += tl.sum(v10 * grad, axis=1)
        d11 += tl.sum(v11 * grad, axis=1)
        if SAMPLING:
            value = v00 * ((1 - ly) * (1 - lx) * m)[:, None]
            value += v01 * ((1 - ly) * lx * m)[:, None]
            value += v10 * (ly * (1 - lx) * m)[:, None]
            value += v11 * (ly * lx * m)[:, None]
            tl.store(columns_ptr + column[:, None] + c[None, :], value.to(columns_ptr.dtype.element_ty), mask=both)
    L = Ho * Wo
    at = ((n * G + g) * K + k_first + k).to(tl.int64)
    top, grad_y, grad_x = _slopes(d00, d01, d10, d11, ly, lx)
    tl.store(grad_offset_ptr + at * 2 * L + p % L, grad_y * m, mask=live)
    tl.store(grad_offset_ptr + (at * 2 + 1) * L + p % L, grad_x * m, mask=live)
    if MASKED:
        tl.store(grad_mask_ptr + at * L + p % L, top + grad_y * ly, mask=live)


@triton.jit
def _slopes(d00, d01, d10, d11, ly, lx):
    """Value on the upper edge and derivatives by y and x of a bilinear patch with these corners."""
    left, right = d01 - d00, d11 - d10
    top = d00 + left * lx
    return top, d10 + right * lx - top, left + (right - left) * ly


@triton.jit
def corner_kernel(offset_ptr, mask_ptr, pixels_ptr, weights_ptr, p_first, p_count, k_first, k_count, nowhere,
                  H, W, Ho, Wo, K, G, sh, sw, ph, pw, dh, dw, far,
                  KW: tl.constexpr, MASKED: tl.constexpr, BLOCK_P: tl.constexpr):  # yapf: disable
    """Pixel and weight of each sample's corners, both (p_count * k_count * G, 4); a pixel is ``row * G + group``.

    Corners outside the map are at the pixel ``nowhere``. Programs as those of ``sample_kernel``.
    """
    q = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    live = q < p_count
    k, g = tl.program_id(1), tl.program_id(2)
    n, y0, x0, ly, lx, m = _tap(offset_ptr, mask_ptr, q + p_first, live, k_first + k, g, H, W, Ho, Wo, K, G,
                                sh, sw, ph, pw, dh, dw, far, KW, MASKED)  # yapf: disable
    at = ((q.to(tl.int64) * k_count + k) * G + g) * 4
    for corner in tl.static_range(4):
        dy, dx = corner // 2, corner % 2
        row, there = _corner(n, y0 + dy, x0 + dx, live, H, W, 1)
        by_y = ly if dy else 1 - ly
        by_x = lx if dx else 1 - lx
        pixel = tl.where(there, row * G + g, nowhere)
        tl.store(pixels_ptr + at + corner, pixel.to(pixels_ptr.dtype.element_ty), mask=live)
        tl.store(weights_ptr + at + corner, by_y * by_x * m, mask=live)


@triton.jit
def gather_kernel(grad_columns_ptr, order_ptr, weights_ptr, starts_ptr, grad_rows_ptr, per_group,
                  ADDING: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_C: tl.constexpr):  # yapf: disable
    """Gradient of the pixels (pixels, per_group): each sums its segment of the sorted corners.

    ``order`` are the corners sorted by pixel, ``starts`` where the segments begin, one more than there are pixels.
    Programs: pixels, blocks of channels.
    """
    pixel = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    some = c < per_group
    first, end = tl.load(starts_ptr + pixel), tl.load(starts_ptr + pixel + 1)
    total = tl.zeros((BLOCK_E, BLOCK_C), dtype=tl.float32)
    for start in range(first, end, BLOCK_E):
        at = start + tl.arange(0, BLOCK_E)
        mine = at < end
        corner = tl.load(order_ptr + at, mask=mine, other=0)
        weight = tl.load(weights_ptr + corner, mask=mine, other=0.0)
        source = grad_columns_ptr + (corner // 4).to(tl.int64) * per_group
        grad = tl.load(source[:, None] + c[None, :], mask=mine[:, None] & some[None, :], other=0.0)
        total += grad.to(tl.float32) * weight[:, None]
    out = grad_rows_ptr + pixel * per_group + c
    result = tl.sum(total, axis=0)
    if ADDING:
        result += tl.load(out, mask=some, other=0.0)
    tl.store(out, result, mask=some)
