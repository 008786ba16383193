"""What was put away: where the bytes are that stood in place of an object."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mlops_cli.hashing import PREFIX, hash_bytes
from mlops_cli.store.quarantine import find_quarantined
from tests.objects import cache_at

DIGEST = hash_bytes(b"good")


@pytest.mark.parametrize("folder", ["cache", "my.packages/cache"])
def test_bytes_are_found_wherever_the_cache_is(folder: str, tmp_path: Path) -> None:
    place = tmp_path / folder / "quarantine" / f"{DIGEST.removeprefix(PREFIX)}.0fddc212"
    place.parent.mkdir(parents=True)
    place.write_bytes(b"bad")

    assert find_quarantined(cache_at(tmp_path / folder), DIGEST) == os.fspath(place)


def test_a_pack_of_that_name_is_not_the_object(tmp_path: Path) -> None:
    place = tmp_path / "quarantine" / f"{DIGEST.removeprefix(PREFIX)}.pack.0fddc212"
    place.parent.mkdir()
    place.write_bytes(b"a pack")

    assert find_quarantined(cache_at(tmp_path), DIGEST) is None
