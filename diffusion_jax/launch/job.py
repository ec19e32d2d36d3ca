"""One run of a config as a job: what is run, where its folder is, and the command that does it."""

import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple


class Job(NamedTuple):
    """A config file with an optional mode, the values that replace its own by dotted key, and the run's folder."""

    name: str
    config: str
    workdir: Path
    overrides: Mapping[str, Any] = {}


def command(job: Job, *, python: str = sys.executable) -> list[str]:
    """Return the words of the command that carries a job out."""
    flags = [f"--config.{key}={spelled(value)}" for key, value in job.overrides.items()]
    return [python, "-m", "diffusion_jax", "train", "--config", job.config, "--workdir", str(job.workdir), *flags]


def spelled(value: Any) -> str:
    """Spell a value as the command line reads it."""
    return value if isinstance(value, str) else repr(value)


def shown(words: Sequence[str]) -> str:
    """Return a command as a person would paste it into a shell."""
    return shlex.join(words)


def check_name(name: str, what: str) -> str:
    """Return a name that may stand in a path and a command, or refuse it."""
    if not re.fullmatch(r"[\w.=+()~-]{1,200}", name) or name.startswith(("-", ".")):
        raise ValueError(f"{what} is '{name}'; it may have letters, digits and any of . = + ( ) ~ - _, up to 200.")
    return name
