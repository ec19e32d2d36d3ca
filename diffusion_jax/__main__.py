"""Run a command: `python -m diffusion_jax sample --config configs/toy_2d.py --workdir runs/toy`."""

import sys

from diffusion_jax.cli.main import run

if __name__ == "__main__":
    sys.exit(run())
