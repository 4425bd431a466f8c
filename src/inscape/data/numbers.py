"""One reader of numbers for everything that a model writes.

What counts, in this order:

- Only the first line is read, and in it only the **first number**: "1902-1994" and "1902 or 1903" are 1902.
- For years, numbers that can't be the year are passed over: the day in "5 May 1902", "May 5, 1902" or "05/06/1902",
  ordinals ("19th century") and durations ("30 years").
- A minus sign (also the typographic ones) counts directly before a digit, unless a letter, digit or dash stands before
  it: "mid-1902" is 1902. BC, BCE and B.C. make a year negative, of a range both ends; S, W, south and west an angle;
  "below sea level" a height.
- Separators: "80,296", "1 234 567", "1'234'567", "1.234.567" and "12,34,567" are grouped whole numbers; "43,3" has a
  decimal comma, and so has every comma in an angle. "80.296" is a decimal number.
- Magnitudes: "1.3 million", "3 thousand", "1.3e6", "1.3 x 10^6"; for people also "80k", "1.3M", "2bn".
- With `unit`, a length or area in another unit is converted; a unit of another dimension (an area where a height was
  asked for) makes the number missing. Without `unit`, units are ignored.
- Angles may have minutes and seconds.

Anything else is **missing** (None) and never 0: a failed reading that counts as 0 corrupts means and rank correlations.
"""

import math
import re
from typing import Literal

#: Years that count as an answer. The oldest and latest in the Wikidata tables are 9600 BC and 2371 (fiction).
YEAR_RANGE = (-10_000, 3_000)

_DASHES = "\u2010\u2011\u2012\u2013\u2014\u2015\u2212\uff0d-"
_MINUS = str.maketrans(dict.fromkeys(_DASHES, "-"))
_SPACES = str.maketrans(dict.fromkeys("\u00a0\u2007\u2008\u2009\u200a\u202f\t", " "))
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")

# Leading "-" only where no word, number or dash goes on: in "mid-1902" and "1894-1902" it joins, it doesn't negate.
_SIGN = r"(?P<sign>(?<![A-Za-z0-9\-])[-+])?"
_DECIMALS = r"(?:\.[0-9]+)?"
_NUMBER = {
    "year": rf"{_SIGN}(?P<digits>[0-9]{{1,3}}(?:,[0-9]{{3}})+(?![0-9])|[0-9]+{_DECIMALS})",
    "angle": rf"{_SIGN}(?P<digits>[0-9]+(?:[.,][0-9]+)?|(?<!\.)\.[0-9]+)",
    "quantity": rf"{_SIGN}(?P<digits>"
    rf"[0-9]{{1,3}}(?:,[0-9]{{2,3}})*,[0-9]{{3}}(?![0-9]){_DECIMALS}"  # 80,296  12,34,567.8
    r"|[0-9]{1,3}(?:\.[0-9]{3}){2,}(?:,[0-9]+)?(?![0-9])"  # 1.234.567,8
    rf"|[0-9]{{1,3}}(?:[ '’][0-9]{{3}})+(?![0-9]){_DECIMALS}"  # 1 234 567
    r"|[0-9]+,[0-9]+(?![0-9]|,[0-9])"  # 43,3
    rf"|[0-9]+{_DECIMALS}|(?<!\.)\.[0-9]+)",
}
_FIRST = {kind: re.compile(pattern) for kind, pattern in _NUMBER.items()}

_MONTH = (
    r"(?:jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?|sept?(?:ember)?|oct(?:ober)?"
    r"|nov(?:ember)?|dec(?:ember)?)\b\.?"
)
_DAY = r"(?<![0-9])(?:0?[1-9]|[12][0-9]|3[01])(?:st|nd|rd|th)?"
_BC = r"(?:BCE\b|BC\b|B\. ?C\. ?E\b\.?|B\. ?C\b\.?)"
_AD = r"(?:AD\b|CE\b|A\. ?D\b\.?|C\. ?E\b\.?)"
_NO_YEAR = re.compile(
    rf"{_DAY} (?:of )?{_MONTH}"
    rf"|{_MONTH} {_DAY}(?![0-9]|[,.][0-9]|,? ?(?:{_BC}|{_AD}))"
    r"|(?<![0-9])[0-9]{1,2}(?P<mark>[/.])[0-9]{1,2}(?P=mark)(?=[0-9]{3,4}(?![0-9]))"
    r"|(?<![0-9])[0-9]+(?:st|nd|rd|th)\b"
    r"|(?<![0-9])[0-9]+ years?\b",
    re.IGNORECASE,
)
_ERA_AFTER = re.compile(rf"s?(?: ?(?:-|to|or|/) ?[0-9,]+)?,? ?(?:(?P<bc>{_BC})|{_AD})", re.IGNORECASE)
_ERA_BEFORE = re.compile(r"\b(?:BCE|BC|B\.C\.) ?$", re.IGNORECASE)

_POWER = re.compile(
    r" ?[x×*·] ?10(?:(?:\^|\*\*) ?(?P<caret>-?[0-9]{1,3})|(?P<raised>⁻?[⁰¹²³⁴⁵⁶⁷⁸⁹]{1,3}))"
    r"|[eE](?P<exponent>[-+]?[0-9]{1,3})(?![0-9A-Za-z])"
)
_MAGNITUDE = re.compile(r"[ -]?(?P<word>thousand|million|billion|trillion|mn|bn|mio|k|m|b)s?\b", re.IGNORECASE)
_MAGNITUDES = {"thousand": 1e3, "million": 1e6, "mio": 1e6, "mn": 1e6, "billion": 1e9, "bn": 1e9, "trillion": 1e12}
_PEOPLE_MAGNITUDES = _MAGNITUDES | {"k": 1e3, "m": 1e6, "b": 1e9}

#: Unit as written, its dimension's unit in our properties, and how many of the latter it is. Longer spellings first.
_UNITS: tuple[tuple[str, str, float], ...] = (
    (r"square kilomet(?:re|er)s?|sq\.? ?km|km\^?2|km²", "square kilometres", 1.0),
    (r"square miles?|sq\.? ?mi(?:les?)?|mi\^?2|mi²", "square kilometres", 2.589988110336),
    (r"square met(?:re|er)s?|sq\.? ?m|m\^?2|m²", "square kilometres", 1e-6),
    (r"square f(?:ee|oo)t|sq\.? ?ft|ft\^?2|ft²", "square kilometres", 9.290304e-8),
    (r"hectares?|ha", "square kilometres", 0.01),
    (r"acres?", "square kilometres", 0.0040468564224),
    (r"kilomet(?:re|er)s?|km", "metres", 1000.0),
    (r"centimet(?:re|er)s?|cm", "metres", 0.01),
    (r"met(?:re|er)s?|m", "metres", 1.0),
    (r"f(?:ee|oo)t|ft", "metres", 0.3048),
    (r"miles?|mi", "metres", 1609.344),
)
_UNIT = tuple((re.compile(rf"[ -]?(?:{spelling})(?![\w²³^])", re.IGNORECASE), to, by) for spelling, to, by in _UNITS)
_BELOW_SEA = re.compile(r"[^.;]{0,40}\bbelow (?:(?:the|mean) )*sea", re.IGNORECASE)

_ARC = re.compile(
    r" ?(?:°|º|degrees?\b|deg\b\.?)?"
    r"(?: ?(?P<minutes>[0-9]{1,2}(?:\.[0-9]+)?) ?(?:['′’]|min(?:ute)?s?\b)(?!['′’])"
    r"(?: ?(?P<seconds>[0-9]{1,2}(?:\.[0-9]+)?) ?(?:''|[\"″”]|′′|sec(?:ond)?s?\b))?)?"
    r"(?: ?(?:of )?(?:latitude |longitude )?(?P<side>[NSEW]\b|[nsew]\b|(?:north|south|east|west)\b))?",
    re.IGNORECASE,
)
_SIDE_BEFORE = re.compile(r"(?:\b[SW]|\b(?:south|west)) ?$", re.IGNORECASE)


def parse_number(
    text: str, kind: Literal["year", "quantity", "angle"] = "quantity", unit: str | None = None
) -> float | None:
    """Read the first number of the first line of `text`, by the rules at the head of this module.

    Args:
        text: what a model wrote.
        kind: kind of the property that was asked for.
        unit: the property's unit ("people", "metres", "square kilometres"), to which lengths and areas are converted.

    Returns:
        The number; None where there is none, or where it can't be a value of its kind: a year that is fractional, 0 or
        outside `YEAR_RANGE`, an angle beyond 180 degrees.
    """
    line = re.split(r"[\n\r]", text, maxsplit=1)[0].translate(_SPACES).translate(_MINUS)
    if kind == "year":
        return _year(line)
    match = _FIRST[kind].search(line)
    if match is None:
        return None
    plain = _plain(match["digits"], kind)
    if match["sign"] == "-":
        plain = -plain
    number = _angle(line, match, plain) if kind == "angle" else _quantity(line, match, plain, unit)
    if number is None or not math.isfinite(number) or (number == 0 and re.search("[1-9]", match["digits"])):
        # The last: a power so negative that the number underflows. Only a written 0 is 0.
        return None
    # Adding 0.0 makes -0.0 a plain zero.
    return number + 0.0


def _plain(digits: str, kind: str) -> float:
    """The number that matched digits with their separators stand for."""
    if kind == "angle":
        return float(digits.replace(",", "."))
    digits = re.sub(r"[ '’]", "", digits)
    if digits.count(".") > 1:
        return float(digits.replace(".", "").replace(",", "."))
    if re.fullmatch(r"[0-9]{1,3}(,[0-9]{2,3})*,[0-9]{3}(\.[0-9]+)?", digits):
        return float(digits.replace(",", ""))
    return float(digits.replace(",", "."))


def _year(line: str) -> float | None:
    skipped = [match.span() for match in _NO_YEAR.finditer(line)]
    for match in _FIRST["year"].finditer(line):
        if any(start <= match.start("digits") < end for start, end in skipped):
            continue
        year = _plain(match["digits"], "year")
        era = _ERA_AFTER.match(line, match.end())
        before_christ = era is not None and era["bc"] is not None
        if match["sign"] == "-" or before_christ or (era is None and _ERA_BEFORE.search(line[: match.start()])):
            year = -year
        magnitude = _MAGNITUDE.match(line, match.end())
        if magnitude is not None and magnitude["word"].lower() in _MAGNITUDES:
            return None
        if not YEAR_RANGE[0] <= year <= YEAR_RANGE[1]:
            return None
        return year if year == round(year) and year != 0 else None
    return None


def _quantity(line: str, match: re.Match[str], number: float, unit: str | None) -> float | None:
    end = match.end()
    power = _POWER.match(line, end)
    if power is not None:
        exponent = power["caret"] or power["exponent"] or power["raised"].translate(_SUPERSCRIPTS)
        # Through text, as a power too large is then infinite and hence missing, where ** would raise.
        number *= float(f"1e{exponent}")
        end = power.end()
    magnitudes = _PEOPLE_MAGNITUDES if unit == "people" else _MAGNITUDES
    magnitude = _MAGNITUDE.match(line, end)
    if magnitude is not None and magnitude["word"].lower() in magnitudes:
        number *= magnitudes[magnitude["word"].lower()]
        end = magnitude.end()
    if unit in ("metres", "square kilometres"):
        for pattern, to, factor in _UNIT:
            written = pattern.match(line, end)
            if written is not None:
                if to != unit:
                    return None
                number *= factor
                end = written.end()
                break
    if unit == "metres" and _BELOW_SEA.match(line, end):
        number = -abs(number)
    return number


def _angle(line: str, match: re.Match[str], number: float) -> float | None:
    arc = _ARC.match(line, match.end())
    size, negative = abs(number), match["sign"] == "-"
    side = ""
    if arc is not None:
        size += float(arc["minutes"] or 0) / 60 + float(arc["seconds"] or 0) / 3600
        side = (arc["side"] or "")[:1].upper()
    if side in ("S", "W") or (side == "" and _SIDE_BEFORE.search(line[: match.start()])):
        negative = True
    if size > 180:
        return None
    return -size if negative else size
