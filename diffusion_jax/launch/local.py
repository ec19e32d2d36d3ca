"""Jobs on this machine: each a process of its own, so that none can take the others with it."""

import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from diffusion_jax.launch.job import Job, command
from diffusion_jax.training.loop import PREEMPTED


class Ended(NamedTuple):
    """A job that has ended, with its exit code, its time in seconds, and the last lines that it said."""

    job: Job
    code: int
    seconds: float
    said: str


def run_all(
    jobs: Sequence[Job],
    *,
    parallel: int = 1,
    environment: Mapping[str, str] | None = None,
    words: Callable[[Job], list[str]] = command,
) -> Iterator[Ended]:
    """Run jobs, `parallel` at a time, and yield each when it has ended; one that fails does not stop the others.

    What a job says goes to `log.txt` in its folder. If the caller stops, jobs under way are told to save and end.
    """
    if parallel < 1:
        raise ValueError(f"parallel is {parallel}; it must be 1 or more.")
    waiting, running = list(jobs), []
    try:
        while waiting or running:
            while waiting and len(running) < parallel:
                running.append(_Process(waiting.pop(0), environment, words))
            for process in [one for one in running if one.poll() is not None]:
                running.remove(process)
                yield process.ended()
            time.sleep(0.05)
    finally:
        for process in running:
            process.stop()


class _Process:
    """A job under way."""

    def __init__(self, job, environment, words):
        self.job, self._begin = job, time.monotonic()
        job.workdir.mkdir(parents=True, exist_ok=True)
        self._log = job.workdir / "log.txt"
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                words(job), stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=environment
            )

    def poll(self):
        return self._process.poll()

    def ended(self) -> Ended:
        return Ended(self.job, self._process.returncode, time.monotonic() - self._begin, last_lines(self._log))

    def stop(self):
        self._process.terminate()
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            self._process.kill()


def last_lines(log: Path, count: int = 5) -> str:
    """Return the last lines of a log, of a progress bar only its last state."""
    text = log.read_text(encoding="utf-8", errors="replace").replace("\r", "\n") if log.exists() else ""
    return "\n".join([line for line in text.split("\n") if line.strip()][-count:])


def can_go_on(ended: Ended) -> bool:
    """Say whether a job was stopped from outside and saved."""
    return ended.code == PREEMPTED
