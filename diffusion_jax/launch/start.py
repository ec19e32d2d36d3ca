"""A launch, from what is checked before it to its record."""

import jax

from diffusion_jax.launch import record
from diffusion_jax.launch.action import Failed, carry_out
from diffusion_jax.launch.backend import Backend, Launch


def refuse(backend: Backend, launch: Launch, *, again: bool) -> None:
    """Raise an error if a job cannot run there, or if jobs of this name may be under way."""
    for job in launch.jobs:
        backend.refuse(job)
    if backend.stop is not None and not again:  # what runs without this process
        record.check_new(launch.name)


def start(made: record.Record, backend: Backend) -> None:
    """Start the jobs of a launch, which go on without this process, and keep the record of it."""
    record.note(made)  # before: what is begun and not ended is to be found
    try:
        said = carry_out(backend.start(made.launch))
    except Failed as failed:
        name = made.launch.name
        raise SystemExit(f"error: {failed} See what there is with `status {name}`; --again starts anew.") from None
    record.note(made._replace(launch=made.launch._replace(said=tuple(said))))


def keep_off_devices() -> None:
    """Keep this process, which only starts others, from taking the devices that they are to have."""
    jax.config.update("jax_platforms", "cpu")
