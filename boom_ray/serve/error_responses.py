"""Responses to errors, all in OpenAI's shape."""

from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from boom_ray.serve.schema import ErrorResponse, RequestError

INPUT_KINDS = "a text, a list of texts, a list of token ids, or a list of lists of token ids"
ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorResponse} for status in (400, 401, 404, 413, 422, 429, 500, 503)
}
NO_ROUTE = {
    404: "no such route; GET /docs lists all. URLs of OpenAI's clients end with /v1, those of TEI's do not",
    405: "the route has another method; GET /docs lists all",
}


def error_response(error: RequestError) -> JSONResponse:
    """The response to an error."""
    headers = {"Retry-After": str(error.retry_after)} if error.retry_after else None
    return JSONResponse(error.body.model_dump(), error.status, headers)


def add_error_handlers(app: FastAPI) -> None:
    """Give all errors that the routes of an app raise OpenAI's shape."""

    @app.exception_handler(RequestError)
    async def refused(_: Request, error: RequestError) -> JSONResponse:
        return error_response(error)

    @app.exception_handler(RequestValidationError)
    async def malformed(_: Request, error: RequestValidationError) -> JSONResponse:
        return error_response(explain(error))

    @app.exception_handler(HTTPException)
    async def unroutable(_: Request, error: HTTPException) -> JSONResponse:
        code = {413: "body_too_large", 429: "overloaded"}.get(error.status_code)
        retry_after = 1 if error.status_code == 429 else None
        message = NO_ROUTE.get(error.status_code, str(error.detail))
        return error_response(RequestError(error.status_code, message, code=code, retry_after=retry_after))


def explain(error: RequestValidationError) -> RequestError:
    """The first problem of a body, in one sentence that does not repeat the input."""
    first = error.errors()[0]
    keys = [key for key in first["loc"][1:] if isinstance(key, str)]
    key = keys[0] if keys else None
    if first["type"] == "json_invalid":
        return RequestError(400, "the body is not valid JSON", code="invalid_json")
    if isinstance(error.body, bytes):
        message = "send a JSON body with the header Content-Type: application/json"
        return RequestError(422, message, code="no_json")
    if first["type"] == "unknown_key":
        return RequestError(422, first["msg"], first["ctx"]["key"].strip("'"), first["type"])
    if key == "input" or keys[:2] == ["inputs", "str"]:  # the first of the allowed types
        return RequestError(422, f"{key} must be {INPUT_KINDS}", key, first["type"])
    return RequestError(422, f"{'.'.join(keys) or 'the body'}: {first['msg']}", key, first["type"])
