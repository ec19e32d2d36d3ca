"""The code that a job runs, as it lies here: the files that git tracks, with what was changed in them."""

import subprocess
from pathlib import Path

from diffusion_jax.launch.action import Run


def root() -> Path:
    """Return the folder of the repository around the current folder."""
    return Path(_git("rev-parse", "--show-toplevel"))


def packed(path: Path) -> Run:
    """Return what packs the files into an archive at `path`; the same files make the same command."""
    made = _git("stash", "create") or "HEAD"  # a commit of what is changed, which nothing refers to
    tree = _git("rev-parse", "--verify", f"{made}^{{tree}}")
    return Run(("git", "-C", str(root()), "archive", "--format=tar.gz", f"--output={path.absolute()}", tree))


def inside(config: str) -> str:
    """Return "PATH:MODE" of a config with its path from the root, or refuse one that git does not track."""
    name, separator, mode = config.partition(":")
    path = Path(name).resolve()
    try:
        shipped = path.relative_to(root().resolve())
        _git("--literal-pathspecs", "ls-files", "--error-unmatch", "--", str(path))
    except ValueError:
        raise ValueError(
            f"{name} is not among the files that git tracks here, and only those are sent along; `git add` it, or give "
            "an --image that has it."
        ) from None
    return f"{shipped}{separator}{mode}"


def _git(*words):
    try:
        done = subprocess.run(["git", *words], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        reason = (getattr(error, "stderr", "") or str(error)).strip()
        raise ValueError(
            f"the code is sent as the files that git tracks, but `git {words[0]}` says: {reason}"
        ) from None
    return done.stdout.strip()
