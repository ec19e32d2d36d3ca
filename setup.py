"""The package's metadata; tools are configured in pyproject.toml."""

from pathlib import Path

from setuptools import find_packages, setup

RUN = ["ipykernel>=6.29", "nbclient>=0.10", "nbformat>=5.10"]  # notebooks without a browser
DATA = ["tensorflow-datasets>=4.9.8", "array_record>=0.7", "importlib_resources"]
TPU = ["jax[tpu]"]  # for `plan`, which needs no TPU: the compiler of the release that fits this jax; others crash

EXTRAS = {
    "tfds": DATA,
    "tpu": TPU,
    "wandb": ["wandb>=0.19"],
    "hub": ["huggingface_hub>=0.24"],
    "notebooks": ["jupyterlab>=4", *RUN],
    "test": ["pytest>=8", "pytest-xdist>=3.6", "ruff>=0.9", "pyright>=1.1.390", *DATA, *RUN, *TPU],
}
ALL = sorted({need for needs in EXTRAS.values() for need in needs})

setup(
    name="diffusion_jax",
    version="0.1.0",
    description="Diffusion and flow models in JAX: pure functions from the forward process to the solver.",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["diffusion_jax", "diffusion_jax.*"]),
    install_requires=[
        "absl-py>=2.1",
        "clu>=0.0.12",
        "diffrax>=0.7",
        "flax>=0.12",
        "grain>=0.2.10",
        "jax>=0.10",
        "matplotlib>=3.9",
        "ml-collections>=1.0",
        "ml_dtypes>=0.4",
        "numpy>=2.0",
        "optax>=0.2.5",
        "orbax-checkpoint>=0.11",
        "pillow>=10",
        "safetensors>=0.4",
        "scipy>=1.13",
        "tensorboardX>=2.6",
        "tokenizers>=0.20",
        "tqdm>=4.66",
    ],
    extras_require=EXTRAS | {"all": ALL, "peers": ["torch>=2.4", "diffusers>=0.31"]},  # peers: for benchmarks only
    entry_points={"console_scripts": ["diffusion-jax = diffusion_jax.cli.main:run"]},
    classifiers=[
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
