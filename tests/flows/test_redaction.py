"""No secret reaches a log, whoever logs it, nor an error."""

from __future__ import annotations

import logging

import pytest

from flows import logs
from flows.redaction import no_secrets_in_errors, redact, redact_all

URL = "s3://AKIAKEY:hunter2hunter2@bucket/stores"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"cannot open {URL!r}", "cannot open 's3://***@bucket/stores'"),
        ("postgresql+asyncpg://prefect:p@ss:w@db:5432/prefect", "postgresql+asyncpg://***@db:5432/prefect"),
        ("{'key': 'k', 'secret': 'hunter2'}", "{'key': 'k', 'secret': '***'}"),
        ("AWS_SECRET_ACCESS_KEY=hunter2 and on", "AWS_SECRET_ACCESS_KEY=*** and on"),
        ("https://host/x?token=abc&part=2", "https://host/x?token=***&part=2"),
    ],
)
def test_secrets_are_hidden_where_they_are_known_by_their_place(text, shown) -> None:
    assert redact(text) == shown


@pytest.mark.parametrize(
    "text", ["s3://bucket/a@b", "cls_token=pooled of 3 tokens", "mail@host", "tcp://host:8786", "layers=17 bytes=3"]
)
def test_what_is_no_secret_stays(text) -> None:
    assert redact(text) == text


def test_secrets_of_the_environment_are_hidden_wherever_they_are(monkeypatch) -> None:
    monkeypatch.setenv("STORAGE_PASSWORD", "correct horse")
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", "/run/token/file")
    assert redact("the storage said: correct horse?") == "the storage said: ***?"
    assert redact_all({"a": ["correct horse", 1], "correct horse": None}) == {"a": ["***", 1], "***": None}
    assert redact("cannot read /run/token/file") == "cannot read /run/token/file"


def test_errors_keep_their_kind_and_lose_their_secrets() -> None:
    with pytest.raises(ConnectionError, match=r"^s3://\*\*\*@bucket/stores$"), no_secrets_in_errors():
        raise ConnectionError(URL)

    class Stubborn(Exception):
        def __str__(self) -> str:
            return URL

    with pytest.raises(RuntimeError, match=r"^Stubborn: s3://\*\*\*@") as caught, no_secrets_in_errors():
        raise Stubborn
    assert caught.value.__suppress_context__


def test_no_logger_of_the_process_shows_a_secret(caplog, capsys) -> None:
    logs.configure("info")
    with caplog.at_level(logging.INFO):
        logging.getLogger("some.library").info("connecting to %s", URL)
        try:
            raise ValueError(URL)
        except ValueError:
            logging.getLogger("some.library").exception("it failed at %s", URL)

    def fail() -> None:
        logs.note(store=URL)
        raise KeyError(URL)

    with pytest.raises(KeyError), logs.stage("extraction"):
        fail()
    shown = caplog.text + capsys.readouterr().err
    assert shown.count("s3://***@bucket/stores") >= 5
    assert "hunter2" not in shown
    assert "AKIAKEY" not in shown
