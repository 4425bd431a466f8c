"""Personal data replaced by tags: ``PI:KEY``, ``PI:EMAIL``, ``PI:USER``, ``PI:IP_ADDRESS``, the four kinds of ROOTS.

Telephone and identity numbers are left alone, as there: too much else looks like them. Addresses that say nothing about
anybody stay: loopback, unspecified, net masks; and a row of four numbers after the word *version*.
"""

from __future__ import annotations

import ipaddress
import re
from collections import Counter
from collections.abc import Sequence
from typing import Literal

Tag = Literal["KEY", "EMAIL", "USER", "IP_ADDRESS"]
TAGS: tuple[Tag, ...] = ("KEY", "EMAIL", "USER", "IP_ADDRESS")

_EMAIL = re.compile(
    r"[A-Za-z0-9](?:[A-Za-z0-9._%+-]{0,62}[A-Za-z0-9_%+-])?@(?:[A-Za-z0-9-]{1,63}\.){1,6}[A-Za-z]{2,24}\b"
)
_USER = re.compile(r"(?<![\w@./+-])@[A-Za-z_][A-Za-z0-9_]{2,38}(?![\w@(]|\.\w)")
_IP = re.compile(
    r"(?<![\w.:-])(?:(?:[0-9]{1,3}\.){3}[0-9]{1,3}|(?:[0-9A-Fa-f]{0,4}:){2,7}[0-9A-Fa-f]{0,4})(?![\w:]|\.\d|-\d)"
)
_VERSION = re.compile(r"(?i)(?:\bversion|\bv\.?|\brelease)\s*$")
_KEY = re.compile(
    r"(?<![\w+/=-])(?:"
    r"AKIA[0-9A-Z]{16}|gh[pousr]_[A-Za-z0-9]{36}|xox[abpr]-[A-Za-z0-9-]{10,}|sk-[A-Za-z0-9_-]{20,}"
    r"|eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]+"
    r"|(?=[0-9a-f]*[a-f])(?=[0-9a-f]*[0-9])[0-9a-f]{32,128}"
    r"|(?=[A-Za-z0-9+/]*[a-z])(?=[A-Za-z0-9+/]*[A-Z])(?=[A-Za-z0-9+/]*[0-9])[A-Za-z0-9+/]{40,}={0,2}"
    r")(?![\w+/=-])"
)
_LONG = re.compile(r"[A-Za-z0-9+/_-]{20}")


def replace_pii(text: str, tags: Sequence[Tag] = TAGS) -> tuple[str, Counter[str]]:
    """The text with tags in place of what was found, and how often each kind was."""
    found: Counter[str] = Counter()

    def tagged(tag: Tag) -> str:
        found[tag] += 1
        return f"PI:{tag}"

    if "KEY" in tags and _LONG.search(text):
        text = _KEY.sub(lambda match: tagged("KEY"), text)
    if "@" in text:
        if "EMAIL" in tags:
            text = _EMAIL.sub(lambda match: tagged("EMAIL"), text)
        if "USER" in tags:
            text = _USER.sub(lambda match: tagged("USER"), text)
    if "IP_ADDRESS" in tags:
        text = _IP.sub(lambda match: tagged("IP_ADDRESS") if _is_address(match) else match[0], text)
    return text, found


def _is_address(match: re.Match[str]) -> bool:
    try:
        address = ipaddress.ip_address(match[0])
    except ValueError:
        return False
    if address.version == 6 and len(match[0].replace("::", ":").strip(":").split(":")) < 3:  # (times, slices: 10:20::)
        return False
    if address.is_loopback or address.is_unspecified or match[0].startswith(("255.", "0.")):
        return False
    return not _VERSION.search(match.string[max(0, match.start() - 12) : match.start()])
