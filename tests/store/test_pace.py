"""A server that refuses too many requests at once gets fewer, and more again when it bears them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from mlops_cli.store.object_store_bucket import HttpBucket
from mlops_cli.store.pace import Pace
from mlops_cli.store.parallel import map_bounded

BORNE = 2  # requests at once that the server answers
REQUESTS = 160


def test_nothing_limits_a_server_that_never_complained() -> None:
    pace = Pace()
    with pace.turn():
        pass
    pace.quicken()

    assert pace.width > 100


def test_refusals_halve_once_for_all_that_were_under_way() -> None:
    pace = Pace()
    turns = []
    for _ in range(8):
        turn = pace.turn()
        turns.append((turn, turn.__enter__()))
    for turn, number in turns:
        turn.__exit__(None, None, None)
        pace.slow(number)
        if turn is turns[0][0]:
            width = pace.width

    assert width == 4
    assert pace.width == 4


def test_a_width_is_never_less_than_one_and_grows_by_one_a_round() -> None:
    pace = Pace()
    for _ in range(3):
        with pace.turn() as turn:
            pass
        pace.slow(turn)
    assert pace.width == 1

    widths = []
    for _ in range(6 * 16):
        with pace.turn():
            pass
        pace.quicken()
        widths.append(pace.width)
    assert [widths.count(width) for width in (1, 2, 3, 4)] == [15, 2 * 16, 3 * 16, 1]


def test_no_more_are_under_way_than_the_width() -> None:
    pace = Pace()
    with pace.turn() as turn:
        pass
    pace.slow(turn)
    entered = threading.Event()

    def follow() -> None:
        with pace.turn():
            entered.set()

    with pace.turn():
        second = threading.Thread(target=follow)
        second.start()
        assert not entered.wait(0.05)
    second.join(10)
    assert entered.is_set()


class _Busy(ThreadingHTTPServer):
    """A server that answers 503 to what comes while it has its hands full."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.slots = threading.Semaphore(BORNE)
        self.refused = 0


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Busy

    def do_GET(self) -> None:
        well = self.server.slots.acquire(blocking=False)
        if well:
            threading.Event().wait(0.01)  # it works
            self.server.slots.release()
        else:
            self.server.refused += 1
        body = b"bytes" if well else b""
        self.send_response(200 if well else 503)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def busy() -> Iterator[_Busy]:
    server = _Busy()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_busy_server_is_asked_for_less_at_once(busy: _Busy) -> None:
    bucket = HttpBucket("public", f"http://127.0.0.1:{busy.server_port}/remote", patience=30)

    found = list(map_bounded(lambda number: bucket.get(f"packs/{number}"), range(REQUESTS), 8))

    assert found == [b"bytes"] * REQUESTS
    assert 0 < busy.refused < REQUESTS / 4  # with as many as ever, nearly half


def test_what_is_heavy_is_not_taken_ahead() -> None:
    """Of 40 bytes at most one more item is taken, however many may run."""
    taken: list[int] = []
    ended: list[int] = []

    def items() -> Iterator[int]:
        for number in range(12):
            assert sum(20 for _ in taken) - sum(20 for _ in ended) <= 60
            taken.append(number)
            yield number

    for number in map_bounded(lambda number: number, items(), 8, weigh=lambda _: 20, most=40):
        ended.append(number)

    assert ended == taken == list(range(12))
