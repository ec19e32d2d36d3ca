"""Names in configs become objects, and mistakes become errors that name the remedy."""

import pytest
from ml_collections import ConfigDict, FrozenConfigDict

from diffusion_jax.naming import choose, lookup


def round_thing(*, radius=1.0):
    return ("round", radius)


def square_thing(*, side, colour="red"):
    return ("square", side, colour)


def mounted(wall, *, height=2.0):
    return ("mounted", wall, height)


TABLE = {"round": round_thing, "square": square_thing}


@pytest.mark.parametrize("mapping", [dict, ConfigDict, FrozenConfigDict])
def test_a_mapping_gives_a_name_and_keywords(mapping):
    assert choose(TABLE, mapping({"name": "round", "radius": 2.0}), "shape") == ("round", 2.0)
    assert choose(TABLE, mapping({"name": "square", "side": 3}), "shape") == ("square", 3, "red")


def test_a_name_alone_takes_the_defaults():
    assert choose(TABLE, "round", "shape") == ("round", 1.0)


def test_the_spec_is_not_changed():
    spec = {"name": "round", "radius": 2.0}
    choose(TABLE, spec, "shape")
    assert spec == {"name": "round", "radius": 2.0}


def test_built_objects_pass_through():
    built = round_thing()
    assert choose(TABLE, built, "shape") is built


def test_arguments_are_handed_over_first():
    assert choose({"mounted": mounted}, {"name": "mounted", "height": 1.0}, "shelf", "north") == (
        "mounted",
        "north",
        1.0,
    )
    with pytest.raises(ValueError, match="shelf 'mounted' needs 'wall'"):
        choose({"mounted": mounted}, "mounted", "shelf")
    with pytest.raises(ValueError, match="shelf 'mounted' does not take 'wall'"):
        choose({"mounted": mounted}, {"name": "mounted", "wall": "south"}, "shelf", "north")


def test_unknown_names_suggest_the_nearest():
    with pytest.raises(ValueError, match=r"^unknown shape 'ruond'. Did you mean 'round'\? Known: round, square.$"):
        choose(TABLE, "ruond", "shape")
    with pytest.raises(ValueError, match="^unknown shape 'xyz'. Known: round, square.$"):
        lookup(TABLE, "xyz", "shape")


def test_leftover_keywords_are_refused_and_their_owner_named():
    """`--config.shape.name=round` leaves the square's side behind."""
    with pytest.raises(
        ValueError, match=r"^shape 'round' does not take 'side'. It belongs to square. It takes: radius. Remove it.$"
    ):
        choose(TABLE, ConfigDict({"name": "round", "side": 3}), "shape")


def test_misspelt_keywords_suggest_the_nearest():
    with pytest.raises(ValueError, match=r"does not take 'radious'. Did you mean 'radius'\? It takes: radius."):
        choose(TABLE, {"name": "round", "radious": 3}, "shape")


def test_missing_keywords_are_named():
    with pytest.raises(ValueError, match="^shape 'square' needs 'side'.$"):
        choose(TABLE, "square", "shape")


def test_a_mapping_needs_a_name():
    with pytest.raises(ValueError, match=r"^shape has no 'name'; got {'radius': 2.0}. Known: round, square.$"):
        choose(TABLE, {"radius": 2.0}, "shape")


def test_an_entry_without_keywords_says_so():
    with pytest.raises(ValueError, match="does not take 'size'. It takes: no keywords"):
        choose({"point": lambda: "point"}, {"name": "point", "size": 0}, "shape")
