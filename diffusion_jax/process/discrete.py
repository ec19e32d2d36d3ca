"""Worlds of integer steps: the only place where time is counted.

A world of T steps is its betas, and alpha-bar_i = prod_{j <= i} (1 - beta_j), in float64. Step i, counted from 0, is
the time t = (i + 1) / T: alpha-bar[0] is what is left after one step, and before it lies clean data, alpha-bar = 1 at
t = 0. Lin et al. (2024, Algorithm 1) rescale the betas so that the last step ends in pure noise: a = sqrt(alpha-bar),

    a_i' = (a_i - a_{T-1}) a_0 / (a_0 - a_{T-1}).                                                          (1)
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.naming import choose, lookup
from diffusion_jax.process import table
from diffusion_jax.types import Schedule


class World(NamedTuple):
    """The noise of each step and what is left of the data's variance after it."""

    betas: np.ndarray
    alpha_bar: np.ndarray

    @property
    def steps(self) -> int:
        """T."""
        return len(self.betas)

    @property
    def alpha_bar_from_clean(self) -> np.ndarray:
        """alpha-bar after 0, 1, ..., T steps: T + 1 numbers, of which the first is 1."""
        return np.append(1.0, self.alpha_bar)

    @property
    def sqrt_alpha_bar(self) -> np.ndarray:
        """The data's coefficient after each step."""
        return np.sqrt(self.alpha_bar)

    @property
    def sqrt_one_minus_alpha_bar(self) -> np.ndarray:
        """The noise's coefficient after each step."""
        return np.sqrt(1 - self.alpha_bar)

    @property
    def schedule(self) -> Schedule:
        """The path through these steps."""
        return table.betas(self.betas)

    def time(self, index: Any) -> Any:
        """Return the time of a step; -1 is clean data, and fractions lie between steps."""
        return (index + 1) / self.steps

    def index(self, time: Any) -> Any:
        """Return the step of a time as a float: exactly whole for the time of a step, also if that is a float32."""
        maths = jnp if isinstance(time, jax.Array) else np
        step = time * self.steps - 1
        whole = maths.round(step)
        return maths.where(abs(step - whole) <= self.steps * 2.0**-23, whole, step)


def from_betas(betas: Any) -> World:
    """Make the world of any row of betas, first step first."""
    betas = np.asarray(betas, np.float64)
    if betas.ndim != 1 or betas.size == 0 or not np.all((betas > 0) & (betas <= 1)):
        raise ValueError("from_betas: betas must be one row of numbers in (0, 1], first step first.")
    return World(betas, np.cumprod(1 - betas))


def linear(*, steps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02) -> World:
    """Betas on a line (Ho et al. 2020)."""
    _check("linear", steps, beta_start, beta_end)
    return from_betas(np.linspace(beta_start, beta_end, steps))


def scaled_linear(*, steps: int = 1000, beta_start: float = 0.00085, beta_end: float = 0.012) -> World:
    """Square roots of betas on a line; the default ends are those of Stable Diffusion (Rombach et al. 2022)."""
    _check("scaled_linear", steps, beta_start, beta_end)
    return from_betas(np.linspace(beta_start**0.5, beta_end**0.5, steps) ** 2)


def squared_cosine(*, steps: int = 1000, offset: float = 0.008, max_beta: float = 0.999) -> World:
    """alpha-bar along a squared cosine, its betas cut at `max_beta` (Nichol & Dhariwal 2021, Eq. 17)."""
    _check("squared_cosine", steps, max_beta, max_beta)
    angle = np.pi / 2 * (np.arange(steps + 1) / steps + offset) / (1 + offset)
    # 1 - cos^2 u / cos^2 v = sin(u - v) sin(u + v) / cos^2 v
    gone = np.sin(np.diff(angle)) * np.sin(angle[1:] + angle[:-1]) / np.cos(angle[:-1]) ** 2
    return from_betas(np.minimum(gone, max_beta))


def sigmoid(*, steps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02) -> World:
    """Betas along a sigmoid from -6 to 6 (as in GeoDiff, Xu et al. 2022)."""
    _check("sigmoid", steps, beta_start, beta_end)
    return from_betas(beta_start + (beta_end - beta_start) / (1 + np.exp(-np.linspace(-6, 6, steps))))


def rescale_zero_terminal(betas: Any) -> np.ndarray:
    """Rescale betas so that the last alpha-bar is exactly 0 and the first is kept, Eq. (1)."""
    left = from_betas(betas).sqrt_alpha_bar
    if len(left) < 2:
        raise ValueError(
            "rescale_zero_terminal: there is 1 step; its beta cannot be both kept and made 1. Give 2 or more."
        )
    left = (left - left[-1]) * left[0] / (left[0] - left[-1])
    return 1 - np.append(left[0], left[1:] / left[:-1]) ** 2


def discrete(*, world: Any, terminal: str = "kept") -> Schedule:
    """Lay a path through the steps of a world, named as in WORLDS: {"name": "scaled_linear", "steps": 1000}.

    With `terminal` "zero" its betas are rescaled to end in pure noise, Eq. (1).
    """
    made = choose(WORLDS, world, "world")
    return from_betas(lookup(_TERMINALS, terminal, "terminal of discrete")(made.betas)).schedule


def _check(what, steps, beta_start, beta_end):
    if not (isinstance(steps, int) and steps >= 1):
        raise ValueError(f"{what}: steps is {steps}; it must be a whole number, 1 or more.")
    if not 0 < beta_start <= beta_end <= 1:
        raise ValueError(f"{what}: betas go from {beta_start} to {beta_end}; they must rise within (0, 1].")


WORLDS = {
    "linear": linear,
    "scaled_linear": scaled_linear,
    "squared_cosine": squared_cosine,
    "sigmoid": sigmoid,
}

_TERMINALS = {"kept": lambda betas: betas, "zero": rescale_zero_terminal}
