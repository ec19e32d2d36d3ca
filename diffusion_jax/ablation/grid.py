"""Which configs to compare: a small language of pure functions over overrides.

An arm is a mapping from dotted keys of a config to values, and a grid is a tuple of arms:

    param("schedule", ["cosine", "rectified"])       one key, several values
    product(a, b)                                     every arm of a with every arm of b
    zipped(a, b)                                      the first with the first, the second with the second
    chain(a, b)                                       the arms of a, then those of b
    prefix("training", a)                             the same with longer keys
    sample(20, {"training.rate.peak": log_uniform(1e-4, 1e-2)}, seed=0)      random search
    seeds(3)                                          param("seed", [0, 1, 2])

A value that is a mapping, such as {"name": "cosine", "offset": 0.01}, replaces an entry of the config as a whole.
"""

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

Arm = Mapping[str, Any]
Grid = tuple[dict[str, Any], ...]
Draw = Callable[[np.random.Generator], Any]


def param(key: str, values: Iterable[Any]) -> Grid:
    """Give one key each of some values."""
    values = tuple(values)
    if not key or not values:
        raise ValueError(f"param: '{key}' has {len(values)} values; it needs a key and one value or more.")
    return tuple({key: value} for value in values)


def product(*grids: Grid) -> Grid:
    """Combine every arm of each grid with every arm of the others; the last varies fastest."""
    return tuple(_joined(arms) for arms in itertools.product(*grids))


def zipped(*grids: Grid) -> Grid:
    """Combine the grids arm by arm."""
    if len({len(grid) for grid in grids}) > 1:
        raise ValueError(f"zipped: the grids have {' and '.join(str(len(grid)) for grid in grids)} arms; give as many.")
    return tuple(_joined(arms) for arms in zip(*grids, strict=True))


def chain(*grids: Grid) -> Grid:
    """Put grids one after another; an arm that comes twice is refused."""
    return _different(tuple(arm for grid in grids for arm in grid), "chain")


def prefix(name: str, grid: Grid) -> Grid:
    """Put `name` and a dot before every key."""
    return tuple({f"{name}.{key}": value for key, value in arm.items()} for arm in grid)


def sample(count: int, draws: Mapping[str, Draw], *, seed: int) -> Grid:
    """Draw `count` arms, each key by its own law; arm i is the same however many there are."""
    _check_count("sample", count)
    arms = (np.random.default_rng((seed, place)) for place in range(count))
    return tuple({key: draw(generator) for key, draw in draws.items()} for generator in arms)


def seeds(count: int) -> Grid:
    """Give each of the first `count` seeds; arms of one seed share the order of the data and all noise."""
    _check_count("seeds", count)
    return param("seed", range(count))


def uniform(low: float, high: float) -> Draw:
    """Draw evenly between two numbers."""
    return lambda generator: float(generator.uniform(low, high))


def log_uniform(low: float, high: float) -> Draw:
    """Draw evenly between the logarithms of two positive numbers."""
    if not 0 < low < high:
        raise ValueError(f"log_uniform: {low} and {high} must be positive and in order.")
    return lambda generator: float(np.exp(generator.uniform(np.log(low), np.log(high))))


def choice(values: Sequence[Any]) -> Draw:
    """Draw one of some values."""
    return lambda generator: values[int(generator.integers(len(values)))]


def names(grid: Grid) -> list[str]:
    """Name each arm by its values, in words that can be a folder's; two arms of one name are refused."""
    keys = list(dict.fromkeys(key for arm in grid for key in arm))
    short = {key: _short(key, keys) for key in keys}
    found = ["_".join(f"{short[key]}-{_word(value)}" for key, value in arm.items()) or "plain" for arm in grid]
    for name in found:
        if found.count(name) > 1:
            arms = [arm for arm, other in zip(grid, found, strict=True) if other == name]
            raise ValueError(f"two arms would both be called '{name}': {arms[0]} and {arms[1]}. Leave one out.")
    return found


def _check_count(what, count):
    if not isinstance(count, int) or count < 1:
        raise ValueError(f"{what}: count is {count!r}; it must be a whole number, 1 or more.")


def _short(key, keys):
    """Return as much of the end of a key as tells it from the others."""
    parts = key.split(".")
    for length in range(1, len(parts) + 1):
        end = ".".join(parts[-length:])
        if sum(other == end or other.endswith(f".{end}") for other in keys) == 1:
            return end
    return key


def _word(value):
    """Spell a value with letters, digits, dots and signs."""
    if isinstance(value, Mapping):
        rest = [f"{key}={_word(inner)}" for key, inner in value.items() if key != "name"]
        return "".join([str(value.get("name", "")), *(f"({word})" for word in rest)])
    if isinstance(value, tuple | list):
        return "+".join(map(_word, value)) or "none"
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return "".join(letter if letter.isalnum() or letter in ".=+-()_" else "~" for letter in text)


def _joined(arms):
    """Merge arms, none of which may set what another does, nor a part of it."""
    merged: dict[str, Any] = {}
    for arm in arms:
        for key, value in arm.items():
            for other in merged:
                if key == other or key.startswith(f"{other}.") or other.startswith(f"{key}."):
                    raise ValueError(f"'{other}' and '{key}' would both be set in one arm; take one of them.")
            merged[key] = value
    return merged


def _different(grid, what):
    for place, arm in enumerate(grid):
        if arm in grid[:place]:
            raise ValueError(f"{what}: the arm {arm} comes twice.")
    return grid
