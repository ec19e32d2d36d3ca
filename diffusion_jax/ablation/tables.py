"""Arms side by side: means over seeds with their intervals, and differences, from the same seeds, with theirs.

With d_k the difference of two arms at seed k, which share the order of the data and all noise, and s their standard
deviation over K seeds,

    difference = mean d +- t_{0.975, K - 1} s / sqrt(K).                                                      (1)

An interval that holds 0 says that the arms were not told apart.
"""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from diffusion_jax.ablation.rows import Row, arms_of, flat, metrics_of, name_of
from diffusion_jax.evaluation.card import differences
from diffusion_jax.evaluation.jackknife import student

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


class Number(NamedTuple):
    """A mean over `count` seeds and half the width of its interval, or None where one seed says nothing of it."""

    value: float
    away: float | None
    count: int

    def __str__(self) -> str:
        return f"{self.value:.4g}" + ("" if self.away is None else f" ± {self.away:.2g}")


class Difference(NamedTuple):
    """A difference of two arms, and whether it is further from 0 than chance takes it."""

    number: Number
    told_apart: bool


def mean(rows: Sequence[Row], arm: Mapping[str, str], metric: str) -> Number | None:
    """Return the mean of an arm over its seeds, or None if it was not measured."""
    values = list(_by_seed(rows, arm, metric).values())
    return _number(values) if values else None


def difference(rows: Sequence[Row], arm: Mapping[str, str], base: Mapping[str, str], metric: str) -> Difference | None:
    """Return Eq. (1) of an arm and another, over the seeds that both have."""
    one, other = (_by_seed(rows, each, metric) for each in (arm, base))
    values = [one[seed] - other[seed] for seed in one if seed in other]
    if not values:
        return None
    number = _number(values)
    return Difference(number, number.away is not None and abs(number.value) > number.away)


def markdown(rows: Sequence[Row], *, base: Mapping[str, str] | None = None, force: bool = False) -> str:
    """Return a table of arms by metrics, and of their differences to `base`, by default the first arm.

    A difference within chance stands in brackets. Values that were not measured alike are refused unless `force`d.
    """
    arms, metrics = arms_of(rows), metrics_of(rows)
    check_alike(rows, force=force)
    base = arms[0] if base is None else base
    arrows = [f"{metric} {arrow(rows, metric)}" for metric in metrics]
    lines = [["", *(cell for head in arrows for cell in (head, "difference"))]]
    for arm in arms:
        cells = [name_of(arm)]
        for metric in metrics:
            found = None if arm == base else difference(rows, arm, base, metric)
            cells += [str(mean(rows, arm, metric) or ""), "" if found is None else _bracketed(found)]
        lines.append(cells)
    return _lined(lines)


def cumulative(rows: Sequence[Row], *, force: bool = False) -> str:
    """Return a table whose arms each add something to the one before, lettered, with differences to that one."""
    arms, metrics = arms_of(rows), metrics_of(rows)
    check_alike(rows, force=force)
    lines = [["", "", *(cell for metric in metrics for cell in (f"{metric} {arrow(rows, metric)}", "step"))]]
    for place, arm in enumerate(arms):
        before = arms[place - 1] if place else None
        change = arm if before is None else {key: arm[key] for key in arm if arm[key] != before.get(key)}
        cells = [LETTERS[place % 26], name_of(arm) if before is None else f"+ {name_of(change)}"]
        for metric in metrics:
            found = None if before is None else difference(rows, arm, before, metric)
            cells += [str(mean(rows, arm, metric) or ""), "" if found is None else _bracketed(found)]
        lines.append(cells)
    return _lined(lines)


def as_csv(rows: Sequence[Row]) -> str:
    """Return every row as comma-separated values."""
    records = [flat(row) for row in rows]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(key for record in records for key in record)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return text.getvalue()


def as_json_lines(rows: Sequence[Row]) -> str:
    """Return every row as an object in a line."""
    return "".join(json.dumps(flat(row)) + "\n" for row in rows)


def check_alike(rows: Sequence[Row], *, force: bool = False) -> None:
    """Refuse values of a metric that were not measured alike, with the difference, unless `force`d."""
    for metric in [] if force else metrics_of(rows):
        column = [row for row in rows if row.card.metric == metric]
        for row in column[1:]:
            found = differences(column[0].card, row.card)
            if found:
                raise ValueError(
                    f"{metric} was not measured alike in {column[0].workdir} and {row.workdir}: {'; '.join(found)}. "
                    "Measure them alike, or give --force and say so."
                )


def arrow(rows: Sequence[Row], metric: str) -> str:
    """Point to where a metric is better."""
    return "↓" if next(row.card.better for row in rows if row.card.metric == metric) == "lower" else "↑"


def _by_seed(rows, arm, metric):
    return {row.seed: row.card.value for row in rows if row.arm == arm and row.card.metric == metric}


def _number(values):
    return Number(float(np.mean(values)), student(np.asarray(values)) if len(values) > 1 else None, len(values))


def _bracketed(found):
    text = f"{found.number.value:+.3g}" + ("" if found.number.away is None else f" ± {found.number.away:.2g}")
    return text if found.told_apart else f"({text})"


def _lined(lines):
    rule = ["---", *("---:" for _ in lines[0][1:])]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (lines[0], rule, *lines[1:]))
