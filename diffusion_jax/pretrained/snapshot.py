"""Networks out of the pickles that NVIDIA's codes write (EDM, EDM2, StyleGAN), without running what is in them.

Such a file holds, of every layer, the source code of its class, which its own reader executes, and what the layer had:

    _reconstruct_persistent_obj({"class_name": "Conv2d", "module_src": "import ...", "state": {"_parameters": ...}})

Here no name in the file leads to anything that exists. Each becomes a husk, a class that is made for it and keeps what
it is given and does nothing else, so a pickle may call what it likes. The exception are the names that make tensors,
which are those of `torch_file`, and bytes are read as there. What is left is walked as a tree of layers.
"""

import io
import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from diffusion_jax.pretrained.torch_file import NONSENSE, Storage, Tensor, array_of, in_sequence, known_names


class Snapshot(NamedTuple):
    """Tensors by name, as in "ema.model.enc.32x32_conv.weight", and how each network of the file was built.

    `built` maps its name, as in "ema", to its class and to those of its keywords that are plain data.
    """

    tensors: dict[str, np.ndarray]
    built: dict[str, tuple[str, dict[str, Any]]]


def read_snapshot(path: str | Path) -> Snapshot:
    """Read the networks of a pickle; what else is in it is left out."""
    path = Path(path).expanduser()
    if not path.is_file():
        raise ValueError(f"read_snapshot: there is no file {path}.")
    with open(path, "rb") as file:
        reader = _Reader(path, file)
        try:
            return _snapshot(path, reader.load(), reader.numbers)
        except (EOFError, pickle.UnpicklingError, *NONSENSE) as error:
            raise ValueError(
                f"read_snapshot: {path} is no pickle, or damaged or not whole ({type(error).__name__}: {error})."
            ) from None


def _snapshot(path, tree, numbers) -> Snapshot:
    networks = {str(name): value for name, value in _entries(tree).items() if _is_layer(value)}
    found = [
        (f"{name}.{inner}", tensor) for name, layer in networks.items() for inner, tensor in _tensors(layer, set())
    ]
    if not found:
        raise ValueError(f"read_snapshot: {path} holds no networks by name; it is a pickle of something else.")
    tensors = {name: array_of(path, name, tensor, numbers) for name, tensor in found}
    return Snapshot(tensors, {name: _built(layer) for name, layer in networks.items()})


class _Husk:
    """Whatever a pickle asks for: it keeps what it is called with and what its state is set to."""

    name = ""
    given: tuple[Any, ...]
    state: dict[Any, Any]

    def __new__(cls, *given, **_):  # which pickles may call without __init__
        husk = super().__new__(cls)
        husk.given, husk.state = given, {}
        return husk

    def __setstate__(self, state):
        self.given, self.state = (), self.state | dict(_entries(state))

    def __setitem__(self, key, value):
        self.state[key] = value

    def append(self, _):
        """Leave an entry of what may have been a list."""

    extend = add = update = append


class _Reader(pickle.Unpickler):
    """An unpickler for which nothing exists but tensors."""

    def __init__(self, path, file):
        super().__init__(file, encoding="utf-8")
        self._path, self.numbers = path, {}
        self._known = known_names() | {
            "torch.storage._load_from_bytes": lambda content: self._storage(content),
            "_codecs.encode": lambda text, _: text.encode("latin1"),  # bytes, as protocol 2 writes them
        }

    def find_class(self, module, name):
        found = self._known.get(f"{module}.{name}")
        return type("Husk", (_Husk,), {"name": name}) if found is None or isinstance(found, str) else found

    def _storage(self, content):
        """Read a storage that was saved by itself, as a file within the file."""
        storage, numbers = in_sequence(self._path, io.BytesIO(content))
        if not isinstance(storage, Storage):
            raise TypeError("a storage that is none")
        key = str(len(self.numbers))
        self.numbers[key] = numbers[storage.key]
        return storage._replace(key=key)


def _is_layer(value):
    return isinstance(value, _Husk) and "_modules" in _state(value)


def _entries(value) -> Mapping[Any, Any]:
    """Return what a mapping has, or a husk of one, and nothing of anything else."""
    value = value.state if isinstance(value, _Husk) else value
    return value if isinstance(value, Mapping) else {}


def _meta(layer) -> Mapping[Any, Any]:
    """Return what a layer that came with its code is rebuilt from."""
    return _entries(layer.given[0]) if layer.name == "_reconstruct_persistent_obj" and layer.given else {}


def _state(layer) -> Mapping[Any, Any]:
    return _entries(_meta(layer).get("state", layer))


def _tensors(layer, seen, prefix="") -> Iterator[tuple[str, Tensor]]:
    """List tensors as `named_parameters` does: a layer's own, then those of the layers within, each layer once."""
    if id(layer) in seen:
        return
    seen.add(id(layer))
    state = _state(layer)
    for kind in ("_parameters", "_buffers"):
        for name, value in _entries(state.get(kind)).items():
            if isinstance(value, Tensor):
                yield f"{prefix}{name}", value
    for name, value in _entries(state["_modules"]).items():
        if _is_layer(value):
            yield from _tensors(value, seen, f"{prefix}{name}.")


def _built(layer) -> tuple[str, dict[str, Any]]:
    """Name a network's class and its keywords."""
    keywords = _entries(_state(layer).get("_init_kwargs"))
    plain = {str(name): value for name, value in keywords.items() if _is_plain(value)}
    return str(_meta(layer).get("class_name", layer.name)), plain


def _is_plain(value):
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    if isinstance(value, dict):
        return all(_is_plain(part) for pair in value.items() for part in pair)
    return value is None or isinstance(value, str | int | float)
