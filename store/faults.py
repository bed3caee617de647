"""Why a request to remote storage failed, whether it may pass, and how to say so in one sentence."""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import Enum
from typing import Any

from store.errors import Head2ToeError, InvalidInputError


class StorageError(Head2ToeError):
    """Storage does not answer, or not as it should, after several attempts; what is committed is untouched."""


class ShortError(ValueError):
    """An object ends before the bytes that were asked for."""


class Cause(Enum):
    """Kinds of failure that need different advice."""

    PASSING = "may pass"
    ABSENT = "no such object"
    NO_BUCKET = "no such bucket"
    NO_CREDENTIALS = "no credentials"
    WRONG_CREDENTIALS = "wrong credentials"
    DENIED = "denied"
    SHORT = "too short"
    UNSUPPORTED = "not supported"
    OTHER = "other"


_WRONG = {
    "InvalidAccessKeyId",
    "SignatureDoesNotMatch",
    "InvalidToken",
    "ExpiredToken",
    "TokenRefreshRequired",
    "InvalidSecurity",
    "AuthFailure",
}
_PASSING_CODES = {
    "ConditionalRequestConflict",
    "InternalError",
    "OperationAborted",
    "RequestTimeout",
    "ServiceUnavailable",
    "SlowDown",
    "Throttling",
    "ThrottlingException",
    "XAmzContentSHA256Mismatch",
    "BadDigest",
    "IncompleteBody",
}
# Names instead of classes: neither botocore nor aiohttp need be installed, and both have a `ClientError`.
_PASSING_NAMES = {
    "HTTPClientError",
    "ConnectionError",
    "IncompleteRead",
    "IncompleteReadError",
    "FlexibleChecksumError",
    "ResponseParserError",
    "ClientPayloadError",
    "ClientConnectionError",
    "ClientOSError",
}


def cause_of(error: BaseException) -> Cause:
    """Return why a request failed."""
    response = _response(error)
    code = str(response.get("Error", {}).get("Code", ""))
    status = int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0) or 0)
    names = {c.__name__ for e in _chain(error) for c in type(e).__mro__}
    if names & {"NoCredentialsError", "PartialCredentialsError", "ProfileNotFound", "NoAuthTokenError"}:
        return Cause.NO_CREDENTIALS
    by_code = (
        (Cause.NO_BUCKET, code in {"NoSuchBucket", "InvalidBucketName"}),
        (Cause.WRONG_CREDENTIALS, code in _WRONG),
        (Cause.SHORT, isinstance(error, ShortError) or code in {"InvalidRange", "416"}),
        (Cause.UNSUPPORTED, code in {"NotImplemented", "501"} or isinstance(error, NotImplementedError)),
        (Cause.PASSING, code in _PASSING_CODES or status in {408, 409, 429} or status >= 500),
        (Cause.ABSENT, isinstance(error, FileNotFoundError)),
        (Cause.DENIED, isinstance(error, PermissionError) or status in {401, 403}),
        (Cause.PASSING, isinstance(error, (TimeoutError, ConnectionError)) or bool(names & _PASSING_NAMES)),
    )
    return next((cause for cause, holds in by_code if holds), Cause.OTHER)


def explained(
    error: BaseException, cause: Cause, uri: str, verb: str, attempts: int, options: Mapping[str, Any]
) -> Exception:
    """Return the error to raise instead, whose text is for the user and holds no secret."""
    bucket = uri.partition("://")[2].partition("/")[0]
    endpoint = options.get("endpoint_url")
    where = f" at {_clean(str(endpoint), options)}" if endpoint else ""
    if cause is Cause.SHORT:
        return ShortError(f"an object of {uri!r} is too short")
    if cause is Cause.PASSING:
        return StorageError(
            f"{uri!r} cannot be {verb}: {_reason(error, options)}{where}, after {attempts} attempts; check the network "
            "and the storage, then run the same command again, what was committed stays."
        )
    sentence = {
        Cause.NO_BUCKET: f"bucket {bucket!r} of {uri!r} does not exist{where}; create it first, or check its name.",
        Cause.NO_CREDENTIALS: f"there are no credentials for {uri!r}; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
        "or AWS_PROFILE, or FSSPEC_S3_ANON=true for a public bucket.",
        Cause.WRONG_CREDENTIALS: f"the credentials for {uri!r} are refused{where}; check AWS_ACCESS_KEY_ID, "
        "AWS_SECRET_ACCESS_KEY and, if they are temporary, AWS_SESSION_TOKEN.",
        Cause.DENIED: f"{uri!r} cannot be {verb}: access is denied{where}; check that the bucket exists and that the "
        "credentials allow it.",
        Cause.UNSUPPORTED: f"{uri!r} cannot be {verb}: the storage{where} does not support it; "
        "conditional writes are needed.",
    }.get(cause, f"{uri!r} cannot be {verb}: {_reason(error, options)}{where}.")
    return InvalidInputError(sentence)


def _chain(error: BaseException | None) -> list[BaseException]:
    found: list[BaseException] = []
    while error is not None and error not in found:
        found.append(error)
        error = error.__cause__
    return found


def _response(error: BaseException) -> dict[str, Any]:
    for e in _chain(error):
        response = getattr(e, "response", None)
        if isinstance(response, dict):
            return response
    return {}


def _reason(error: BaseException, options: Mapping[str, Any]) -> str:
    """Return what happened, in few words."""
    response = _response(error)
    status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    code = response.get("Error", {}).get("Code")
    if status:
        return _clean(f"it answers {status}" + (f" ({code})" if code and str(code) != str(status) else ""), options)
    names = {c.__name__ for e in _chain(error) for c in type(e).__mro__}
    if "ReadTimeoutError" in names or isinstance(error, TimeoutError):
        return "it does not answer in time"
    if names & {"EndpointConnectionError", "ConnectTimeoutError", "ConnectionRefusedError"}:
        return "nothing answers"
    if names & {"IncompleteRead", "IncompleteReadError", "ClientPayloadError", "ShortError", "ResponseStreamingError"}:
        return "answers are cut short"
    if names & {"ClientConnectionError", "ConnectionClosedError", "ConnectionError", "HTTPClientError"}:
        return "connections break"
    return _clean(str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__, options)


def _clean(text: str, options: Mapping[str, Any]) -> str:
    """Return a text without credentials, whether in a URL or as an option's value."""
    client = options.get("client_kwargs") or {}
    for name, value in {**client, **options}.items():
        if isinstance(value, str) and re.search("secret|token|pass|key", name, re.IGNORECASE) and value:
            text = text.replace(value, "***")
    return re.sub(r"(?<=://)[^/\s]*@", "***@", text)
