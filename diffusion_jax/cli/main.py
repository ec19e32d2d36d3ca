"""The commands: `python -m diffusion_jax COMMAND ...`.

A command is a module of this room named after it, with a docstring to show as help and `prepare(argv)`, which
builds everything that can be wrong and returns the job as a function. So a mistake in the request is answered in one
line and with exit code 2 before anything is compiled or written, and a traceback always means a mistake in the code.
"""

import inspect
import logging
import sys
from collections.abc import Callable, Sequence
from importlib import import_module

from absl import flags

from diffusion_jax.naming import lookup


def run(argv: Sequence[str] | None = None) -> int:
    """Carry out one command and return the exit code."""
    logging.getLogger("absl").setLevel(logging.ERROR)  # libraries tell of their own files; what matters is raised
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("help", "-h", "--help"):
        print(_overview())
        return 0 if argv else 2
    try:
        lookup(COMMANDS, argv[0], "command")
        command = import_module(f"diffusion_jax.cli.{argv[0]}")
        if {"-h", "--help"} & set(argv[1:]):
            print(inspect.getdoc(command))
            return 0
        job: Callable[[], None] = command.prepare(argv[1:])
    except (ValueError, OSError, flags.Error) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    job()
    return 0


def _overview():
    width = max(map(len, COMMANDS))
    commands = "\n".join(f"  {name:<{width}}  {does}" for name, does in COMMANDS.items())
    return (
        "usage: python -m diffusion_jax COMMAND [options]\n\n"
        f"{commands}\n\n"
        "`python -m diffusion_jax COMMAND --help` shows what it takes, with examples."
    )


COMMANDS = {
    "plan": "compile a config for a TPU pod that is not here: does it fit, and what can it reach at most?",
    "train": "train a model, or go on with a run that was stopped",
    "encode": "encode a data set once, to train on its latents",
    "launch": "train on this machine's processes, on a TPU pod, on Kubernetes or on SLURM",
    "status": "say how the jobs of a launch are",
    "logs": "show what the jobs of a launch said last",
    "stop": "end the jobs of a launch, and give back what they held",
    "import_weights": "make a run of someone else's model, to sample, measure and train",
    "sample": "draw from a trained model",
    "evaluate": "measure a trained model, or any set of images: FID and its family",
    "likelihood": "measure the bits per dimension of a trained model on data",
    "sweep": "carry out an ablation, or measure a trained model under many ways of sampling it",
    "report": "put what some runs measured into one table and one page",
    "paths": "draw from data whose diffusion is known exactly, measure the error, and picture the paths",
}
