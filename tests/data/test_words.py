"""Captions as vectors: words decide, places tell them apart, and the empty caption still says something."""

import numpy as np
import pytest

from diffusion_jax.data.words import encoded


def of(caption, length=8, width=16):
    return encoded(caption, length=length, width=width)


def test_one_vector_a_word_after_that_of_the_start():
    for caption, count in (("", 0), ("cat", 1), ("Two small cats!", 3)):
        text, mask = of(caption)
        assert text.shape == (8, 16) and mask.sum() == count + 1 and mask[: count + 1].all()
        assert np.abs(text[mask]).max(-1).min() > 0 and not text[~mask].any()
    np.testing.assert_array_equal(of("")[0][0], of("cat")[0][0])


def test_the_same_word_in_another_place_differs_by_its_place_alone():
    moved = [of(f"{first} x")[0][1] - of(f"x {first}")[0][2] for first in ("red", "cat")]
    np.testing.assert_allclose(moved[0], moved[1], atol=1e-5)
    assert np.abs(moved[0]).max() > 0.1
    there, here = of("a red cat")[0], of("a blue cat")[0]
    np.testing.assert_array_equal(there[[0, 1, 3]], here[[0, 1, 3]])
    assert np.abs(there[2] - here[2]).max() > 0.1


def test_longer_captions_are_refused_and_counted():
    with pytest.raises(ValueError, match="has 8 words; with length=8 there is room for 7"):
        of("a b c d e f g h")
