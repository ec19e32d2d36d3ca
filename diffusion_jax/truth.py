"""What is known of models of embedded data: how far their samples and their likelihood are from the truth."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.data.attributes import agreement, caption_agreement
from diffusion_jax.data.density import Density
from diffusion_jax.data.pixels import to_uint8
from diffusion_jax.data.shapes import Shapes
from diffusion_jax.evaluation.distance import sliced_distance
from diffusion_jax.evaluation.jackknife import Value
from diffusion_jax.sampler import captions_of, guided
from diffusion_jax.samples import Drawn
from diffusion_jax.solvers.likelihood import log_likelihood
from diffusion_jax.trained import Trained

PROBED = 2000  # fresh points of a density that likelihood and distance are measured on


class Exact(NamedTuple):
    """A measure against the truth: `check` refuses what it does not apply to; `compute` takes source, model, samples.

    What is not of samples, as a likelihood, says so, and its samples are None.
    """

    check: Callable[[Any, Trained], None]
    compute: Callable[[Any, Trained, Any], Value]
    of_samples: bool = True


def judge(source: Any, drawn: Drawn) -> dict[str, float]:
    """Measure samples of embedded data by what is known of it; of other data nothing is known here."""
    captions = drawn.captions or []
    if isinstance(source, Shapes) and any(captions):  # an empty one asks for nothing
        return {"agreement": caption_agreement(_bytes(drawn.samples), captions, source)}
    if isinstance(source, Shapes) and drawn.labels is not None:
        return {"agreement": agreement(_bytes(drawn.samples), drawn.labels, source)}
    if isinstance(source, Density):
        fresh = [_fresh(source, len(drawn.samples), part) for part in range(2)]
        return {
            "sliced_distance": sliced_distance(drawn.samples, fresh[0]),
            "sliced_distance_of_data": sliced_distance(fresh[1], fresh[0]),
        }
    return {}


def _bytes(images):
    return images if images.dtype == np.uint8 else to_uint8(images)


def surplus(source: Density, model: Trained, *, steps: int = 50) -> float:
    """Return by how many nats the model's negative log-likelihood of fresh data exceeds the density's entropy."""
    x0 = jnp.asarray(_fresh(source, PROBED, 2))

    def nats(params, x0):
        denoise = guided(None, model.model, params, {})
        return log_likelihood(denoise, model.model.schedule, x0, jax.random.key(0), steps=steps, probes=None)[0]

    found = jax.jit(nats)(model.params, x0)
    # Against the truth on the same points, so that their chance cancels.
    return float(np.mean(source.log_density(np.asarray(x0))) - np.mean(found))


def _told_shapes(source, model):
    if not isinstance(source, Shapes) or not {"label", "text"} & model.model.told.keys():
        raise ValueError("agreement is known for models of `shapes` that are told a label or a caption.")
    if "label" not in model.model.told and not any(
        captions_of(model.config, model.model, range(model.config.sampling.count))
    ):
        raise ValueError("agreement asks what captions say; give some: --config.captions=\"('a red circle',)\".")


def _share(source, model, drawn):
    """Measure the share of images that show what was asked for."""
    share, count = judge(source, drawn)["agreement"], len(drawn.samples)
    away = 1.96 * (share * (1 - share) / count) ** 0.5
    return Value(share, (share - away, share + away), "higher", method="95 %, binomial")


def _of_density(source, model):
    if not isinstance(source, Density):
        raise ValueError("sliced_distance is known for models of a `density`.")


def _distance(source, model, drawn):
    """Measure the sliced Wasserstein distance of points to fresh ones of their density."""
    return Value(judge(source, drawn)["sliced_distance"], None, "lower")


def _untold_density(source, model):
    if not isinstance(source, Density) or model.model.told:
        raise ValueError("surplus_nats is known for models of a `density` that are told nothing.")


def _surplus(source, model, drawn):
    """Measure by how many nats a model's likelihood falls short of its density's entropy."""
    return Value(surplus(source, model), None, "lower")


def _fresh(source, number, part):
    """Return points of the density that no training step meets: those of another seed."""
    other = Density(source.info.name, source.rounds, number, 1_000_003 + part, source.basis)
    return np.stack([example["x"] for example in other.many(np.arange(number))])


EXACT = {
    "agreement": Exact(_told_shapes, _share),
    "sliced_distance": Exact(_of_density, _distance),
    "surplus_nats": Exact(_untold_density, _surplus, of_samples=False),
}
