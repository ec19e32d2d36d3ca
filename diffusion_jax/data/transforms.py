"""What is done to each example between its source and its batch.

A transform is made for a source's `Info` and says what that becomes. `apply(example, draw)` takes whatever chance it
needs from `draw`, a generator keyed by the seed, the epoch and the example alone, so that nothing depends on batches,
workers or hosts. Crops, flips and sizes act on `x` and on the maps drawn beside it alike.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from diffusion_jax.data import pixels
from diffusion_jax.data.augment import augment
from diffusion_jax.data.edges import edges_of
from diffusion_jax.data.source import BYTES, Info
from diffusion_jax.data.transform import IMAGES, Transform, check_entry, check_images, check_rate, on_images
from diffusion_jax.data.words import words
from diffusion_jax.naming import choose, lookup


def make_transforms(specs: Iterable[Any], info: Info) -> tuple[tuple[Transform, ...], Info]:
    """Build a row of transforms and return it with what is known of the examples in the end.

    A spec is an entry of TRANSFORMS, a name or a mapping of `name` and keywords, or a function from Info to Transform.
    """
    made = []
    for spec in specs:
        made.append(spec(info) if callable(spec) else choose(TRANSFORMS, spec, "transform", info))
        info = made[-1].info
    return tuple(made), info


def center_crop(info: Info, *, side: int) -> Transform:
    """Cut the middle square of side x side pixels out."""
    check_images(info, "center_crop", side)

    def apply(example, draw):
        return _cut_middle(example, side)

    return Transform("center_crop", _sized(info, side, side), apply)


def random_crop(info: Info, *, side: int, padding: int = 0) -> Transform:
    """Cut a square of side x side pixels out anywhere, after reflecting `padding` pixels at the borders."""
    check_images(info, "random_crop", max(side - 2 * padding, padding + 1))
    return Transform(
        "random_crop",
        _sized(info, side, side),
        lambda example, draw: _cut_anywhere(example, side, draw, padding),
        random=True,
    )


def adm_crop(info: Info, *, side: int) -> Transform:
    """Halve by averages while twice too large, then bicubic to the size, then the middle (Dhariwal & Nichol 2021)."""
    check_images(info, "adm_crop")

    def apply(example, draw):
        return _cut_middle(on_images(example, lambda image: _shortest(image, side)), side)

    return Transform("adm_crop", _sized(info, side, side), apply)


def adm_random_crop(info: Info, *, side: int, smallest: float = 0.8) -> Transform:
    """Like `adm_crop`, but of a random part: a square of at least the share `smallest` of the shorter side."""
    check_images(info, "adm_random_crop")
    if not 0 < smallest <= 1:
        raise ValueError(f"adm_random_crop: smallest is {smallest}; it must be above 0, and at most 1.")

    def apply(example, draw):
        length = int(draw.integers(side, math.ceil(side / smallest) + 1))
        return _cut_anywhere(on_images(example, lambda image: _shortest(image, length)), side, draw)

    return Transform("adm_random_crop", _sized(info, side, side), apply, random=True)


def flip(info: Info, *, rate: float = 0.5) -> Transform:
    """Turn left and right round in the share `rate` of the examples."""
    check_rate("flip", rate)
    check_images(info, "flip")

    def apply(example, draw):
        return on_images(example, lambda image: image[:, ::-1]) if draw.random() < rate else example

    return Transform("flip", info, apply, random=True)


def resize(info: Info, *, height: int, width: int, filter: str = "bicubic") -> Transform:
    """Resize to height x width by an entry of FILTERS; see `pixels.resized`."""
    check_images(info, "resize")
    lookup(pixels.FILTERS, filter, "filter")

    def apply(example, draw):
        return on_images(example, lambda image: pixels.resized(image, (height, width), filter))

    return Transform("resize", _sized(info, height, width), apply)


def to_unit(info: Info) -> Transform:
    """Turn images from uint8 to float32 in [-1, 1], by the one rule of `pixels.to_unit`."""
    if info.range != BYTES:
        raise ValueError(f"to_unit: x of '{info.name}' is no image in uint8 any more, or never was; leave it out.")
    after = info._replace(range=(-1.0, 1.0))
    return Transform("to_unit", after, lambda example, draw: on_images(example, pixels.to_unit))


def drop_label(info: Info, *, rate: float = 0.1) -> Transform:
    """Give the share `rate` of the examples the null label, which is the number of classes."""
    check_rate("drop_label", rate)
    check_entry(info, "label", "drop_label")
    null = np.int32(info.num_classes)
    if not info.num_classes:
        raise ValueError(f"drop_label: '{info.name}' does not say how many classes it has, so there is no null label.")

    def apply(example, draw):
        return example | {"label": null} if draw.random() < rate else example

    return Transform("drop_label", info, apply, random=True)


def drop_caption(info: Info, *, rate: float = 0.1) -> Transform:
    """Give the share `rate` of the examples the empty caption."""
    check_rate("drop_caption", rate)
    check_entry(info, "caption", "drop_caption")

    def apply(example, draw):
        return example | {"caption": ""} if draw.random() < rate else example

    return Transform("drop_caption", info, apply, random=True)


def edges(info: Info, *, low: float = 100.0, high: float = 200.0) -> Transform:
    """Add the `edges` of an image, white on black: see `data.edges`."""
    check_images(info, "edges")
    if info.range != BYTES:
        raise ValueError(f"edges: images of '{info.name}' are not in uint8; put it before to_unit.")
    if not 0 <= low <= high:
        raise ValueError(f"edges: low is {low} and high is {high}; they must be 0 <= low <= high.")

    def apply(example, draw):
        return example | {"edges": np.uint8(255) * edges_of(example["x"], low, high)[..., None]}

    return Transform("edges", info._replace(shapes={**info.shapes, "edges": (*info.shapes["x"][:2], 1)}), apply)


def hint(info: Info, *, of: str = "edges", channels: int = 3) -> Transform:
    """Copy an image, `edges`, `mask`, `x` itself or a `hint` that is there, into the entry `hint`, in [0, 1].

    An image of one channel is repeated to `channels`.
    """
    lookup(dict.fromkeys(IMAGES), of, "image of a hint")
    check_entry(info, of, "hint")
    height, width, found = info.shapes[of]
    if found not in (1, channels):
        raise ValueError(f"hint: '{of}' has {found} channels; they must be 1, or the {channels} that are asked for.")
    if info.range != (-1.0, 1.0) and of != "hint":
        raise ValueError(f"hint: images of '{info.name}' are not in [-1, 1]; put to_unit before.")

    def apply(example, draw):
        image = pixels.to_unit(example[of]) if example[of].dtype == np.uint8 else example[of]
        return example | {"hint": np.repeat((image + np.float32(1)) / np.float32(2), channels // found, -1)}

    return Transform("hint", info._replace(shapes={**info.shapes, "hint": (height, width, channels)}), apply)


def keep(info: Info, *, entries: Sequence[str]) -> Transform:
    """Leave every entry out but these."""
    for entry in entries:
        check_entry(info, entry, "keep")
    after = info._replace(shapes={name: shape for name, shape in info.shapes.items() if name in entries})
    return Transform("keep", after, lambda example, draw: {name: example[name] for name in after.shapes})


def condition(info: Info, *, entries: Sequence[str] = ("label",)) -> Transform:
    """Move entries into the dict `cond`, where networks look for them. It comes last."""
    for entry in entries:
        check_entry(info, entry, "condition")

    def apply(example, draw):
        rest = {name: value for name, value in example.items() if name not in entries}
        return rest | {"cond": {name: example[name] for name in entries}}

    return Transform("condition", info, apply)


def _cut_middle(example, side):
    top, left = (length // 2 for length in _room(example, side))
    return on_images(example, lambda image: image[top : top + side, left : left + side])


def _cut_anywhere(example, side, draw, padding=0):
    spare = _room(example, side - 2 * padding)
    top, left = (int(draw.integers(length + 1)) - padding for length in spare)
    height, width = example["x"].shape[:2]
    rows, columns = _reflected(top, side, height), _reflected(left, side, width)
    return on_images(example, lambda image: image.take(rows, 0).take(columns, 1))


def _room(example, side):
    """Return how much higher and wider than `side` an image is."""
    height, width = example["x"].shape[:2]
    if height < side or width < side:
        raise ValueError(f"an image of {height} x {width} has no part of {side} x {side}; adm_crop would enlarge it.")
    return height - side, width - side


def _reflected(start, count, length):
    """Return `count` places from `start` on, those outside 0 .. length - 1 reflected at the first and the last."""
    inside = np.abs(np.arange(start, start + count))
    return length - 1 - np.abs(length - 1 - inside)


def _shortest(image, length):
    """Resize so that the shorter side has `length` pixels, by halves first where it is far longer."""
    height, width = image.shape[:2]
    while min(height, width) >= 2 * length:
        height, width = height // 2, width // 2
        image = pixels.resized(image, (height, width), "box")
    scale = length / min(height, width)
    return pixels.resized(image, (round(height * scale), round(width * scale)), "bicubic")


def _sized(info, height, width):
    """Say that images are of a size from now on."""
    shapes = {name: (height, width, shape[-1]) if name in IMAGES else shape for name, shape in info.shapes.items()}
    return info._replace(shapes=shapes)


RESIZING = ("center_crop", "adm_crop", "resize")  # what gives images their size and leaves nothing to chance

TRANSFORMS = {
    "center_crop": center_crop,
    "random_crop": random_crop,
    "adm_crop": adm_crop,
    "adm_random_crop": adm_random_crop,
    "flip": flip,
    "resize": resize,
    "to_unit": to_unit,
    "drop_label": drop_label,
    "drop_caption": drop_caption,
    "augment": augment,
    "words": words,
    "edges": edges,
    "hint": hint,
    "keep": keep,
    "condition": condition,
}
