"""Roles of tokens, which token stands for which, and who is paired with whom."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

import inscape
from inscape.errors import InputError
from inscape.studies.causal_tracing_rows import Row
from inscape.studies.causal_tracing_tokens import (
    BEFORE,
    FIRST,
    FURTHER,
    LAST,
    LAST_SUBJECT,
    MIDDLE,
    NEXT,
    ROLES,
    SO_FAR,
    Question,
    counterparts,
    first_difference,
    partners,
    question_of,
)


@st.composite
def questions(draw: st.DrawFn) -> Question:
    before, subject, after, told = (draw(st.integers(low, 5)) for low in (0, 1, 0, 0))
    length = before + subject + after + told
    ids = tuple(draw(st.lists(st.integers(0, 9), min_size=length, max_size=length)))
    return Question(ids, before, before + subject - 1, (1,), told)


@given(questions())
def test_every_token_has_one_role_in_the_order_of_the_prompt(q):
    roles = q.roles()
    assert len(roles) == len(q.ids)
    order = [ROLES.index(role) for role in roles]
    assert order == sorted(order)
    assert roles.count(LAST_SUBJECT) == 1
    assert roles[q.last] == LAST_SUBJECT
    assert roles.count(BEFORE) == q.first
    assert sum(role in (FIRST, MIDDLE, LAST_SUBJECT) for role in roles) == q.last - q.first + 1
    assert roles.count(SO_FAR) == q.told
    after = len(q.ids) - q.told - q.last - 1
    assert roles.count(LAST) == (after > 0)
    assert roles.count(NEXT) == (after > 1)
    assert roles.count(FURTHER) == max(0, after - 2)


@given(questions(), questions())
def test_counterparts_are_one_to_one_in_order_and_never_cross_the_subject(target, donor):
    pairs = counterparts(target, donor)
    assert list(pairs) == sorted(pairs)
    assert list(pairs.values()) == sorted(set(pairs.values()))
    assert pairs[target.last] == donor.last
    for here, there in pairs.items():
        assert target.first <= here < len(target.ids)
        assert donor.first <= there < len(donor.ids)
        assert (here <= target.last) == (there <= donor.last)
    subjects = min(target.last - target.first, donor.last - donor.first) + 1
    later = min(len(target.ids) - target.last, len(donor.ids) - donor.last) - 1
    assert len(pairs) == subjects + later
    if later:
        assert pairs[len(target.ids) - 1] == len(donor.ids) - 1


@given(questions())
def test_a_prompt_is_its_own_counterpart(q):
    assert counterparts(q, q) == {i: i for i in range(q.first, len(q.ids))}


def test_first_difference():
    assert first_difference([1, 2, 3], [1, 5]) == 1
    assert first_difference([1], [1, 2]) is None


def row(name: str, subject: str, wording: str = "Where is {} now?", corrupt: str | None = None) -> Row:
    return Row(name, wording.replace("{}", subject), subject, " x", corrupt)


def test_partners_have_another_answer_the_same_wording_and_if_possible_the_same_length():
    rows = [row("a", "Ann"), row("b", "Bo"), row("c", "Cy"), row("d", "Di"), row("e", "Ed", "Who is {}?")]
    asked = [
        Question((1, 2), 0, 0, (5,)),
        Question((1, 2), 0, 0, (5, 6)),  # its answer begins with a's
        Question((1, 2, 3), 0, 1, (7,)),
        Question((1, 2), 0, 0, (8,)),
        Question((1, 2), 0, 0, (9,)),
    ]
    for seed in range(8):
        found = partners(rows, asked, range(5), seed)
        assert found == partners(rows, asked, range(5), seed)
        assert [found[i].corrupt for i in (0, 1, 4)] == [3, 3, None]
        assert found[0].unrelated == 2  # the same wording, though not the same length, goes before another wording
        assert found[3].corrupt in (0, 1)
        assert found[4].unrelated in (0, 1, 3)
    assert {partners(rows, asked, range(5), seed)[3].corrupt for seed in range(30)} == {0, 1}
    only_two = partners(rows, asked, [0, 3], 0)
    assert [(p.corrupt, p.unrelated) for p in only_two] == [(3, None), (0, None)]


def test_a_row_that_says_what_corrupts_it_gets_no_partner_and_another_unrelated_subject():
    rows = [row("a", "Ann", corrupt="Cy"), row("c", "Cy"), row("d", "Di")]
    asked = [Question((1, 2), 0, 0, (i,)) for i in range(3)]
    for seed in range(8):
        found = partners(rows, asked, [0, 1, 2], seed)[0]
        assert (found.corrupt, found.unrelated) == (None, 2)


def test_the_subject_is_found_by_its_characters(smoke_model):
    lm = inscape.load(smoke_model)
    asked = question_of(lm, Row("a", "In what year was Gusoum Skegous born?", "Gusoum Skegous", " 1831"))
    tokens = lm.tokenizer.convert_ids_to_tokens(list(asked.ids))
    assert "".join(tokens[asked.first : asked.last + 1]) == "ĠGusoumĠSkegous"
    assert lm.tokenizer.decode(list(asked.answer)).strip() == "1831"
    told = asked.telling(asked.answer[:2])
    assert told.ids == asked.ids + asked.answer[:2]
    assert told.roles()[-3:] == [LAST, SO_FAR, SO_FAR]


def test_a_subject_that_runs_into_the_answer_is_refused_with_its_place(smoke_model):
    lm = inscape.load(smoke_model)
    with pytest.raises(InputError, match=r"here, line 3: .*the end of the subject and the beginning of the answer"):
        question_of(lm, Row("a", "When was he bo", "bo", "rn?", place="here, line 3"))
