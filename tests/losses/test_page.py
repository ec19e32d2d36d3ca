"""The page docs/losses.md: its tables name every entry, and its example prints what it says."""

import re
from pathlib import Path

from diffusion_jax.losses.times import TIMES
from diffusion_jax.losses.weighting import WEIGHTINGS

PAGE = (Path(__file__).parents[2] / "docs" / "losses.md").read_text(encoding="utf-8")


def section(title):
    """Return the text below one heading."""
    return re.findall(rf"^## {title}\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)[0]


def test_every_entry_has_its_row():
    for title, table in (("Weightings", WEIGHTINGS), ("Times", TIMES)):
        rows = re.findall(r"^\| `(\w+)", section(title), re.MULTILINE)
        assert sorted(rows) == sorted(table)


def test_the_example_prints_what_the_page_says(capsys):
    example, printed = (re.findall(rf"^```{kind}\n(.*?)^```", PAGE, re.M | re.S)[0] for kind in ("python", "text"))
    exec(compile(example, "docs/losses.md", "exec"), {})
    assert capsys.readouterr().out == printed
