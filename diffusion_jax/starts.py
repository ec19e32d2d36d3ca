"""Where training begins: parameters drawn at random, or those of another run; and what a config takes from that run.

An entry named "inherited" is that of the run that `start` names, with the other keywords that it is given:

    start    {"name": "run", "folder": "runs/sd15"}
    network  {"name": "inherited", "dtype": "bfloat16"}     its network, computing in bfloat16
    cond     {"name": "inherited", "also": ("hint",)}       what it is told, and hints
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from diffusion_jax.naming import choose
from diffusion_jax.pretrained.rules import flat
from diffusion_jax.training.checkpoint import Checkpoints
from diffusion_jax.types import Params
from diffusion_jax.workdir import read_config

INHERITED = "inherited"


class Start(NamedTuple):
    """`read(shapes)` returns parameters of these shapes, and `check(shapes)` refuses what has others, reading none."""

    read: Callable[[Params], Params]
    check: Callable[[Params], None]


def make_start(spec: Any) -> Start | None:
    """Build what `start` names in a config; None is for parameters drawn at random."""
    return choose(STARTS, spec, "start")


def scratch() -> None:
    """Draw the parameters."""


def run(*, folder: str, average: str = "", step: int | None = None) -> Start:
    """Take those of a run: of its newest checkpoint or that of `step`, and the average that it samples by default."""
    config: Any = read_config(Path(folder).expanduser())
    average = average or config.sampling.average
    _check_there(config, Path(folder).expanduser() / "checkpoints", average, step)
    names = ("params",) if average == "params" else ("averages", average)

    def reading(call):
        checkpoints = Checkpoints(Path(folder).expanduser() / "checkpoints")
        try:
            return call(checkpoints)
        finally:
            checkpoints.close()

    def alike(params, shapes):
        params = {name: params[name] for name in shapes if name in params}  # without what a loss adds
        _check_alike(params, shapes, folder)
        return params

    def check(shapes):
        alike(reading(lambda checkpoints: checkpoints.shapes(*names, step=step)), shapes)

    def read(shapes):
        params = alike(reading(lambda checkpoints: checkpoints.part(*names, step=step)[1]), shapes)
        return jax.tree.map(lambda leaf, shape: jnp.asarray(leaf, shape.dtype), params, shapes)

    return Start(read, check)


def inherited(config: ConfigDict) -> ConfigDict:
    """Return a config in which every entry named "inherited" is that of the run it starts from."""
    values = config.to_dict()
    if not _inherits(values):
        return config
    start = values.get("start", {})
    if start.get("name") != "run":
        raise ValueError(
            f"config has entries named '{INHERITED}', which are those of the run that config.start names; it names "
            f"{start.get('name', 'nothing')}. Give --config.start=\"{{'name': 'run', 'folder': ...}}\"."
        )
    parent = read_config(Path(start["folder"]).expanduser()).to_dict()
    return ConfigDict(_resolved(values, parent, "")).lock()


def _inherits(values):
    return isinstance(values, dict) and (values.get("name") == INHERITED or any(map(_inherits, values.values())))


def _check_there(config, checkpoints, average, step):
    """Refuse a run that has no such parameters, or more than a network's."""
    there = sorted(int(path.name) for path in checkpoints.glob("*") if path.name.isdecimal())
    if not there or (step is not None and step not in there):
        raise ValueError(
            f"config.start: no checkpoint{'' if step is None else f' of step {step}'} in {checkpoints}; it has "
            f"{', '.join(map(str, there)) or 'none'}."
        )
    known = ("params", *config.training.averages)
    if average not in known:
        raise ValueError(f"config.start: that run has no average '{average}' to begin with; it has {', '.join(known)}.")
    if config.adapter.name != "none":
        raise ValueError(
            f"config.start: that run trained an adapter, {config.adapter.name}, beside a network; begin with the run "
            "that it began with."
        )


def _resolved(values, parent, path):
    if not isinstance(values, dict):
        return values
    if values.get("name") != INHERITED:
        return {
            key: _resolved(value, parent.get(key) if isinstance(parent, dict) else None, f"{path}.{key}")
            for key, value in values.items()
        }
    if parent is None:
        raise ValueError(f"config{path} is inherited, and the run that config.start names has none.")
    more = {key: value for key, value in values.items() if key != "name"}
    if more.keys() == {"also"} and isinstance(parent, tuple | list):
        return (*parent, *(word for word in more["also"] if word not in parent))
    if more and not isinstance(parent, dict):
        raise ValueError(f"config{path} is inherited and has keywords, {more}, but what it inherits is {parent}.")
    return {**parent, **more} if more else parent


def _check_alike(params, shapes, folder):
    found, wanted = ({name: leaf.shape for name, leaf in flat(tree).items()} for tree in (params, shapes))
    if found == wanted:
        return
    other = sorted(name for name in {*found, *wanted} if found.get(name) != wanted.get(name))
    said = "; ".join(f"{name}: {found.get(name)} there, {wanted.get(name)} here" for name in other[:4])
    raise ValueError(
        f"config.start: the network of {folder} is another, in {len(other)} of {len(wanted)} parameters ({said}). Take "
        f"config.network={INHERITED}, which is that run's."
    )


STARTS = {"scratch": scratch, "run": run}
