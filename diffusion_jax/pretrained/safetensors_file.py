"""Files of safetensors, by their own format, so that no more of one is in memory than the tensor that is read.

    n, 8 bytes, the least first  |  n bytes of JSON: name -> dtype, shape, where it begins and ends  |  the data

A tensor is mapped when it is read, alone, so that it is copied once, to where it goes. A header is held against the
file before anything is read: tensors must follow each other without a gap and end where the file ends.
"""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from diffusion_jax.files import replacing

MOST = 100_000_000  # bytes of a header, as in the format's description
METADATA = "__metadata__"


class Entry(NamedTuple):
    """A tensor of a file, and where in the file it begins."""

    dtype: np.dtype
    shape: tuple[int, ...]
    start: int


def entries(path: Path) -> dict[str, Entry]:
    """Read what a file holds, or refuse it."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(MOST, size - 8):
            raise ValueError(
                f"weights: {path} is not a whole safetensors file: its header would have {length} bytes, the file has "
                f"{size} and a header at most {MOST}. Download it again."
            )
        header = file.read(length)
    try:
        found = json.loads(header)
        found.pop(METADATA, None)
        parts = [_entry(name, spec, 8 + length) for name, spec in found.items()]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"weights: {path} is not a whole safetensors file: its header is no description of tensors "
            f"({type(error).__name__}: {error}). Download it again."
        ) from None
    place = 8 + length
    for name, entry, stop in sorted(parts, key=lambda part: (part[1].start, part[2])):
        if entry.start != place or stop - entry.start != math.prod(entry.shape) * entry.dtype.itemsize:
            raise ValueError(
                f"weights: {path} is not a whole safetensors file: '{name}', {entry.dtype} of {entry.shape}, lies at "
                f"bytes {entry.start} to {stop}, where {place} was to come. Download it again."
            )
        place = stop
    if place != size:
        raise ValueError(
            f"weights: {path} is not a whole safetensors file: its tensors end at byte {place}, and it has {size}. "
            "Download it again."
        )
    return {name: entry for name, entry, _ in parts}


def read(path: Path, entry: Entry) -> np.ndarray:
    """Read one tensor, of which no more is in memory than is used and nothing when it is dropped."""
    count = math.prod(entry.shape) * entry.dtype.itemsize
    if not count:
        return np.empty(entry.shape, entry.dtype)
    data = np.memmap(path, np.uint8, "r", entry.start, count)
    return np.asarray(data).view(entry.dtype).reshape(entry.shape)


def write(path: Path, specs: Mapping[str, tuple[np.dtype, tuple[int, ...]]], read: Callable[[str], Any]) -> None:
    """Write a file of these names, dtypes and shapes, of which `read` gives one array at a time."""
    header: dict[str, Any] = {METADATA: {"format": "pt"}}  # without it transformers refuses to read
    place = 0
    for name, (dtype, shape) in specs.items():
        stop = place + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": _CODES[dtype], "shape": shape, "data_offsets": (place, stop)}
        place = stop
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with replacing(path) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in specs:
            file.write(np.ascontiguousarray(read(name)).reshape(-1).view(np.uint8).data)


def _entry(name, spec, data):
    """Return a name, its entry and where it ends."""
    shape, (start, stop) = tuple(spec["shape"]), spec["data_offsets"]
    if not all(isinstance(number, int) and number >= 0 for number in (*shape, start, stop)):
        raise ValueError(f"'{name}' has the shape {shape} and lies at {start} to {stop}")
    return name, Entry(_KNOWN[spec["dtype"]], shape, data + start), data + stop


_NAMES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "BOOL": "bool",
    "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8",
    "U64": "uint64", "U32": "uint32", "U16": "uint16", "U8": "uint8",
    "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2",
}  # fmt: skip
_KNOWN = {code: np.dtype(getattr(ml_dtypes, name, name)) for code, name in _NAMES.items()}
_CODES = {dtype: code for code, dtype in _KNOWN.items()}
