"""A trained run, or any set of images, measured: one call from a folder to cards.

Metrics that compare features come from one pass over the samples, which are kept in the run's folder and not drawn
twice; those of embedded data, whose truth is known, are read from the same samples.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from diffusion_jax import workdir as folders
from diffusion_jax.data import make_evaluation, make_source
from diffusion_jax.data.density import Density
from diffusion_jax.data.pixels import to_uint8
from diffusion_jax.data.shapes import Shapes
from diffusion_jax.data.source import BYTES
from diffusion_jax.evaluation.cached import cached, digest
from diffusion_jax.evaluation.card import Card, Cards, write_cards
from diffusion_jax.evaluation.features import FEATURES, Extractor
from diffusion_jax.evaluation.generate import generate
from diffusion_jax.evaluation.images import fingerprint_of, images_of
from diffusion_jax.evaluation.jackknife import GROUPS, Value, evaluate_features, gather, needs_of
from diffusion_jax.evaluation.metrics import METRICS, MOMENTS, ROWS, Metric, Need, enough, needed
from diffusion_jax.evaluation.references import read_reference
from diffusion_jax.experiment import conditions, make_sampler, make_sampling
from diffusion_jax.naming import choose, lookup
from diffusion_jax.pretrained.fetch import cache_folder
from diffusion_jax.pretrained.weights import fingerprint
from diffusion_jax.solvers.solver import evaluations
from diffusion_jax.trained import Drawn, Trained, check_sampling, judge, load, surplus, told_of
from diffusion_jax.training.parallel import spread

MOST = 50_000  # examples of a data set that a reference is made of
RESIZING = ("center_crop", "adm_crop", "resize")  # what a reference's images share with those of training


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


class Request(NamedTuple):
    """What is measured, on how many samples, and what makes the features."""

    metrics: tuple[Metric, ...]
    exact: tuple[str, ...]
    extractor: Extractor | None
    samples: int
    groups: int


class Side(NamedTuple):
    """What samples are held against: its name, hash and number, and what metrics need of it."""

    name: str
    hash: str
    count: int | None
    held: Mapping[Need, Any]


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
) -> Cards:
    """Measure the samples of a run, or a folder, zip or npz file of images, and return the cards.

    `metrics` are names of METRICS and EXACT, in a row or with commas. The `reference` is a file of statistics, a
    folder, zip or npz file of images, another run's folder, `tfds:NAME` or `tfds:NAME:SPLIT`, or by default the data
    that the run was trained on. `features` is an entry of FEATURES, `sampling` what replaces entries of the run's.
    Cards of a run are also written to its folder `evaluations/`.
    """
    where, pictures = (None if path is None else Path(path) for path in (workdir, images))
    question = Question(where, pictures, metrics, samples, str(reference), features, step, sampling, groups)
    return prepare(question)()


def prepare(question: Question) -> Callable[[], Cards]:
    """Check a question and read what is cheap to read; return the job that answers it."""
    if (question.workdir is None) == (question.images is None):
        raise ValueError("evaluate: give a run's folder, or images, and not both.")
    request = make_request(
        question.metrics, features=question.features, samples=question.samples, groups=question.groups
    )
    if question.images is not None:
        return _prepare_images(question.images, question.reference, request)
    folder = Path(str(question.workdir))
    model = load(folder, sampling=question.sampling, step=question.step)
    answer = prepare_model(model, folder, request, reference=question.reference)
    return lambda: answer(model)


def make_request(metrics: str | Sequence[Any], *, features: Any, samples: int, groups: int = GROUPS) -> Request:
    """Look the names up and read what extracts features."""
    asked = [name.strip() for name in metrics.split(",")] if isinstance(metrics, str) else list(metrics)
    if not asked:
        raise ValueError("evaluate: no metric is asked for; give some, as in metrics='fid,kid'.")
    exact = tuple(name for name in asked if isinstance(name, str) and name in EXACT)
    rest = [spec for spec in asked if spec not in exact]
    for spec in rest:
        lookup({**METRICS, **EXACT}, spec if isinstance(spec, str) else spec["name"], "metric")
    chosen = tuple(choose(METRICS, spec, "metric") for spec in rest)
    enough(chosen, samples)
    extractor = choose(FEATURES, features, "features") if chosen else None
    for need in needs_of(chosen, "samples"):
        if extractor is not None and need.kind not in extractor.kinds:
            raise ValueError(
                f"a metric needs features of the kind '{need.kind}', and '{extractor.name}' gives "
                f"{', '.join(extractor.kinds)}."
            )
    return Request(chosen, exact, extractor, samples, groups)


def prepare_model(
    model: Trained, folder: Path, request: Request, *, reference: str = "", compiled: dict[str, Any] | None = None
) -> Callable[[Trained], Cards]:
    """Check that a model can be measured so; return the job, which takes it, or the same with other parameters.

    `folder` is its run's, where samples and cards are kept; `compiled` is that of `make_sampler`.
    """
    check_sampling(model)
    shape = model.info.shapes["x"]
    pictures = len(shape) == 3 and shape[-1] in (1, 3)
    if request.metrics and not pictures:
        raise ValueError(f"features are of images, and this run's samples are {shape}. Known is: {', '.join(EXACT)}.")
    source = make_source(model.config.data) if request.exact else None
    for name in request.exact:
        EXACT[name](source, model, None)  # says whether it applies
    make_side = prepare_side(request, reference, model)

    def job(model):
        side, values = make_side(), {}
        drawn = told_of(model, _points(model, request.samples)) if not pictures else None
        if drawn is None:
            values |= _compare(sampled(model, folder, request.samples, compiled=compiled), request, side)
        if drawn is None and request.exact:
            images = list(sampled(model, folder, request.samples, compiled=compiled))
            drawn = told_of(model, np.concatenate(images))
        values |= {name: EXACT[name](source, model, drawn) for name in request.exact}
        cards = Cards(_card(name, value, request, side, origin(model, folder)) for name, value in values.items())
        name = f"{model.step:08d}-{digest([[card.protocol, card.samples] for card in cards])[:8]}.json"
        (folder / "evaluations").mkdir(exist_ok=True)
        write_cards(folder / "evaluations" / name, cards)
        return cards

    return job


def sampled(
    model: Trained, folder: Path, count: int, *, compiled: dict[str, Any] | None = None
) -> Iterator[np.ndarray]:
    """Yield the first `count` images of a model in uint8, those that the folder has not been drawn."""
    config = model.config
    part = folders.plain(config.sampling)
    del part["count"], part["batch_size"]
    key = digest([part, model.step, fingerprint(_named_leaves(model.params))])
    sampler = make_sampler(config, model.model, model.info, compiled=compiled)
    chance = jax.random.key(config.sampling.seed)
    params = spread(model.params, whole=True)

    def draw(indices):
        cond = conditions(config, model.model, indices)
        return to_uint8(sampler(params, chance, *spread((indices, cond))))

    return generate(draw, count, folder / "generated" / key[:16], batch=config.sampling.batch_size)


def origin(model: Trained, folder: Path, *, drawn: bool = True) -> dict[str, Any]:
    """Say which model it is and, if samples are `drawn` from it, how."""
    plain = folders.plain(model.config.sampling)
    which = {
        "run": str(folder),
        "config": digest(folders.plain(model.config))[:16],
        "step": model.step,
        "average": plain["average"],
        "precision": model.config.network.get("dtype", "float32"),
    }
    if not drawn:
        return which
    sampling = make_sampling(model.config, model.model.schedule)
    return which | {
        "solver": plain["solver"],
        "grid": plain["grid"],
        "evaluations": evaluations(sampling.solver, sampling.times, model.model.schedule),
        "guidance": plain["guidance"],
        "threshold": plain["threshold"],
        "returned": plain["returned"],
        "label": plain["label"],
        "seed": plain["seed"],
    }


def made() -> dict[str, Any]:
    """Say when a number was made, on what, and with which versions."""
    return {
        "at": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "versions": folders.versions(),
        "commit": folders.commit(),
    }


def prepare_side(request: Request, given: str, model: Trained | None) -> Callable[[], Side]:
    """Check what the samples are held against, and return the job that reads it, or makes and keeps it."""
    needs = needs_of(request.metrics, "reference")
    if not needs or request.extractor is None:
        return lambda: Side("", "", None, {})
    extractor = request.extractor
    if not given and model is None:
        raise ValueError("evaluate: images need a reference: a file of statistics, or other images.")
    if given and _has_statistics(Path(given).expanduser()):
        found = read_reference(given, kinds=extractor.kinds)
        for metric in request.metrics:
            for need in metric.reference:
                needed(metric, need, found.held, "reference")
        return lambda: Side(found.name, found.fingerprint, None, found.held)
    name, key, batches = _images_of_side(given, model, request)
    needs = list(dict.fromkeys([*needs, Need(needs[0].kind, MOMENTS)]))  # moments know their number

    def job():
        full = [key() if callable(key) else key, extractor.name, extractor.weights_hash]
        make = lambda: gather(batches(), extractor, needs).held()  # noqa: E731
        held = cached(cache_folder() / "references", full, needs, make)
        # Neighbours are counted among as many real images as there are samples.
        held = {need: value[: request.samples] if need.form == ROWS else value for need, value in held.items()}
        return Side(name, digest(full[0])[:32], held[Need(needs[0].kind, MOMENTS)].count, held)

    return job


def _images_of_side(given, model, request) -> tuple[str, Any, Callable[[], Iterable[np.ndarray]]]:
    """Return the name of a reference of images, what fixes it, and its batches."""
    if not given or given.startswith("tfds:"):
        if given:
            name, _, split = given.removeprefix("tfds:").partition(":")
            data = {"name": "tfds", "dataset": name, "split": split or "train"}
        else:
            data = folders.plain(model.config.data)
        transforms = []
        if model is not None:
            transforms = [spec for spec in folders.plain(model.config)["transforms"] if spec["name"] in RESIZING]
        source = make_source(data)
        if source.info.range != BYTES:
            raise ValueError(f"the data '{source.info.name}' are no images in uint8; give a reference of images.")
        count = min(len(source), MOST)
        return data["name"], [data, transforms, count], lambda: _examples(source, transforms, count)
    path = Path(given).expanduser()
    if (path / "config.json").is_file():
        other = load(path)
        check_sampling(other)
        batches = lambda: map(_coloured, sampled(other, path, request.samples))  # noqa: E731
        return f"run {path}", [origin(other, path), request.samples], batches
    images_of(path)  # says its errors
    return path.name, lambda: fingerprint_of(path), lambda: images_of(path)


def _has_statistics(path):
    if path.suffix.lower() in (".pkl", ".pickle"):
        return True  # which is refused in words of its own
    if path.suffix.lower() != ".npz" or not path.is_file():
        return False
    try:
        with np.load(path, allow_pickle=False) as archive:
            return "mu" in archive.files or "feats" in archive.files
    except (OSError, ValueError, EOFError):
        return True  # whose reader says what is wrong


def _examples(source, transforms, count):
    """Yield the first `count` images of a source, in uint8."""
    batches = make_evaluation(source, transforms, batch_size=min(256, count))
    left = count
    for batch in batches:
        images = batch["x"][batch["valid"]][:left]
        left -= len(images)
        if len(images):
            yield _coloured(images)
        if not left:
            return


def _prepare_images(path, reference, request):
    """Check images of other people; return the job that measures them."""
    if request.exact:
        raise ValueError(f"{', '.join(request.exact)} of images alone are not known: they need the run's own data.")
    make_side, found = prepare_side(request, reference, None), images_of(path)

    def job():
        side = make_side()
        tally = gather(found, request.extractor, needs_of(request.metrics, "samples"), groups=request.groups)
        values = evaluate_features(tally, side.held, request.metrics)
        where = {"images": str(path), "hash": fingerprint_of(path)[:16]}
        return Cards(
            _card(name, value, request._replace(samples=tally.count), side, where) for name, value in values.items()
        )

    return job


def _compare(batches, request, side):
    """Measure batches of images by their features."""
    if request.extractor is None:
        return {}
    needs = needs_of(request.metrics, "samples")
    tally = gather(map(_coloured, batches), request.extractor, needs, groups=request.groups)
    return evaluate_features(tally, side.held, request.metrics)


def _card(name, value, request, side, samples):
    compares = value.metric is not None and value.metric.reference
    protocol = {"n": request.samples}
    if value.metric is not None and request.extractor is not None:
        protocol |= {"features": request.extractor.name, "weights": request.extractor.weights_hash[:16]}
    if compares:
        protocol |= {"reference": side.name, "reference_hash": side.hash, "reference_n": side.count}
    method = "none" if value.interval is None else f"95 %, jackknife of {request.groups} groups"
    protocol["interval"] = "95 %, binomial" if value.interval and value.metric is None else method
    interval = None if value.interval is None else (float(value.interval[0]), float(value.interval[1]))
    return Card(name, float(value.value), interval, value.better, protocol, samples, made())


def _points(model, count):
    """Draw points, which are few bytes, in one go."""
    from diffusion_jax.trained import draw

    config = model.config.copy_and_resolve_references().unlock()
    config.sampling.count = count
    return draw(config, model.model, model.params, model.info).samples


def _coloured(images):
    return np.repeat(images, 3, -1) if images.shape[-1] == 1 else images


def _named_leaves(params):
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(params)}


def agreement(source: Any, model: Trained, drawn: Drawn | None) -> Any:
    """Measure the share of images that show what was asked for."""
    if not isinstance(source, Shapes) or not model.model.told:
        raise ValueError("agreement is known for models of `shapes` that are told a label or a caption.")
    if drawn is None:
        return None
    share, count = judge(source, drawn)["agreement"], len(drawn.samples)
    away = 1.96 * (share * (1 - share) / count) ** 0.5
    return Value(share, (share - away, share + away), "higher")


def sliced(source: Any, model: Trained, drawn: Drawn | None) -> Any:
    """Measure the sliced Wasserstein distance of points to fresh ones of their density."""
    if not isinstance(source, Density):
        raise ValueError("sliced_distance is known for models of a `density`.")
    return None if drawn is None else Value(judge(source, drawn)["sliced_distance"], None, "lower")


def surplus_nats(source: Any, model: Trained, drawn: Drawn | None) -> Any:
    """Measure by how many nats a model's likelihood falls short of its density's entropy."""
    if not isinstance(source, Density) or model.model.told:
        raise ValueError("surplus_nats is known for models of a `density` that are told nothing.")
    return None if drawn is None else Value(surplus(source, model.model, model.params), None, "lower")


EXACT = {"agreement": agreement, "sliced_distance": sliced, "surplus_nats": surplus_nats}
