"""Every reference sampler is reproduced on its own grid: 1e-9 in float64, 1e-4 in float32."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffusion_jax.solvers.solver
import diffusion_jax.solvers.stochastic
from diffusion_jax.process.oracle import mixture
from diffusion_jax.process.schedules import SCHEDULES
from diffusion_jax.solvers import SOLVERS
from diffusion_jax.solvers.solver import sample
from tests.conftest import REFERENCE

ENTRIES = json.loads((REFERENCE / "samplers.json").read_text())["entries"]

# The reference's k-diffusion samplers integrate in sigma / alpha.
COUNTERPARTS = {
    "ddim": ("ddim", {}),
    "ddpm": ("ddpm", {}),
    "dpm_multi/dpmsolver++/o1": ("ddim", {}),
    "dpm_multi/dpmsolver++/o2": ("dpmpp_2m", {}),
    "dpm_multi/dpmsolver++/o3": ("dpmpp_3m", {}),
    "unipc": ("unipc", {}),
    "euler": ("euler", {"variable": "sigma"}),
    "heun": ("heun", {"variable": "sigma"}),
    "euler_a": ("euler_ancestral", {}),
    "flow_euler": ("euler", {}),
    "edm_euler": ("euler", {"variable": "sigma"}),
}


def counterpart(entry):
    """The entry's solver here: the longest name that it starts with."""
    name = max((name for name in COUNTERPARTS if entry.startswith(name + "/")), key=len)
    return COUNTERPARTS[name]


def world(entry, values):
    """The path and the grid of times through the levels at which the reference called its model."""
    alpha, sigma = values[f"{entry}/alpha"], values[f"{entry}/sigma"]
    if entry.startswith("heun"):  # called twice at each inner level
        alpha, sigma = np.append(alpha[:1], alpha[1::2]), np.append(sigma[:1], sigma[1::2])
    if entry.startswith("flow"):
        return SCHEDULES["rectified"](), np.append(sigma, 0.0)
    if entry.startswith("edm"):
        return SCHEDULES["karras"](), np.append((sigma / 80.0) ** (1 / 7), 0.0)
    return SCHEDULES["tabulated"](alpha[::-1], sigma[::-1]), np.arange(len(alpha), -1, -1) / len(alpha)


def run(entry, dtype, monkeypatch):
    values = np.load(REFERENCE / "samplers.npz")
    bank = jnp.asarray(np.concatenate([values["noise_bank"], np.zeros((1, 16, 2))]), dtype)
    # A key is the index of the step, and the noise is the bank's.
    monkeypatch.setattr(diffusion_jax.solvers.solver, "advance", lambda keys, step: jnp.full(16, step))
    monkeypatch.setattr(diffusion_jax.solvers.stochastic, "normal_like", lambda keys, x: bank[keys[0]])
    schedule, times = world(entry, values)
    name, keywords = counterpart(entry)
    data = mixture(values["gmm_w"], values["gmm_mu"], values["gmm_s"])
    scale = values[f"{entry}/alpha"][0] if name != "ddim" and entry.startswith(("euler", "heun", "edm")) else 1.0
    x = jnp.asarray(values["noise"] * ENTRIES[entry]["init_noise_sigma"] * scale, dtype)
    solver = SOLVERS[name](schedule, **keywords)
    times = jnp.asarray(times, dtype)
    final, _ = jax.jit(lambda x: sample(data.denoiser(schedule), solver, times, x, jax.random.key(0)))(x)
    assert final.dtype == dtype
    return np.abs(np.asarray(final) - values[f"{entry}/final"]).max()


@pytest.mark.parametrize("entry", sorted(ENTRIES))
def test_reference_in_float64(x64, entry, monkeypatch):
    assert run(entry, jnp.float64, monkeypatch) < 1e-9


@pytest.mark.slow
@pytest.mark.parametrize("entry", sorted(ENTRIES))
def test_reference_in_float32(entry, monkeypatch):
    assert run(entry, jnp.float32, monkeypatch) < 1e-4
