"""What a line of the file of requests asks for, in either of its forms."""

from __future__ import annotations

from penstock.batch.plain import is_plain, plain_id, plain_request
from penstock.batch.requests import LineError, Request, openai_id, openai_request, parse_object

_OPENAI = ("custom_id", "method", "url", "body")


def parse_line(data: bytes, number: int, has_template: bool) -> Request:
    """What line `number` asks for, of a model with or without a chat template; the body is unchecked.

    Raises LineError.
    """
    parsed = parse_object(data, number)
    if is_plain(parsed):
        return plain_request(parsed, number, has_template)
    if not any(key in parsed for key in _OPENAI):
        problem = f'Line {number} has neither "prompt" nor "messages", nor what a line of OpenAI\'s batches has.'
        raise LineError("invalid_line", problem)
    return openai_request(parsed)


def id_of_line(data: bytes, number: int) -> str | None:
    """What results call line `number`; None where it has no name."""
    try:
        parsed = parse_object(data, number)
        return plain_id(parsed, number) if is_plain(parsed) else openai_id(parsed)
    except LineError:
        return None
