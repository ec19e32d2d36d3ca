"""A launch, from what is checked before it to its record."""

from typing import Any

import jax

from diffusion_jax.files import check_folder
from diffusion_jax.launch import record
from diffusion_jax.launch.action import Failed, carry_out, check_commands, script
from diffusion_jax.launch.backend import Backend
from diffusion_jax.training.parallel import check_batch, mesh_shape
from diffusion_jax.workdir import refuse_in_use


def refuse(backend: Backend, made: record.Record, *, again: bool, dry_run: bool = False) -> None:
    """Raise an error if a job cannot run there, or would now disturb what is under way."""
    for job in made.launch.jobs:
        backend.refuse(job)
    if dry_run:
        return
    for job in made.launch.jobs:
        refuse_in_use(job.workdir)
    check_folder(record.FOLDER, "where launches are noted")
    check_commands(backend.start(made.launch))
    record.check_new(made, again=again or backend.stop is None)  # what runs in this process has ended with it


def refuse_share(backend: Backend, *configs: Any) -> None:
    """Raise an error if the devices that a job has there cannot share a config's mesh or batch."""
    count, local = backend.devices()
    for config in configs:
        check_batch(config.training, mesh_shape(count, local, sizes=config.training.mesh))


def start(made: record.Record, backend: Backend) -> None:
    """Start the jobs of a launch, which go on without this process, and keep the record of it."""
    launch, before = made.launch, record.earlier(made.launch.name)
    known = () if before is None else before.launch.said
    record.note(made._replace(launch=launch._replace(said=known)))  # what is begun and not ended is to be found
    try:
        launch = launch._replace(said=tuple(carry_out(backend.start(launch))))
    except Failed as failed:
        raise SystemExit(
            f"error: {failed} See what there is with `status {launch.name}`; --again starts anew."
        ) from None
    record.note(made._replace(launch=launch))
    if before is not None and known and backend.stop is not None:
        ending = script(backend.stop(before.launch))
        if ending != script(backend.stop(launch)):
            print(f"'{launch.name}' was launched before; what may be left of that is ended by: {ending}", end="")


def keep_off_devices() -> None:
    """Keep this process, which only starts others, from taking the devices that they are to have."""
    jax.config.update("jax_platforms", "cpu")
