"""What some runs measured: a row for each run, seed, checkpoint, average, way of sampling and metric."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from diffusion_jax.evaluation.card import Card, read_cards, record
from diffusion_jax.workdir import FREE, plain, read_config

# Of a card's origin, what tells one way of sampling from another.
WAYS = (
    "step", "average", "precision", "solver", "grid", "evaluations", "guidance", "threshold", "returned", "label",
    "captions", "negative", "size", "hints",
)  # fmt: skip

SAID_ELSEWHERE = {"evaluation", "expects", "sampling"}  # by the cards, each of its own


class Row(NamedTuple):
    """One value: the run's folder and seed, what tells its arm from others, by name, its card, and how it was drawn."""

    workdir: Path
    seed: int
    arm: Mapping[str, str]
    card: Card
    way: Mapping[str, Any] = {}


def read_rows(workdirs: Iterable[Path]) -> list[Row]:
    """Read the cards of some runs, in the order in which they were made.

    An arm is named by what differs among the runs and their ways of sampling.
    """
    held: list[tuple[Path, dict[str, Any], list[Card]]] = []
    for workdir in workdirs:
        cards = [card for path in sorted((workdir / "evaluations").glob("*.json")) for card in read_cards(path)]
        cards.sort(key=lambda card: str(card.made.get("at", "")))
        held.append((workdir, plain(read_config(workdir)), cards))
    if not any(cards for _, _, cards in held):
        where = ", ".join(str(workdir) for workdir, *_ in held) or "no folder"
        raise ValueError(f"report: there are no cards in {where}; evaluate the runs first.")
    same = []
    for free in (FREE, SAID_ELSEWHERE):  # where nothing else does, what a run may change tells two folders apart
        found = _rows(held, free)
        same = _same(found)
        if not same:
            return found
    one, other = same[0]
    raise ValueError(
        f"report: {one} and {other} are the same arm from the same seed, of which one would hide the other; leave one "
        "of them out."
    )


def arms_of(rows: Sequence[Row]) -> list[Mapping[str, str]]:
    """Return the different arms, in the order in which they come."""
    found: list[Mapping[str, str]] = []
    for row in rows:
        if row.arm not in found:
            found.append(row.arm)
    return found


def metrics_of(rows: Sequence[Row]) -> list[str]:
    """Return the metrics, in the order in which they come."""
    return list(dict.fromkeys(row.card.metric for row in rows))


def name_of(arm: Mapping[str, str]) -> str:
    """Name an arm in a line."""
    return ", ".join(f"{key} {value}" for key, value in arm.items()) or "all"


def flat(row: Row) -> dict[str, Any]:
    """Return a row as one flat record, for tables of other programs."""
    number = {key: value for key, value in record(row.card).items() if key in ("metric", "value", "low", "high", "n")}
    return {"run": row.workdir.name, "seed": row.seed, **row.arm, **row.way, **number}


def shown(value: Any, among: Sequence[Any]) -> str:
    """Return a value in a few letters: an entry's name, and those keywords that tell it from others of the name."""
    if not isinstance(value, Mapping):
        return value if isinstance(value, str) else json.dumps(value)
    alike = [other for other in among if isinstance(other, Mapping) and other.get("name") == value.get("name")]
    keywords = [key for key in value if key != "name" and (any(other.get(key) != value[key] for other in alike))]
    return str(value.get("name", "")) + "".join(f" {key}={shown(value[key], ())}" for key in keywords)


def _rows(held, free):
    """Return the rows of runs, their configs and their cards, and name their arms by what is not `free`."""
    configs = [_entries(config, free) for _, config, _ in held]
    trained = _telling(configs)
    every = [card.samples for _, _, cards in held for card in cards]
    drawn = [_way(samples, every) for samples in every]
    ways, rest = _telling(drawn), iter(drawn)
    found = []
    for (workdir, config, cards), entries in zip(held, configs, strict=True):
        for card in cards:
            way = next(rest)
            arm = {key: shown(entries.get(key), [one.get(key) for one in configs]) for key in trained}
            arm |= {key: shown(way.get(key), ()) for key in ways}
            found.append(Row(workdir, config["seed"], arm, card, way))
    return _newest(found)


def _same(rows):
    """Return pairs of folders that both have a value of one arm, seed and metric."""
    first: dict[str, Path] = {}
    keys = [json.dumps([row.seed, row.arm, row.card.metric]) for row in rows]
    both = [(first.setdefault(key, row.workdir), row.workdir) for key, row in zip(keys, rows, strict=True)]
    return [(one, other) for one, other in both if one != other]


def _entries(config, free, under=""):
    """Flatten a config but for what is `free`, leaving whole the entries that have a name."""
    found = {}
    for key, value in config.items():
        path = f"{under}{key}"
        if path in free or path == "seed":
            continue
        if isinstance(value, Mapping) and "name" not in value:
            found |= _entries(value, free, f"{path}.")
        elif isinstance(value, Mapping) and any(isinstance(inner, Mapping) for inner in value.values()):
            found |= {path: {name: inner for name, inner in value.items() if not isinstance(inner, Mapping)}}
            found |= {f"{path}.{name}": inner for name, inner in value.items() if isinstance(inner, Mapping)}
        else:
            found[path] = value
    return found


def _way(samples, every):
    """Say how samples were drawn, of entries with those keywords that tell them from others of `every` card.

    The scale of guidance is a number of its own, and what else tells how it guided is beside it.
    """
    way = {}
    for key in (key for key in WAYS if key in samples):
        value, among = samples[key], [other.get(key) for other in every]
        if key == "guidance" and isinstance(value, Mapping):
            way["guided"] = shown(_unscaled(value), [_unscaled(other) for other in among])
            way[key] = value.get("scale", value.get("name"))
        else:
            way[key] = shown(value, among) if isinstance(value, Mapping) else value
    return way


def _unscaled(guidance):
    if not isinstance(guidance, Mapping):
        return guidance
    return {key: value for key, value in guidance.items() if key != "scale"}


def _telling(records):
    """Return the keys whose values differ."""
    keys = dict.fromkeys(key for record in records for key in record)
    return [key for key in keys if len({json.dumps(record.get(key)) for record in records}) > 1]


def _newest(rows):
    """Keep the last made of several cards of one thing."""
    kept: dict[str, Row] = {}
    for row in rows:
        key = json.dumps([str(row.workdir), row.arm, row.card.metric])
        if key not in kept or str(kept[key].card.made.get("at", "")) <= str(row.card.made.get("at", "")):
            kept[key] = row
    return list(kept.values())
