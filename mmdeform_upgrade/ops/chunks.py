# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""Which output positions and taps are worked on at a time, so that memory stays within a byte budget."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from .geometry import Geometry

COLUMN_BYTES = {'cpu': 2 * 2**20}  # columns alive at a time: about what stays in a cache
DEFAULT_COLUMN_BYTES = 256 * 2**20  # other devices: few launches, yet bounded
SMALL_KERNEL_BYTES = 2**20  # a kernel matrix that is cheap to read again for each chunk


class Chunk(NamedTuple):
    """A range of the N*L output positions, and a range of the K taps."""

    positions: slice
    taps: slice

    def images(self, geo: Geometry) -> slice:
        """The images that its positions belong to."""
        return slice(self.positions.start // geo.L, -(-self.positions.stop // geo.L))


def chunks(geo: Geometry, itemsize: int, device_type: str) -> Iterator[Chunk]:
    """Cut the columns into pieces of at most the budget, unless one row of one tap takes more.

    A small kernel is multiplied for all taps at once and the positions are cut. A large one is better read
    only once, so there the taps are cut first.
    """
    positions, taps = chunk_size(geo, itemsize, device_type)
    for p in _ranges(geo.N * geo.L, positions):
        for k in _ranges(geo.K, taps):
            yield Chunk(p, k)


def chunk_size(geo: Geometry, itemsize: int, device_type: str) -> tuple[int, int]:
    """Largest number of positions and taps of one chunk."""
    total = geo.N * geo.L
    cells = COLUMN_BYTES.get(device_type, DEFAULT_COLUMN_BYTES) // (geo.C * itemsize)
    kernel_bytes = geo.K * geo.C // geo.groups * geo.O * itemsize
    taps = geo.K if kernel_bytes <= SMALL_KERNEL_BYTES else cells // max(total, 1)
    taps = min(max(taps, 1), geo.K)
    return max(1, min(total, cells // taps)), taps


def _ranges(total: int, largest: int) -> Iterator[slice]:
    """Cut ``range(total)`` into pieces of nearly equal length, none longer than ``largest``."""
    pieces = -(-total // largest)
    for i in range(pieces):
        yield slice(i * total // pieces, (i + 1) * total // pieces)
