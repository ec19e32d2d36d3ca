"""Configs: read from the files that make them, and changed by dotted keys."""

import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from runpy import run_path
from typing import Any

from ml_collections import ConfigDict

from diffusion_jax.naming import suggestion


def load_config(source: str) -> ConfigDict:
    """Return the locked config that a file's `get_config` makes; `source` is its path, with an optional `:mode`."""
    return made_by(source, "get_config", "config", Path("configs")).lock()


def made_by(source: str, function: str, what: str, home: Path) -> Any:
    """Return what a function of a Python file makes of the mode in `source`, "PATH" or "PATH:MODE".

    Such files are looked for in `home` when there is none at the path, to say which there are.
    """
    name, _, mode = source.partition(":")
    path = Path(name)
    if not path.is_file():
        known = sorted(str(other) for other in home.glob("*.py") if other.stem != "base")
        there = f" In {home}/: {', '.join(known)}." if known else ""
        raise ValueError(f"no {what} file at {name}.{suggestion(name, known) or there}")
    root = next((folder for folder in path.resolve().parents if (folder / "configs" / "base.py").is_file()), None)
    if root and str(root) not in sys.path:
        sys.path.insert(0, str(root))  # configs import configs.base, wherever the command is given
    try:
        made = run_path(str(path)).get(function)
        if callable(made):
            return made(mode)
    except SyntaxError as error:  # of a file that is no text, without a place
        place = f", line {error.lineno}" if error.lineno else ""
        raise ValueError(f"{path}{place}: this is no Python, {error.msg}: {(error.text or '').strip()}") from None
    except Exception as error:
        raise ValueError(f"{_place(path, error)}: {_said(error)}") from error
    if made is None:
        raise ValueError(f"{name} has no function {function}(mode), so it is no {what}.")
    raise ValueError(f"{function} of {name} is {made!r}; it must be a function of a mode.")


def _place(path, error):
    """Say where in a file an error came from, as far as it did."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename) == path]
    return f"{path}, line {lines[-1]}" if lines else str(path)


def _said(error):
    return str(error) if type(error) is ValueError else f"{type(error).__name__}: {error}"


def changed(config: Any, values: Mapping[str, Any], *, what: str = "config") -> Any:
    """Return a locked copy of a config with other values by dotted key; a key that is not there is refused.

    Where there is an entry with a name, a bare name replaces it as a whole, as does a mapping.
    """
    copy = config.copy_and_resolve_references().unlock()
    for key, value in values.items():
        *path, last = key.split(".")
        here: Any = copy
        for name in path:
            here = _part_of(here, name, key, what)
        entry = _part_of(here, last, key, what)
        if isinstance(entry, ConfigDict) and not isinstance(value, str | Mapping):
            raise ValueError(f"{what}.{key} is an entry with a name; {value!r} is neither a name nor a mapping.")
        named = isinstance(entry, ConfigDict) and isinstance(value, str)
        try:
            here[last] = {"name": value} if named else value
        except TypeError:
            kind = type(entry).__name__
            raise ValueError(f"{what}.{key} is {entry!r}, of type {kind}; {value!r} is of another.") from None
    return copy.lock()


def _part_of(here, name, key, what):
    if not isinstance(here, ConfigDict) or name not in here:
        known = sorted(here) if isinstance(here, ConfigDict) else []
        raise ValueError(
            f"{what} has no '{key}'.{suggestion(name, known)} There it has: {', '.join(known) or 'nothing'}."
        )
    return here[name]
