"""Examples without content, which stand for data that are not here: of those it is known only what they are like.

A config says it in `expects`: the shape of an example's x, with None for a length that varies, its dtype, and the
number of classes. Where the data are, they are held against it.
"""

from collections.abc import Mapping
from typing import Any, SupportsIndex

import numpy as np

from diffusion_jax.data.source import BYTES, Example, Info, Source, place

VARYING = 256  # pixels, for a length that varies


class Blank:
    """A source of zeros, all of class 0."""

    def __init__(self, info: Info, dtype: str):
        self.info, self._dtype = info, dtype

    def __len__(self) -> int:
        return 2**31

    def __getitem__(self, index: SupportsIndex) -> Example:
        place(index, len(self))
        shape = [VARYING if length is None else length for length in self.info.shapes["x"]]
        label = {"label": np.int32(0)} if self.info.classes else {}
        return {"x": np.zeros(shape, self._dtype), **label}


def blank(expects: Mapping[str, Any]) -> Blank:
    """Return a source of examples such as are expected."""
    dtype, classes = expects["dtype"], tuple(map(str, range(expects["classes"])))
    shapes = {"x": tuple(expects["x"]), **({"label": ()} if classes else {})}
    return Blank(Info("blank", shapes, classes, BYTES if dtype == "uint8" else None), dtype)


def check_expected(source: Source, expects: Mapping[str, Any]) -> None:
    """Refuse data that are not as expected; where nothing is, all are."""
    if not expects:
        return
    shape, found = tuple(expects["x"]), source.info.shapes["x"]
    fits = len(shape) == len(found) and all(
        None in pair or pair[0] == pair[1] for pair in zip(shape, found, strict=True)
    )
    if not fits or expects["classes"] != source.info.num_classes:
        raise ValueError(
            f"the data '{source.info.name}' have x of shape {found} and {source.info.num_classes} classes; "
            f"config.expects says {shape} and {expects['classes']}. Name other data in config.data, or say in "
            "config.expects what these are like."
        )
