"""Tensors out of PyTorch's files, without PyTorch and without running what is in them.

Such a file is a pickle, which says how to rebuild the tensors, and their bytes: since PyTorch 1.6 as members of a zip
archive, before that one after the other behind the pickle. A pickle can name any function for its reader to call, so a
stranger's file can do anything at all. This reader knows the few names that tensors need and refuses all others; what a
tensor is rebuilt to is only a note of where its bytes are, and each note is held against the size of its storage.
"""

import io
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle of a file from before 1.6
WAY_ROUND = (
    "If you trust it, read it once with PyTorch and save its tensors: "
    "safetensors.torch.save_file(torch.load(path, weights_only=False)['state_dict'], 'weights.safetensors')."
)

_DTYPES = (
    ("Float", "float32"),
    ("Double", "float64"),
    ("Half", "float16"),
    ("BFloat16", "bfloat16"),
    ("Long", "int64"),
    ("Int", "int32"),
    ("Short", "int16"),
    ("Char", "int8"),
    ("Byte", "uint8"),
    ("Bool", "bool"),
)


class Tensor(NamedTuple):
    """Where a tensor's numbers are, in elements of its storage."""

    storage: "Storage"
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class Storage(NamedTuple):
    """The numbers that tensors share."""

    key: str
    dtype: str
    size: int


def read_torch(path: str | Path) -> dict[str, np.ndarray]:
    """Read the tensors of a `.pth`, `.pt`, `.ckpt` or `.bin` file as arrays that cannot be written to.

    Mappings in mappings are joined by dots, as in "state_dict.conv.weight"; what is not a tensor is left out. Tensors
    that share their memory in PyTorch share it here.
    """
    tree, storages = _read(path)
    if not isinstance(tree, Mapping):
        raise ValueError(f"{path} holds a {type(tree).__name__}, not tensors by name. {WAY_ROUND}")
    found = {name: array_of(path, name, tensor, storages) for name, tensor in _leaves(tree)}
    if not found:
        raise ValueError(f"{path} holds no tensors by name; it has {', '.join(map(str, tree)) or 'nothing'}.")
    return found


def read_torch_tree(path: str | Path) -> Any:
    """Read all that such a file holds: mappings, sequences, numbers and words, with arrays in place of tensors."""
    tree, storages = _read(path)

    def whole(name, value, depth=0):
        if depth > 20:
            raise ValueError(f"{path} holds mappings in mappings without end; it is damaged.")
        if isinstance(value, Tensor):
            return array_of(path, name, value, storages)
        if isinstance(value, Mapping):
            return {key: whole(f"{name}.{key}", inner, depth + 1) for key, inner in value.items()}
        if isinstance(value, list | tuple):
            return [whole(f"{name}.{place}", inner, depth + 1) for place, inner in enumerate(value)]
        return value

    return whole("", tree)


def _read(path):
    """Read a tree whose tensors are notes, and the storages that these are of."""
    try:
        with open(path, "rb") as file:
            return _zipped(path, file) if zipfile.is_zipfile(file) else in_sequence(path, file)
    except (zipfile.BadZipFile, EOFError, pickle.UnpicklingError, *NONSENSE) as error:
        raise ValueError(
            f"{path} is damaged or not whole ({type(error).__name__}: {error}); download it again and compare its size "
            "and sha256 with its source's."
        ) from None


# What broken bytes make a reader of pickles raise.
NONSENSE = (KeyError, TypeError, AttributeError, IndexError, OverflowError, UnicodeDecodeError, RecursionError)


def _zipped(path, file):
    with zipfile.ZipFile(file) as archive:
        names = archive.namelist()
        roots = [name.removesuffix("data.pkl") for name in names if name.endswith("/data.pkl") or name == "data.pkl"]
        if len(roots) != 1:
            raise ValueError(f"{path} is a zip archive without PyTorch's data.pkl; it is not a file of torch.save.")
        (root,) = roots
        if f"{root}constants.pkl" in names:
            raise ValueError(f"{path} is a TorchScript archive, which is code; its state_dict is wanted. {WAY_ROUND}")
        if f"{root}byteorder" in names and archive.read(f"{root}byteorder") != b"little":
            raise ValueError(f"{path} was written on a big-endian machine. {WAY_ROUND}")
        reader = _Reader(path, io.BytesIO(archive.read(f"{root}data.pkl")))
        tree = reader.load()
        storages = {}
        for storage in reader.storages.values():
            entry = archive.getinfo(f"{root}data/{storage.key}")
            if entry.file_size != _bytes(storage) or entry.compress_type != zipfile.ZIP_STORED:
                raise ValueError(f"{path}: a tensor's storage has {entry.file_size} bytes, not {_bytes(storage)}.")
            storages[storage.key] = _numbers(archive.read(entry), storage)
    return tree, storages


def in_sequence(path: str | Path, file: Any) -> tuple[Any, dict[str, np.ndarray]]:
    """Read what was saved before PyTorch 1.6, and single storages still are: a tree, and storages by key."""
    file.seek(0)
    start = file.read(2)
    file.seek(0)
    if start[:1] != b"\x80":
        raise ValueError(
            f"{path} is neither a file of torch.save nor whole: it does not begin as one. A download that was cut "
            "short, or a page that was saved in place of the file, looks like this."
        )
    if _Reader(path, file).load() != MAGIC:
        raise ValueError(f"{path} is a pickle, not a file of torch.save: pickles can run any code. {WAY_ROUND}")
    if _Reader(path, file).load() != 1001 or not _Reader(path, file).load().get("little_endian", True):
        raise ValueError(f"{path} was written by another protocol or on a big-endian machine. {WAY_ROUND}")
    reader = _Reader(path, file)
    tree = reader.load()
    storages = {}
    for key in _Reader(path, file).load():
        storage = reader.storages[key]
        size = int.from_bytes(file.read(8), "little")
        content = file.read(_bytes(storage)) if size == storage.size else b""
        if size != storage.size or len(content) != _bytes(storage):
            raise EOFError(f"storage {key} is cut short")
        storages[key] = _numbers(content, storage)
    return tree, storages


class _Reader(pickle.Unpickler):
    """An unpickler that knows the names that tensors need."""

    def __init__(self, path, file):
        super().__init__(file, encoding="utf-8")
        self._path, self._known, self.storages = path, known_names(), {}

    def find_class(self, module, name):
        found = self._known.get(f"{module}.{name}")
        if found is None:
            raise ValueError(
                f"{self._path} asks for '{module}.{name}', which is not part of a tensor; calling what a file asks for "
                f"can run any code, so it is refused. {WAY_ROUND}"
            )
        return found

    def persistent_load(self, pid):
        kind, dtype, key, _, size, *view = pid
        if kind != "storage" or any(view) or dtype not in dict(_DTYPES).values() or not _counts(size):
            raise ValueError(f"{self._path} has a storage of an unknown kind: {pid[:3]}. {WAY_ROUND}")
        storage = Storage(str(key), dtype, size)
        if self.storages.setdefault(storage.key, storage) != storage:
            raise ValueError(f"{self._path} gives one storage two types or sizes; it is damaged.")
        return storage


def known_names() -> dict[str, Callable[..., Any] | str]:
    """Make what a pickle may name: functions that no later file sees, and names of dtypes."""

    def rebuild(storage, offset, shape, strides, *_):
        shape, strides = tuple(shape), tuple(strides)
        if not isinstance(storage, Storage) or len(shape) != len(strides) or not _counts(offset, *shape, *strides):
            raise TypeError("a tensor of nonsense")
        return Tensor(storage, offset, shape, strides)

    class Left:
        """The options of a training script, of which nothing is kept."""

        def __setstate__(self, _):
            pass

    known: dict[str, Callable[..., Any] | str] = {
        "argparse.Namespace": Left,
        "collections.OrderedDict": OrderedDict,
        "torch._utils._rebuild_tensor": rebuild,
        "torch._utils._rebuild_tensor_v2": rebuild,
        "torch._utils._rebuild_parameter": lambda tensor, *_: tensor,
        "torch.Size": lambda sizes=(): tuple(sizes),
    }
    return known | {f"torch.{name}Storage": dtype for name, dtype in _DTYPES}


def _counts(*numbers):
    return all(isinstance(number, int) and 0 <= number < 2**48 for number in numbers)


def _bytes(storage):
    return storage.size * _dtype(storage).itemsize


def _dtype(storage):
    return np.dtype(ml_dtypes.bfloat16 if storage.dtype == "bfloat16" else storage.dtype)


def _numbers(content, storage):
    return np.frombuffer(content, _dtype(storage))


def array_of(path: str | Path, name: str, tensor: Tensor, storages: Mapping[str, np.ndarray]) -> np.ndarray:
    """View a storage as a tensor, which must lie within it."""
    numbers = storages[tensor.storage.key]
    empty = 0 in tensor.shape
    last = tensor.offset + sum((size - 1) * step for size, step in zip(tensor.shape, tensor.strides, strict=True))
    if not empty and last >= len(numbers):
        raise ValueError(f"{path}: the tensor '{name}' reaches beyond its storage; the file is damaged.")
    if empty:
        return np.zeros(tensor.shape, numbers.dtype)
    steps = [step * numbers.itemsize for step in tensor.strides]
    return np.lib.stride_tricks.as_strided(numbers[tensor.offset :], tensor.shape, steps, writeable=False)


def _leaves(tree, prefix="", depth=0):
    if depth > 20:
        raise RecursionError("mappings in mappings without end")
    for key, value in tree.items():
        if isinstance(value, Tensor):
            yield f"{prefix}{key}", value
        elif isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.", depth + 1)
