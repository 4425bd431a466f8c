"""Rows of prompts: what a file may hold, and what is said of one that holds something else."""

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from inscape.data.facts import Facts
from inscape.data.properties import PROPERTIES
from inscape.errors import InputError
from inscape.studies.causal_tracing_rows import FIELDS, read_rows, rows_of_facts, table_of
from inscape.training.sizes import world_of

GOOD = {"prompt": "The Eiffel Tower is in the city of", "subject": "The Eiffel Tower", "answer": " Paris"}


def written(tmp_path: Path, *lines: object) -> Path:
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(line + "\n" if isinstance(line, str) else json.dumps(line) + "\n" for line in lines))
    return path


def test_rows_are_read_in_order_with_ids_of_their_lines(tmp_path):
    path = written(tmp_path, GOOD, "", {**GOOD, "id": 7, "corrupt_subject": "The Colosseum", "corrupt_answer": " Rome"})
    rows = read_rows(path, prefix="Well: ")
    assert [row.id for row in rows.rows] == ["line 1", "7"]
    assert rows.rows[0].prompt == "Well: The Eiffel Tower is in the city of"
    assert rows.rows[0].start == 6
    assert rows.rows[1].about("The Colosseum") == "Well: The Colosseum is in the city of"
    assert rows.rows[0].corrupt_subject is None
    assert rows.notes == ()
    assert table_of(rows)["corrupt_answer"].to_list() == [None, " Rome"]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{", "not JSON"),
        ("[1]", "a list, expected an object"),
        ("3", "a number, expected an object"),
        (json.dumps({k: v for k, v in GOOD.items() if k != "subject"}), "no subject"),
        (json.dumps({**GOOD, "answer": None}), "no answer"),
        (json.dumps({**GOOD, "answer": "  "}), "answer is empty"),
        (json.dumps({**GOOD, "prompt": ""}), "prompt is empty"),
        (json.dumps({**GOOD, "answer": 4}), "answer is a number, expected a text"),
        (json.dumps({**GOOD, "id": True}), "id is a truth value"),
        (json.dumps({**GOOD, "object": "Paris"}), "no field 'object'"),
        (json.dumps({**GOOD, "subject": "The Louvre"}), "'The Louvre' does not occur"),
        (json.dumps({**GOOD, "subject": "e"}), "occurs 4 times"),
        (json.dumps({"prompt": "aaa is", "subject": "aa", "answer": " b"}), "occurs 2 times"),
        (json.dumps({**GOOD, "corrupt_answer": " Rome"}), "corrupt_answer without a corrupt_subject"),
        (json.dumps({**GOOD, "corrupt_subject": GOOD["subject"]}), "corrupt_subject is the subject"),
        (json.dumps({**GOOD, "corrupt_subject": "It", "corrupt_answer": " Paris"}), "corrupt_answer is the answer"),
        (json.dumps({**GOOD, "answer": " \ud800"}), "surrogate"),
        (json.dumps({**GOOD, "id": "line 1"}), "the id 'line 1' is that of line 1 too"),
    ],
)
def test_a_bad_row_is_refused_with_file_and_line(line, says, tmp_path):
    path = written(tmp_path, GOOD, line)
    with pytest.raises(InputError) as refused:
        read_rows(path)
    assert f"{path}, line 2: " in str(refused.value)
    assert says in str(refused.value)


def test_files_that_hold_no_rows(tmp_path):
    with pytest.raises(InputError, match="No such file"):
        read_rows(tmp_path / "nowhere.jsonl")
    with pytest.raises(InputError, match="Is a directory"):
        read_rows(tmp_path)
    with pytest.raises(InputError, match="no rows"):
        read_rows(written(tmp_path, "", "  "))
    (tmp_path / "latin.jsonl").write_bytes(b'{"prompt": "caf\xe9"}')
    with pytest.raises(InputError, match="not UTF-8"):
        read_rows(tmp_path / "latin.jsonl")


def test_an_answer_glued_to_its_prompt_is_told(tmp_path):
    rows = read_rows(written(tmp_path, {**GOOD, "answer": "Paris"}, {**GOOD, "id": "b"}))
    assert len(rows.notes) == 1
    assert "1 rows (line 1)" in rows.notes[0]


texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(texts, texts, texts, texts, st.booleans()), min_size=1, max_size=5),
    st.dictionaries(
        st.sampled_from([*FIELDS, "other"]), st.none() | st.integers() | texts | st.lists(texts, max_size=1)
    ),
)
def test_whatever_a_line_holds_it_is_a_row_or_refused_with_its_line(tmp_path, good, bad):
    """Good rows come back as they were written, whatever is in them; any other line names itself."""
    objects = []
    for before, subject, after, answer, spaced in good:
        row = {"prompt": before + subject + after, "subject": subject, "answer": " " + answer if spaced else answer}
        if all(text.strip() for text in row.values()) and _once(row["prompt"], subject):
            objects.append(row)
    path = tmp_path / "p.jsonl"
    path.write_text("".join(json.dumps(o, ensure_ascii=False) + "\n" for o in objects), encoding="utf-8")
    if objects:
        assert [{k: getattr(r, k) for k in ("prompt", "subject", "answer")} for r in read_rows(path).rows] == objects
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(bad) + "\n")
    try:
        assert len(read_rows(path).rows) == len(objects) + 1
    except InputError as error:
        assert f"{path}, line {len(objects) + 1}: " in str(error)  # noqa: PT017


def _once(text: str, part: str) -> bool:
    return text.find(part) == text.rfind(part)


def test_rows_of_facts_ask_the_question_and_answer_as_text_writes_it():
    facts = world_of("smoke", 0)
    prop = PROPERTIES["birth_year"]
    rows = rows_of_facts(facts, prop, 1, prefix=" ")
    first = facts.of("birth_year").row(0, named=True)
    assert rows.rows[0].prompt == f" When was {first['label']} born?"
    assert rows.rows[0].answer == f" {first['value']:.0f}"
    assert len(rows.rows) == facts.of("birth_year").height
    with pytest.raises(InputError, match="6 questions"):
        rows_of_facts(facts, prop, 6)


def test_a_name_that_is_also_a_word_of_the_question_is_left_out_and_counted():
    facts = world_of("smoke", 0)
    rows = facts.rows.to_dicts()
    rows[0]["label"] = "was"
    changed = rows_of_facts(
        Facts(type(facts.rows)(rows, schema=facts.rows.schema), "here"), PROPERTIES["birth_year"], 0
    )
    assert len(changed.rows) == facts.of("birth_year").height - 1
    assert "1 entities were left out" in changed.notes[-1]
