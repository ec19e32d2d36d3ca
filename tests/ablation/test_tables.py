"""Tables of arms: paired differences, what chance may have made, and what may not stand together."""

import json
from pathlib import Path

import numpy as np
import pytest

from diffusion_jax.ablation import report, tables
from diffusion_jax.ablation.rows import Row, arms_of, read_rows, shown
from diffusion_jax.evaluation.card import Card, write_cards

RNG = np.random.default_rng(0)


OTHERWISE = (
    ("grid", {"name": "karras", "rho": 3.0}),
    ("grid", {"name": "karras", "rho": 7.0}),
    ("threshold", {"name": "static", "limit": 1.0}),
    ("captions", ["a"]),
    ("captions", ["b"]),
    ("negative", "bad"),
    ("size", [8, 8]),
)


def card(value, *, metric="fid", n=100, **samples):
    origin = {"run": "r", "step": 5, "evaluations": 10, **samples}
    return Card(metric, float(value), None, "lower", {"n": n, "interval": "none"}, origin, {"at": "2026-01-01"})


def rows(values, **keywords):
    """Rows of arms by seeds."""
    return [
        Row(Path(f"{arm}-{seed}"), seed, {"arm": str(arm)}, card(value, **keywords))
        for arm, row in enumerate(values)
        for seed, value in enumerate(row)
    ]


def test_what_seeds_share_is_not_in_the_difference():
    shared = RNG.normal(size=5) * 10
    found = rows([shared, shared + 0.25])
    arms = arms_of(found)
    apart = tables.difference(found, arms[1], arms[0], "fid")
    assert apart is not None and apart.told_apart
    assert apart.number.value == pytest.approx(0.25) and apart.number.away == pytest.approx(0, abs=1e-9)
    alone = tables.mean(found, arms[0], "fid")
    assert alone is not None and alone.away is not None and alone.away > 1


def test_equal_arms_are_told_apart_as_rarely_as_the_interval_says():
    rate = np.mean(
        [
            tables.difference(found, {"arm": "1"}, {"arm": "0"}, "fid").told_apart  # pyright: ignore
            for found in (rows(draw) for draw in np.random.default_rng(1).normal(size=(1500, 2, 4)))
        ]
    )
    assert abs(rate - 0.05) < 3 * (0.05 * 0.95 / 1500) ** 0.5


def test_one_seed_tells_nothing_apart():
    found = rows([[1.0], [5.0]])
    apart = tables.difference(found, {"arm": "1"}, {"arm": "0"}, "fid")
    assert apart is not None and not apart.told_apart and apart.number.away is None
    assert "| 5 | (+4) |" in tables.markdown(found)


def test_tables_hold_every_arm_and_step():
    noise = RNG.normal(size=(3, 4)) * 0.01
    found = rows(noise + np.array([[3.0], [2.0], [2.0]]))
    text = tables.markdown(found, base={"arm": "1"})
    assert [line.split("|")[1].strip() for line in text.splitlines()[2:]] == ["arm 0", "arm 1", "arm 2"]
    assert text.splitlines()[2].split("|")[3].strip().startswith("+1")
    steps = tables.cumulative(found).splitlines()[2:]
    assert [line.split("|")[1].strip() for line in steps] == ["A", "B", "C"]
    assert steps[1].split("|")[4].strip().startswith("-1") and steps[2].split("|")[4].strip().startswith("(")
    assert len(tables.as_csv(found).splitlines()) == 13
    records = [json.loads(line) for line in tables.as_json_lines(found).splitlines()]
    assert [record["value"] for record in records] == [row.card.value for row in found]


def test_values_measured_otherwise_are_refused_unless_forced():
    found = rows([[1.0, 2.0]]) + rows([[3.0, 4.0]], n=50)[:1]
    with pytest.raises(ValueError, match=r"not measured alike.*n: 100 and 50.*--force"):
        tables.markdown(found)
    assert tables.markdown(found, force=True)


def write_run(folder, config, cards):
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "evaluations").mkdir()
    for place, one in enumerate(cards):
        write_cards(folder / "evaluations" / f"{place}.json", [one])
    return folder


def config(schedule, seed=0, **more):
    loss = {"name": "denoising", "prediction": {"name": "v"}, "times": {"name": "uniform"}}
    return {"seed": seed, "schedule": schedule, "loss": {**loss, **more}, "training": {"steps": 5, "log_every": seed}}


def test_arms_are_named_by_what_differs_among_runs_and_ways_of_sampling(tmp_path):
    cosine, shifted = {"name": "cosine", "offset": 0.1}, {"name": "cosine", "offset": 0.2}
    ways = [{"name": "classifier_free", "scale": scale} for scale in (1.0, 2.0)]
    folders = [
        write_run(tmp_path / f"{place}-{seed}", config(spec, seed), [card(seed, guidance=way) for way in ways])
        for place, spec in enumerate((cosine, shifted, {"name": "linear", "low": 3}))
        for seed in (0, 1)
    ]
    found = read_rows(folders)
    assert len(found) == 12
    arms = arms_of(found)
    assert [arm["schedule"] for arm in arms] == [
        *["cosine offset=0.1"] * 2, *["cosine offset=0.2"] * 2, *["linear"] * 2
    ]  # fmt: skip
    assert [arm["guidance"] for arm in arms] == ["1.0", "2.0"] * 3
    assert set(arms[0]) == {"schedule", "guidance"}


def test_every_way_of_sampling_is_an_arm_of_its_own_in_the_order_of_measuring(tmp_path):
    """Whatever of the sampling differs, no value takes another's place."""
    guided = [
        {"name": "classifier_free", "scale": scale, "interval": interval}
        for interval in (None, [0.2, 0.8])
        for scale in (2.0, 3.0)
    ]
    ways = [
        *({"solver": {"name": "ancestral", "eta": eta}, "guidance": guided[0]} for eta in (1.0, 0.2)),
        *({"solver": {"name": "ancestral", "eta": 1.0}, "guidance": one} for one in guided[1:]),
        *({"solver": {"name": "heun"}, "guidance": guided[0], key: value} for key, value in OTHERWISE),
    ]
    cards = [card(place, **way)._replace(made={"at": f"2026-01-01T00:00:{place:02}"}) for place, way in enumerate(ways)]
    folder = write_run(tmp_path / "a", config({"name": "cosine"}), cards[::-1])
    found = read_rows([folder])
    assert [row.card.value for row in found] == list(range(len(ways)))
    assert len(arms_of(found)) == len(ways)
    assert [arm["solver"] for arm in arms_of(found)][:3] == [
        "ancestral eta=1.0",
        "ancestral eta=0.2",
        "ancestral eta=1.0",
    ]
    assert [(arm["guidance"], arm["guided"]) for arm in arms_of(found)][2:5] == [
        ("3.0", "classifier_free interval=null"),
        ("2.0", "classifier_free interval=[0.2, 0.8]"),
        ("3.0", "classifier_free interval=[0.2, 0.8]"),
    ]
    assert len(tables.as_csv(found).splitlines()) == 1 + len(ways)


def test_parts_of_an_entry_with_entries_are_told_by_themselves(tmp_path):
    other = config({"name": "cosine"}, times={"name": "logit_normal"})
    folders = [write_run(tmp_path / "a", config({"name": "cosine"}), [card(1)]), write_run(tmp_path / "b", other, [])]
    write_cards(tmp_path / "b" / "evaluations" / "0.json", [card(2)])
    assert arms_of(read_rows(folders)) == [{"loss.times": "uniform"}, {"loss.times": "logit_normal"}]


def test_the_newest_of_two_cards_of_one_thing_counts(tmp_path):
    old, new = card(1.0), card(2.0)._replace(made={"at": "2026-06-01"})
    folder = write_run(tmp_path / "run", config({"name": "cosine"}), [new, old])
    assert [row.card.value for row in read_rows([folder])] == [2.0]


def test_runs_that_were_not_measured_are_refused(tmp_path):
    folder = write_run(tmp_path / "run", config({"name": "cosine"}), [])
    with pytest.raises(ValueError, match="there are no cards in .*run; evaluate the runs first"):
        read_rows([folder])
    with pytest.raises(ValueError, match="is no run's folder"):
        read_rows([tmp_path / "nowhere"])


def test_entries_are_shown_by_what_tells_them_apart():
    among = [{"name": "a", "x": 1, "y": 2}, {"name": "a", "x": 3, "y": 2}, {"name": "b", "z": 0}]
    assert [shown(value, among) for value in among] == ["a x=1", "a x=3", "b"]


def test_of_two_folders_of_one_arm_and_seed_none_hides_the_other(tmp_path):
    """What a run may change tells them apart; where nothing does, both are named and one must be left out."""
    first, other = (
        write_run(tmp_path / name, config({"name": "cosine"}), [card(value)]) for name, value in (("a", 1), ("b", 2))
    )
    for folders in ([first, other], [other, first]):
        with pytest.raises(ValueError, match="are the same arm from the same seed, .*leave one of them out"):
            read_rows(folders)
    (other / "config.json").write_text(json.dumps(config({"name": "cosine"}) | {"training": {"mapping": "pmap"}}))
    assert sorted(row.card.value for row in read_rows([first, other])) == [1, 2]
    assert len(arms_of(read_rows([first, other]))) == 2


def test_a_report_says_what_it_does_not_show(tmp_path):
    cosine, linear = {"name": "cosine"}, {"name": "linear"}
    folders = [
        write_run(tmp_path / f"{spec['name']}-{seed}", config(spec, seed), [card(seed)])
        for spec, seed in ((cosine, 0), (cosine, 1), (linear, 0))
    ]
    for folder in (folders[0], folders[2]):
        (folder / "metrics.jsonl").write_text("")
    for folder in folders[:1]:
        (folder / "finished.json").write_text('{"step": 5}')
    empty = write_run(tmp_path / "empty", config(linear, 1), [])
    made = report.prepare([*folders, empty], tmp_path / "out", notes=["x failed"])
    made.write()
    for page in ("report.md", "report.html"):
        text = (tmp_path / "out" / page).read_text()
        assert "x failed" in text and f"{empty} has no cards" in text
        assert f"{folders[2]} has not come to its end" in text and f"{folders[0]} has not" not in text
        assert f"{folders[1]} has not" not in text  # as one that was imported
    assert "seeds: 0, 1; `schedule linear` has 0. Differences are to `schedule cosine`" in made.words[0]
    assert "to the row above" in report.prepare(folders, tmp_path, cumulative=True).words[0]
    with pytest.raises(ValueError, match="leave --baseline out"):
        report.prepare(folders, tmp_path, cumulative=True, baseline="schedule cosine")


@pytest.mark.parametrize("damage", ["{", "[1]", "{}"])
def test_a_damaged_config_is_named(damage, tmp_path):
    folder = write_run(tmp_path / "a", config({"name": "cosine"}), [card(1)])
    (folder / "config.json").write_text(damage)
    with pytest.raises(ValueError, match="a/config.json is"):
        read_rows([folder])
