"""Pictures of diffusion: arrays in, figures out.

Planes lie in the night, where noise is shown cold and data warm, so a path reads from blue to amber; numbers stand on
paper. Figures are built without pyplot: no global state, and no window system is asked for.
"""

import itertools
import textwrap
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import LinearSegmentedColormap, Normalize, to_rgb
from matplotlib.figure import Figure
from matplotlib.textpath import TextPath
from matplotlib.ticker import LogLocator, NullLocator

MOST_COLUMNS, MOST_ROWS = 16, 12  # of a grid of images
DPI = 120
CELL, LINE = 0.8, 0.13  # inches: an image, a line of its name
LETTERS = 9  # of a name in a line
NAMES, STROKE = 10, 0.75  # points of the names of lines, and inches of a line shown beside its name
MARKED = 16  # points of a line; those of longer ones are not marked
NIGHT, PAPER, FAINT = "#0c0f1d", "#ece9e1", "#8d93ab"
TIME = LinearSegmentedColormap.from_list("time", ["#ffe08a", "#ff9a5c", "#d864a0", "#7d6be0", "#45b0f0"])
GLOW = LinearSegmentedColormap.from_list("glow", [NIGHT, "#192350", "#29346f", "#3a4090", "#504fa6"])
INKS = ("#2a78b8", "#d1622b", "#2f8f6b", "#b84a8c", "#6a58c8", "#a8841c", "#4a5068", "#35a0b5")  # of lines on paper
STROKES = ("-", (0, (5, 1.6)))  # when the inks are used up
SIDE = 160  # points along a plane at which its density is evaluated


class Plane(NamedTuple):
    """What is drawn of one plane, from the back to the front; what is None is left out.

    `log_density` is a function of points (n, 2). `paths` are positions (steps + 1, n, 2) and their times; `arrows` are
    positions and vectors (n, 2). `points` (n, 2) are coloured by `times` (n,), or as data.
    """

    title: str
    log_density: Callable[[Any], Any] | None = None
    paths: tuple[Any, Any] | None = None
    arrows: tuple[Any, Any] | None = None
    points: Any = None
    times: Any = None


class Panel(NamedTuple):
    """Lines by name, each (xs, ys) or (xs, ys, half the width of an interval), and `levels` to hold them against.

    `log` says which axes are logarithmic: "", "x", "y" or "xy".
    """

    title: str
    x: str
    y: str
    lines: Mapping[str, tuple[Any, ...]]
    levels: Mapping[str, float] = {}
    log: str = ""


def planes(*shown: Plane, limit: float, columns: int = 4) -> Figure:
    """Draw planes side by side on the same square [-limit, limit]^2, `columns` to a row."""
    columns = min(columns, len(shown))
    rows = -(-len(shown) // columns)
    size = min(4.6, 13 / columns)
    figure = Figure(figsize=(size * columns, (size + 0.35) * rows), facecolor=NIGHT)
    side = np.linspace(-limit, limit, SIDE)
    grid = np.stack(np.meshgrid(side, side), -1)
    for axes, plane in zip(figure.subplots(rows, columns, squeeze=False).flat, shown, strict=False):
        if plane.log_density is not None:
            found = np.asarray(plane.log_density(grid.reshape(-1, 2).astype(np.float32)))
            _density(axes, found.reshape(SIDE, SIDE), limit)
        _in_night(axes, limit)
        if plane.paths is not None:
            _paths(axes, *(np.asarray(part) for part in plane.paths))
        if plane.arrows is not None:
            _arrows(axes, *(np.asarray(part) for part in plane.arrows))
        if plane.points is not None:
            _points(axes, np.asarray(plane.points), plane.times)
        axes.set_title(plane.title, color=PAPER, fontsize=11, pad=6)
        axes.set_xticks([])
        axes.set_yticks([])
    for axes in list(figure.axes)[len(shown) :]:
        axes.set_visible(False)
    figure.subplots_adjust(0.01, 0.01, 0.99, 1 - 0.35 / (size + 0.35) / rows, wspace=0.04, hspace=0.14)
    return figure


def curves(*panels: Panel) -> Figure:
    """Draw panels of lines in a row; a name has one ink in all of them, and is told once."""
    names = list(dict.fromkeys(name for panel in panels for name in panel.lines))
    pens = dict(zip(names, itertools.product(STROKES, INKS), strict=False))
    told = names + list(dict.fromkeys(name for panel in panels for name in panel.levels))
    width = min(6.2 * len(panels), 13.5)  # inches
    column = STROKE + max((TextPath((0, 0), name, NAMES).get_extents().width / 72 for name in told), default=0)
    rows = -(-len(told) // max(int(width / column), 1)) if len(told) > 1 else 0
    foot = 0.62 + 0.24 * rows
    height = 3.7 + foot
    figure = Figure(figsize=(width, height), facecolor=PAPER)
    known: dict[str, Any] = {}
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for name, (xs, ys, *away) in panel.lines.items():
            stroke, ink = pens[name]
            if away:
                axes.vlines(xs, np.subtract(ys, away[0]), np.add(ys, away[0]), color=ink, linewidth=4, alpha=0.25)
            mark = "o" if len(xs) <= MARKED else ""
            (known[name],) = axes.plot(xs, ys, linestyle=stroke, marker=mark, color=ink, linewidth=1.7, markersize=4)
        for name, level in panel.levels.items():
            known[name] = axes.axhline(level, color=NIGHT, linewidth=1, linestyle=(0, (2, 2)), zorder=1)
        axes.set_title(panel.title, loc="left", fontsize=11, color=NIGHT)
        axes.set(
            xlabel=panel.x, ylabel=panel.y,
            xscale="log" if "x" in panel.log else "linear", yscale="log" if "y" in panel.log else "linear",
        )  # fmt: skip
        _on_paper(axes)
        for axis in (axes.xaxis, axes.yaxis):
            _name_ticks(axis)
    if len(told) > 1:
        style = {
            "frameon": False,
            "fontsize": NAMES,
            "loc": "lower center",
            "ncols": -(-len(told) // rows),
            "labelcolor": NIGHT,
        }
        figure.legend([known[name] for name in told], told, **style)
    side = 0.72 / width
    figure.subplots_adjust(side, (foot + 0.02) / height, 1 - 0.2 / width, 1 - 0.38 / height, wspace=0.24)
    return figure


def paths_and_samples(
    paths: Any, times: Any, samples: Any, log_density: Any, *, limit: float, title: str = ""
) -> Figure:
    """Draw paths over the data's density, and samples beside it.

    `paths` (steps + 1, n, 2) are positions at `times`, divided by |(alpha, sigma)|; `samples` (n, 2) lie in data
    space; `log_density` (m, m) is given on the square [-limit, limit]^2, rows along the second axis.
    """
    paths, times, samples = np.asarray(paths), np.asarray(times), np.asarray(samples)
    figure = Figure(figsize=(13, 7.2), facecolor=NIGHT)
    left, right = (figure.add_axes((x, 0.115, 0.46, 0.46 * 13 / 7.2 * 0.965)) for x in (0.025, 0.515))
    for axes in (left, right):
        _density(axes, log_density, limit)
    _paths(left, paths, times)
    _points(right, samples, None)
    _say(left, f"{paths.shape[1]} paths from noise to data, x / |(α, σ)|")
    _say(right, f"{len(samples)} samples, and the density they should have")
    _legend(figure, left)
    figure.text(0.025, 0.955, title, color=PAPER, fontsize=15)
    return figure


def _density(axes, log_density, limit):
    density = np.exp(np.asarray(log_density, np.float64) - np.max(log_density))
    extent = (-limit, limit, -limit, limit)
    # A root lifts the faint parts, which a linear scale would lose beside the sharpest peak.
    axes.imshow(density**0.35, origin="lower", extent=extent, cmap=GLOW, interpolation="bilinear", vmin=0, vmax=1)
    levels = np.array([0.003, 0.03, 0.2, 0.6])
    axes.contour(density, levels, origin="lower", extent=extent, colors=PAPER, linewidths=0.5, alpha=0.22)
    _in_night(axes, limit)
    axes.locator_params(nbins=7)
    axes.tick_params(colors=FAINT, labelsize=9, length=0)


def _in_night(axes, limit):
    axes.set(xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal", facecolor=NIGHT)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _on_paper(axes):
    axes.set_facecolor(PAPER)
    axes.grid(alpha=0.25)
    axes.tick_params(colors=NIGHT, labelsize=9, length=0, which="both")
    for spine in axes.spines.values():
        spine.set_visible(False)


def _name_ticks(axis):
    """Write the numbers of a logarithmic axis out where there are few powers of ten."""
    low, high = axis.get_view_interval()
    if axis.get_scale() == "log" and high < 1e3 * low and low > 1e-3:
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter("{x:g}")
        axis.set_minor_locator(NullLocator())


def _arrows(axes, positions, vectors):
    units = {"angles": "xy", "scale_units": "xy", "scale": 1}  # an arrow ends where its vector says
    width = 0.004 if len(positions) > 20 else 0.009
    axes.quiver(*positions.T, *vectors.T, color=PAPER, alpha=0.8, width=width, headwidth=4, zorder=4, **units)


def _points(axes, points, times):
    color = TIME(0.0 if times is None else np.asarray(times, float))
    axes.scatter(*points.T, s=np.clip(9000 / len(points), 2, 14), color=color, alpha=0.75, linewidths=0, zorder=3)


def _paths(axes, paths, times):
    pieces = np.stack([paths[:-1], paths[1:]], axis=2).reshape(-1, 2, 2)
    lines = LineCollection(list(pieces), cmap=TIME, norm=Normalize(0, 1), linewidths=0.9, alpha=0.7)
    lines.set_array(np.repeat((times[:-1] + times[1:]) / 2, paths.shape[1]))
    lines.set_capstyle("round")
    axes.add_collection(lines)
    axes.scatter(*paths[0].T, s=13, facecolors="none", edgecolors=TIME(1.0), linewidths=0.9)
    axes.scatter(*paths[-1].T, s=11, color=PAPER, linewidths=0, zorder=3)


def _legend(figure, axes):
    where = axes.get_position()
    bar = figure.add_axes((where.x0 + 0.1, 0.052, where.width - 0.2, 0.012))
    figure.colorbar(ScalarMappable(Normalize(0, 1), TIME), cax=bar, orientation="horizontal")
    bar.invert_xaxis()
    bar.set_xticks([])
    for spine in bar.spines.values():
        spine.set_visible(False)
    words = {"color": FAINT, "fontsize": 10, "va": "center", "transform": bar.transAxes}
    bar.text(-0.03, 0.5, "noise, t = 1  ○", ha="right", **words)
    bar.text(1.03, 0.5, "●  data, t = 0", ha="left", **words)


def _say(axes, words):
    axes.text(0.015, 0.975, words, color=PAPER, fontsize=11, va="top", transform=axes.transAxes)


def image_grid(images: Any, labels: Any = None, classes: Any = ()) -> np.ndarray:
    """Lay images (n, H, W, 3 or 1) out in a grid, each class in a column under its name; return pixels in uint8."""
    images = np.asarray(images)
    images = np.repeat(images, 3, axis=-1) if images.shape[-1] == 1 else images[..., :3]
    if labels is None:
        columns = [images[i :: max(round(len(images) ** 0.5), 1)] for i in range(max(round(len(images) ** 0.5), 1))]
        names = [""] * len(columns)
    else:
        shown = np.unique(labels)[:MOST_COLUMNS]
        columns = [images[np.asarray(labels) == label][:MOST_ROWS] for label in shown]
        names = [str(classes[label]) if label < len(classes) else str(label) for label in shown]
    names = ["\n".join(textwrap.wrap(name, LETTERS)) for name in names]
    head = 0.2 + LINE * (1 + max(name.count("\n") for name in names))  # inches
    board = _board(columns)
    width, height = (CELL * length for length in (len(columns), max(len(column) for column in columns)))
    if images.shape[2] < CELL * DPI:  # small images are shown by whole pixels
        scale = -(-int(CELL * DPI) // images.shape[2])
        board = board.repeat(scale, 0).repeat(scale, 1)
        height, width = board.shape[0] / DPI, board.shape[1] / DPI
    figure = Figure(figsize=(width, height + head), facecolor=PAPER)
    axes = figure.add_axes((0, 0, 1, height / (height + head)))
    axes.imshow(board, aspect="auto", interpolation="antialiased")
    axes.set_axis_off()
    for place, name in enumerate(names):
        centre = ((place + 0.5) / len(names), 1.0)
        axes.text(*centre, name, fontsize=8, color=NIGHT, ha="center", va="bottom", transform=axes.transAxes)
    return pixels(figure)


def _board(columns):
    """Return one image of columns of images, with a gap after each."""
    side, across = columns[0].shape[1:3]
    gap = max(1, side // 16)
    rows = max(len(column) for column in columns)
    paper = (255 * np.asarray(to_rgb(PAPER)) + 0.5).astype(np.uint8)
    board = np.tile(paper, (rows * (side + gap) + gap, len(columns) * (across + gap) + gap, 1))
    for place, column in enumerate(columns):
        for row, image in enumerate(column):
            top, left = gap + row * (side + gap), gap + place * (across + gap)
            board[top : top + side, left : left + across] = image
    return board


def lines(found: dict[str, list[tuple[Any, Any]]], x: str, y: str) -> Figure:
    """Draw lines of (place, card) by name, each value with its interval; places that are no numbers stand in a row."""
    figure = Figure(figsize=(7, 4.6), facecolor=PAPER)
    axes = figure.add_axes((0.12, 0.13, 0.84, 0.8), facecolor=PAPER)
    places = list(dict.fromkeys(place for row in found.values() for place, _ in row))
    numeric = all(isinstance(place, int | float) for place in places)
    for number, (name, row) in enumerate(found.items()):
        xs = [place if numeric else places.index(place) for place, _ in row]
        color = INKS[number % len(INKS)]
        axes.plot(xs, [card.value for _, card in row], "o-", color=color, label=name, markersize=4, linewidth=1.5)
        for at, (_, card) in zip(xs, row, strict=True):
            if card.interval is not None:
                axes.plot([at, at], card.interval, color=color, linewidth=4, alpha=0.25, solid_capstyle="butt")
    if not numeric:
        axes.set_xticks(range(len(places)), [str(place) for place in places])
    axes.set(xlabel=x, ylabel=y)
    _on_paper(axes)
    if len(found) > 1:
        axes.legend(frameon=False, fontsize=9)
    return figure


def points(samples: Any, log_density: Any = None) -> np.ndarray:
    """Draw points in the plane over the density they should have, a function; return pixels in uint8."""
    samples = np.asarray(samples)[:, :2]
    limit = 1.15 * float(np.quantile(np.abs(samples), 0.999))
    figure = Figure(figsize=(6, 6), facecolor=NIGHT)
    axes = figure.add_axes((0, 0, 1, 1))
    if log_density is not None:
        side = np.linspace(-limit, limit, 200)
        _density(axes, log_density(np.stack(np.meshgrid(side, side), -1)), limit)
    else:
        axes.set(xlim=(-limit, limit), ylim=(-limit, limit))
        axes.set_axis_off()
    _points(axes, samples, None)
    return pixels(figure)


def pixels(figure: Figure, *, dpi: int = DPI) -> np.ndarray:
    """Return a figure as an image (height, width, 3) in uint8."""
    figure.set_dpi(dpi)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
