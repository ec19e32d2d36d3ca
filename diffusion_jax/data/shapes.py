"""Images of coloured shapes, drawn from their index: data without a download whose every attribute is known.

An image shows one or more shapes of one kind, colour and size on a grey level. With d(p) the signed distance from
pixel p to the outline, in pixels, and c(p) the share of the pixel that is covered,

    c(p) = clip(1/2 - d(p), 0, 1),        x(p) = (1 - c(p)) background + c(p) colour.                         (1)

The class is the kind and the colour. Sizes come from two separate bands, "small" and "large", so that each word is
certain. `attributes.py` reads all of it back from pixels, and so tells how many generated images show what was asked.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple, SupportsIndex

import numpy as np

from diffusion_jax.data.chance import SCENE, check_seed, generator
from diffusion_jax.data.source import BYTES, Example, Info, place
from diffusion_jax.naming import lookup

REACH = 1.1  # no shape goes farther from its centre, in radii
BANDS = (("small", 0.22, 0.26), ("large", 0.36, 0.40))  # radii, in units of what one shape has for itself
LEAST_UNIT = 12  # pixels; in less, small shapes are no longer told apart
ENTRIES = ("x", "label", "caption", "mask", "edges")
NUMBERS = ("no", "a", "two", "three", "four", "five", "six", "seven", "eight", "nine")


class Scene(NamedTuple):
    """What an image shows: `centres` (count, 2) as (x, y) and `radius` in pixels, from the top left corner."""

    kind: str
    colour: str
    size: str
    position: str
    centres: np.ndarray
    radius: float
    background: int

    @property
    def caption(self) -> str:
        """Describe the scene in words, like "two small red circles on the left"."""
        count = len(self.centres)
        plural = "" if count == 1 else "es" if self.kind.endswith("s") else "s"
        where = "in the middle" if self.position == "middle" else f"at the {self.position}"
        where = f"on the {self.position}" if self.position in ("left", "right") else where
        return f"{NUMBERS[count]} {self.size} {self.colour} {self.kind}{plural} {where}"


class Shapes:
    """A source of drawings: image i and all that is said of it depend on the seed and i alone."""

    def __init__(self, *, side, kinds, colours, counts, background, entries, examples, seed):
        self.side, self.kinds, self.colours, self.counts = side, kinds, colours, counts
        self.unit = side / _cells(counts[1])
        classes = tuple(f"{colour} {kind}" for kind in kinds for colour in colours)
        shapes = {"x": (side, side, 3), "label": (), "caption": (), "mask": (side, side, 1), "edges": (side, side, 1)}
        self.info = Info("shapes", {name: shapes[name] for name in entries}, classes, BYTES)
        self._background, self._examples, self._seed = background, examples, seed

    def __len__(self) -> int:
        return self._examples

    def __getitem__(self, index: SupportsIndex) -> Example:
        scene = self.scene(index)
        covered = self.covered(scene)
        colour = np.asarray(COLOURS[scene.colour], np.float64)
        x = scene.background + covered[..., None] * (colour - scene.background)
        example: Example = {"x": np.floor(x + 0.5).astype(np.uint8)}
        if "label" in self.info.shapes:
            example["label"] = np.int32(place(index, len(self)) % self.info.num_classes)
        if "caption" in self.info.shapes:
            example["caption"] = scene.caption
        if "mask" in self.info.shapes:
            example["mask"] = np.uint8(255) * (covered >= 0.5)[..., None]
        if "edges" in self.info.shapes:
            example["edges"] = np.uint8(255) * outline(covered >= 0.5)[..., None]
        return {name: example[name] for name in self.info.shapes}

    def scene(self, index: SupportsIndex) -> Scene:
        """Say what image `index` shows; classes take turns, the rest is drawn."""
        index = place(index, len(self))
        kind, colour = divmod(index % self.info.num_classes, len(self.colours))
        draw = generator(SCENE, self._seed, example=index)
        count = int(draw.integers(self.counts[0], self.counts[1] + 1))
        size, low, high = BANDS[draw.integers(len(BANDS))]
        radius = float(draw.uniform(low, high)) * self.unit
        cells = _cells(count)
        cell = self.side / cells
        corner = np.stack(np.divmod(draw.permutation(cells**2)[:count], cells)[::-1], 1) * cell
        margin = REACH * radius + 0.5
        centres = corner + draw.uniform(margin, cell - margin, (count, 2))
        background = int(draw.integers(self._background[0], self._background[1] + 1))
        where = position(centres, self.side)
        return Scene(self.kinds[kind], self.colours[colour], size, where, centres, radius, background)

    def covered(self, scene: Scene) -> np.ndarray:
        """Return the share (side, side) of every pixel that the shapes of a scene cover, Eq. (1)."""
        drawn = [coverage(scene.kind, (self.side, self.side), centre, scene.radius) for centre in scene.centres]
        return functools.reduce(np.maximum, drawn)


def shapes(
    *,
    side: int = 16,
    kinds: Sequence[str] = ("circle", "square", "triangle", "cross"),
    colours: Sequence[str] = ("red", "green", "blue"),
    counts: tuple[int, int] = (1, 1),
    background: tuple[int, int] = (0, 0),
    entries: Sequence[str] = ("x", "label"),
    examples: int = 60_000,
    seed: int = 0,
) -> Shapes:
    """Draw `examples` images of kinds x colours classes.

    An image shows from counts[0] to counts[1] shapes on a grey of background[0] to background[1], in 0 .. 255.
    `entries` says what an example holds beside the image `x`: label, caption, mask, edges.
    """
    for kind in kinds:
        lookup(KINDS, kind, "shape")
    for colour in colours:
        lookup(COLOURS, colour, "colour")
    for entry in entries:
        lookup(dict.fromkeys(ENTRIES), entry, "entry of shapes")
    low, high = counts
    if not 1 <= low <= high < len(NUMBERS):
        raise ValueError(f"shapes: counts is {tuple(counts)}; it must be (low, high) with 1 <= low <= high <= 9.")
    if side < LEAST_UNIT * _cells(high):
        raise ValueError(
            f"shapes: {high} shapes do not fit a side of {side}; give side={LEAST_UNIT * _cells(high)} or more."
        )
    if not 0 <= background[0] <= background[1] <= 255:
        raise ValueError(f"shapes: background is {tuple(background)}; it must be (low, high) within 0 .. 255.")
    if "x" not in entries or not kinds or not colours or examples < 1:
        raise ValueError("shapes: there must be 'x' in entries, and at least one kind, colour and example.")
    return Shapes(
        side=side,
        kinds=tuple(kinds),
        colours=tuple(colours),
        counts=(low, high),
        background=tuple(background),
        entries=tuple(dict.fromkeys(entries)),
        examples=examples,
        seed=check_seed(seed, "shapes"),
    )


def coverage(kind: str, shape: tuple[int, int], centre: np.ndarray, radius: float) -> np.ndarray:
    """Return the share of every pixel of an image (height, width) that one shape covers, Eq. (1)."""
    columns, rows = np.arange(shape[1]) + 0.5, np.arange(shape[0]) + 0.5
    across, down = (columns - centre[0])[None], (rows - centre[1])[:, None]
    return np.clip(0.5 - KINDS[kind](across, down, radius), 0.0, 1.0)


@functools.cache
def area(kind: str) -> float:
    """Return the area of a shape of radius 1."""
    return float(coverage(kind, (256, 256), np.array([128.0, 128.0]), 100.0).sum()) / 100.0**2


def outline(mask: np.ndarray) -> np.ndarray:
    """Return which pixels of masks (..., H, W) touch one outside, or the border of the image, with a side."""
    wide = np.pad(mask, [(0, 0)] * (mask.ndim - 2) + [(1, 1), (1, 1)])
    inside = wide[..., :-2, 1:-1] & wide[..., 2:, 1:-1] & wide[..., 1:-1, :-2] & wide[..., 1:-1, 2:]
    return mask & ~inside


def position(centres: np.ndarray, side: int) -> str:
    """Name where the mean of some centres lies: left, right, top, bottom, or within a tenth of the middle."""
    across, down = centres.mean(0) / side - 0.5
    if max(abs(across), abs(down)) < 0.1:
        return "middle"
    if abs(across) >= abs(down):
        return "left" if across < 0 else "right"
    return "top" if down < 0 else "bottom"


def _cells(count):
    """Return how many cells each way hold `count` shapes, one in a cell."""
    return int(np.ceil(np.sqrt(count)))


def _circle(across, down, radius):
    return np.hypot(across, down) - radius


def _square(across, down, radius):
    return np.maximum(np.abs(across), np.abs(down)) - 0.87 * radius


def _triangle(across, down, radius):
    """Apex up, the centre of mass in the middle."""
    slope = 1.65 / 0.95
    flank = (slope * np.abs(across) - down - 1.1 * radius) / np.hypot(slope, 1)
    return np.maximum(flank, down - 0.55 * radius)


def _cross(across, down, radius):
    bars = [np.maximum(np.abs(a) - radius, np.abs(b) - 0.32 * radius) for a, b in ((across, down), (down, across))]
    return np.minimum(*bars)


def _ring(across, down, radius):
    return np.abs(np.hypot(across, down) - 0.75 * radius) - 0.25 * radius


def _diamond(across, down, radius):
    return (np.abs(across) + np.abs(down) - REACH * radius) / np.sqrt(2)


KINDS = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "cross": _cross,
    "ring": _ring,
    "diamond": _diamond,
}

COLOURS = {
    "red": (230, 40, 40),
    "green": (40, 190, 60),
    "blue": (50, 90, 240),
    "yellow": (240, 210, 40),
    "magenta": (210, 50, 210),
    "cyan": (40, 200, 220),
    "orange": (245, 130, 30),
}
