"""The picture of docs/solvers.md: error against calls of the denoiser, a panel for each family of solvers."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator


class Line(NamedTuple):
    """A solver's errors by calls, and the panel that names it; without a panel it is drawn nowhere."""

    panel: str
    label: str
    calls: Sequence[int]
    errors: Sequence[float]


def errors_and_calls(lines: Sequence[Line], panels: Sequence[str], budgets: Sequence[int]) -> Figure:
    """Draw four panels with the same axes; in each, the solvers of the others stay faint behind its own."""
    figure = Figure(figsize=(14, 9.6), facecolor="white")
    grid = figure.subplots(2, 2, sharex=True, sharey=True)
    least = budgets[0] - 1  # what cannot even spend the first budget begins later
    lines = [_from(line, least) for line in lines if line.panel]
    errors = [error for line in lines for error in line.errors]
    low, high = min(errors) / 1.6, max(errors) * 1.6
    for axes, panel in zip(grid.flat, panels, strict=True):
        axes.set(xscale="log", yscale="log", xlim=(least, 1.1 * budgets[-1]), ylim=(low, high))
        own = [line for line in lines if line.panel == panel]
        for line in lines:
            if line.panel != panel:
                axes.plot(line.calls, line.errors, color="#e0e0e0", linewidth=1, zorder=1)
        for line, color, mark in zip(own, COLORS, MARKS, strict=False):
            axes.plot(line.calls, line.errors, color=color, linewidth=2, marker=mark, markersize=6, zorder=2)
        _name_lines(axes, own, 1.22 * budgets[-1], math.log10(high / low) / 17)
        axes.set_title(panel, loc="left", fontsize=13, color="#222222", pad=8)
        _quiet(axes, budgets)
    for axes in grid[-1]:
        axes.set_xlabel("calls of the denoiser", color="#555555", fontsize=11)
    for axes in grid[:, 0]:
        axes.set_ylabel("rms distance to the exact flow", color="#555555", fontsize=11)
    figure.subplots_adjust(left=0.06, right=0.825, top=0.955, bottom=0.06, wspace=0.56, hspace=0.15)
    return figure


def _from(line, least):
    calls, errors = zip(*((c, e) for c, e in zip(line.calls, line.errors, strict=True) if c >= least), strict=True)
    return line._replace(calls=calls, errors=errors)


def _name_lines(axes, lines, x, gap) -> None:
    """Write names to the right of the lines' ends, `gap` decades apart."""
    ends = [math.log10(line.errors[-1]) for line in lines]
    spots: dict[int, float] = {}
    for i in sorted(range(len(lines)), key=lambda i: ends[i]):
        spots[i] = max(ends[i], max(spots.values(), default=-math.inf) + gap)
    # Half of what the names had to rise is taken back, but the lowest stays on the axes.
    lowered = min(max(spots[i] - ends[i] for i in spots) / 2, min(spots.values()) - math.log10(axes.get_ylim()[0]))
    for i, line in enumerate(lines):
        axes.annotate(
            line.label,
            (line.calls[-1], line.errors[-1]),
            xytext=(x, 10 ** (spots[i] - lowered)),
            annotation_clip=False,
            va="center",
            fontsize=10.5,
            color=COLORS[i],
            arrowprops={
                "arrowstyle": "-",
                "color": COLORS[i],
                "linewidth": 0.8,
                "relpos": (0, 0.5),
                "shrinkA": 2,
                "shrinkB": 5,
            },
        )


def _quiet(axes, budgets):
    axes.xaxis.set_major_locator(FixedLocator(list(budgets)))
    axes.set_xticks(list(budgets), [str(budget) for budget in budgets])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_minor_locator(NullLocator())
    axes.grid(color="#f0f0f0", linewidth=0.8)
    axes.tick_params(colors="#555555", length=0, labelsize=10.5, labelbottom=True, labelleft=True)
    for spine in axes.spines.values():
        spine.set_visible(False)


COLORS = ["#0072b2", "#d55e00", "#009e73", "#a67c00", "#c0559a", "#222222", "#3a9bd9"]  # after Okabe & Ito
MARKS = "osD^vPX"
