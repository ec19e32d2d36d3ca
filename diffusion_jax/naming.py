"""Names in configs become objects here, and misspelt names become helpful errors."""

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any


class KeywordError(ValueError):
    """A keyword that the named entry does not take, or one that it needs."""


def choose(table: Mapping[str, Callable], spec: Any, what: str, *args: Any) -> Any:
    """Build the entry of `table` that `spec` names: a name, or a mapping of `name` and keywords.

    `args` are handed to the entry first; `what` names the kind of thing in errors. An object that is neither a
    name nor a mapping is taken to be built already and returned as it is.
    """
    if isinstance(spec, str):
        name, keywords = spec, {}
    elif hasattr(spec, "items"):
        keywords = dict(spec.items())
        if "name" not in keywords:
            raise ValueError(f"{what} has no 'name'; got {keywords}. Known: {', '.join(sorted(table))}.")
        name = keywords.pop("name")
    elif spec is None:
        raise ValueError(f"{what} is None; name one of {', '.join(sorted(table))}.")
    else:
        return spec
    factory = lookup(table, name, what)
    _check_keywords(table, name, what, keywords, len(args))
    return factory(*args, **keywords)


def lookup(table: Mapping[str, Any], name: str, what: str) -> Any:
    """Return `table[name]`, or raise an error that suggests the nearest known name."""
    if name in table:
        return table[name]
    raise ValueError(f"unknown {what} '{name}'.{suggestion(name, table)} Known: {', '.join(sorted(table))}.")


def suggestion(word: str, known: Iterable[str]) -> str:
    """Ask for the known word nearest to `word`, a slip of two letters first; say nothing if none is near."""
    near = difflib.get_close_matches(str(word), list(known), n=3, cutoff=0.5)
    best = max(near, key=lambda other: sorted(other) == sorted(str(word)), default=None)
    return f" Did you mean '{best}'?" if best else ""


def _check_keywords(table, name, what, keywords, given):
    allowed = _keywords(table[name], given)
    for word in keywords:
        if word in allowed:
            continue
        owners = sorted(other for other, make in table.items() if word in _keywords(make, given))
        hint = suggestion(word, allowed)
        whose = f" It belongs to {', '.join(owners)}." if owners else ""
        takes = ", ".join(allowed) or "no keywords"
        raise KeywordError(f"{what} '{name}' does not take '{word}'.{hint}{whose} It takes: {takes}. Remove it.")
    missing = [word for word, required in allowed.items() if required and word not in keywords]
    if missing:
        raise KeywordError(f"{what} '{name}' needs {', '.join(repr(word) for word in missing)}.")


def _keywords(factory, given):
    """Map each name that `factory` still takes, after `given` positional arguments, to whether it is required."""
    parameters = list(inspect.signature(factory).parameters.values())
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {p.name: p.default is inspect.Parameter.empty for p in parameters[given:] if p.kind in named}
