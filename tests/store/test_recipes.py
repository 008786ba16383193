"""Recipes in a cache are knowledge only: lost or damaged, they were never there."""

from __future__ import annotations

import os
from array import array
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlops_cli.hashing import hash_bytes, hash_raw
from mlops_cli.store import recipes as module
from mlops_cli.store.batches import open_batch
from mlops_cli.store.checkup import check_store
from mlops_cli.store.contents import read_contents
from mlops_cli.store.recipe import Recipe
from mlops_cli.store.recipes import ChunkIndex, Place, Recipes
from tests.objects import cache_at
from tests.store.folders import steady


def recipe_of(*chunks):
    data = b"".join(chunks)
    return Recipe(hash_bytes(data), len(data), array("I", map(len, chunks)), b"".join(map(hash_raw, chunks)))


RECIPE = recipe_of(b"abc", b"defg", b"h")
OTHER = recipe_of(b"defg", b"ijk")


@pytest.fixture
def cache(tmp_path):
    return cache_at(tmp_path / "cache")


@pytest.fixture
def recipes(cache):
    return Recipes(cache)


def store(cache, *contents):
    with open_batch(cache) as batch:
        return [batch.add_bytes(data) for data in contents]


def file_of(cache, recipe):
    return cache.root / "recipes" / recipe.digest[7:9] / recipe.digest[9:]


def test_what_is_kept_is_found(cache, recipes):
    recipes.keep(RECIPE)
    recipes.keep(RECIPE)

    assert recipes.get(RECIPE.digest) == RECIPE
    assert list(recipes.list()) == [RECIPE.digest]
    assert os.listdir(cache.root / "tmp") == []


def test_a_cache_without_recipes_has_none(cache, recipes):
    assert recipes.get(RECIPE.digest) is None
    assert list(recipes.list()) == []
    recipes.drop([RECIPE.digest])
    recipes.drop_orphans()
    assert len(recipes.index()) == 0
    assert not cache.root.exists()


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-1], lambda data: b"", lambda data: data[:60] + b"\0" + data[61:]]
)
def test_a_damaged_recipe_was_never_there(cache, recipes, damage):
    recipes.keep(RECIPE)
    path = file_of(cache, RECIPE)
    data = path.read_bytes()
    path.chmod(0o644)
    path.write_bytes(damage(data))

    assert recipes.get(RECIPE.digest) is None
    assert not path.exists()
    recipes.keep(RECIPE)
    assert recipes.get(RECIPE.digest) == RECIPE


def test_the_recipe_of_another_file_is_not_believed(cache, recipes):
    recipes.keep(RECIPE)
    recipes.keep(OTHER)
    os.replace(file_of(cache, OTHER), file_of(cache, RECIPE))

    assert recipes.get(RECIPE.digest) is None


def test_a_folder_or_a_link_in_its_place_is_no_recipe(cache, recipes, tmp_path):
    recipes.keep(OTHER)
    path = file_of(cache, RECIPE)
    path.mkdir(parents=True)
    assert recipes.get(RECIPE.digest) is None
    recipes.keep(RECIPE)
    path.rmdir()
    path.symlink_to(file_of(cache, OTHER))
    assert recipes.get(RECIPE.digest) is None


def test_a_disk_that_takes_no_more_is_no_error(cache, recipes):
    with mock.patch("mlops_cli.store.scratch.write_all", side_effect=OSError(28, "No space left on device")):
        recipes.keep(RECIPE)
    assert recipes.get(RECIPE.digest) is None


def test_recipes_of_objects_that_went_are_forgotten(cache, recipes):
    store(cache, b"abcdefgh")
    recipes.keep(RECIPE)
    recipes.keep(OTHER)
    recipes.drop_orphans()

    assert list(recipes.list()) == [RECIPE.digest]


def test_other_verbs_pass_recipes_over(cache, recipes):
    store(cache, b"abcdefgh")
    recipes.keep(RECIPE)
    (cache.root / "recipes" / "notes").write_text("x")
    file_of(cache, OTHER).parent.mkdir(exist_ok=True)
    file_of(cache, OTHER).write_bytes(b"damaged")

    found = check_store(cache)
    assert (found.damaged, found.files, found.leftovers, found.strays) == ((), (), 0, ())
    assert read_contents(cache).loose == ()
    assert list(cache.list()) == [RECIPE.digest]
    assert set(recipes.list()) == {RECIPE.digest, OTHER.digest}


# Where chunks are ----------------------------------------------------------------------------------------------------


def test_only_objects_that_are_here_are_sources(cache, recipes):
    store(cache, b"abcdefgh")
    recipes.keep(RECIPE)
    assert list(recipes.index().places(OTHER)) == [Place(RECIPE.digest, 3, 4), None]
    recipes.keep(OTHER)
    assert list(recipes.index().places(OTHER)) == [Place(RECIPE.digest, 3, 4), None]


def test_the_recipe_that_came_last_comes_first(cache, recipes):
    store(cache, b"abcdefgh", b"defgijk")
    for age, recipe in ((1, RECIPE), (2, OTHER)):
        recipes.keep(recipe)
        os.utime(file_of(cache, recipe), (age, age))

    assert recipes.index().places(RECIPE)[1] == Place(OTHER.digest, 0, 4)
    with mock.patch.object(module, "MOST_INDEXED", 4):
        assert list(recipes.index().places(RECIPE)) == [None, Place(OTHER.digest, 0, 4), None]


pieces = st.lists(st.sampled_from([b"a", b"bb", b"ccc", b"dddd", b"ee", b"f"]), min_size=1, max_size=8)


@steady
@given(st.lists(pieces, max_size=5), pieces)
def test_a_place_has_the_chunk_and_what_is_somewhere_is_found(known, wanted):
    sources = {recipe_of(*chunks).digest: b"".join(chunks) for chunks in known}
    recipe = recipe_of(*wanted)
    places = ChunkIndex([recipe_of(*chunks) for chunks in known]).places(recipe)

    assert len(places) == len(wanted)
    assert places[:] == list(places)
    for chunk, place in zip(wanted, places, strict=True):
        assert (place is not None) == any(chunk in chunks for chunks in known)
        if place is not None:
            assert sources[place.digest][place.offset : place.offset + place.length] == chunk


def test_a_chunk_of_another_length_is_another():
    shorter = Recipe(RECIPE.digest, 2, array("I", [2]), RECIPE.raw(0))
    assert list(ChunkIndex([RECIPE]).places(shorter)) == [None]
