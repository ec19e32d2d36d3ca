"""Bits per dimension of a run's model on data, each number with how it was found.

Images are integers, and a model of densities gives them bits in one of two ways, both bounds from above:

    flow    the exact likelihood of the probability flow at x = (b + u) / 128 - 1, u being the dequantisation noise in
            [0, 1); the expectation over u bounds the integers' (Theis et al. 2016)                              (1)
    bound   the variational bound in continuous time, whose decoder gives the integers themselves a probability    (2)

The error bar is that of the mean over the data set.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from diffusion_jax.assess import keep_cards, made
from diffusion_jax.data import first, make_evaluation, make_source
from diffusion_jax.data.source import BYTES
from diffusion_jax.data.transforms import RESIZING
from diffusion_jax.evaluation.card import Card, Cards
from diffusion_jax.naming import choose, lookup
from diffusion_jax.process.schedule import finite_span
from diffusion_jax.prompts import hear, make_prompts, spoken
from diffusion_jax.sampler import guided
from diffusion_jax.samples import origin
from diffusion_jax.sides import tfds_of
from diffusion_jax.solvers.bound import continuous_bound
from diffusion_jax.solvers.likelihood import DEQUANTIZATIONS, bits_per_dim, dequantize, log_likelihood
from diffusion_jax.trained import Trained, load
from diffusion_jax.types import Array, Denoiser, Key, Schedule
from diffusion_jax.workdir import plain


class Way(NamedTuple):
    """How bits are found: "flow" or "bound", the noise that dequantises, and how finely.

    `steps` are those of the flow's ODE, and the levels drawn for each example by the bound; `probes` estimate the
    divergence, and 0 computes it exactly. At the noise-to-signal ratio `decoded_at` the bound's decoder takes over:
    a model of densities that went on below the width of a bin, 0.008, would pay for digits that integers do not have.
    """

    name: str = "flow"
    dequantization: Any = "uniform"
    steps: int = 100
    probes: int = 1
    decoded_at: float = 0.01  # about that of DDPM's first step


def flow(denoise: Denoiser, schedule: Schedule, images: Array, key: Key, indices: Array, *, way: Way) -> Array:
    """Evaluate (1) in bits per dimension of each image."""
    noise_key, probe_key = jax.random.split(key)
    x, log_q = dequantize(images, noise_key, kind=way.dequantization, indices=indices)
    log_p, _ = log_likelihood(
        denoise, schedule, x, probe_key, steps=way.steps, probes=way.probes or None, indices=indices
    )
    return bits_per_dim(log_p, images.shape[1:], log_q=log_q)


def bound(denoise: Denoiser, schedule: Schedule, images: Array, key: Key, indices: Array, *, way: Way) -> Array:
    """Evaluate (2) in bits per dimension of each image."""
    x = images.astype(jnp.float32) / 127.5 - 1
    span = _decoded(schedule, way.decoded_at)
    found = continuous_bound(
        denoise, schedule, x, key, samples=way.steps, decoder="discretised", span=span, indices=indices
    )
    return found.total / (math.prod(images.shape[1:]) * math.log(2))


def _decoded(schedule, level):
    """Return the span of the bound: from where the decoder takes over, or the path's own end if that is noisier."""
    with jax.ensure_compile_time_eval():
        early, late = (float(end) for end in finite_span(schedule))
        return max(early, float(schedule.time(jnp.asarray(-2 * math.log(level))))), late


def prepare(
    workdir: Path,
    *,
    way: Way = Way(),  # noqa: B008
    data: str = "",
    count: int = 1000,
    batch_size: int = 64,
    seed: int = 0,
    step: int | None = None,
    sampling: Any = None,
) -> Callable[[], Cards]:
    """Check a request and read the model; return the job that measures it.

    `data` is `tfds:NAME:SPLIT`, an npz or array_record file, a folder of images, or by default what the run was
    trained on, of which the first `count` examples are taken.
    """
    model = load(workdir, sampling=sampling, step=step)
    lookup(WAYS, way.name, "way")
    choose(DEQUANTIZATIONS, way.dequantization, "dequantization")
    if not 0 < way.decoded_at < 1:
        raise ValueError(f"likelihood: decoded_at is {way.decoded_at}; it must lie between 0 and 1, such as 0.01.")
    for word, value, least in (("count", count, 2), ("batch_size", batch_size, 1), ("steps", way.steps, 1)):
        if value < least:
            raise ValueError(f"likelihood: {word} is {value}; it must be at least {least}.")
    spec, batches = _batches(model, data, count, batch_size)

    def job():
        bits = np.concatenate(list(_measured(model, batches, way, jax.random.key(seed), count)))
        away = 1.96 * float(bits.std(ddof=1)) / len(bits) ** 0.5
        mean, name = float(bits.mean()), f"bits_{way.name}"
        how = {"steps": way.steps, "seed": seed}
        if way.name == "flow":
            how |= {"dequantization": way.dequantization, "probes": way.probes or "exact"}
        else:
            how |= {"decoded_at": way.decoded_at}
        protocol = {"n": len(bits), "data": spec, **how, "interval": "95 %, of the mean over the data"}
        where = origin(model, workdir, drawn=False)
        cards = Cards([Card(name, mean, (mean - away, mean + away), "lower", protocol, where, made())])
        keep_cards(workdir, model.step, cards)
        return cards

    return job


def _batches(model, data, count, batch_size):
    """Return what the data are, and their batches as integers with what each example is told."""
    config = plain(model.config)
    spec = _source_of(data) if data else config["data"]
    source = make_source(spec)
    if source.info.range != BYTES:
        raise ValueError(f"likelihood: the data '{source.info.name}' are no images in uint8, which bits are of.")
    kept = [one for one in config["transforms"] if one["name"] in (*RESIZING, "words")]
    told = [name for name in config["cond"] if name != "augment"]
    if "hint" in told:
        raise ValueError("likelihood: this model is steered by hints, of which its data's images in uint8 have none.")
    speaking, told = spoken(make_prompts(model.config.text, source.info), told)
    kept.extend(speaking)
    if told:
        kept.append({"name": "condition", "entries": told})
    batches = make_evaluation(source, kept, batch_size=min(batch_size, count))
    if batches.info.shapes["x"] != model.info.shapes["x"]:
        raise ValueError(
            f"likelihood: the data are {batches.info.shapes['x']} and the model's {model.info.shapes['x']}."
        )
    return spec, batches


def _source_of(data):
    if data.startswith("tfds:"):
        return tfds_of(data, split="test")
    return {"name": "folder" if Path(data).is_dir() else "array", "path": data}


def _measured(model: Trained, batches, way, key, count):
    """Yield the bits of the examples, batch by batch."""
    schedule = model.model.schedule

    @jax.jit
    def run(params, images, indices, cond):
        denoise = guided(None, model.model, params, cond)
        return WAYS[way.name](denoise, schedule, images, key, indices, way=way)

    with tqdm(total=min(count, batches.batch_size * len(batches)), desc="bits", unit="example") as bar:
        for batch in first(batches, count):
            batch = hear(model.model.prompts, batch, model.model.told)
            bits = run(model.params, jnp.asarray(batch["x"]), jnp.asarray(batch["index"]), batch.get("cond") or {})
            bits = np.asarray(bits)[batch["valid"]]
            bar.update(len(bits))
            yield bits


WAYS = {"flow": flow, "bound": bound}
