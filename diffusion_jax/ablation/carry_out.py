"""An ablation carried out: what is done is not done again, what fails does not stop the rest, a restart goes on."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from diffusion_jax.ablation.question import Run
from diffusion_jax.files import replacing
from diffusion_jax.launch.backend import Ended
from diffusion_jax.launch.local import can_go_on
from diffusion_jax.workdir import finished, refuse_another

AGAIN = 3  # times that a run is begun; one that was stopped from outside each time has failed


class Outcome(NamedTuple):
    """How many runs there were, how many were there already, and those that failed, with what they said."""

    total: int
    before: int
    failed: list[Ended]


def waiting(runs: Sequence[Run]) -> list[Run]:
    """Return the runs that are not done; a folder that holds another run is refused before any is begun."""
    found = []
    for run in runs:
        refuse_another(run.job.workdir, run.config, "Give another --out, or remove that folder.")
        if not finished(run.job.workdir, run.config):
            found.append(run)
    return found


def carry_out(runs: Sequence[Run], backend: Callable[[Sequence], Iterator[Ended]]) -> Outcome:
    """Run what is waiting; `backend` takes jobs and yields them as they end."""
    todo = waiting(runs)
    failed, jobs, tries = [], [run.job for run in todo], 0
    with tqdm(total=len(runs), initial=len(runs) - len(todo), unit="run", desc="runs") as bar:
        while jobs:
            stopped, tries = [], tries + 1
            for ended in backend(jobs):
                if can_go_on(ended) and tries < AGAIN:
                    stopped.append(ended.job)
                    bar.write(f"{ended.job.name}: stopped from outside; it goes on later")
                    continue
                bar.update()
                if ended.code:
                    failed.append(ended)
                    bar.write(f"{ended.job.name}: failed with exit code {ended.code} after {ended.seconds:.0f} s")
            jobs = stopped
    return Outcome(len(runs), len(runs) - len(todo), failed)


def note_question(out: Path, question: str, source: str, notes: Sequence[str]) -> None:
    """Keep beside the runs what was asked, for the report."""
    text = "\n\n".join([question.strip(), f"`{source}`", *notes])
    out.mkdir(parents=True, exist_ok=True)
    with replacing(out / "question.md") as file:
        file.write(f"{text}\n".encode())
