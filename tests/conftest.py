"""Every test runs with rank promotion refused; the mathematical rooms also with implicit dtype promotion refused."""

import os
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # the compiler for TPUs, where it is installed, looks for one
# Tests are tiny and compiling dominates them; 8 devices stand for a pod. Both must be said before jax starts.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    # It halves compiling once more; a later jaxlib may not know it and would not start.
    + (" --xla_cpu_use_fusion_emitters=false" if version("jaxlib").startswith("0.10.") else ""),
)

import jax
import numpy as np
import pytest

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")

STRICT = ("process", "denoisers", "solvers", "losses")
REFERENCE = Path(__file__).parent / "reference"


@pytest.fixture(autouse=True)
def _promotion(request):
    """Refuse implicit dtype promotion where the arithmetic is ours alone."""
    room = Path(str(request.fspath)).parent.name
    with jax.numpy_dtype_promotion("strict" if room in STRICT else "standard"):
        yield


@pytest.fixture(autouse=True, scope="module")
def _forgotten():
    """Let go of a file's compiled programs at its end: those of all files together do not fit a small machine."""
    yield
    jax.clear_caches()


@pytest.fixture
def x64():
    """Run the test in float64."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="session")
def reference():
    """Load a file of reference values by name."""
    return lambda name: np.load(REFERENCE / name)
