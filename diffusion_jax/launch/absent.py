"""Devices to compile for, which need not be here: `v5e:4x4` is a slice of a TPU pod, `local` what this machine has."""

import importlib.util
import os
import re
from collections.abc import Sequence
from typing import Any

import jax

_SIDES = {"v4": 3, "v5e": 2, "v5p": 3, "v6e": 2}  # a slice of which generation has how many

# What libtpu would ask the machine for, which is none, and that it may be loaded by several processes at a time.
_NOWHERE = {
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "TPU_MIN_LOG_LEVEL": "3",
}


def check_topology(topology: str) -> str:
    """Return the name of a topology, or refuse it."""
    generation, _, shape = topology.partition(":")
    sides = _SIDES.get(generation, 0)
    if topology != "local" and not (sides and re.fullmatch(rf"[1-9]\d*(x[1-9]\d*){{{sides - 1}}}", shape)):
        raise ValueError(
            f"unknown topology '{topology}'. Give 'local', or a generation of TPUs ({', '.join(_SIDES)}) with the "
            "number of chips along each side, two for v5e and v6e and three for v4 and v5p, as in v5e:4x4 or v5p:4x4x4."
        )
    return topology


def devices_of(topology: str) -> Sequence[Any]:
    """Return the devices of a topology; those of a slice can be compiled for and do nothing else."""
    if check_topology(topology) == "local":
        return jax.devices()
    if importlib.util.find_spec("libtpu") is None:
        raise ValueError(
            f"the compiler for {topology} is not installed: pip install 'diffusion_jax[tpu]', or give --topology local."
        )
    from jax.experimental import topologies

    jax.config.update("jax_platforms", "cpu")  # the arrays of this process; nothing here shall take hold of a TPU
    for name, value in _NOWHERE.items():
        os.environ.setdefault(name, value)
    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    except jax.errors.JaxRuntimeError as error:
        if "INVALID_ARGUMENT" not in str(error):
            raise
        raise ValueError(
            f"there is no slice {topology}: {str(error).splitlines()[0]}. A host has 2 x 2 chips, so sides are even."
        ) from None
