"""How many components: fit on train, choose on dev, report on a test split that had no say.

P7 chooses k and reports R2 on the same dev rows; P4 splits *rows* at random, so that one entity stands on both sides:
on features that hold nothing but the entity's identity such a split gives R2 0.75 where an honest one is below 0. So
a fit curve asks which entity each row belongs to and refuses to be made across a shared one.
"""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import polars as pl
from numpy.typing import ArrayLike
from scipy.stats import rankdata

from inscape.errors import InputError
from inscape.subspaces.estimators import SubspaceKind, subspace
from inscape.subspaces.inputs import Matrix, Vector, matrix, vector
from inscape.subspaces.linear import LinearSubspace
from inscape.subspaces.targets import TargetScale, TargetTransform

CURVE_COLUMNS = ("kind", "k", "split", "r2", "spearman")


def shared_groups(groups: Mapping[str, Sequence[Hashable]]) -> set[Hashable]:
    """Entities that occur in more than one of the named splits."""
    seen: dict[Hashable, str] = {}
    shared: set[Hashable] = set()
    for split, members in groups.items():
        for member in set(_ids(members)):
            if seen.setdefault(member, split) != split:
                shared.add(member)
    return shared


def refuse_shared_groups(groups: Mapping[str, Sequence[Hashable]]) -> None:
    """InputError when splits share entities (a row split): names the splits, how many entities, and one of them."""
    shared = shared_groups(groups)
    if shared:
        raise InputError(
            f"splits {', '.join(groups)} share {len(shared)} entities (one is {sorted(map(str, shared))[0]!r}); "
            "expected every entity in one split only: split by entity, not by row"
        )


def r2_columns(y: Vector, predictions: Matrix) -> Vector:
    """R2 (k,) of each column of predictions (n, k); NaN when y is constant (no variance to explain)."""
    spread = float(((y - y.mean()) ** 2).sum())
    if spread == 0:
        return np.full(predictions.shape[1], np.nan)
    return 1.0 - ((predictions - y[:, None]) ** 2).sum(axis=0) / spread


def spearman_columns(y: Vector, values: Matrix) -> Vector:
    """Spearman correlation (k,) of y with each column of values (n, k); NaN where either is constant."""
    ranks_y, ranks = rankdata(y), rankdata(values, axis=0)
    ranks_y = ranks_y - ranks_y.mean()
    ranks = ranks - ranks.mean(axis=0)
    norm = np.sqrt((ranks_y**2).sum() * (ranks**2).sum(axis=0))
    return np.where(norm > 0, ranks_y @ ranks / np.where(norm > 0, norm, 1.0), np.nan)


def component_spearman(fitted: LinearSubspace, X: ArrayLike, y: ArrayLike) -> Vector:
    """Spearman correlation (k,) of y with each component's own score (P7 reports it beside the fit curve)."""
    return spearman_columns(vector(y), fitted.transform(X))


def fit_curve(
    X_train: ArrayLike,
    y_train: ArrayLike,
    X_dev: ArrayLike,
    y_dev: ArrayLike,
    X_test: ArrayLike,
    y_test: ArrayLike,
    *,
    groups_train: Sequence[Hashable],
    groups_dev: Sequence[Hashable],
    groups_test: Sequence[Hashable],
    ks: Sequence[int] | None = None,
    kinds: Sequence[SubspaceKind] = ("pls", "pca", "ridge"),
    target: TargetScale = "raw",
    overlap: Literal["refuse", "flag"] = "refuse",
    random_state: int | None = None,
) -> pl.DataFrame:
    """R2 and Spearman of predictions by kind, k and split: columns `kind`, `k`, `split` (train, dev, test), `r2`,
    `spearman`.

    `groups_*`: the entity of each row. `ks`: components (default 1..50, or as many as train allows); each kind is
    fitted once, at the largest; ridge and mean_difference have one axis and one row per split, k = 1. With
    `target="yeo-johnson"` the curve is fitted on y_train alone and R2 is measured on its scale. `overlap="flag"` lets
    a row split through and adds the column `leaky` (True), for demonstrating the leak; otherwise an entity in two
    splits is an InputError.
    """
    groups = {"train": _ids(groups_train), "dev": _ids(groups_dev), "test": _ids(groups_test)}
    data = {
        "train": (matrix(X_train, "X_train"), vector(y_train, "y_train")),
        "dev": (matrix(X_dev, "X_dev"), vector(y_dev, "y_dev")),
        "test": (matrix(X_test, "X_test"), vector(y_test, "y_test")),
    }
    for split, (X, y) in data.items():
        if not len(X) == len(y) == len(groups[split]):
            raise InputError(
                f"{split}: {len(X)} rows of X, {len(y)} of y, {len(groups[split])} of groups; expected as many of each"
            )
        if X.shape[1] != data["train"][0].shape[1]:
            raise InputError(f"X_{split}: {X.shape[1]} features; expected {data['train'][0].shape[1]} as in X_train")
    if overlap == "refuse":
        refuse_shared_groups(groups)
    X, y = data["train"]
    most = min(X.shape[0] - 1, X.shape[1])
    counts = sorted(set(range(1, min(50, most) + 1) if ks is None else ks))
    if not counts or counts[0] < 1 or counts[-1] > most:
        raise InputError(
            f"ks: {counts[:1]}..{counts[-1:]}; expected component counts within 1..{most} ({X.shape[0]} training rows)"
        )
    curve = TargetTransform(target).fit(y)
    scaled = {split: curve.transform(values) for split, (_, values) in data.items()}
    rows: list[pl.DataFrame] = []
    for kind in kinds:
        fitted = subspace(kind, counts[-1], random_state).fit(X, scaled["train"])
        ks_here = counts if kind in ("pls", "pca") else [1]
        for split, (X_split, _) in data.items():
            path = fitted.predict_path(X_split)[:, np.array(ks_here) - 1]
            rows.append(
                pl.DataFrame(
                    {
                        "kind": [kind] * len(ks_here),
                        "k": ks_here,
                        "split": [split] * len(ks_here),
                        "r2": r2_columns(scaled[split], path),
                        "spearman": spearman_columns(scaled[split], path),
                    }
                )
            )
    table = pl.concat(rows)
    return table.with_columns(pl.lit(bool(shared_groups(groups))).alias("leaky")) if overlap == "flag" else table


def choose_k(curve: pl.DataFrame, kind: str = "pls") -> int:
    """The k of greatest dev R2 (the smallest among equals); test rows are not looked at."""
    dev = curve.filter((pl.col("kind") == kind) & (pl.col("split") == "dev")).drop_nulls("r2").drop_nans("r2")
    if dev.is_empty():
        raise InputError(
            f"fit curve: no dev R2 for {kind!r}; expected one of {curve['kind'].unique(maintain_order=True).to_list()}"
        )
    return int(dev.sort(["r2", "k"], descending=[True, False])["k"][0])


def chosen(curve: pl.DataFrame) -> pl.DataFrame:
    """One row per kind: `kind`, `k` (chosen on dev), `r2_dev`, `r2_test`, `spearman_test`."""
    rows: list[dict[str, Any]] = []
    for kind in curve["kind"].unique(maintain_order=True):
        k = choose_k(curve, kind)
        at_k = curve.filter((pl.col("kind") == kind) & (pl.col("k") == k))
        value = {(row["split"], name): row[name] for row in at_k.iter_rows(named=True) for name in ("r2", "spearman")}
        rows.append(
            {
                "kind": kind,
                "k": k,
                "r2_dev": value["dev", "r2"],
                "r2_test": value["test", "r2"],
                "spearman_test": value["test", "spearman"],
            }
        )
    return pl.DataFrame(rows)


def smallest_k(curve: pl.DataFrame, share: float, kind: str = "pls", split: str = "dev") -> int:
    """Smallest k that reaches `share` of the greatest R2 (P7, table 4: .95, .9, .8, .7, .6, .5). InputError if no R2
    is above 0.
    """
    here = curve.filter((pl.col("kind") == kind) & (pl.col("split") == split)).drop_nans("r2").sort("k")
    if here.is_empty() or not 0 < share <= 1 or float(here["r2"].max()) <= 0:  # type: ignore[arg-type]
        raise InputError(
            f"fit curve: {kind!r} on {split!r} has no R2 above 0 to take a share of {share} of (share within 0..1)"
        )
    return int(here.filter(pl.col("r2") >= share * pl.col("r2").max())["k"][0])


def _ids(groups: Sequence[Hashable]) -> list[Hashable]:
    """Group labels as a list of plain hashables (arrays, polars series and lists alike)."""
    return list(groups.tolist()) if hasattr(groups, "tolist") else list(groups)
