"""A trained model read back from its folder."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from diffusion_jax import workdir
from diffusion_jax.config import changed
from diffusion_jax.data.source import Info
from diffusion_jax.experiment import Model, make_model
from diffusion_jax.training.checkpoint import Checkpoints
from diffusion_jax.training.post_hoc import find_snapshots, synthesize


class Trained(NamedTuple):
    """A model read back from its folder."""

    config: Any
    model: Model
    params: Any
    step: int
    info: Info


def load(folder: Path, *, sampling: Any = None, step: int | None = None) -> Trained:
    """Read a run back: its model with the parameters that `sampling.average` names, of the newest checkpoint."""
    model = blank(folder, sampling=sampling)
    average, width = model.config.sampling.average, post_hoc_width(model.config)
    if width is not None:
        shots = find_snapshots(folder / "profiles")
        return model._replace(params=synthesize(shots, std=width, step=step), step=step or shots[-1].step)
    checkpoints = Checkpoints(folder / "checkpoints")
    names = ("params",) if average == "params" else ("averages", average)
    try:
        found, params = checkpoints.part(*names, step=step)
    finally:
        checkpoints.close()
    return model._replace(params=params, step=found)


def blank(folder: Path, *, sampling: Any = None) -> Trained:
    """Read a run back without its parameters."""
    config: Any = workdir.read_config(folder)
    if sampling is not None:
        config = config.copy_and_resolve_references()
        config.sampling = sampling
    info = read_info(folder)
    return Trained(config, make_model(config, info), None, 0, info)


def under(model: Trained, settings: Sequence[Mapping[str, Any]]) -> list[Trained]:
    """Return a model under each of some settings, which are values of its `sampling` by dotted key."""
    models = []
    for setting in settings:
        config = model.config.copy_and_resolve_references().unlock()
        config.sampling = changed(config.sampling, setting, what="sampling")
        models.append(model._replace(config=config.lock()))
    return models


def read_info(folder: Path) -> Info:
    """Return what a run noted of its data."""
    noted = json.loads((folder / "data.json").read_text(encoding="utf-8"))
    shapes = {name: tuple(shape) for name, shape in noted["shapes"].items()}
    return Info(noted["name"], shapes, tuple(noted["classes"]), noted["range"] and tuple(noted["range"]))


def post_hoc_width(config: Any) -> float | None:
    """Return the width of the post-hoc average that `sampling.average` asks for, or None if it is a name."""
    average, known = config.sampling.average, ("params", *config.training.averages)
    if average in known:
        return None
    try:
        return float(average)
    except ValueError:
        raise ValueError(
            f"config.sampling.average is '{average}'; it must be one of {', '.join(known)}, or a number: the width of "
            "a post-hoc average."
        ) from None
