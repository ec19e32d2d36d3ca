"""A trained run, or any set of images, measured: one call from a folder to cards.

Metrics that compare features come from one pass over the samples, which are kept in the run's folder and not drawn
twice; those of embedded data, whose truth is known, are read from the same samples.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from diffusion_jax import workdir as folders
from diffusion_jax.data import make_source
from diffusion_jax.evaluation.cached import digest
from diffusion_jax.evaluation.card import Card, Cards, record, write_cards
from diffusion_jax.evaluation.features import FEATURES, Extractor
from diffusion_jax.evaluation.images import coloured, fingerprint_of, images_of
from diffusion_jax.evaluation.jackknife import GROUPS, Value, evaluate_features, gather, needs_of, over_seeds
from diffusion_jax.evaluation.metrics import METRICS, Metric, enough
from diffusion_jax.naming import choose, lookup
from diffusion_jax.sampler import captions_of, drawn_shape
from diffusion_jax.samples import check_sampling, draw, kept, origin, told_of
from diffusion_jax.sides import Side, prepare_side
from diffusion_jax.trained import Trained, load, under
from diffusion_jax.truth import EXACT


class Question(NamedTuple):
    """What is asked, in names: see `evaluate`."""

    workdir: Path | None = None
    images: Path | None = None
    metrics: str | Sequence[Any] = ("fid",)
    samples: int = 10_000
    reference: str = ""
    features: Any = "inception"
    step: int | None = None
    sampling: Any = None
    groups: int = GROUPS
    seeds: Sequence[int] = ()


class Request(NamedTuple):
    """What is measured, on how many samples of which seeds, and what makes the features of images and of texts."""

    metrics: tuple[Metric, ...]
    exact: tuple[str, ...]
    extractor: Extractor | None
    texts: Mapping[str, Callable[[Sequence[str]], Any]]
    samples: int
    groups: int
    seeds: tuple[int, ...]  # none: that of the run's sampling


def evaluate(
    workdir: str | Path | None = None,
    *,
    images: str | Path | None = None,
    metrics: str | Sequence[Any] = ("fid",),
    samples: int = 10_000,
    reference: str | Path = "",
    features: Any = "inception",
    step: int | None = None,
    sampling: Any = None,
    groups: int = GROUPS,
    seeds: Sequence[int] = (),
) -> Cards:
    """Measure the samples of a run, or a folder, zip or npz file of images, and return the cards.

    `metrics` are names of METRICS and EXACT, in a row or with commas. The `reference` is a file of statistics, a
    folder, zip or npz file of images, another run's folder, `tfds:NAME` or `tfds:NAME:SPLIT`, `data:FOLDER`, the data
    that a run was trained on, or by default those of the run itself. `features` is an entry of FEATURES, `sampling`
    what replaces entries of the run's. With several `seeds` a value is the mean over as many sets of samples, and its
    interval that of the mean.
    Cards of a run are also written to its folder `evaluations/`.
    """
    where, pictures = (None if path is None else Path(path) for path in (workdir, images))
    question = Question(where, pictures, metrics, samples, str(reference), features, step, sampling, groups, seeds)
    return prepare(question)()


def prepare(question: Question) -> Callable[[], Cards]:
    """Check a question and read what is cheap to read; return the job that answers it."""
    if (question.workdir is None) == (question.images is None):
        raise ValueError("evaluate: give a run's folder, or images, and not both.")
    request = make_request(question)
    if question.images is not None:
        return _prepare_images(question.images, question.reference, request)
    folder = Path(str(question.workdir))
    model = load(folder, sampling=question.sampling, step=question.step)
    answer = prepare_model(model, folder, request, prepare_reference(model, request, question.reference))
    return lambda: answer(model)


def make_request(question: Question) -> Request:
    """Look the names up and read what extracts features."""
    metrics, seeds = question.metrics, tuple(question.seeds)
    asked = [name.strip() for name in metrics.split(",")] if isinstance(metrics, str) else list(metrics)
    if not asked:
        raise ValueError("evaluate: no metric is asked for; give some, as in metrics='fid,kid'.")
    if len(set(seeds)) != len(seeds) or any(seed < 0 for seed in seeds):
        raise ValueError(f"evaluate: seeds are {seeds}; they must differ and not be negative.")
    exact = tuple(name for name in asked if isinstance(name, str) and name in EXACT)
    rest = [spec for spec in asked if spec not in exact]
    for spec in rest:
        lookup({**METRICS, **EXACT}, spec if isinstance(spec, str) else spec["name"], "metric")
    chosen = tuple(choose(METRICS, spec, "metric") for spec in rest)
    enough(chosen, question.samples)
    extractor = choose(FEATURES, question.features, "features") if chosen else None
    texts = {}
    for need in needs_of(chosen, "samples"):
        if extractor is not None and need.kind in extractor.texts:
            texts[need.kind] = extractor.texts[need.kind]()
        elif extractor is not None and need.kind not in extractor.kinds:
            raise ValueError(
                f"a metric needs features of the kind '{need.kind}', and '{extractor.name}' gives "
                f"{', '.join((*extractor.kinds, *extractor.texts))}."
            )
    return Request(chosen, exact, extractor, texts, question.samples, question.groups, seeds)


def prepare_reference(model: Trained | None, request: Request, given: str) -> Callable[[], Side]:
    """Check what a model's samples, or images, are held against; return the job that reads or makes it, once."""
    if model is not None and request.metrics and not _draws_images(model):
        shape = drawn_shape(model.config, model.model, model.info)
        raise ValueError(f"features are of images, and this run's samples are {shape}. Known is: {', '.join(EXACT)}.")
    return prepare_side(request.metrics, request.extractor, given, model, samples=request.samples)


def prepare_model(
    model: Trained,
    folder: Path,
    request: Request,
    make_side: Callable[[], Side],
    *,
    compiled: dict[str, Any] | None = None,
) -> Callable[[Trained], Cards]:
    """Check that a model can be measured so; return the job, which takes it, or the same with other parameters.

    `folder` is its run's, where samples and cards are kept; `compiled` is that of `make_sampler`.
    """
    check_sampling(model)
    if request.texts and "text" not in model.model.told:
        raise ValueError("clip_score asks how well images fit their captions, and this run is told none.")
    source = make_source(model.config.data) if request.exact else None
    for name in request.exact:
        EXACT[name].check(source, model)
    compiled = {} if compiled is None else compiled  # programs, which seeds share
    of_samples = [name for name in request.exact if EXACT[name].of_samples]
    of_model = [name for name in request.exact if not EXACT[name].of_samples]

    def exact(model, drawn, names):
        return {name: EXACT[name].compute(source, model, drawn) for name in names}

    def of_set(model, side):
        """Measure one set of samples."""
        if not _draws_images(model):  # points, which are few bytes, and of which no features are known
            return exact(model, draw(model, count=request.samples, compiled=compiled), of_samples) if of_samples else {}
        batches = kept(model, folder, request.samples, compiled=compiled)
        if of_samples:
            batches = list(batches)
        values = _compare(batches, request, side, model) if request.metrics else {}
        return values | (exact(model, told_of(model, np.concatenate(list(batches))), of_samples) if of_samples else {})

    def job(model):
        side, models = make_side(), under(model, [{"seed": seed} for seed in request.seeds]) or [model]
        values = over_seeds([of_set(one, side) for one in models])
        values |= exact(model, None, of_model)
        where = origin(model, folder) | ({"seed": list(request.seeds)} if request.seeds else {})
        cards = Cards(_card(name, value, request, side, where) for name, value in values.items())
        if jax.process_index() == 0:
            keep_cards(folder, model.step, cards)
        return cards

    return job


def keep_cards(folder: Path, step: int, cards: Cards) -> None:
    """Write cards to a run's folder, under a name that what was asked fixes, and add rows to the run's table."""
    name = f"{step:08d}-{digest([[card.protocol, card.samples] for card in cards])[:8]}.json"
    (folder / "evaluations").mkdir(exist_ok=True)
    write_cards(folder / "evaluations" / name, cards)
    with (folder / "evaluations.jsonl").open("a", encoding="utf-8") as table:
        table.writelines(json.dumps(record(card), default=str) + "\n" for card in cards)


def made() -> dict[str, Any]:
    """Say when a number was made, on what, and with which versions."""
    return {
        "at": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "versions": folders.versions(),
        "commit": folders.commit(),
    }


def _prepare_images(path, reference, request):
    """Check images of other people; return the job that measures them."""
    if request.exact:
        raise ValueError(f"{', '.join(request.exact)} of images alone are not known: they need the run's own data.")
    if request.texts:
        raise ValueError(
            "clip_score of images alone is not known: it needs their captions, which a run's samples have."
        )
    if request.seeds:
        raise ValueError("evaluate: seeds are of samples that a run draws, and these images are there.")
    make_side, found = prepare_reference(None, request, reference), images_of(path)

    def job():
        side = make_side()
        tally, values = _gathered(found, request, side, None)
        where = {"images": str(path), "hash": fingerprint_of(path)[:16]}
        asked = request._replace(samples=tally.count)
        return Cards(_card(name, value, asked, side, where) for name, value in values.items())

    return job


def _compare(batches, request, side, model):
    """Measure a model's images by their features, and by those of what they were told."""

    def told(places):
        captions = captions_of(model.config, model.model, places)
        return {kind: embed(captions) for kind, embed in request.texts.items()}

    return _gathered(map(coloured, batches), request, side, told)[1]


def _gathered(batches, request, side, told):
    needs = needs_of(request.metrics, "samples")
    tally = gather(batches, request.extractor, needs, groups=request.groups, told=told)
    return tally, evaluate_features(tally, side.held, request.metrics)


def _draws_images(model):
    shape = drawn_shape(model.config, model.model, model.info)
    return len(shape) == 3 and shape[-1] in (1, 3)


def _card(name: str, value: Value, request: Request, side: Side, samples: dict[str, Any]) -> Card:
    protocol: dict[str, Any] = {"n": request.samples}
    if value.metric is not None and request.extractor is not None:
        protocol |= {"features": request.extractor.name, "weights": request.extractor.weights_hash[:16]}
    if value.metric is not None and value.metric.reference:
        protocol |= {"reference": side.name, "reference_hash": side.hash, "reference_n": side.count}
    protocol["interval"] = value.method if value.interval else "none"
    interval = None if value.interval is None else (float(value.interval[0]), float(value.interval[1]))
    return Card(name, float(value.value), interval, value.better, protocol, samples, made())
