"""Images in folders: classes, captions, files that are broken."""

import json
import pickle

import numpy as np
import pytest
from PIL import Image

from diffusion_jax.data.folder import folder
from diffusion_jax.data.pipeline import make_pipeline

DRAW = np.random.default_rng(0)


def write(root, names, size=(6, 5)):
    """Write an image of its own grey level to each name, and return the levels."""
    for level, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((*size, 3), 10 * level, np.uint8)).save(path, lossless=True)
    return [10 * level for level in range(len(names))]


def levels(source):
    return [int(np.round(source[i]["x"].mean())) for i in range(len(source))]


def test_sub_folders_are_classes_and_names_give_the_order(tmp_path):
    write(tmp_path, ["b/1.png", "a/2.webp", "a/10.png", "b/0.jpg"])
    source = folder(path=tmp_path)
    assert source.info.classes == ("a", "b")
    assert [int(source[i]["label"]) for i in range(4)] == [0, 0, 1, 1]
    assert levels(source) == [20, 10, 30, 0]
    assert source[0]["x"].shape == (6, 5, 3) and source[0]["x"].dtype == np.uint8
    assert levels(pickle.loads(pickle.dumps(source))) == levels(source)


def test_pixels_are_kept_and_files_that_are_no_images_are_left_alone(tmp_path):
    x = DRAW.integers(0, 256, (7, 9, 3)).astype(np.uint8)
    Image.fromarray(x).save(tmp_path / "x.PNG")
    (tmp_path / "notes.md").write_text("no image")
    source = folder(path=tmp_path)
    assert len(source) == 1 and "label" not in source.info.shapes
    np.testing.assert_array_equal(source[0]["x"], x)


def test_grey_turned_and_transparent_images_are_what_they_look_like(tmp_path):
    x = DRAW.integers(0, 256, (4, 6), dtype=np.uint8)
    Image.fromarray(x).save(tmp_path / "0_grey.png")
    turned = Image.Exif()
    turned[0x0112] = 6  # the camera was turned a quarter
    Image.fromarray(x).save(tmp_path / "1_turned.png", exif=turned)
    alpha = np.zeros((4, 6, 4), np.uint8)
    alpha[:2] = [200, 100, 50, 255]
    Image.fromarray(alpha).save(tmp_path / "2_clear.png")
    source = folder(path=tmp_path)
    np.testing.assert_array_equal(source[0]["x"], np.repeat(x[..., None], 3, 2))
    np.testing.assert_array_equal(source[1]["x"][..., 0], np.rot90(x, -1))
    assert (source[2]["x"][:2] == [200, 100, 50]).all() and (source[2]["x"][2:] == 255).all()


@pytest.mark.parametrize("form", ["txt", "json", "jsonl"])
def test_captions_in_every_form(tmp_path, form):
    names = ["a/1.png", "a/2.png", "b/3.png"]
    write(tmp_path, names)
    captions = {name: f"picture é of {name}" for name in names}
    if form == "txt":
        for name, caption in captions.items():
            (tmp_path / name).with_suffix(".txt").write_text(caption + "\n", encoding="utf-8")
    elif form == "json":
        (tmp_path / "captions.json").write_text(json.dumps(captions))
    else:
        rows = [json.dumps({"file": name, "caption": caption}) for name, caption in captions.items()]
        (tmp_path / "captions.jsonl").write_text("\n".join(rows) + "\n")
    source = folder(path=tmp_path)
    assert [source[i]["caption"] for i in range(3)] == list(captions.values())
    (tmp_path / ("captions.json" if form == "txt" else "a/1.txt")).write_text("{}")
    with pytest.raises(ValueError, match="several forms"):
        folder(path=tmp_path)


def spoil(path, how):
    whole = path.read_bytes()
    path.write_bytes({"empty": b"", "cut": whole[: len(whole) * 2 // 3], "not an image": b"hello" * 30}[how])


@pytest.mark.parametrize("how", ["empty", "cut", "not an image"])
def test_a_broken_image_gives_way_to_the_next(tmp_path, caplog, how):
    names = [f"{k // 3}/{k}.png" for k in range(6)]
    write(tmp_path, names, size=(40, 40))
    for bad in ("0/2.png", "1/5.png"):
        spoil(tmp_path / bad, how)
    source = folder(path=tmp_path, max_corrupt=2)
    assert len(source) == 6
    assert levels(source) == [0, 10, 30, 30, 40, 0]  # the last is followed by the first
    assert [int(source[i]["label"]) for i in range(6)] == [0, 0, 1, 1, 1, 0]
    backwards = folder(path=tmp_path, max_corrupt=2)
    assert [levels_of(backwards, i) for i in reversed(range(6))] == levels(source)[::-1]
    assert source.corrupt == ("0/2.png", "1/5.png")
    assert sum("0/2.png" in record.getMessage() for record in caplog.records) == 2  # once for each source
    strict = folder(path=tmp_path, max_corrupt=1)
    with pytest.raises(ValueError, match=r"2 images cannot be read, where max_corrupt allows 1: .*2\.png, .*5\.png"):
        levels(strict)
    with pytest.raises(ValueError, match="max_corrupt allows 0"):
        levels(folder(path=tmp_path))


def levels_of(source, i):
    return int(np.round(source[i]["x"].mean()))


def test_if_none_can_be_read_it_says_so(tmp_path):
    write(tmp_path, ["0.png", "1.png"])
    for name in ("0.png", "1.png"):
        spoil(tmp_path / name, "empty")
    with pytest.raises(ValueError, match="none of the 2 images"):
        _ = folder(path=tmp_path, max_corrupt=2)[0]


def test_images_of_many_sizes_become_batches_by_a_crop(tmp_path):
    for k, size in enumerate([(20, 31), (40, 16), (16, 16)]):
        write(tmp_path, [f"{k}.png"], size=size)
    source = folder(path=tmp_path)
    with pytest.raises(ValueError, match="varies in size.*adm_crop"):
        make_pipeline(source, batch_size=3)
    batch = make_pipeline(source, [{"name": "adm_crop", "side": 16}, "to_unit"], batch_size=3)[0]
    assert batch["x"].shape == (3, 16, 16, 3)


def test_bad_folders_are_refused_with_a_reason(tmp_path):
    with pytest.raises(ValueError, match="is not a folder"):
        folder(path=tmp_path / "nowhere")
    with pytest.raises(ValueError, match="no image below"):
        folder(path=tmp_path)
    write(tmp_path, ["a/1.png", "2.png"])
    with pytest.raises(ValueError, match="both beside and inside"):
        folder(path=tmp_path)
    (tmp_path / "2.png").unlink()
    write(tmp_path, ["a/1.png", "a/2.png"])
    (tmp_path / "captions.json").write_text(json.dumps({"a/1.png": "one"}))
    with pytest.raises(ValueError, match=r"1 of 2 images.*no caption, like 'a/2.png'"):
        folder(path=tmp_path)
    (tmp_path / "captions.json").write_text("[1, 2]")
    with pytest.raises(ValueError, match="is not of the form"):
        folder(path=tmp_path)


def test_hints_are_the_images_of_the_same_names_elsewhere(tmp_path):
    write(tmp_path / "photos", ["a/1.jpg", "b/2.png"])
    write(tmp_path / "hints", ["b/2.webp", "other.png", "a/1.png"])
    source = folder(path=tmp_path / "photos", hints=tmp_path / "hints")
    assert [int(source[place]["hint"].mean()) for place in (0, 1)] == [20, 0]
    assert source[0]["hint"].shape == source[0]["x"].shape and source.info.shapes["hint"] == (None, None, 3)
    (tmp_path / "hints" / "b" / "2.webp").unlink()
    with pytest.raises(ValueError, match="1 of 2 images have no hint in .*hints, like 'b/2.png'"):
        folder(path=tmp_path / "photos", hints=tmp_path / "hints")
    write(tmp_path / "hints", ["b/2.png"], size=(3, 5))
    source = folder(path=tmp_path / "photos", hints=tmp_path / "hints")
    with pytest.raises(ValueError, match="2.png is 3 x 5, and its image b/2.png is 6 x 5"):
        source[1]
    with pytest.raises(ValueError, match="folder: .*gone is not a folder"):
        folder(path=tmp_path / "photos", hints=tmp_path / "gone")
