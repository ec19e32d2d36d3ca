"""However a network is fed, it can tell the noise levels apart, and x is only scaled."""

from typing import Any

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
    told: dict[str, Any] = {}

    def network(params, x, t, cond):
        told["x"], told["t"] = x, t
        return x

    t = jnp.asarray(laws.inside(schedule, np.float32))
    x = jnp.stack([t + 1, -2 * (t + 1)], 1)
    choose(INPUTS, name, "input", network, schedule)({}, x, t, None)
    assert float(jnp.diff(told["t"]).min()) > 0
    factor = np.asarray(told["x"] / x)
    assert float(jnp.min(told["x"] / x)) > 0
    np.testing.assert_allclose(factor[:, 0], factor[:, 1], rtol=1e-6)
    if name == "edm":
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        np.testing.assert_allclose(factor[:, 0] ** 2 * (alpha**2 * 0.25 + sigma**2), 1, rtol=1e-5)
