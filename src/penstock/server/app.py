"""The paths of the server."""

from __future__ import annotations

import asyncio
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, TypeVar

from fastapi import FastAPI
from fastapi.responses import JSONResponse
from pydantic_core import from_json
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from penstock.memory.text_room import LONG_TEXT
from penstock.openai_api.answers import prepare
from penstock.openai_api.embeddings import parse_embeddings, prepare_embeddings
from penstock.openai_api.errors import RequestError
from penstock.openai_api.requests import parse
from penstock.openai_api.responses import ChatCompletion, EmbeddingList, Health, Model, ModelList, TextCompletion
from penstock.openai_api.responses_request import ResponsesRequest, parse_responses
from penstock.openai_api.responses_shape import ResponseObject
from penstock.openai_api.tokens import Text, Tokens, detokenize, tokenize
from penstock.server.bodies import Bodies
from penstock.server.chats.routes import add_chats
from penstock.server.chats.service import Chats
from penstock.server.chats.store import ChatStore
from penstock.server.description import describe, errors
from penstock.server.errors import error_response, on_failure, on_http_error, on_request_error
from penstock.server.guard import Guard
from penstock.server.job import Job
from penstock.server.page import INDEX, assets
from penstock.server.replies import StreamReply, WholeReply
from penstock.server.response_replies import StreamResponse, WholeResponse
from penstock.system import machine

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from penstock.known_model import KnownModel
    from penstock.openai_api.answers import Prepared
    from penstock.openai_api.embeddings import PreparedEmbeddings
    from penstock.openai_api.requests import ChatCompletionRequest, CompletionRequest
    from penstock.openai_api.responses import Completion
    from penstock.openai_api.tokens import Find
    from penstock.server.metrics import Metrics
    from penstock.server.settings import Settings
    from penstock.server.worker import Worker

    Asked = ChatCompletionRequest | CompletionRequest | ResponsesRequest

CHAT, TEXT, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"
PREFIXES = {CHAT: "chatcmpl-", TEXT: "cmpl-", RESPONSES: "resp_"}
"""Of ids."""
Made = TypeVar("Made")


class Gateway:
    """Takes requests in: reads, checks and tokenizes them one by one, and gives them to the worker."""

    def __init__(self, worker: Worker, settings: Settings, metrics: Metrics) -> None:
        self.worker = worker
        self.shelf = worker.shelf
        self.settings = settings
        self.metrics = metrics
        self._bodies = Bodies(settings.max_body, settings.body_seconds)
        self._executor = ThreadPoolExecutor(1, "prepare")
        """One request at a time, since a long text takes much memory while it becomes tokens."""

    async def complete(self, request: Request, url: str) -> Response:
        """The reply to a request for a completion."""
        return await self._counted(self._accept(request, url))

    async def embed(self, request: Request) -> Response:
        """The reply to a request for vectors."""
        return await self._counted(self._accept_texts(request))

    async def _counted(self, reply: Awaitable[Response]) -> Response:
        """A reply, or the error in its place, counted."""
        try:
            return await reply
        except ClientDisconnect:
            self.metrics.count("cancelled")
            return Response(status_code=400)  # nobody reads it
        except RequestError as error:
            full = error.status == 429
            self.metrics.count("queue_full" if full else "failed" if error.status >= 500 else "rejected")
            return error_response(error, {"Retry-After": str(self.worker.retry_seconds)} if full else None)

    async def _accept(self, request: Request, url: str) -> Response:
        check_kind(request)
        self.worker.check_room()
        async with self._bodies.read(request) as body:
            asked, prepared, model = await self._beside(self._prepare, url, body)
        job = Job(prepared, model)
        self.worker.offer(job)
        identity = {
            "id": f"{PREFIXES[url]}{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": job.request.adapter or job.model,
        }
        common = job, self.worker, self.settings, self.metrics, identity
        if isinstance(asked, ResponsesRequest):
            stream = asked.stream
            return StreamResponse(asked, *common, None) if stream else WholeResponse(asked, *common, self._executor)
        if asked.stream:
            return StreamReply(*common, asked.stream_options)
        return WholeReply(*common, self._executor)

    async def _accept_texts(self, request: Request) -> Response:
        self.worker.check_room()
        value = await self.read_json(request)
        job = Job(*await self._beside(self._prepare_embeddings, value))
        self.worker.offer(job)
        identity = {"id": "", "created": 0, "model": job.request.adapter or job.model}
        return WholeReply(job, self.worker, self.settings, self.metrics, identity, self._executor)

    def _prepare_embeddings(self, body: Any) -> tuple[PreparedEmbeddings, str]:
        """The request in a body, ready for a job, and the model that it is for."""
        request = parse_embeddings(body)
        name, adapter = self.shelf.named(request.model)
        return prepare_embeddings(self.shelf.model(name), request, adapter), name

    async def of_tokens(self, request: Request, make: Callable[[Find, Any], Made]) -> Made:
        """What `make` makes of a body and the model that it names."""

        def find(wanted: str | None) -> KnownModel:
            return self.shelf.known(self.shelf.named(wanted)[0])

        return await self._beside(make, find, await self.read_json(request))

    async def prepare(self, body: bytes) -> tuple[Prepared, str]:
        """A request for a chat completion, ready for a job, and the model that it is for. Raises RequestError."""
        if len(body) > self.settings.max_body:
            raise RequestError(
                f"The conversation is longer than {self.settings.max_body} bytes.",
                "Begin a new one, or raise --max-body.",
                status=413,
            )
        _, prepared, model = await self._beside(self._prepare, CHAT, body)
        return prepared, model

    async def read_json(self, request: Request) -> Any:
        """The JSON value in the body of a request. Raises RequestError and ClientDisconnect."""
        check_kind(request)
        async with self._bodies.read(request) as body:
            return parse_json(body)

    async def _beside(self, work: Callable[..., Made], *args: Any) -> Made:
        """What `work` makes, beside the loop, of a shelf that stays as it is meanwhile."""

        def run() -> Made:
            with self.shelf.still:
                return work(*args)

        return await asyncio.get_running_loop().run_in_executor(self._executor, run)

    def _prepare(self, url: str, body: bytes) -> tuple[Asked, Prepared, str]:
        """The request in a body as it was asked and ready for a job, and the model that it is for."""
        value = parse_json(body)
        asked: Asked
        request: ChatCompletionRequest | CompletionRequest
        if url == RESPONSES:
            asked, request = parse_responses(value)
        else:
            asked = request = parse(url, value)
        name, adapter = self.shelf.named(request.model)
        try:
            model, most = self.shelf.model(name), self.settings.max_tokens
            prepared = prepare(model, request, default_max_tokens=most, adapter=adapter)
        finally:
            if len(body) > LONG_TEXT:
                machine.trim_heap()
        return asked, prepared, name

    def models(self) -> dict[str, Model]:
        """What is served, by name: the models, or the one with each of its adapters."""
        known = {name: self.shelf.known(name) for name in self.shelf.names}
        served = [_model(name, model.path, model.context) for name, model in known.items()]
        context = served[0].context_length
        served += [_model(name, path, context) for name, path in self.shelf.adapters.items()]
        return {model.id: model for model in served}

    def health(self) -> Health:
        """How it is."""
        status, worker = "ok" if self.worker.alive else "failed", self.worker
        return Health.model_construct(
            status=status, model=self.shelf.current, running=worker.running, queued=worker.queued
        )


def _model(name: str, path: Path, context: int) -> Model:
    created = int(path.stat().st_mtime) if path.exists() else 0  # deleted since
    return Model(id=name, object="model", created=created, owned_by="penstock", context_length=context)


def check_kind(request: Request) -> None:
    """Raise RequestError, 415, where a body is not declared to be JSON."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise RequestError(
            f"The body is declared as {kind[:50]!r}.", "Send Content-Type: application/json.", status=415
        )


def parse_json(body: bytes) -> Any:
    """The value that a body holds. Raises RequestError."""
    try:
        return from_json(body, allow_inf_nan=False, cache_strings="none")
    except ValueError as error:
        raise RequestError(f"The body is not JSON: {error}.") from None


def create_app(worker: Worker, settings: Settings, metrics: Metrics, chats: Path) -> FastAPI:
    """The application; the worker is started and closed by others. `chats`: the folder of conversations."""
    app = FastAPI(
        title="Penstock",
        version=version("penstock"),
        description="A language model behind OpenAI's protocol.",
        docs_url=None,
        redoc_url=None,
        exception_handlers={
            RequestError: on_request_error,
            HTTPException: on_http_error,
            Exception: on_failure,
        },
    )
    app.add_middleware(Guard, settings=settings)
    # There, and in no closure: FastAPI keeps endpoints for the life of the process, and with them what they refer to.
    app.state.gateway = Gateway(worker, settings, metrics)
    app.state.chats = Chats(ChatStore(chats), app.state.gateway)
    _add_completions(app)
    add_chats(app)
    _add_texts(app)
    _add_models(app)
    _add_state(app)
    app.openapi = lambda: describe(app)  # type: ignore[method-assign]
    return app


def _gateway(request: Request) -> Gateway:
    return request.app.state.gateway  # type: ignore[no-any-return]


def _add_completions(app: FastAPI) -> None:
    problems = errors(400, 401, 403, 404, 408, 413, 415, 429, 500, 503)

    def responses(model: type[Completion | ResponseObject]) -> dict[int | str, dict[str, Any]]:
        stream: dict[str, Any] = {"text/event-stream": {}}  # a schema there would be of each event, not of the stream
        return {200: {"model": model, "content": stream}, **problems}

    @app.post(CHAT, response_model=None, responses=responses(ChatCompletion))
    async def chat_completions(request: Request) -> Response:
        """Answer a conversation."""
        return await _gateway(request).complete(request, CHAT)

    @app.post(TEXT, response_model=None, responses=responses(TextCompletion))
    async def completions(request: Request) -> Response:
        """Go on with one text or several."""
        return await _gateway(request).complete(request, TEXT)

    @app.post(RESPONSES, response_model=None, responses=responses(ResponseObject))
    async def model_responses(request: Request) -> Response:
        """Answer in the shape of OpenAI's Responses API."""
        return await _gateway(request).complete(request, RESPONSES)


def _add_texts(app: FastAPI) -> None:
    problems = errors(400, 401, 403, 404, 408, 413, 415, 429, 500, 503)

    @app.post("/v1/embeddings", response_model=None, responses={200: {"model": EmbeddingList}, **problems})
    async def embeddings(request: Request) -> Response:
        """Texts as vectors: pooled hidden rows of the model."""
        return await _gateway(request).embed(request)

    @app.post("/tokenize", responses=problems)
    async def tokens(request: Request) -> Tokens:
        """The token ids of a text or a conversation."""
        return await _gateway(request).of_tokens(request, tokenize)

    @app.post("/detokenize", responses=problems)
    async def text(request: Request) -> Text:
        """The text of token ids."""
        return await _gateway(request).of_tokens(request, detokenize)


def _add_models(app: FastAPI) -> None:
    @app.get("/v1/models", responses=errors(400, 401, 403))
    async def models(request: Request) -> ModelList:
        """The models that are served, or the one and what it is with each of its adapters."""
        return ModelList(object="list", data=[*_gateway(request).models().values()])

    @app.get("/v1/models/{model_id:path}", responses=errors(400, 401, 403, 404))
    async def model(request: Request, model_id: str) -> Model:
        """One of them, by its name."""
        models = _gateway(request).models()
        if model_id not in models:
            raise RequestError(
                f"The model {model_id[:200]!r} is not served here.", status=404, param="model", code="model_not_found"
            )
        return models[model_id]


def _add_state(app: FastAPI) -> None:
    page = assets()

    @app.get("/", include_in_schema=False)
    async def chat(request: Request) -> Response:
        """The chat page."""
        return page[INDEX].reply(request)

    @app.get("/static/{name}", include_in_schema=False)
    async def asset(request: Request, name: str) -> Response:
        """Its scripts and styles."""
        if name not in page:
            raise HTTPException(404)
        return page[name].reply(request)

    @app.get("/health", response_model=Health, responses={**errors(400, 403), 503: {"model": Health}})
    async def health(request: Request) -> Response:
        """Whether the engine works."""
        state = _gateway(request).health()
        return JSONResponse(state.model_dump(), 200 if state.status == "ok" else 503)

    metrics = {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}, **errors(400, 401, 403)}

    @app.get("/metrics", response_class=Response, responses=metrics)
    async def prometheus(request: Request) -> Response:
        """Counters for Prometheus."""
        return Response(_gateway(request).metrics.page(), media_type="text/plain; version=0.0.4; charset=utf-8")
