"""Pictures of two-dimensional diffusion: arrays in, figures out.

Noise is shown cold and data warm, so a path reads from blue to amber. Figures are built without pyplot: no global
state, and no window system is asked for.
"""

import textwrap
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure

MOST_COLUMNS, MOST_ROWS = 16, 12  # of a grid of images
CELL, LINE = 0.8, 0.13  # inches: an image, a line of its name
LETTERS = 9  # of a name in a line
NIGHT, PAPER, FAINT = "#0c0f1d", "#ece9e1", "#8d93ab"
TIME = LinearSegmentedColormap.from_list("time", ["#ffe08a", "#ff9a5c", "#d864a0", "#7d6be0", "#45b0f0"])
GLOW = LinearSegmentedColormap.from_list("glow", [NIGHT, "#192350", "#29346f", "#3a4090", "#504fa6"])


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
    right.scatter(*samples.T, s=np.clip(9000 / len(samples), 2, 14), color=TIME(0.0), alpha=0.75, linewidths=0)
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
    axes.set(xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal", facecolor=NIGHT)
    axes.locator_params(nbins=7)
    axes.tick_params(colors=FAINT, labelsize=9, length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)


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
    rows = max(len(column) for column in columns)
    names = ["\n".join(textwrap.wrap(name, LETTERS)) for name in names]
    head = 0.2 + LINE * (1 + max(name.count("\n") for name in names))  # inches
    figure = Figure(figsize=(len(columns) * CELL, rows * CELL + head), facecolor=PAPER)
    for place, (column, name) in enumerate(zip(columns, names, strict=True)):
        for row, image in enumerate(column):
            axes = figure.add_subplot(rows, len(columns), row * len(columns) + place + 1)
            axes.imshow(image, interpolation="nearest")
            axes.set_axis_off()
            if row == 0:
                axes.set_title(name, fontsize=8, color=NIGHT)
    figure.subplots_adjust(0.01, 0.01, 0.99, 1 - head / (rows * CELL + head), wspace=0.06, hspace=0.06)
    return pixels(figure)


def lines(found: dict[str, list[tuple[Any, Any]]], x: str, y: str) -> Figure:
    """Draw lines of (place, card) by name, each value with its interval; places that are no numbers stand in a row."""
    figure = Figure(figsize=(7, 4.6), facecolor=PAPER)
    axes = figure.add_axes((0.12, 0.13, 0.84, 0.8), facecolor=PAPER)
    places = list(dict.fromkeys(place for row in found.values() for place, _ in row))
    numeric = all(isinstance(place, int | float) for place in places)
    for number, (name, row) in enumerate(found.items()):
        xs = [place if numeric else places.index(place) for place, _ in row]
        color = TIME((number + 0.5) / len(found))
        axes.plot(xs, [card.value for _, card in row], "o-", color=color, label=name, markersize=4, linewidth=1.5)
        for at, (_, card) in zip(xs, row, strict=True):
            if card.interval is not None:
                axes.plot([at, at], card.interval, color=color, linewidth=4, alpha=0.25, solid_capstyle="butt")
    if not numeric:
        axes.set_xticks(range(len(places)), [str(place) for place in places])
    axes.set(xlabel=x, ylabel=y)
    axes.grid(alpha=0.25)
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
    axes.scatter(*samples.T, s=np.clip(9000 / len(samples), 2, 14), color=TIME(0.0), alpha=0.75, linewidths=0)
    return pixels(figure)


def pixels(figure: Figure, *, dpi: int = 120) -> np.ndarray:
    """Return a figure as an image (height, width, 3) in uint8."""
    figure.set_dpi(dpi)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
