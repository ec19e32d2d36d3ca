"""One run of a config as a job: what is run, where its folder is, and the command that does it."""

import math
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np


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


def repeated(job: Job, repeats: int, *, seed: int = 0) -> tuple[Job, ...]:
    """Return a job as often as asked, each from its own seed, counted from `seed`, and in its own folder below it."""
    check_counts({"repeats": (repeats, 1)})
    if repeats == 1:
        return (job,)
    return tuple(
        Job(f"{job.name}-{number}", job.config, job.workdir / f"seed={number}", {**job.overrides, "seed": number})
        for number in range(seed, seed + repeats)
    )


def spelled(value: Any) -> str:
    """Spell a value as the command line reads it."""
    return value if isinstance(value, str) else _literal(value)


def plainly(value: Any, what: str) -> Any:
    """Return a value as numbers, texts, tuples and dicts, of which numpy's are made; others cannot be spelled."""
    if isinstance(value, np.generic | np.ndarray):
        return plainly(value.tolist(), what)
    if isinstance(value, Mapping):
        return {str(key): plainly(inner, what) for key, inner in value.items()}
    if isinstance(value, tuple | list):
        return tuple(plainly(inner, what) for inner in value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise ValueError(
        f"{what} is {value!r}, which no command line can say; give a number, a text, None, a tuple or a mapping."
    )


def _literal(value):
    """Spell a value as Python reads it, which has no word for what is infinite."""
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key!r}: {_literal(inner)}' for key, inner in value.items())}}}"
    if isinstance(value, tuple | list):
        inside = ", ".join(map(_literal, value))
        return f"({inside},)" if len(value) == 1 else f"({inside})"
    if isinstance(value, float) and math.isinf(value):
        return "1e999" if value > 0 else "-1e999"
    return repr(value)


def shown(words: Sequence[str]) -> str:
    """Return a command as a person would paste it into a shell."""
    return shlex.join(words)


def check_name(name: str, what: str) -> str:
    """Return a name that may stand in a path and a command, or refuse it."""
    if not re.fullmatch(r"[\w.=+()~-]{1,200}", name) or name.startswith(("-", ".")):
        raise ValueError(f"{what} is '{name}'; it may have letters, digits and any of . = + ( ) ~ - _, up to 200.")
    return name


def check_label(name: str, what: str) -> str:
    """Return a name that clusters and clouds take as that of a thing of theirs, or refuse it."""
    if not re.fullmatch(r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?", name):
        example = f" For example {label(name)}." if label(name) else ""
        raise ValueError(f"{what} is '{name}'; it may have a-z, 0-9 and -, from a letter on, up to 40.{example}")
    return name


def check_counts(counts: Mapping[str, tuple[int, int]]) -> None:
    """Refuse a value of an option that is less than its least; both stand after its name."""
    for name, (value, least) in counts.items():
        if value < least:
            raise ValueError(f"--{name} is {value}; it must be {least} or more.")


def check_script(path: str, option: str) -> None:
    """Refuse a script that is not there, where one is named."""
    if path and not Path(path).is_file():
        raise ValueError(f"{option} {path} is no file; it must be a script that prepares where a job runs.")


def check_image(image: str) -> str:
    """Return the name of a container image, or refuse it."""
    if image and not re.fullmatch(r"[a-z0-9][\w.:/@-]{0,254}", image):
        raise ValueError(f"--image is '{image}'; it must be like registry/project/name:tag.")
    return image


def label(name: str) -> str:
    """Make of any name one like it that `check_label` takes; of one without letters and digits nothing is left."""
    plain = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    return (f"run-{plain}" if plain[:1].isdigit() else plain)[:40].strip("-")
