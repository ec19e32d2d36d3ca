"""From a question to the runs that answer it.

An ablation file has a function `get_ablation(mode)` that returns an `Ablation`. Arms that differ only in how they
sample share one run, which is measured under each of their settings.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from diffusion_jax.ablation.grid import Grid, names
from diffusion_jax.assess import Question, make_request
from diffusion_jax.config import changed, load_config, made_by
from diffusion_jax.experiment import make_schedule, make_training
from diffusion_jax.launch.job import Job, check_name, plainly
from diffusion_jax.losses.objective import Objective, same_objective
from diffusion_jax.sampler import make_sampler
from diffusion_jax.starts import inherited
from diffusion_jax.trained import Trained, under
from diffusion_jax.workdir import plain

HOME = Path("experiments/ablations")
FIELDS = {
    "question": (str, "a text"),
    "config": (str, "a config file, as configs/toy_2d.py"),
    "grid": (tuple | list, "a tuple of arms, as param and product make it"),
    "metrics": (str, "names with commas, as 'fid,agreement'"),
    "fixed": (Mapping, "a mapping from dotted keys to values"),
    "samples": (int, "a whole number"),
    "features": (str | Mapping, "a name, or a mapping of a name and its keywords"),
    "reference": (str, "a text"),
}
OBJECTIVE = ("schedule", "pace", "loss")  # what decides a run's objective


class Ablation(NamedTuple):
    """A question, the grid of arms that answers it, and what all arms share.

    `config` is a config file with an optional mode, `fixed` what replaces its values in every arm; `metrics`,
    `samples`, `features` and `reference` are how every arm is measured, at its last step.
    """

    question: str
    config: str
    grid: Grid
    metrics: str
    fixed: Mapping[str, Any] = {}
    samples: int = 2000
    features: Any = "pixels"
    reference: str = ""


class Run(NamedTuple):
    """A run that an ablation needs: its job, its whole config, and the arm without what is only of sampling."""

    name: str
    arm: Mapping[str, Any]
    config: Any
    job: Job


def load_ablation(source: str) -> Ablation:
    """Read an ablation file, "PATH" or "PATH:MODE"."""
    found = made_by(source, "get_ablation", "ablation", HOME)
    if not isinstance(found, Ablation):
        raise ValueError(f"get_ablation of {source} returns a {type(found).__name__}; it must return an Ablation.")
    for name, (types, what) in FIELDS.items():
        value = getattr(found, name)
        if not isinstance(value, types) or isinstance(value, bool):
            raise ValueError(f"{name} of {source} is {value!r}; it must be {what}.")
    if not all(isinstance(arm, Mapping) and all(isinstance(key, str) for key in arm) for arm in found.grid):
        raise ValueError(f"the grid of {source} is {found.grid!r}; every arm must be a mapping from dotted keys.")
    if not found.grid:
        raise ValueError(f"the grid of {source} has no arms.")
    return found


def runs_of(ablation: Ablation, out: Path) -> list[Run]:
    """Return the runs of an ablation, whose folders lie in `out`; whatever is wrong with an arm is said here."""
    grid = tuple({key: plainly(value, f"{key} of an arm") for key, value in arm.items()} for arm in ablation.grid)
    fixed = {key: plainly(value, key) for key, value in ablation.fixed.items()}
    names(grid)  # two arms of one name are refused
    shared: dict[str, tuple[dict[str, Any], list[dict[str, Any]]]] = {}
    for arm in grid:
        trained = {key: value for key, value in arm.items() if not key.startswith("sampling.")}
        setting = {key.removeprefix("sampling."): value for key, value in arm.items() if key not in trained}
        shared.setdefault(str(trained), (trained, []))[1].append(setting)
    arms = [arm for arm, _ in shared.values()]
    base, runs = load_config(ablation.config), []
    for name, (arm, settings) in zip(names(tuple(arms)), shared.values(), strict=True):
        measured = {
            "evaluation.metrics": tuple(word.strip() for word in ablation.metrics.split(",")),
            "evaluation.samples": ablation.samples,
            "evaluation.features": plainly(ablation.features, "features"),
            "evaluation.reference": ablation.reference,
            "evaluation.settings": tuple(settings),
        }
        overrides = {**fixed, **measured, **arm}
        try:
            config = inherited(changed(base, overrides))
            if not any(dict(run.arm, seed=0) == dict(arm, seed=0) for run in runs):  # another seed is as good
                check(config)
        except ValueError as error:
            raise ValueError(f"arm '{name}': {error}") from None
        job = Job(check_name(name, "an arm"), ablation.config, out / name, overrides)
        runs.append(Run(name, arm, config, job))
    return runs


def check(config, source=None):
    """Build what a run of the config would build; `source` stands for its data."""
    training = make_training(config, source=source)
    info = training.batches.info._replace(classes=training.source.info.classes)
    make_sampler(config, training.model, info)
    asked = config.evaluation
    if not asked.every and not asked.settings:
        return  # it measures nothing, and needs nothing to measure with
    make_request(Question(metrics=asked.metrics, features=asked.features, samples=asked.samples))
    for model in under(Trained(config, training.model, None, 0, info), asked.settings):
        make_sampler(model.config, training.model, info)


def twins(runs: Sequence[Run]) -> list[str]:
    """Say which arms minimise the same objective and so differ only in how it is gone about, before time is spent."""
    first = [run for run in runs if run.config.seed == runs[0].config.seed and run.config.loss.name == "denoising"]
    found = []
    for place, a in enumerate(first):
        for b in first[place + 1 :]:
            if not _differ_in_objective_alone(a, b):
                continue
            verdict = same_objective(_objective(a.config), _objective(b.config))
            if verdict.same:
                found.append(f"{a.name} and {b.name} minimise the same objective: {verdict.reason}")
    return found


def _objective(config):
    loss = plain(config.loss)
    return Objective(make_schedule(config), loss["prediction"], loss["weighting"], loss["times"])


def _differ_in_objective_alone(a, b):
    apart = {key for key in {*a.arm, *b.arm} if not np.array_equal(a.arm.get(key), b.arm.get(key))}
    return bool(apart) and all(key.split(".")[0] in OBJECTIVE for key in apart)
