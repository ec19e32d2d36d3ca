"""Networks written as diffusers and transformers write them, for them and for `load` to read.

    config.json, model.safetensors       or, above a size,  model-00001-of-00002.safetensors, ..., and their index

The folder appears under its name when all of it is written.
"""

import json
import math
import os
import shutil
from pathlib import Path

from diffusion_jax.pretrained import safetensors_file
from diffusion_jax.pretrained.families import family_of
from diffusion_jax.pretrained.rules import Pretrained, as_tensors
from diffusion_jax.pretrained.tensors import CONFIG

MOST = 5 * 10**9  # bytes of a file, as transformers has it


def save(pretrained: Pretrained, folder: str | Path, *, most: int = MOST) -> Path:
    """Write a network to a folder that is not there yet, in files of `most` bytes or one tensor; return the folder."""
    folder = Path(folder).expanduser()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"save: there is something at {folder}; name a new folder, or remove what is there.")
    if most < 1:
        raise ValueError(f"save: most is {most}; a file has 1 byte or more.")
    family = family_of(pretrained.config)
    tensors = as_tensors(family.table_of(pretrained.config), pretrained.params)
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        _write(tensors, partial, family.file, most)
        config = _with_dtype(pretrained.config, {str(dtype) for dtype in tensors.dtypes.values()})
        (partial / CONFIG).write_text(_json(config), encoding="utf-8")
        os.replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def _write(tensors, folder, file, most):
    """Write tensors into one file, or into several and their index."""
    specs = {name: (tensors.dtypes[name], shape) for name, shape in tensors.shapes.items()}
    sizes = {name: math.prod(shape) * dtype.itemsize for name, (dtype, shape) in specs.items()}
    shards, where = _shards(sizes, most), {}
    for number, names in enumerate(shards, 1):
        part = f"-{number:05}-of-{len(shards):05}" if len(shards) > 1 else ""
        path = folder / f"{file}{part}.safetensors"
        safetensors_file.write(path, {name: specs[name] for name in names}, tensors.read)
        where |= dict.fromkeys(names, path.name)
    if len(shards) > 1:
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": where}
        (folder / f"{file}.safetensors.index.json").write_text(_json(index), encoding="utf-8")


def _shards(sizes, most):
    """Divide names into runs of at most `most` bytes."""
    shards, room = [[]], most
    for name, size in sizes.items():
        if size > room and shards[-1]:
            shards.append([])
            room = most
        shards[-1].append(name)
        room -= size
    return shards


def _with_dtype(config, dtypes):
    """Say of a config's dtype, if it has one, what is true of the file."""
    (dtype,) = dtypes if len(dtypes) == 1 else ("float32",)
    return config | {key: dtype for key in ("dtype", "torch_dtype") if key in config}


def _json(value):
    return json.dumps(value, indent=2) + "\n"
