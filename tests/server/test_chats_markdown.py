"""Answers as HTML: what a hostile text becomes, and that a growing one reads like a whole one."""

from __future__ import annotations

from html.parser import HTMLParser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.server.chats.markdown import GrowingMarkdown, code_css, render

TAGS = {"p", "h1", "h2", "h3", "h4", "h5", "h6", "ul", "ol", "li", "blockquote", "hr", "br", "em", "strong", "s", "a",
        "code", "pre", "div", "span", "button", "table", "thead", "tbody", "tr", "th", "td"}  # fmt: skip
ATTRIBUTES = {"class", "href", "target", "rel", "start", "tabindex", "type", "title"}
HOSTILE = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    '<a href="javascript:alert(1)">x</a>',
    "[x](javascript:alert(1))",
    "[x](JaVaScRiPt:alert(1))",
    "[x](&#106;avascript:alert(1))",
    "[x](java\tscript:alert(1))",
    "[x](data:text/html,<script>alert(1)</script>)",
    "[x](vbscript:x)",
    "[x](file:///etc/passwd)",
    "[x](/chats)",
    "[x](//elsewhere.example/)",
    "<javascript:alert(1)>",
    "![x](https://elsewhere.example/x.png)",
    '![x" onerror="alert(1)](https://elsewhere.example/x.png "t")',
    "![x](data:image/svg+xml,<svg onload=alert(1)>)",
    '[x](https://example.org/"onmouseover="alert(1))',
    '[x](https://example.org "a\\" onclick=\\"alert(1)")',
    "```html\n<script>alert(1)</script>\n```",
    '```"><script>alert(1)</script>\nx\n```',
    '```python"onclick="alert(1)\nx\n```',
    "    <script>indented</script>",
    "`<script>`",
    "| <b>a</b> | [x](javascript:1) |\n|:--|--:|\n| ![](https://elsewhere.example/) | `<i>` |",
    "<!-- x --><style>*{}</style><iframe src=//elsewhere.example></iframe>",
    "\x00<script>\ufffd</script>",
]


class Reader(HTMLParser):
    """Holds HTML to what the page expects."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.text = ""
        self.links: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in TAGS, tag
        found = dict(attrs)
        assert set(found) <= ATTRIBUTES, found
        if tag == "a":
            self.links.append(found["href"] or "")
            assert self.links[-1].lower().startswith(("http://", "https://", "mailto:"))
            assert found["target"] == "_blank"
            assert "noopener" in (found["rel"] or "")

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_stays_text(text: str) -> None:
    Reader("".join(render(text)))


@given(st.text(alphabet=st.sampled_from("<>\"'&[](){}!`~*_|:-#\n\t =abj/\\;") | st.characters(), max_size=200))
@settings(max_examples=200, deadline=None)
def test_any_text_is_safe(text: str) -> None:
    Reader("".join(render(text)))


def test_what_markdown_becomes() -> None:
    text = "# Head\n\n**b** *e* `c` ~~s~~ [l](https://example.org/a?b=1&c=2)\nnext\n\n- one\n- two\n\n> said"
    assert render(text) == [
        "<h1>Head</h1>\n",
        '<p><strong>b</strong> <em>e</em> <code>c</code> <s>s</s> <a href="https://example.org/a?b=1&amp;c=2" '
        'target="_blank" rel="noopener noreferrer nofollow">l</a><br />\nnext</p>\n',
        "<ul>\n<li>one</li>\n<li>two</li>\n</ul>\n",
        "<blockquote>\n<p>said</p>\n</blockquote>\n",
    ]


def test_images_are_words() -> None:
    [html] = render("![a <b>](https://elsewhere.example/x.png)")
    assert html == '<p><span class="image">[image: a &lt;b&gt; https://elsewhere.example/x.png]</span></p>\n'


def test_tables_align_by_class() -> None:
    [html] = render("| a | b |\n|--:|:-:|\n| 1 | 2 |")
    assert '<th class="right">a</th>' in html
    assert '<td class="center">2</td>' in html
    assert "style" not in html


def test_code_is_coloured_and_keeps_its_text() -> None:
    code = "def f(x):\n\n    return '<b>' + x  # ü\n"
    [html] = render(f"```Python title=x\n{code}```")
    assert '<span class="k">def</span>' in html
    assert Reader(html).text.strip() == f"PythonCopy{code}".strip()
    assert ".code pre .k" in code_css()
    assert "@media (prefers-color-scheme: dark)" in code_css()


@pytest.mark.parametrize("info", ["", "nonsense", "brainfuck"])
def test_code_of_other_languages_is_plain(info: str) -> None:
    [html] = render(f"```{info}\na < b\n```")
    assert "<code>a &lt; b\n</code>" in html


def test_odd_code_is_plain() -> None:
    assert "<span class" not in render("```python\n" + "a" * 3000 + " = 1\n```")[0]
    assert "<span class" not in render("```python\n" + "a = 1\n" * 10_000 + "```")[0]


TEXT = """Intro
===

1. one

2. two
   ```python
   x = 1
   ```

- a
- b

para | with
--- | ---
1 | 2

> quote
lazy

```
fence

    still
```
last `line`"""


@pytest.mark.parametrize("size", [1, 2, 3, 7, 50])
def test_a_growing_text_reads_like_a_whole_one(size: int) -> None:
    growing = GrowingMarkdown()
    for at in range(0, len(TEXT), size):
        growing.add(TEXT[at : at + size])
        shown = growing.unfinished()
        assert growing.finished + shown == render(TEXT[: at + size])
    assert len(growing.finished) >= 4


@given(st.lists(st.text(alphabet="ab\n\r`-=|1. >*#\t", max_size=8), max_size=20))
@settings(max_examples=200, deadline=None)
def test_any_growing_text_reads_like_a_whole_one(pieces: list[str]) -> None:
    growing = GrowingMarkdown()
    for piece in pieces:
        growing.add(piece)
        shown = growing.unfinished()
    if pieces:
        assert growing.finished + shown == render("".join(pieces))
