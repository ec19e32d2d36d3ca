"""What every source promises, and that the room needs no JAX."""

import pickle
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffusion_jax.data import SOURCES, make_source
from tests.data.test_tfds import prepared

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def specs(tmp_path_factory):
    """Every entry of SOURCES with the keywords it needs."""
    root = tmp_path_factory.mktemp("sources")
    draw = np.random.default_rng(0)
    images = draw.integers(0, 256, (9, 8, 8, 3)).astype(np.uint8)
    for k, image in enumerate(images):
        path = root / "folder" / f"class {k % 3}" / f"{k}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    np.savez(root / "images.npz", x=images, label=np.arange(9) % 3)
    prepared(root, images)
    return {
        "array": {"path": str(root / "images.npz")},
        "density": {"examples": 100},
        "folder": {"path": str(root / "folder")},
        "shapes": {"examples": 100, "entries": ("x", "label", "caption", "mask", "edges")},
        "tfds": {"dataset": "tiny_pictures", "data_dir": str(root)},
    }


def text(example):
    return {name: np.asarray(value).tobytes() for name, value in example.items()}


@pytest.mark.parametrize("name", list(SOURCES))
def test_a_source_is_a_function_of_the_index(specs, name):
    source = make_source({"name": name, **specs[name]})
    count = min(len(source), 20)
    first = [text(source[i]) for i in range(count)]
    again = make_source({"name": name, **specs[name]})
    copied = pickle.loads(pickle.dumps(source))
    for i in reversed(range(count)):
        assert text(source[i]) == first[i]
        assert text(again[np.int64(i)]) == first[i]
        assert text(copied[i]) == first[i]
    assert len(source) == len(again) == len(copied)
    assert len({example["x"] for example in first}) == count


@pytest.mark.parametrize("name", list(SOURCES))
def test_a_source_tells_the_truth_of_its_examples(specs, name):
    source = make_source({"name": name, **specs[name]})
    info = source.info
    for i in (0, len(source) // 2, len(source) - 1):
        example = source[i]
        assert set(example) == set(info.shapes)
        for entry, shape in info.shapes.items():
            found = np.shape(example[entry])
            assert len(found) == len(shape)
            assert all(known in (None, length) for known, length in zip(shape, found, strict=True))
        assert example["label"].dtype == np.int32 and 0 <= example["label"] < info.num_classes
        if info.range is not None:
            assert info.range[0] <= example["x"].min() and example["x"].max() <= info.range[1]
    assert len(set(info.classes)) == info.num_classes > 0
    for outside in (-1, len(source)):
        with pytest.raises(IndexError, match=f"of a source of {len(source)}"):
            _ = source[outside]


@pytest.mark.parametrize("name", list(SOURCES))
def test_threads_read_the_same(specs, name):
    source = make_source({"name": name, **specs[name]})
    count = min(len(source), 12)
    expected = [text(source[i]) for i in range(count)]
    wrong = []

    def read():
        wrong.extend(i for i in range(count) if text(source[i]) != expected[i])

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_unknown_sources_are_corrected():
    with pytest.raises(ValueError, match="unknown source 'shape'. Did you mean 'shapes'"):
        make_source("shape")
    with pytest.raises(ValueError, match="'tfds' needs 'dataset'"):
        make_source("tfds")


def test_the_room_needs_no_jax():
    code = (
        "import sys\n"
        "from diffusion_jax.data import make_evaluation, make_pipeline, make_source\n"
        "from diffusion_jax.data import attributes, pixels\n"
        "source = make_source('shapes')\n"
        "make_pipeline(source, ['flip', 'to_unit', 'drop_label', 'condition'], batch_size=4)[7]\n"
        "make_evaluation(source, ['to_unit'], batch_size=4)[0]\n"
        "attributes.read_scenes(source[0]['x'][None], source)\n"
        "heavy = {'jax', 'flax', 'tensorflow', 'torch', 'tensorflow_datasets', 'grain'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
