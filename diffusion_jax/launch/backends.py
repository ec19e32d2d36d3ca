"""The backends by name. The keywords of each are its options on the command line."""

from collections.abc import Mapping
from typing import Any

from diffusion_jax.launch.backend import Backend
from diffusion_jax.launch.kubernetes import kubernetes
from diffusion_jax.launch.local import local
from diffusion_jax.launch.slurm import slurm
from diffusion_jax.launch.tpu import tpu
from diffusion_jax.naming import choose


def make_backend(spec: Mapping[str, Any]) -> Backend:
    """Make a backend from its name and its options."""
    return choose(BACKENDS, spec, "backend")


BACKENDS = {"local": local, "tpu": tpu, "kubernetes": kubernetes, "slurm": slurm}
