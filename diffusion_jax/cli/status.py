"""Say how the jobs of a launch are.

    python -m diffusion_jax status              every launch of this folder
    python -m diffusion_jax status toy          the jobs of one, and what its backend says of them

--dry_run              print what would be run, as a script

What is known of a launch is in launches/NAME.json, beside which `python -m diffusion_jax launch --workdir ...` was
given.
"""

from collections.abc import Callable, Sequence

from diffusion_jax.cli import arguments
from diffusion_jax.launch import record
from diffusion_jax.launch.action import Failed, carry_out, script
from diffusion_jax.launch.backends import make_backend


def prepare(argv: Sequence[str]) -> Callable[[], None]:
    """Read the record; return what tells."""
    name, dry_run = arguments.read_name(argv, "status toy")
    records, trouble = ([record.read(name)], []) if name else _all()
    if not records and not trouble:
        raise ValueError(f"there is no launch in {record.FOLDER}/; see `launch --help`.")
    actions = []
    if name:
        backend = make_backend(records[0].backend)
        actions = backend.status(records[0].launch) if backend.status else []
    if dry_run:
        return lambda: print(script(actions), end="")

    def tell():
        for one in records:
            _tell(one)
        for text in trouble:
            print(f"note: {text}")
        try:
            print(*carry_out(actions), sep="\n")
        except Failed as failed:
            raise SystemExit(f"error: {failed}") from None

    return tell


def _all():
    """Return every record that can be read, and what is wrong with the others."""
    records, trouble = [], []
    for path in sorted(record.FOLDER.glob("*.json")):
        try:
            records.append(record.read(path.stem))
        except ValueError as error:
            trouble.append(f"{path}: {error}")
    return records, trouble


def _tell(found):
    print(f"{found.launch.name}   {found.backend['name']}")
    for job in found.launch.jobs:
        print(f"  {job.workdir}: {record.progress(job)}")
