"""Every failure as OpenAI's error object, with its HTTP status."""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from penstock.openai_api.errors import RequestError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from starlette.requests import Request


def error_response(error: RequestError, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """The response that tells of an error."""
    extra = {"WWW-Authenticate": "Bearer"} if error.status == 401 else {}
    return JSONResponse(error.body(), error.status, {**extra, **(headers or {})})


async def on_request_error(request: Request, error: Exception) -> JSONResponse:
    """For RequestErrors that handlers raise."""
    if not isinstance(error, RequestError):
        raise error
    return error_response(error)


async def on_http_error(request: Request, error: Exception) -> JSONResponse:
    """For what routing refuses: paths and methods that are not there."""
    if not isinstance(error, HTTPException):
        raise error
    path = request.scope["path"][:200]  # not of a URL, which a path and a host need not make
    problems = {404: f"There is no {path!r} here.", 405: f"{request.method[:20]} is no method of {path!r}."}
    problem = problems.get(error.status_code, str(error.detail))
    return error_response(RequestError(problem, status=error.status_code), error.headers)


async def on_failure(request: Request, error: Exception) -> JSONResponse:
    """For mistakes of the server's own."""
    return error_response(RequestError("The server failed; its log says why.", status=500))
