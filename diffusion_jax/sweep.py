"""One checkpoint under many settings of its sampling: solvers, evaluations, guidance, averages. Nothing is trained."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from diffusion_jax.assess import Question, Request, make_request, prepare_model, prepare_reference
from diffusion_jax.evaluation.card import Cards
from diffusion_jax.trained import Trained, blank, load, under

Filled = Callable[[Trained], Trained]
"""What gives a model without parameters those that its config's `sampling.average` names."""


def sweep(question: Question, over: Mapping[str, Sequence[Any]]) -> list[Cards]:
    """Measure one checkpoint of a run under every combination of values of its `sampling`: see `prepare`."""
    return prepare(question, over)()


def prepare(question: Question, over: Mapping[str, Sequence[Any]]) -> Callable[[], list[Cards]]:
    """Check every combination of values of a run's `sampling`; return the job that measures one checkpoint under each.

    `over` names dotted keys of `sampling`, such as `steps`, `solver` or `guidance.scale`, and their values.
    """
    if question.workdir is None:
        raise ValueError("sweep: give a run's folder; there is nothing to vary about images.")
    folder = question.workdir
    settings = [dict(zip(over, values, strict=True)) for values in combinations(over)]
    models = under(blank(folder, sampling=question.sampling), settings)
    answer = prepare_settings(models, folder, make_request(question), reference=question.reference)

    def job():
        held: dict[Any, Trained] = {}

        def filled(model):
            average = model.config.sampling.average
            if average not in held:
                held.clear()  # one set of parameters at a time
                held[average] = load(folder, sampling=model.config.sampling, step=question.step)
            return model._replace(params=held[average].params, step=held[average].step)

        return answer(filled)

    return job


def prepare_settings(
    models: Sequence[Trained],
    folder: Path,
    request: Request,
    *,
    reference: str = "",
    compiled: dict[str, Any] | None = None,
) -> Callable[[Filled], list[Cards]]:
    """Check that one model can be measured under each of its settings; return the job.

    Only what changes shapes or the solver is compiled anew, and a reference is read or made once; `compiled` is that
    of `make_sampler`.
    """
    compiled = {} if compiled is None else compiled
    make_side = prepare_reference(models[0], request, reference)
    answers = [prepare_model(model, folder, request, make_side, compiled=compiled) for model in models]

    def job(filled):
        pairs = zip(models, answers, strict=True)
        shown = tqdm(pairs, desc="settings", unit="setting", total=len(models), disable=len(models) == 1)
        return [answer(filled(model)) for model, answer in shown]

    return job


def combinations(over: Mapping[str, Sequence[Any]]) -> list[tuple[Any, ...]]:
    """Return every combination of values, in the order in which a sweep measures them."""
    return list(itertools.product(*over.values()))
