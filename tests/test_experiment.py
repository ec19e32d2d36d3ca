"""From a config to parts that fit each other."""

import runpy
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.experiment import LOSSES, make_training, start
from diffusion_jax.process.noise import example_keys, normal_like
from diffusion_jax.sampler import RETURNED, conditions, make_sampler
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


def captioned() -> Any:
    """A small config whose network is told captions."""
    made = config(
        data={"name": "shapes", "side": 16, "entries": ("x", "caption")},
        transforms=(
            {"name": "to_unit"},
            {"name": "drop_caption", "rate": 0.5},
            {"name": "words", "length": 10, "width": 8},
        ),
        cond=("text", "text_mask"),
        network={
            "name": "dit",
            "size": {"name": "custom", "width": 8, "depth": 1, "heads": 1},
            "patch": 8,
        },
    )
    made.sampling.guidance = {"name": "classifier_free", "scale": 2.0}
    made.sampling.solver = {"name": "euler"}
    made.sampling.steps = 1
    return made


@pytest.mark.slow
def test_captions_reach_the_network_and_the_empty_one_is_what_guidance_leaves():
    made = captioned()
    training = make_training(made)
    state = start(made, training)
    cond = training.batches[0]["cond"]
    assert cond["text"].shape == (made.training.batch_size, 10, 8) and 0 < (cond["text_mask"].sum(1) == 1).mean() < 1
    step = jax.jit(make_train_step(training.loss_fn, training.optimizer, training.averages))
    state, metrics = step(state, training.batches[0])
    assert np.isfinite(float(metrics["loss"]))
    # A network that listens: all of its parameters away from zero.
    noise = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: leaf + noise.normal(size=leaf.shape).astype(np.float32) / 3, state.params)
    drawn = {}
    for words in ("", "a large red circle", "a large blue circle"):
        made.sampling.captions = (words,)
        sampler = make_sampler(made, training.model, training.batches.info)
        told = conditions(made, training.model, np.arange(2))
        drawn[words] = sampler(params, jax.random.key(0), jnp.arange(2), told)
    assert np.abs(drawn["a large red circle"] - drawn["a large blue circle"]).max() > 1e-5
    made.sampling.captions, made.sampling.guidance = ("",), {"name": "none"}
    alone = make_sampler(made, training.model, training.batches.info)(
        params, jax.random.key(0), jnp.arange(2), conditions(made, training.model, np.arange(2))
    )
    np.testing.assert_allclose(alone, drawn[""], atol=1e-5)


def test_captions_take_turns():
    made = captioned()
    made.sampling.captions = ("a red circle", "", "two blue crosses")
    told = conditions(made, make_training(made).model, np.arange(5))
    assert told["text_mask"].sum(1).tolist() == [4, 1, 4, 4, 1]


@pytest.mark.parametrize(
    ("cond", "message"),
    [
        (("caption",), "Add the transform 'words'"),
        (("lable",), "Did you mean 'label'"),
        (("dropout",), "no network hears"),
        (("edges",), "no network hears. Add the transform 'hint' of it and say 'hint'"),
    ],
)
def test_conditions_that_no_network_hears_are_refused(cond, message):
    made = captioned()
    made.transforms, made.cond = ({"name": "to_unit"},), cond
    with pytest.raises(ValueError, match=message):
        make_training(made)


@pytest.mark.parametrize("returned", sorted(RETURNED))
def test_a_path_that_ends_in_noise_can_return_the_data_estimated_from_it(returned):
    """With one Euler step from t = 1 the state at the end is known, and the network's answer there is its noise."""
    made = config(schedule={"name": "geometric"}, transforms=({"name": "keep", "entries": ("x",)},))
    made.loss.prediction, made.sampling.solver = {"name": "eps"}, {"name": "ddim"}
    made.sampling.steps, made.sampling.returned = 1, returned
    training = make_training(made)
    indices = jnp.arange(3)
    params = jax.tree.map(lambda leaf: leaf + 0.1, start(made, training).params)
    drawn = make_sampler(made, training.model, training.batches.info)(params, jax.random.key(0), indices, {})
    x = 50 * normal_like(example_keys(jax.random.split(jax.random.key(0))[0], indices), jnp.zeros((3, 2)))
    noise = training.model.apply(params, x, jnp.ones(3), {})
    state = x - (50 - 0.01) * noise
    expected = state if returned == "x" else state - 0.01 * training.model.apply(params, state, jnp.zeros(3), {})
    np.testing.assert_allclose(drawn, expected, rtol=2e-5, atol=1e-4)


def test_what_cannot_be_returned_is_refused():
    made = config()
    made.sampling.returned = "x1"
    training = make_training(made)
    with pytest.raises(ValueError, match="unknown returned 'x1'"):
        make_sampler(made, training.model, training.batches.info)
