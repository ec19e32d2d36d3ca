"""Reverse time: pure steps, one loop."""

from diffusion_jax.solvers.adaptive import adaptive, diffrax_step
from diffusion_jax.solvers.corrector import annealed_langevin, predictor_corrector
from diffusion_jax.solvers.multistep import deis, dpmpp_2m, dpmpp_3m, ipndm, lms
from diffusion_jax.solvers.ode import ONE_STEP
from diffusion_jax.solvers.stochastic import (
    ancestral,
    ddpm,
    dpmpp_2m_sde,
    dpmpp_sde,
    edm,
    euler_ancestral,
    euler_maruyama,
)
from diffusion_jax.solvers.unipc import unipc

SOLVERS = {
    **ONE_STEP,
    "dpmpp_2m": dpmpp_2m,
    "dpmpp_3m": dpmpp_3m,
    "unipc": unipc,
    "deis": deis,
    "lms": lms,
    "ipndm": ipndm,
    "ancestral": ancestral,
    "ddpm": ddpm,
    "euler_ancestral": euler_ancestral,
    "euler_maruyama": euler_maruyama,
    "edm": edm,
    "dpmpp_sde": dpmpp_sde,
    "dpmpp_2m_sde": dpmpp_2m_sde,
    "predictor_corrector": predictor_corrector,
    "annealed_langevin": annealed_langevin,
    "diffrax_step": diffrax_step,
    "adaptive": adaptive,
}
