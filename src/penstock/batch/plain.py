"""Plain lines: `{"prompt": "..."}` or `{"messages": [...]}`, beside the longer ones of OpenAI's batches.

A prompt is asked as `penstock run` asks it: through the model's chat template where there is one, or, with
`"raw": true`, completed as it stands. What else a line has is as in the body of such a request.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from penstock.batch.requests import LineError, Request
from penstock.openai_api.requests import URLS
from penstock.strict_json import shown

if TYPE_CHECKING:
    from collections.abc import Mapping

CHAT, COMPLETION = "/v1/chat/completions", "/v1/completions"
_OPENAI = ("method", "url", "body")
_IDS = ("id", "custom_id")


def is_plain(parsed: Mapping[str, Any]) -> bool:
    """Whether a line is one of these: it has nothing of what every line of OpenAI's has besides an id."""
    return not any(key in parsed for key in _OPENAI) and ("prompt" in parsed or "messages" in parsed)


def plain_id(parsed: Mapping[str, Any], number: int) -> str:
    """What results call line `number`: by its `id` or `custom_id`, "line-7" without. Raises LineError."""
    given = [key for key in _IDS if parsed.get(key) is not None]
    if not given:
        return f"line-{number}"
    value = parsed[given[0]]
    if len(given) > 1:
        raise LineError("invalid_id", '"id" and "custom_id" are both there: leave one of them.')
    if isinstance(value, bool) or not isinstance(value, (str, int)) or value == "":
        problem = f'"{given[0]}" is {shown(value)}, neither a non-empty string nor a whole number.'
        raise LineError("invalid_id", problem)
    return str(value)


def plain_request(parsed: Mapping[str, Any], number: int, has_template: bool) -> Request:
    """What line `number` asks for, of a model with or without a chat template. Raises LineError."""
    custom_id = plain_id(parsed, number)
    body = {key: value for key, value in parsed.items() if key not in (*_IDS, "raw")}
    raw = parsed.get("raw")
    try:
        url = _url(parsed, raw, has_template)
    except LineError as error:
        raise LineError(error.code, error.message, custom_id) from None
    if url == CHAT and "prompt" in body:
        body["messages"] = [{"role": "user", "content": body.pop("prompt")}]
    for key in body:
        if key not in URLS[url].model_fields:
            raise LineError("unknown_field", f"{shown(key)} is no field of a request: leave it out.", custom_id)
    return Request(custom_id, url, body)


def _url(parsed: Mapping[str, Any], raw: object, has_template: bool) -> str:
    if raw is not None and not isinstance(raw, bool):
        raise LineError("invalid_raw", f'"raw" is {shown(raw)}, neither true nor false.')
    if "messages" in parsed:
        if "prompt" in parsed or raw is not None:
            other = "prompt" if "prompt" in parsed else "raw"
            raise LineError("invalid_line", f'"messages" and "{other}" are both there: leave one of them.')
        return CHAT
    if not raw and not isinstance(parsed["prompt"], str):
        problem = f'"prompt" is {shown(parsed["prompt"])}, not a string; "raw": true allows what {COMPLETION} takes.'
        raise LineError("invalid_prompt", problem)
    return CHAT if has_template and not raw else COMPLETION
