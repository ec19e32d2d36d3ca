"""Stand-ins for executables: first in PATH, they note what they are given and answer as they are told."""

import json
import os
import stat
import sys
from pathlib import Path

from diffusion_jax.launch.job import Job

# Values that a shell, Kubernetes or a careless split would make something else of.
HOSTILE = {
    "a": "two words",
    "b": 'it\'s "quoted" \\ ',
    "c": "$(touch pwned) `touch pwned` $HOME ${HOME} $$ $$(PLACE) $(PLACE) %a %t",
    "d": "two\nlines\nEND\n",
    "e": "-rf --",
    "f": "; exit 3 | tee & # > x *",
    "g": "",
}

PYTHON = sys.executable  # a test may change what this process thinks of itself

NOTE = """#!{python} -SE
import json, os, sys
seen = dict(name=os.path.basename(sys.argv[0]), words=sys.argv[1:], place=os.environ.get("DIFFUSION_JAX_PROCESSES", ""))
seen["stdin"] = sys.stdin.read()
with open({log!r}, "a") as file:
    file.write(json.dumps(seen) + "\\n")
for word, (said, code) in {answers!r}.items():
    if word in (seen["name"], *sys.argv[1:]):
        print(said)
        sys.exit(code)
"""


def stand_in(folder: Path, monkeypatch, *names: str, answers=None) -> Path:
    """Put stand-ins first in PATH, which answer some words with (text, exit code); return where calls are noted."""
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "calls.jsonl"
    for name in names:
        executable(folder / name, NOTE.format(python=PYTHON, log=str(log), answers=answers or {}))
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return log


def executable(path: Path, text: str) -> None:
    """Write a file that can be run."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def calls(log: Path) -> list[dict]:
    """Return what the stand-ins were given since the last time."""
    found = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    log.unlink(missing_ok=True)
    return found


def hostile_job(name: str, workdir: Path) -> Job:
    """Return a job whose values are hostile; it is never trained."""
    return Job(name, "toy.py:smoke", workdir / "it's $(touch pwned)", HOSTILE)
