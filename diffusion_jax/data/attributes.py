"""Read kind, colour, size, place and number of shapes back from pixels: the inverse of `shapes.py`.

Grey has no chroma, so whatever the background, a pixel that is covered to a share c by a colour has the chroma

    q(p) = x(p) - mean of its channels = c(p) k,        k = the chroma of the colour.                         (1)

Pixels of strong chroma that touch are one object. Its colour is the k nearest in angle to its summed chroma; its
area and centre are moments of c = <q, k> / |k|^2, which neither noise nor a small blur moves; and its kind is the
one which, drawn there with that area, sharp or blurred, is nearest. What it leaves unexplained,

    doubt = sum |q - c_drawn k|^2 / sum |c_drawn k|^2,                                                       (2)

is some percent for a shape, noisy or blurred, and most of the whole for anything else, which is then called "none".
"""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from diffusion_jax.data.shapes import BANDS, COLOURS, KINDS, Shapes, area, coverage, position

WEAK = 0.35  # less chroma belongs to no object, where images lie in [-1, 1]
STRONG = 0.4  # nor does less than this share of what the strongest pixels have
LEAST_PIXELS = 4  # fewer are a speck
MOST_OBJECTS = 16  # no scene has so many; noise has
MOST_AREA = 0.6  # of the image; more is a background
AROUND = 2  # pixels around an object that belong to it: its smooth edge
MOST_DOUBT = 0.25
NONE = "none"


class Object(NamedTuple):
    """One thing in an image: `centre` (x, y) and `radius` in pixels."""

    kind: str
    colour: str
    centre: np.ndarray
    radius: float
    doubt: float


def read_attributes(
    images: Any, *, kinds: Sequence[str] = tuple(KINDS), colours: Sequence[str] = tuple(COLOURS)
) -> dict[str, np.ndarray]:
    """Return what each image (N, H, W, 3) shows, in uint8 or floats in [-1, 1], as a dict of arrays (N, ...).

    `kind` and `colour` are "none" where there is nothing, something else, or objects that differ; `count`;
    `position`; `centre` (N, 2), the mean over the objects; `radius`; `doubt`, the worst of Eq. (2).
    """
    pixels = _signed(images)
    found = objects(pixels, kinds=kinds, colours=colours)
    nowhere = np.full(2, np.nan)
    centres = [np.mean([one.centre for one in group], 0) if group else nowhere for group in found]
    side = pixels.shape[2]
    return {
        "kind": np.array([_agreed([one.kind for one in group]) for group in found]),
        "colour": np.array([_agreed([one.colour for one in group]) for group in found]),
        "count": np.array([len(group) for group in found]),
        "position": np.array(
            [position(c[None], side) if group else NONE for c, group in zip(centres, found, strict=True)]
        ),
        "centre": np.array(centres).reshape(-1, 2),
        "radius": np.array([np.mean([one.radius for one in group]) if group else np.nan for group in found]),
        "doubt": np.array([max((one.doubt for one in group), default=np.inf) for group in found]),
    }


def read_scenes(images: Any, source: Shapes) -> dict:
    """Read images like those of `source`; beside `read_attributes`, `size` in words and `label`, -1 for no class."""
    read = read_attributes(images, kinds=source.kinds, colours=source.colours)
    between = (BANDS[0][2] + BANDS[1][1]) / 2 * source.unit
    names = {name: label for label, name in enumerate(source.info.classes)}
    seen = [f"{colour} {kind}" for colour, kind in zip(read["colour"], read["kind"], strict=True)]
    label = np.array([names.get(name, -1) for name in seen], np.int32)
    few_or_many = (read["count"] < source.counts[0]) | (read["count"] > source.counts[1])
    size = np.where(read["radius"] < between, BANDS[0][0], BANDS[1][0])
    return read | {
        "size": np.where(read["kind"] == NONE, NONE, size),
        "label": np.where(few_or_many, -1, label).astype(np.int32),
    }


def agreement(images: Any, labels: Any, source: Shapes) -> float:
    """Return the share of images that show the class asked for: its kind and colour, in a number `source` draws."""
    return float(np.mean(read_scenes(images, source)["label"] == np.asarray(labels)))


def caption_agreement(images: Any, captions: Sequence[str], source: Shapes) -> float:
    """Return the share of images that show all that their captions say of kind, colour and size."""
    seen = read_scenes(images, source)
    known = {"kind": source.kinds, "colour": source.colours, "size": tuple(band[0] for band in BANDS)}
    shown = np.ones(len(captions), bool)
    for attribute, names in known.items():
        for place, caption in enumerate(captions):
            said = [name for name in names if re.search(rf"\b{name}(s|es)?\b", caption)]
            shown[place] &= not said or seen[attribute][place] in said
    return float(np.mean(shown))


def objects(images: np.ndarray, *, kinds: Sequence[str], colours: Sequence[str]) -> list[list[Object]]:
    """Return the objects of each image (N, H, W, 3) in [-1, 1]."""
    chroma = images - images.mean(-1, keepdims=True)
    strength = np.sqrt((chroma**2).sum(-1))
    strongest = np.sort(strength.reshape(len(images), -1), axis=1)[:, -LEAST_PIXELS]
    parts = _connected(strength > np.maximum(WEAK, STRONG * strongest)[:, None, None])
    grown = _grown(parts)
    found = []
    for image, before, after in zip(chroma, parts, grown, strict=True):
        numbers, sizes = np.unique(before[before > 0], return_counts=True)
        numbers = numbers[sizes >= LEAST_PIXELS][:MOST_OBJECTS]
        found.append([_fitted(image, after == number, kinds, colours) for number in numbers])
    return found


def _fitted(chroma, region, kinds, colours):
    """Explain one object by a kind, a colour, a centre and a radius."""
    known = np.array([COLOURS[colour] for colour in colours]) / 127.5 - 1
    known -= known.mean(1, keepdims=True)
    total = chroma[region].sum(0)
    best = np.argmax(known @ total / np.linalg.norm(known, axis=1))
    k = known[best]
    covered = np.where(region, chroma @ k / (k @ k), 0.0)
    mass = max(covered.sum(), 1e-6)
    middle = np.arange(len(chroma)) + 0.5, np.arange(chroma.shape[1]) + 0.5
    centre = np.array([covered.sum(0) @ middle[1], covered.sum(1) @ middle[0]]) / mass
    doubts, radii = [], []
    for kind in kinds:
        radii.append(float(np.sqrt(mass / area(kind))))
        sharp = coverage(kind, chroma.shape[:2], centre, radii[-1])
        doubts.append(min(_doubt(chroma, region, c[..., None] * k) for c in (sharp, _blurred(sharp))))
    nearest = int(np.argmin(doubts))
    sure = doubts[nearest] <= MOST_DOUBT and mass <= MOST_AREA * region.size
    kind, colour = (kinds[nearest], colours[best]) if sure else (NONE, NONE)
    return Object(kind, colour, centre, radii[nearest], doubts[nearest])


def _doubt(chroma, region, drawn):
    """Return Eq. (2) for the chroma of an object as it would be drawn."""
    left = ((chroma - drawn) ** 2)[region].sum() + (drawn**2)[~region].sum()
    return float(left / max((drawn**2).sum(), 1e-6))


def _blurred(covered):
    """Blur (H, W) by (1, 2, 1) / 4 each way."""
    wide = _framed(covered)
    rows = (wide[:-2] + 2 * wide[1:-1] + wide[2:]) / 4
    return (rows[:, :-2] + 2 * rows[:, 1:-1] + rows[:, 2:]) / 4


def _connected(masks):
    """Number the pieces of masks (N, H, W) whose pixels touch, corners included; 0 is outside."""
    numbers = np.where(masks, np.arange(1, masks[0].size + 1).reshape(masks.shape[1:]), 0)
    while True:
        spread = np.where(masks, _largest_around(numbers), 0)
        if (spread == numbers).all():
            return numbers
        numbers = spread


def _grown(numbers):
    """Let numbered pieces grow into the pixels around them that are nobody's."""
    for _ in range(AROUND):
        numbers = np.where(numbers > 0, numbers, _largest_around(numbers))
    return numbers


def _largest_around(numbers):
    wide = _framed(numbers)
    rows = np.maximum(np.maximum(wide[..., :-2, :], wide[..., 1:-1, :]), wide[..., 2:, :])
    return np.maximum(np.maximum(rows[..., :-2], rows[..., 1:-1]), rows[..., 2:])


def _framed(maps):
    """Put a frame of zeros around maps (..., H, W)."""
    wide = np.zeros((*maps.shape[:-2], maps.shape[-2] + 2, maps.shape[-1] + 2), maps.dtype)
    wide[..., 1:-1, 1:-1] = maps
    return wide


def _signed(images):
    images = np.asarray(images)
    if images.ndim != 4 or images.shape[-1] != 3:
        raise ValueError(f"read_attributes: images are {images.shape}; they must be (N, H, W, 3).")
    if images.dtype == np.uint8:
        return images / 127.5 - 1
    if not np.issubdtype(images.dtype, np.floating):
        raise ValueError(f"read_attributes: images are {images.dtype}; give uint8, or floats in [-1, 1].")
    return np.nan_to_num(images.astype(np.float64), posinf=0.0, neginf=0.0)


def _agreed(words):
    return words[0] if len(set(words)) == 1 else NONE
