"""However a network is fed, it can tell the noise levels apart, and x is only scaled."""

import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.denoisers.precondition import INPUTS
from diffusion_jax.naming import choose
from tests import laws


@pytest.mark.parametrize("path", ["linear_beta", "karras", "rectified"])
@pytest.mark.parametrize("name", sorted(INPUTS))
def test_every_input_is_told_the_time_and_a_multiple_of_x(name, path):
    schedule = laws.SCHEDULE_CASES[path]()
    told = {}

    def network(params, x, t, cond):
        told["x"], told["t"] = x, t
        return x

    t = jnp.asarray(laws.inside(schedule, np.float32))
    x = jnp.stack([t + 1, -2 * (t + 1)], 1)
    choose(INPUTS, name, "input", network, schedule)({}, x, t, None)
    np.testing.assert_array_less(0, np.diff(np.asarray(told["t"])))
    factor = np.asarray(told["x"] / x)
    np.testing.assert_array_less(0, factor)
    np.testing.assert_allclose(factor[:, 0], factor[:, 1], rtol=1e-6)
    if name == "edm":
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        np.testing.assert_allclose(factor[:, 0] ** 2 * (alpha**2 * 0.25 + sigma**2), 1, rtol=1e-5)
