"""What a launch does to the world, as data: commands to run and files to write.

A backend returns actions. They are printed, as a script for bash that does the same, or carried out; no shell ever
sees a value that was not quoted for it. That the script does what is carried out is a law of
`tests/launch/test_backends.py`.
"""

import os
import shlex
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from diffusion_jax.files import replacing

PAUSE = 30.0  # seconds between two looks at what is waited for


class Failed(Exception):
    """A command that a launch needs ended with an error, or is not there."""


class Run(NamedTuple):
    """A command, the lines that it reads, and what its environment has besides; `until`: again until it says just that.

    Where it says a word of `unless` instead, waiting is in vain.
    """

    words: tuple[str, ...]
    stdin: str = ""
    environment: Mapping[str, str] = {}
    until: str = ""
    unless: tuple[str, ...] = ()


class Together(NamedTuple):
    """Commands that run beside each other."""

    runs: tuple[Run, ...]


class Write(NamedTuple):
    """A file to write, of whole lines."""

    path: Path
    text: str


Action = Run | Together | Write


def script(actions: Sequence[Action], *, notes: Sequence[str] = ()) -> str:
    """Return a script that does what carrying the actions out does, after notes, of which every line is a comment."""
    comments = [f"# {line}\n" for note in notes for line in note.split("\n")]
    return "".join([*comments, *(f"{_lines(action)}\n" for action in actions)])


def carry_out(actions: Sequence[Action], *, pause: Callable[[float], None] = time.sleep) -> list[str]:
    """Do one after another, and return what each command said; the first that fails ends it."""
    said = []
    for action in actions:
        if isinstance(action, Write):
            write(action)
        elif isinstance(action, Together):
            said += [_ended(process, run) for process, run in [(_begun(run), run) for run in action.runs]]
        else:
            said.append(_said(action, pause))
    return said


def check_commands(actions: Sequence[Action]) -> None:
    """Refuse actions of which this machine does not have the command."""
    for run in [run for action in actions for run in getattr(action, "runs", (action,)) if isinstance(run, Run)]:
        if shutil.which(run.words[0]) is None:
            raise ValueError(_absent(run))


def write(file: Write) -> None:
    """Write a file whole or not at all, and its folder if need be."""
    file.path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file.path) as opened:
        opened.write(file.text.encode())


def _said(run, pause):
    said = _ended(_begun(run), run)
    while run.until and said != run.until:
        if said in run.unless:
            raise Failed(f"{shlex.join(run.words)} says {said}; {run.until} was waited for.")
        pause(PAUSE)
        said = _ended(_begun(run), run)
    return said


def _begun(run):
    pipe, environment = subprocess.PIPE, {**os.environ, **run.environment}
    try:
        return subprocess.Popen(run.words, stdin=pipe, stdout=pipe, stderr=pipe, env=environment)
    except FileNotFoundError:
        raise Failed(_absent(run)) from None


def _absent(run):
    return f"there is no '{run.words[0]}' on this machine; install it, or launch where it is."


def _ended(process, run):
    # A log that is cut somewhere need not be whole letters.
    said, complained = (heard.decode(errors="replace") for heard in process.communicate(run.stdin.encode()))
    if process.returncode:
        reason = complained.strip()[-2000:]
        raise Failed(f"{shlex.join(run.words)} ended with exit code {process.returncode}: {reason}")
    return said.strip()


def _lines(action):
    if isinstance(action, Together):
        return "\n".join([*(f"{_lines(run)} &" for run in action.runs), "wait"])
    if isinstance(action, Write):
        folder, path = shlex.quote(str(action.path.parent)), shlex.quote(str(action.path))
        return f"mkdir -p -- {folder}\ncat > {path} {_reading(action.text)}"
    said = [f"{name}={shlex.quote(value)}" for name, value in action.environment.items()]
    line = " ".join([*said, shlex.join(action.words)])
    if action.until:
        return f'until [ "$({line})" = {shlex.quote(action.until)} ]; do sleep {PAUSE:.0f}; done'
    return f"{line} {_reading(action.stdin)}" if action.stdin else line


def _reading(text):
    """Say in shell which lines a command reads."""
    end = "END"
    while end in text.split("\n"):
        end += "_"
    return f"<<'{end}'\n{text}{end}"
