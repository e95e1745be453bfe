# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""Which output positions and taps are worked on at a time, so that memory stays within a byte budget."""

from __future__ import annotations

from typing import NamedTuple

from .geometry import Geometry

COLUMN_BYTES = {'cpu': 16 * 2**20}  # columns alive at a time; larger pieces bring little more
DEFAULT_COLUMN_BYTES = 256 * 2**20  # other devices: launches cost more than memory, which still is bounded
LONGEST_SUM = 1024  # where the float32 error of oneDNN's products would pass twice that of a convolution
SMALL_KERNEL_BYTES = 2**20  # a kernel matrix that is cheap to read again for each chunk


class Cuts(NamedTuple):
    """Ranges of the K taps (outer loop) and of the N*L output positions (inner loop)."""

    taps: list[slice]
    positions: list[slice]
    turned: bool = False  # columns are (p, C*K) in the products, so that a contiguous kernel need not be turned

    @property
    def whole(self) -> bool:
        """Whether there is one piece."""
        return len(self.taps) == len(self.positions) == 1


def cut(geo: Geometry, itemsize: int, device_type: str, summed: bool = False) -> Cuts:
    """Cut the columns into pieces of at most the device's bytes, unless one row of one tap takes more.

    A small kernel is multiplied for all taps at once and only the positions are cut. Of a large one, some taps
    at a time are multiplied with as many positions as there are, so that it is read once.

    Args:
        geo: The sizes.
        itemsize: Bytes of a number of the columns.
        device_type: Where they are.
        summed: Whether a product sums over the taps of a piece.
    """
    total = geo.N * geo.L
    cells = COLUMN_BYTES.get(device_type, DEFAULT_COLUMN_BYTES) // (geo.C * itemsize)
    kernel_bytes = geo.K * geo.C // geo.groups * geo.O * itemsize
    taps = geo.K if kernel_bytes <= SMALL_KERNEL_BYTES else cells // max(total, 1)
    if summed and device_type == 'cpu':
        taps = min(taps, LONGEST_SUM * geo.groups // geo.C)
    taps = max(1, min(taps, geo.K))
    return Cuts(ranges(geo.K, taps), ranges(total, max(1, cells // taps)))


def ranges(total: int, largest: int) -> list[slice]:
    """Cut ``range(total)`` into pieces of nearly equal length, none longer than ``largest``."""
    pieces = -(-total // largest)
    return [slice(i * total // pieces, (i + 1) * total // pieces) for i in range(pieces)]
