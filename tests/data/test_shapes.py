"""Drawings and their inverse: what is drawn is read back, and what is not drawn is not."""

import numpy as np
import pytest

from diffusion_jax.data.attributes import agreement, caption_agreement, read_attributes, read_scenes
from diffusion_jax.data.shapes import COLOURS, KINDS, area, coverage, outline, shapes

MANY = {
    "quick start": {},
    "all": {"kinds": tuple(KINDS), "colours": tuple(COLOURS), "background": (0, 255)},
    "several": {"side": 32, "kinds": tuple(KINDS), "colours": tuple(COLOURS), "counts": (1, 4), "background": (0, 255)},
}
COUNT = 200


def drawn(source, count=COUNT):
    examples = [source[i] for i in range(count)]
    labels = np.array([example["label"] for example in examples])
    return np.stack([example["x"] for example in examples]), labels, [source.scene(i) for i in range(count)]


def unit(images):
    return images / 127.5 - 1


def blurred(images):
    """Blur by (1, 2, 1) / 4 each way."""
    for axis in (1, 2):
        around = [(1, 1) if a == axis else (0, 0) for a in range(4)]
        wide = np.pad(images, around, mode="edge")
        low, middle, high = (np.take(wide, range(k, k + images.shape[axis]), axis) for k in range(3))
        images = (low + 2 * middle + high) / 4
    return images


def noisy(images, std=0.1):
    return images + std * np.random.default_rng(0).normal(size=images.shape)


@pytest.mark.parametrize("case", MANY)
@pytest.mark.parametrize("spoil", [None, noisy, blurred], ids=["clean", "noisy", "blurred"])
def test_what_is_drawn_is_read_back(case, spoil):
    source = shapes(**MANY[case])
    images, labels, scenes = drawn(source)
    read = read_scenes(images if spoil is None else spoil(unit(images)), source)
    least = 1.0 if spoil is None else 0.99
    assert (read["label"] == labels).mean() >= least
    for word in ("kind", "colour", "size"):
        assert (read[word] == [getattr(scene, word) for scene in scenes]).mean() >= least
    assert (read["count"] == [len(scene.centres) for scene in scenes]).mean() >= least
    off = np.abs(read["centre"] - [scene.centres.mean(0) for scene in scenes]).max(1)
    assert np.quantile(off, 0.99) < (0.1 if spoil is None else 0.4)
    if spoil is None:
        np.testing.assert_allclose(read["radius"], [scene.radius for scene in scenes], rtol=0.03)
        assert (read["position"] == [scene.position for scene in scenes]).mean() >= 0.99


def patches(draw, shape):
    coarse = draw.normal(size=(shape[0], 4, 4, 3))
    return np.clip(np.kron(coarse, np.ones((1, shape[1] // 4, shape[2] // 4, 1))), -1, 1)


def half_red(draw, shape):
    left = np.arange(shape[2])[:, None] < shape[2] // 2
    return np.broadcast_to(np.where(left, [0.8, -0.7, -0.7], -1.0), shape)


GARBAGE = {
    "noise": lambda draw, x: draw.normal(size=x.shape),
    "faint noise": lambda draw, x: 0.3 * draw.normal(size=x.shape),
    "uniform bytes": lambda draw, x: draw.integers(0, 256, x.shape).astype(np.uint8),
    "patches": lambda draw, x: patches(draw, x.shape),
    "smooth patches": lambda draw, x: blurred(blurred(patches(draw, x.shape))),
    "one colour": lambda draw, x: np.broadcast_to(draw.uniform(-1, 1, (len(x), 1, 1, 3)), x.shape),
    "nothing": lambda draw, x: np.zeros(x.shape),
    "not a number": lambda draw, x: np.full(x.shape, np.nan),
    "shuffled pixels": lambda draw, x: draw.permuted(x.reshape(len(x), -1, 3), axis=1).reshape(x.shape),
    "grey": lambda draw, x: np.broadcast_to(x.mean(-1, keepdims=True), x.shape),
    "half an image": lambda draw, x: half_red(draw, x.shape),
}


@pytest.mark.parametrize("kind", GARBAGE)
def test_garbage_matches_no_class(kind):
    images = GARBAGE[kind](np.random.default_rng(1), unit(drawn(shapes(), 120)[0]))
    source = shapes()
    labels = np.arange(len(images)) % source.info.num_classes
    assert agreement(images, labels, source) <= 0.01
    assert (read_scenes(images, source)["label"] >= 0).mean() <= 0.02


def test_a_wrong_class_is_no_match():
    source = shapes()
    images, labels, _ = drawn(source)
    assert agreement(images, labels, source) == 1
    captions = [source.scene(index).caption for index in range(len(images))]
    assert caption_agreement(images, captions, source) == 1
    assert caption_agreement(images, [""] * len(images), source) == 1
    swapped = [caption.replace("small", "x").replace("large", "small").replace("x", "large") for caption in captions]
    assert caption_agreement(images, swapped, source) == 0
    assert agreement(images, (labels + 1) % source.info.num_classes, source) == 0


def test_too_many_shapes_or_two_colours_are_no_match():
    one, several = shapes(side=32), shapes(side=32, counts=(2, 4))
    images, _, scenes = drawn(several, 40)
    read = read_scenes(images, one)
    assert (read["label"] == -1).all()
    assert (read["count"] == [len(scene.centres) for scene in scenes]).all()
    pairs = shapes(side=24, kinds=["circle"], colours=["red", "blue"])
    red, blue = (pairs[i]["x"] for i in (0, 1))
    both = read_attributes(np.concatenate([red, blue], 1)[None])
    assert (both["colour"][0], both["kind"][0], both["count"][0]) == ("none", "circle", 2)


@pytest.mark.parametrize("kind", KINDS)
def test_a_shape_covers_its_area_wherever_it_lies(kind):
    draw = np.random.default_rng(0)
    for _ in range(20):
        radius = draw.uniform(6, 10)
        covered = coverage(kind, (32, 32), draw.uniform(13, 19, 2), radius)
        assert covered.sum() == pytest.approx(area(kind) * radius**2, rel=0.02)
        assert covered.min() == 0 and covered.max() == 1


@pytest.mark.parametrize("colour", COLOURS)
def test_colours_are_the_nearest_to_themselves_after_noise(colour):
    source = shapes(kinds=["square"], colours=[colour])
    images, _, _ = drawn(source, 20)
    assert (read_attributes(noisy(unit(images)))["colour"] == colour).all()


def test_circles_are_round():
    assert area("circle") == pytest.approx(np.pi, rel=1e-3)
    assert area("ring") == pytest.approx(np.pi * 0.75, rel=1e-3)


@pytest.mark.parametrize("case", MANY)
def test_caption_mask_and_edges_agree_with_the_drawing(case):
    source = shapes(**MANY[case], entries=("x", "label", "caption", "mask", "edges"))
    for i in range(60):
        example, scene = source[i], source.scene(i)
        mask, edges = example["mask"][..., 0] > 0, example["edges"][..., 0] > 0
        for word in (scene.size, scene.colour, scene.kind):
            assert word in example["caption"].replace("crosses", "cross")
        first = {1: "a ", 2: "two ", 3: "three ", 4: "four "}[len(scene.centres)]
        assert example["caption"].startswith(first)
        assert source.info.classes[example["label"]] == f"{scene.colour} {scene.kind}"
        # Whole pixels are of the colour inside the mask and grey outside; the edge is the rim of the mask.
        near_colour = np.abs(example["x"] - np.array(COLOURS[scene.colour], float)).max(-1)
        inside = mask & ~edges
        assert (near_colour[inside] <= 128).all()
        assert (example["x"][~mask].astype(int).std(-1) < np.std(COLOURS[scene.colour]) / 2 + 1).all()
        assert not (edges & ~mask).any() and edges.any()
        assert mask.sum() == pytest.approx(area(scene.kind) * scene.radius**2 * len(scene.centres), rel=0.25)


def test_an_outline_is_what_a_step_to_the_side_leaves():
    mask = np.random.default_rng(0).random((3, 9, 9)) < 0.7
    expected = np.zeros_like(mask)
    for n, i, j in np.argwhere(mask):
        sides = [(i + 1, j), (i - 1, j), (i, j + 1), (i, j - 1)]
        expected[n, i, j] = any(not (0 <= a < 9 and 0 <= b < 9 and mask[n, a, b]) for a, b in sides)
    np.testing.assert_array_equal(outline(mask), expected)


def test_seeds_differ_and_classes_take_turns():
    one, other = shapes(seed=0), shapes(seed=1)
    assert any((one[i]["x"] != other[i]["x"]).any() for i in range(3))
    assert [int(one[i]["label"]) for i in range(24)] == [*range(12)] * 2
    assert len({one[i]["x"].tobytes() for i in range(0, 480, 12)}) == 40


@pytest.mark.parametrize(
    ("keywords", "words"),
    [
        ({"kinds": ["cirlce"]}, "Did you mean 'circle'"),
        ({"colours": ["rde"]}, "unknown colour 'rde'"),
        ({"counts": (1, 4)}, "give side=24 or more"),
        ({"counts": (3, 2)}, "1 <= low"),
        ({"background": (0, 300)}, "within 0 .. 255"),
        ({"entries": ["x", "edge"]}, "Did you mean 'edges'"),
        ({"entries": ["label"]}, "must be 'x'"),
        ({"seed": -1}, "shapes: seed is -1"),
    ],
)
def test_bad_keywords_are_refused(keywords, words):
    with pytest.raises(ValueError, match=words):
        shapes(**keywords)


def test_what_are_no_images_cannot_be_read():
    with pytest.raises(ValueError, match=r"must be \(N, H, W, 3\)"):
        read_attributes(np.zeros((2, 8, 8, 1)))
    with pytest.raises(ValueError, match="give uint8"):
        read_attributes(np.zeros((2, 8, 8, 3), np.int64))
