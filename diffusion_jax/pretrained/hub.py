"""Where weights are: a folder or a file here, or a repository of huggingface.co, of which what is needed is fetched.

Fetching is left to the library huggingface_hub. What it once fetched lies in its cache, which is also found without it
and without a network:

    <cache>/models--<owner>--<name>/refs/<revision>  ->  <commit>,      .../snapshots/<commit>/<files>
"""

import os
import re
from pathlib import Path

REPOSITORY = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
DESCRIPTIONS = ("*.json", "*.txt", "*.model")  # configs, indices and tokenizers


def found(path: str | Path, *, revision: str = "", patterns: tuple[str, ...] = DESCRIPTIONS) -> Path:
    """Return a local path as it is, or the folder of a repository in which are its files of these patterns."""
    here = Path(path).expanduser()
    if here.exists():
        if revision:
            raise ValueError(f"load: {here} is here, and has no revision '{revision}'; leave `revision` out.")
        return here
    name, revision = str(path), revision or "main"
    if not REPOSITORY.fullmatch(name):
        raise ValueError(f"load: there is no {here.absolute()}, and '{name}' is no name of a repository, owner/name.")
    try:
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(name, revision=revision, allow_patterns=list(patterns)))
    except ImportError:
        why, remedy = "the library huggingface_hub is not here", "pip install huggingface_hub, or download"
    except Exception as error:  # of the network, of its server, or of the library's own kinds
        first, *_ = str(error).strip().splitlines() or [""]
        why = f"fetching it failed ({type(error).__name__}: {first})"
        remedy = "Download"
    kept = _kept(name, revision)
    if kept:
        return kept
    raise ValueError(
        f"load: there is no {here.absolute()}, and nothing of the repository {name} at {revision} in {cache()}: {why}. "
        f"{remedy} https://huggingface.co/{name} by hand and name its folder."
    )


def weights(subfolder: str = "", variant: str = "") -> tuple[tuple[str, ...], ...]:
    """Return patterns of the files that hold weights, as they are named today and, second, as they once were."""
    place, part = f"{subfolder}/" if subfolder else "", "-?????-of-?????"
    middle = f".{variant}" if variant else ""
    ends = {f"{middle}", f"{middle}{part}", f"{part}{middle}"}
    return tuple(
        tuple(f"{place}{stem}{end}.{ending}" for stem in stems for end in sorted(ends))
        for stems, ending in (
            (("model", "diffusion_pytorch_model"), "safetensors"),
            (("pytorch_model", "diffusion_pytorch_model"), "bin"),
        )
    )


def cache() -> Path:
    """Return the folder in which huggingface_hub keeps repositories."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "huggingface"
    home = Path(os.environ.get("HF_HOME") or home).expanduser()
    return Path(os.environ.get("HF_HUB_CACHE") or home / "hub").expanduser()


def _kept(name, revision):
    """Return the folder of a repository in the cache, or None."""
    folder = cache() / f"models--{name.replace('/', '--')}"
    reference = folder / "refs" / revision
    commit = reference.read_text(encoding="utf-8").strip() if reference.is_file() else revision
    snapshot = folder / "snapshots" / commit
    return snapshot if snapshot.is_dir() else None
