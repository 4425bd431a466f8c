"""Comparison prompts over pairs of entities, and splits that keep entities apart.

The task is that of El-Shangiti et al. 2025 (arXiv 2410.13194): a yes/no question about two entities, half of the
answers Yes and half No. Three things are done differently from the released code, because there they decide results:

- The answer follows the polarity of the *wording* (`Comparison.yes_if`), not one rule for all attributes.
- Splits are by entity. Every entity stands in many pairs, so a split by row puts the same entity into train and test
  and a regression can score by recognising it (R2 0.75 on features that hold nothing but identity).
- Ties have no answer and are dropped.

What a balanced set of *uniform* pairs does not show: an entity with an early value is nearly always the earlier one,
so a model that looks at one entity alone and compares it with the middle of all values is right in 75 % of the pairs.
`strata` pairs entities of the same value quantile only, where a coarse idea of a value (an era, a continent) doesn't
help; and it gives each part of a heavy-tailed range the same weight.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from inscape.data.properties import Comparison
from inscape.errors import InputError

#: Columns of a table of pairs, in order.
PAIR_SCHEMA: dict[str, Any] = {
    "pair_id": pl.String,
    "split": pl.String,
    "x_id": pl.String,
    "x_label": pl.String,
    "x_value": pl.Float64,
    "y_id": pl.String,
    "y_label": pl.String,
    "y_value": pl.Float64,
    "template": pl.String,
    "prompt": pl.String,
    "label": pl.String,
}

_INVERTED = {"Yes": "No", "No": "Yes"}


def comparison_pairs(
    rows: pl.DataFrame,
    comparison: Comparison,
    n: int,
    seed: int,
    *,
    min_gap: float = 0.0,
    strata: int = 1,
) -> pl.DataFrame:
    """Draw comparison prompts.

    Pairs are drawn without replacement and uniformly from all unordered pairs that have an answer; then a random half
    is turned so that the answer is Yes, the other so that it is No. Every pair is within one split.

    Args:
        rows: entity_id, label, value and split, as in `Facts.of`; each entity and each label once.
        comparison: wording and polarity.
        n: number of pairs **in each split** of `rows`; even.
        seed: of the draw; the same rows in another order give the same pairs.
        min_gap: smallest difference of values, in their unit; ties are dropped in any case.
        strata: number of value quantiles, of equal numbers of entities; pairs are within one, an equal number (to two
            pairs) from each. 1 for uniform pairs.

    Returns:
        Columns of `PAIR_SCHEMA`: `prompt` is the question about x and y in this order, `label` its answer, "Yes" or
        "No"; `pair_id` names the unordered pair, so a swapped or reworded pair keeps it. Splits follow each other by
        name; within one, pairs are in random order.

    Raises:
        InputError: n is odd or not positive, min_gap or strata can't be; an entity or a label stands twice; a value
            isn't finite; there are fewer than n pairs.
    """
    if n <= 0 or n % 2:
        raise InputError(f"comparison pairs: n is {n}, expected a positive even number (half Yes, half No)")
    if strata < 1:
        raise InputError(f"comparison pairs: strata is {strata}, expected at least 1")
    if not 0 <= min_gap < float("inf"):
        raise InputError(f"comparison pairs: min_gap is {min_gap}, expected a finite number of at least 0")
    _check_rows(rows)
    tables: list[pl.DataFrame] = []
    for split in sorted(rows["split"].unique()):
        # A total order of the entities, by value: pairs don't depend on the order of the rows.
        entities = rows.filter(pl.col("split") == split).sort("value", "entity_id")
        rng = np.random.default_rng([seed, *split.encode()])
        pairs_P2 = _draw(entities["value"].to_numpy(), n, min_gap, strata, rng, split)
        yes = rng.permutation(np.arange(n) < n // 2)
        # Each row of pairs_P2 is (smaller, larger); it stays so where that gives the answer wanted.
        stays = yes == (comparison.yes_if == "less")
        x = np.where(stays, pairs_P2[:, 0], pairs_P2[:, 1])
        y = np.where(stays, pairs_P2[:, 1], pairs_P2[:, 0])
        tables.append(_table(entities[x], entities[y], comparison.template, np.where(yes, "Yes", "No"), split))
    return pl.concat(tables)


def _check_rows(rows: pl.DataFrame) -> None:
    missing = [name for name in ("entity_id", "label", "value", "split") if name not in rows.columns]
    if missing:
        raise InputError(f"comparison pairs: rows lack the columns {missing}, expected entity_id, label, value, split")
    if rows.is_empty():
        raise InputError("comparison pairs: no rows, expected at least two entities")
    if not rows["value"].cast(pl.Float64).is_finite().fill_null(False).all():
        raise InputError("comparison pairs: a value is missing, NaN or infinite, expected finite numbers")
    for column, remedy in (("entity_id", "one row per entity"), ("label", "names that tell entities apart")):
        repeated = rows.filter(pl.col(column).is_duplicated())
        if repeated.height:
            raise InputError(f"comparison pairs: {column} {repeated[column][0]!r} stands twice, expected {remedy}")


def _draw(
    values_E: np.ndarray, n: int, min_gap: float, strata: int, rng: np.random.Generator, split: str
) -> np.ndarray:
    """Indices (n, 2) of distinct pairs (smaller, larger) of the ascending values, in random order."""
    # Half of the pairs of a stratum are to be Yes, so strata get even numbers: n/2 twos, dealt out evenly.
    twos = [n // 2 // strata + (stratum < n // 2 % strata) for stratum in range(strata)]
    bounds = np.linspace(0, len(values_E), strata + 1).round().astype(int)
    drawn: list[np.ndarray] = []
    for stratum, (start, stop, two) in enumerate(zip(bounds[:-1], bounds[1:], twos, strict=True)):
        part = values_E[start:stop]
        # Entity i pairs with all from first_E[i] on, as values ascend; so pairs are counted without listing them.
        first_E = np.searchsorted(part, part, side="right")
        if min_gap > 0:
            first_E = np.maximum(first_E, np.searchsorted(part, part + min_gap, side="left"))
        ends_E = np.cumsum(len(part) - first_E)
        available = int(ends_E[-1]) if len(part) else 0
        if available < 2 * two:
            where = f"split {split}" if strata == 1 else f"split {split}, stratum {stratum + 1} of {strata}"
            raise InputError(
                f"comparison pairs: {where}: {available} pairs of {len(part)} entities have an answer, expected at"
                f" least {2 * two}"
            )
        number_P = rng.choice(available, size=2 * two, replace=False)
        smaller_P = np.searchsorted(ends_E, number_P, side="right")
        larger_P = len(part) - (ends_E[smaller_P] - number_P)
        drawn.append(np.stack([smaller_P, larger_P], axis=1) + start)
    return rng.permutation(np.concatenate(drawn))


def _table(x: pl.DataFrame, y: pl.DataFrame, template: str, labels: Iterable[str], split: str) -> pl.DataFrame:
    columns = ("entity_id", "label", "value")
    records = []
    for (x_id, x_label, x_value), (y_id, y_label, y_value), label in zip(
        x.select(columns).iter_rows(), y.select(columns).iter_rows(), labels, strict=True
    ):
        pair = "|".join(sorted((x_id, y_id)))
        prompt = template.format(x=x_label, y=y_label)
        records.append((pair, split, x_id, x_label, x_value, y_id, y_label, y_value, template, prompt, str(label)))
    return pl.DataFrame(records, schema=PAIR_SCHEMA, orient="row")


def swapped(pairs: pl.DataFrame) -> pl.DataFrame:
    """The same questions about (y, x), with the inverted answers: the consistency test P(Y, X) of the paper.

    Rows keep their order and `pair_id`. A consistent model answers the opposite; ties, which would have the same
    answer both ways, don't occur in `pairs`.
    """
    names = {name: "xy"[name.startswith("x_")] + name[1:] for name in pairs.columns if name[:2] in ("x_", "y_")}
    turned = pairs.rename(names)
    prompts = [
        template.format(x=x, y=y) for template, x, y in turned.select("template", "x_label", "y_label").iter_rows()
    ]
    return turned.with_columns(
        pl.Series("prompt", prompts, dtype=pl.String), pl.col("label").replace_strict(_INVERTED, return_dtype=pl.String)
    ).select(pairs.columns)


def entity_split(entity_ids: Iterable[str], fractions: Mapping[str, float], seed: int) -> pl.Series:
    """Assign rows to splits so that all rows of an entity are in one.

    Args:
        entity_ids: the entity of each row.
        fractions: share of the *entities* in each split, e.g. {"train": 0.8, "dev": 0.1, "test": 0.1}; sum 1.
        seed: of the draw; the order of the rows doesn't matter.

    Returns:
        Series "split", one name per row.

    Raises:
        InputError: a fraction isn't positive, they don't sum to 1, or a split gets no entity.
    """
    if not fractions or min(fractions.values()) <= 0 or not abs(sum(fractions.values()) - 1) < 1e-9:
        raise InputError(f"entity split: fractions {dict(fractions)}, expected positive numbers that sum to 1")
    ids = list(entity_ids)
    unique = sorted(set(ids))
    ends = np.round(np.cumsum(list(fractions.values())) * len(unique)).astype(int)
    sizes = np.diff(ends, prepend=0)
    for name, size in zip(fractions, sizes, strict=True):
        if size == 0:
            raise InputError(f"entity split: no entity of {len(unique)} for {name!r}, expected at least one per split")
    shuffled = np.random.default_rng(seed).permutation(len(unique))
    names = np.repeat(np.array(list(fractions)), sizes)
    split_of = {unique[index]: str(name) for index, name in zip(shuffled, names, strict=True)}
    return pl.Series("split", [split_of[entity] for entity in ids], dtype=pl.String)


def require_entity_disjoint(groups_train: Iterable[str], groups_test: Iterable[str]) -> None:
    """Refuse a split in which an entity is on both sides: such a score measures recognition of the entity.

    Args:
        groups_train: the entity of each row that is fitted on; for pairs, of both entities.
        groups_test: the entity of each row that is scored.

    Raises:
        InputError: entities stand on both sides; the message counts them and names some.
    """
    train, test = set(groups_train), set(groups_test)
    shared = sorted(train & test)
    if shared:
        some = ", ".join(map(str, shared[:3])) + (", …" if len(shared) > 3 else "")
        raise InputError(
            f"train and test share {len(shared)} of {len(test)} test entities ({some}), expected a split by entity"
            " (entity_split), not by row"
        )


def pair_entities(pairs: pl.DataFrame) -> Sequence[str]:
    """The entities that stand in pairs, x and y, each once, sorted."""
    return sorted(set(pairs["x_id"]) | set(pairs["y_id"]))
