"""Cards: what was measured differently is not put side by side, and what is written comes back."""

from typing import Any

import pytest

from diffusion_jax.evaluation.card import Card, Cards, differences, read_cards, table, write_cards

PROTOCOL = {"n": 1000, "features": "inception/tf1_bilinear", "reference_hash": "abc", "interval": "none"}


def card(value: Any = 3.0, metric="fid", *, interval: Any = None, better="lower", solver="heun", **protocol):
    return Card(metric, value, interval, better, {**PROTOCOL, **protocol}, {"solver": solver}, {"device": "cpu"})


def test_cards_come_back_as_they_were(tmp_path):
    cards = Cards([card(interval=(2.5, 3.5)), card(0.7, "precision", better="higher")])
    write_cards(tmp_path / "cards.json", cards)
    assert read_cards(tmp_path / "cards.json") == cards
    with pytest.raises(ValueError, match="holds no cards"):
        read_cards(tmp_path / "other.json")


def test_a_table_has_a_row_a_set_and_says_what_tells_them_apart():
    sets = [[card(3.0), card(0.7, "precision", better="higher")], [card(2.0, solver="ddim")]]
    lines = table(sets).splitlines()
    assert lines[0] == "| | fid ↓ | precision ↑ |".replace("| |", "| |") or "fid ↓ | precision ↑" in lines[0]
    assert "solver heun | 3 | 0.7" in lines[2] and "solver ddim | 2 |" in lines[3]
    assert "first" in table(sets, names=["first", "second"])


@pytest.mark.parametrize("name", ["n", "features", "reference_hash"])
def test_what_was_measured_differently_is_refused_by_name_unless_forced(name):
    sets = [[card()], [card(**{name: "other"})]]
    assert any(line.startswith(f"{name}: ") for line in differences(sets[0][0], sets[1][0]))
    with pytest.raises(ValueError, match=f"fid were not measured alike: {name}: "):
        table(sets)
    assert "fid" in table(sets, force=True)


def test_where_samples_come_from_and_how_an_interval_was_found_may_differ():
    assert differences(card(), card(solver="ddim", interval=(1.0, 2.0))) == []


def test_a_card_is_found_by_its_metric():
    cards = Cards([card(), card(0.7, "precision")])
    assert cards["precision"].value == 0.7 and cards[0].metric == "fid"
    with pytest.raises(KeyError, match="there are: fid, precision"):
        cards["recall"]
