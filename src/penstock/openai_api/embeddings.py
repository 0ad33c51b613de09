"""POST /v1/embeddings: texts as vectors."""

from __future__ import annotations

import base64
from array import array
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import BaseModel

from penstock.errors import PenstockError
from penstock.openai_api.errors import RequestError
from penstock.openai_api.fields import Prompt
from penstock.openai_api.json_parts import Series, json_parts
from penstock.openai_api.requests import STRICT, validated

if TYPE_CHECKING:
    from collections.abc import Iterator

    from penstock.compute.kernels import F32
    from penstock.embedding import Pooling
    from penstock.known_model import KnownModel


class EmbeddingRequest(BaseModel):
    """The body. `pooling` is not OpenAI's: the mean of all tokens' hidden rows, or the last token's."""

    model_config = STRICT

    input: Prompt
    model: str | None = None
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = None
    pooling: Literal["mean", "last"] | None = None
    user: str | None = None

    @property
    def texts(self) -> list[str] | list[list[int]]:
        """One or several, texts or token ids."""
        if isinstance(self.input, str):
            return [self.input]
        return [self.input] if isinstance(self.input[0], int) else self.input


@dataclass(frozen=True, slots=True)
class PreparedEmbeddings:
    """A request that was found to be good."""

    texts: tuple[array[int], ...]
    pooling: Pooling
    packed: bool
    adapter: str | None = None

    @property
    def tokens(self) -> int:
        """Of all texts."""
        return sum(len(text) for text in self.texts)


def parse_embeddings(body: Any) -> EmbeddingRequest:
    """Raises RequestError."""
    return validated(EmbeddingRequest, body, '{"input": "..."}')


def prepare_embeddings(model: KnownModel, request: EmbeddingRequest, adapter: str | None = None) -> PreparedEmbeddings:
    """Tokenize and check. Raises RequestError."""
    size = model.config.hidden_size
    if request.dimensions not in (None, size):
        raise RequestError(f"dimensions is not supported, unless it is the model's, {size}.", param="dimensions")
    pooling: Pooling = request.pooling or "mean"
    try:
        texts = tuple(array("I", model.check_embedded(text, pooling)) for text in request.texts)
    except PenstockError as error:
        raise RequestError.of(error, "input") from error
    return PreparedEmbeddings(texts, pooling, request.encoding_format == "base64", adapter)


def embeddings_parts(request: PreparedEmbeddings, vectors: F32, model: str) -> Iterator[str]:
    """The response's JSON text, in parts."""

    def items() -> Iterator[Any]:
        for index, vector in enumerate(vectors):
            told: Any = base64.b64encode(vector.astype("<f4").tobytes()).decode() if request.packed else _floats(vector)
            yield {"object": "embedding", "index": index, "embedding": told}

    usage = {"prompt_tokens": request.tokens, "total_tokens": request.tokens}
    return json_parts({"object": "list", "data": Series(items), "model": model, "usage": usage})


class Embedded:
    """What a request came to."""

    def __init__(self, request: PreparedEmbeddings, vectors: F32) -> None:
        self._request = request
        self._vectors = vectors

    def response_parts(self, *, id: str, created: int, model: str) -> Iterator[str]:
        """The response's JSON text, in parts; OpenAI's has neither id nor time."""
        return embeddings_parts(self._request, self._vectors, model)


def _floats(vector: F32) -> list[float]:
    """As few digits as tell the float32."""
    return [float(np.format_float_scientific(x, unique=True)) for x in vector]
