# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""The configs that a framework's package carries: finding, loading, and telling their models apart."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import tempfile
from collections import defaultdict
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, Iterator, List, Mapping, Sequence, Tuple

from mmdeform_upgrade.config.upgrade import is_download

if TYPE_CHECKING:
    from mmengine.config import Config

LIBRARIES = ('mmdet', 'mmseg')

# What a component is called, in the order in which it is looked for.
BACKBONES = ('backbone', 'image_encoder')
NECKS = ('neck',)


def config_root(library: str) -> Path:
    """Folder of the configs in an installed mmdet or mmseg."""
    spec = find_spec(library)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f'{library} is not installed, so its configs cannot be swept')
    return Path(spec.origin).parent / '.mim' / 'configs'


def config_names(libraries: Sequence[str] = LIBRARIES) -> List[str]:
    """``LIBRARY/PATH`` of every config file, ``_base_`` files and pure Python configs included, in order."""
    names = []
    for library in libraries:
        root = config_root(library)
        names += [f'{library}/{path.relative_to(root).as_posix()}' for path in sorted(root.rglob('*.py'))]
        package = root.parents[1]  # pure Python configs are modules in some releases
        names += [
            f'{library}/{path.relative_to(package).as_posix()}'
            for path in sorted((package / 'configs').rglob('*.py'))
            if path.name != '__init__.py'
        ]
    return names


def config_path(name: str) -> Path:
    """The file of a config."""
    library, _, path = name.partition('/')
    root = config_root(library)
    return root / path if (root / path).is_file() else root.parents[1] / path


def load_config(name: str) -> Config:
    """A config with nothing in its model that would be downloaded, and with its library as scope.

    Args:
        name: as in :func:`config_names`.
    """
    from mmengine.config import Config

    cfg = Config.fromfile(str(config_path(name)))
    if isinstance(cfg.get('model'), Mapping):
        cfg.model = without_downloads(cfg.model)
    if not cfg.get('default_scope'):
        cfg.default_scope = name.partition('/')[0]
    return cfg


def without_downloads(node: Any) -> Any:
    """A model's config without pretrained weights; every other initialisation stays."""
    if isinstance(node, Mapping):
        kept: Dict[str, Any] = {}
        for key, value in node.items():
            if key in ('pretrained', 'teacher_ckpt') and isinstance(value, str):
                kept[key] = None
            elif key == 'init_cfg' and isinstance(value, (list, tuple)):
                kept[key] = [item for item in value if not is_download(item)]
            elif not (key == 'init_cfg' and is_download(value)):
                kept[key] = without_downloads(value)
        return kept
    if isinstance(node, (list, tuple)):
        return type(node)(without_downloads(item) for item in node)
    return node


def config_key(cfg: Mapping[str, Any], node: Any) -> str:
    """Equal for what builds the same modules in the same scope; ``node`` is a config's model or a part of it."""
    text = json.dumps([cfg['default_scope'], node], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def component(model: Mapping[str, Any], part: str) -> Mapping[str, Any]:
    """The config at a dotted place of a model's config; the model's own for an empty place."""
    for key in filter(None, part.split('.')):
        model = model[key]
    return model


def parts_called(model: Mapping[str, Any], names: Sequence[str]) -> List[str]:
    """Dotted places of the components of a model's config that are called one of ``names``, outermost first.

    A component inside another one that is found (a backbone's own backbone) is not listed: it is part of it.
    """
    found: List[str] = []
    level: List[Tuple[str, Mapping[str, Any]]] = [('', model)]
    while level:
        inner = [
            (f'{path}.{key}'.lstrip('.'), value)
            for path, node in level
            for key, value in node.items()
            if isinstance(value, Mapping)
        ]
        here = [path for path, node in inner if path.rpartition('.')[2] in names and 'type' in node]
        found += here
        level = [(path, node) for path, node in inner if path not in here]
    return found


def choose(rows: Sequence[Mapping[str, Any]], number: int, seed: int) -> List[str]:
    """A seeded sample that goes round the backbone types, each time to one of a type's cheaper half.

    Args:
        rows: with ``config``, ``backbone`` and ``seconds``.
        number: size of the sample.
        seed: of the draw.
    """
    rng = random.Random(seed)
    by_type: Dict[str, List[Tuple[float, str]]] = defaultdict(list)
    for row in rows:
        by_type[str(row['backbone'])].append((float(row.get('seconds') or 0), row['config']))
    queues = []
    for name in sorted(by_type):
        ordered = [config for _, config in sorted(by_type[name])]
        half = (len(ordered) + 1) // 2
        queues.append(rng.sample(ordered[:half], half) + rng.sample(ordered[half:], len(ordered) - half))
    rng.shuffle(queues)
    turns = max((len(queue) for queue in queues), default=0)
    return [queue[turn] for turn in range(turns) for queue in queues if turn < len(queue)][:number]


@contextlib.contextmanager
def repository_of(name: str) -> Iterator[None]:
    """Work where ``configs/`` is the library's folder, as its configs that name others by path expect."""
    before = os.getcwd()
    with tempfile.TemporaryDirectory() as folder:
        os.symlink(config_root(name.partition('/')[0]), os.path.join(folder, 'configs'))
        os.chdir(folder)
        try:
            yield
        finally:
            os.chdir(before)
