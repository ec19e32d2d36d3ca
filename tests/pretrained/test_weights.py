"""Weights are the same numbers whatever file they come in, and no file runs code."""

import builtins
import io
import os
import pickle
import struct
import zipfile
from collections import OrderedDict
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from diffusion_jax.pretrained.torch_file import MAGIC, read_torch
from diffusion_jax.pretrained.weights import READERS, fingerprint, read_weights

ARRAYS = {
    "conv.weight": np.random.default_rng(0).normal(size=(2, 3, 1, 1)).astype(np.float32),
    "bias": np.arange(4, dtype=np.float16),
    "steps": np.array(7, np.int64),
    "none": np.zeros((0, 3), np.float32),
}


class Call:
    """What a pickle says to call, by name."""

    def __init__(self, name, *arguments):
        self.name, self.arguments = name, arguments


class Storage:
    """A storage as a pickle names it."""

    def __init__(self, key, array, legacy=False):
        kind = {"float32": "Float", "float16": "Half", "int64": "Long", "bfloat16": "BFloat16"}[array.dtype.name]
        self.reference = ("storage", Call(f"torch.{kind}Storage"), key, "cpu", array.size, *([None] if legacy else []))


PICKLER: Any = vars(pickle)["_Pickler"]  # the one in Python, whose steps can be replaced


class Writer(PICKLER):
    """A pickler that writes names without the things that they name."""

    def persistent_id(self, obj):
        return obj.reference if isinstance(obj, Storage) else None

    def save(self, obj, save_persistent_id=True):
        if isinstance(obj, Call):
            module, _, name = obj.name.rpartition(".")
            self.write(pickle.GLOBAL + f"{module}\n{name}\n".encode())
            if obj.arguments:
                self.save(obj.arguments)
                self.write(pickle.REDUCE)
            return None
        return super().save(obj, save_persistent_id)


def dumped(tree):
    buffer = io.BytesIO()
    Writer(buffer, protocol=2).dump(tree)
    return buffer.getvalue()


def tensor(storage, shape, strides, offset=0):
    return Call("torch._utils._rebuild_tensor_v2", storage, offset, shape, strides, False, OrderedDict())


def strides_of(array):
    return tuple(step // array.itemsize for step in array.strides)


def write_zip(path, tree, storages, **more):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model/data.pkl", dumped(tree))
        for key, array in storages.items():
            archive.writestr(f"model/data/{key}", array.tobytes())
        for name, content in more.items():
            archive.writestr(f"model/{name}", content)


def plain(arrays, legacy=False):
    """Return a pickled tree of tensors, and their storages."""
    storages = {str(place): array for place, array in enumerate(arrays.values())}
    tree = OrderedDict(
        (name, tensor(Storage(key, array, legacy), array.shape, strides_of(array)))
        for (name, array), key in zip(arrays.items(), storages, strict=True)
    )
    return tree, storages


def write_torch(path, arrays):
    write_zip(path, *plain(arrays))


def write_legacy(path, arrays):
    tree, storages = plain(arrays, legacy=True)
    with open(path, "wb") as file:
        for part in (MAGIC, 1001, {"little_endian": True}, tree, list(storages)):
            file.write(dumped(part))
        for array in storages.values():
            file.write(struct.pack("<q", array.size) + array.tobytes())


WRITERS: Any = {
    ".safetensors": lambda path, arrays: safetensors.numpy.save_file(arrays, path),
    ".npz": lambda path, arrays: np.savez(path, **arrays),
}


@pytest.mark.parametrize("ending", READERS)
@pytest.mark.parametrize("way", [write_torch, write_legacy])
def test_every_format_gives_the_same_arrays(tmp_path, ending, way):
    WRITERS.get(ending, way)(tmp_path / f"file{ending}", ARRAYS)
    found = read_weights(tmp_path / f"file{ending}")
    assert found.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)
    assert fingerprint(found) == fingerprint(ARRAYS)


def test_fingerprints_see_names_numbers_shapes_and_types():
    one = {"a": np.arange(4.0), "b": np.zeros(2)}
    others = [
        {"a": np.arange(4.0), "c": np.zeros(2)},
        {"a": np.arange(4.0), "b": np.zeros(2, np.float32)},
        {"a": np.arange(4.0).reshape(2, 2), "b": np.zeros(2)},
        {"a": np.arange(4.0) + 1e-15, "b": np.zeros(2)},
        {"a": np.arange(4.0)},
    ]
    assert len({fingerprint(arrays) for arrays in (one, *others)}) == 6
    assert fingerprint(dict(reversed(one.items()))) == fingerprint(one)
    assert fingerprint({"a": np.arange(8.0)[::2]}) == fingerprint({"a": np.arange(8.0)[::2].copy()})


def test_views_keep_their_strides_and_ties_their_memory(tmp_path):
    whole = np.arange(12, dtype=np.float32)
    one = Storage("0", whole)
    tree = {
        "whole": tensor(one, (3, 4), (4, 1)),
        "turned": tensor(one, (4, 3), (1, 4)),
        "part": tensor(one, (2,), (5,), offset=3),
        "nested": {"deep": {"scalar": tensor(one, (), (), offset=11)}, "epoch": 3, "names": ["x"]},
    }
    write_zip(tmp_path / "a.pth", tree, {"0": whole})
    found = read_torch(tmp_path / "a.pth")
    assert set(found) == {"whole", "turned", "part", "nested.deep.scalar"}
    np.testing.assert_array_equal(found["turned"], whole.reshape(3, 4).T)
    np.testing.assert_array_equal(found["part"], [3, 8])
    assert found["nested.deep.scalar"] == 11
    assert np.shares_memory(found["whole"], found["turned"])
    with pytest.raises(ValueError, match="read-only"):
        found["whole"][0] = 1


def test_bfloat16_is_read_and_parameters_are_tensors(tmp_path):
    brain = np.array([1.5, -3.0], ml_dtypes.bfloat16)
    tree = {"p": Call("torch._utils._rebuild_parameter", tensor(Storage("0", brain), (2,), (1,)), True, OrderedDict())}
    write_zip(tmp_path / "a.pt", tree, {"0": brain})
    found = read_torch(tmp_path / "a.pt")["p"]
    assert found.dtype == brain.dtype
    np.testing.assert_array_equal(found.astype(np.float32), [1.5, -3.0])


@pytest.mark.parametrize("legacy", [False, True])
def test_torch_writes_what_is_read(tmp_path, legacy):
    torch = pytest.importorskip("torch")
    layer = torch.nn.BatchNorm1d(3)
    tree = {"state_dict": layer.state_dict(), "parameter": layer.weight, "view": torch.arange(6).reshape(2, 3).T}
    torch.save(tree, tmp_path / "a.pth", _use_new_zipfile_serialization=not legacy)
    found = read_torch(tmp_path / "a.pth")
    assert set(found) == {f"state_dict.{name}" for name in layer.state_dict()} | {"parameter", "view"}
    np.testing.assert_array_equal(found["view"], [[0, 3], [1, 4], [2, 5]])
    assert np.shares_memory(found["parameter"], found["state_dict.weight"])


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("os.system", ("true",)),
        ("builtins.eval", ("1",)),
        ("builtins.getattr", ("x", "y")),
        ("torch.load", ("x",)),
        ("torch._utils._rebuild_device_tensor_from_numpy", ()),
        ("types.SimpleNamespace", ()),
        ("numpy._core.multiarray._reconstruct", ()),
    ],
)
@pytest.mark.parametrize("legacy", [False, True])
def test_what_is_not_a_tensor_is_refused_by_name_and_not_run(tmp_path, monkeypatch, name, arguments, legacy):
    ran = []
    monkeypatch.setattr(os, "system", ran.append)
    monkeypatch.setattr(builtins, "eval", ran.append)
    tree = {"weights": Call(name, *arguments)}
    if legacy:
        parts = (MAGIC, 1001, {"little_endian": True}, tree)
        (tmp_path / "a.pth").write_bytes(b"".join(map(dumped, parts)))
    else:
        write_zip(tmp_path / "a.pth", tree, {})
    with pytest.raises(ValueError, match=f"asks for '{name}'.*safetensors"):
        read_torch(tmp_path / "a.pth")
    assert not ran


def beyond(path, shape=(5,), strides=(1,), offset=0):
    four = np.zeros(4, np.float32)
    write_zip(path, {"a": tensor(Storage("0", four), shape, strides, offset)}, {"0": four})


def truncate(path, write, share):
    write(path, ARRAYS)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])


def flip(path):
    write_torch(path, {"a": np.full(500, 7, np.float32)})
    content = bytearray(path.read_bytes())
    place = content.rfind(np.full(20, 7, np.float32).tobytes())
    content[place] ^= 1
    path.write_bytes(content)


FOUR = np.zeros(4, np.float32)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda path: beyond(path), "'a' reaches beyond its storage"),
        (lambda path: beyond(path, (2,), (9,)), "reaches beyond"),
        (lambda path: beyond(path, (1,), (1,), 4), "reaches beyond"),
        (lambda path: beyond(path, (1,), (-1,)), "damaged.*nonsense"),
        (lambda path: beyond(path, (2, 2), (1,)), "damaged.*nonsense"),
        (lambda path: beyond(path, ("2",), (1,)), "damaged.*nonsense"),
        (lambda path: write_zip(path, {"a": tensor(Storage("0", FOUR), (4,), (1,))}, {}), "damaged"),
        (
            lambda path: write_zip(path, {"a": tensor(Storage("0", FOUR), (4,), (1,))}, {"0": FOUR[:3]}),
            "12 bytes, not 16",
        ),
        (lambda path: truncate(path, write_torch, 0.7), "neither a file of torch.save nor whole"),
        (lambda path: truncate(path, write_legacy, 0.98), "damaged or not whole"),
        (lambda path: truncate(path, write_legacy, 0.3), "damaged or not whole"),
        (flip, "damaged.*CRC"),
        (
            lambda path: path.write_bytes(pickle.dumps(ARRAYS["steps"].tolist())),
            "is a pickle, not a file of torch.save",
        ),
        (lambda path: path.write_bytes(b""), "neither a file of torch.save nor whole"),
        (lambda path: path.write_text("<html>"), "a page that was saved in place"),
        (lambda path: write_zip(path, [1], {}), "holds a list"),
        (lambda path: write_zip(path, {"epoch": 1}, {}), "no tensors by name; it has epoch"),
        (lambda path: write_zip(path, {}, {}, **{"constants.pkl": b""}), "TorchScript"),
        (lambda path: write_zip(path, {}, {}, byteorder=b"big"), "big-endian"),
        (lambda path: np.savez(path.open("wb"), a=1), "without PyTorch's data.pkl"),
    ],
)
def test_broken_files_are_refused_with_a_reason(tmp_path, spoil, words):
    spoil(tmp_path / "a.pth")
    with pytest.raises(ValueError, match=words):
        read_torch(tmp_path / "a.pth")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.pkl", b"", "is a pickle, and reading one can run any code.*safetensors"),
        ("a.safetensor", b"", "Did you mean '.safetensors'"),
        ("a.safetensors", b"\x10\0\0\0\0\0\0\0{", "not a whole safetensors file"),
        ("a.npz", b"PK\x03\x04", "not a whole npz file"),
        ("a.npz", pickle.dumps([1]), "not a whole npz file"),
        ("b.npz", None, "there is no file"),
    ],
)
def test_files_that_are_no_weights_are_refused(tmp_path, name, content, words):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=words):
        read_weights(tmp_path / name)
