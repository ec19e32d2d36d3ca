"""Other people's weights as our parameters, and back: a table of rules says where each number goes, and nothing else.

A rule has their name, our path and a layout. `{i}` stands for a whole number. Where both sides have it, the rule holds
for each; what only theirs has is stacked, as a scan over layers wants it:

    encoder.layers.{i}.mlp.fc1.weight  ->  blocks/dense_1/kernel       stacked over i, first axis
    down_blocks.{i}.conv.weight        ->  down_{i}/conv/kernel        one array for each i

Where only some of their layers are in a stack, the rule says which is the `first`.

Several names in a rule lie side by side along the last axis of ours, in equal shares, as queries, keys and values do.

Everything is planned from our side: the shapes of a network's parameters say which names there must be and of what
shape, so a file is refused, with the names that it lacks or has too many, before any of its tensors is read.
"""

import fnmatch
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from flax import linen as nn

from diffusion_jax.naming import lookup
from diffusion_jax.pretrained.tensors import Tensors
from diffusion_jax.types import Params


class Layout(NamedTuple):
    """How one of their arrays becomes ours, and back: axes move, numbers do not change."""

    ours: Callable[[Any], Any]
    theirs: Callable[[Any], Any]


SAME = Layout(lambda x: x, lambda x: x)
DENSE = Layout(lambda x: x.T, lambda x: x.T)  # (out, in) -> (in, out)
CONV = Layout(lambda x: x.transpose(2, 3, 1, 0), lambda x: x.transpose(3, 2, 0, 1))  # OIHW -> HWIO
POINTWISE = Layout(lambda x: x[:, :, 0, 0].T, lambda x: x.T[:, :, None, None])  # a 1 x 1 convolution -> (in, out)
SINGLE = Layout(lambda x: x[0], lambda x: x[None])  # (1, ...) -> (...)
SWAPPED = Layout(lambda x: _swapped(x), lambda x: _swapped(x))  # the second half of the outputs first


class Rule(NamedTuple):
    """Their name, or the names of parts side by side; our path; the layout; the number of the first that is stacked."""

    theirs: str | tuple[str, ...]
    ours: str
    layout: Layout = SAME
    first: int = 0


class Table(NamedTuple):
    """The rules of a family of networks.

    `harmless` maps patterns of names that may be there and are left, as in `fnmatch`, to the reason. A spelling is what
    to replace in the names of the rules, for files that spell them otherwise.
    """

    rules: tuple[Rule, ...]
    harmless: Mapping[str, str] = {}
    spellings: tuple[Mapping[str, str], ...] = ({},)


class Pretrained(NamedTuple):
    """A network, its parameters and the config.json that they came with."""

    module: nn.Module
    params: Params
    config: dict[str, Any]

    def apply(self, params: Params, *inputs: Any) -> Any:
        """Evaluate the network with these parameters, a pure function of what it is given."""
        return self.module.apply({"params": params}, *inputs)


class Slot(NamedTuple):
    """Where one of their tensors goes: to which entries of one of our arrays."""

    path: str
    place: tuple[Any, ...]
    layout: Layout
    shape: tuple[int, ...]  # of theirs


def linear(theirs: str | tuple[str, ...], ours: str, layout: Layout = DENSE) -> tuple[Rule, Rule]:
    """Give the rules of a kernel and a bias, which a network may lack."""
    weight, bias = (_each(theirs, lambda name, end=end: f"{name}.{end}") for end in ("weight", "bias"))
    return Rule(weight, f"{ours}/kernel", layout), Rule(bias, f"{ours}/bias")


def swapped(theirs: str, ours: str) -> tuple[Rule, Rule]:
    """Give the rules of a dense layer whose two halves we have in the other order, as shift and scale."""
    turned = Layout(lambda x: _swapped(x).T, lambda x: _swapped(x.T))
    return Rule(f"{theirs}.weight", f"{ours}/kernel", turned), Rule(f"{theirs}.bias", f"{ours}/bias", SWAPPED)


def norm(theirs: str, ours: str) -> tuple[Rule, Rule]:
    """Give the rules of a normalisation's scale and shift."""
    return Rule(f"{theirs}.weight", f"{ours}/scale"), Rule(f"{theirs}.bias", f"{ours}/bias")


def load(table: Table, tensors: Tensors, module: nn.Module, example: tuple, *, dtype: str = "float32") -> Params:
    """Read a network's parameters; of `example`, what it is called with, only shapes and dtypes matter."""
    shapes = jax.eval_shape(module.init, jax.random.key(0), *example)["params"]
    return convert(table, tensors, shapes, dtype=dtype)


def convert(
    table: Table, tensors: Tensors, shapes: Params, *, dtype: str = "float32", put: Callable = jnp.asarray
) -> Params:
    """Read tensors into parameters of these shapes, each cast on the way; `put` takes each array when it is whole."""
    kept = lookup(_DTYPES, dtype, "dtype of parameters")
    slots = _settled(table, plan(table.rules, shapes), tensors)
    wanted: dict[str, list[tuple[str, Slot]]] = {}
    for name, slot in slots.items():
        wanted.setdefault(slot.path, []).append((name, slot))

    def fill(path, shape):
        array = np.empty(shape.shape, kept)
        for name, slot in wanted[path]:
            tensor = tensors.read(name)
            if not jnp.issubdtype(tensor.dtype, jnp.floating):
                raise ValueError(
                    f"{tensors.source}: '{name}' is {tensor.dtype}, not floating point: these weights were quantised "
                    "in a way that is not known here. Take those of full precision."
                )
            _copy(array[slot.place], slot.layout.ours(tensor))
        return put(array)

    return jax.tree.map_with_path(lambda path, shape: fill(_joined(path), shape), shapes)


def export(table: Table, params: Params) -> dict[str, np.ndarray]:
    """Return the parameters under their names and in their layouts, without those that are harmless."""
    arrays = flat(params)
    slots = plan(table.rules, params)
    return {
        name: np.array(slot.layout.theirs(np.asarray(arrays[slot.path])[slot.place]), order="C")
        for name, slot in slots.items()
    }


def plan(rules: Iterable[Rule], shapes: Params) -> dict[str, Slot]:
    """Map each name that a file must have, as the rules spell it, to its place in parameters of these shapes."""
    rules, found = tuple(rules), {}
    for path, leaf in flat(shapes).items():
        for name, slot in _slots(rules, path, leaf.shape):
            if name in found:
                raise ValueError(f"the rules lead from '{name}' both to {found[name].path} and to {path}.")
            found[name] = slot
    return found


def flat(params: Params) -> dict[str, Any]:
    """Map paths, joined by slashes, to arrays."""
    return {_joined(path): leaf for path, leaf in jax.tree.leaves_with_path(params)}


def some(words: Sequence[str], most: int = 12) -> str:
    """Write the first words of many down."""
    more = f" and {len(words) - most} more" if len(words) > most else ""
    return ", ".join(words[:most]) + more


def spell(name: str, spelling: Mapping[str, str]) -> str:
    """Replace what a spelling replaces."""
    for ours, theirs in spelling.items():
        name = name.replace(ours, theirs)
    return name


def _slots(rules, path, shape) -> Iterator[tuple[str, Slot]]:
    """List the tensors that make one of our arrays."""
    found = [(rule, match) for rule in rules if (match := re.fullmatch(_expression(rule.ours), path))]
    if len(found) != 1:
        raise ValueError(f"{len(found)} rules lead to the parameter {path}; there must be one.")
    ((rule, match),) = found
    names = (rule.theirs,) if isinstance(rule.theirs, str) else rule.theirs
    counted = [hole for hole in dict.fromkeys(re.findall(r"{(\w+)}", names[0])) if hole not in match.groupdict()]
    inner, width = shape[len(counted) :], 0
    if len(names) > 1:
        width, rest = divmod(inner[-1], len(names))
        if rest:
            raise ValueError(f"the last axis of {path}, of {inner[-1]}, is not {len(names)} equal shares.")
        inner = (*inner[:-1], width)
    theirs = rule.layout.theirs(np.broadcast_to(np.float32(0), inner)).shape
    for index in np.ndindex(shape[: len(counted)]):
        numbers = match.groupdict() | {hole: rule.first + n for hole, n in zip(counted, index, strict=True)}
        for part, name in enumerate(names):
            columns = (slice(part * width, (part + 1) * width),) if len(names) > 1 else ()
            yield name.format(**numbers), Slot(path, (*index, ..., *columns), rule.layout, theirs)


def _copy(target, source):
    """Copy a turned matrix a few columns at a time, which are rows of theirs: three times as fast as the whole."""
    if source.ndim != 2 or source.flags.c_contiguous:
        target[...] = source
        return
    for start in range(0, source.shape[1], 16):
        target[:, start : start + 16] = source[:, start : start + 16]


def _swapped(x):
    """Swap the halves of the first axis."""
    return np.concatenate(np.split(x, 2)[::-1])


def _settled(table, slots, tensors):
    """Give the slots the file's own spelling, or refuse the file."""
    spelled = [{spell(name, spelling): slot for name, slot in slots.items()} for spelling in table.spellings]
    best = min(spelled, key=lambda names: len(names.keys() - tensors.shapes.keys()))
    missing = sorted(best.keys() - tensors.shapes.keys())
    unknown = sorted(tensors.shapes.keys() - best.keys())
    unknown = [name for name in unknown if not any(fnmatch.fnmatchcase(name, known) for known in table.harmless)]
    if missing or unknown:
        parts = [f"lacks {some(missing)}"] * bool(missing) + [f"has unknown {some(unknown)}"] * bool(unknown)
        raise ValueError(
            f"{tensors.source} does not hold the {len(best)} tensors of this network: it {' and '.join(parts)}. Its "
            "config.json is of another network, or these are weights of another kind."
        )
    wrong = [
        f"'{name}' is {tensors.shapes[name]} and not {slot.shape}"
        for name, slot in best.items()
        if tuple(tensors.shapes[name]) != slot.shape
    ]
    if wrong:
        raise ValueError(f"{tensors.source} does not fit its config.json: {some(wrong, 4)}.")
    return best


def _each(names, change):
    return change(names) if isinstance(names, str) else tuple(map(change, names))


def _expression(pattern):
    return re.sub(r"\\{(\w+)\\}", r"(?P<\1>\\d+)", re.escape(pattern))


def _joined(path):
    return jax.tree_util.keystr(path, simple=True, separator="/")


_DTYPES = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16}
