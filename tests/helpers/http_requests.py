"""Requests that a server may get from anybody, as bytes: each field of each body and each header with odd values.

The fields are those of the request models themselves, so that a new one is covered when it comes.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from random import Random

from helpers import http_values as odd
from penstock.openai_api.requests import URLS, Message, StreamOptions

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
BASES: dict[str, dict[str, bytes]] = {
    CHAT: {"messages": b'[{"role": "user", "content": "a"}]', "max_tokens": b"2", "seed": b"1"},
    TEXT: {"prompt": b'"def "', "max_tokens": b"2", "seed": b"1"},
}
COMPANIONS = {"top_logprobs": {"logprobs": b"true"}, "stream_options": {"stream": b"true"}, "best_of": {"n": b"2"},
              "max_completion_tokens": {"max_tokens": b"null"}}  # fmt: skip
"""Fields that need others to get past the first check."""

UNANSWERED = ("Content-Length", "Transfer-Encoding", "Expect", "Connection", "", " ")
"""Headers (the last goes on with the one before) that may let a server wait for more."""


@dataclass(frozen=True)
class Case:
    """One request, or what claims to be one."""

    label: str
    data: bytes
    whole: bool = True
    """Whether it has to be answered. Where not, the connection may be closed instead."""
    pause: int = 0
    """So many bytes are sent a moment ahead of the others."""


def request(
    path: str = TEXT,
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
    *,
    method: str | None = None,
    more: bytes = b"",
    version: str = "HTTP/1.1",
) -> bytes:
    """A request, the only one of its connection unless `headers` say so; `more` are lines of headers as they stand."""
    fields = {"Host": "localhost", "Connection": "close"}
    if body is not None:
        fields |= {"Content-Type": "application/json", "Content-Length": str(len(body))}
    fields |= headers or {}
    method = method or ("GET" if body is None else "POST")
    lines = [f"{method} {path} {version}", *(f"{name}: {value}" for name, value in fields.items())]
    return b"".join(_bytes(line) + b"\r\n" for line in lines) + more + b"\r\n" + (body or b"")


def body_of(fields: Mapping[str, bytes]) -> bytes:
    """A JSON object of values as they are spelled."""
    return b"{" + b", ".join(f'"{name}": '.encode() + value for name, value in fields.items()) + b"}"


def fields_of(path: str) -> list[str]:
    return [*URLS[path].model_fields, "unknown"]


def field_cases(values: list[bytes] = odd.JSON) -> Iterator[Case]:
    """Each field of each kind of request with each of the values."""
    for path in URLS:
        for name in fields_of(path):
            for value in values:
                fields = BASES[path] | COMPANIONS.get(name, {}) | {name: value}
                yield Case(f"{path} {name}={_short(value)}", request(path, body_of(fields)))
    for value in values:
        for name in Message.model_fields:
            message = body_of({"role": b'"user"', "content": b'"a"', name: value})
            yield Case(
                f"messages[0].{name}={_short(value)}", request(CHAT, _with(CHAT, messages=b"[" + message + b"]"))
            )
        for name in ("type", "text"):
            part = body_of({"type": b'"text"', "text": b'"a"', name: value})
            message = body_of({"role": b'"user"', "content": b"[" + part + b"]"})
            yield Case(f"parts[0].{name}={_short(value)}", request(CHAT, _with(CHAT, messages=b"[" + message + b"]")))
        for name in StreamOptions.model_fields:
            options = body_of({name: value})
            body = _with(TEXT, stream=b"true", stream_options=options)
            yield Case(f"stream_options.{name}={_short(value)}", request(TEXT, body))


def body_cases() -> Iterator[Case]:
    """Bodies that are something else than one JSON object, and bodies that are sent in odd ways."""
    good = body_of(BASES[TEXT])
    for path in URLS:
        for value in odd.JSON:
            yield Case(f"{path} body {_short(value)}", request(path, value))
    bodies = [b"\xef\xbb\xbf" + good, good.decode().encode("utf-16"), good.decode().encode("utf-32-be"), good + good,
              good + b"\n\n \t", good + b"\x00", b"\x00" + good, good[:-1], good[1:], b" " * 1000 + good,
              good[:-1] + b', "prompt": "b"}', good[:-1] + b', "max_tokens": 3, "max_tokens": 1e999}',
              b"{" + b'"a": 1, ' * 3000 + good[1:], good[:-1] + b', "' + b"k" * 15000 + b'": 1}', gzip.compress(good),
              b"x" * 30000, b'{"prompt": "' + b"a" * 30000 + b'"}']  # fmt: skip
    for body in bodies:
        for encoding in ({}, {"Content-Encoding": "gzip"}, {"Content-Type": "application/json; charset=utf-16"}):
            yield Case(f"body {_short(body)} {encoding}", request(TEXT, body, encoding))
    yield from _sized(good)
    yield from _chunked(good)


def _sized(body: bytes) -> Iterator[Case]:
    """Bodies that are shorter or longer than declared."""
    for size in (0, 1, len(body) - 1, len(body) + 1, 10**6, 10**18):
        yield Case(f"content-length {size}", request(TEXT, body, {"Content-Length": str(size)}), size <= len(body))
    first = request(TEXT, body, {"Connection": "keep-alive"})
    for then in (first, b"\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n", b"\x00" * 100, b"GET /" + b"a" * 70000, b"[]"):
        yield Case(f"one request, then {_short(then)}", first + then + request("/health"))


def _chunked(body: bytes) -> Iterator[Case]:
    head = {"Transfer-Encoding": "chunked", "Content-Type": "application/json"}
    sizes = [b"%x", b"%X ", b"0000%x", b"%x;a=b", b'%x;a="\xff', b"%x\x00", b"-%x", b"0x%x", b"%xg", b"", b" ",
             b"f" * 17,
             b"f" * 30, b"%x;" + b"a" * 70000, b"%x\r"]  # fmt: skip
    ends = [b"\r\n0\r\n\r\n", b"\r\n0\r\na: b\r\n\r\n", b"\r\n0\r\n[\r\n\r\n", b"0\r\n\r\n", b"\n0\n\n", b"\r\n0\r\n",
            b"", b"\r\n0\r\na: " + b"b" * 70000 + b"\r\n\r\n", b"\r\nffffffffffffffff\r\n"]  # fmt: skip
    for path, typed in ((TEXT, True), (TEXT, False), ("/health", True), ("/v1/models", False)):
        start = request(path, None, head if typed else {**head, "Content-Type": "a/b"}, method="POST")
        for size in sizes:
            line = size.replace(b"%x", b"%x" % len(body)).replace(b"%X", b"%X" % len(body))
            data = start + line + b"\r\n" + body + ends[0]
            yield Case(f"{path} chunk of {_short(line)}", data, False)
            yield Case(f"{path} head, then chunk of {_short(line)}", data, False, len(start))
        for end in ends:
            data = start + b"%x\r\n" % len(body) + body + end
            yield Case(f"{path} chunked, ending in {_short(end)}", data, False)
            yield Case(f"{path} chunked, then ending in {_short(end)}", data, False, len(data) - len(end))
        both = request(path, None, {**head, "Content-Length": str(len(body))}, method="POST")
        yield Case(f"{path} chunked with a length", both + b"%x\r\n" % len(body) + body + ends[0], False)


def header_cases() -> Iterator[Case]:
    """Each header with each of its odd values, for paths with a body and without; and headers repeated and huge."""
    good = body_of(BASES[TEXT])
    for name, values in odd.HEADERS.items():
        for value in values:
            for path, body in (("/health", None), ("/nothing/here", None), (TEXT, good)):
                line = {name: value}
                whole = name not in UNANSWERED
                yield Case(f"{path} {name[:30]}: {value[:60]!r}", request(path, body, line), whole)
        for value in values[:12]:
            more = _bytes(f"{name}: {value}\r\n")
            yield Case(f"{name[:30]} twice: {value[:60]!r}", request(TEXT, good, more=more * 2), name not in UNANSWERED)
    for more in (b"a: b\r\n" * 2000, b"a: b\r\n" * 20000, b"a: " + b"b" * 70000 + b"\r\n", b" folded\r\n",
                 b"a: b\r\n c\r\n",
                 b"a:b\n", b"a\r\n", b": b\r\n", b"a : b\r\n", b"a: \x00\r\n", b"a: b\rc: d\r\n",
                 b"\xff: a\r\n"):  # fmt: skip
        yield Case(f"headers {_short(more)}", request(TEXT, good, more=more))


def path_cases() -> Iterator[Case]:
    """Paths, methods and versions, and what is no HTTP at all."""
    for path in odd.PATHS:
        for host in ("localhost", "[::1]:80", "["):
            for method in ("GET", "POST", "OPTIONS"):
                yield Case(f"{method} {path[:60]} at {host}", request(path, None, {"Host": host}, method=method))
    for method in odd.METHODS:
        for path in ("/", "/health", "/v1/models", TEXT):
            yield Case(f"{method[:60]} {path}", request(path, b"{}", method=method))
    for version in ("HTTP/0.9", "HTTP/1.0", "HTTP/1.2", "HTTP/2.0", "HTTP/11", "http/1.1", "", "HTTP/1.1 a"):
        yield Case(f"version {version}", request("/health", version=version), False)
        yield Case(f"POST of version {version}", request(TEXT, body_of(BASES[TEXT]), version=version), False)
    for data in (b"", b"\r\n" * 5000, b"\x00" * 70000, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"GET",
                 b"GET /\r\n\r\n",
                 b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"[]\r\n\r\n", b"\xff" * 1000 + b"\r\n\r\n",
                 b"GET / HTTP/1.1\n\n"):  # fmt: skip
        yield Case(f"bytes {_short(data)}", data, False)


def random_case(random: Random) -> Case:
    """Several odd things at once."""
    path = random.choice([*URLS])
    fields = dict(BASES[path])
    for name in random.choices(fields_of(path), k=random.choice([1, 1, 2, 3])):
        fields[name] = odd.random_json(random)
    headers = {}
    if random.random() < 0.2:
        name = random.choice([*odd.HEADERS])
        headers[name] = random.choice(odd.HEADERS[name])
    data = request(path, body_of(fields), headers)
    label = f"{path} {', '.join(f'{k}={_short(v)}' for k, v in fields.items())} {headers}"
    if random.random() < 0.1:
        place = random.randrange(len(data))
        spoilt = random.choice([b"", random.randbytes(1), random.randbytes(20), b"\r\n", data[place : place + 50] * 2])
        return Case(f"{label}, spoilt at {place}", data[:place] + spoilt + data[place + 1 :], False)
    return Case(label, data, not headers)


def _with(path: str, **fields: bytes) -> bytes:
    return body_of(BASES[path] | fields)


def _bytes(text: str) -> bytes:
    """Latin-1 where that has all the characters: single bytes that are no UTF-8."""
    try:
        return text.encode("latin-1")
    except UnicodeEncodeError:
        return text.encode()


def _short(value: bytes) -> str:
    shown = repr(value)[2:-1]
    return shown if len(shown) <= 60 else f"{shown[:40]}... of {len(value)} bytes"
