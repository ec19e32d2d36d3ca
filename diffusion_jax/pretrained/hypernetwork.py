"""Hypernetworks from the files of AUTOMATIC1111's web interface, which are PyTorch's.

Such a file maps widths of contexts to pairs of state dicts, for keys and for values, and says how they are built:

    {768: ({"linear.0.weight": ..., "linear.2.weight": ...}, {...}), 320: ..., "activation_func": "relu", ...}

Its layers are numbered with what has no parameters, so they are told apart by their shapes: a matrix is a dense layer,
and a vector of scales behind it its norm. Files of before that was so have linear1 and linear2 and nothing between.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.files import trusted
from diffusion_jax.naming import lookup
from diffusion_jax.nets.hypernetwork import hypernetwork
from diffusion_jax.pretrained.rules import Pretrained, Table, linear, load, norm
from diffusion_jax.pretrained.tensors import of_arrays
from diffusion_jax.pretrained.torch_file import read_torch_tree

HALVES = ("keys", "values")


def load_hypernetwork(path: str | Path) -> Pretrained:
    """Read a hypernetwork; its config is what the file says beside its tensors."""
    arrays, config = _flat(trusted(path, "load_hypernetwork"))
    widths = tuple(dict.fromkeys(int(name.split(".")[0]) for name in arrays))
    matrices, vectors = (
        {name: array for name, array in arrays.items() if name.endswith(".weight") and array.ndim == axes}
        for axes in (2, 1)
    )
    first = [array for name, array in matrices.items() if name.startswith(f"{widths[0]}.{HALVES[0]}.")]
    module = hypernetwork(
        widths=widths,
        structure=tuple(config.get("layer_structure") or (1, *(len(array) / widths[0] for array in first))),
        activation=lookup(_ACTIVATIONS, config.get("activation_func") or "linear", f"activation_func of {path}"),
        norm=bool(vectors),
        bent_end=bool(config.get("activate_output", True)),
    )
    example = jax.ShapeDtypeStruct((1, 1, widths[0]), jnp.float32)
    return Pretrained(module, load(table_of(arrays), of_arrays(arrays, str(path)), module, (example,)), config)


def table_of(arrays: Mapping[str, np.ndarray]) -> Table:
    """Return the rules of a file, its names being like 768.keys.linear.0.weight."""
    rules, places = [], {}
    for name in sorted(arrays, key=lambda name: [int(number) for number in re.findall(r"\d+", name)]):
        if not name.endswith(".weight"):
            continue
        width, half, *_ = name.split(".")
        is_dense, layer = arrays[name].ndim == 2, name.removesuffix(".weight")
        place = places[width, half] = places.get((width, half), -1) + is_dense
        rules += (linear if is_dense else norm)(layer, f"{half}_{width}/{'dense' if is_dense else 'norm'}_{place}")
    return Table(tuple(rules))


def _flat(path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Return the tensors of a file, by their width and half, and what it says beside."""
    tree = read_torch_tree(path)
    pairs = {key: value for key, value in tree.items() if isinstance(key, int)} if isinstance(tree, dict) else {}
    if not pairs or any(len(pair) != 2 or not all(isinstance(half, dict) for half in pair) for pair in pairs.values()):
        raise ValueError(
            f"load_hypernetwork: {path} does not map widths to pairs of tensors by name; it is no hypernetwork's file."
        )
    arrays = {
        f"{width}.{half}.{re.sub('^linear([12])[.]', lambda found: f'linear.{int(found[1]) - 1}.', name)}": array
        for width, pair in pairs.items()
        for half, named in zip(HALVES, pair, strict=True)
        for name, array in named.items()
    }
    return arrays, {key: value for key, value in tree.items() if key not in pairs}


_ACTIVATIONS = {
    "linear": "linear",
    "relu": "relu",
    "leakyrelu": "leaky_relu",
    "elu": "elu",
    "swish": "silu",
    "silu": "silu",
    "gelu": "gelu",
    "mish": "mish",
    "tanh": "tanh",
    "sigmoid": "sigmoid",
}
