"""The Inception score at its ends, and against another implementation."""

import json
from pathlib import Path

import numpy as np
import pytest

from diffusion_jax.evaluation.inception_score import inception_score

RESULTS = json.loads((Path(__file__).parent.parent / "reference" / "metrics.json").read_text())["results"]


@pytest.mark.parametrize("splits", [1, 5, 10])
@pytest.mark.parametrize("shuffle", [False, True])
def test_reference_values(reference, splits, shuffle):
    expected = RESULTS["inception_score"][f"splits{splits}_shuffle{shuffle}"]
    found = inception_score(reference("metrics.npz")["is/logits"], splits=splits, seed=2020 if shuffle else None)
    assert found.mean == pytest.approx(expected["inception_score_mean"], rel=1e-12)
    assert found.std == pytest.approx(expected["inception_score_std"], rel=1e-9, abs=1e-12)


def test_it_is_between_one_and_the_number_of_classes():
    sure = 1e4 * np.eye(7)[np.arange(70) % 7]
    assert inception_score(sure, splits=1).mean == pytest.approx(7, rel=1e-12)
    assert inception_score(0 * sure).mean == pytest.approx(1, rel=1e-12)
    assert inception_score(sure[:1].repeat(20, 0)).mean == pytest.approx(1, rel=1e-12)


def test_what_is_added_to_all_logits_of_an_image_does_not_count():
    logits = np.random.default_rng(0).normal(size=(50, 9))
    shifted = logits + np.linspace(-1e3, 1e3, 50)[:, None]
    assert inception_score(shifted).mean == pytest.approx(inception_score(logits).mean, rel=1e-9)


def test_more_parts_than_images_are_refused():
    with pytest.raises(ValueError, match="1 to n splits"):
        inception_score(np.zeros((5, 3)), splits=6)
