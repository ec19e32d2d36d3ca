"""Averages of any length, made after training from snapshots of two (Karras et al. 2024, Section 3.2, Algorithm 3).

At step t the power profile of gamma weighs step s by p(s) = (gamma + 1) s^gamma / t^(gamma + 1) on [0, t]. The profile
that is wanted is approximated by the snapshots' in least squares, A x = b with

    <p_a, p_b> = (g_a + 1) (g_b + 1) min(t_a, t_b)^(g_a + g_b + 1) / ((g_a + g_b + 1) t_a^(g_a + 1) t_b^(g_b + 1))   (1)

and the average is the same mixture of the snapshots' parameters.
"""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp

from diffusion_jax.training.checkpoint import parts_of, read_part
from diffusion_jax.training.ema import gamma_of
from diffusion_jax.types import Params


class Snapshot(NamedTuple):
    """A power average as it was after `step` steps; `load` reads its parameters when they are needed."""

    step: int
    std: float
    load: Callable[[], Params]


def synthesize(snapshots: Sequence[Snapshot], *, std: float, step: int | None = None) -> Params:
    """Return the average of relative width `std` as of `step`, by default the last of the snapshots."""
    if not snapshots:
        raise ValueError("no snapshots to make an average of; train with averages named 'power' and keep snapshots.")
    step = max(shot.step for shot in snapshots) if step is None else step
    usable = [shot for shot in snapshots if shot.step <= step]
    if not usable:
        raise ValueError(f"the first snapshot is of step {min(s.step for s in snapshots)}; none is of step {step}.")
    total = None
    for weight, shot in zip(mixture(usable, std=std, step=step), usable, strict=True):
        part = jax.tree.map(lambda leaf, weight=weight: weight * np.asarray(leaf, np.float64), shot.load())
        total = part if total is None else jax.tree.map(np.add, total, part)
    return jax.tree.map(lambda leaf: leaf.astype(np.float32), total)


def mixture(snapshots: Iterable[Snapshot], *, std: float, step: int) -> np.ndarray:
    """Return the weight of each snapshot in the average of width `std` as of `step`."""
    shots = list(snapshots)
    steps, gammas = [np.asarray([s.step for s in shots], float), np.asarray([gamma_of(s.std) for s in shots])]
    gram = inner_product(steps[:, None], gammas[:, None], steps[None], gammas[None])
    wanted = inner_product(steps, gammas, float(step), gamma_of(std))
    return np.linalg.lstsq(gram, wanted, rcond=1e-13)[0]


def inner_product(t_a, g_a, t_b, g_b) -> np.ndarray:
    """Evaluate Eq. (1), as powers of ratios, since the steps' own powers overflow."""
    least = np.minimum(t_a, t_b)
    ratio = (least / t_a) ** g_a * (least / t_b) ** g_b / np.maximum(t_a, t_b)
    return (g_a + 1) * (g_b + 1) / (g_a + g_b + 1) * ratio


def save_snapshot(folder: Any, step: int, averages: Mapping[str, Params], stds: Mapping[str, float]) -> None:
    """Write the averages whose widths are `stds` as they are after `step`; one that is there already stays."""
    path = Path(folder).absolute() / f"{step:09d}"
    if stds and not path.exists():
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(path, {f"{std:g}": averages[name] for name, std in stds.items()})


def find_snapshots(folder: Any) -> list[Snapshot]:
    """List the snapshots below a folder, oldest first."""
    return [
        Snapshot(int(path.name), float(std), functools.partial(read_part, path, std))
        for path in sorted(Path(folder).absolute().glob("[0-9]*"))
        if path.name.isdigit()
        for std in parts_of(path)
    ]
