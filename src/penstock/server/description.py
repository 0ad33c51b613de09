"""The server's OpenAPI description: what each path takes and gives, errors included."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema

from penstock.openai_api.embeddings import EmbeddingRequest
from penstock.openai_api.requests import URLS
from penstock.openai_api.responses import ErrorBody
from penstock.openai_api.responses_request import ResponsesRequest
from penstock.openai_api.tokens import DetokenizeRequest, TokenizeRequest

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fastapi import FastAPI
    from pydantic import BaseModel

BODIES: Mapping[str, type[BaseModel]] = {
    **URLS,
    "/v1/responses": ResponsesRequest,
    "/v1/embeddings": EmbeddingRequest,
    "/tokenize": TokenizeRequest,
    "/detokenize": DetokenizeRequest,
}
"""What each path parses by itself."""
REF = "#/components/schemas/{model}"
PROBLEMS = {
    400: "The request is malformed, or asks for what is not supported.",
    401: "The API key is missing or wrong.",
    403: "The host or the page that asks is not allowed.",
    404: "There is no such model.",
    408: "The body came too slowly.",
    413: "The body is too long.",
    415: "The body is not declared to be JSON.",
    429: "The queue is full; Retry-After says when to try again.",
    500: "The model's files could not be read.",
    503: "The server is shutting down, its engine has ended, or it has too many connections.",
}


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The responses of those statuses."""
    return {status: {"model": ErrorBody, "description": PROBLEMS[status]} for status in statuses}


def describe(app: FastAPI) -> dict[str, Any]:
    """The description of an app, with the bodies that it parses by itself."""
    description = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
    _, definitions = models_json_schema([(model, "validation") for model in BODIES.values()], ref_template=REF)
    description["components"]["schemas"].update(definitions["$defs"])
    for url, model in BODIES.items():
        description["paths"][url]["post"]["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": {"$ref": REF.format(model=model.__name__)}}},
        }
    return description
