"""What the rows of an ablation look like."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from diffusion_jax.ablation.rows import Row, arms_of, name_of
from diffusion_jax.ablation.tables import mean
from diffusion_jax.experiment import make_schedule
from diffusion_jax.losses.denoising import bin_edges
from diffusion_jax.plots import FAINT, GLOW, NIGHT, PAPER, TIME
from diffusion_jax.training.logbook import read
from diffusion_jax.workdir import read_config


def heat_map(rows: Sequence[Row], metric: str) -> Figure | None:
    """Draw a metric over two choices, a cell for each pair, if the arms differ in just two."""
    arms = arms_of(rows)
    if len(arms) < 4 or len(arms[0]) != 2:
        return None
    down, across = arms[0]
    ys, xs = ([*dict.fromkeys(arm[key] for arm in arms)] for key in (down, across))
    if min(len(xs), len(ys)) < 2:
        return None
    values = np.full((len(ys), len(xs)), np.nan)
    for arm in arms:
        found = mean(rows, arm, metric)
        values[ys.index(arm[down]), xs.index(arm[across])] = np.nan if found is None else found.value
    better = next(row.card.better for row in rows if row.card.metric == metric)
    figure = Figure(figsize=(2.4 + 1.1 * len(xs), 1.5 + 0.55 * len(ys)), facecolor=PAPER, layout="constrained")
    axes = figure.add_subplot(facecolor=PAPER)
    axes.imshow(values if better == "lower" else -values, cmap=GLOW.reversed(), aspect="auto")
    middle = np.nanmean([np.nanmin(values), np.nanmax(values)])
    for (row, column), value in np.ndenumerate(values):
        dark = (value > middle) == (better == "higher")
        if np.isfinite(value):
            axes.text(column, row, f"{value:.3g}", ha="center", va="center", color=NIGHT if dark else PAPER, fontsize=9)
    axes.set_xticks(range(len(xs)), xs, rotation=20, ha="right", fontsize=9)
    axes.set_yticks(range(len(ys)), ys, fontsize=9)
    axes.set(xlabel=across, ylabel=down, title=f"{metric}, {better} is better")
    axes.tick_params(length=0)
    return figure


def against_evaluations(rows: Sequence[Row], metric: str) -> Figure | None:
    """Draw a metric against the number of the network's evaluations, a line for every other choice."""
    lines: dict[str, list[tuple[int, float, float]]] = {}
    for arm in arms_of(rows):
        if "evaluations" not in arm:
            return None
        found = mean(rows, arm, metric)
        if found is not None:
            rest = name_of({key: value for key, value in arm.items() if key not in ("evaluations", "grid")})
            lines.setdefault(rest, []).append((int(arm["evaluations"]), found.value, found.away or 0.0))
    figure, axes = _axes("evaluations of the network", metric)
    for place, (name, points) in enumerate(lines.items()):
        x, y, away = np.array(sorted(points)).T
        axes.errorbar(x, y, away, fmt="o-", color=TIME((place + 0.5) / len(lines)), label=name, ms=4, lw=1.5, capsize=2)
    axes.set_xscale("log")
    axes.set_xticks(*[sorted({x for points in lines.values() for x, *_ in points})] * 2)
    axes.minorticks_off()
    axes.legend(frameon=False, fontsize=8)
    return figure


def loss_by_noise(folders: Mapping[str, Path]) -> Figure | None:
    """Draw the loss of the last logged steps of some runs against the log-SNR at which it was met."""
    figure, axes = _axes("log-SNR", "loss per example at that log-SNR")
    drawn = 0
    for place, (name, folder) in enumerate(folders.items()):
        lines = [line for line in read(folder) if "bin_loss" in line]
        if not lines:
            continue
        last = lines[-max(1, len(lines) // 5) :]
        loss, share = (np.mean([line[key] for line in last], 0) for key in ("bin_loss", "bin_share"))
        with np.errstate(invalid="ignore", divide="ignore"):
            axes.plot(
                _centres(folder, len(loss)), np.where(share > 1e-4, loss / share, np.nan), "o-", ms=3, lw=1.3,
                color=TIME((place + 0.5) / len(folders)), label=name,
            )  # fmt: skip
        drawn += 1
    axes.set_yscale("log")
    axes.legend(frameon=False, fontsize=8)
    return figure if drawn else None


def last_picture(folder: Path) -> np.ndarray | None:
    """Return the last picture of samples that a run left."""
    found = sorted((folder / "pictures").glob("samples_*.png"))
    if not found:
        return None
    with Image.open(found[-1]) as picture:
        return np.asarray(picture.convert("RGB"))


def _centres(folder, bins):
    edges = bin_edges(make_schedule(read_config(folder)), bins)
    return (edges[1:] + edges[:-1]) / 2


def _axes(x, y) -> tuple[Figure, Any]:
    figure = Figure(figsize=(7, 4.4), facecolor=PAPER, layout="constrained")
    axes = figure.add_subplot(facecolor=PAPER)
    axes.set(xlabel=x, ylabel=y)
    axes.grid(alpha=0.25, color=FAINT)
    return figure, axes
