"""Every error that a client sees: one shape, `{"error": {"code", "message"}}`, built in one function."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from tapline.service.inference.waiting import QueueFullError, VerdictError
from tapline.service.log_lines import log
from tapline.service.runtime import BusyError
from tapline.service.validation_words import in_words

RETRY_AFTER_SECONDS = 2
MAX_MESSAGES = 5


class ErrorDetail(BaseModel):
    """What went wrong: a word for programs, a sentence for people."""

    code: str
    message: str


class ErrorBody(BaseModel):
    """The body of every answer that is not a success."""

    error: ErrorDetail


class ApiError(HTTPException):
    """An error with its status and code; `retry` adds Retry-After."""

    def __init__(
        self, status: int, code: str, message: str, *, retry: bool = False, headers: dict[str, str] | None = None
    ) -> None:
        again = {"Retry-After": str(RETRY_AFTER_SECONDS)} if retry else {}
        super().__init__(status, message, {**again, **(headers or {})})
        self.code = code


def error_response(status: int, code: str, message: str, headers: dict[str, str] | None = None) -> JSONResponse:
    """The one place that builds an error."""
    body = ErrorBody(error=ErrorDetail(code=code, message=message))
    return JSONResponse(body.model_dump(), status, headers)


@contextlib.contextmanager
def overload_as_api_error() -> Iterator[None]:
    """Turn a full queue into 429, and a busy or stopping service into 503, all with Retry-After."""
    try:
        yield
    except QueueFullError as error:
        raise ApiError(429, "overloaded", str(error), retry=True) from None
    except BusyError as error:
        raise ApiError(503, "busy", str(error), retry=True) from None
    except VerdictError as error:
        raise ApiError(503, "stopping", str(error), retry=True) from None


@contextlib.contextmanager
def disk_as_api_error() -> Iterator[None]:
    """Turn a capture that cannot be kept on disk (`TMPDIR` is full, or is not there) into 507."""
    try:
        yield
    except OSError as error:
        reason = (error.strerror or type(error).__name__).lower()
        log.warning("no room for an upload", reason=reason)
        raise ApiError(507, "no_room", f"the capture cannot be kept while it is read: {reason}", retry=True) from None


def _place(item: dict[str, Any]) -> str:
    """Where in the body a fault is; broken JSON has no place but the body."""
    inside = [] if item["type"] == "json_invalid" else item["loc"][1:]
    return ".".join(str(part) for part in inside) or "body"


def install(app: FastAPI) -> None:
    """Make every error of the application come out in the one shape."""

    async def http_error(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        code = error.code if isinstance(error, ApiError) else HTTPStatus(error.status_code).name.lower()
        return error_response(error.status_code, code, str(error.detail), dict(error.headers or {}))

    async def invalid(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        found = [
            f"{_place(item)}: {item['msg'] if item['type'] == 'json_invalid' else in_words(item)}"
            for item in error.errors()[:MAX_MESSAGES]
        ]
        return error_response(422, "invalid", "; ".join(found))

    async def unknown(request: Request, error: Exception) -> JSONResponse:
        log.error("request failed", route=request.url.path, error=type(error).__name__, exc_info=error)
        return error_response(500, "internal", "something went wrong here; it has been logged")

    app.add_exception_handler(HTTPException, http_error)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(Exception, unknown)
