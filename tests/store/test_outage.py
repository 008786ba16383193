"""A server that has gone away is waited for once, not by every request anew, and the user hears of it once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from mlops_cli.errors import RemoteError
from mlops_cli.store import outage, wire
from mlops_cli.store.object_store_bucket import HttpBucket
from mlops_cli.store.outage import TOLD_AFTER, Outage
from tests.servers.proxy import Proxy, proxy
from tests.servers.web import web_server


def test_an_outage_begins_with_the_first_attempt_that_failed() -> None:
    known = Outage()
    assert known.go_on(begun=10.0, now=12.0) == 10.0
    assert known.go_on(begun=13.0, now=14.0) == 10.0


def test_an_answer_to_anybody_ends_it() -> None:
    known = Outage()
    known.go_on(begun=10.0, now=12.0)
    known.end(15.0)
    assert known.go_on(begun=11.0, now=16.0) == 15.0  # another thread was answered meanwhile
    assert known.go_on(begun=16.0, now=17.0) == 15.0


def test_when_one_has_given_up_nobody_waits_until_there_is_an_answer() -> None:
    known = Outage()
    known.give_up()
    assert known.go_on(begun=10.0, now=12.0) == 10.0
    known.give_up()
    assert known.go_on(begun=13.0, now=14.0) < 0
    known.end(15.0)
    assert known.go_on(begun=16.0, now=17.0) == 16.0


def test_of_an_outage_of_long_ago_nothing_is_known_any_more() -> None:
    known = Outage()
    known.go_on(begun=10.0, now=12.0)
    assert known.go_on(begun=500.0, now=501.0) == 500.0


def test_it_is_news_once_in_an_outage() -> None:
    known = Outage()
    assert not known.is_news(1.0)
    known.go_on(begun=10.0, now=10.0)
    assert not known.is_news(10.0 + TOLD_AFTER - 1)
    assert known.is_news(10.0 + TOLD_AFTER)
    assert not known.is_news(10.0 + TOLD_AFTER + 1)
    known.end(20.0)
    assert not known.is_news(30.0)
    known.go_on(begun=30.0, now=30.0)
    assert known.is_news(40.0)


def test_what_came_before_a_failure_begins_it_anew_and_is_no_news() -> None:
    known = Outage()
    known.begin_anew(10.0)
    assert known.go_on(begun=5.0, now=10.0) == 10.0
    assert known.is_news(10.0 + TOLD_AFTER)
    known.begin_anew(40.0)
    assert known.go_on(begun=10.0, now=40.0) == 40.0
    assert not known.is_news(60.0)


def test_it_is_news_at_once_when_a_request_was_silent_for_long() -> None:
    known = Outage()
    known.end(100.0)  # some of it had gone
    known.go_on(begun=60.0, now=100.0)
    assert not known.is_news(100.0)
    assert known.is_news(100.0, silent=True)
    assert not known.is_news(101.0, silent=True)


@pytest.fixture
def door(tmp_path: Path) -> Iterator[Proxy]:
    """Return a proxy in front of a web server that has one file."""
    folder = tmp_path / "served"
    folder.mkdir()
    (folder / "key").write_bytes(b"bytes")
    with ExitStack() as stack:
        yield stack.enter_context(proxy(stack.enter_context(web_server(folder))))


def test_after_one_request_gave_up_the_next_are_tried_once(door: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outage, "TOLD_AFTER", 0.0)
    monkeypatch.setattr(wire, "_WORTH_TELLING", 0.0)
    bucket = HttpBucket("public", door.url, patience=0.5)
    heard: list[str] = []
    bucket.traffic.listener = heard.append
    assert bucket.get("key") == b"bytes"
    door.heal()
    door.answer(503, 1000)

    with pytest.raises(RemoteError):
        bucket.get("key")
    tried = len(door.requests)
    assert tried >= 2
    for number in range(3):
        with pytest.raises(RemoteError):
            bucket.get("key")
        assert len(door.requests) == tried + number + 1
    assert heard == ["remote `public`: the server answers 503; trying again for up to 0 s"]

    door.heal()
    assert bucket.get("key") == b"bytes"
    door.heal()
    door.answer(503)
    assert bucket.get("key") == b"bytes"  # patient again
    assert len(heard) == 2
