"""Small trained runs, as small as a run can be: what is compiled is most of what a test costs."""

from pathlib import Path

from diffusion_jax.cli.main import run

CONFIGS = Path(__file__).parent.parent / "configs"
NETWORK = "{'name': 'dit', 'patch': 8, 'size': {'name': 'custom', 'width': 8, 'depth': 1, 'heads': 1}}"
IMAGES = ("quickstart.py:smoke", f"--config.network={NETWORK}", "--config.sampling.steps=1")
TOY = f"{CONFIGS / 'toy_2d.py'}:smoke"
POINTS = ("toy_2d.py:smoke", "--config.sampling.steps=2")


def train(workdir: Path, config: str, *more: str) -> int:
    """Run the command in this process, on a config of the project, and return its exit code."""
    quiet = "--config.training.tensorboard=False"
    return run(["train", "--config", str(CONFIGS / config), "--workdir", str(workdir), quiet, *more])


def launch(*more: str, workdir: str = "runs/toy") -> int:
    """Run the command `launch` on the smallest config, without building it, and return its exit code."""
    return run(["launch", "--config", TOY, "--workdir", workdir, "--nocheck", *more])
