"""Structured logs on standard error: a line has the run, the stage and what is known of it."""

from __future__ import annotations

import re

import pytest
from typer.testing import CliRunner

from flows import logs
from flows.cli import app
from store.errors import InvalidInputError


def test_a_stage_says_when_it_begins_and_ends_and_what_it_found(capsys) -> None:
    logs.configure("info")
    with logs.bound(run="r1"), logs.stage("extraction"):
        logs.note(store="demo/a b.zarr", images_per_second=41.23456)
    begins, ends = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"\d{4}-\S+ \S+ INFO begins run=r1 stage=extraction", begins)
    assert re.search(r'INFO ends run=r1 stage=extraction store="demo/a b.zarr" images_per_second=41.235 seconds=', ends)


def test_a_stage_that_fails_says_why_only_if_asked_since_the_command_says_it_too(capsys) -> None:
    for level, lines in (("info", 2), ("warning", 0)):
        logs.configure(level)
        with pytest.raises(InvalidInputError), logs.stage("select"):
            raise InvalidInputError("no such scorer.")
        said = capsys.readouterr().err
        assert said.count("\n") == lines
        assert ("ERROR stops: no such scorer. stage=select" in said) == bool(lines)


@pytest.mark.parametrize("variable", [True, False])
def test_a_level_that_is_none_is_refused_with_near_matches(monkeypatch, variable) -> None:
    if variable:
        monkeypatch.setenv("HEAD2TOE_LOG_LEVEL", "inf")
    result = CliRunner().invoke(app, [*([] if variable else ["--log-level", "inf"]), "list", "nowhere"])
    assert result.exit_code == 2
    name = "HEAD2TOE_LOG_LEVEL" if variable else "--log-level"
    assert f"error: {name} 'inf' is not a level; did you mean 'info'?" in result.stderr


def test_commands_log_their_name_and_end_from_the_level_info_on() -> None:
    quiet = CliRunner().invoke(app, ["list", "nowhere"])
    assert "stops" not in quiet.stderr
    told = CliRunner().invoke(app, ["--log-level", "info", "list", "nowhere"])
    assert re.search(r"INFO begins command=list run=\w{12} stage=list\n", told.stderr)
    assert re.search(r"ERROR stops: exit code 2 command=list run=\w{12} stage=list seconds=", told.stderr)
