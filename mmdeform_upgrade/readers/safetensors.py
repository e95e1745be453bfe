# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""Safetensors files, by the library of that name: tensors, texts beside them, no code."""

from __future__ import annotations

import json
from typing import Any

META = 'meta'  # under this name the metadata hold a checkpoint's meta, as JSON


def read_safetensors(path: str) -> dict[str, Any]:
    """``state_dict``, the texts beside it (``metadata``), and ``meta`` where a release of this package has it."""
    from safetensors import safe_open

    with safe_open(path, framework='pt') as file:
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        metadata = file.metadata() or {}
    checkpoint: dict[str, Any] = {'state_dict': tensors, **({'metadata': metadata} if metadata else {})}
    text = metadata.get(META, '')
    if text.lstrip()[:1] == '{':  # other libraries may mean anything by that name
        checkpoint['meta'] = json.loads(text)
    return checkpoint
