"""That every field of OpenAI's own package has a place here, be it one that says that it is not supported."""

from __future__ import annotations

from typing import Any

import pytest
from openai.types import completion_create_params
from openai.types.chat import ChatCompletionStreamOptionsParam
from openai.types.chat import completion_create_params as chat_params

from penstock.openai_api.requests import ChatCompletionRequest, CompletionRequest, StreamOptions


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        (chat_params.CompletionCreateParamsBase, ChatCompletionRequest),
        (completion_create_params.CompletionCreateParamsBase, CompletionRequest),
        (ChatCompletionStreamOptionsParam, StreamOptions),
    ],
)
def test_no_field_is_unknown(theirs: Any, ours: Any) -> None:
    assert set(theirs.__annotations__) <= {*ours.model_fields}
