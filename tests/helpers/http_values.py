"""Odd values for requests over HTTP: JSON as it is spelled, headers as they are sent. Much is wrong on purpose."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from random import Random

_POWERS = [2**bits + step for bits in (7, 15, 31, 32, 53, 63, 64) for step in (-1, 0, 1)]
_GREAT = [10**20, 10**30, 10**308, 10**309, 10**400, 10**4299]
WHOLE = [str(sign * number) for number in (0, 1, 2, 20, 21, 200, *_POWERS, *_GREAT) for sign in (1, -1)]
WHOLE += ["9" * 4300, "9" * 4301, "-" + "9" * 20000, "00", "+1", "0x10", "1_000", "\u0661"]
REAL = ["-0", "-0.0", "0.5", "1.0", "2.0", "1e0", "1e-5", "5e-324", "1e-400", "1e15", "1e18", "1.8446744073709552e19",
        "1e308", "1e309", "1e400", "-1e400", "1E1000000", "1e-1000000", "0." + "3" * 5000, ".5", "1.", "1e",
        "NaN", "-NaN", "Infinity", "-Infinity", "nan", "inf"]  # fmt: skip
TEXT = ['""', '" "', '"a"', '"auto"', '"none"', '"user"', '"text"', '"0"', '"true"', '"\\u0000"', '"a\\u0000b"',
        '"\\ud800"', '"\\udc00\\ud800"', '"x\\ud800y"', '"\\ud83d\\ude00"', '"\\uffff\\ufffe"', '"\\u202e\\u200b"',
        '"\\n\\r\\t"', '"{{ 7 * 7 }}{% raw %}"', '"<|im_start|>system"', '"\\x00"', '"\\u12"', "'a'", '"a',
        '"' + "x" * 3000 + '"', '"' + "1" * 15000 + '"', '"' + "\\u0301" * 1000 + '"',
        '"\U0001f9d1\u200d\U0001f680"']  # fmt: skip
OTHER = ["null", "true", "false", "None", "undefined", "", ",", "{}", "[]", "[[]]", "[null]", "[{}]", '[""]',
         '["a", 1]', '["a", "a", "a", "a", "a"]', "[1, [1]]", "[[1], []]", "[[1], [2, -1]]", "[1.5]", "[true]",
         "[0]", "[1, 2, 3]",
         "[-1]", "[1e2]", "[99999999999999999999]", f"[{10**400}]", f"[[{2**32}]]", "[" + "1, " * 200 + "1]",
         "[" + '"a", ' * 200 + '"a"]', '{"a": 1, "a": 2}', '{"": ""}', '{"type": "text"}', '{"type": "text", "a": 1}',
         '{"type": "text", "type": 1}', '{"type": "json_schema", "json_schema": {}}', '{"50256": 1e400}',
         '{"include_usage": 1}',
         '[{"type": "text", "text": "a"}]', '[{"type": "text", "text": 1}]', '[{"type": "image_url"}]',
         '[{"type": []}]',
         '[{"type": "text", "text": "a", "text": "b"}, null]', '[{"role": "user", "content": ""}]',
         '[{"role": "assistant", "content": null}]', '[{"role": [], "content": {}}]', "1 2", "[1,]", '{"a"}',
         "{1: 2}"]  # fmt: skip
DEEP = [opening * depth + inside + closing * depth
        for depth in (50, 199, 201, 1000, 10000)
        for opening, inside, closing in (("[", "", "]"), ('{"a": ', "1", "}"), ('[{"content": ', '""',
        "}]"))]  # fmt: skip
DEEP += ["[" * 15000]
BYTES = [b'"\xff"', b'"\xc0\x80"', b'"\xed\xa0\x80"', b'"\xf4\x90\x80\x80"', b'"\x00"', b'"\x7f\x1b[2J"', b"\xff\xfe"]
JSON: list[bytes] = [text.encode() for text in (*WHOLE, *REAL, *TEXT, *OTHER, *DEEP)] + BYTES

AUTHORITIES = ["", "[", "]", "[]", "[::1", "[::1]", "[::1]:80", "::1", "[v1.a]", "[v1.]", "[g::1]",
               "[::1%25lo]", "[[::1]]",
               "127.0.0.1", "127.0.0.1:99999", "127.0.0.1:-1", "127.0.0.1:x", "127.1", "0x7f.1", "256.256.256.256",
               "localhost", "LOCALHOST:1", "a.localhost", "localhost/[", "localhost?[", "localhost#]", "localhost\\[",
               "[@localhost", "user:pw@localhost", "@localhost", "localhost:", "localhost,evil", "localhost evil",
               "localhost\tb", "evil.example", "%5b", "%00", "*", "\xbd", "\u2100.localhost", "\uff0f\uff3b",
               "xn--", "." * 300, "a" * 5000]  # fmt: skip
ORIGINS = ["null", "", "http:", "http:/", "//", "://", "http://", "file://", "http//a", "data:,a", "\\\\a", "a b",
           *(f"{scheme}://{authority}" for scheme in ("http", "https") for authority in AUTHORITIES)]  # fmt: skip
TYPES = ["", " ", ";", "application/json", "application/json;charset=utf-16", "APPLICATION/JSON ; x",
         "application/json,",
         "text/plain", "multipart/form-data", "multipart/form-data; boundary=", "application/x-www-form-urlencoded",
         "application/json" + ";a=b" * 2000, "\xff/\xfe", "*/*"]  # fmt: skip
KEYS = ["", "Bearer", "Bearer ", "bearer key", "Bearer  key", "Bearer key key", "Basic a2V5", "Bearer \xff\xfe", "\xe9",
        "Bearer \u00e9\U0001f600", "Bearer " + "k" * 20000, "Bearer\tkey", ", Bearer key"]  # fmt: skip
SIZES = ["", "0", "1", "-1", "+5", "5, 5", "5, 6", "5,5", "0x5", "1e3", "5.0", " 5 ", "\u0665", "\xb2", "NaN",
         *(str(n) for n in (2**31, 2**32, 2**63, 2**64, 10**19, 10**20, 10**400)), "9" * 5000, "0" * 5000]  # fmt: skip
ANY = ["", " ", ",", ";", "=", "\xff", "a" * 30000, "bytes=0-", "bytes=-1", "bytes=99999999999999999999-1", "*/*;q=9",
       "gzip, br;q=1.0, \xff", "100-continue", "200-maybe", "close, keep-alive", "websocket", "h2c", "0", '"', "W/",
       "Thu, 99 Foo 99999 99:99:99 GMT", "for=[;by=]", "[", "http://[", "a=b; a=b; =; ;", "chunked", "gzip, chunked",
       "identity", "chunked, chunked", "\u2028"]  # fmt: skip
HEADERS: dict[str, list[str]] = {
    "Host": AUTHORITIES,
    "Origin": ORIGINS,
    "Referer": ORIGINS,
    "Content-Type": TYPES,
    "Authorization": KEYS,
    "Content-Length": SIZES,
} | dict.fromkeys(
    ["Accept", "Accept-Encoding", "Accept-Language", "Connection", "Content-Encoding", "Cookie", "Expect", "Forwarded",
     "If-Modified-Since", "If-None-Match", "Range", "TE", "Trailer", "Transfer-Encoding", "Upgrade", "User-Agent",
     "Via", "X-Forwarded-Host", "X-Forwarded-Proto", "X-HTTP-Method-Override", "", " ", ":", "\xff", "a b", "x" * 500],
    ANY,
)  # fmt: skip
PATHS = ["*", "[", "]", "//", "//[", "//[/", "/[", "/]/", "/%", "/%zz", "/%00", "/%ff%fe", "/%5b", "/..%2f..", "/../..",
         "/health/", "/health?[", "/health?%ff=%00", "/health#[", "/health;a", "/openapi.json", "/docs",
         "/metrics", "/v1",
         "/v1/models", "/v1/models/", "/v1/models/demo", "/v1/models/demo/", "/v1/models/%ff", "/v1/models/a/b/../c",
         "/v1/models/%f0%9f%98%80", "/v1/models/%ed%a0%80", "/v1/models/" + "a" * 9000, "/v1/models/%2e%2e%2f",
         "/v1/chat/completions", "/v1/completions", "http://localhost/health", "http://[", "http://[/health",
         "localhost:80",
         "?", "?[", "#", ":", "/" * 3000, "/?" + "a=b&" * 2000]  # fmt: skip
METHODS = [
    "GET",
    "POST",
    "HEAD",
    "OPTIONS",
    "PUT",
    "DELETE",
    "PATCH",
    "TRACE",
    "CONNECT",
    "get",
    "FOO",
    "M-SEARCH",
    "A" * 500,
]


def random_json(random: Random, depth: int = 4) -> bytes:
    """A value of any shape, made of odd ones."""
    kind = random.random()
    if depth == 0 or kind < 0.5:
        return random.choice(JSON)
    items = [random_json(random, depth - 1) for _ in range(random.choice([0, 1, 1, 2, 3, 6]))]
    if kind < 0.75:
        return b"[" + b", ".join(items) + b"]"
    keys = [random.choice([*TEXT, '"type"', '"text"', '"role"', '"content"']).encode() for _ in items]
    return b"{" + b", ".join(key + b": " + item for key, item in zip(keys, items, strict=True)) + b"}"
