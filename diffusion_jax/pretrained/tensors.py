"""Folders as transformers and diffusers write them: a config.json beside weights in one file or several.

    model.safetensors                                    or  diffusion_pytorch_model.safetensors
    model.safetensors.index.json, model-00001-of-00002.safetensors, ...
    model.fp16.safetensors                               a variant, on request
    pytorch_model.bin                                    where there are no safetensors

Names and shapes are read first, and tensors one at a time; only a file of PyTorch's is read whole.
"""

import functools
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from diffusion_jax.pretrained import safetensors_file
from diffusion_jax.pretrained.weights import read_weights

CONFIG = "config.json"
STEMS = ("model", "diffusion_pytorch_model", "pytorch_model")


class Tensors(NamedTuple):
    """Arrays by name that are not read yet: their shapes, how to read one, where they are, and their dtypes."""

    shapes: Mapping[str, tuple[int, ...]]
    read: Callable[[str], np.ndarray]
    source: str
    dtypes: Mapping[str, np.dtype] = {}


def read_config(folder: str | Path, kinds: tuple[str, ...], wanted: str) -> dict[str, Any]:
    """Read a folder's config.json, whose `model_type` must be one of `kinds`; `wanted` says what for, in errors."""
    path = Path(folder).expanduser() / CONFIG
    if not path.is_file():
        raise ValueError(
            f"{wanted}: there is no {path}. The folder must be one that transformers or diffusers writes: "
            "config.json beside model.safetensors."
        )
    config = read_json(path, wanted)
    kind = config.get("model_type") or config.get("_class_name")
    if kind not in kinds:
        raise ValueError(f"{wanted}: {path} is of a {kind!r}; it must be of {' or '.join(map(repr, kinds))}.")
    if config.get("quantization_config"):
        raise ValueError(f"{wanted}: {path} is of weights that were quantised; take those of full precision.")
    return config


def read_json(path: Path, wanted: str) -> dict[str, Any]:
    """Read a file that describes something; `wanted` says what for, in errors."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{wanted}: {path} is not JSON ({error}).") from None
    return found if isinstance(found, dict) else {}


@contextmanager
def of_config(source: str | Path) -> Iterator[None]:
    """Say of a network that cannot be built where it was described: configs and shapes are strangers'."""
    try:
        yield
    except (KeyError, TypeError, IndexError, AttributeError, ArithmeticError) as error:
        raise ValueError(
            f"{source}: the network that it describes cannot be built ({type(error).__name__}: {error})."
        ) from error


def check_known(config: Mapping[str, Any], known: Mapping[str, tuple], source: str | Path) -> None:
    """Refuse a config in which an entry, if it is there, is none of those that are known."""
    for name, values in known.items():
        if name in config and config[name] not in values:
            raise ValueError(
                f"{source}: its config has {name}={config[name]!r}; known is {' or '.join(map(repr, values))}."
            )


def open_tensors(folder: str | Path, *, variant: str = "") -> Tensors:
    """Find the weights of a folder, of a `variant` such as "fp16" if asked, and read their names and shapes."""
    return _of_files(weight_files(folder, variant=variant))


def weight_files(folder: str | Path, *, variant: str = "") -> list[Path]:
    """Find the files of a folder's weights, one or several."""
    folder = Path(folder).expanduser()
    for stem in STEMS:
        for ending in ("safetensors", "bin"):
            whole = folder / ".".join(filter(None, (stem, variant, ending)))
            index = folder / ".".join(filter(None, (stem, ending, "index", variant, "json")))
            if whole.is_file():
                return [whole]
            if index.is_file():
                return _shards(index)
    found = sorted(path.name for path in folder.glob("*") if path.suffix in (".safetensors", ".bin"))
    raise ValueError(
        f"{folder} has no model.safetensors{f' of the variant {variant!r}' if variant else ''}; of weights it has "
        f"{', '.join(found) or 'none'}. A name like model.fp16.safetensors is the variant 'fp16'."
    )


def identity(folder: str | Path, *, variant: str = "") -> str:
    """Return 16 digits of the sha256 of what is read of a folder: its config.json and its weights."""
    return identity_of((Path(folder).expanduser() / CONFIG, *weight_files(folder, variant=variant)))


def identity_of(paths: Iterable[Path]) -> str:
    """Return 16 digits of the sha256 of files, by their names and what is in them."""
    total = hashlib.sha256()
    for path in paths:
        about = path.stat()
        total.update(f"{path.name};".encode())
        total.update(_digest(path, about.st_size, about.st_mtime_ns))
    return total.hexdigest()[:16]


@functools.lru_cache(maxsize=256)
def _digest(path, size, time):
    """Return the sha256 of a file, which is read once while it stays as it is."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def check_identity(folder: str | Path, known: str, *, variant: str = "") -> None:
    """Refuse a folder that has not the identity it had; "" is known of none."""
    refuse_others(folder, identity(folder, variant=variant) if known else "", known)


def refuse_others(folder: str | Path, found: str, known: str) -> None:
    """Refuse what is in a folder if its identity is another than it was."""
    if found != known:
        raise ValueError(
            f"{folder} holds other files than when this run was made (their hash is {found} and was {known}): put the "
            "old ones back, or import the new ones into a folder of their own."
        )


def open_file(path: str | Path) -> Tensors:
    """Read the names and the shapes of one file of weights, whatever its format."""
    path = Path(path).expanduser()
    if not path.is_file():
        raise ValueError(f"weights: {path} is no file.")
    return _of_files([path])


def of_arrays(arrays: Mapping[str, np.ndarray], source: str) -> Tensors:
    """Return tensors that are in memory."""
    shapes = {name: tuple(np.shape(array)) for name, array in arrays.items()}
    return Tensors(shapes, arrays.__getitem__, source, {name: array.dtype for name, array in arrays.items()})


def behind(tensors: Tensors, prefix: str) -> Tensors:
    """Return the tensors whose names begin with a prefix, without it."""
    own = {name.removeprefix(prefix): name for name in tensors.shapes if name.startswith(prefix)}
    shapes = {name: tensors.shapes[whole] for name, whole in own.items()}
    dtypes = {name: tensors.dtypes[whole] for name, whole in own.items() if whole in tensors.dtypes}
    return Tensors(shapes, lambda name: tensors.read(prefix + name), tensors.source, dtypes)


def count(shapes: Mapping[str, Any], pattern: str) -> int:
    """Count the numbers from 0 with which a name is there."""
    number = 0
    while pattern.format(number) in shapes:
        number += 1
    return number


def _shards(index):
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{index} is not an index of weights ({type(error).__name__}: {error}).") from None
    if not names or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{index} is not an index of weights: of files it names {names or 'none'}.")
    missing = [name for name in names if Path(name).name != name or not (index.parent / name).is_file()]
    if missing:
        raise ValueError(f"{index} names {', '.join(missing)}, where there is no file; download the rest.")
    return [index.parent / name for name in names]


def _of_files(paths):
    shapes, readers, dtypes = {}, {}, {}
    for path in paths:
        found = _of_safetensors(path) if path.suffix == ".safetensors" else of_arrays(read_weights(path), str(path))
        twice = sorted(found.shapes.keys() & shapes.keys())
        if twice:
            raise ValueError(f"{path} and another file of its folder both hold {twice[0]}.")
        shapes |= found.shapes
        dtypes |= found.dtypes
        readers |= dict.fromkeys(found.shapes, found.read)
    source = str(paths[0] if len(paths) == 1 else paths[0].parent)
    return Tensors(shapes, lambda name: readers[name](name), source, dtypes)


def _of_safetensors(path):
    found = safetensors_file.entries(path)
    shapes = {name: entry.shape for name, entry in found.items()}
    dtypes = {name: entry.dtype for name, entry in found.items()}
    return Tensors(shapes, lambda name: safetensors_file.read(path, found[name]), str(path), dtypes)
