"""Show what the jobs of a launch said last.

    python -m diffusion_jax logs toy

--dry_run              print what would be run, as a script

What is known of a launch is in launches/NAME.json, beside which `python -m diffusion_jax launch --workdir ...` was
given.
"""

import re
from collections.abc import Callable, Sequence

from diffusion_jax.cli import arguments
from diffusion_jax.launch import record
from diffusion_jax.launch.action import Failed, carry_out, script
from diffusion_jax.launch.backends import make_backend


def prepare(argv: Sequence[str]) -> Callable[[], None]:
    """Read the record; return what shows the logs."""
    return asking(argv, "logs")


def asking(argv: Sequence[str], what: str) -> Callable[[], None]:
    """Return what carries out the actions of a backend that are called `what`."""
    name, dry_run = arguments.read_name(argv, f"{what} toy")
    if not name:
        raise ValueError(f"of which launch? Give its name, as in `{what} toy`; `status` lists them.")
    launch, spec = record.read(name)
    made = getattr(make_backend(spec), what)
    if made is None:
        raise ValueError(f"launches on {spec['name']} have no `{what}`: they run in the process that launched them.")
    actions = made(launch)
    if dry_run:
        return lambda: print(script(actions), end="")

    def do():
        try:
            for said in carry_out(actions):
                print(re.sub(r"[^\n]*\r(?!\n)", "", said))  # of a progress bar its last state
        except Failed as failed:
            raise SystemExit(f"error: {failed}") from None

    return do
