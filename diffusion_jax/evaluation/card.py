"""A number with its protocol.

Two values of a metric may stand beside each other only if they were measured alike: the same features and weights, the
same resizing, the same reference, the same number of samples. A card carries all of that, and beside it where its
samples came from, which is what a comparison is about. It is one JSON object, and a row of a table.
"""

import html
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from diffusion_jax.files import replacing


class Card(NamedTuple):
    """One measured value.

    `interval` holds it with a probability of 95 %, by the method named in the protocol, or is None. `protocol` is what
    two cards must share to be compared; `samples` says where the samples came from, `made` when and on what.
    """

    metric: str
    value: float
    interval: tuple[float, float] | None
    better: str
    protocol: dict[str, Any]
    samples: dict[str, Any]
    made: dict[str, Any]

    def __str__(self) -> str:
        if self.interval is None:
            return f"{self.value:.4g}"
        return f"{self.value:.4g} ± {(self.interval[1] - self.interval[0]) / 2:.2g}"


class Cards(tuple[Card, ...]):
    """The cards of one set of samples; shows itself as a table in a notebook."""

    @property
    def values(self) -> dict[str, float]:
        """Return the values by metric."""
        return {card.metric: card.value for card in self}

    def __getitem__(self, key: Any) -> Any:
        """Return a card by its metric, or by its place."""
        if isinstance(key, str):
            for card in self:
                if card.metric == key:
                    return card
            raise KeyError(f"no card of '{key}'; there are: {', '.join(card.metric for card in self)}")
        return super().__getitem__(key)

    def __str__(self) -> str:
        width = max((len(card.metric) for card in self), default=0)
        lines = [f"{card.metric:<{width}}  {card}  ({card.better} is better)" for card in self]
        return "\n".join([*lines, *(f"{name}: {_short(value)}" for name, value in _facts(self).items())])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        rows = [(card.metric, str(card), f"{card.better} is better") for card in self]
        return _html(rows) + _html([(name, _short(value)) for name, value in _facts(self).items()])


def differences(a: Card, b: Card) -> list[str]:
    """Say what keeps two cards of a metric from being compared; nothing if they may be."""
    names = sorted({*a.protocol, *b.protocol} - {"interval"})
    pairs = [(name, a.protocol.get(name), b.protocol.get(name)) for name in names]
    return [f"{name}: {_short(one)} and {_short(other)}" for name, one, other in pairs if one != other]


def table(sets: Iterable[Sequence[Card]], *, names: Sequence[str] = (), force: bool = False) -> str:
    """Return a Markdown table, a row for each set of cards and a column for each metric.

    Values that are not comparable are refused, with the difference, unless `force`d. `names` are those of the rows; by
    default what of `samples` differs between them.
    """
    sets = [tuple(cards) for cards in sets]
    metrics = list(dict.fromkeys(card.metric for cards in sets for card in cards))
    for metric in metrics:
        column = [card for cards in sets for card in cards if card.metric == metric]
        for other in column[1:]:
            found = differences(column[0], other)
            if found and not force:
                raise ValueError(
                    f"two values of {metric} were not measured alike: {'; '.join(found)}. Measure them alike, or force "
                    "the table and say so."
                )
    by_metric = [{card.metric: card for card in cards} for cards in sets]
    heads = list(names) or distinguished([cards[0].samples if cards else {} for cards in sets])
    arrows = {metric: "↓" if _better(sets, metric) == "lower" else "↑" for metric in metrics}
    lines = [" | ".join(["", *(f"{metric} {arrows[metric]}" for metric in metrics)])]
    lines.append(" | ".join(["---", *("---:" for _ in metrics)]))
    for head, cards in zip(heads, by_metric, strict=True):
        lines.append(" | ".join([head, *(str(cards.get(metric, "")) for metric in metrics)]))
    return "\n".join(f"| {line.strip()} |" for line in lines)


def distinguished(origins: Sequence[dict[str, Any]]) -> list[str]:
    """Name each set of samples by what tells it from the others."""
    keys = list(dict.fromkeys(key for origin in origins for key in origin))
    telling = [key for key in keys if len({_short(origin.get(key)) for origin in origins}) > 1]
    named = [", ".join(f"{key} {_short(origin.get(key))}" for key in telling) for origin in origins]
    return [name or str(place + 1) for place, name in enumerate(named)]


def record(card: Card) -> dict[str, Any]:
    """Return a card as one flat row: the value, what it was measured on, and how."""
    low, high = card.interval or (None, None)
    number = {"metric": card.metric, "value": card.value, "low": low, "high": high}
    return {**number, **card.samples, **card.protocol, "at": card.made.get("at")}


def write_cards(path: Path, cards: Iterable[Card]) -> None:
    """Write cards as a JSON list, whole or not at all."""
    with replacing(path) as file:
        file.write((json.dumps([card._asdict() for card in cards], indent=2) + "\n").encode())


def read_cards(path: Path) -> Cards:
    """Read cards that `write_cards` wrote."""
    try:
        return Cards(
            Card(**{**row, "interval": row["interval"] and tuple(row["interval"])})
            for row in json.loads(Path(path).read_text(encoding="utf-8"))
        )
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path} holds no cards: {error}.") from None


def _better(sets, metric):
    return next(card.better for cards in sets for card in cards if card.metric == metric)


def _facts(cards):
    """Return what all the cards say alike, flat."""
    if not cards:
        return {}
    groups = [cards[0].samples, cards[0].protocol, cards[0].made]
    return {name: value for group in groups for name, value in group.items() if value not in ("", None)}


def _short(value):
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _html(rows):
    cells = ("".join(f"<td>{html.escape(str(cell))}</td>" for cell in row) for row in rows)
    return f"<table>{''.join(f'<tr>{row}</tr>' for row in cells)}</table>"
