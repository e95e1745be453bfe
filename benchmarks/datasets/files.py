# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""Finds and reads cut-outs and background photos, and says what is wrong with them."""

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageOps

from mmdeform_upgrade.errors import DataError

from .warps import crop_visible, resize_cutout

_PHOTOS = ('.jpg', '.jpeg', '.png', '.webp', '.bmp')


def _existing(folder: Path, what: str) -> Path:
    if not folder.is_dir():
        raise DataError(f'{what} folder {folder} is not a folder that exists.')
    return folder


def _visible(paths: Iterable[Path]) -> list[Path]:
    return sorted(path for path in paths if not path.name.startswith('.'))


def find_cutouts(folder: Path) -> dict[str, list[Path]]:
    """Lists the PNGs of ``folder/class_name/*.png`` by class, both sorted.

    Raises:
        DataError: There is no such folder, no class in it, or a class without PNGs.
    """
    classes = _visible(p for p in _existing(folder, 'Cut-outs').iterdir() if p.is_dir())
    if not classes:
        raise DataError(f'{folder} holds no class folders; expected {folder}/class_name/*.png.')
    found = {path.name: _visible(path.glob('*.png')) for path in classes}
    empty = [name for name, files in found.items() if not files]
    if empty:
        raise DataError(f'{folder}: no PNGs in class folders {", ".join(empty)}.')
    return found


def find_photos(folder: Path, what: str) -> list[Path]:
    """Lists the pictures directly in ``folder``, sorted.

    Raises:
        DataError: There is no such folder, or no picture in it.
    """
    files = _visible(p for p in _existing(folder, what).iterdir() if p.suffix.lower() in _PHOTOS)
    if not files:
        raise DataError(f'{what} folder {folder} holds no pictures ({", ".join(_PHOTOS)}).')
    return files


def digest_files(files: Iterable[Path]) -> str:
    """Returns one SHA-256 of all files' bytes, in the order given.

    Raises:
        DataError: Two files hold the same bytes: a copy in another split or class would make
            the set dishonest.
    """
    seen: dict[bytes, Path] = {}
    copies = []
    for path in files:
        digest = hashlib.sha256(path.read_bytes()).digest()
        if digest in seen:
            copies.append(f'{path} is a copy of {seen[digest]}')
        seen.setdefault(digest, path)
    if copies:
        raise DataError('Remove the copies: ' + '; '.join(copies) + '.')
    return hashlib.sha256(b''.join(seen)).hexdigest()


def read_rgba(path: Path) -> np.ndarray:
    """Reads a PNG with alpha, or a palette with transparency; (H, W, 4) uint8, RGBA.

    Raises:
        DataError: The file is no readable picture, has no alpha channel, is wholly opaque or
            shows nothing.
    """
    try:
        with Image.open(path) as picture:
            has_alpha = 'A' in picture.getbands() or 'transparency' in picture.info
            mode = picture.mode
            rgba = np.asarray(picture.convert('RGBA'))
    except (OSError, ValueError, SyntaxError) as error:
        raise DataError(f'{path} cannot be read as a picture: {error}') from error
    if not has_alpha:
        raise DataError(f'{path} has no alpha channel (mode {mode}); a cut-out needs one.')
    if rgba[..., 3].min() == 255:
        raise DataError(f'{path} is opaque everywhere; a cut-out needs a transparent surrounding.')
    if rgba[..., 3].max() < 128:
        raise DataError(f'{path} shows nothing: no pixel is at least half opaque.')
    return rgba


def load_cutout(path: Path, max_side: int) -> np.ndarray:
    """Reads a cut-out, cropped and reduced to a long side of ``max_side``; (H, W, 4) BGRA."""
    image = crop_visible(cv2.cvtColor(read_rgba(path), cv2.COLOR_RGBA2BGRA))
    return resize_cutout(image, max_side) if max(image.shape[:2]) > max_side else image


def load_photo(path: Path, max_side: int) -> np.ndarray:
    """Reads a photo, reduced to a short side of ``max_side``; (H, W, 3) BGR.

    Raises:
        DataError: The file is no readable picture.
    """
    try:
        with Image.open(path) as picture:
            upright = ImageOps.exif_transpose(picture) or picture
            image = np.asarray(upright.convert('RGB'))
    except (OSError, ValueError, SyntaxError) as error:
        raise DataError(f'{path} cannot be read as a picture: {error}') from error
    image = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    scale = max_side / min(image.shape[:2])
    if scale >= 1:
        return image
    size = [max(1, round(extent * scale)) for extent in image.shape[1::-1]]
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)


def check_all(files: Iterable[Path], read: Callable[[Path], object]) -> None:
    """Reads every file and raises one ``DataError`` that lists every problem."""
    problems = []
    for path in files:
        try:
            read(path)
        except DataError as error:
            problems.append(str(error))
    if problems:
        raise DataError('\n'.join(problems))
