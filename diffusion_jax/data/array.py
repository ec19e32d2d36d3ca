"""Arrays as a source: in memory, in an .npz file, or in .array_record files too large for memory.

`np.savez(path, x=..., label=..., classes=...)` writes the first kind of file; `x` (N, ...) may be images in uint8 or
anything in floating point, such as latents. Pickled objects are never loaded, since loading one can run any code.

`write_records` writes the second kind. A record is one line of JSON and then the bytes of the entries in its order,
arrays little-endian and row by row, strings in UTF-8:

    {"x": ["<f4", [32, 32, 4]], "label": ["<i4", []], "caption": ["str", [11]]}\\n ... bytes ...

and beside `latents.array_record` lies `latents.array_record.json` with the names of the classes and the range of x.
"""

import functools
import json
import math
import os
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, SupportsIndex

import numpy as np

from diffusion_jax.data.source import BYTES, Example, Info, place
from diffusion_jax.files import replacing

ENTRIES = ("x", "label", "caption", "mask", "edges", "hint")
TEXT = "str"


class Arrays:
    """A source over arrays (N, ...) in memory, one for each entry of an example."""

    def __init__(self, entries: Mapping[str, np.ndarray], info: Info):
        self._entries, self.info = entries, info

    def __len__(self) -> int:
        return len(self._entries["x"])

    def __getitem__(self, index: SupportsIndex) -> Example:
        index = place(index, len(self))
        return {name: _plain(values[index]) for name, values in self._entries.items()}


class Records:
    """A source over files of `write_records`, one after another."""

    def __init__(self, paths: Sequence[str], info: Info | None = None):
        from array_record.python.array_record_data_source import ArrayRecordDataSource

        try:
            self._records = ArrayRecordDataSource(list(paths))
            count = len(self._records)
        except RuntimeError as error:
            raise ValueError(f"array: {', '.join(paths)} cannot be read; a file is not whole: {error}") from None
        if count == 0:
            raise ValueError(f"array: there is no record in {', '.join(paths)}.")
        self.info = info or _info_of(paths, unpacked(self._records[0]))

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: SupportsIndex) -> Example:
        return unpacked(self._records[place(index, len(self))])


def array(*, path: str | Sequence[str]) -> Arrays | Records:
    """Read an .npz file, or one or more .array_record files; a path may be a pattern like 'latents-*.array_record'."""
    patterns = [path] if isinstance(path, str | os.PathLike) else list(path)
    paths = [found for pattern in patterns for found in _matching(Path(pattern).expanduser())]
    suffixes = {found.suffix for found in paths}
    if suffixes == {".npz"} and len(paths) == 1:
        return _npz(paths[0])
    if suffixes == {".array_record"}:
        return Records([str(found) for found in paths])
    raise ValueError(
        f"array: path is {', '.join(map(str, paths))}; it must be one .npz file, or one or more .array_record files."
    )


def from_arrays(entries: Mapping[str, Any], *, classes: Sequence[str] = (), name: str = "array") -> Arrays:
    """Make a source of arrays by the names of the entries: `x` (N, ...), and perhaps `label` (N,), `caption` (N,) ...

    Classes are named by their numbers unless `classes` names them.
    """
    given = {entry: np.asarray(values) for entry, values in entries.items()}
    _check(given, name)
    if "label" in given:
        given["label"] = given["label"].astype(np.int32)
        classes = tuple(map(str, classes)) or tuple(map(str, range(int(given["label"].max()) + 1)))
        if given["label"].min() < 0 or given["label"].max() >= len(classes):
            low, high = given["label"].min(), given["label"].max()
            raise ValueError(f"{name}: labels go from {low} to {high}, for {len(classes)} classes, 0 and up.")
    shapes = {entry: values.shape[1:] for entry, values in given.items()}
    known = BYTES if given["x"].dtype == np.uint8 else None
    return Arrays(given, Info(name, shapes, tuple(classes) if "label" in given else (), known))


def write_records(path: str | os.PathLike, examples: Iterable[Example], *, classes: Sequence[str] = ()) -> int:
    """Write examples to an .array_record file that `array` reads, there when it is whole; return their number."""
    from array_record.python.array_record_module import ArrayRecordWriter

    path = Path(path)
    if path.suffix != ".array_record":
        raise ValueError(f"write_records: {path} must end in .array_record.")
    count = 0
    with replacing(path) as file:
        # Records are read one at a time, and latents do not compress
        writer = ArrayRecordWriter(file.name, "group_size:1,uncompressed")
        try:
            for example in examples:
                writer.write(packed(example))
                count += 1
        finally:
            writer.close()
        _describe(path, {"classes": list(classes)})
    return count


def write_npz(path: str | os.PathLike, examples: Iterable[Example], *, classes: Sequence[str] = ()) -> int:
    """Write examples to an .npz file that `array` reads, and return their number; all are held in memory."""
    path, held = Path(path), list(examples)
    if path.suffix != ".npz":
        raise ValueError(f"write_npz: {path} must end in .npz.")
    if not held:
        raise ValueError(f"write_npz: there are no examples to write to {path}; give one or more.")
    arrays: dict[str, Any] = {name: np.stack([example[name] for example in held]) for name in held[0]}
    if classes:
        arrays["classes"] = np.asarray(classes)
    with replacing(path) as file:
        np.savez(file, **arrays)
    return len(held)


def note(path: str | os.PathLike, **values: Any) -> None:
    """Note more in the file that lies beside a file of examples."""
    beside = _beside(Path(path))
    held = json.loads(beside.read_text(encoding="utf-8")) if beside.is_file() else {}
    _describe(Path(path), held | values)


def packed(example: Example) -> bytes:
    """Turn an example into a record."""
    header, parts = {}, []
    for name, value in example.items():
        if isinstance(value, str):
            parts.append(value.encode("utf-8"))
            header[name] = [TEXT, [len(parts[-1])]]
        else:
            value = np.asarray(value)
            if value.dtype.hasobject:
                raise ValueError(f"write_records: '{name}' holds Python objects; give numbers or a string.")
            value = value.astype(value.dtype.newbyteorder("<"))
            parts.append(value.tobytes())
            header[name] = [value.dtype.str, list(value.shape)]
    return b"".join([json.dumps(header).encode("ascii"), b"\n", *parts])


def unpacked(record: bytes) -> Example:
    """Turn a record back into its example."""
    start = record.index(b"\n") + 1
    example = {}
    for name, dtype, shape, count in _entries(record[:start]):
        if dtype is None:
            example[name] = record[start : start + count].decode("utf-8")
            start += count
        else:
            values = np.frombuffer(record, dtype, count, start).reshape(shape)
            example[name] = values if shape else values[()]
            start += values.nbytes
    return example


@functools.lru_cache
def _entries(header):
    """Parse the first line of a record; most records of a file have the same."""
    return [
        (name, None if dtype == TEXT else np.dtype(dtype), tuple(shape), math.prod(shape))
        for name, (dtype, shape) in json.loads(header).items()
    ]


def _npz(path):
    try:
        with np.load(path, allow_pickle=False) as file:
            held = {name: file[name] for name in file.files}
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"array: {path} holds Python objects or is damaged ({error}). Objects are not loaded, since loading one "
            "can run any code: save numbers and strings."
        ) from None
    classes = held.pop("classes", np.array([])).tolist()
    return from_arrays(held, classes=classes, name=str(path))


def _check(given, name):
    if "x" not in given:
        raise ValueError(f"{name}: there is no 'x', only {', '.join(sorted(given))}; put what is to be learned there.")
    for entry, values in given.items():
        if entry not in ENTRIES:
            raise ValueError(f"{name}: unknown entry '{entry}'. Known: {', '.join(ENTRIES)}.")
        if values.dtype.hasobject:
            raise ValueError(f"{name}: '{entry}' holds Python objects; give numbers, or strings of numpy's.")
        if values.ndim == 0 or len(values) != len(given["x"]) or len(values) == 0:
            raise ValueError(
                f"{name}: '{entry}' is {values.shape} and 'x' is {given['x'].shape}; their first lengths, the number "
                "of examples, must be the same and not 0."
            )


def _info_of(paths, example):
    """Say of records what their first one and the file beside them tell."""
    beside = _beside(Path(paths[0]))
    told = json.loads(beside.read_text(encoding="utf-8")) if beside.is_file() else {}
    if "x" not in example:
        raise ValueError(f"array: the records of {paths[0]} have no 'x', only {', '.join(sorted(example))}.")
    shapes = {name: () if isinstance(value, str) else value.shape for name, value in example.items()}
    known = BYTES if example["x"].dtype == np.uint8 else None
    return Info("array", shapes, tuple(told.get("classes", ())), known)


def _describe(path, values):
    with replacing(_beside(path)) as file:
        file.write((json.dumps(values) + "\n").encode("utf-8"))


def _beside(path):
    return path.with_name(path.name + ".json")


def _matching(pattern):
    """List the files that a path or pattern names, in the order of their names."""
    found = sorted(pattern.parent.glob(pattern.name)) if any(c in pattern.name for c in "*?[") else [pattern]
    if not found or not all(file.is_file() for file in found):
        raise ValueError(f"array: there is no file {pattern}.")
    return found


def _plain(value):
    """Return numpy's strings as Python's."""
    return str(value) if isinstance(value, np.str_) else value
