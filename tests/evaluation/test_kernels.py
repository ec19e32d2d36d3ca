"""KID, CMMD and CLIP score against other implementations, closed forms and their definitions."""

import json
from pathlib import Path

import numpy as np
import pytest

from diffusion_jax.evaluation import kid as module
from diffusion_jax.evaluation.cmmd import clip_score, cmmd, gaussian_mmd
from diffusion_jax.evaluation.kid import kid, unbiased_mmd

RESULTS = json.loads((Path(__file__).parent.parent / "reference" / "metrics.json").read_text())["results"]
GENERATOR = np.random.default_rng(0)


@pytest.mark.parametrize("name", ["small", "mid"])
def test_kid_of_other_implementations(reference, name):
    real, generated = (reference("metrics.npz")[f"{name}/{side}"] for side in "ab")
    whole = RESULTS[name]["kid_full_first_m"]
    m = whole["m"]
    assert unbiased_mmd(generated[:m], real[:m]) == pytest.approx(whole["value"], rel=1e-12)
    half = RESULTS[name]["kid_subsets20_half_seed2020"]
    found = kid(generated, real, subsets=20, size=m // 2)
    assert found.mean == pytest.approx(half["kernel_inception_distance_mean"], rel=1e-12)
    assert found.std == pytest.approx(half["kernel_inception_distance_std"], rel=1e-12)
    # clean-fid draws the other side first; the measure does not care which is which.
    other = kid(real, generated, subsets=20, size=m // 2, seed=0).mean
    assert other == pytest.approx(RESULTS[name]["kid_cleanfid_subsets20_half_npseed0"], rel=1e-12)


def test_blocks_do_not_matter(reference, monkeypatch):
    real, generated = (reference("metrics.npz")[f"small/{side}"] for side in "ab")
    whole = unbiased_mmd(generated, real)
    monkeypatch.setattr(module, "ROWS", 97)
    assert unbiased_mmd(generated, real) == pytest.approx(whole, rel=1e-12)


def test_kid_has_no_bias_and_its_subsets_agree_with_the_whole():
    draws = [unbiased_mmd(GENERATOR.normal(size=(12, 3)), GENERATOR.normal(size=(20, 3))) for _ in range(2000)]
    assert abs(np.mean(draws)) < 4 * np.std(draws) / np.sqrt(len(draws))
    x, y = GENERATOR.normal(size=(60, 3)), GENERATOR.normal(size=(60, 3)) + 0.5
    assert kid(x, y, subsets=3, size=60).mean == pytest.approx(unbiased_mmd(x, y), rel=1e-12)
    assert kid(x, y, subsets=3, size=60).std < 1e-12
    many = kid(x, y, subsets=400, size=20)
    assert many.mean == pytest.approx(unbiased_mmd(x, y), abs=4 * many.std / np.sqrt(400))


def test_the_discrepancy_of_single_moments_is_known():
    """On a line (x y + 1)^3 sees three moments: MMD^2 = sum_j binom(3, j) (difference of moment j)^2."""
    x, y = GENERATOR.normal(size=1000), 0.5 * GENERATOR.normal(size=1001) + 1
    apart = sum(weight * ((x**j).mean() - (y**j).mean()) ** 2 for j, weight in ((1, 3), (2, 3), (3, 1)))
    assert unbiased_mmd(x[:, None], y[:, None]) == pytest.approx(apart, rel=0.02)


def test_cmmd_is_a_thousand_times_the_mean_over_all_pairs():
    x, y = GENERATOR.normal(size=(30, 8)), GENERATOR.normal(size=(20, 8)) + 1
    a, b = (points / np.linalg.norm(points, axis=1, keepdims=True) for points in (x, y))

    def mean(p, q):
        return np.exp(-((p[:, None] - q[None]) ** 2).sum(-1) / 200).mean()

    expected = 1000 * (mean(a, a) + mean(b, b) - 2 * mean(a, b))
    assert cmmd(x, y) == pytest.approx(expected, rel=1e-9)
    assert cmmd(7 * x, y) == pytest.approx(expected, rel=1e-9)  # only directions count
    assert abs(cmmd(x, x[::-1])) < 1e-9


def test_the_discrepancy_of_gaussians_is_known():
    """Of N(m, I) and N(0, I): 2 c (1 - exp(-|m|^2 / (2 (s^2 + 2)))) with c = (s^2 / (s^2 + 2))^(d / 2)."""
    x, y = GENERATOR.normal(size=(2000, 2)) + 1, GENERATOR.normal(size=(2000, 2))
    s = 2.0
    expected = 2 * (s**2 / (s**2 + 2)) * (1 - np.exp(-2 / (2 * (s**2 + 2))))
    assert gaussian_mmd(x, y, sigma=s) == pytest.approx(expected, rel=0.1)


def test_clip_score_is_a_hundred_cosines():
    x = GENERATOR.normal(size=(10, 5))
    assert clip_score(x, 3 * x) == pytest.approx(100)
    assert clip_score(x, -x) == 0
    turned = np.stack([x[:, 1], -x[:, 0]], 1)
    assert clip_score(x[:, :2] + turned, x[:, :2]) == pytest.approx(100 / np.sqrt(2))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda x: kid(x, x, size=11), "between 2 and the smaller"),
        (lambda x: kid(x, x[:, :3], size=5), "they must be"),
        (lambda x: unbiased_mmd(x, x[:1]), "two or more"),
        (lambda x: cmmd(x, x[:, :3]), "the reference's 3"),
        (lambda x: cmmd(0 * x, x), "has no direction"),
        (lambda x: clip_score(x, x[:5]), "one text for each image"),
    ],
)
def test_unlike_sets_are_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make(GENERATOR.normal(size=(10, 5)))
