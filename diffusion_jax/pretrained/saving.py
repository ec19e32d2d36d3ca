"""Networks and pipelines written as diffusers and transformers write them, for them and for `load` to read.

    config.json, model.safetensors       or, above a size,  model-00001-of-00002.safetensors, ..., and their index
    model_index.json                     and a folder of each part of a pipeline

Tokenizers are copied. Parts that are not known here, such as a checker of what is drawn, are not written, and
model_index.json says so. The folder appears under its name when all of it is written.
"""

import json
import math
import os
import shutil
from pathlib import Path

from diffusion_jax.pretrained import safetensors_file
from diffusion_jax.pretrained.families import family_of
from diffusion_jax.pretrained.parts import INDEX, SCHEDULER, TOKENIZERS, Pipeline, classes_of
from diffusion_jax.pretrained.rules import Pretrained, as_tensors
from diffusion_jax.pretrained.tensors import CONFIG

MOST = 5 * 10**9  # bytes of a file, as transformers has it


def save(found: Pretrained | Pipeline, folder: str | Path, *, most: int = MOST) -> Path:
    """Write a network, or a pipeline, to a folder that is not there yet; return the folder.

    A file has `most` bytes, or one tensor.
    """
    folder = Path(folder).expanduser()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"save: there is something at {folder}; name a new folder, or remove what is there.")
    if folder.is_symlink():
        raise ValueError(f"save: {folder} is a link; name the folder that it leads to.")
    tokenizers = found.tokenizers.values() if isinstance(found, Pipeline) else ()
    if any(folder.absolute().is_relative_to(Path(place).absolute()) for place in tokenizers):
        raise ValueError(f"save: {folder} lies in a folder of the pipeline's own tokenizer; name one beside it.")
    if most < 1:
        raise ValueError(f"save: most is {most}; a file has 1 byte or more.")
    write = _pipeline(found) if isinstance(found, Pipeline) else _network(found)
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        write(partial, most)
        os.replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def _network(found):
    """Return what writes a network to an empty folder."""
    family = family_of(found.config)
    tensors = as_tensors(family.table_of(found.config), found.params)

    def write(folder, most):
        _write(tensors, folder, family.file, most)
        config = _with_dtype(found.config, {str(dtype) for dtype in tensors.dtypes.values()})
        (folder / CONFIG).write_text(_json(config), encoding="utf-8")

    return write


def _pipeline(found):
    """Return what writes a pipeline to an empty folder, of which a part is read when it is written."""
    classes = classes_of(found.config, INDEX, "save")
    if not classes:
        raise ValueError("save: of what kind this pipeline is, is not known: save its parts, `pipeline.parts[name]`.")
    missing = [name for name, kind in classes.items() if kind in TOKENIZERS and name not in found.tokenizers]
    if missing:
        raise ValueError(f"save: the pipeline has no {' and no '.join(missing)}: load it with `tokenizer`, a folder.")
    if "scheduler" in classes and not found.scheduler:
        raise ValueError(
            "save: whether this network predicts the noise or v is not in its file: load it with `prediction`, "
            "'eps' or 'v'."
        )
    written = {name for name in classes if name in found.parts or name == "scheduler"}
    index = found.config | {name: [None, None] for name in classes if name not in written}

    def write(folder, most):
        for name in written:
            if name in found.tokenizers:
                shutil.copytree(found.tokenizers[name], folder / name)
                continue
            (folder / name).mkdir()
            if name == "scheduler":
                (folder / name / SCHEDULER).write_text(_json(found.scheduler), encoding="utf-8")
            else:
                _network(found.parts[name])(folder / name, most)
        (folder / INDEX).write_text(_json(index), encoding="utf-8")

    return write


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
