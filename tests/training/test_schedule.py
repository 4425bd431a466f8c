"""Learning rate and rows of a step; budgets of tokens."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from inscape.errors import InputError
from inscape.training.schedule import Course, Schedule


def test_warm_up_cosine_and_floor_without_a_ramp():
    s = Schedule(steps=1000, rows=4, learning_rate=2.0, warmup_share=0.1, final_share=0.1)
    assert s.rate_at(0) == pytest.approx(2.0 / 100)
    assert s.rate_at(99) == pytest.approx(2.0)
    assert s.rate_at(999) == pytest.approx(0.2)
    halfway = (0.5 + 0.001 * 50 - 0.1) / 0.9  # step 549 ends after 55 % of the rows
    assert s.rate_at(549) == pytest.approx(2.0 * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * halfway))))


def test_a_constant_rate():
    s = Schedule(steps=10, learning_rate=2.0, shape="constant", warmup_share=0)
    assert {s.rate_at(step) for step in range(10)} == {2.0}


def test_the_ramp_of_the_paper_grows_by_equal_amounts_over_equal_times():
    s = Schedule(steps=1000, rows=64, ramp_from=16, ramp_by=16, ramp_share=0.3)
    rows = [s.rows_at(step) for step in range(1000)]
    assert rows[:300] == [16] * 100 + [32] * 100 + [48] * 100
    assert set(rows[300:]) == {64}


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 400), st.integers(1, 40), st.integers(1, 40), st.integers(1, 9), st.floats(0, 1))
def test_rows_before_are_a_sum_and_never_fall(steps, rows, first, by, share):
    s = Schedule(steps=steps, rows=max(rows, first), ramp_from=first, ramp_by=by, ramp_share=share)
    each = [s.rows_at(step) for step in range(steps)]
    assert each == sorted(each)
    assert max(each) <= s.rows
    assert [s.rows_before(step) for step in range(steps + 1)] == [sum(each[:step]) for step in range(steps + 1)]
    assert s.total_rows == sum(each)


@settings(max_examples=60, deadline=None)
@given(st.integers(200, 100_000), st.integers(1, 12), st.booleans())
def test_a_budget_of_tokens_is_used_up_and_not_exceeded(tokens, rows, ramp):
    course = Course(rows=2 * rows, ramp_from=rows if ramp else None, ramp_by=3, ramp_share=0.2)
    found = course.within(tokens, 8)
    assert found.total_rows * 8 <= tokens < course.over(found.steps + 1).total_rows * 8 + 8 * 2 * rows


def test_impossible_ones_are_refused():
    with pytest.raises(ValidationError, match="ramp_from 9 with rows 8"):
        Schedule(rows=8, ramp_from=9)
    with pytest.raises(InputError, match="a budget of 100 tokens, expected at least those of one step, 2048"):
        Course(rows=8).within(100, 256)
