"""Any diffrax solver of the probability-flow ODE, by one adapter.

The ODE is integrated in lambda = log(alpha / sigma) as in `flow`. lambda is infinite at sigma = 0 and at alpha = 0:
a fixed step to or from there is DDIM's, and adaptive integration runs to the end of the span and goes on by DDIM.
"""

from typing import Any

import jax
import jax.numpy as jnp

from diffusion_jax.naming import lookup
from diffusion_jax.process.schedule import as_float, finite_span
from diffusion_jax.solvers.flow import scaled_flow, size
from diffusion_jax.solvers.solver import first_order, no_memory, regular
from diffusion_jax.types import Array, Denoiser, Schedule, Solver, Time


def diffrax_step(schedule: Schedule, *, method: Any = "Tsit5") -> Solver:
    """Take one step of a diffrax solver, named or given, in each interval of the grid."""
    inner = _method(method)
    stages = len(inner.tableau.b_sol) if hasattr(inner, "tableau") else 1

    def step(denoise, x, now, memory):
        def integrate():
            term, (a, b), y = _problem(schedule, denoise, x, now.t, now.s)
            state = inner.init(term, a, b, y, None)
            y = inner.step(term, a, b, y, None, state, made_jump=jnp.asarray(False))[0]
            return y * size(schedule, now.s, x)

        def land():
            return first_order(schedule, denoise(x, now.t), now.s, x)

        return jax.lax.cond(regular(schedule, now), integrate, land), memory

    return Solver("diffrax_step", inner.order(None), no_memory, step, evaluations=stages)


def adaptive(schedule: Schedule, *, method: Any = "Tsit5", rtol: float = 1e-5, atol: float = 1e-5) -> Solver:
    """Let diffrax choose its own steps within each interval; a grid of one interval is fully adaptive.

    Its error follows the tolerances and not the grid, so the claimed order is 0, for none; so are its evaluations.
    """
    import diffrax

    for word, value in (("rtol", rtol), ("atol", atol)):
        if not value > 0:
            raise ValueError(f"adaptive: {word} is {value}; it must be greater than 0.")
    inner, control = _method(method), diffrax.PIDController(rtol=rtol, atol=atol)

    def step(denoise, x, now, memory):
        t, s = as_float(now.t), as_float(now.s)
        t_in, s_in = (
            jnp.clip(time, *(jnp.asarray(end, time.dtype) for end in finite_span(schedule))) for time in (t, s)
        )
        x = jax.lax.cond(t == t_in, lambda: x, lambda: first_order(schedule, denoise(x, t), t_in, x))
        term, (a, b), y = _problem(schedule, denoise, x, t_in, s_in)

        def integrate():
            solution = diffrax.diffeqsolve(
                term, inner, a, b, None, y, stepsize_controller=control, saveat=diffrax.SaveAt(t1=True), max_steps=4096
            )
            return jax.tree.map(lambda leaf: leaf[0], solution.ys) * size(schedule, s_in, x)

        x = jax.lax.cond(t_in == s_in, lambda: x, integrate)
        return jax.lax.cond(s == s_in, lambda: x, lambda: first_order(schedule, denoise(x, s_in), s, x)), memory

    return Solver("adaptive", 0, no_memory, step, evaluations=0)


def _problem(schedule: Schedule, denoise: Denoiser, x: Array, t: Time, s: Time):
    """Return the diffrax term of the flow, its interval of lambda, and the state at `t`."""
    import diffrax

    flow = scaled_flow(denoise, schedule)
    ends = schedule.log_snr(t) / 2, schedule.log_snr(s) / 2
    return diffrax.ODETerm(lambda half, y, _: flow(jnp.asarray(half), y)), ends, x / size(schedule, t, x)


def _method(method):
    import diffrax  # imported where it is used: it is most of the package's start-up time

    if not isinstance(method, str):
        return method
    known = {
        name: value
        for name, value in vars(diffrax).items()
        if isinstance(value, type) and issubclass(value, diffrax.AbstractERK) and not name.startswith("Abstract")
    }
    return lookup(known, method, "diffrax method")()
