"""Files of adapters of low rank, whoever wrote them, as adapters of our kernels, and back.

A file has two tensors for a layer, and perhaps a number, for what is added to its weight (`nets/lora.py`):

    down (r, in, ...),  up (out, r, ...),  alpha:       alpha / r  up down                                     (1)

Alpha is a tensor, or is noted in the file's header or in the adapter_config.json beside it, or is r. Which of our
kernels a layer is, and where in it, the rules of the network's family say, so any family's can be read; `lora_names`
takes the names apart. A file is refused before any of its matrices is read, with what is wrong with names and shapes.
"""

import fnmatch
import functools
import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from diffusion_jax.files import replacing
from diffusion_jax.naming import lookup
from diffusion_jax.nets.lora import Adapter, check_fits
from diffusion_jax.pretrained.lora_names import PARTS, layers_of, read_name, spellings_of
from diffusion_jax.pretrained.rules import Layout, Slot, Table, flat, some
from diffusion_jax.pretrained.tensors import Tensors, open_file
from diffusion_jax.types import Params

FILES = ("pytorch_lora_weights", "adapter_model")
NOTED = "lora_adapter_metadata"  # in the header, by diffusers; the same as peft's adapter_config.json


class Exported(NamedTuple):
    """What a file holds for one network: tensors by name, and what is noted of them."""

    arrays: dict[str, np.ndarray]
    noted: dict[str, Any]


class _Piece(NamedTuple):
    """The adapter of one of their layers: where it goes, what its tensors are called, and alpha / rank."""

    slot: Slot
    down: str
    up: str
    rank: int
    gain: float


def load_lora(
    path: str | Path, table: Table, shapes: Params, *, part: str = "denoiser", leave: Sequence[str] = ()
) -> Adapter:
    """Read the adapter of a network with these rules and parameters, of which only shapes matter; see PARTS.

    `path` is a file, or a folder with one. If it has adapters of other parts too, `leave` must name them.
    """
    lookup(PARTS, part, "part")
    tensors, noted = _open(path)
    slots = layers_of(table, shapes)
    pieces = _pieces(tensors, slots, _sorted(tensors, table, slots, part, leave), _config(noted, part, tensors.source))
    kernels, found = flat(shapes), {}
    for piece in pieces:
        found.setdefault(piece.slot.path, []).append(piece)
    factors, gains = {}, {}
    for name, several in found.items():
        factors[name], gains[name] = _assembled(tuple(kernels[name].shape), several, tensors)
    return Adapter(factors, gains)


def export_lora(
    adapter: Adapter, table: Table, shapes: Params, *, part: str = "denoiser", style: str = "peft"
) -> Exported:
    """Give an adapter's tensors their names, in a `style` of STYLES, and note its ranks and alphas.

    Ranks that have unequal gains in one layer, as those of joined adapters may, are written with gains of 1. Programs
    that do not read the header take alpha for r.
    """
    check_fits(shapes, adapter)
    lookup(PARTS, part, "part")
    ends = lookup(STYLES, style, "style")
    if part != "denoiser":
        ends = tuple(end.replace(".lora.", ".lora_linear_layer.") for end in ends)
    slots = layers_of(table, shapes)
    unet = any(layer.startswith("down_blocks.") for layer in slots)
    prefix = ("unet" if unet else "transformer") if part == "denoiser" else part
    arrays, ranks, alphas = {}, {}, {}
    for layer, slot in slots.items():
        if slot.path not in adapter.factors:
            continue
        down, up, gain = _taken(adapter, slot)
        if len(gain):
            arrays |= {f"{prefix}.{layer}{end}": array for end, array in zip(ends, (down, up), strict=True)}
            ranks[layer], alphas[layer] = len(down), float(np.float32(gain[0]) * np.float32(len(down)))
    reached = {slot.path for slot in slots.values()}
    if lost := sorted(adapter.factors.keys() - reached):
        raise ValueError(f"export_lora: the rules have no layer for {some(lost)}.")
    noted = {f"{prefix}.{word}": value for word, value in _notes(ranks, alphas).items()}
    return Exported(arrays, noted)


def save_lora(path: str | Path, *exported: Exported) -> None:
    """Write one file of what was exported of one network or of several."""
    arrays = {name: array for part in exported for name, array in part.arrays.items()}
    noted = {name: value for part in exported for name, value in part.noted.items()}
    if not arrays or len(arrays) != sum(len(part.arrays) for part in exported):
        raise ValueError("save_lora: there is nothing to write, or two networks have adapters of the same names.")
    header = {"format": "pt", NOTED: json.dumps(noted, indent=2, sort_keys=True)}
    with replacing(Path(path)) as file:
        file.write(safetensors.numpy.save(arrays, header))


def parts_of(path: str | Path) -> list[str]:
    """List the parts of a pipeline that a file has adapters of; names without a prefix count as the denoiser's."""
    tensors, _ = _open(path)
    return sorted({read_name(name).part or "denoiser" for name in tensors.shapes})


def _open(path) -> tuple[Tensors, dict[str, Any]]:
    """Find the file, and what is noted of it."""
    path = Path(path).expanduser()
    if path.is_dir():
        inside = [path / f"{stem}.{end}" for stem in FILES for end in ("safetensors", "bin")]
        found = next((file for file in inside if file.is_file()), None)
        if found is None:
            raise ValueError(f"load_lora: {path} has none of {', '.join(file.name for file in inside)}; name the file.")
        path = found
    tensors, beside, text = open_file(path), path.parent / "adapter_config.json", None
    if path.suffix == ".safetensors":
        file: Any = safetensors.safe_open(path, "np")
        text = (file.metadata() or {}).get(NOTED)
    if text is None and path.stem == "adapter_model" and beside.is_file():
        text = beside.read_text(encoding="utf-8")
    try:
        noted = json.loads(text or "{}")
    except json.JSONDecodeError as error:
        raise ValueError(f"load_lora: what is noted of {path} is not JSON ({error}).") from None
    if not isinstance(noted, dict):
        raise ValueError(f"load_lora: what is noted of {path} is {text!r}; it must be names and values.")
    return tensors, noted


def _config(noted, part, source) -> dict[str, Any]:
    """Return what is noted of one part, refusing what would change Eq. (1)."""
    prefixes = [prefix for prefix in PARTS[part] if prefix.endswith(".")]
    own = {name.removeprefix(p): value for name, value in noted.items() for p in prefixes if name.startswith(p)}
    config = own or {name: value for name, value in noted.items() if "." not in name}
    for word, plain in _PLAIN.items():
        if config.get(word, plain) != plain:
            raise ValueError(f"load_lora: {source} has {word}={config[word]!r}; known is {plain!r}.")
    for word in ("r", "lora_alpha"):
        if word in config and not _is_number(config[word]):
            raise ValueError(f"load_lora: {source} has {word}={config[word]!r}; it must be a number.")
    for word in ("rank_pattern", "alpha_pattern"):
        patterns = config.get(word) or {}
        if not isinstance(patterns, dict) or not all(map(_is_number, patterns.values())):
            raise ValueError(f"load_lora: {source} has {word}={patterns!r}; it must map names of layers to numbers.")
        for pattern in patterns:
            if not _END.fullmatch(pattern):
                raise ValueError(
                    f"load_lora: {source} has {word} of {pattern!r}; known are ends of names of layers, with ^ before "
                    "whole names, and .* for anything."
                )
    return config


def _is_number(value):
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _sorted(tensors, table, slots, part, leave) -> dict[str, dict[str, str]]:
    """Map each layer to the names of its tensors by role, or refuse the file for its names."""
    ways, layers, unknown, others = spellings_of(table, slots), {}, [], set()
    for name in tensors.shapes:
        read = read_name(name)
        if read.part not in ("", part):
            others.add(read.part)
            continue
        layer = ways.get(read.layer)
        if layer is None or not read.role:
            unknown.append(name)
        elif read.role in layers.setdefault(layer, {}):
            raise ValueError(
                f"load_lora: {tensors.source} has two adapters of {layer}: {layers[layer][read.role]} and {name}."
            )
        else:
            layers[layer][read.role] = name
    if unknown:
        raise ValueError(
            f"load_lora: {tensors.source} has {len(unknown)} tensors that are no adapters of layers of this network: "
            f"{some(sorted(unknown))}. It is of another network, or of another kind of adapter than up and down."
        )
    if others - set(leave):
        raise ValueError(
            f"load_lora: {tensors.source} also has adapters of {', '.join(sorted(others - set(leave)))}; read them "
            "with their own table and part, and name them in `leave` here."
        )
    missing = [
        f"{layer} has no {role}" for layer, names in layers.items() for role in ("down", "up") if role not in names
    ]
    if missing or not layers:
        raise ValueError(f"load_lora: {tensors.source} is not whole: {some(missing) or f'it has nothing for {part}'}.")
    return layers


def _pieces(tensors, slots, layers, config) -> list[_Piece]:
    """Say what goes where, or refuse the file for its shapes."""
    pieces, wrong = [], []
    for layer, names in layers.items():
        slot, down, up = slots[layer], *(_window(tensors.shapes[names[role]]) for role in ("down", "up"))
        rank, wanted = down[0] if down else 0, _window(slot.shape)
        if up[1:] != (rank,) or not rank:
            wrong.append(f"{layer} goes down by {down} and up by {up}, which are of no one rank")
        elif (up[0], *down[1:]) != wanted:
            wrong.append(f"{layer} is {wanted} and its adapter is for {(up[0], *down[1:])}")
        elif "alpha" in names and math.prod(tensors.shapes[names["alpha"]]) != 1:
            wrong.append(f"{names['alpha']} is of shape {tensors.shapes[names['alpha']]} and not one number")
        elif _noted(config, "rank_pattern", names["down"], config.get("r", rank)) != rank:
            wrong.append(f"{layer} is noted to be of another rank than {rank}")
        else:
            pieces.append(_Piece(slot, names["down"], names["up"], rank, _gain(tensors, config, names, rank)))
    if wrong:
        raise ValueError(f"load_lora: {tensors.source} does not fit this network: {some(wrong, 4)}.")
    return pieces


def _gain(tensors, config, names, rank) -> float:
    """Return alpha / rank."""
    if "alpha" in names:
        return float(np.asarray(tensors.read(names["alpha"]), np.float32).reshape(())) / rank
    alpha = _noted(config, "alpha_pattern", names["down"], config.get("lora_alpha", rank))
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _noted(config, patterns, name, otherwise):
    """Return what the first pattern that is the end of a layer's name, as the file has it, gives."""
    layer = read_name(name).layer
    for pattern, value in (config.get(patterns) or {}).items():
        end = pattern.removesuffix("$").replace(".*", "*").replace("\\.", ".")
        whole = end.removeprefix("^") if end.startswith("^") else f"*.{end}"
        if fnmatch.fnmatchcase(layer if end.startswith("^") else f".{layer}", whole):
            return value
    return otherwise


def _window(shape):
    """Return a weight's shape without a window of a single pixel."""
    return tuple(shape[:2]) if set(shape[2:]) <= {1} else tuple(shape)


def _assembled(kernel: tuple[int, ...], pieces: Sequence[_Piece], tensors: Tensors) -> tuple[dict[str, Any], Any]:
    """Lay the adapters of one of our kernels side by side; layers that go down alike share their ranks."""
    shares = [_columns(piece.slot, kernel) for piece in pieces]
    unit = math.gcd(kernel[-1], *(end for _, columns in shares for end in (columns.start, columns.stop)))
    downs: dict[tuple, list[Any]] = {}
    placed = []
    for piece, (index, columns) in zip(pieces, shares, strict=True):
        down, up = _ours(piece, tensors)
        before = downs.setdefault(index, [])
        same = (place for place, other in enumerate(before) if np.array_equal(other, down))
        place = next(same, len(before))
        before[place:] = before[place:] or [down]
        offset = sum(other.shape[-1] for other in before[:place])
        placed.append((index, slice(offset, offset + piece.rank), columns, down, up, piece.gain))
    rank = max(sum(down.shape[-1] for down in several) for several in downs.values())
    lead = kernel[: len(shares[0][0])]
    a, b = np.zeros((*kernel[:-1], rank), np.float32), np.zeros((*lead, rank, kernel[-1]), np.float32)
    gains = np.zeros((*lead, rank, kernel[-1] // unit), np.float32)
    for index, ranks, columns, down, up, gain in placed:
        a[(*index, ..., ranks)], b[(*index, ranks, columns)] = down, up
        gains[(*index, ranks, slice(columns.start // unit, columns.stop // unit))] = gain
    return {"a": jnp.asarray(a), "b": jnp.asarray(b)}, jnp.asarray(gains)


def _ours(piece, tensors):
    """Read a layer's two tensors, as (..., in, rank) and (rank, out)."""
    rows, columns, shape = _turned(piece.slot.layout, piece.slot.shape)
    down, up = (tensors.read(name) for name in (piece.down, piece.up))
    for name, array in ((piece.down, down), (piece.up, up)):
        if not jnp.issubdtype(array.dtype, jnp.floating):
            raise ValueError(f"load_lora: {tensors.source}: '{name}' is {array.dtype}; adapters are of floating point.")
    down = np.asarray(down, np.float32).reshape(piece.rank, -1)[:, columns].T
    return down.reshape(*shape[:-1], -1), np.asarray(up, np.float32).reshape(-1, piece.rank)[rows].T


def _taken(adapter, slot):
    """Return down, up and the gains of one of their layers; no gains where the adapter does not reach it."""
    factors, gains = adapter.factors[slot.path], np.asarray(adapter.gains[slot.path])
    a, b = (np.asarray(factors[name], np.float32) for name in "ab")
    index, share = _columns(slot, (*a.shape[:-1], b.shape[-1]))
    each = np.repeat(gains[index], b.shape[-1] // gains.shape[-1], axis=-1)[:, share]
    if (each != each[:, :1]).any():
        raise ValueError(f"export_lora: the gains of {slot.path} differ within one of the layers that lie in it.")
    used = each[:, 0] != 0
    gain = each[used, 0]
    rows, columns, _ = _turned(slot.layout, slot.shape)
    ranks = int(used.sum())
    down = np.empty((ranks, math.prod(slot.shape[1:])), np.float32)
    down[:, columns] = a[index][..., used].reshape(len(columns), ranks).T
    up = np.empty((slot.shape[0], ranks), np.float32)
    up[rows] = b[index][used][:, share].T
    if len(set(gain.tolist())) > 1:
        up, gain = up * gain, np.ones_like(gain)
    return down.reshape(ranks, *slot.shape[1:]), up.reshape(*up.shape, *(1,) * (len(slot.shape) - 2)), gain


def _columns(slot, kernel) -> tuple[tuple[int, ...], slice]:
    """Return which layers of a stack, and which columns, a slot is."""
    where = slot.place.index(...)
    return slot.place[:where], slot.place[where + 1] if slot.place[where + 1 :] else slice(0, kernel[-1])


@functools.cache
def _turned(layout: Layout, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray, tuple[int, ...]]:
    """Return which of their outputs and inputs each of ours is, in our order, and the shape of ours."""
    outputs = np.arange(shape[0], dtype=np.int32).reshape(-1, *(1,) * (len(shape) - 1))
    inputs = np.arange(math.prod(shape[1:]), dtype=np.int32).reshape(1, *shape[1:])
    rows, columns = (layout.ours(np.broadcast_to(numbers, shape)) for numbers in (outputs, inputs))
    first = rows[(0,) * (rows.ndim - 1)]
    if (rows != first).any() or (columns != columns[..., :1]).any():
        raise ValueError(f"a weight of {shape} is laid out in a way that an adapter cannot follow.")
    return np.array(first), np.array(columns[..., 0]).ravel(), rows.shape


def _notes(ranks: Mapping[str, int], alphas: Mapping[str, float]) -> dict[str, Any]:
    """Return the config that peft needs."""
    if not ranks:
        return {}
    rank, alpha = (Counter(numbers.values()).most_common(1)[0][0] for numbers in (ranks, alphas))
    return {
        **_PLAIN,
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {_pattern(layer): number for layer, number in ranks.items() if number != rank},
        "alpha_pattern": {_pattern(layer): number for layer, number in alphas.items() if number != alpha},
        "target_modules": sorted(layer.removeprefix(_LOST) for layer in ranks),
        "lora_dropout": 0.0,
        "use_rslora": False,
    }


def _pattern(layer):
    """Write a layer's name as the pattern that fits it alone."""
    return layer.removeprefix(_LOST) if layer.startswith(_LOST) else f"^{layer}"


# peft takes any pattern; a stranger's could take for ever, so dots are dots, and `.*` is the only thing beside names.
_END = re.compile(r"\^?(?:[\w-]|\\\.|\.\*?)+\$?")

_LOST = "text_model."  # newer versions of transformers have no such part, so only the end of a name is theirs too

# What changes the meaning of the tensors, and the only values of it that are known.
_PLAIN = {"peft_type": "LORA", "use_dora": False, "lora_bias": False, "fan_in_fan_out": False, "bias": "none"}

STYLES = {
    "peft": (".lora_A.weight", ".lora_B.weight"),
    "diffusers": (".lora.down.weight", ".lora.up.weight"),
}
