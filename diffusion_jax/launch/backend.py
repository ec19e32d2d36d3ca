"""What a backend is: a place where jobs run, and what would be done there, as data.

A backend is made by a function of keywords, which are its options on the command line, and named in
`backends.BACKENDS`. What it needs to know later is in the record of the launch, and nowhere else.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from diffusion_jax.launch.action import Action
from diffusion_jax.launch.job import Job


class Launch(NamedTuple):
    """Jobs that were launched under one name, and what the commands that started them said."""

    name: str
    jobs: tuple[Job, ...]
    said: tuple[str, ...] = ()

    def name_of(self, job: Job) -> str:
        """Return what a cluster calls one of the jobs."""
        return self.name if len(self.jobs) == 1 else f"{self.name}-{self.jobs.index(job)}"


class Ended(NamedTuple):
    """A job that has ended, with its exit code, its time in seconds, and the last lines that it said."""

    job: Job
    code: int
    seconds: float
    said: str


class Backend(NamedTuple):
    """What starts the jobs of a launch, and what asks after them; None where there is nothing to do.

    `run` starts the jobs, stays with them, yields each when it has ended, and hands what passes to its second argument;
    without it the actions of `start` are carried out, and the jobs run by themselves. `refuse` raises an error about a
    job that cannot run there, and `note` says what it cannot see. `devices` says how many devices a job has there, and
    how many of them a process of it.
    """

    start: Callable[[Launch], Sequence[Action]]
    devices: Callable[[], tuple[int, int]]
    status: Callable[[Launch], Sequence[Action]] | None = None
    logs: Callable[[Launch], Sequence[Action]] | None = None
    stop: Callable[[Launch], Sequence[Action]] | None = None
    run: Callable[[Launch, Callable[[str], None]], Iterator[Ended]] | None = None
    refuse: Callable[[Job], None] = lambda job: None
    topology: str = ""
    note: str = ""
