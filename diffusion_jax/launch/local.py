"""Jobs on this machine: each one or several processes of its own, so that none can take the others with it.

The processes of a job join over loopback. Where one dies the others would wait for it in a collective for ever: they
are told to end, then ended, and the job starts again from its last checkpoint. The code of a job is that of the
process which failed first.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from diffusion_jax.files import check_folder
from diffusion_jax.launch.action import Run, Together
from diffusion_jax.launch.backend import Backend, Ended
from diffusion_jax.launch.distributed import described
from diffusion_jax.launch.job import Job, check_counts, command
from diffusion_jax.training.loop import PREEMPTED

MISTAKE = 2  # the exit code of a request that cannot be carried out, as often as it is tried
GRACE = 10.0  # seconds between being told to end and being ended, where another process has died
SAVING = 120.0  # the same, where all were told, and save
LOOK = 0.05  # seconds between two looks at the processes


class How(NamedTuple):
    """As how many processes a job runs, how often it starts again without progress, and what is run."""

    processes: int = 1
    restarts: int = 0
    environment: Mapping[str, str] | None = None
    words: Callable[[Job], list[str]] = command


ALONE = How()


def local(*, processes: int = 1, restarts: int = 3, parallel: int = 1) -> Backend:
    """Run jobs here, each as so many processes, and start one again that died, so often without progress."""
    check_counts({"processes": (processes, 1), "restarts": (restarts, 0), "parallel": (parallel, 1)})
    how = How(processes, restarts)
    return Backend(
        start=lambda launch: [together(job, how, free_address()) for job in launch.jobs],
        logs=lambda launch: [Run(("tail", "-n", "20", "--", *_logs(launch, processes)))],
        run=lambda launch, show: run_all(launch.jobs, parallel=parallel, how=how, show=show),
        refuse=lambda job: check_folder(job.workdir, "--workdir"),
        devices=partial(_devices, processes),
    )


def run_all(
    jobs: Sequence[Job], *, parallel: int = 1, how: How = ALONE, show: Callable[[str], None] = lambda text: None
) -> Iterator[Ended]:
    """Run jobs, `parallel` at a time, and yield each when it has ended; one that fails does not stop the others.

    What process k of a job says goes to `log.k.txt` in its folder. If the caller stops, or is told to by SIGTERM or
    Ctrl-C, jobs under way are told to save and end, and after a second signal ended; then this process exits with 75.
    `show` hears what the first process of a job says last.
    """
    if parallel < 1:
        raise ValueError(f"parallel is {parallel}; it must be 1 or more.")
    waiting, running, shown = list(jobs), [], 0.0
    with _Told() as told:
        try:
            while running or (waiting and not told.times):
                while waiting and len(running) < parallel and not told.times:
                    running.append(_Running(waiting.pop(0), how))
                for one in list(running):
                    ended = one.look(told.times)
                    if ended is not None:
                        running.remove(one)
                        yield ended
                    elif time.monotonic() > shown + 0.5:
                        shown = time.monotonic()
                        show("   ".join(other.says() for other in running))
                time.sleep(LOOK)
        finally:
            for one in running:
                one.stop()
    if told.times:
        raise SystemExit(PREEMPTED)


def together(job: Job, how: How, address: str) -> Together:
    """Return the processes of a job as commands."""
    share = partial(_devices_of, os.environ if how.environment is None else how.environment, how.processes)
    places = [{**described(place, how.processes, address), **share(place)} for place in range(how.processes)]
    return Together(tuple(Run(tuple(how.words(job)), "", here if how.processes > 1 else {}) for here in places))


def free_address() -> str:
    """Return an address of this machine at which nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


def newest(workdir: Path) -> int:
    """Return the step of the newest checkpoint of a run, or -1."""
    return max((int(path.name) for path in (workdir / "checkpoints").glob("*") if path.name.isdigit()), default=-1)


def last_lines(log: Path, count: int = 5) -> str:
    """Return the last lines of a log, of a progress bar only its last state."""
    if not log.exists():
        return ""
    with log.open("rb") as file:
        file.seek(max(file.seek(0, os.SEEK_END) - 10_000, 0))
        text = file.read().decode(errors="replace").replace("\r", "\n")
    return "\n".join([line for line in text.split("\n") if line.strip()][-count:])


def can_go_on(ended: Ended) -> bool:
    """Say whether a job was stopped from outside and saved."""
    return ended.code == PREEMPTED


class _Running:
    """A job under way, from its first start to its last."""

    def __init__(self, job, how):
        self.job, self._how, self._begin = job, how, time.monotonic()
        self._step, self._tries = newest(job.workdir), 0
        job.workdir.mkdir(parents=True, exist_ok=True)
        self._start()

    def _start(self):
        self._first: tuple[int, int] | None = None  # the code of the process that failed first, and its place
        self._end, self._told = float("inf"), 0
        base = os.environ if self._how.environment is None else self._how.environment
        self._processes: list[subprocess.Popen[bytes]] = []
        for place, run in enumerate(together(self.job, self._how, free_address()).runs):
            with self._log(place).open("ab") as log:
                self._processes.append(
                    subprocess.Popen(
                        run.words,
                        env={**base, **run.environment},
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=subprocess.STDOUT,
                        start_new_session=True,  # so that Ctrl-C in a terminal reaches it once, through this process
                    )
                )

    def look(self, told: int) -> Ended | None:
        """Do what is due; return the job when it has ended for good."""
        codes = [self._code(place) for place in range(self._how.processes)]
        failed = [(code, place) for place, code in enumerate(codes) if code]
        if failed and self._first is None:
            self._first = min(failed)  # of several at once a signal, which is negative, is nearest to the cause
            self._give(SAVING if self._first[0] == PREEMPTED else GRACE, tell=self._first[0] != PREEMPTED)
        if told > self._told:
            self._told = told
            self._give(SAVING if told == 1 else 0.0, tell=told == 1 and self._first is None)
        if None in codes:
            if time.monotonic() > self._end:
                self._kill()
            return None
        code, place = self._first or (0, 0)
        if code not in (0, MISTAKE, PREEMPTED) and not told and self._again(place, code):
            return None
        return Ended(self.job, code, time.monotonic() - self._begin, last_lines(self._log(place)))

    def says(self):
        """Return the job's name and what its first process says last."""
        return f"{self.job.name}: {last_lines(self._log(0), 1)[:160]}"

    def stop(self):
        """Tell all processes to save and end, and end them if they do not."""
        self._give(SAVING, tell=True)
        while None in [self._code(place) for place in range(self._how.processes)]:
            if time.monotonic() > self._end:
                self._kill()
            time.sleep(LOOK)

    def _code(self, place):
        """Return the exit code of a process, or None; when it has ended, so does whatever it left behind."""
        process = self._processes[place]
        fresh = process.returncode is None
        code = process.poll()
        if fresh and code is not None:
            _end(process)
        return code

    def _again(self, place, code):
        """Start again, unless it has been tried too often without progress."""
        step = newest(self.job.workdir)
        if step > self._step:
            self._step, self._tries = step, 0
        ended = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        who = f"{self.job.name}: process {place} of {self._how.processes} {ended}"
        if self._tries >= self._how.restarts:
            return False
        self._tries += 1
        since = f"the checkpoint of step {step}" if step >= 0 else "the beginning"
        tqdm.write(f"{who}; it goes on from {since} (try {self._tries} of {self._how.restarts})")
        self._start()
        return True

    def _give(self, seconds, *, tell):
        self._end = min(self._end, time.monotonic() + seconds)
        for place, process in enumerate(self._processes):
            if tell and self._code(place) is None:
                process.terminate()

    def _kill(self):
        for process in self._processes:
            if process.returncode is None:
                _end(process)

    def _log(self, place):
        return self.job.workdir / f"log.{place}.txt"


class _Told:
    """While open, count SIGTERM and SIGINT instead of ending of them."""

    def __init__(self):
        self.times = 0
        self._before: dict[int, Any] = {}

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_):
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, *_):
        self.times += 1


def _end(process):
    """End a process and those that it began, which have its group."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


def _devices_of(environment, processes, place):
    """Share the GPUs that the environment names among the processes of a job, which would each take all of them."""
    devices = [name for name in environment.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    if processes == 1 or not devices:
        return {}
    if len(devices) % processes:
        raise ValueError(
            f"CUDA_VISIBLE_DEVICES names {len(devices)} devices, which {processes} processes cannot share."
        )
    each = len(devices) // processes
    return {"CUDA_VISIBLE_DEVICES": ",".join(devices[place * each : (place + 1) * each])}


def _devices(processes):
    """Ask a process like those of a job how many devices it has, and say how many a job then has."""
    environment = {**os.environ, **_devices_of(os.environ, processes, 0)}
    words = [sys.executable, "-c", "import jax; print(jax.local_device_count())"]
    asked = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    if asked.returncode:
        reason = (asked.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise ValueError(f"JAX finds no devices on this machine: {reason}")
    local = int(asked.stdout.split()[-1])
    return processes * local, local


def _logs(launch, processes):
    return [str(job.workdir / f"log.{place}.txt") for job in launch.jobs for place in range(processes)]
