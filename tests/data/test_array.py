"""Arrays in memory, in npz files and in records: what goes in comes out, and nothing runs."""

import pickle

import numpy as np
import pytest

from diffusion_jax.data.array import array, from_arrays, note, packed, unpacked, write_npz, write_records
from diffusion_jax.data.source import BYTES

DRAW = np.random.default_rng(0)
LATENTS = DRAW.normal(size=(7, 4, 4, 2)).astype(np.float32)
LABELS = np.array([0, 2, 1, 1, 0, 2, 2])
CAPTIONS = ["", "a cat", "ein Hündchen", "three\nlines\n", "{", "d" * 200, "e"]


def same(source):
    for i in range(7):
        np.testing.assert_array_equal(source[i]["x"], LATENTS[i])
        assert source[i]["label"] == LABELS[i] and source[i]["label"].dtype == np.int32
        assert source[i]["caption"] == CAPTIONS[i] and type(source[i]["caption"]) is str


def test_npz(tmp_path):
    path = tmp_path / "latents.npz"
    np.savez(path, x=LATENTS, label=LABELS, caption=CAPTIONS, classes=["cat", "dog", "eel"])
    source = array(path=str(path))
    same(source)
    assert source.info.classes == ("cat", "dog", "eel")
    assert source.info.shapes == {"x": (4, 4, 2), "label": (), "caption": ()}


def examples():
    for x, label, caption in zip(LATENTS, LABELS, CAPTIONS, strict=True):
        yield {"x": x, "label": np.int32(label), "caption": caption}


def test_records(tmp_path):
    path = tmp_path / "latents.array_record"
    assert write_records(path, examples(), classes=["cat", "dog", "eel"]) == 7
    source = array(path=str(path))
    same(source)
    same(pickle.loads(pickle.dumps(source)))
    assert source.info.classes == ("cat", "dog", "eel")
    assert source.info.shapes == {"x": (4, 4, 2), "label": (), "caption": ()}


def test_records_in_several_files_are_one_source(tmp_path):
    rows = list(examples())
    for part, some in enumerate((rows[:3], rows[3:4], rows[4:])):
        write_records(tmp_path / f"latents-{part}.array_record", some)
    same(array(path=str(tmp_path / "latents-*.array_record")))
    same(array(path=[str(tmp_path / f"latents-{part}.array_record") for part in range(3)]))


@pytest.mark.parametrize(("write", "ending"), [(write_records, "array_record"), (write_npz, "npz")])
def test_what_is_written_replaces_a_file_when_it_is_whole(tmp_path, write, ending):
    path = tmp_path / f"latents.{ending}"

    def broken():
        yield from list(examples())[:3]
        raise RuntimeError

    with pytest.raises(RuntimeError):
        write(path, broken())
    assert not list(tmp_path.iterdir())
    write(path, examples(), classes=["cat", "dog", "eel"])
    note(path, mean=[0.0])
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    with pytest.raises(RuntimeError):
        write(path, broken())
    assert before == {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    same(array(path=str(path)))


@pytest.mark.parametrize("dtype", ["uint8", "float16", "float32", "float64", ">f4", "int32", "int64", "bool"])
@pytest.mark.parametrize("shape", [(), (3,), (2, 3, 4), (0, 5)], ids=str)
def test_a_record_keeps_every_bit(dtype, shape):
    value = (DRAW.normal(size=shape) * 50).astype(dtype)
    back = unpacked(packed({"caption": "é\n", "x": value, "label": np.int32(3)}))
    np.testing.assert_array_equal(back["x"], value)
    assert np.asarray(back["x"]).dtype == np.dtype(dtype).newbyteorder("<") and np.shape(back["x"]) == shape
    assert (back["caption"], back["label"]) == ("é\n", 3)


def test_images_in_bytes_know_their_range():
    source = from_arrays({"x": np.zeros((2, 4, 4, 3), np.uint8), "label": [0, 4]})
    assert source.info.range == BYTES and source.info.classes == ("0", "1", "2", "3", "4")
    assert from_arrays({"x": LATENTS}).info.range is None


class Trap:
    """Leaves a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_pickled_objects_are_never_loaded(tmp_path):
    path, sprung = tmp_path / "trap.npz", tmp_path / "sprung"
    np.savez(path, x=LATENTS, caption=np.array([Trap(sprung)] * 7, dtype=object))
    with pytest.raises(ValueError, match=r"trap\.npz holds Python objects"):
        array(path=str(path))
    assert not sprung.exists()
    with pytest.raises(ValueError, match="holds Python objects"):
        packed({"x": np.array([None, 1])})


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: array(path=str(path / "gone.npz")), "there is no file"),
        (lambda path: array(path=str(path / "*.array_record")), "there is no file"),
        (lambda path: from_arrays({"label": [0]}), "there is no 'x', only label"),
        (lambda path: from_arrays({"x": np.zeros((2, 3)), "labels": [0, 1]}), "unknown entry 'labels'"),
        (lambda path: from_arrays({"x": np.zeros((2, 3)), "label": [0]}), "must be the same"),
        (lambda path: from_arrays({"x": np.zeros((0, 3))}), "not 0"),
        (lambda path: from_arrays({"x": np.zeros((2, 3)), "label": [0, 2]}, classes=["a", "b"]), "for 2 classes"),
        (lambda path: write_records(path / "x.npz", []), "must end in .array_record"),
        (lambda path: write_npz(path / "x.npz", []), "no examples to write"),
    ],
)
def test_bad_arrays_are_refused_with_a_reason(tmp_path, make, words):
    with pytest.raises(ValueError, match=words):
        make(tmp_path)


def test_records_that_are_not_whole_are_refused(tmp_path):
    path = tmp_path / "a.array_record"
    write_records(path, [{"x": np.zeros(3, np.float32)}])
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match="a.array_record cannot be read; a file is not whole"):
        array(path=str(path))


def test_a_file_of_another_kind_is_refused(tmp_path):
    (tmp_path / "x.csv").write_text("1,2")
    with pytest.raises(ValueError, match=r"must be one \.npz file"):
        array(path=str(tmp_path / "x.csv"))
    np.savez(tmp_path / "x.npz", x=LATENTS)
    whole = (tmp_path / "x.npz").read_bytes()
    for damaged in (b"", b"PK no zip", whole[: len(whole) // 2]):
        (tmp_path / "x.npz").write_bytes(damaged)
        with pytest.raises(ValueError, match=r"x\.npz holds Python objects or is damaged"):
            array(path=str(tmp_path / "x.npz"))
