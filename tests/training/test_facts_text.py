import re

import numpy as np
import polars as pl
import pytest
from pydantic import ValidationError

from inscape.data.facts import Facts
from inscape.data.properties import PROPERTIES
from inscape.data.worlds.numeric import NumericWorldSpec, numeric_world
from inscape.training.facts_text import FactsText, TextMix, pair_is_held_out, vocabulary_texts
from inscape.training.ordinal import COARSE_QUESTIONS, THRESHOLD_QUESTIONS, coarse_answer, round_values
from inscape.training.tokenizer import END, fit_tokenizer


def facts_table(rows):
    return Facts(
        pl.DataFrame(
            [(name, split, id_, label, float(value), None) for name, split, id_, label, value in rows],
            schema={"property": pl.String, "split": pl.String, "entity_id": pl.String, "label": pl.String,
                    "value": pl.Float64, "popularity": pl.Float64},
            orient="row",
        ),
        "test table",
    )  # fmt: skip


HARD_LABELS = [
    ("birth_year", "train", "Q1", "Sammy Davis Jr.", 1925),
    ("birth_year", "train", "Q2", "Zoë O'Hara-Núñez", 1801),
    ("birth_year", "dev", "Q3", "John Strutt, 3rd Baron Rayleigh", 1842),
    ("birth_year", "test", "Q4", "Julius Caesar", -100),
    ("area", "train", "Q5", "2 (islet)", 0.28),
    ("area", "train", "Q6", "Ōtsu", 464),
    ("area", "test", "Q7", "'s-Hertogenbosch", 118),
]


@pytest.fixture(scope="module")
def world():
    return numeric_world(NumericWorldSpec(n_people=30, n_places=20, seed=2))


def text_of(facts, **kwargs):
    tokenizer = fit_tokenizer(vocabulary_texts(facts))
    return FactsText(facts, tokenizer, kwargs.pop("mix", TextMix()), **kwargs), tokenizer


def test_a_batch_follows_from_seed_and_step(world):
    (text, _), (again, _) = text_of(world), text_of(world)
    text.batch(0, 3, 8, 32)  # an earlier batch leaves no trace
    for first, second in zip(text.batch(5, 7, 8, 32), again.batch(5, 7, 8, 32), strict=True):
        assert np.array_equal(first, second)
    assert not np.array_equal(text.batch(5, 7, 8, 32)[0], text.batch(5, 8, 8, 32)[0])
    assert not np.array_equal(text.batch(5, 7, 8, 32)[0], text.batch(6, 7, 8, 32)[0])


@pytest.mark.parametrize("source", ["world", "hard"])
def test_pieces_make_the_tokens_of_the_whole_sentence(source, world):
    facts = world if source == "world" else facts_table(HARD_LABELS)
    text, tokenizer = text_of(facts)
    rng = np.random.default_rng(0)
    for _ in range(500):
        sentence = text.sentence(rng)
        assert sentence.ids[-1] == tokenizer.eos_token_id
        words = tokenizer.decode(sentence.ids[:-1])
        assert tokenizer(words)["input_ids"] == sentence.ids[:-1], words
        assert len(sentence.ids) <= text.longest()


def test_every_sentence_is_true(world):
    """Parsed back from the words alone, against the table: a check that shares no code with the generator."""
    text, tokenizer = text_of(world)
    values = {(row["property"], row["label"]): row["value"] for row in world.rows.iter_rows(named=True)}
    patterns = []
    for name in world.properties:
        prop = PROPERTIES[name]

        def regex(template):
            escaped = re.escape(template).replace(r"\{", "{").replace(r"\}", "}")
            # What follows a question mark is the answer; a statement has none.
            return re.compile("^" + re.sub(r"\{(\w+)\}", r"(?P<\1>.+?)", escaped) + r"(?P<answer>(?<=\?).*|)$")

        patterns += [("value", prop, None, regex(t)) for t in (*prop.questions, *prop.statements)]
        patterns += [("coarse", prop, None, regex(t)) for t in COARSE_QUESTIONS[name]]
        patterns += [("yes", prop, c, regex(c.template)) for c in (*prop.comparisons, *THRESHOLD_QUESTIONS[name])]
    rng = np.random.default_rng(1)
    seen = set()
    for _ in range(1500):
        words = tokenizer.decode(text.sentence(rng).ids[:-1])
        checked = False
        for kind, prop, comparison, pattern in patterns:
            match = pattern.match(words)
            if not match:
                continue
            groups = match.groupdict()
            x = values.get((prop.name, groups.get("subj") or groups.get("x")))
            answer = groups["answer"].strip()
            if kind == "value" and x is not None and "value" in groups and not answer:
                checked, said = True, groups["value"]
                assert said == prop.format(x), words
            elif kind == "value" and x is not None and "value" not in groups:
                checked = True
                assert answer == prop.format(x), words
            elif kind == "coarse" and x is not None:
                checked = True
                assert answer == coarse_answer(prop, x), words
            elif kind == "yes" and x is not None:
                y = values.get((prop.name, groups["y"]))
                if y is None and not re.fullmatch(r"-?[\d.]+", groups["y"]):
                    continue  # "Is X higher than Y?" also fits "Is X higher than 500 metres?"
                y = float(groups["y"]) if y is None else y
                checked = True
                assert answer == ("Yes" if (x < y) == (comparison.yes_if == "less") and x != y else "No"), words
                assert x != y, words
            if checked:
                seen.add((kind, prop.name, answer if kind == "yes" else ""))
                break
        assert checked, words
    assert len(seen) == 4 * len(world.properties)  # value, coarse, yes and no, of each


def test_shares_of_the_kinds_of_sentences(world):
    mix = TextMix(statement=1, question=1, comparison=1, threshold=1, coarse=0)
    text, tokenizer = text_of(world, mix=mix)
    rng = np.random.default_rng(0)
    words = [tokenizer.decode(text.sentence(rng).ids[:-1]) for _ in range(2000)]
    yes_no = np.mean([sentence.endswith((" Yes", " No")) for sentence in words])
    assert abs(yes_no - 0.5) < 5 * np.sqrt(0.25 / 2000)
    statements = np.mean([sentence.endswith(".") or "?" not in sentence for sentence in words])
    assert abs(statements - 0.25) < 5 * np.sqrt(0.19 / 2000)


def test_held_out_pairs_are_never_compared(world):
    text, tokenizer = text_of(world, mix=TextMix(statement=0, question=0.01, comparison=1, threshold=0, coarse=0),
                              held_out_pairs=0.5)  # fmt: skip
    ids = dict(world.rows.select("label", "entity_id").iter_rows())
    rng = np.random.default_rng(0)
    compared = 0
    for _ in range(500):
        words = tokenizer.decode(text.sentence(rng).ids)
        names = [label for label in ids if re.search(rf"\b{label}\b", words)]
        if len(names) == 2:
            compared += 1
            assert not pair_is_held_out(ids[names[0]], ids[names[1]], 0.5)
    assert compared > 300


def test_share_of_held_out_pairs_and_symmetry():
    pairs = [(f"Q{i}", f"Q{j}") for i in range(100) for j in range(i)]
    held = [pair_is_held_out(x, y, 0.1) for x, y in pairs]
    assert np.mean(held) == pytest.approx(0.1, abs=0.02)
    assert held == [pair_is_held_out(y, x, 0.1) for x, y in pairs]
    assert not any(pair_is_held_out(x, y, 0.0) for x, y in pairs)


def test_loss_weights(world):
    text, tokenizer = text_of(world, text_weight=0.25)
    ids, weights = text.batch(0, 0, 4, 64)
    assert ids.dtype == np.int64
    assert weights.dtype == np.float32
    assert set(np.unique(weights)) == {0.25, 1.0, 3.0}
    sentence = text.question("birth_year", 3, 0)
    answer = tokenizer.decode([i for i, w in zip(sentence.ids, sentence.weights, strict=True) if w == 1.0])
    assert answer == f"{PROPERTIES['birth_year'].format(world.of('birth_year')['value'][3])}{END}"


def test_of_namesakes_one_is_told_and_the_notes_say_so():
    facts = facts_table(
        [
            ("population", "train", "Q1", "Springfield", 100),
            ("population", "test", "Q2", "Springfield", 200),
            ("population", "dev", "Q3", "Salem", 300),
        ]
    )
    text, _ = text_of(facts)
    assert text.properties["population"].keys == text.facts.rows["entity_id"].to_list()
    assert sorted(text.facts.rows["label"]) == ["Salem", "Springfield"]
    assert "Springfield (Q2)" in text.facts.notes[-1]


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("birth_year", 1900, "19th century"),
        ("birth_year", 1901, "20th century"),
        ("birth_year", 1, "1st century"),
        ("birth_year", 1150, "12th century"),
        ("birth_year", 2001, "21st century"),
        ("birth_year", -44, "1st century BC"),
        ("birth_year", -101, "2nd century BC"),
        ("population", 80296, "5"),
        ("elevation", 449, "400"),
        ("elevation", -125, "-100"),
        ("area", 0.28, "1"),
        ("latitude", -33.9, "-30"),
        ("longitude", 4.8, "0"),
    ],
)
def test_coarse_answers(name, value, expected):
    assert coarse_answer(PROPERTIES[name], value) == expected


def test_round_values_are_round_different_and_inside():
    rng = np.random.default_rng(0)
    years = round_values(PROPERTIES["birth_year"], rng.integers(1500, 2000, 400).astype(float))
    assert np.all(years % 10 == 0)
    assert 1490 <= years.min() < years.max() <= 2000
    assert len(years) > 35
    assert 0 not in round_values(PROPERTIES["birth_year"], np.arange(-40.0, 41.0))
    people = round_values(PROPERTIES["population"], np.exp(rng.normal(10, 1.5, 400)))
    assert all(len(PROPERTIES["population"].format(v).rstrip("0")) <= 2 for v in people)
    assert np.all(np.diff(people) > 0)
    assert np.all(round_values(PROPERTIES["latitude"], rng.uniform(-60, 70, 400)) % 5 == 0)


def test_every_property_can_be_told():
    assert set(THRESHOLD_QUESTIONS) == set(COARSE_QUESTIONS) == set(PROPERTIES)
    for name, questions in THRESHOLD_QUESTIONS.items():
        assert {question.yes_if for question in questions} == {"less", "greater"}, name


def test_equal_values_leave_nothing_to_compare_but_the_text_goes_on():
    facts = facts_table([("elevation", "train", f"Q{i}", f"Place{chr(97 + i)}", 5) for i in range(5)])
    text, tokenizer = text_of(facts)
    rng = np.random.default_rng(0)
    assert all(
        tokenizer.decode(text.sentence(rng).ids)
        for _ in range(50)
    )  # fmt: skip


def test_mix_without_questions_is_refused():
    with pytest.raises(ValidationError, match="question"):
        TextMix(question=0)
    with pytest.raises(ValidationError, match="sentences"):
        TextMix(sentences=1)
