"""Every entry of SOLVERS with the variants that laws run it in, and what each claims."""

from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp

from diffusion_jax.process.oracle import Mixture, gaussian, mixture
from diffusion_jax.solvers import SOLVERS
from diffusion_jax.types import Schedule, Solver
from tests import laws


@dataclass(frozen=True)
class Case:
    """A solver by name with its keywords, the order it must claim, and the numbers of steps that show it."""

    name: str
    order: int
    keywords: dict[str, Any] = field(default_factory=dict)
    steps: tuple[int, int] = (40, 80)

    def make(self, schedule: Schedule) -> Solver:
        """Build it on a path."""
        return SOLVERS[self.name](schedule, **self.keywords)

    @property
    def label(self) -> str:
        """A name for reports."""
        return "-".join([self.name, *(f"{word}={value}" for word, value in self.keywords.items())])


ODE_CASES = (
    Case("ddim", 1),
    Case("euler", 1),
    Case("euler", 1, {"variable": "sigma"}),
    Case("heun", 2),
    Case("heun", 2, {"variable": "sigma"}),
    Case("midpoint", 2),
    Case("midpoint", 2, {"variable": "sigma"}),
    Case("rk4", 4),
    Case("rk4", 4, {"variable": "sigma"}),
    Case("dpmpp_2s", 2),
    Case("dpmpp_2m", 2),
    Case("dpmpp_3m", 2),
    Case("unipc", 1, {"order": 1}),
    Case("unipc", 3),
    Case("unipc", 3, {"variant": "bh1"}),
    Case("deis", 2),
    Case("deis", 3, {"start": "heun"}),
    Case("lms", 2),
    Case("ipndm", 2),
    Case("ancestral", 1, {"eta": 0.0}),
    Case("edm", 2),
    Case("dpmpp_2m_sde", 2, {"eta": 0.0}),
)
"""Every deterministic solver: its error falls with the order it claims from 40 to 80 steps."""

FINE_CASES = (
    Case("unipc", 3, {"order": 3}, (640, 1280)),
    Case("unipc", 4, {"order": 3, "start": "rk4"}, (160, 320)),
    Case("deis", 3, {"start": "dpmpp_2s", "variable": "time"}, (160, 320)),
    Case("lms", 3, {"order": 3, "start": "heun"}, (160, 320)),
    Case("deis", 4, {"order": 4, "start": "rk4"}, (160, 320)),
    Case("lms", 4, {"start": "rk4"}, (160, 320)),
    Case("diffrax_step", 3, {"method": "Bosh3"}),
    Case("diffrax_step", 5, {"method": "Dopri5"}, (32, 64)),  # the first error term of Tsit5 is too small to be seen
)
"""Those whose error shows its order on other numbers of steps only: few for a high order, many for a late one."""

SDE_CASES = (
    Case("ancestral", 1),
    Case("ddpm", 1),
    Case("ddpm", 1, {"variance": "fixed_large"}),
    Case("euler_ancestral", 1),
    Case("euler_maruyama", 1),
    Case("euler_maruyama", 1, {"scale": 0.5}),
    Case("edm", 2, {"churn": 40.0}),
    Case("dpmpp_sde", 1),
    Case("dpmpp_2m_sde", 1),
    Case("dpmpp_2m_sde", 1, {"eta": 0.5}),
    Case("predictor_corrector", 1),
    Case("predictor_corrector", 1, {"predictor": "ddim"}),
    Case("annealed_langevin", 1),
)
"""Every solver that draws noise."""

ADAPTIVE_CASES = (Case("adaptive", 0),)

ALL_CASES = ODE_CASES + FINE_CASES + SDE_CASES + ADAPTIVE_CASES


def first_variants(cases: tuple[Case, ...] | list[Case]) -> list[Any]:
    """Cases of a law of which a default run meets the first variant of every solver; the others are slow."""
    firsts = {case.name: case for case in reversed(cases)}
    return laws.quick(cases, *firsts.values())


def two_dimensional() -> dict[str, Mixture]:
    """A Gaussian and a mixture in the plane."""
    return {
        "gaussian": gaussian(jnp.array([0.5, -1.0]), jnp.array([0.3, 0.8])),
        "mixture": mixture(
            jnp.array([0.4, 0.3, 0.2, 0.1]),
            jnp.array([[1.5, 0.0], [-1.0, 1.2], [-0.5, -1.6], [0.8, 2.0]]),
            jnp.array([0.15, 0.25, 0.4, 0.1]),
        ),
    }


def as_mixture(data: Mixture, components: int = 4) -> Mixture:
    """The same density with a given number of components, so that one compiled program serves all data."""
    times = components // data.weights.shape[0]
    return Mixture(*(jnp.repeat(leaf, times, axis=0) for leaf in data[:1]), *_rest(data, times))._replace(
        weights=jnp.repeat(data.weights, times) / times
    )


def _rest(data, times):
    return (None if leaf is None else jnp.repeat(jnp.asarray(leaf), times, axis=0) for leaf in data[1:])


def start(schedule: Schedule, data: Mixture, t: Any, count: int = 32) -> jax.Array:
    """Points that the path can be at, at `t`."""
    x0, eps = data.draw(jax.random.key(0), count), jax.random.normal(jax.random.key(1), (count, 2))
    return schedule.alpha(t) * x0 + schedule.sigma(t) * eps.astype(x0.dtype)
