"""Images in a folder: sub-folders are classes, captions lie beside the images or in one file.

    photos/cats/1.png  photos/cats/1.txt  photos/dogs/2.jpg        classes "cats" and "dogs", a caption for the first
    photos/captions.json   {"cats/1.png": "a cat", ...}
    photos/captions.jsonl  {"file": "cats/1.png", "caption": "a cat"} on each line
    hints/cats/1.png  hints/dogs/2.png                             images that steer, each as large as its own

Files are taken in the order of their names. An image that cannot be read is replaced by the next one that can, with
that one's label and caption, so that number and order of the examples never depend on who reads them; each such file
is named in the log, and more than `max_corrupt` of them in one process are an error.
"""

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import SupportsIndex

import numpy as np
from PIL import Image, ImageOps

from diffusion_jax.data.source import BYTES, Example, Info, Shape, place

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)
CAPTION_FILES = ("captions.json", "captions.jsonl")


class Folder:
    """A source of the images below a folder: uint8, RGB, each of its own size, upright, on white if transparent."""

    def __init__(
        self,
        *,
        root: Path,
        files: list[str],
        captions: Mapping[str, str] | None,
        max_corrupt: int,
        hints: Mapping[str, Path] | None = None,
    ):
        self._root, self._files, self._captions, self._hints = root, files, captions, hints
        self._max_corrupt, self._corrupt = max_corrupt, {}
        owners = [file.split("/")[0] if "/" in file else "" for file in files]
        classes = tuple(sorted(set(owners)))
        shapes: dict[str, Shape] = {"x": (None, None, 3)}
        if classes != ("",):
            if "" in classes:
                raise ValueError(
                    f"folder: {root} has images both beside and inside its sub-folders, like '{files[0]}'; move them "
                    "into a sub-folder of their own, which is then a class, or read one sub-folder alone."
                )
            self._labels = np.searchsorted(classes, owners).astype(np.int32)
            shapes["label"] = ()
        if captions is not None:
            shapes["caption"] = ()
        if hints is not None:
            shapes["hint"] = (None, None, 3)
        self.info = Info("folder", shapes, classes if "label" in shapes else (), BYTES)

    @property
    def corrupt(self) -> tuple[str, ...]:
        """The files that this process could not read so far."""
        return tuple(sorted(self._corrupt))

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: SupportsIndex) -> Example:
        first = place(index, len(self))
        for step in range(len(self)):
            index = (first + step) % len(self)
            x = self._pixels(self._files[index])
            if x is not None:
                break
        else:
            raise ValueError(f"folder: none of the {len(self)} images in {self._root} can be read.")
        example: Example = {"x": x}
        if "label" in self.info.shapes:
            example["label"] = self._labels[index]
        if self._captions is not None:
            example["caption"] = self._captions[self._files[index]]
        if self._hints is not None:
            example["hint"] = self._hint(self._files[index], x.shape)
        return example

    def _hint(self, file, shape):
        """Return the hint of an image, which must be as large."""
        assert self._hints is not None
        hint = upright(self._hints[file])
        if hint.shape != shape:
            raise ValueError(
                f"folder: the hint {self._hints[file]} is {hint.shape[0]} x {hint.shape[1]}, and its image {file} is "
                f"{shape[0]} x {shape[1]}; they must be of one size."
            )
        return hint

    def _pixels(self, file):
        """Return one image's pixels, or None if it cannot be read and may be skipped."""
        if file in self._corrupt:
            return None
        try:
            return upright(self._root / file)
        except UNREADABLE as error:
            self._corrupt[file] = str(error)
            logging.getLogger(__name__).warning("skipped the image %s: %s", self._root / file, error)
            if len(self._corrupt) > self._max_corrupt:
                names = ", ".join(str(self._root / name) for name in self.corrupt)
                raise ValueError(
                    f"folder: {len(self._corrupt)} images cannot be read, where max_corrupt allows "
                    f"{self._max_corrupt}: {names} ({error}). Mend or remove them, or allow more."
                ) from error
            return None


def folder(*, path: str | os.PathLike, max_corrupt: int = 0, hints: str | os.PathLike = "") -> Folder:
    """Read the images below `path`; at most `max_corrupt` unreadable ones are skipped.

    Below `hints` lie images of the same names, whatever their endings, that steer a control network.
    """
    root = Path(path).expanduser()
    files = _images_below(root)
    steering = _hints(Path(hints).expanduser(), files) if hints else None
    return Folder(root=root, files=files, captions=_captions(root, files), max_corrupt=max_corrupt, hints=steering)


def upright(file: str | os.PathLike) -> np.ndarray:
    """Read an image (H, W, 3) in uint8: turned as its camera says, on white where it is transparent."""
    with Image.open(file) as opened:
        image = ImageOps.exif_transpose(opened)
        if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        return np.asarray(image.convert("RGB"))


def _images_below(root):
    """List the images below a folder by their names from there, in order."""
    if not root.is_dir():
        raise ValueError(f"folder: {root} is not a folder.")
    found = (Path(where, name) for where, _, names in os.walk(root, followlinks=True) for name in names)
    files = sorted(file.relative_to(root).as_posix() for file in found if file.suffix.lower() in SUFFIXES)
    if not files:
        raise ValueError(f"folder: no image below {root}; it looks for {', '.join(SUFFIXES)}.")
    return files


def _hints(root, files):
    """Return each image's hint."""
    named = {Path(file).with_suffix("").as_posix(): root / file for file in _images_below(root)}
    missing = [file for file in files if Path(file).with_suffix("").as_posix() not in named]
    if missing:
        raise ValueError(f"folder: {len(missing)} of {len(files)} images have no hint in {root}, like '{missing[0]}'.")
    return {file: named[Path(file).with_suffix("").as_posix()] for file in files}


def _captions(root, files):
    """Return each file's caption, or None if there are none."""
    named = [root / name for name in CAPTION_FILES if (root / name).is_file()]
    beside = [file for file in files if (root / file).with_suffix(".txt").is_file()]
    if len(named) + bool(beside) > 1:
        raise ValueError(f"folder: {root} has captions in several forms; keep one of .txt, {', '.join(CAPTION_FILES)}.")
    if named:
        captions = _listed(named[0])
    elif beside:
        captions = {file: (root / file).with_suffix(".txt").read_text(encoding="utf-8").strip() for file in beside}
    else:
        return None
    missing = [file for file in files if file not in captions]
    if missing:
        raise ValueError(
            f"folder: {len(missing)} of {len(files)} images in {root} have no caption, like '{missing[0]}'. Give it an "
            "empty one if it shall have none."
        )
    return captions


def _listed(file):
    """Read captions.json or captions.jsonl."""
    text = file.read_text(encoding="utf-8")
    try:
        if file.suffix == ".json":
            return {str(name): str(caption) for name, caption in json.loads(text).items()}
        rows = [json.loads(line) for line in text.splitlines() if line.strip()]
        return {row["file"]: row["caption"] for row in rows}
    except (json.JSONDecodeError, AttributeError, TypeError, KeyError) as error:
        form = '{"file": "caption", ...}' if file.suffix == ".json" else '{"file": ..., "caption": ...} on each line'
        raise ValueError(f"folder: {file} is not of the form {form}: {error!r}.") from None
