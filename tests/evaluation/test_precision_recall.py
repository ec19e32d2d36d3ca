"""Precision, recall, density and coverage against another implementation and where they are known."""

import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from diffusion_jax.evaluation import precision_recall as module
from diffusion_jax.evaluation.precision_recall import density_coverage, precision_recall

RESULTS = json.loads((Path(__file__).parent.parent / "reference" / "metrics.json").read_text())["results"]
GENERATOR = np.random.default_rng(0)


@pytest.mark.parametrize("name", ["small", "mid"])
@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize("block", [module.BLOCK, 700])
def test_reference_values(reference, monkeypatch, name, k, block):
    monkeypatch.setattr(module, "BLOCK", block)
    real, generated = (reference("metrics.npz")[f"{name}/{side}"] for side in "ab")
    expected = RESULTS[name][f"prdc_k{k}"]
    found = precision_recall(generated, real, k=k)._asdict() | density_coverage(generated, real, k=k)._asdict()
    assert found == pytest.approx(expected, rel=1e-12)


def test_copies_are_perfect_and_strangers_worthless():
    real = GENERATOR.normal(size=(200, 4))
    shuffled = real[::-1]
    assert precision_recall(shuffled, real) == (1, 1)
    assert density_coverage(shuffled, real).coverage == 1
    assert density_coverage(shuffled, real).density == pytest.approx((5 + 1) / 5)  # k neighbours and the point itself
    assert precision_recall(real + 100, real) == (0, 0)
    assert density_coverage(real + 100, real) == (0, 0)


def test_one_point_again_and_again_is_precise_and_covers_little():
    real = GENERATOR.normal(size=(100, 2))
    again = np.repeat(real[:1], 50, 0)
    precision, recall = precision_recall(again, real)
    assert precision == 1
    assert recall == 1 / 100  # balls of copies are points, and only the one real point lies in them
    assert density_coverage(again, real).coverage < 0.2


def test_the_edge_of_a_ball_is_in_it():
    """On a line of whole numbers every distance ties, far from zero too."""
    real = np.arange(10.0)[:, None] + np.array([[1e4]])
    beyond = np.array([[-1.0], [-1.5], [10.0], [10.5], [4.5]]) + 1e4
    assert precision_recall(beyond, real, k=1).precision == 3 / 5
    # 4.5 is in the balls of 4 and 5; -1 and 10 are each on one.
    assert density_coverage(beyond, real, k=1).density == pytest.approx(4 / 5)
    assert density_coverage(beyond, real, k=1).coverage == pytest.approx(4 / 10)


def test_only_the_distances_count():
    real, generated = GENERATOR.normal(size=(80, 5)), 1.3 * GENERATOR.normal(size=(60, 5))
    frame = np.linalg.qr(GENERATOR.normal(size=(5, 5)))[0]
    moved = [7 * points @ frame + 40 for points in (generated, real)]
    assert precision_recall(*moved) == precision_recall(generated, real)
    assert density_coverage(*moved) == density_coverage(generated, real)
    precision, recall = precision_recall(generated, real)
    assert precision_recall(real, generated) == (recall, precision)


@pytest.mark.parametrize("measure", [precision_recall, density_coverage])
def test_too_few_neighbours_are_refused(measure):
    with pytest.raises(ValueError, match="take 1 <= k < both"):
        measure(np.zeros((4, 2)), np.zeros((9, 2)), k=4)
    with pytest.raises(ValueError, match="must be"):
        measure(np.zeros((40, 2)), np.zeros((40, 3)))


def test_memory_is_that_of_some_blocks_and_not_of_all_distances(monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 2**16)
    rows = np.random.default_rng(0).normal(size=(2000, 4))
    tracemalloc.start()
    precision_recall(rows[:500], rows)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2000**2 * 8 / 4  # all distances would take four times as much
