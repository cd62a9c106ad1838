"""Errors in the shape that OpenAI's clients raise from."""

from __future__ import annotations

from typing import Any

from starlette.responses import JSONResponse

from nlocalmodels_server.workers.generation import GenerationError

_TYPES = {
    400: "invalid_request_error",
    404: "invalid_request_error",
    405: "invalid_request_error",
    413: "invalid_request_error",
    429: "rate_limit_error",
    503: "service_unavailable_error",
}


class ApiError(Exception):
    """A request that is answered with an error. `param` names the field that is wrong."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after_seconds: int | None = None,
        should_retry: bool = True,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.param = param
        self.code = code
        self.retry_after_seconds = retry_after_seconds
        self.should_retry = should_retry

    @staticmethod
    def of(error: GenerationError) -> ApiError:
        return ApiError(
            error.status,
            str(error),
            code=error.code,
            retry_after_seconds=error.retry_after_seconds,
            should_retry=error.should_retry,
        )

    def body(self) -> dict[str, Any]:
        kind = _TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        # Messages quote what clients send, and that may have halves of surrogate pairs, which UTF-8 has no bytes for.
        message = str(self).encode("utf-8", "replace").decode()
        return {"error": {"message": message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        headers = {} if self.retry_after_seconds is None else {"Retry-After": str(self.retry_after_seconds)}
        if not self.should_retry:
            headers["x-should-retry"] = "false"  # which OpenAI's clients obey before anything else
        return JSONResponse(self.body(), self.status, headers)


def bad_param(param: str, message: str) -> ApiError:
    """Returns the 400 for one field; the message goes on after its name."""
    return ApiError(400, f"{param}: {message}", param=param, code="invalid_value")
