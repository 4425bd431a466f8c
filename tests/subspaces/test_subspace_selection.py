"""The fit curve: k chosen on dev, entities never shared; and A12's demonstration of what a row split pretends."""

import numpy as np
import polars as pl
import pytest
from scipy.stats import spearmanr
from sklearn.cross_decomposition import PLSRegression
from sklearn.decomposition import PCA
from sklearn.linear_model import LinearRegression
from sklearn.metrics import r2_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import PowerTransformer, StandardScaler

from inscape.errors import InputError
from inscape.subspaces import (
    PLSSubspace,
    choose_k,
    chosen,
    component_spearman,
    fit_curve,
    refuse_shared_groups,
    shared_groups,
    smallest_k,
)


def split(world):
    X, y = world.X, world.y
    return X[:600], y[:600], X[600:1000], y[600:1000], X[1000:], y[1000:]


GROUPS = {"groups_train": range(600), "groups_dev": range(600, 1000), "groups_test": range(1000, 1500)}


@pytest.fixture(scope="module")
def curve(planted):
    world = planted(0, nuisances={3: 20.0})
    return world, fit_curve(*split(world), **GROUPS, ks=range(1, 13), kinds=("pls", "pca", "ridge", "mean_difference"))


def test_the_curve_equals_a_refit_for_every_k(curve):
    world, table = curve
    X, y, X_dev, y_dev, X_test, y_test = split(world)
    assert table.columns == ["kind", "k", "split", "r2", "spearman"]
    for k in (1, 2, 5, 12):
        refits = {
            "pls": PLSRegression(k).fit(X, y),
            "pca": make_pipeline(StandardScaler(), PCA(k, svd_solver="full"), LinearRegression()).fit(X, y),
        }
        for kind, refit in refits.items():
            for name, (X_s, y_s) in {"train": (X, y), "dev": (X_dev, y_dev), "test": (X_test, y_test)}.items():
                row = table.filter(pl.col("kind") == kind, pl.col("k") == k, pl.col("split") == name)
                predicted = refit.predict(X_s)
                assert row["r2"].item() == pytest.approx(r2_score(y_s, predicted), abs=1e-9)
                assert row["spearman"].item() == pytest.approx(spearmanr(y_s, predicted).statistic, abs=1e-9)
    assert table.filter(pl.col("kind").is_in(["ridge", "mean_difference"]))["k"].to_list() == [1] * 6
    assert table.height == 2 * 12 * 3 + 2 * 3


def test_k_is_chosen_on_dev_and_test_has_no_say():
    table = pl.DataFrame(
        {
            "kind": ["pls"] * 6,
            "k": [1, 2, 3] * 2,
            "split": ["dev"] * 3 + ["test"] * 3,
            "r2": [0.5, 0.8, 0.8, 0.9, 0.3, 0.4],
            "spearman": [0.1] * 6,
        }
    )
    assert choose_k(table) == 2  # the smaller of two equals, whatever test says
    assert chosen(table).to_dicts() == [{"kind": "pls", "k": 2, "r2_dev": 0.8, "r2_test": 0.3, "spearman_test": 0.1}]
    assert [smallest_k(table, share) for share in (0.5, 0.7, 1.0)] == [1, 2, 2]
    with pytest.raises(InputError, match="no dev R2 for 'pca'"):
        choose_k(table, "pca")


def test_the_default_range_is_fifty_or_what_train_allows(planted):
    X, y, *_ = split(planted(1))
    table = fit_curve(
        *(X[:20], y[:20], X[20:40], y[20:40], X[40:60], y[40:60]),
        groups_train=range(20),
        groups_dev=range(20, 40),
        groups_test=range(40, 60),
    )
    assert table.filter(pl.col("kind") == "pls")["k"].max() == 19
    with pytest.raises(InputError, match=r"expected component counts within 1\.\.256"):
        fit_curve(*split(planted(1)), **GROUPS, ks=[300])


def test_a_power_target_is_fitted_on_train_alone(planted):
    X, _, X_dev, _, X_test, _ = split(planted(2))
    rng = np.random.default_rng(0)
    z = [x @ planted(2).D[0] + rng.normal(size=len(x)) for x in (X, X_dev, X_test)]
    y = [np.exp(v / 3) for v in z]
    table = fit_curve(X, y[0], X_dev, y[1], X_test, y[2], **GROUPS, ks=[3], kinds=["pls"], target="yeo-johnson")
    power = PowerTransformer().fit(y[0][:, None])
    expected = r2_score(
        power.transform(y[2][:, None]), PLSRegression(3).fit(X, power.transform(y[0][:, None])).predict(X_test)
    )
    assert table.filter(pl.col("split") == "test")["r2"].item() == pytest.approx(expected, abs=1e-6)


def test_component_spearman_is_that_of_each_score(planted):
    world = planted(0)
    fitted = PLSSubspace(3).fit(world.X_fit, world.y_fit)
    scores = fitted.transform(world.X_test)
    expected = [spearmanr(scores[:, c], world.y_test).statistic for c in range(3)]
    np.testing.assert_allclose(component_spearman(fitted, world.X_test, world.y_test), expected, atol=1e-12)


@pytest.fixture(scope="module")
def identity_only():
    """A12: 150 entities x 20 rows; a row holds who it is (one random vector) and the value is independent of that."""
    rng = np.random.default_rng(0)
    entity = np.repeat(np.arange(150), 20)
    X = rng.normal(size=(150, 256))[entity]
    return X, rng.normal(size=150)[entity] * 30 + 1900, entity


class TestEntitySplits:
    def curve(self, data, order, cuts, **options):
        X, y, entity = (part[order] for part in data)
        parts = [slice(0, cuts[0]), slice(cuts[0], cuts[1]), slice(cuts[1], None)]
        args = [array[part] for part in parts for array in (X, y)]
        groups = {f"groups_{name}": entity[part] for name, part in zip(("train", "dev", "test"), parts, strict=True)}
        return fit_curve(*args, **groups, kinds=["pls"], ks=[1, 2], **options)

    def test_a_row_split_is_refused_and_names_the_leak(self, identity_only):
        rows = np.random.default_rng(1).permutation(3000)
        with pytest.raises(InputError, match=r"share 1[45][0-9] entities .* split by entity, not by row"):
            self.curve(identity_only, rows, (2400, 2700))

    def test_a12_a_row_split_finds_a_value_that_is_not_there(self, identity_only):
        rows = np.random.default_rng(1).permutation(3000)
        by_row = self.curve(identity_only, rows, (2400, 2700), overlap="flag")
        assert by_row["leaky"].all()
        assert chosen(by_row)["r2_test"].item() >= 0.7
        by_entity = self.curve(identity_only, np.arange(3000), (2400, 2700), overlap="flag")
        assert not by_entity["leaky"].any()
        assert by_entity.filter(pl.col("split") == "test")["r2"].max() < 0
        assert self.curve(identity_only, np.arange(3000), (2400, 2700)).equals(by_entity.drop("leaky"))

    def test_overlaps_are_named(self):
        assert shared_groups({"train": ["a", "b"], "dev": ["b", "c"], "test": ["c"]}) == {"b", "c"}
        refuse_shared_groups({"train": ["a", "a"], "dev": ["b"], "test": pl.Series(["c"])})
        with pytest.raises(InputError, match=r"splits train, test share 1 entities \(one is 'Q1'\)"):
            refuse_shared_groups({"train": np.array(["Q1", "Q2"]), "test": ["Q1"]})

    def test_counts_that_do_not_fit_are_refused(self, planted):
        with pytest.raises(InputError, match="dev: 400 rows of X, 400 of y, 1 of groups"):
            fit_curve(*split(planted(0)), **{**GROUPS, "groups_dev": [1]})
