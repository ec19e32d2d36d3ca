"""Diffusion and flow models as pure functions.

Time runs in [0, 1] from clean data to pure noise, x_t = alpha(t) x0 + sigma(t) eps, and whatever a network predicts is
turned once into the pair (x0, eps). The names below load their module when first used, so importing the package costs
nothing, and a process that only reads data never loads JAX.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from diffusion_jax.naming import suggestion

if TYPE_CHECKING:
    from diffusion_jax.denoisers.classifier import classifier_guidance
    from diffusion_jax.denoisers.guidance import GUIDANCE, classifier_free, within
    from diffusion_jax.denoisers.network import doubled, make_denoiser
    from diffusion_jax.losses.denoising import denoising_loss
    from diffusion_jax.losses.objective import Objective, effective_weight, same_objective
    from diffusion_jax.losses.times import TIMES
    from diffusion_jax.losses.weighting import WEIGHTINGS
    from diffusion_jax.naming import choose
    from diffusion_jax.process.discrete import WORLDS
    from diffusion_jax.process.forward import add_noise, posterior, prior, transition
    from diffusion_jax.process.grid import GRIDS
    from diffusion_jax.process.noise import example_keys
    from diffusion_jax.process.oracle import DENSITIES, Mixture, dataset, gaussian, mixture
    from diffusion_jax.process.pace import PACES, shift
    from diffusion_jax.process.prediction import PREDICTIONS, compose, decompose
    from diffusion_jax.process.schedule import rates, schedule
    from diffusion_jax.process.schedules import SCHEDULES
    from diffusion_jax.solvers import SOLVERS
    from diffusion_jax.solvers.likelihood import log_likelihood
    from diffusion_jax.solvers.solver import evaluations, progress, sample
    from diffusion_jax.types import Denoiser, Estimate, Interval, Rates, Schedule, Solver

__version__ = "0.1.0"

ROOMS = {
    "denoisers.classifier": ("classifier_guidance",),
    "denoisers.guidance": ("GUIDANCE", "classifier_free", "within"),
    "denoisers.network": ("doubled", "make_denoiser"),
    "losses.denoising": ("denoising_loss",),
    "losses.objective": ("Objective", "effective_weight", "same_objective"),
    "losses.times": ("TIMES",),
    "losses.weighting": ("WEIGHTINGS",),
    "naming": ("choose",),
    "process.discrete": ("WORLDS",),
    "process.forward": ("add_noise", "posterior", "prior", "transition"),
    "process.grid": ("GRIDS",),
    "process.noise": ("example_keys",),
    "process.oracle": ("DENSITIES", "Mixture", "dataset", "gaussian", "mixture"),
    "process.pace": ("PACES", "shift"),
    "process.prediction": ("PREDICTIONS", "compose", "decompose"),
    "process.schedule": ("rates", "schedule"),
    "process.schedules": ("SCHEDULES",),
    "solvers": ("SOLVERS",),
    "solvers.likelihood": ("log_likelihood",),
    "solvers.solver": ("evaluations", "progress", "sample"),
    "types": ("Denoiser", "Estimate", "Interval", "Rates", "Schedule", "Solver"),
}

HOMES = {name: f"diffusion_jax.{module}" for module, names in ROOMS.items() for name in names}
__all__ = [*HOMES, "__version__"]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in HOMES:
        raise AttributeError(f"diffusion_jax has no '{name}'.{suggestion(name, HOMES)}")
    value = getattr(import_module(HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
