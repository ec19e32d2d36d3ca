"""Devices to compile for, which need not be here: `v5e:4x4` is a slice of a TPU pod, `local` what this machine has."""

import importlib.util
import os
from collections.abc import Sequence
from typing import Any

import jax

from diffusion_jax.launch.topology import read_topology

# What libtpu would ask the machine for, which is none, and that it may be loaded by several processes at a time.
_NOWHERE = {
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "TPU_MIN_LOG_LEVEL": "3",
}


def devices_of(topology: str) -> Sequence[Any]:
    """Return the devices of a topology; those of a slice can be compiled for and do nothing else."""
    if topology == "local":
        return jax.devices()
    read_topology(topology)  # says its errors
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
        raise ValueError(f"the compiler knows no slice {topology}: {str(error).splitlines()[0]}.") from None
