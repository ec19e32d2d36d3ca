"""What was launched: `launches/NAME.json`, from which `status`, `logs` and `stop` know all that they need."""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from diffusion_jax.launch.backend import Launch
from diffusion_jax.launch.job import Job, check_label
from diffusion_jax.launch.local import newest
from diffusion_jax.naming import suggestion
from diffusion_jax.workdir import commit, write_json

FOLDER = Path("launches")
PLACE = ("name", "zone", "project", "namespace")  # of a backend's options, what says where a launch is found again


class Record(NamedTuple):
    """A launch, and the name of its backend with the options that it was given."""

    launch: Launch
    backend: Mapping[str, Any]


def note(record: Record) -> Path:
    """Write a record, whole or not at all, and return where it is."""
    jobs = [
        {**job._asdict(), "workdir": str(job.workdir), "overrides": dict(job.overrides)} for job in record.launch.jobs
    ]
    path = _path(record.launch.name)
    path.parent.mkdir(parents=True, exist_ok=True)
    made = {"at": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "commit": commit()}
    write_json(path, {"backend": dict(record.backend), "jobs": jobs, "said": record.launch.said, **made})
    return path


def read(name: str) -> Record:
    """Return the record of a launch, or an error that says which there are."""
    path = _path(name)
    if not path.exists():
        known = sorted(other.stem for other in FOLDER.glob("*.json"))
        there = (
            f" There are {', '.join(known)}." if known else f" {FOLDER}/ has none; it lies where `launch` was given."
        )
        raise ValueError(f"no launch is called '{name}'.{suggestion(name, known)}{there}")
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
        jobs = tuple(Job(one["name"], one["config"], Path(one["workdir"]), one["overrides"]) for one in held["jobs"])
        return Record(Launch(name, jobs, tuple(held["said"])), {"name": held["backend"]["name"], **held["backend"]})
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no record of a launch, or a damaged one: {error!r}. Remove it.") from None


def earlier(name: str) -> Record | None:
    """Return the record of a launch, or None where there is none of that name."""
    return read(name) if _path(name).exists() else None


def check_new(made: Record, *, again: bool) -> None:
    """Refuse a name that a launch has already, unless it is launched `again`, and where it was."""
    name, before = made.launch.name, earlier(made.launch.name)
    if before is None:
        return
    for key in PLACE:
        there, here = before.backend.get(key, ""), made.backend.get(key, "")
        if there != here:
            raise ValueError(
                f"'{name}' was launched elsewhere: the {'backend' if key == 'name' else key} was '{there}' and is "
                f"'{here}' now. See `status {name}`; give another --name, or remove {_path(name)} when that has ended."
            )
    if not again:
        raise ValueError(
            f"'{name}' was launched before: see `status {name}`. Give another --name, or --again to launch it anew."
        )


def progress(job: Job) -> str:
    """Say how far a run has come, as far as its folder can be seen from here."""
    if not job.workdir.is_dir():
        return "its folder cannot be seen from here"
    if (job.workdir / "finished.json").exists():
        return f"finished at step {json.loads((job.workdir / 'finished.json').read_text(encoding='utf-8'))['step']}"
    lines = job.workdir / "metrics.jsonl"
    logged = _last_step(lines) if lines.exists() else 0
    step = newest(job.workdir)
    return f"step {logged}; {'no checkpoint yet' if step < 0 else f'checkpoint of step {step}'}"


def _last_step(path):
    """Return the step of the last whole line of a record."""
    for line in reversed(path.read_text(encoding="utf-8").splitlines()):
        try:
            return json.loads(line)["step"]
        except (ValueError, KeyError):
            continue
    return 0


def _path(name):
    return FOLDER / f"{check_label(name, 'the name of a launch')}.json"
