"""A network that is exactly right about data of two classes, whatever it predicts."""

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.process import oracle
from diffusion_jax.process.prediction import PREDICTIONS, compose
from diffusion_jax.process.schedule import rates
from diffusion_jax.process.schedules import linear_beta

SCHEDULE = linear_beta()
NULL = 2
MEANS = np.random.default_rng(8).normal(size=(4, 2, 3))  # images of two pixels in three channels
DATA = oracle.mixture([0.1, 0.2, 0.3, 0.4], MEANS, [0.5, 0.4, 0.6, 0.3], labels=[0, 1, 0, 1])
OF_LABEL = [DATA.conditional(0), DATA.conditional(1), DATA]
WEIGHTS = np.array([[0.1, 0, 0.3, 0], [0, 0.2, 0, 0.4], [0.1, 0.2, 0.3, 0.4]])  # of each label
PARAMS = {"gain": np.float32(1.0)}


def exact(prediction, *, calls=None):
    """Return an apply for cond = {"label": (batch,)}, `NULL` being all data; it notes its batch sizes in `calls`."""
    kind = PREDICTIONS[prediction]()

    def apply(params, x, t, cond):
        if calls is not None:
            calls.append(x.shape[0])
        assert t.shape == x.shape[:1]
        weights = jnp.asarray(WEIGHTS, x.dtype)[cond["label"]]

        def one(weights, x, t):
            return DATA._replace(weights=weights).denoiser(SCHEDULE)(x[None], t)

        estimate = jax.tree.map(lambda part: part[:, 0], jax.vmap(one)(weights, x, t))
        output = compose(kind, estimate, rates(SCHEDULE, t, x))
        output = output * jnp.asarray(params["gain"], output.dtype)
        spread = jnp.cos(output + jnp.asarray(cond["label"], output.dtype).reshape(-1, 1, 1))
        return jnp.concatenate([output, spread], -1) if prediction == "learned_variance" else output

    return apply


def noisy(n=4, seed=0, dtype=None):
    """Draw images to denoise."""
    return jnp.asarray(np.random.default_rng(seed).normal(size=(n, 2, 3)), dtype)
