"""Comparison pairs and entity splits (acceptance check A12)."""

import itertools

import numpy as np
import polars as pl
import pytest
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score

from inscape.data.pairs import (
    comparison_pairs,
    entity_split,
    pair_entities,
    require_entity_disjoint,
    swapped,
)
from inscape.data.properties import PROPERTIES, Comparison
from inscape.errors import InputError

LESS = Comparison("Was {x} born before {y}?", "less")
GREATER = Comparison("Is {x} higher than {y}?", "greater")


def _rows(n: int, seed: int = 0, splits: tuple[str, ...] = ("train", "test"), distinct: int = 60) -> pl.DataFrame:
    rng = np.random.default_rng(seed)
    return pl.DataFrame(
        {
            "entity_id": [f"E{i}" for i in range(n)],
            "label": [f"Name {i}" for i in range(n)],
            # Few distinct values, so that ties are common.
            "value": rng.integers(0, distinct, n).astype(float),
            "split": [splits[i % len(splits)] for i in range(n)],
        }
    )


@pytest.mark.parametrize("name", PROPERTIES)
def test_labels_balance_and_follow_the_wording_of_every_comparison(name: str) -> None:
    rows = _rows(80)
    values = dict(rows.select("entity_id", "value").iter_rows())
    # The side that Yes stands for, read from the words and not from the field under test.
    smaller = ("before", "older", "earlier", "smaller", "fewer", "lower", "less", "south", "west")
    larger = ("after", "younger", "later", "larger", "more", "higher", "further above", "north", "east", "longer")
    for comparison in PROPERTIES[name].comparisons:
        words = comparison.template.replace("?", "").lower().split()
        if "further" in words and "above" in words:
            words.append("higher")
        asks_smaller, asks_larger = (bool(set(words) & set(side)) for side in (smaller, larger))
        assert asks_smaller != asks_larger, comparison.template
        pairs = comparison_pairs(rows, comparison, 100, seed=1)
        for row in pairs.iter_rows(named=True):
            x, y = values[row["x_id"]], values[row["y_id"]]
            assert (x, y) == (row["x_value"], row["y_value"])
            assert row["label"] == ("Yes" if (x < y if asks_smaller else x > y) else "No")
        assert pairs.group_by("split", "label").len()["len"].to_list() == [50] * 4


def test_pairs_are_distinct_without_self_pairs_ties_or_crossings() -> None:
    rows = _rows(60)
    split_of = dict(rows.select("entity_id", "split").iter_rows())
    pairs = comparison_pairs(rows, LESS, 300, seed=0)
    assert pairs.height == 600
    assert pairs["pair_id"].n_unique() == 600
    unordered = {frozenset(pair) for pair in pairs.select("x_id", "y_id").iter_rows()}
    assert len(unordered) == 600
    assert all(len(pair) == 2 for pair in unordered)
    assert (pairs["x_value"] != pairs["y_value"]).all()
    assert all({split_of[x], split_of[y]} == {s} for x, y, s in pairs.select("x_id", "y_id", "split").iter_rows())
    parts = {split: part for (split,), part in pairs.partition_by("split", as_dict=True).items()}
    require_entity_disjoint(pair_entities(parts["train"]), pair_entities(parts["test"]))


@pytest.mark.parametrize(("min_gap", "strata"), [(0.0, 1), (7.0, 1), (0.0, 3), (3.0, 2)])
def test_every_pair_with_an_answer_can_be_drawn_and_no_other(min_gap: float, strata: int) -> None:
    rows = _rows(24, splits=("train",), distinct=30)
    ranked = rows.sort("value", "entity_id").rows()
    size = 24 // strata
    allowed = {
        "|".join(sorted((a[0], b[0])))
        for (i, a), (j, b) in itertools.combinations(enumerate(ranked), 2)
        if i // size == j // size and a[2] != b[2] and abs(a[2] - b[2]) >= min_gap
    }
    drawn: set[str] = set()
    for seed in range(250):
        drawn |= set(comparison_pairs(rows, LESS, 18, seed, min_gap=min_gap, strata=strata)["pair_id"])
    assert drawn == allowed
    if strata == 1:
        full = len(allowed) - len(allowed) % 2
        assert comparison_pairs(rows, LESS, full, 0, min_gap=min_gap)["pair_id"].n_unique() == full
        with pytest.raises(InputError, match=f"{len(allowed)} pairs of 24 entities"):
            comparison_pairs(rows, LESS, full + 2, 0, min_gap=min_gap)


def test_draw_is_uniform_over_pairs() -> None:
    rows = _rows(8, splits=("train",), distinct=10_000)
    counts = np.zeros((8, 8))
    for seed in range(600):
        for x, y in comparison_pairs(rows, LESS, 4, seed).select("x_id", "y_id").iter_rows():
            counts[int(x[1:]), int(y[1:])] += 1
    ordered = counts[~np.eye(8, dtype=bool)]
    # 2,400 draws over 56 ordered pairs: chi-square with 55 degrees of freedom exceeds 93.2 in 0.1 % of cases.
    assert ((ordered - 2400 / 56) ** 2 / (2400 / 56)).sum() < 93.2


def test_strata_take_the_single_entity_shortcut_away() -> None:
    rows = _rows(1000, splits=("train",), distinct=1_000_000)
    median = float(np.median(rows["value"]))

    def shortcut_accuracy(strata: int) -> float:
        pairs = comparison_pairs(rows, LESS, 2000, 0, strata=strata)
        return float(((pairs["x_value"] < median) == (pairs["label"] == "Yes")).mean())

    assert shortcut_accuracy(1) == pytest.approx(0.75, abs=0.03)
    assert shortcut_accuracy(10) == pytest.approx(0.5, abs=0.04)


def test_the_seed_decides_and_the_order_of_rows_does_not() -> None:
    rows = _rows(50)
    pairs = comparison_pairs(rows, LESS, 40, seed=3)
    assert pairs.equals(comparison_pairs(rows.reverse(), LESS, 40, seed=3))
    assert not pairs.equals(comparison_pairs(rows, LESS, 40, seed=4))
    # A split's pairs don't depend on which other splits are there.
    alone = comparison_pairs(rows.filter(pl.col("split") == "test"), LESS, 40, seed=3)
    assert alone.equals(pairs.filter(pl.col("split") == "test"))


@pytest.mark.parametrize("comparison", [LESS, GREATER])
def test_swapped_pairs_ask_the_other_way_round(comparison: Comparison) -> None:
    pairs = comparison_pairs(_rows(40), comparison, 60, seed=0)
    other = swapped(pairs)
    assert other.columns == pairs.columns
    for a, b in zip(pairs.iter_rows(named=True), other.iter_rows(named=True), strict=True):
        assert (b["x_id"], b["y_id"]) == (a["y_id"], a["x_id"])
        assert b["prompt"] == comparison.template.replace("{x}", a["y_label"]).replace("{y}", a["x_label"])
        assert {a["label"], b["label"]} == {"Yes", "No"}
        assert b["label"] == comparison.answer(b["x_value"], b["y_value"])
        assert a["pair_id"] == b["pair_id"]
    assert swapped(other).equals(pairs)


def test_names_with_braces_stand_in_prompts_as_they_are() -> None:
    rows = pl.DataFrame(
        {"entity_id": ["a", "b", "c"], "label": ["{y}", "{0}", "%s"], "value": [1.0, 2.0, 3.0], "split": ["train"] * 3}
    )
    pairs = comparison_pairs(rows, LESS, 2, seed=0)
    for row in [*pairs.iter_rows(named=True), *swapped(pairs).iter_rows(named=True)]:
        assert row["prompt"] == f"Was {row['x_label']} born before {row['y_label']}?"


@pytest.mark.parametrize(
    ("change", "arguments", "message"),
    [
        ({}, {"n": 3}, "n is 3"),
        ({}, {"n": 0}, "n is 0"),
        ({}, {"n": 2, "strata": 0}, "strata is 0"),
        ({}, {"n": 2, "min_gap": float("nan")}, "min_gap is nan"),
        ({"entity_id": ["a", "a"]}, {"n": 2}, "entity_id 'a' stands twice"),
        ({"label": ["A", "A"]}, {"n": 2}, "label 'A' stands twice"),
        ({"value": [1.0, float("nan")]}, {"n": 2}, "value is missing, NaN"),
        ({"value": [1.0, None]}, {"n": 2}, "value is missing, NaN"),
        ({"value": [1.0, 1.0]}, {"n": 2}, "0 pairs of 2 entities"),
    ],
)
def test_what_cannot_be_paired_is_refused(change: dict, arguments: dict, message: str) -> None:
    columns = {"entity_id": ["a", "b"], "label": ["A", "B"], "value": [1.0, 2.0], "split": ["train", "train"]}
    with pytest.raises(InputError, match=message):
        comparison_pairs(pl.DataFrame(columns | change), LESS, seed=0, **arguments)


def test_entity_split_keeps_entities_together_in_the_given_shares() -> None:
    ids = [f"E{i % 100}" for i in range(1000)]
    split = entity_split(ids, {"train": 0.7, "dev": 0.1, "test": 0.2}, seed=0)
    table = pl.DataFrame({"id": ids, "split": split}).unique()
    assert table["id"].n_unique() == table.height == 100
    assert dict(table.group_by("split").len().iter_rows()) == {"train": 70, "dev": 10, "test": 20}
    assert entity_split(ids[::-1], {"train": 0.7, "dev": 0.1, "test": 0.2}, seed=0).reverse().equals(split)
    assert not entity_split(ids, {"train": 0.7, "dev": 0.1, "test": 0.2}, seed=1).equals(split)


@pytest.mark.parametrize("fractions", [{}, {"train": 0.5}, {"train": 1.5, "test": -0.5}, {"train": 0.99, "test": 0.01}])
def test_entity_split_refuses_what_cannot_be(fractions: dict[str, float]) -> None:
    with pytest.raises(InputError, match="entity split"):
        entity_split(["a", "b", "c"], fractions, seed=0)


def test_row_splits_reward_identity_and_are_refused() -> None:
    """A12: features that hold nothing but the entity, values independent of them."""
    row_scores, entity_scores = [], []
    for seed in range(3):
        rng = np.random.default_rng(seed)
        entity_R = np.repeat(np.arange(150), 20)
        x_RD = rng.normal(size=(150, 256))[entity_R] + 0.5 * rng.normal(size=(3000, 256))
        y_R = rng.normal(size=150)[entity_R]
        ids = [f"E{entity}" for entity in entity_R]

        def score(train_R: np.ndarray, x_RD: np.ndarray = x_RD, y_R: np.ndarray = y_R) -> float:
            model = Ridge(1.0).fit(x_RD[train_R], y_R[train_R])
            return r2_score(y_R[~train_R], model.predict(x_RD[~train_R]))

        row_train_R = rng.random(3000) < 0.9
        row_scores.append(score(row_train_R))
        groups = np.array(ids)
        with pytest.raises(InputError, match=r"share \d+ of \d+ test entities \(E\d+, .*expected a split by entity"):
            require_entity_disjoint(groups[row_train_R], groups[~row_train_R])

        entity_train_R = (entity_split(ids, {"train": 0.9, "test": 0.1}, seed) == "train").to_numpy()
        require_entity_disjoint(groups[entity_train_R], groups[~entity_train_R])
        entity_scores.append(score(entity_train_R))
    assert np.mean(row_scores) == pytest.approx(0.75, abs=0.05)
    assert max(entity_scores) < 0
