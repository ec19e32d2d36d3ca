"""What a reference's images come to, kept on disk under a key, since a pass over a data set takes minutes."""

import hashlib
import json
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from diffusion_jax.evaluation.metrics import MOMENTS, Need
from diffusion_jax.evaluation.moments import Moments
from diffusion_jax.files import replacing


def cached(folder: Path, key: Any, needs: Sequence[Need], make: Callable[[], Mapping[Need, Any]]) -> dict[Need, Any]:
    """Return what `make` returns: from the folder, if it was kept there under the same key and has all of `needs`."""
    path = folder / f"{digest(key)[:24]}.npz"
    held = _read(path) if path.is_file() else {}
    if not set(needs) <= set(held):
        held = held | dict(make())
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as file:
            np.savez(file, **_arrays(held))
    return {need: held[need] for need in needs}


def digest(value: Any) -> str:
    """Return the sha256 of plain data: dicts, lists, numbers and strings."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def _arrays(held):
    arrays = {}
    for need, value in held.items():
        if need.form == MOMENTS:
            arrays |= {f"{need.kind}/{need.form}/{name}": np.asarray(part) for name, part in value._asdict().items()}
        else:
            arrays[f"{need.kind}/{need.form}/rows"] = value
    return arrays


def _read(path):
    """Read a file of this module; one that is damaged counts as not there."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = dict(archive)
    except (zipfile.BadZipFile, EOFError, OSError, ValueError):
        return {}
    held: dict[Need, Any] = {}
    for name in arrays:
        kind, form, part = name.split("/")
        if part == "rows":
            held[Need(kind, form)] = arrays[name]
        elif part == "count":
            stem = f"{kind}/{form}"
            held[Need(kind, form)] = Moments(int(arrays[name]), arrays[f"{stem}/mean"], arrays[f"{stem}/scatter"])
    return held
