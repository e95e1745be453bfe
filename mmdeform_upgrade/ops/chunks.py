# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""Which output positions and taps are worked on at a time, so that memory stays within a byte budget."""

from __future__ import annotations

from typing import NamedTuple

from .geometry import Geometry

COLUMN_BYTES = {'cpu': 6 * 2**20}  # columns alive at a time: about what stays in a cache
DEFAULT_COLUMN_BYTES = 256 * 2**20  # other devices: launches cost more than memory, which still is bounded
ALWAYS_BYTES = 3 * 2**20  # not worth cutting
LONGEST_SUM = 1024  # where the float32 error of oneDNN's products would pass twice that of a convolution
SMALL_KERNEL_BYTES = 2**20  # a kernel matrix that is cheap to read again for each chunk


class Cuts(NamedTuple):
    """Ranges of the K taps (outer loop) and of the N*L output positions (inner loop)."""

    taps: list[slice]
    positions: list[slice]


def cut(geo: Geometry, itemsize: int, device_type: str) -> Cuts:
    """Cut the columns into pieces of at most :func:`column_bytes`, unless one row of one tap takes more.

    A small kernel is multiplied for all taps at once and only the positions are cut. Of a large one, some taps
    at a time are multiplied with as many positions as there are, so that it is read once.
    """
    total = geo.N * geo.L
    cells = column_bytes(geo, itemsize, device_type) // (geo.C * itemsize)
    kernel_bytes = geo.K * geo.C // geo.groups * geo.O * itemsize
    taps = geo.K if kernel_bytes <= SMALL_KERNEL_BYTES else cells // max(total, 1)
    if device_type == 'cpu':
        taps = min(taps, LONGEST_SUM * geo.groups // geo.C)
    taps = max(1, min(taps, geo.K))
    return Cuts(_ranges(geo.K, taps), _ranges(total, max(1, cells // taps)))


def column_bytes(geo: Geometry, itemsize: int, device_type: str) -> int:
    """The budget: that of the device; of a cache, at most a third of all columns, unless that is little."""
    if device_type not in COLUMN_BYTES:
        return DEFAULT_COLUMN_BYTES
    third = geo.N * geo.L * geo.K * geo.C * itemsize // 3
    return min(COLUMN_BYTES[device_type], max(third, ALWAYS_BYTES))


def images(positions: slice, geo: Geometry) -> slice:
    """The images that some output positions belong to."""
    return slice(positions.start // geo.L, -(-positions.stop // geo.L))


def _ranges(total: int, largest: int) -> list[slice]:
    """Cut ``range(total)`` into pieces of nearly equal length, none longer than ``largest``."""
    pieces = -(-total // largest)
    return [slice(i * total // pieces, (i + 1) * total // pieces) for i in range(pieces)]
