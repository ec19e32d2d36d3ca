"""Edges lie where an image changes, one pixel wide, and follow it when it is turned."""

import numpy as np
import pytest

from diffusion_jax.data import edges
from diffusion_jax.data.edges import edges_of
from diffusion_jax.data.source import BYTES, Info
from diffusion_jax.data.transforms import make_transforms

LOW, HIGH = 100, 200


def step(height=9, width=12, at=5, size=200):
    image = np.zeros((height, width, 3), np.uint8)
    image[:, at:] = size
    return image


def test_a_step_is_one_line_beside_it():
    found = edges_of(step(), LOW, HIGH)
    assert found.sum() == 9 and found[:, 4].all()
    assert not edges_of(np.full((8, 8, 3), 90, np.uint8), LOW, HIGH).any()


def test_a_change_of_one_colour_is_one():
    image = step()
    image[..., 1:] = 77
    np.testing.assert_array_equal(edges_of(image, LOW, HIGH), edges_of(step(), LOW, HIGH))


@pytest.mark.parametrize("slope", [(1, 1), (1, -1), (0, 1), (1, 0)])
def test_a_straight_edge_of_any_of_four_directions_is_thin(slope):
    rows, columns = np.mgrid[:24, :24] - 11.5
    inside = np.clip(slope[0] * rows + slope[1] * columns + 0.25, -0.5, 0.5) + 0.5
    found = edges_of((255 * np.repeat(inside[..., None], 3, -1)).astype(np.uint8), LOW, HIGH)[2:-2, 2:-2]
    assert 18 <= found.sum() <= 40
    distance = np.abs(slope[0] * rows + slope[1] * columns)[2:-2, 2:-2] / np.hypot(*slope)
    assert distance[found].max() <= 1


def test_what_is_faint_counts_where_it_goes_on_from_what_is_not():
    """Sizes of 40 make a strength of 160, between both bounds; alone they are none."""
    faint = step(size=40)
    assert not edges_of(faint, LOW, HIGH).any()
    joined = faint.copy()
    joined[:4, 5:] = 200
    found = edges_of(joined, LOW, HIGH)
    assert found[6:, 4].all() and found[:3, 4].all()


def test_an_edge_is_that_of_its_mirror_image():
    image = np.random.default_rng(0).integers(0, 256, (6, 6, 3)).astype(np.uint8).repeat(8, 0).repeat(8, 1)
    found, turned = edges_of(image, LOW, HIGH), edges_of(image[:, ::-1], LOW, HIGH)[:, ::-1]
    assert 0.02 < found.mean() < 0.5
    near = edges._touched(turned)  # where two pixels are as strong, either may be the edge
    assert near[found].all()


def test_the_transform_adds_them_to_images():
    info = Info("photos", {"x": (9, 12, 3)}, (), BYTES)
    (made,), after = make_transforms(({"name": "edges", "low": 100, "high": 200},), info)
    example = made.apply({"x": step()}, np.random.default_rng(0))
    assert after.shapes["edges"] == example["edges"].shape == (9, 12, 1) and example["edges"].dtype == np.uint8
    np.testing.assert_array_equal(example["edges"][..., 0], 255 * edges_of(step(), 100, 200))
    for wrong, words in (
        ({"name": "edges", "low": 3, "high": 2}, "low is 3 and high is 2"),
        ({"name": "edges", "low": -1}, "low is -1"),
    ):
        with pytest.raises(ValueError, match=words):
            make_transforms((wrong,), info)
    with pytest.raises(ValueError, match="edges: images of 'photos' are not in uint8; put it before to_unit"):
        make_transforms(("to_unit", "edges"), info)
