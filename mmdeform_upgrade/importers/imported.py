# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""What every importer gives: a baseline under mmdet's or mmseg's names, and what was done to get there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from ..errors import listed

# Looks at the network that an import is meant for, and returns what does not fit, a line each.
Check = Callable[[nn.Module], list[str]]


@dataclass(frozen=True)
class Imported:
    """A baseline under mmdet's or mmseg's names, and what was done to get there."""

    format: str  # what the file was recognised as, for people ('GluonCV SSD on ResNet-50')
    state_dict: dict[str, Tensor]  # target names to tensors; those of the file are not changed in place
    renamed: dict[str, str] = field(default_factory=dict)  # source to target, of everything that was taken over
    changed: dict[str, str] = field(default_factory=dict)  # target to what was done to its values (a fold, a roll)
    dropped: dict[str, str] = field(default_factory=dict)  # source to why it has no place of its own
    checks: tuple[Check, ...] = ()  # what only the network can tell (anchors, eps, number of classes)
    classes: tuple[str, ...] = ()  # in the order of the outputs, where the file leaves no doubt about them
    added: tuple[str, ...] = ()  # offset keys that the baseline lacked; zeros were put there for an upgraded network

    def problems(self, model: nn.Module) -> list[str]:
        """Every reason why ``model`` is not the network that this baseline was trained as."""
        return [problem for check in self.checks for problem in check(model)]

    def summary(self) -> dict[str, Any]:
        """What was done, in plain numbers and texts, for a checkpoint's ``meta``."""
        changed, dropped = (dict(Counter(reasons.values())) for reasons in (self.changed, self.dropped))
        return {'format': self.format, 'tensors': len(self.renamed), 'changed': changed, 'dropped': dropped}

    def __str__(self) -> str:
        renamed = sum(source != target for source, target in self.renamed.items())
        lines = [
            f'{self.format}: {len(self.renamed)} tensors, {f"{renamed} renamed" if renamed else "all as they are"}'
        ]
        for title, reasons in (('changed in value', self.changed), ('dropped', self.dropped)):
            for reason in dict.fromkeys(reasons.values()):
                names = [name for name in reasons if reasons[name] == reason]
                lines.append(f'  {len(names)} {title}, {reason}: {listed(names, 3)}')
        return '\n'.join(lines)
