"""What a source of data is: so many examples, each found by its index.

An example is a dict of numpy arrays (and strings): `x` is what will be diffused, `label` its class, `caption` its
description, `mask` and `edges` maps of the same height and width. `source[i]` depends on i alone, so any number of
threads, processes and hosts may read at once, in any order, and see the same examples.
"""

import operator
from typing import Any, NamedTuple, Protocol, SupportsIndex, TypeAlias

import numpy as np

Example: TypeAlias = dict[str, Any]
Shape: TypeAlias = tuple[int | None, ...]

BYTES = (0.0, 255.0)  # the range of images in uint8


class Info(NamedTuple):
    """What is known of every example: the shape of each entry, with None for a length that varies.

    Label i means classes[i]; `range` holds the least and the greatest value of `x`, or None where nobody knows.
    """

    name: str
    shapes: dict[str, Shape]
    classes: tuple[str, ...] = ()
    range: tuple[float, float] | None = None

    @property
    def num_classes(self) -> int:
        """Return the number of classes, which is also the null label."""
        return len(self.classes)


class Source(Protocol):
    """Examples by index, and what is known of all of them."""

    @property
    def info(self) -> Info:
        """Say what every example looks like."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: SupportsIndex, /) -> Example: ...


def many(source: Source, indices: np.ndarray) -> list[Example]:
    """Return the examples of some indices, at once where the source has a method `many` for that."""
    at_once = getattr(source, "many", None)
    return [source[int(index)] for index in indices] if at_once is None else at_once(indices)


def place(index: SupportsIndex, length: int) -> int:
    """Return `index` as a plain number, or raise IndexError, so that iterating over a source ends."""
    index = operator.index(index)
    if not 0 <= index < length:
        raise IndexError(f"example {index} of a source of {length}.")
    return index
