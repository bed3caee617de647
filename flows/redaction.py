"""Keeps secrets out of whatever is shown or sent: logs, errors, artifacts and events."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

HIDDEN = "***"
SHORTEST = 8
"""Characters of the shortest secret that is looked for as it is; shorter ones are too often words."""

# Up to the last @ before the path, so that one inside a password does not show the rest of it.
_IN_URL = re.compile(r"(?<=://)[^/\s]*@")
_NAMED = re.compile(
    r"""((?<![A-Za-z0-9_])(?:[A-Z0-9_]*(?:SECRET|TOKEN|PASSWORD|ACCESS_KEY|API_KEY|AUTH_STRING)[A-Z0-9_]*
    |(?:aws_)?(?:secret|token|session_token|secret_key|secret_access_key|access_key|access_key_id|api_key|password
    |passwd))['"]?\s*[=:]\s*['"]?)[^\s'",;&)}\]]+""",
    re.VERBOSE,
)
_SECRET_VARIABLE = re.compile(
    r".*(?:SECRET|TOKEN|PASSWORD|PASSWD|ACCESS_KEY|API_KEY|AUTH_STRING).*(?<!_FILE)(?<!_PATH)"
)


def redact(text: str) -> str:
    """Return a text without secrets: those in URLs, those after their names, and values of secret variables.

    Examples
    --------
    >>> redact("s3://key:secret@bucket/path, password=hunter2")
    's3://***@bucket/path, password=***'
    """
    text = _IN_URL.sub(f"{HIDDEN}@", text)
    text = _NAMED.sub(rf"\1{HIDDEN}", text)
    for name, value in os.environ.items():
        if len(value) >= SHORTEST and value in text and _SECRET_VARIABLE.fullmatch(name):
            text = text.replace(value, HIDDEN)
    return text


def redact_all(value: Any) -> Any:
    """Return JSON values, and dictionaries' keys, without secrets."""
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, dict):
        return {redact_all(key): redact_all(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [redact_all(each) for each in value]
    return value


@contextmanager
def no_secrets_in_errors() -> Iterator[None]:
    """Take the secrets out of errors that pass: Prefect stores what they say."""
    try:
        yield
    except Exception as error:
        if redact(str(error)) != str(error):
            # The kind stays, since it decides whether the work is tried again.
            error.args = tuple(redact_all(part) for part in error.args)
        if redact(str(error)) != str(error):
            raise RuntimeError(f"{type(error).__name__}: {redact(str(error))}") from None
        raise
