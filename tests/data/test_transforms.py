"""What transforms promise: sizes, rates, the null label, and chance that belongs to the example alone."""

import numpy as np
import pytest

from diffusion_jax.data.array import from_arrays
from diffusion_jax.data.pipeline import make_pipeline
from diffusion_jax.data.shapes import shapes
from diffusion_jax.data.source import BYTES, Info
from diffusion_jax.data.transforms import TRANSFORMS, make_transforms
from diffusion_jax.naming import choose

SHAPES = {"x": (40, 30, 3), "label": (), "caption": (), "mask": (40, 30, 1), "edges": (40, 30, 1)}
INFO = Info("pictures", SHAPES, ("cat", "dog", "eel"), BYTES)
SPECS = {
    "center_crop": {"side": 16},
    "random_crop": {"side": 16},
    "adm_crop": {"side": 12},
    "adm_random_crop": {"side": 12},
    "flip": {},
    "resize": {"height": 9, "width": 11},
    "to_unit": {},
    "drop_label": {},
    "drop_caption": {},
    "augment": {},
    "words": {},
    "edges": {"low": 100.0, "high": 200.0},
    "hint": {},
    "keep": {"entries": ("x", "label")},
    "condition": {"entries": ("label", "caption")},
}

IN_UNIT = ("augment", "hint")  # they come after to_unit


def picture(seed=0, height=40, width=30):
    """An image whose first channel says where each pixel came from, and maps that repeat it."""
    draw = np.random.default_rng(seed)
    x = draw.integers(0, 256, (height, width, 3)).astype(np.uint8)
    return {"x": x, "label": np.int32(1), "caption": "a dog", "mask": x[..., :1], "edges": x[..., 1:2]}


def made(name, info=INFO, **keywords):
    if name in IN_UNIT:
        info = info._replace(range=(-1.0, 1.0))
    return choose(TRANSFORMS, {"name": name, **SPECS[name], **keywords}, "transform", info)


def draws(seed=0):
    return np.random.default_rng(seed)


@pytest.mark.parametrize("name", TRANSFORMS)
def test_a_transform_tells_the_truth_of_what_comes_out(name):
    transform = made(name)
    given = picture()
    before = {entry: np.copy(value) for entry, value in given.items()}
    out = transform.apply(given, draws())
    flat = {entry: value for entry, value in out.items() if entry != "cond"} | out.get("cond", {})
    assert {entry: np.shape(value) for entry, value in flat.items()} == transform.info.shapes
    if transform.info.range == (-1.0, 1.0) and name not in IN_UNIT:
        assert out["x"].dtype == np.float32
    for entry, value in before.items():  # the source's own arrays are left alone
        np.testing.assert_array_equal(given[entry], value)


@pytest.mark.parametrize("name", TRANSFORMS)
def test_only_random_transforms_draw(name):
    transform = made(name)
    results = [transform.apply(picture(), draws(seed)) for seed in range(40)]
    differ = any(repr(result) != repr(results[0]) for result in results)
    assert differ == transform.random
    again = transform.apply(picture(), draws(7))
    assert repr(again) == repr(results[7])


@pytest.mark.parametrize("name", ["center_crop", "random_crop", "adm_crop", "adm_random_crop", "flip", "resize"])
def test_maps_go_with_their_image(name):
    transform = made(name)
    for seed in range(5):
        out = transform.apply(picture(), draws(seed))
        np.testing.assert_array_equal(out["mask"], out["x"][..., :1])
        np.testing.assert_array_equal(out["edges"], out["x"][..., 1:2])


def test_crops_are_parts_and_the_center_is_in_the_middle():
    x = picture()["x"]
    np.testing.assert_array_equal(made("center_crop").apply(picture(), draws())["x"], x[12:28, 7:23])
    corners = set()
    for seed in range(300):
        part = made("random_crop", side=28).apply(picture(), draws(seed))["x"]
        (found,) = [(i, j) for i in range(13) for j in range(3) if (x[i : i + 28, j : j + 28] == part).all()]
        corners.add(found)
    assert corners == {(i, j) for i in range(13) for j in range(3)}


def test_padding_reflects():
    part = made("random_crop", side=46, padding=3, info=INFO._replace(shapes=SHAPES | {"x": (40, 40, 3)}))
    x = picture(width=40)
    np.testing.assert_array_equal(part.apply(x, draws())["x"], np.pad(x["x"], ((3, 3), (3, 3), (0, 0)), mode="reflect"))


def test_adm_crop_halves_by_averages_and_keeps_the_middle():
    rng = np.random.default_rng(0)
    quarters = rng.integers(0, 256, (16, 16, 3)).astype(np.uint8)
    large = np.kron(quarters, np.ones((4, 4, 1), np.uint8))
    out = made("adm_crop", side=16).apply({"x": large}, draws())["x"]
    np.testing.assert_array_equal(out, quarters)  # two exact halvings, and nothing is left to resize
    ramp = np.zeros((40, 80, 3), np.uint8) + np.arange(80, dtype=np.uint8)[:, None] * 3
    row = made("adm_crop", side=20).apply({"x": ramp}, draws())["x"][10, :, 0].astype(float)
    assert row[9:11].mean() == pytest.approx(3 * 39.5, abs=1)
    np.testing.assert_allclose(np.diff(row), 6, atol=1)


def test_a_random_adm_crop_sees_at_least_its_share():
    ramp = np.zeros((60, 60, 3), np.float32) + np.arange(60, dtype=np.float32)[:, None]
    crop = made("adm_random_crop", side=24, smallest=0.8)
    rows = np.stack([crop.apply({"x": ramp}, draws(seed))["x"][12, :, 0] for seed in range(200)])
    seen = (rows[:, 20] - rows[:, 3]) / 17 * 24 / 60  # away from the ends, where filters see the border
    assert seen.min() > 0.75 and seen.max() < 1.05 and seen.max() - seen.min() > 0.1
    assert rows[:, 3].min() < 9 and rows[:, 20].max() > 51


def test_edges_reach_the_network_as_a_hint_that_goes_with_its_image():
    specs = ["to_unit", {"name": "hint", "channels": 2}, "flip", {"name": "condition", "entries": ("hint",)}]
    batch = make_pipeline(shapes(entries=("x", "edges")), specs, batch_size=8)[0]
    hint = batch["cond"]["hint"]
    assert hint.shape == (8, 16, 16, 2) and set(np.unique(hint)) == {0.0, 1.0} and hint.dtype == np.float32
    np.testing.assert_array_equal(hint, np.repeat(batch["edges"] + 1, 2, -1) / 2)
    unit = made("to_unit").apply(picture(), draws())
    np.testing.assert_array_equal(made("hint", of="x").apply(unit, draws())["hint"], (unit["x"] + 1) / 2)


def test_flipping_twice_is_nothing():
    always = made("flip", rate=1.0)
    out = always.apply(picture(), draws())
    np.testing.assert_array_equal(out["x"], picture()["x"][:, ::-1])
    np.testing.assert_array_equal(always.apply(out, draws())["x"], picture()["x"])
    assert made("flip", rate=0.0).apply(picture(), draws())["x"] is not None


def pipeline(specs, count=4000, **keywords):
    x = np.arange(count, dtype=np.uint8)[:, None, None, None] + np.zeros((1, 2, 3), np.uint8)
    x[:, 0, 0, 0] = 7
    source = from_arrays({"x": x, "label": np.arange(count) % 5, "caption": np.array(["words"] * count)})
    return make_pipeline(source, specs, batch_size=count, **keywords)


def test_labels_captions_and_flips_come_at_their_rates_and_on_their_own():
    rate, count = 0.2, 4000
    specs = [{"name": "drop_label", "rate": rate}, {"name": "drop_caption", "rate": rate}, "flip"]
    batch = pipeline(specs)[0]
    null = batch["label"] == 5
    empty = batch["caption"] == ""
    turned = batch["x"][:, 0, 0, 0] != 7
    spread = 4.5 / np.sqrt(count)
    assert null.mean() == pytest.approx(rate, abs=spread * 0.4)
    assert empty.mean() == pytest.approx(rate, abs=spread * 0.4)
    assert turned.mean() == pytest.approx(0.5, abs=spread * 0.5 + 1 / 256)
    assert (null & empty).mean() == pytest.approx(rate**2, abs=spread * 0.2)
    assert set(batch["label"][~null].tolist()) == {0, 1, 2, 3, 4}
    other = pipeline(specs)[1]["label"] == 5  # the same examples, the next epoch
    assert (null & other).mean() == pytest.approx(rate**2, abs=spread * 0.3)


@pytest.mark.parametrize("classes", [1, 3, 1000])
def test_the_null_label_is_the_number_of_classes(classes):
    info = INFO._replace(classes=tuple(map(str, range(classes))))
    out = made("drop_label", info, rate=1.0).apply(picture(), draws())
    assert out["label"] == classes == info.num_classes
    assert out["label"].dtype == picture()["label"].dtype
    assert made("drop_caption", rate=1.0).apply(picture(), draws())["caption"] == ""


def test_a_row_of_transforms_knows_each_others_results():
    row, info = make_transforms([{"name": "adm_crop", "side": 12}, "to_unit", "condition"], INFO)
    assert [one.name for one in row] == ["adm_crop", "to_unit", "condition"]
    assert info.shapes["x"] == (12, 12, 3) and info.range == (-1.0, 1.0)
    with pytest.raises(ValueError, match="is no image in uint8 any more"):
        make_transforms(["to_unit", "to_unit"], INFO)
    own, _ = make_transforms([lambda info: TRANSFORMS["flip"](info, rate=1.0)], INFO)
    assert own[0].name == "flip"


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: made("center_crop", side=31), "no part of 31 x 31"),
        (lambda: made("random_crop", side=50), "no part of 50 x 50"),
        (lambda: made("flip", rate=1.5), "from 0 to 1"),
        (lambda: made("adm_random_crop", smallest=0.0), "above 0"),
        (lambda: made("resize", filter="cubic"), "Did you mean 'bicubic'"),
        (lambda: made("flip", INFO._replace(shapes={"x": (2,)})), "must be images"),
        (lambda: made("drop_label", INFO._replace(shapes={"x": (2, 2, 3)})), "have no 'label', only x"),
        (lambda: made("drop_label", INFO._replace(classes=())), "how many classes"),
        (lambda: made("drop_caption", INFO._replace(shapes={"x": (2, 2, 3)})), "have no 'caption'"),
        (lambda: made("hint", of="edge"), "unknown image of a hint 'edge'. Did you mean 'edges'"),
        (lambda: made("hint", INFO._replace(shapes={"x": (2, 2, 3)})), "have no 'edges'"),
        (lambda: made("hint", of="x", channels=4), "'x' has 3 channels"),
        (lambda: choose(TRANSFORMS, "hint", "transform", INFO), "put to_unit before"),
        (lambda: made("keep", entries=("x", "lable")), "have no 'lable'"),
        (lambda: made("to_unit", INFO._replace(range=None)), "is no image in uint8"),
        (lambda: choose(TRANSFORMS, "flop", "transform", INFO), "Did you mean 'flip'"),
        (lambda: made("center_crop").apply(picture(height=10), draws()), "adm_crop would enlarge it"),
    ],
)
def test_bad_transforms_are_refused_with_a_reason(make, words):
    with pytest.raises(ValueError, match=words):
        make()
