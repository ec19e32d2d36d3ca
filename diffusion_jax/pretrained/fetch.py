"""Files from the network, kept in a folder and held against their hash."""

import hashlib
import os
import urllib.error
import urllib.request
from pathlib import Path

from diffusion_jax.files import replacing


def cache_folder() -> Path:
    """Return where downloads are kept: DIFFUSION_JAX_CACHE, or `diffusion_jax` among the user's caches."""
    chosen = os.environ.get("DIFFUSION_JAX_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "diffusion_jax"


def fetch(url: str, sha256: str) -> Path:
    """Return the cached file of a URL, downloaded if it is not there; its sha256 must begin as given."""
    path = cache_folder() / url.rsplit("/", 1)[-1]
    if not path.is_file():
        _download(url, path, sha256)
    found = hash_of(path)
    if not found.startswith(sha256):
        raise ValueError(
            f"{path} has the sha256 {found[:16]}..., which should begin with {sha256}: it is damaged or another file. "
            "Remove it; it is downloaded again."
        )
    return path


def hash_of(path: Path) -> str:
    """Return the sha256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _download(url, path, sha256):
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with urllib.request.urlopen(url, timeout=60) as source, replacing(path) as file:
            total = hashlib.sha256()
            while part := source.read(2**20):
                total.update(part)
                file.write(part)
            if not total.hexdigest().startswith(sha256):
                raise ValueError(
                    f"{url} gave a file whose sha256 begins with {total.hexdigest()[:16]}, not {sha256}; nothing was "
                    "kept."
                )
    except (urllib.error.URLError, TimeoutError, OSError) as error:
        raise ValueError(
            f"{url} could not be downloaded ({error}). Download it elsewhere and put it at {path}."
        ) from None
