"""What is wrong with a request, as OpenAI's API tells it."""

from __future__ import annotations

from typing import Any

from penstock.errors import ContextError, PenstockError, TokenizerError, UsageError

CODES = {401: "invalid_api_key", 404: "not_found", 405: "method_not_allowed", 413: "request_too_large"}
TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class RequestError(UsageError):
    """A request that cannot be served: with the HTTP status, and the parameter that is to blame where there is one."""

    def __init__(
        self, problem: str, remedy: str = "", *, status: int = 400, param: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(problem, remedy)
        self.status = status
        self.param = param
        self.code = code or CODES.get(status)

    @property
    def type(self) -> str:
        """OpenAI's name for this kind of error."""
        return "server_error" if self.status >= 500 else TYPES.get(self.status, "invalid_request_error")

    def body(self) -> dict[str, Any]:
        """OpenAI's error object."""
        end = "" if not self.remedy or self.problem.endswith((".", "!", "?")) else "."
        message = f"{self.problem}{end} {self.remedy}".strip()
        return {"error": {"message": message, "type": self.type, "param": self.param, "code": self.code}}

    @classmethod
    def of(cls, error: PenstockError, param: str | None = None) -> RequestError:
        """Any error as one of a request: 400 where the request is to blame, 500 where the model or the machine is."""
        if isinstance(error, RequestError):
            return error
        if isinstance(error, ContextError):
            return cls(error.problem, error.remedy, param=param, code="context_length_exceeded")
        if isinstance(error, (UsageError, TokenizerError)):
            return cls(error.problem, error.remedy, param=param)
        return cls(error.problem, error.remedy, status=500)
