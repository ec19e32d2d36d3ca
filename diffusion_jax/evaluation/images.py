"""Sets of images, batch by batch, from where people keep them: folders, zip archives and npz files of samples.

Images are read in the order of their names. An array in an npz file is read as a stream, since sets of 50000 do not fit
in every memory.
"""

import hashlib
import io
import itertools
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
from PIL import Image

from diffusion_jax.data.folder import SUFFIXES, UNREADABLE, upright
from diffusion_jax.pretrained.fetch import hash_of

DEEP = ("I", "I;16", "I;16B", "I;16L", "I;16N", "F")  # modes of more than 8 bits


def images_of(path: str | Path, *, batch: int = 64) -> Iterator[np.ndarray]:
    """Yield uint8 (N, H, W, 3) in batches of a folder or zip of images, or of the array `arr_0` of an npz file.

    Grey becomes RGB, and what is transparent lies on white. The first batch is read at once, so that a mistake shows
    where it was made.
    """
    path = Path(path).expanduser()
    if batch < 1:
        raise ValueError(f"images_of: batch is {batch}; it must be 1 or more.")
    if path.is_dir():
        batches = _batches(path, _in_folder(path), batch)
    elif path.suffix.lower() == ".npz" and path.is_file():
        batches = _rows(path, "arr_0", batch)
    elif zipfile.is_zipfile(path):
        batches = _batches(path, _in_zip(path), batch)
    else:
        raise ValueError(f"images_of: {path} is not there, or is neither a folder nor a whole zip or npz file.")
    return itertools.chain([next(batches)], batches)


def fingerprint_of(path: str | Path) -> str:
    """Return the sha256 of a file, or that of the names and contents of the images in a folder."""
    path = Path(path).expanduser()
    if not path.is_dir():
        return hash_of(path)
    total = hashlib.sha256()
    for _, file in _in_folder(path):
        total.update(f"{file.relative_to(path).as_posix()} {hash_of(file)};".encode())
    return total.hexdigest()


def _rows(path, member, batch):
    """Yield the images of an array in an npz file, of which no more than a batch is ever in memory."""
    try:
        with zipfile.ZipFile(path) as archive:
            if f"{member}.npy" not in archive.namelist():
                known = ", ".join(name.removesuffix(".npy") for name in archive.namelist())
                raise ValueError(f"images_of: {path} has no array '{member}'; it has {known}.")
            with archive.open(f"{member}.npy") as stream:
                shape = _header(path, member, stream)
                size = int(np.prod(shape[1:]))
                for start in range(0, shape[0], batch):
                    count = min(batch, shape[0] - start)
                    content = stream.read(count * size)
                    if len(content) != count * size:
                        raise EOFError(f"{member} ends after {start} of {shape[0]} images")
                    yield coloured(np.frombuffer(content, np.uint8).reshape(count, *shape[1:]))
    except (zipfile.BadZipFile, EOFError, OSError) as error:
        raise ValueError(f"images_of: {path} is damaged or not whole: {error}.") from None


def _header(path, member, stream):
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(stream)
    if dtype != np.uint8 or len(shape) != 4 or shape[-1] not in (1, 3) or fortran or not all(shape):
        raise ValueError(
            f"images_of: '{member}' of {path} is {dtype} of shape {shape}; images are uint8 (N, height, width, 3), "
            "in C order, one or more."
        )
    return shape


def coloured(images: np.ndarray) -> np.ndarray:
    """Return images with three channels; grey ones are repeated."""
    return np.repeat(images, 3, -1) if images.shape[-1] == 1 else images


def _in_folder(root):
    for file in sorted(file for file in root.rglob("*") if file.suffix.lower() in SUFFIXES):
        yield str(file), file


def _in_zip(path):
    with zipfile.ZipFile(path) as archive:
        for name in sorted(archive.namelist()):
            hidden = name.startswith("__MACOSX/")
            if Path(name).suffix.lower() in SUFFIXES and not hidden:
                try:
                    content = archive.read(name)
                except zipfile.BadZipFile as error:
                    raise ValueError(f"images_of: {name} in {path} is damaged: {error}.") from None
                yield f"{name} in {path}", io.BytesIO(content)


def _batches(path, files, batch):
    """Collect images into batches; all have one size."""
    held, first = [], None
    for name, file in files:
        image = _decoded(name, file)
        first = first or (name, image.shape)
        if image.shape != first[1]:
            raise ValueError(
                f"images_of: {name} is {image.shape[0]} x {image.shape[1]} and {first[0]} is {first[1][0]} x "
                f"{first[1][1]}; features are compared at one size. Crop or resize the images first."
            )
        held.append(image)
        if len(held) == batch:
            yield np.stack(held)
            held = []
    if held:
        yield np.stack(held)
    if first is None:
        raise ValueError(f"images_of: no image in {path}; it looks for {', '.join(SUFFIXES)}.")


def _decoded(name, file):
    try:
        with Image.open(file) as opened:
            deep = opened.mode in DEEP
        if isinstance(file, io.BytesIO):
            file.seek(0)
        if not deep:
            return upright(cast(Any, file))
    except UNREADABLE as error:
        raise ValueError(f"images_of: {name} cannot be read ({error}). Mend or remove it.") from None
    raise ValueError(f"images_of: {name} has more than 8 bits a channel; turn it into 8 bits by a rule of your own.")
