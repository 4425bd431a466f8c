"""Markup, filters, personal data, language: against texts whose answer is plain, and against slow definitions."""

import math
import random
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inscape.data.corpus import filters, language_id
from inscape.data.corpus.markup import remove_markup
from inscape.data.corpus.pii import replace_pii

ENGLISH = (
    "The people of the town had been waiting for the train since the early morning, and when it came at last there were "
    "so many of them that not all could get on. Those who stayed went home over the hill, talking about the weather."
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('Open the <gui xref="a#b">Activities</gui> overview.', "Open the Activities overview."),
        ("<keyseq><key>Ctrl</key><key>C</key></keyseq>", "Ctrl+C"),
        ("<guiseq><gui>File</gui> <gui style='menuitem'>Open</gui></guiseq>", "File ▸ Open"),
        ("a < b &lt;x&gt; <_:media-1/> &amp; 3 <4", "a < b <x>  & 3 <4"),
        ("<link xref=\"net-wireless\" style='2'>संजाल</link>", "संजाल"),
    ],
)
def test_mallard(text, expected):
    assert remove_markup(text, "mallard") == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (":mod:`~email.parser` and :func:`!open`", "parser and open"),
        ("see :ref:`contribuir <contributing-to-python>`.", "see contribuir."),
        ("`Docutils <https://docutils.sourceforge.io/>`_ and `reST`_", "Docutils and reST"),
        ("**will be** *changed*, f(*args, **kwargs) stays", "will be changed, f(*args, **kwargs) stays"),
        ("``*args`` and ``a_``", "*args and a_"),
        ("non-\\ ``NULL`` \\*", "non-NULL *"),
        ("since |version| of __init__ and a_b", "since version of __init__ and a_b"),
        (">>> print(f'*a* `b`', **kw)", ">>> print(f'*a* `b`', **kw)"),
        ("as follows::\nx = 1", "as follows:\nx = 1"),
        (".. note:: Take care.\n.. _label:\n.. image:: a.png\n   :alt: x\nText", "Take care.\n\na.png\nText"),
    ],
)
def test_restructured_text(text, expected):
    assert remove_markup(text, "rest") == expected


def test_html_keeps_what_a_reader_sees():
    page = (
        "<!DOCTYPE html><html><head><title>t</title></head><body><!-- no --><p>a<b>c</b></p>\n<script>if (1<2) x()</script>"
        "<ul><li>d &amp; e</li><li>List&lt;T&gt;</li></ul></body></html>"
    )
    assert remove_markup(page, "html") == "ac\nd & e\nList<T>"


def test_no_markup_asked_for_is_none_removed():
    assert remove_markup("List<String> *a* :x:`y`", "none") == "List<String> *a* :x:`y`"


@pytest.mark.parametrize(
    ("text", "expected", "found"),
    [
        ("Write to Ann.Lee+x@mail.example.co.uk now", "Write to PI:EMAIL now", {"EMAIL": 1}),
        ("thanks @some_one!", "thanks PI:USER!", {"USER": 1}),
        ("host 192.168.1.20 and 2001:db8::ff00:42:8329,", "host PI:IP_ADDRESS and PI:IP_ADDRESS,", {"IP_ADDRESS": 2}),
        ("127.0.0.1 255.255.255.0 ::1 version 3.11.0.1 at 12:30:45", None, {}),
        ("999.1.1.1 and 1.2.3.4.5 and 10:20::", None, {}),
        ("key AKIAIOSFODNN7EXAMPLE here", "key PI:KEY here", {"KEY": 1}),
        ("sum 9e107d9d372bb6826bd81d3542a419d6", "sum PI:KEY", {"KEY": 1}),
        ("internationalization_of_the_very_long_identifier", None, {}),
    ],
)
def test_personal_data(text, expected, found):
    assert replace_pii(text) == (text if expected is None else expected, Counter(found))


def test_only_the_kinds_asked_for():
    assert replace_pii("@property a@b.org", ("EMAIL",)) == ("@property PI:EMAIL", Counter(EMAIL=1))


def slow_character_repetition(text, n=10):
    """As in the BigScience data tools (`compute_character_repetition_ratio`), with counted strings."""
    counts = Counter(text[i : i + n] for i in range(len(text) - n + 1))
    if not counts:
        return 0.0
    ordered = sorted(counts.values(), reverse=True)
    ones = sum(count == 1 for count in ordered)
    return sum(ordered[: min(int(math.sqrt(len(ordered))), len(ordered) - ones)]) / sum(ordered)


def slow_word_repetition(words, n=5):
    counts = Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))
    return sum(count for count in counts.values() if count > 1) / max(1, sum(counts.values()))


@settings(max_examples=60, deadline=None)
@given(st.text(alphabet="abé語 𝔸\n", max_size=200))
def test_repetition_is_what_counting_strings_gives(text):
    assert filters.character_repetition(filters.code_points(text)) == pytest.approx(slow_character_repetition(text))
    words = filters.words_of(text)
    assert filters.word_repetition(words) == pytest.approx(slow_word_repetition(words))


def test_words_of_scripts_with_and_without_spaces():
    assert filters.words_of("„Hello, (World)!“ don't — हिन्दी।") == ["hello", "world", "don't", "हिन्दी"]
    assert filters.words_of("日本語とPython 3を") == [*"日本語と", "python", "3", "を"]


def test_special_characters_are_neither_letters_nor_marks():
    text = "ab1 ,हि"
    assert filters.special_ratio(filters.code_points(text)) == pytest.approx(3 / len(text))


@pytest.mark.parametrize(
    ("text", "language", "step"),
    [
        (ENGLISH, "en", None),
        ("Too short to say anything.", "en", "length"),
        ("ha ha ha ha " * 20, "en", "character_repetition"),
        (" ".join(f"the {word} of a day is not" for word in ["best", "worst"] * 20), "fr", "character_repetition"),
        ("1 2 3, 4; 5: " + "a 7 8 9 0 ! " * 1 + "5 6 7 @ # $ % ^ & 1 4 2 8 5 7", "sv", "special_characters"),
        (
            " ".join(word for word in ENGLISH.split() if len(word) > 4) + " seven brown cats run down wide road",
            "en",
            "stop_words",
        ),
        (ENGLISH, "es", "stop_words"),
        (ENGLISH, "wo", None),
    ],
)
def test_the_filter_that_a_text_fails(text, language, step):
    assert filters.failed(text, language) == step
    assert step is None or filters.failed(text, language, (step,)) != step


def test_thresholds_of_the_paper_by_base_language():
    assert filters.thresholds("zh-Hant") is filters.THRESHOLDS["zh"]
    assert filters.thresholds("en").character_repetition == 0.106
    assert filters.thresholds("ro") == filters.DEFAULT


def test_indentation_is_no_repetition():
    assert filters.failed(ENGLISH.replace(" ", "\n" + " " * 12), "en") is None


def test_windows_hash_equal_runs_alike_and_others_apart():
    draw = random.Random(0)
    values = np.array([draw.randrange(4) for _ in range(3000)])
    runs = [tuple(values[i : i + 6]) for i in range(len(values) - 5)]
    hashes = filters.windows(values, 6)
    assert len(set(zip(runs, hashes.tolist(), strict=True))) == len(set(runs)) == len(set(hashes.tolist()))


def test_language_is_told_where_it_can_be():
    german = (
        "Die Menschen der Stadt hatten seit dem frühen Morgen auf den Zug gewartet, und als er kam, waren es zu viele."
    )
    assert language_id.probability(german, "de") > 0.9
    assert language_id.probability(german, "en") < 0.1
    assert language_id.probability("kurz", "de") is None
    assert language_id.probability(german, "wo") is None
    assert not language_id.knows("wo")
    assert language_id.knows("zh-Hant")
