"""Mark-up removed, its text kept: HTML pages, Mallard help pages, reStructuredText.

Each kind by its own rules, chosen for a source rather than guessed for a document: ``List<String>`` is no tag in a text
about programming. What only a reader of the rendered page would see is written out (Ctrl+C, File ▸ Open).
"""

from __future__ import annotations

import html
import re
from typing import Literal

Markup = Literal["none", "html", "mallard", "rest"]

_TAG = re.compile(r"</?[A-Za-z_][\w:.-]*(?:\s+[\w:.@-]+(?:\s*=\s*(?:\"[^\"]*\"|'[^']*'|[^\s\"'<>=]+))?)*\s*/?>")
_COMMENT = re.compile(r"<!--.*?-->|<!\[CDATA\[|\]\]>|<!DOCTYPE[^>]*>|<\?.*?\?>", re.DOTALL | re.IGNORECASE)
_UNSEEN = re.compile(r"<(script|style|head|template|noscript|svg|math)\b[^>]*>.*?</\1\s*>", re.DOTALL | re.IGNORECASE)
_BLOCK = re.compile(
    r"</?(?:address|article|aside|blockquote|body|br|dd|div|dl|dt|figcaption|figure|footer|form|h[1-6]|header|hr|html|li|main"
    r"|nav|ol|option|p|pre|section|table|tbody|td|tfoot|th|thead|title|tr|ul)\b[^>]*>",
    re.IGNORECASE,
)
_BLANK = re.compile(r"[ \t]*\n(?:[ \t]*\n)+")

_KEYSEQ = re.compile(r"<keyseq\b[^>]*>(.*?)</keyseq>", re.DOTALL)
_GUISEQ = re.compile(r"<guiseq\b[^>]*>(.*?)</guiseq>", re.DOTALL)
_BETWEEN = re.compile(r"(</[\w:]+>)\s*(?=<[\w:]+)")

_REST = re.compile(
    r"``(?P<literal>.+?)``"
    r"|:[a-z][a-z0-9:+.-]*:`(?P<role>[^`]+)`"
    r"|`(?P<link>[^`]+)`(?:__|_)?(?!`)"
    r"|(?<![\w*\\])\*\*(?=[^\s*])(?P<strong>[^*\n]+?)(?<=\S)\*\*(?![\w*])"
    r"|(?<![\w*\\])\*(?=[^\s*])(?P<emphasis>[^*\n]+?)(?<=\S)\*(?![\w*])"
    r"|(?<![\w|])\|(?P<name>[A-Za-z][\w -]*)\|(?:__|_)?(?![\w|])"
    r"|(?<![\w`])(?P<reference>[A-Za-z][A-Za-z0-9]*)__?(?![\w`(.])"
    r"|\\(?P<escaped>[ *`|_\\:<>])"
)
_TARGET = re.compile(r"^(.*?)\s*<[^<>]*>$", re.DOTALL)
_DIRECTIVE = re.compile(r"^[ \t]*\.\. (?:_[^:\n]+:.*|(?:\|[^|\n]+\| *)?[\w:+-]+:: *(.*)|.*)$", re.MULTILINE)
_OPTION = re.compile(r"^[ \t]+:[\w-]+:(?: .*)?\n?", re.MULTILINE)
_UNDERLINE = re.compile(r"^[ \t]*([=\-~^\"'#*+.])\1{3,}[ \t]*$\n?", re.MULTILINE)


def remove_markup(text: str, kind: Markup) -> str:
    """The text without the mark-up of its kind."""
    if kind == "html":
        return _html(text)
    if kind == "mallard":
        return _mallard(text)
    if kind == "rest":
        return _rest(text)
    return text


def _html(text: str) -> str:
    if "<" in text:
        text = _UNSEEN.sub(" ", _COMMENT.sub("", text))
        text = _TAG.sub("", _BLOCK.sub("\n", text))
        text = _BLANK.sub("\n", text).strip()
    return html.unescape(text) if "&" in text else text


def _mallard(text: str) -> str:
    if "<" in text:
        text = _COMMENT.sub("", text)
        text = _KEYSEQ.sub(lambda match: _BETWEEN.sub(r"\1+", match[1]), text)
        text = _GUISEQ.sub(lambda match: _BETWEEN.sub(r"\1 ▸ ", match[1]), text)
        text = _TAG.sub("", text)
    return html.unescape(text) if "&" in text else text


def _rest(text: str) -> str:
    if ".. " in text:
        text = _OPTION.sub("", _DIRECTIVE.sub(lambda match: match[1] or "", text))
    text = _UNDERLINE.sub("", text)
    if "`" in text or "*" in text or "|" in text or "_" in text or "\\" in text:
        # An interpreter session is code: its stars and backslashes are its own.
        lines = text.split("\n")
        text = "\n".join(line if line.startswith((">>>", "... ")) else _REST.sub(_inline, line) for line in lines)
    return text.replace("::\n", ":\n").removesuffix(":") if text.endswith("::") else text.replace("::\n", ":\n")


def _inline(match: re.Match[str]) -> str:
    kind, inner = match.lastgroup, match[match.lastgroup or 0]
    if kind == "escaped":
        return "" if inner == " " else inner
    if kind == "role":
        if titled := _TARGET.match(inner):
            return titled[1]
        inner = inner.lstrip("!")
        return inner[1:].rpartition(".")[2] if inner.startswith("~") else inner.lstrip(".")
    if kind == "link" and (titled := _TARGET.match(inner)):
        return titled[1]
    return inner
