"""Images from folders, archives and arrays are the pixels that were put there."""

import tracemalloc
import zipfile

import numpy as np
import pytest
from PIL import Image

from diffusion_jax.evaluation.images import fingerprint_of, images_of

PIXELS = np.random.default_rng(0).integers(0, 256, (5, 6, 7, 3), np.uint8)


@pytest.fixture
def folder(tmp_path):
    """Five images in a folder and one below it, named in their order."""
    root = tmp_path / "images"
    (root / "b").mkdir(parents=True)
    for place, name in enumerate(["a0.png", "a1.png", "b/0.png", "b/1.png", "c.png"]):
        Image.fromarray(PIXELS[place]).save(root / name)
    (root / "notes.txt").write_text("not an image")
    return root


def zipped(folder):
    path = folder.parent / "images.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*.*"), reverse=True):
            archive.write(file, file.relative_to(folder))
        archive.writestr("__MACOSX/a0.png", b"not an image either")
    return path


def stored(folder, images=PIXELS, write=np.savez):
    write(folder.parent / "images.npz", images)
    return folder.parent / "images.npz"


@pytest.mark.parametrize("place", [lambda folder: folder, zipped, stored])
@pytest.mark.parametrize("batch", [1, 2, 5, 64])
def test_pixels_come_in_the_order_of_their_names_in_batches(folder, place, batch):
    batches = list(images_of(place(folder), batch=batch))
    assert [len(part) for part in batches[:-1]] == [batch] * (len(batches) - 1)
    found = np.concatenate(batches)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, PIXELS)


def test_grey_becomes_rgb_and_transparency_lies_on_white(folder):
    Image.fromarray(PIXELS[0, :, :, 0]).save(folder / "a0.png")
    Image.new("RGBA", (7, 6), (0, 0, 0, 0)).save(folder / "a1.png")
    found = next(images_of(folder))
    np.testing.assert_array_equal(found[0], np.repeat(PIXELS[0, :, :, :1], 3, -1))
    assert (found[1] == 255).all()
    grey = next(images_of(stored(folder, PIXELS[..., :1])))
    np.testing.assert_array_equal(grey, np.repeat(PIXELS[..., :1], 3, -1))


@pytest.mark.parametrize("write", [np.savez, np.savez_compressed])
def test_an_array_is_never_held_whole(folder, write):
    path = stored(folder, np.zeros((2000, 32, 32, 3), np.uint8), write)
    tracemalloc.start()
    total = sum(len(batch) for batch in images_of(path, batch=16))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert total == 2000
    assert peak < 1e6  # of 6 MB


def test_fingerprints_see_contents_and_names(folder):
    first = fingerprint_of(folder)
    (folder / "notes.txt").write_text("changed")
    assert fingerprint_of(folder) == first
    (folder / "c.png").rename(folder / "d.png")
    assert fingerprint_of(folder) != first
    path = stored(folder)
    one = fingerprint_of(path)
    assert fingerprint_of(stored(folder, 255 - PIXELS)) != one


def cut(folder):
    (folder / "b" / "1.png").write_bytes((folder / "b" / "1.png").read_bytes()[:60])
    return folder


def swap(folder, image):
    image.save(folder / "c.png")
    return folder


def emptied(folder):
    for file in folder.rglob("*.png"):
        file.unlink()
    return folder


def shortened(folder):
    path = stored(folder)
    path.write_bytes(path.read_bytes()[:300])
    return path


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (cut, r"1\.png cannot be read"),
        (lambda folder: zipped(cut(folder)), r"b/1\.png in .*images\.zip cannot be read"),
        (lambda folder: swap(folder, Image.new("RGB", (7, 5))), r"c\.png is 5 x 7 and .*a0\.png is 6 x 7"),
        (lambda folder: swap(folder, Image.new("I;16", (7, 6))), r"c\.png has more than 8 bits"),
        (emptied, "no image in .*; it looks for .png"),
        (lambda folder: zipped(emptied(folder)), "no image in"),
        (lambda folder: folder / "nowhere", "is not there"),
        (lambda folder: folder / "notes.txt", "neither a folder nor a whole zip"),
        (shortened, "damaged or not whole"),
        (lambda folder: stored(folder, PIXELS / 255), "float64 of shape"),
        (lambda folder: stored(folder, PIXELS[0]), r"uint8 of shape \(6, 7, 3\)"),
        (lambda folder: stored(folder, PIXELS[:0]), "one or more"),
    ],
)
def test_what_is_wrong_is_named(folder, spoil, words):
    path = spoil(folder)
    with pytest.raises(ValueError, match=words):
        images_of(path)
