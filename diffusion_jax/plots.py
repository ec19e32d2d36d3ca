"""Pictures of two-dimensional diffusion: arrays in, figures out.

Noise is shown cold and data warm, so a path reads from blue to amber. Figures are built without pyplot: no global
state, and no window system is asked for.
"""

from typing import Any

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure

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
