"""Files of safetensors are what their own library wrote, and damaged ones are refused by what is wrong."""

import json

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from diffusion_jax.pretrained.safetensors_file import entries, read, write

ARRAYS = {
    "a": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b": np.array(1.5, np.float16),
    "c": np.arange(3, dtype=ml_dtypes.bfloat16),
    "d": np.array([True, False]),
    "e": np.zeros((0, 4), np.float32),
    "f": np.arange(-2, 2, dtype=np.int64),
}


def same(one, two):
    assert one.keys() == two.keys()
    for name in one:
        assert one[name].dtype == two[name].dtype and one[name].shape == two[name].shape
        np.testing.assert_array_equal(one[name], two[name])


def test_what_their_library_writes_is_read(tmp_path):
    path = tmp_path / "a.safetensors"
    safetensors.numpy.save_file(ARRAYS, path, metadata={"format": "pt"})
    same({name: read(path, entry) for name, entry in entries(path).items()}, ARRAYS)


def test_what_is_written_their_library_reads(tmp_path):
    path = tmp_path / "a.safetensors"
    write(path, {name: (array.dtype, array.shape) for name, array in ARRAYS.items()}, ARRAYS.__getitem__)
    same(safetensors.numpy.load_file(path), ARRAYS)
    assert [path] == list(tmp_path.iterdir())


def file_of(header, data=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def spec(start=0, stop=4, shape=(1,), dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": (start, stop)}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "its header would have 0 bytes, the file has 0"),
        (b"\1\2\3", "the file has 3 and a header"),
        (file_of({"a": spec()}, bytes(4), length=2**62), "would have 4611686018427387904 bytes"),
        (file_of({"a": spec()}, bytes(4), length=100), "would have 100 bytes, the file has"),
        (file_of(b"{" * 40), "is no description of tensors .JSONDecodeError"),
        (file_of(b"\xff" * 8), "is no description of tensors .UnicodeDecodeError"),
        (file_of(b"[" * 100_000), "is no description of tensors"),
        (file_of([1]), "is no description of tensors"),
        (file_of({"a": 1}), "is no description of tensors .TypeError"),
        (file_of({"a": spec(dtype="Q4")}, bytes(4)), "is no description of tensors .KeyError: 'Q4'"),
        (file_of({"a": spec(shape=(-1,))}, bytes(4)), "'a' has the shape .-1"),
        (file_of({"a": spec(shape=(2**40, 2**40))}, bytes(4)), "'a', float32 of .*, lies at bytes"),
        (file_of({"a": spec(stop=8)}, bytes(8)), "'a', float32 of .1,., lies at bytes"),
        (file_of({"a": spec(), "b": spec()}, bytes(4)), "'b', float32 of .1,., lies at"),
        (file_of({"a": spec(start=4, stop=8)}, bytes(8)), "where .* was to come"),
        (file_of({"a": spec()}, bytes(3)), "its tensors end at byte .* and it has"),
        (file_of({"a": spec()}, bytes(5)), "its tensors end at byte .* and it has"),
    ],
)
def test_damaged_files_are_refused_unread(tmp_path, content, words):
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    with pytest.raises(
        ValueError, match=f"a.safetensors is not a whole safetensors file: .*{words}.*Download it again"
    ):
        entries(path)


def test_a_header_has_at_most_the_size_of_the_format(tmp_path):
    path = tmp_path / "a.safetensors"
    with open(path, "wb") as file:
        file.write((100_000_001).to_bytes(8, "little"))
        file.truncate(200_000_000)  # sparse
    with pytest.raises(ValueError, match="a header at most 100000000"):
        entries(path)
