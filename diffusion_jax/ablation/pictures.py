"""What the rows of an ablation look like."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from PIL import Image

from diffusion_jax.ablation.rows import Row, arms_of, name_of
from diffusion_jax.ablation.tables import mean
from diffusion_jax.experiment import make_schedule
from diffusion_jax.losses.denoising import bin_edges
from diffusion_jax.plots import GLOW, PAPER, Panel, curves
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
    low, high = np.nanmin(values), np.nanmax(values)
    scale = LogNorm() if 0 < 10 * low < high else Normalize()  # an outlier would leave the rest one colour
    axes.imshow(values, cmap=GLOW.reversed() if better == "lower" else GLOW, norm=scale, aspect="auto")
    for (row, column), value in np.ndenumerate(values):
        if np.isfinite(value):
            axes.text(column, row, f"{value:.3g}", ha="center", va="center", color=PAPER, fontsize=9)
    axes.set_xticks(range(len(xs)), xs, rotation=20, ha="right", fontsize=9)
    axes.set_yticks(range(len(ys)), ys, fontsize=9)
    axes.set(xlabel=across, ylabel=down, title=f"{metric}, {better} is better")
    axes.tick_params(length=0)
    return figure


def against_evaluations(rows: Sequence[Row], metric: str) -> Figure | None:
    """Draw a metric against the number of the network's evaluations, a line for every other choice."""
    points: dict[str, list[tuple[int, float, float]]] = {}
    for arm in arms_of(rows):
        if "evaluations" not in arm:
            return None
        found = mean(rows, arm, metric)
        if found is not None:
            rest = name_of({key: value for key, value in arm.items() if key not in ("evaluations", "grid")})
            points.setdefault(rest, []).append((int(arm["evaluations"]), found.value, found.away or 0.0))
    lines = {name: tuple(np.array(sorted(found)).T) for name, found in points.items()}
    return curves(Panel(f"{metric} against evaluations of the network", "evaluations", metric, lines, log="x"))


def loss_by_noise(folders: Mapping[str, Path]) -> Figure | None:
    """Draw the loss of the last logged steps of some runs against the log-SNR at which it was met."""
    lines = {}
    for name, folder in folders.items():
        found = [line for line in read(folder) if "bin_loss" in line]
        last = found[-max(1, len(found) // 5) :]
        if last:
            loss, share = (np.mean([line[key] for line in last], 0) for key in ("bin_loss", "bin_share"))
            met = share > 1e-4
            lines[name] = _centres(folder, len(loss))[met], loss[met] / share[met]
    title = "loss of an example, by noise level"
    return curves(Panel(title, "log-SNR", "loss", lines, log="y")) if lines else None


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
