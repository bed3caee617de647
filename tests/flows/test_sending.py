"""What Prefect's page is to show is sent in order and in the background, and nothing of it holds a run up."""

from __future__ import annotations

import threading
import time
from contextvars import ContextVar

import pytest

from flows import logs, sending

RUN: ContextVar[str] = ContextVar("run", default="none")


@pytest.fixture
def said(capsys) -> object:
    logs.configure("warning")
    return lambda: capsys.readouterr().err


def test_calls_are_made_in_order_while_the_run_goes_on_and_all_before_it_ends() -> None:
    made: list[tuple[int, str, int]] = []
    first = threading.Event()

    def call(number: int) -> None:
        first.wait(10)
        made.append((number, RUN.get(), threading.get_ident()))

    with sending.sending():
        for number in range(5):
            RUN.set(f"run {number}")
            sending.send("a table", call, number)
        assert not made, "the run waits for none of them"
        first.set()
    assert [(number, run) for number, run, _ in made] == [(n, f"run {n}") for n in range(5)]
    assert {thread for *_, thread in made}.isdisjoint({threading.get_ident()})


def test_a_call_that_fails_is_a_warning_and_the_next_is_made(said) -> None:
    made = []

    def fail() -> None:
        raise RuntimeError("no such artifact")

    with sending.sending():
        sending.send("the report", fail)
        sending.send("a table", made.append, 1)
    assert made == [1]
    assert said().count("WARNING Prefect does not show the report: no such artifact") == 1
    sending.send("the report", fail)
    assert "does not show the report" in said(), "outside of a run it is made at once"


def test_a_server_that_does_not_answer_holds_up_the_end_of_a_run_for_a_limited_time(said, monkeypatch) -> None:
    monkeypatch.setattr(sending, "PATIENCE", 0.2)
    never = threading.Event()
    start = time.monotonic()
    with sending.sending():
        sending.send("a table", never.wait, 30)
        sending.send("the report", never.wait, 30)
    assert time.monotonic() - start < 10
    assert "Prefect does not show all of this run: the server is slow." in said()
    never.set()


def test_who_stops_a_run_does_not_wait_for_its_page(said) -> None:
    never = threading.Event()
    start = time.monotonic()

    @sending.sending()
    def run() -> None:
        sending.send("a table", never.wait, 30)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run()
    assert time.monotonic() - start < 10
    assert said() == ""
    never.set()
