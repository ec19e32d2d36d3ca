"""A data set of the catalogue's kind, written and read without TensorFlow."""

import io
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffusion_jax.data.source import BYTES
from diffusion_jax.data.tfds import tfds

NAMES = ["ant", "bee", "cow"]


def prepared(root, images):
    """Write images with labels and captions as the data set `tiny_pictures`, as array_record."""
    import tensorflow_datasets as catalogue

    def encoded(image):
        file = io.BytesIO()
        Image.fromarray(image).save(file, "PNG")
        return file.getvalue()

    features = catalogue.features.FeaturesDict(
        {
            "image": catalogue.features.Image(shape=images.shape[1:], encoding_format="png"),
            "label": catalogue.features.ClassLabel(names=NAMES),
            "title": catalogue.features.Text(),
            "number": catalogue.features.Scalar(np.int64),
        }
    )
    rows = [
        (i, {"image": encoded(image), "label": i % 3, "title": f"{NAMES[i % 3]} ü {i}", "number": i})
        for i, image in enumerate(images)
    ]

    class TinyPictures(catalogue.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = catalogue.core.Version("1.0.0")

        def _info(self):
            return catalogue.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, dl_manager):
            return {"train": iter(rows), "test": iter(rows[:2])}

        def _generate_examples(self, **keywords):
            raise NotImplementedError

    TinyPictures(data_dir=str(root), file_format="array_record").download_and_prepare()


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    root = tmp_path_factory.mktemp("tfds")
    images = np.random.default_rng(0).integers(0, 256, (10, 8, 6, 3)).astype(np.uint8)
    prepared(root, images)
    return root, images


def test_what_was_written_is_read(written):
    root, images = written
    source = tfds(dataset="tiny_pictures", data_dir=str(root), caption="title")
    assert len(source) == 10
    assert source.info.classes == tuple(NAMES)
    assert source.info.shapes == {"x": (8, 6, 3), "label": (), "caption": ()}
    assert source.info.range == BYTES
    seen = set()
    for i in range(10):
        example = source[i]
        number = int(example["caption"].split()[-1])
        seen.add(number)
        np.testing.assert_array_equal(example["x"], images[number])
        assert example["caption"] == f"{NAMES[number % 3]} ü {number}" and example["label"] == number % 3
    assert seen == set(range(10))
    again = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(again[3]["x"], source[3]["x"])


def test_splits_and_parts_of_them(written):
    root, _ = written
    assert len(tfds(dataset="tiny_pictures", split="test", data_dir=str(root))) == 2
    assert len(tfds(dataset="tiny_pictures", split="train[:40%]", data_dir=str(root))) == 4
    assert set(tfds(dataset="tiny_pictures", data_dir=str(root), label=None)[0]) == {"x"}


def test_no_tensorflow(written):
    root, _ = written
    code = (
        "import sys; from diffusion_jax.data import make_source\n"
        f"source = make_source(dict(name='tfds', dataset='tiny_pictures', data_dir={str(root)!r}))\n"
        "assert source[0]['x'].shape == (8, 6, 3)\n"
        "assert not {'tensorflow', 'jax'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


@pytest.mark.parametrize(
    ("keywords", "words"),
    [
        ({"dataset": "tiny_picture"}, "no data set 'tiny_picture'.*tfds build"),
        ({"dataset": "cifar10"}, "'cifar10' is not prepared.*--file_format=array_record"),
        ({"dataset": "tiny_pictures", "split": "trian"}, "no split 'trian'.*Known: test, train"),
        ({"dataset": "tiny_pictures", "image": "imgae"}, "Did you mean 'image'"),
        ({"dataset": "tiny_pictures", "label": "number"}, "is no class label"),
    ],
)
def test_what_is_missing_is_named_with_its_remedy(written, keywords, words):
    with pytest.raises(ValueError, match=words):
        tfds(**keywords, data_dir=str(written[0]))
