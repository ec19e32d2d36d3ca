"""The Frechet distance against closed forms and other implementations."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest

from diffusion_jax.evaluation.fid import fid, fid_infinity
from diffusion_jax.evaluation.moments import Gaussian, accumulate, covariance, empty

RESULTS = json.loads((Path(__file__).parent.parent / "reference" / "metrics.json").read_text())["results"]
GENERATOR = np.random.default_rng(0)


def moments(points):
    return accumulate(empty(points.shape[1]), points)


def turned(spectrum, seed=1):
    """Return a covariance with these eigenvalues, and its directions."""
    basis = np.linalg.qr(np.random.default_rng(seed).normal(size=(len(spectrum),) * 2))[0]
    return (basis * spectrum) @ basis.T


@pytest.mark.parametrize("name", ["small", "mid"])
def test_reference_values(reference, name):
    sets = reference("metrics.npz")
    found = fid(moments(sets[f"{name}/b"]), moments(sets[f"{name}/a"]))
    for other in ("fid_pytorch_fid", "fid_torch_fidelity", "fid_cleanfid", "fid_eigh_reference"):
        assert found == pytest.approx(RESULTS[name][other], rel=1e-9)


def test_gaussians_of_common_directions_are_apart_by_their_means_and_deviations():
    """Then f = |m_a - m_b|^2 + |sqrt(a) - sqrt(b)|^2, over eight orders of magnitude and with zeros."""
    a, b = np.geomspace(1e-4, 1e4, 12), np.geomspace(1e3, 1e-5, 12)
    a[3], b[5] = 0.0, 0.0
    mean = GENERATOR.normal(size=12)
    expected = mean @ mean + ((np.sqrt(a) - np.sqrt(b)) ** 2).sum()
    assert fid(Gaussian(mean, turned(a)), Gaussian(0 * mean, turned(b))) == pytest.approx(expected, rel=1e-9)


def test_in_two_dimensions_the_root_is_known():
    """There tr (A B)^1/2 = (tr AB + 2 (det AB)^1/2)^1/2."""
    a, b = turned(np.array([2.0, 0.3])), turned(np.array([0.5, 1.7]), seed=2)
    product = a @ b
    cross = np.sqrt(np.trace(product) + 2 * np.sqrt(np.linalg.det(product)))
    zero = np.zeros(2)
    expected = np.trace(a) + np.trace(b) - 2 * cross
    assert fid(Gaussian(zero, a), Gaussian(zero, b)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("count", [20, 200])
def test_a_set_is_at_no_distance_from_itself_whatever_its_rank(count):
    points = GENERATOR.normal(size=(count, 64)) * np.geomspace(30, 1e-4, 64)
    own = moments(points)
    assert abs(fid(own, own)) < 1e-10 * np.trace(covariance(own))
    # Its file does not say how many samples it is of.
    assert abs(fid(own, Gaussian(own.mean, covariance(own)))) < 1e-8 * np.trace(covariance(own))


def test_few_samples_are_exact():
    """Sets of rank r are as far apart as they are within a space of r dimensions that holds both."""
    small, other = GENERATOR.normal(size=(9, 6)), 2 * GENERATOR.normal(size=(8, 6)) + 1
    frame = np.linalg.qr(GENERATOR.normal(size=(300, 6)))[0].T
    expected = fid(moments(small), moments(other))
    assert fid(moments(small @ frame), moments(other @ frame)) == pytest.approx(expected, rel=1e-9)


def test_sets_in_different_directions_share_nothing():
    a, b = np.zeros((40, 8)), np.zeros((50, 8))
    a[:, :4], b[:, 4:] = GENERATOR.normal(size=(40, 4)), GENERATOR.normal(size=(50, 4))
    one, other = moments(a), moments(b)
    expected = ((one.mean - other.mean) ** 2).sum() + np.trace(covariance(one)) + np.trace(covariance(other))
    assert fid(one, other) == pytest.approx(expected, rel=1e-12)


def test_it_is_symmetric_and_does_not_see_rotations_and_grows_with_scale():
    a, b = moments(GENERATOR.normal(size=(90, 20))), moments(GENERATOR.normal(size=(70, 20)) ** 3)
    frame = np.linalg.qr(GENERATOR.normal(size=(20, 20)))[0]
    rotated, scaled = (
        [side._replace(mean=m(side.mean), scatter=s(side.scatter)) for side in (a, b)]
        for m, s in (
            (lambda mean: frame @ mean, lambda scatter: frame @ scatter @ frame.T),
            (lambda mean: 3 * mean, lambda scatter: 9 * scatter),
        )
    )
    expected = fid(a, b)
    assert fid(b, a) == pytest.approx(expected, rel=1e-12)
    assert fid(*rotated) == pytest.approx(expected, rel=1e-10)
    assert fid(*scaled) == pytest.approx(9 * expected, rel=1e-12)


def test_few_samples_are_warned_of(caplog):
    with caplog.at_level(logging.WARNING):
        fid(moments(GENERATOR.normal(size=(8, 8))), Gaussian(np.zeros(8), np.eye(8)))
    assert "the samples number 8 in 8 dimensions" in caplog.text
    assert "the reference" not in caplog.text


def test_other_dimensions_are_refused():
    with pytest.raises(ValueError, match=r"8 dimensions and the reference's 3.*same layer"):
        fid(Gaussian(np.zeros(8), np.eye(8)), Gaussian(np.zeros(3), np.eye(3)))


def test_infinitely_many_samples_of_the_reference_are_at_no_distance():
    points = np.random.default_rng(3).normal(size=(3000, 64))
    truth = Gaussian(np.zeros(64), np.eye(64))
    finite = fid(moments(points), truth)
    found = fid_infinity(points, truth, least=300, seed=1)
    assert abs(found) < 0.2 * finite
    assert found == fid_infinity(points, truth, least=300, seed=1)
    assert found != fid_infinity(points, truth, least=300, seed=2)
    far = fid_infinity(points + 1.0, truth, least=300)
    assert far == pytest.approx(64, rel=0.02)
    with pytest.raises(ValueError, match="least 5000 and there are 3000"):
        fid_infinity(points, truth, least=5000)


def test_sets_without_spread_are_apart_by_their_means():
    one, other = moments(np.ones((5, 3))), moments(np.full((4, 3), 3.0))
    assert fid(one, other) == pytest.approx(12, rel=1e-12)
    assert fid(one, one) == 0
