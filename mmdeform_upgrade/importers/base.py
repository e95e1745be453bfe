# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""What every importer takes and gives: pure functions from a foreign state dict to mmdet's or mmseg's names."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Callable, Dict, List, Mapping, Tuple

from torch import Tensor, nn

StateDict = Dict[str, Tensor]
# Looks at the network that an import is meant for, and returns what does not fit, a line each.
Check = Callable[[nn.Module], List[str]]


@dataclass(frozen=True)
class Imported:
    """A baseline under mmdet's or mmseg's names, and what was done to get there.

    Attributes:
        format: what the file was recognised as, for people (``'GluonCV SSD on ResNet-50'``).
        state_dict: target names to tensors; those of the file are not changed in place.
        renamed: source name to target name, of everything that was taken over.
        changed: target name to what was done to its values (a fold, a roll, rows selected).
        dropped: source name to why it was left out on purpose.
        checks: what only the network can tell (anchors, eps, number of classes).
        classes: names of the classes in the order of the outputs, where the file leaves no doubt about them.
        added: offset keys that the baseline lacked; zeros were put there to fit an upgraded network.
    """

    format: str
    state_dict: StateDict
    renamed: Mapping[str, str] = field(default_factory=dict)
    changed: Mapping[str, str] = field(default_factory=dict)
    dropped: Mapping[str, str] = field(default_factory=dict)
    checks: Tuple[Check, ...] = ()
    classes: Tuple[str, ...] = ()
    added: Tuple[str, ...] = ()

    def problems(self, model: nn.Module) -> List[str]:
        """Every reason why ``model`` is not the network that this baseline was trained as."""
        return [problem for check in self.checks for problem in check(model)]

    def summary(self) -> Dict[str, Any]:
        """What was done, in plain numbers and texts, for a checkpoint's ``meta``."""
        counts = {title: _counted(reasons) for title, reasons in (('changed', self.changed), ('dropped', self.dropped))}
        return {'format': self.format, 'tensors': len(self.state_dict) - len(self.added), **counts}

    def __str__(self) -> str:
        lines = [
            f'{self.format}: {len(self.renamed)} tensors renamed, {len(self.changed)} changed in value, '
            f'{len(self.dropped)} dropped'
        ]
        lines += _grouped('changed', self.changed)
        lines += _grouped('dropped', self.dropped)
        return '\n'.join(lines)


@dataclass(frozen=True)
class Format:
    """One family of foreign checkpoints.

    Attributes:
        name: for people.
        recognise: whether names and shapes are this family's; looks at nothing else.
        convert: the import; raises one CheckpointError that lists every problem.
    """

    name: str
    recognise: Callable[[Mapping[str, Tensor]], bool]
    convert: Callable[[Mapping[str, Tensor]], Imported]


def _counted(reasons: Mapping[str, str]) -> Dict[str, int]:
    return {reason: list(reasons.values()).count(reason) for reason in dict.fromkeys(reasons.values())}


def _grouped(title: str, reasons: Mapping[str, str]) -> List[str]:
    names: Dict[str, List[str]] = {}
    for name, reason in reasons.items():
        names.setdefault(reason, []).append(name)
    return [
        f'  {title}, {reason}: {", ".join(group[:3])}' + (f' and {len(group) - 3} more' if len(group) > 3 else '')
        for reason, group in names.items()
    ]
