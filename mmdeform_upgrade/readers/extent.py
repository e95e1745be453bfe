# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""How large a value is for whoever walks through it, which its file does not tell.

A pickle may mention one list ten times, that list another one ten times, and so on: some hundred bytes become more
entries than any memory holds when they are printed, copied or compared. A list may also hold itself.
"""

from __future__ import annotations

from typing import Any, Dict, Iterable

from ..errors import CheckpointError

_MAX_DEPTH = 200  # Python's own limit is about five times that
_ENTRIES_A_BYTE, _ALWAYS_ALLOWED = 8, 10**6


def check_extent(value: Any, size: int) -> None:
    """Refuse a value with far more entries than a file of ``size`` bytes can list, or nested without end.

    Raises:
        CheckpointError: it is one of these.
    """
    if _count(value, {}, 0) > _ALWAYS_ALLOWED + _ENTRIES_A_BYTE * size:
        raise CheckpointError(
            'its contents mention each other so often that they stand for more entries than the file has bytes'
        )


def _count(value: Any, known: Dict[int, int], depth: int) -> int:
    """Entries in a value, those of a container as often as it is mentioned."""
    if not isinstance(value, (dict, list, tuple, set, frozenset)):
        return 1
    found = known.get(id(value))
    if found is None:
        if depth > _MAX_DEPTH:  # also where it holds itself
            raise CheckpointError(f'its contents are nested more than {_MAX_DEPTH} deep, or hold themselves')
        parts: Iterable[Any] = [*value, *value.values()] if isinstance(value, dict) else value
        found = known[id(value)] = 1 + sum(_count(part, known, depth + 1) for part in parts)
    return found
