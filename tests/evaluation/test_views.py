"""What networks are shown of images, against Pillow and `jax.image`."""

import jax
import numpy as np
import pytest
from PIL import Image

from diffusion_jax.evaluation.views import CLIP, IMAGENET, ROUNDINGS, middle, whole
from diffusion_jax.naming import choose

RANDOM = np.random.default_rng(0)
SIZES = [((32, 32), (56, 56)), ((90, 50), (14, 60)), ((28, 9), (28, 14))]


def images(height, width, count=2):
    """Make images, the second of which is black and white, so that filters overshoot."""
    noise = RANDOM.integers(0, 256, (count, height, width, 3), np.uint8)
    noise[1:] = np.where(noise[1:] > 127, 255, 0)
    return noise


def by_pillow(x, height, width):
    """Resize the rows and then the columns, in which order depends on Pillow's version if both are asked for."""
    steps = ((width, x.shape[1]), (width, height))
    pictures = [Image.fromarray(one) for one in x]
    for step in steps:
        pictures = [picture.resize(step, Image.Resampling.BICUBIC) for picture in pictures]
    return np.stack([np.asarray(picture) for picture in pictures])


@pytest.mark.parametrize(("size", "target"), SIZES)
def test_bytes_are_pillows_to_the_last_bit(size, target):
    x = images(*size)
    np.testing.assert_array_equal(ROUNDINGS["bytes"]()(x, *target), by_pillow(x, *target))


@pytest.mark.parametrize(("size", "target"), SIZES)
def test_unrounded_is_what_cmmds_code_does(size, target):
    x = images(*size)
    known = jax.image.resize(x.astype(np.float32), (2, *target, 3), "bicubic", precision=jax.lax.Precision.HIGHEST)
    np.testing.assert_allclose(ROUNDINGS["none"]()(x, *target), known, atol=2e-2)  # of 255, by rounding in both


@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_one_colour_stays_itself_and_the_right_size_is_not_touched(rounding):
    resize = choose(ROUNDINGS, rounding, "rounding")
    flat = np.broadcast_to(np.array([0, 77, 255], np.uint8), (1, 9, 14, 3))
    np.testing.assert_allclose(resize(flat, 28, 6), flat[:, :1, :1].repeat(28, 1).repeat(6, 2), atol=1e-4)
    x = images(12, 10)
    np.testing.assert_array_equal(resize(x, 12, 10), x)


@pytest.mark.parametrize("size", [(41, 60), (29, 28), (28, 28)])
def test_clip_sees_the_square_in_the_middle(size):
    x = images(*size)
    short = min(size)
    height, width = (int(28 * side / short) for side in size)
    top, left = (height - 28) // 2, (width - 28) // 2
    square = by_pillow(x, height, width)[:, top : top + 28, left : left + 28]
    expected = (square / 255 - np.array(CLIP.mean)) / np.array(CLIP.std)
    np.testing.assert_allclose(middle(x, 28, ROUNDINGS["bytes"]()), expected, atol=2e-6)


def test_dinov2_sees_the_whole():
    x = images(40, 23)
    expected = (by_pillow(x, 28, 28) / 255 - np.array(IMAGENET.mean)) / np.array(IMAGENET.std)
    np.testing.assert_allclose(whole(x, 28, ROUNDINGS["bytes"]()), expected, atol=2e-6)


@pytest.mark.slow
@pytest.mark.parametrize("size", [(60, 50), (41, 61), (14, 90), (29, 28), (97, 60)])
def test_clip_sees_what_its_processor_in_transformers_gives(size):
    module = pytest.importorskip("transformers.models.clip.image_processing_pil_clip")
    processor = module.CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    x = images(*size)
    known = processor(list(x), return_tensors="np")["pixel_values"].transpose(0, 2, 3, 1)
    np.testing.assert_allclose(middle(x, 28, ROUNDINGS["bytes"]()), known, atol=2e-6)
