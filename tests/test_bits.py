"""Bits per dimension: Gaussian integers have those of their entropy by every way, and a run's are on a card."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.bits import WAYS, Way
from diffusion_jax.cli.main import run as command
from diffusion_jax.evaluation.card import read_cards
from diffusion_jax.process.schedule import levels
from diffusion_jax.process.schedules import linear_beta
from diffusion_jax.types import Estimate
from tests.runs import IMAGES, train

STD = 0.2
SCHEDULE = linear_beta()


def exact(x, t):
    """The denoiser of data that are N(0, STD^2) in every pixel."""
    alpha, sigma = levels(SCHEDULE, t, x)
    whole = alpha**2 * STD**2 + sigma**2
    return Estimate(alpha * STD**2 * x / whole, sigma * x / whole)


@pytest.mark.parametrize(
    ("name", "dequantization"), [("flow", "uniform"), ("flow", "truncated_normal"), ("bound", "uniform")]
)
def test_gaussian_integers_have_the_bits_of_their_entropy(name, dequantization):
    pixels = np.random.default_rng(0).normal(scale=STD, size=(200, 4, 4, 1))
    images = jnp.asarray(np.clip(np.floor((pixels + 1) * 128), 0, 255), jnp.uint8)
    way = Way(name, dequantization, steps=60, probes=0)
    measure = jax.jit(lambda images: WAYS[name](exact, SCHEDULE, images, jax.random.key(0), jnp.arange(200), way=way))
    entropy = np.log2(STD * np.sqrt(2 * np.pi * np.e)) + 7
    of_these = -np.log2(np.exp(-(pixels**2) / STD**2 / 2) / STD / np.sqrt(2 * np.pi) / 128).mean()
    assert abs(of_these - entropy) < 0.03  # chance of the draw, which the comparison leaves out
    # The noise of the dequantisation costs its own distance from the true density in a bin.
    assert -0.01 < float(measure(images).mean()) - of_these < (0.2 if dequantization == "truncated_normal" else 0.03)


@pytest.fixture(scope="module")
def shapes(tmp_path_factory) -> Path:
    workdir = tmp_path_factory.mktemp("shapes")
    assert train(workdir, *IMAGES) == 0
    return workdir


@pytest.mark.parametrize("way", sorted(WAYS))
def test_the_command_leaves_a_card_that_says_how(shapes, way, capsys):
    told = ["--workdir", str(shapes), "--way", way, "--count", "5", "--steps", "2", "--batch_size", "4"]
    assert command(["likelihood", *told]) == 0
    assert f"bits_{way}" in capsys.readouterr().out
    cards = [read_cards(path)[0] for path in (shapes / "evaluations").glob("*.json")]
    (card,) = [card for card in cards if card.metric == f"bits_{way}"]
    assert card.protocol["n"] == 5 and card.protocol["steps"] == 2
    assert card.protocol["data"]["name"] == "shapes"
    assert ("dequantization" in card.protocol) == (way == "flow")
    assert card.interval is not None and card.interval[0] < card.value < card.interval[1]


@pytest.mark.parametrize("name", sorted(WAYS))
def test_bits_belong_to_the_image_and_its_index(name):
    """Noise and probes are keyed by the index, so among others an image has the same bits."""
    images, order = jnp.asarray(np.random.default_rng(1).integers(0, 256, (6, 4, 4, 1)), jnp.uint8), jnp.arange(6)[::-1]
    way = Way(name, steps=5)
    measure = jax.jit(lambda images, places: WAYS[name](exact, SCHEDULE, images, jax.random.key(0), places, way=way))
    np.testing.assert_allclose(measure(images[order], order), measure(images, jnp.arange(6))[order], rtol=1e-5)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--way", "flw"], "Did you mean 'flow'"),
        (["--dequantization", "unifrm"], "Did you mean 'uniform'"),
        (["--count", "1"], "count is 1; it must be at least 2"),
        (["--data", "nowhere.npz"], "nowhere.npz"),
    ],
)
def test_mistakes_are_said_before_anything_is_measured(shapes, more, message, capsys):
    assert command(["likelihood", "--workdir", str(shapes), *more]) == 2
    assert message in capsys.readouterr().err


def test_a_run_must_be_named(capsys):
    assert command(["likelihood"]) == 2
    assert "which run?" in capsys.readouterr().err
