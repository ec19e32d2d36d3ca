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

import collections
import fnmatch
import functools
import math
import mmap
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import ml_dtypes
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh, NamedSharding, Sharding

from diffusion_jax.devices import split_of
from diffusion_jax.naming import lookup
from diffusion_jax.nets.initial import shapes_of
from diffusion_jax.pretrained.tensors import Tensors, of_config
from diffusion_jax.types import Params

# What takes each parameter when it is whole: a function of its path and its array; a sharding of all of them; a mesh of
# training, which splits them as training does; or None, for JAX's first device.
Put = Callable[[str, np.ndarray], Any] | Sharding | Mesh | None


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

    def apply(self, params: Params, *inputs: Any, method: str = "__call__", **named: Any) -> Any:
        """Evaluate the network, or another of its methods, with these parameters: a pure function of its inputs."""
        return self.module.apply({"params": params}, *inputs, method=method, **named)

    def __call__(self, *inputs: Any, method: str = "__call__", **named: Any) -> Any:
        """Evaluate it with its own parameters, compiled once for each shape of its inputs."""
        return _compiled(self.module, method)(self.params, *inputs, **named)


class Call(nn.Module):
    """A network that is called as its original is, by the names of its inputs; its parameters are the network's."""

    network: Any

    def setup(self):
        nn.share_scope(self, self.network)


def called(call: Callable[[Any], nn.Module], found: Any) -> Pretrained:
    """Return what was read, to be called by the names of the original."""
    return Pretrained(call(found.module), found.params, found.config)


@functools.lru_cache(maxsize=8)
def _compiled(module, method):
    return jax.jit(lambda params, *inputs, **named: module.apply({"params": params}, *inputs, method=method, **named))


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


def load(
    table: Table, tensors: Tensors, module: nn.Module, example: tuple, *, dtype: str = "float32", put: Put = None
) -> Params:
    """Read a network's parameters; of `example`, what it is called with, only shapes and dtypes matter."""
    with of_config(tensors.source):
        shapes = shapes_of(module, example)
    return convert(table, tensors, shapes, dtype=dtype, put=put)


def convert(table: Table, tensors: Tensors, shapes: Params, *, dtype: str = "float32", put: Put = None) -> Params:
    """Read tensors into parameters of these shapes, each cast on the way, and hand each to `put` when it is whole.

    Beside the one that is handed over, others of at most AHEAD bytes are read at the same time.
    """
    kept, give = lookup(_DTYPES, dtype, "dtype of parameters"), _giving(put)
    slots = _settled(table, plan(table.rules, shapes), tensors)
    if put is unread:
        return shapes
    wanted: dict[str, list[tuple[str, Slot]]] = {}
    for name, slot in slots.items():
        wanted.setdefault(slot.path, []).append((name, slot))

    def fill(path, shape):
        array = _room(shape, kept)
        for name, slot in wanted[path]:
            _copy(array[slot.place], slot.layout.ours(tensors.read(name)))
        return array

    leaves, structure = jax.tree.flatten_with_path(shapes)
    jobs = [(_joined(path), leaf.shape) for path, leaf in leaves]
    sizes = [math.prod(shape) * np.dtype(kept).itemsize for _, shape in jobs]
    # Not a comprehension, whose variable would keep an array while the next is read
    return jax.tree.unflatten(structure, list(map(give, (path for path, _ in jobs), _ahead(fill, jobs, sizes))))


def unread(path: str, array: np.ndarray) -> None:
    """Be the `put` with which a file is held against its network and none of its tensors is read."""


def export(table: Table, params: Params) -> dict[str, np.ndarray]:
    """Return the parameters under their names and in their layouts, without those that are harmless."""
    tensors = as_tensors(table, params)
    return {name: tensors.read(name) for name in tensors.shapes}


def as_tensors(table: Table, params: Params) -> Tensors:
    """Return the parameters as `export` does, each made when it is read; names are as in the table's first spelling."""
    arrays = flat(params)
    slots = {spell(name, table.spellings[0]): slot for name, slot in plan(table.rules, params).items()}

    def read(name):
        slot = slots[name]
        return np.array(slot.layout.theirs(np.asarray(arrays[slot.path])[slot.place]), order="C")

    dtypes = {name: np.dtype(arrays[slot.path].dtype) for name, slot in slots.items()}
    return Tensors({name: slot.shape for name, slot in slots.items()}, read, "these parameters", dtypes)


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
    found = [(rule, match) for rule in rules if (match := _expression(rule.ours).fullmatch(path))]
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


def _giving(put: Put) -> Callable[[str, np.ndarray], Any]:
    """Return `put` as a function of a path and an array."""
    if isinstance(put, Mesh):
        return lambda path, array: jax.device_put(array, NamedSharding(put, split_of(path, array.shape, put.shape)))
    if put is None or isinstance(put, Sharding):
        return lambda path, array: jax.device_put(array, put)
    return put


def _ahead(call, jobs, sizes):
    """Yield what a function returns for each job, in order, while others of at most AHEAD bytes are done by threads."""
    waiting, held = collections.deque(), 0
    with ThreadPoolExecutor(THREADS) as pool:
        for job, size in zip(jobs, sizes, strict=True):
            while waiting and held + size > AHEAD:
                held -= waiting[0][1]
                yield waiting.popleft()[0].result()
            waiting.append((pool.submit(call, *job), size))
            held += size
        while waiting:
            yield waiting.popleft()[0].result()


def _room(shape, dtype):
    """Return an array that begins with a page of memory, and so at a multiple of 64, which JAX need not copy on a CPU.

    Numpy would ask for pages of 2 MB, which are slow to come by where memory is in use: four times as slow as these.
    They come when they are first written to, and so while other threads copy: asked for at once, all would wait.
    """
    count = math.prod(shape) * np.dtype(dtype).itemsize
    pages = mmap.mmap(-1, max(count, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return np.frombuffer(pages, np.uint8, count).view(dtype).reshape(shape)


def _copy(target, source):
    """Cast and copy a block at a time, which stays in the cache: of a few hundred rows of theirs, by as many columns.

    Where axes move, their rows are our columns, and a block of fewer would touch a page of memory for a few numbers.
    """
    if source.ndim < 2:
        with np.errstate(invalid="ignore"):  # of what is no number
            target[...] = source
        return
    axis = 0 if source.flags.c_contiguous else source.ndim - 1
    source, target = np.moveaxis(source, axis, 0), np.moveaxis(target, axis, 0)
    half = source.dtype == np.float16
    columns = max(1, BLOCK // (ROWS * math.prod(source.shape[1:-1])))
    scratch = np.empty_like(source[:ROWS, ..., :columns], np.int32 if half else target.dtype)
    for row in range(0, source.shape[0], ROWS):
        for column in range(0, source.shape[-1], columns):
            place = slice(row, row + ROWS), ..., slice(column, column + columns)
            part = source[place]
            room = scratch[: part.shape[0], ..., : part.shape[-1]]
            with np.errstate(invalid="ignore"):
                if half:
                    part = _wide(part, room)
                elif part.dtype != target.dtype:
                    room[...] = part
                    part = room
                target[place] = part


def _wide(half, bits):
    """Return numbers of float16 in float32, five times as fast as numpy does, in the memory of integers of 32 bits."""
    np.left_shift(half.view(np.int16), 13, out=bits, dtype=np.int32)
    bits &= ~0x70000000  # the sign was copied there
    found = bits.view(np.float32)
    found *= np.float32(2.0**112)  # the exponent was 112 less
    greatest = max(found.max(initial=0), -found.min(initial=0))
    return found if greatest < 2**16 else half.astype(np.float32)  # infinities and nan


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
    coded = [f"'{name}' is {tensors.dtypes[name]}" for name in [*best, *unknown] if _coded(tensors.dtypes.get(name))]
    if coded:
        raise ValueError(
            f"{tensors.source}: {some(coded, 2)}, not floating point: these weights were quantised in a way that is "
            "not known here. Take those of full precision."
        )
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


def _coded(dtype):
    """Say whether numbers of this dtype stand for others."""
    return dtype is not None and dtype not in _NUMBERS


def _each(names, change):
    return change(names) if isinstance(names, str) else tuple(map(change, names))


@functools.cache
def _expression(pattern):
    return re.compile(re.sub(r"\\{(\w+)\\}", r"(?P<\1>\\d+)", re.escape(pattern)))


def _joined(path):
    return jax.tree_util.keystr(path, simple=True, separator="/")


ROWS, BLOCK = 256, 125_000  # of numbers; no power of two, whose rows would share lines of the cache
AHEAD, THREADS = 2**28, min(4, os.cpu_count() or 1)
_DTYPES = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16}
_NUMBERS = tuple(np.dtype(dtype) for dtype in (np.float16, ml_dtypes.bfloat16, np.float32, np.float64))
