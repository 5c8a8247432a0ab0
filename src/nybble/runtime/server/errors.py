"""What a client did wrong, as OpenAI's API says it."""

from __future__ import annotations

from typing import Any

from nybble.errors import NybbleError


class ApiError(Exception):
    """An answer that is an error.

    Args:
        status: of HTTP.
        message: for people.
        code: for programs, or None.
        param: the field it is about, or None.
    """

    def __init__(
        self, status: int, message: str, code: str | None = None, param: str | None = None
    ) -> None:
        self.status, self.message, self.code, self.param = status, message, code, param
        super().__init__(message)

    def body(self) -> dict[str, Any]:
        """The answer's JSON."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        error = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        return {"error": error}


def refused(error: NybbleError, code: str | None = None) -> ApiError:
    """An error in what the client sent; commands that would mend it are left out."""
    return ApiError(400, _line(error), code)


def failed(error: BaseException) -> ApiError:
    """An error that is not the client's."""
    text = _line(error) if isinstance(error, NybbleError) else type(error).__name__
    return ApiError(500, f"the generation failed: {text}")


def _line(error: NybbleError) -> str:
    parts = [error.what]
    parts += [f"seen: {error.seen}"] if error.seen else []
    parts += [f"allowed: {error.allowed}"] if error.allowed else []
    return "; ".join(parts)
