"""Markdown as HTML that is safe whatever it was made from: the text of a model is anybody's.

No HTML of the text's own, links to the web and to mail alone, images as words, no inline styles; code is coloured by
classes. Answers that still grow are rendered from their last finished block on.
"""

from __future__ import annotations

import re
from functools import cache
from typing import TYPE_CHECKING, Any

from markdown_it import MarkdownIt
from markdown_it.common.utils import escapeHtml
from pygments import highlight  # type: ignore[import-untyped]
from pygments.formatters import HtmlFormatter  # type: ignore[import-untyped]
from pygments.lexers import get_lexer_by_name  # type: ignore[import-untyped]

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from markdown_it.renderer import RendererProtocol
    from markdown_it.token import Token
    from pygments.lexer import Lexer  # type: ignore[import-untyped]

LINK = re.compile(r"(https?://|mailto:)", re.IGNORECASE)
LANGUAGES = frozenset(
    """
    bash c c++ cpp csharp c# css diff docker dockerfile go golang html ini java javascript js json jsx kotlin lua make
    markdown md php python py r ruby rb rust rs sh shell sql swift toml ts typescript xml yaml yml zsh
    """.split()  # noqa: SIM905
)
"""Lexers take memory once loaded, so a text cannot name just any."""
MOST_CODE, MOST_LINE = 50_000, 2_000
"""Characters of a block, and of a line in it, that are coloured: some lexers slow down on odd input."""
LIGHT, DARK = "default", "github-dark"


def code_css() -> str:
    """The colours of code, for both of a browser's schemes."""
    rules = [HtmlFormatter(style=style).get_style_defs(".code pre") for style in (LIGHT, DARK)]
    return f"{rules[0]}\n@media (prefers-color-scheme: dark) {{\n{rules[1]}\n}}\n"


def render(text: str) -> list[str]:
    """The HTML of a text, one string a block."""
    return [html for html, _ in _blocks(text.replace("\r", ""))]


class GrowingMarkdown:
    """A text that is added to at its end. Blocks before the last one are rendered once."""

    def __init__(self) -> None:
        self.finished: list[str] = []
        """HTML of the blocks that no more text can change."""
        self._text = ""
        """All that comes after them."""

    def add(self, text: str) -> None:
        """More text, at the end."""
        self._text += text.replace("\r", "")

    def unfinished(self) -> list[str]:
        """HTML of the blocks after those of `finished`, which this may add to."""
        # An unfinished line may yet turn out to belong to the block before the last: "2" becomes "2. of a list".
        whole = self._text[: self._text.rfind("\n") + 1]
        blocks = _blocks(whole)
        if len(blocks) > 1:
            self.finished += [html for html, _ in blocks[:-1]]
            self._text = "\n".join(self._text.split("\n")[blocks[-1][1] :])
        return render(self._text)


def _blocks(text: str) -> list[tuple[str, int]]:
    """The HTML of each block of a text, and the line at which it begins."""
    env: dict[str, Any] = {}
    found, begin = [], 0
    tokens = _MARKDOWN.parse(text, env)
    for at, token in enumerate(tokens):
        if token.level == 0 and token.nesting <= 0:
            block = tokens[begin : at + 1]
            line = block[0].map[0] if block[0].map else 0
            found.append((_MARKDOWN.renderer.render(block, _MARKDOWN.options, env), line))
            begin = at + 1
    return found


def _fence(renderer: RendererProtocol, tokens: Sequence[Token], at: int, options: Any, env: Any) -> str:
    words = tokens[at].info.split()
    language = words[0] if words else ""
    return (
        f'<div class="code"><div class="bar"><span>{escapeHtml(language[:30]) or "text"}</span>'
        f'<button type="button" class="copy">Copy</button></div>'
        f'<pre tabindex="0"><code>{_coloured(tokens[at].content, language.lower())}</code></pre></div>\n'
    )


def _coloured(code: str, language: str) -> str:
    odd = len(code) > MOST_CODE or max(map(len, code.splitlines()), default=0) > MOST_LINE
    if language not in LANGUAGES or odd:
        return escapeHtml(code)
    coloured: str = highlight(code, _lexer(language), HtmlFormatter(nowrap=True))
    return coloured


@cache
def _lexer(language: str) -> Lexer:
    return get_lexer_by_name(language, stripnl=False, ensurenl=False)


def _link_open(renderer: Any, tokens: Sequence[Token], at: int, options: Any, env: Any) -> str:
    tokens[at].attrSet("target", "_blank")
    tokens[at].attrSet("rel", "noopener noreferrer nofollow")
    html: str = renderer.renderToken(tokens, at, options, env)
    return html


def _image(renderer: RendererProtocol, tokens: Sequence[Token], at: int, options: Any, env: Any) -> str:
    """Words: to load it would tell its host who reads this."""
    about = " ".join(filter(None, [tokens[at].content, str(tokens[at].attrs.get("src", ""))]))
    return f'<span class="image">[image: {escapeHtml(about)}]</span>'


def _cell_open(renderer: Any, tokens: Sequence[Token], at: int, options: Any, env: Any) -> str:
    """Its alignment as a class, where the parser gives it a style."""
    style = str(tokens[at].attrs.pop("style", ""))
    if style:
        tokens[at].attrSet("class", style.partition(":")[2])
    html: str = renderer.renderToken(tokens, at, options, env)
    return html


def _markdown() -> MarkdownIt:
    options: Mapping[str, Any] = {"html": False, "breaks": True, "linkify": False, "typographer": False}
    # Without references, whose definitions could change what was rendered long before.
    markdown = MarkdownIt("commonmark", options).enable(["table", "strikethrough"]).disable("reference")
    markdown.validateLink = lambda url: LINK.match(url) is not None  # type: ignore[method-assign]
    rules = {
        "fence": _fence, "code_block": _fence, "link_open": _link_open, "image": _image,
        "th_open": _cell_open, "td_open": _cell_open,
        "table_open": lambda *_: '<div class="table" tabindex="0"><table>\n',
        "table_close": lambda *_: "</table></div>\n",
    }  # fmt: skip
    for name, rule in rules.items():
        markdown.add_render_rule(name, rule)
    return markdown


_MARKDOWN = _markdown()
