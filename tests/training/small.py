"""A network, a loss and a run small enough for every law of training."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.losses.denoising import denoising_loss
from diffusion_jax.process.schedules import SCHEDULES
from diffusion_jax.training.ema import AVERAGES
from diffusion_jax.training.optimizer import make_optimizer
from diffusion_jax.training.parallel import make_mesh, parallelize
from diffusion_jax.training.state import start_state
from diffusion_jax.training.step import make_train_step

BATCH = 16
AVERAGE = {"slow": AVERAGES["constant"](decay=0.9), "profile": AVERAGES["power"](std=0.1)}


def params():
    """Parameters of `apply`."""
    keys = jax.random.split(jax.random.key(1), 2)
    return {
        "in": 0.5 * jax.random.normal(keys[0], (2, 8)),
        "out": 0.5 * jax.random.normal(keys[1], (8, 2)),
        "bias": jnp.zeros(2),
    }


def apply(params, x, t, cond):
    """A network of one hidden layer."""
    return jnp.tanh(x @ params["in"] + t[:, None]) @ params["out"] + params["bias"][None]


def batch(step, size=BATCH):
    """The batch of a step."""
    x = np.random.default_rng(step).normal(size=(size, 2)).astype(np.float32)
    return {"x": x, "index": step * size + np.arange(size)}


def loss():
    """A loss whose times are stratified over the whole batch, so that its parts must know their place."""
    return denoising_loss(
        apply, SCHEDULES["rectified"](), prediction="velocity", times="stratified", global_batch=BATCH
    )


def run(*, optimizer="adam", steps=4, mapping="jit", devices=1, parts=1, state=None, clip=1.0):
    """Train some steps and return the state on the host."""
    chosen, _ = make_optimizer(optimizer, {"name": "constant", "peak": 1e-2}, clip=clip)
    make_step = functools.partial(make_train_step, loss(), chosen, AVERAGE, parts=parts)
    parallel = parallelize(make_step, make_mesh(jax.devices()[:devices]), mapping=mapping)
    state = parallel.put_state(start_state(params(), chosen, AVERAGE, jax.random.key(0)) if state is None else state)
    begin = int(parallel.get_state(state).step)
    for step in range(begin, begin + steps):
        state, _ = parallel.step(state, parallel.put_batch(batch(step)))
    return parallel.get_state(state)


def host(state):
    """The state as numpy arrays, in a flat list."""
    state = state._replace(key=jax.random.key_data(state.key))
    return [np.asarray(leaf) for leaf in jax.tree.leaves(state)]
