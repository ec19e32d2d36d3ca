"""From a config to parts that fit each other."""

import runpy
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from diffusion_jax.experiment import LOSSES, make_training, start
from diffusion_jax.training.step import make_train_step

CONFIG = str(Path(__file__).parent.parent / "configs" / "toy_2d.py")
SPECS = {
    "denoising": {"name": "denoising", "prediction": "v", "weighting": "learned", "times": "loss_adaptive"},
    "hybrid": {"name": "hybrid", "steps": 10, "prediction": "eps"},
}


def config(**entries) -> Any:
    """The toy's smoke config with other entries."""
    made = runpy.run_path(CONFIG)["get_config"]("smoke").copy_and_resolve_references().unlock()
    for name, value in entries.items():
        made[name] = value
    return made


@pytest.mark.parametrize("loss", sorted(LOSSES))
def test_every_loss_trains(loss):
    """The parts that a loss needs beside it, an uncertainty, a history, more channels, are there of themselves."""
    made = config(loss=SPECS[loss], schedule={"name": "cosine"}, transforms=({"name": "keep", "entries": ("x",)},))
    if loss == "hybrid":
        made.schedule = {"name": "discrete", "world": {"name": "linear", "steps": 10, "beta_end": 0.5}}
    made.training.rate = {"name": "constant", "peak": 1e-3}
    training = make_training(made)
    state = start(made, training)
    assert ("uncertainty" in state.params) == (state.history is not None) == (loss == "denoising")
    step = jax.jit(make_train_step(training.loss_fn, training.optimizer, training.averages))
    after, metrics = step(state, training.batches[0])
    assert np.isfinite(float(metrics["loss"])) and int(after.skipped) == 0
    moved = jax.tree.map(lambda a, b: float(abs(a - b).max()), after.params, state.params)
    assert max(jax.tree.leaves(moved)) > 0


def test_the_same_seed_starts_the_same_run_and_another_another():
    runs = []
    for seed in (0, 0, 1):
        made = config(seed=seed)
        training = make_training(made)
        runs.append((start(made, training), training.batches[0]["x"]))
    for other, same in ((1, True), (2, False)):
        pairs = zip(*(jax.tree.leaves(runs[i][0].params) for i in (0, other)), strict=True)
        assert all(np.array_equal(a, b) for a, b in pairs) == same
        assert np.array_equal(runs[0][1], runs[other][1]) == same
