"""Single tokens as text and bytes, as lists of log probabilities show them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from penstock.text.tokenizer import Tokenizer

_PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_OTHERS = [byte for byte in range(256) if byte not in _PRINTABLE]
BYTE_OF = {chr(byte): byte for byte in _PRINTABLE} | {chr(256 + i): byte for i, byte in enumerate(_OTHERS)}
"""The bytes behind the characters in which byte-level vocabularies write them (GPT-2's bytes_to_unicode)."""


def token_bytes(tokenizer: Tokenizer | None, token_id: int) -> bytes:
    """What a token adds to a text. Some tokens are parts of a character."""
    token = None if tokenizer is None else tokenizer.token(token_id)
    if tokenizer is None or token is None:
        return f"token_id:{token_id}".encode()
    if match := re.fullmatch(r"<0x([0-9A-F]{2})>", token):
        return bytes.fromhex(match[1])
    # Behind a token, since some decoders strip a space off the very beginning.
    once = tokenizer.decode([token_id], skip_special_tokens=False)
    text = tokenizer.decode([token_id, token_id], skip_special_tokens=False)[len(once) :]
    if "\ufffd" in once and all(character in BYTE_OF for character in token):
        return bytes(BYTE_OF[character] for character in token)
    return text.encode()


def token_text(nbytes: bytes) -> str:
    """The bytes as text, or spelled out where they are no whole characters, as OpenAI's API does."""
    try:
        return nbytes.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in nbytes)
