"""Resizing rules against closed forms and the libraries that they are named after."""

from itertools import pairwise

import numpy as np
import pytest
from PIL import Image

from diffusion_jax.evaluation.resize import RESIZES, SIZE
from diffusion_jax.naming import choose

RANDOM = np.random.default_rng(0)
SIZES = [(32, 32), (64, 48), (400, 299), (1, 7)]
# What each rule makes of a byte.
SCALES = {
    "tf1_bilinear": lambda byte: (byte - 128) / 128,
    "half_pixel_bilinear": lambda byte: byte / 127.5 - 1,
    "clean": lambda byte: (byte - 128) / 128,
}


def images(height, width, count=2):
    return RANDOM.integers(0, 256, (count, height, width, 3), np.uint8)


@pytest.mark.parametrize("name", RESIZES)
@pytest.mark.parametrize("size", SIZES)
def test_one_colour_stays_itself(name, size):
    for byte in (0, 77, 255):
        flat = choose(RESIZES, name, "resize")(np.full((1, *size, 3), byte, np.uint8))
        assert flat.shape == (1, SIZE, SIZE, 3) and flat.dtype == np.float32
        np.testing.assert_allclose(flat, SCALES[name](byte), atol=1e-6)


@pytest.mark.parametrize("name", RESIZES)
def test_images_of_the_right_size_are_only_scaled(name):
    x = images(SIZE, SIZE, 1)
    np.testing.assert_allclose(RESIZES[name]()(x), SCALES[name](x.astype(np.float32)), atol=1e-6)


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("tf1_bilinear", lambda i: i * 50 / SIZE),
        ("half_pixel_bilinear", lambda i: (i + 0.5) * 50 / SIZE - 0.5),
        ("clean", lambda i: (i + 0.5) * 50 / SIZE - 0.5),
    ],
)
def test_a_ramp_shows_where_each_pixel_looks(name, place):
    """Linear interpolation and Keys' cubic both keep straight lines, away from the edges."""
    ramp = np.broadcast_to((4 * np.arange(50, dtype=np.uint8))[None, None, :, None], (1, 50, 50, 3))
    middle = np.arange(20, SIZE - 20)
    expected = SCALES[name](4 * place(middle))
    for x in (ramp, ramp.transpose(0, 2, 1, 3)):
        found = np.asarray(RESIZES[name]()(np.ascontiguousarray(x)))
        line = found[0, 100, middle, 1] if x is ramp else found[0, middle, 100, 1]
        np.testing.assert_allclose(line, expected, atol=2e-6)


@pytest.mark.parametrize("size", SIZES)
def test_clean_is_what_pillow_does_in_float32(size):
    x = images(*size)
    pillow = [
        [
            np.asarray(Image.fromarray(one[..., c].astype(np.float32)).resize((SIZE, SIZE), Image.Resampling.BICUBIC))
            for c in range(3)
        ]
        for one in x
    ]
    expected = (np.clip(np.moveaxis(np.asarray(pillow), 1, -1), 0, 255) - 128) / 128
    np.testing.assert_allclose(RESIZES["clean"]()(x), expected, atol=1e-6)


@pytest.mark.parametrize("size", SIZES)
def test_half_pixel_is_what_torch_does(size):
    torch = pytest.importorskip("torch")
    x = images(*size)
    planes = torch.from_numpy(x).permute(0, 3, 1, 2).float() / 255
    expected = torch.nn.functional.interpolate(planes, (SIZE, SIZE), mode="bilinear", align_corners=False) * 2 - 1
    np.testing.assert_allclose(RESIZES["half_pixel_bilinear"]()(x), expected.permute(0, 2, 3, 1).numpy(), atol=1e-6)


def test_the_rules_differ():
    found = [np.asarray(RESIZES[name]()(images(32, 32))) for name in RESIZES]
    for a, b in pairwise([*found, found[0]]):
        assert np.abs(a - b).max() > 0.02


@pytest.mark.parametrize("name", RESIZES)
def test_unrounded_images_are_refused(name):
    for wrong in (np.zeros((1, 8, 8, 3), np.float32), np.zeros((8, 8, 3), np.uint8), np.zeros((1, 8, 8, 1), np.uint8)):
        with pytest.raises(ValueError, match=f"{name}: images are .* round them first"):
            RESIZES[name]()(wrong)
