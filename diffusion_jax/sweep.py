"""One checkpoint under many settings of its sampling: solvers, evaluations, guidance, averages. Nothing is trained."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict
from tqdm import tqdm

from diffusion_jax.assess import Question, make_request, prepare_model, prepare_reference
from diffusion_jax.evaluation.card import Cards
from diffusion_jax.naming import suggestion
from diffusion_jax.trained import blank, load
from diffusion_jax.workdir import read_config


def sweep(question: Question, over: Mapping[str, Sequence[Any]]) -> list[Cards]:
    """Measure one checkpoint of a run under every combination of values of its `sampling`: see `prepare`."""
    return prepare(question, over)()


def prepare(question: Question, over: Mapping[str, Sequence[Any]]) -> Callable[[], list[Cards]]:
    """Check every combination of values of a run's `sampling`; return the job that measures one checkpoint under each.

    `over` names dotted keys of `sampling`, such as `steps`, `solver` or `guidance.scale`, and their values. Only what
    changes shapes or the solver is compiled anew, and a reference is read or made once.
    """
    if question.workdir is None:
        raise ValueError("sweep: give a run's folder; there is nothing to vary about images.")
    folder, compiled = question.workdir, {}  # compiled programs, which settings share
    config: Any = read_config(folder)
    sampling = config.sampling if question.sampling is None else question.sampling
    request = make_request(question)
    settings = [changed(sampling, dict(zip(over, values, strict=True))) for values in combinations(over)]
    blanks = [blank(folder, sampling=setting) for setting in settings]
    make_side = prepare_reference(blanks[0], request, question.reference)
    answers = [prepare_model(model, folder, request, make_side, compiled=compiled) for model in blanks]

    def job():
        held = load(folder, sampling=settings[0], step=question.step)
        found = []
        for model, answer in zip(tqdm(blanks, desc="sweep", unit="setting"), answers, strict=True):
            if model.config.sampling.average != held.config.sampling.average:
                held = load(folder, sampling=model.config.sampling, step=question.step)
            found.append(answer(model._replace(params=held.params, step=held.step)))
        return found

    return job


def combinations(over: Mapping[str, Sequence[Any]]) -> list[tuple[Any, ...]]:
    """Return every combination of values, in the order in which a sweep measures them."""
    return list(itertools.product(*over.values()))


def changed(sampling: ConfigDict, values: Mapping[str, Any]) -> ConfigDict:
    """Return a copy of `sampling` with other values by dotted key; a key that is not there is refused."""
    copy: Any = sampling.copy_and_resolve_references().unlock()
    for key, value in values.items():
        *path, last = key.split(".")
        here: Any = copy
        for name in path:
            here = _entry_of(here, name, key)
        entry = _entry_of(here, last, key)
        here[last] = {"name": value} if isinstance(entry, ConfigDict) and isinstance(value, str) else value
    return copy.lock()


def _entry_of(here, name, key):
    if not isinstance(here, ConfigDict) or name not in here:
        known = sorted(here) if isinstance(here, ConfigDict) else []
        raise ValueError(f"sampling has no '{key}'.{suggestion(name, known)} There it has: {', '.join(known)}.")
    return here[name]
