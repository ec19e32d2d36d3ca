"""Files that are whole or not there, and strangers' files, of which no pickle is read."""

import os
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a file to write in place of `path`, which changes only if all is written."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        with open(partial, "wb") as file:
            yield file
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def check_folder(path: Path, option: str) -> None:
    """Refuse a folder that is none or cannot be made, before there is something to write into it."""
    above = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    if not (above.is_dir() and _writable(above)):
        what = "a file" if not above.is_dir() else "a folder that cannot be written to"
        raise ValueError(
            f"{option} is {path}, but {above} is {what}; give another folder, or one that is not there yet."
        )


def check_file(path: Path, option: str) -> None:
    """Refuse a file that is a folder or cannot be written, before there is something to write into it."""
    if path.is_dir():
        raise ValueError(f"{option} is {path}, which is a folder; give a file.")
    check_folder(path.absolute().parent, option)


def _writable(folder):
    """Say whether something can be made in a folder, by trying."""
    try:
        with tempfile.TemporaryDirectory(dir=folder):
            return True
    except OSError:
        return False


def trusted(path: str | Path, subject: str) -> Path:
    """Return the path of a file that is there and no pickle, or raise an error that begins with `subject`."""
    path = Path(path).expanduser()
    if not path.is_file():
        raise ValueError(f"{subject}: there is no file {path}.")
    if path.suffix.lower() in (".pkl", ".pickle"):
        raise ValueError(
            f"{subject}: {path} is a pickle, and reading one can run any code. If you trust it, read it once where it "
            "came from and save its arrays, with numpy.savez or as safetensors."
        )
    return path


def read_npz(path: Path, subject: str, *, wanted: Callable[[str], bool] = lambda name: True) -> dict[str, np.ndarray]:
    """Read the arrays of an npz file whose names are `wanted`, but no objects."""
    try:
        with zipfile.ZipFile(path), np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files if wanted(name)}
    except (zipfile.BadZipFile, EOFError, OSError, ValueError) as error:
        raise ValueError(
            f"{subject}: {path} is not a whole npz file of plain arrays: {error}. A pickle under that name is refused, "
            "since reading one can run any code: save its arrays with numpy.savez."
        ) from None
