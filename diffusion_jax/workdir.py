"""What a run's folder says of itself, and whether another config may go on in it.

config.json   the whole config           run.json    command, versions, commit, devices, one entry a start
data.json     what the data are like     parameters.txt   every parameter's shape
metrics.jsonl, events/, pictures/        the record          checkpoints/, profiles/   to go on from
evaluations/, evaluations.jsonl          cards, and a row for each          generated/   samples that were measured
finished.json   the last step, once all is done            in_use   held by the process that trains
"""

import fcntl
import functools
import importlib.metadata
import json
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, TextIO

from ml_collections import ConfigDict

from diffusion_jax.files import replacing

PACKAGES = ("diffusion_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")

# What may change from one start of a run to the next without making it another run.
FREE = {
    "evaluation",
    "expects",
    "sampling",
    *(
        f"training.{key}"
        for key in (
            "steps", "mapping", "mesh", "workers", "log_every", "save_every", "keep_last", "keep_every", "sample_every",
            "snapshot_every", "most_in_a_row", "tensorboard", "wandb",
        )
    ),
}  # fmt: skip

# What configs have said since the first release of runs, and what leaving it unsaid meant before.
LATER: dict[str, Any] = {
    "expects": {},
    "text": {"name": "words"},
    "latent": {"name": "none"},
    "start": {"name": "scratch"},
    "adapter": {"name": "none"},
    "training.mesh": {"data": -1, "fsdp": 1, "tensor": 1},
    "evaluation.settings": (),
    "sampling.threshold": {"name": "none"},
    "sampling.returned": "x",
    "sampling.captions": ("",),
    "sampling.negative": "",
    "sampling.size": (),
    "sampling.hints": {},
}


def open_workdir(workdir: Path, config: ConfigDict) -> TextIO:
    """Make the folder of a run and take it, until the file returned is closed or the process ends, however it does.

    A folder that holds the run of another config is refused, with the difference, and so is one that is in use.
    """
    refuse_another(workdir, config)
    workdir.mkdir(parents=True, exist_ok=True)
    held = (workdir / "in_use").open("w")
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        held.close()
        raise _in_use(workdir) from None
    write_json(workdir / "config.json", plain(config))
    return held


def refuse_in_use(workdir: Path) -> None:
    """Refuse a folder that another process holds, as far as that can be seen from this machine."""
    if not (workdir / "in_use").exists():
        return
    with (workdir / "in_use").open() as held:
        try:
            fcntl.flock(held, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            raise _in_use(workdir) from None


def refuse_another(
    workdir: Path, config: ConfigDict, remedy: str = "Give another --workdir, or the old values."
) -> None:
    """Refuse a folder that holds the run of another config, with the difference and what to do."""
    differences = config_differences(workdir, config)
    if differences:
        raise ValueError(f"{workdir} holds the run of another config; {'; '.join(differences)}. {remedy}")


def config_differences(workdir: Path, config: ConfigDict) -> list[str]:
    """Say what keeps the run of a folder, if it holds one, from being that of the config."""
    path = workdir / "config.json"
    if not path.exists():
        return []
    changes = _changes(_read_config(path), plain(config), "")
    return [
        f"{key}: {old!r} there, {new!r} now"
        for key, (old, new) in sorted(changes.items())
        if not any(key == free or key.startswith(f"{free}.") for free in FREE)
    ]


def write_info(workdir: Path, info: Any) -> None:
    """Note what a run's data are like."""
    noted = {"name": info.name, "shapes": info.shapes, "classes": info.classes, "range": info.range}
    write_json(workdir / "data.json", noted)


def note_start(workdir: Path, step: int) -> None:
    """Add this start to run.json."""
    import jax

    path = workdir / "run.json"
    starts = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    here = {
        "at": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "from_step": step,
        "command": sys.argv,
        "commit": commit(),
        "versions": versions(),
        "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}, {jax.process_count()} hosts",
    }
    write_json(path, [*starts, here])


def note_end(workdir: Path, step: int, config: ConfigDict) -> None:
    """Note that a run has come to its last step and was measured there as its config says."""
    write_json(workdir / "finished.json", {"step": step, "evaluation": plain(config.evaluation)})


def under_way(workdir: Path) -> bool:
    """Say whether a folder holds a run that has trained and not come to its last step; an imported one has not."""
    return (workdir / "metrics.jsonl").exists() and not (workdir / "finished.json").exists()


def finished(workdir: Path, config: ConfigDict) -> bool:
    """Say whether the folder holds a run that has done all that the config asks."""
    path = workdir / "finished.json"
    if not path.exists():
        return False
    done = json.loads(path.read_text(encoding="utf-8"))
    return done["step"] == config.training.steps and done["evaluation"] == plain(config.evaluation)


def read_config(workdir: Path) -> ConfigDict:
    """Return the locked config of a run; of an older one also what could not be said when it was made."""
    path = workdir / "config.json"
    if not path.exists():
        raise ValueError(f"{workdir} is no run's folder: it has no config.json. Train there first.")
    return ConfigDict(_tuples(_read_config(path))).lock()


def plain(config: Any) -> Any:
    """Return a config, or plain data like one, as json knows it."""
    return json.loads(json.dumps(config.to_dict() if isinstance(config, ConfigDict) else config))


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that a run rests on."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


@functools.cache  # every card says it, and it takes two processes
def commit() -> str | None:
    """Return the git commit of the source at hand, marked if it has changes, or None outside a repository."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changed = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return head + ("+changes" if changed.strip() else "")


def write_json(path: Path, value: Any) -> None:
    """Write a file that is whole or as it was."""
    with replacing(path) as file:
        file.write((json.dumps(value, indent=2) + "\n").encode())


def _in_use(workdir):
    return ValueError(f"{workdir} is in use by another process; wait until that has ended, or give another --workdir.")


def _read_config(path):
    """Read a run's config, and add what configs have said since."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged, and no run can be known by it: {error}.") from None
    if not isinstance(config, dict) or "seed" not in config:
        raise ValueError(f"{path} is no config of a run.")
    for key, value in plain(LATER).items():
        *path, last = key.split(".")
        here = config
        for name in path:
            here = here.setdefault(name, {})
        here.setdefault(last, value)
    return config


def _changes(before, now, under):
    """Return {dotted key: (before, now)} of all that differs between two nested dicts."""
    found = {}
    for key in {*before, *now}:
        old, new = before.get(key), now.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            found |= _changes(old, new, f"{under}{key}.")
        elif old != new:
            found[f"{under}{key}"] = (old, new)
    return found


def _tuples(value):
    if isinstance(value, dict):
        return {key: _tuples(inner) for key, inner in value.items()}
    return tuple(_tuples(inner) for inner in value) if isinstance(value, list) else value
