"""A7: measures of an edit against the paper's printed outputs, and against scipy row by row."""

import time

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from inscape.errors import InputError
from inscape.subspaces import PLSSubspace, edit_vectors, effects, effects_table, random_directions, steps

# P7, table 2a: one entity's outputs for alpha = 1.0, 0.9 ... -1.0 along components 1 to 6, with its rank correlation.
RUNS = {
    0.9106: "1941x4 1932x3 1929 1902x3 1887 1882 1883 1619x4 1888 1815x2",
    0.8660: "1955x5 1940 1930x2 1902x13",
    0.7225: "1980 1955x3 1935x2 1917 1906 1902x6 1906x4 1902x3",
    0.9707: "1980 1984x2 1980 1958x4 1934 1902x3 1887x7 1858x2",
    0.9830: "2012x3 1968x2 1964 1957 1929x2 1902x2 1882x6 1880x4",
    0.3943: "1929x6 1902x8 1901 1906x6",
}
README_RUN = "1880x5 1882x5 1902x2 1929x2 1954 1964 1968x2 2012x3"


def expand(text: str) -> list[float]:
    parts = [part.split("x") for part in text.split()]
    return [float(value) for value, *count in parts for _ in range(int(count[0]) if count else 1)]


def test_golden_rank_correlations():
    outputs = [expand(text) for text in RUNS.values()]
    table = effects(np.linspace(1, -1, 21), outputs)
    assert table["spearman"].round(4).to_list() == list(RUNS)
    assert (table["change"] == [run[0] - run[-1] for run in outputs]).all()  # from the lowest step to the highest


def test_golden_run_of_component_5():
    weights = np.concatenate([np.linspace(26.82, 0, 11), np.linspace(0, -25.77, 11)[1:]])
    row = effects(weights, [expand(README_RUN)]).row(0, named=True)
    assert round(row["spearman"], 4) == -0.9846
    assert round(row["pearson"], 4) == -0.9176
    assert row["kendall"] == pytest.approx(-0.9360, abs=1e-4)  # -0.93605: a tie in rounding
    assert row["abs_spearman"] == -row["spearman"]
    assert row["monotonicity"] == 1.0
    assert row["strict_monotonicity"] == pytest.approx(0.35)
    assert row["change"] == 1880.0 - 2012.0


def oracle(x, y):
    """The same measures by scipy, for one row without its missing outputs."""
    keep = [i for i in np.argsort(x) if y[i] is not None and np.isfinite(y[i])]
    x, y = np.array([x[i] for i in keep]), np.array([float(y[i]) for i in keep])
    if len(y) < 2 or (y == y[0]).all():
        return None
    sign = np.sign(np.diff(y))
    return {
        "spearman": stats.spearmanr(x, y).statistic,
        "pearson": stats.pearsonr(x, y).statistic,
        "kendall": stats.kendalltau(x, y).statistic,
        "slope": stats.linregress(x, y).slope,
        "change": y[-1] - y[0],
        "monotonicity": abs(sign[sign != 0].mean()),
        "strict_monotonicity": abs(sign.mean()),
        "n_parsed": len(y),
    }


@settings(max_examples=60, deadline=None)
@given(
    st.integers(2, 12).flatmap(
        lambda n: st.tuples(
            st.lists(st.integers(-50, 50), min_size=n, max_size=n, unique=True),
            st.lists(
                st.lists(st.one_of(st.none(), st.just(float("nan")), st.integers(-3, 3)), min_size=n, max_size=n),
                min_size=1,
                max_size=5,
            ),
        )
    )
)
def test_every_row_agrees_with_scipy(case):
    x, rows = case
    table = effects(x, rows)
    for y, row in zip(rows, table.iter_rows(named=True), strict=True):
        parsed = sum(v is not None and np.isfinite(v) for v in y)
        assert row["n_parsed"] == parsed
        assert row["parsed"] == pytest.approx(parsed / len(x))
        expected = oracle(x, y)
        if expected is None:
            for name in ("spearman", "abs_spearman", "pearson", "kendall", "monotonicity", "strict_monotonicity"):
                assert np.isnan(row[name])
            assert row["constant"] == (parsed >= 2)
        else:
            assert not row["constant"]
            for name, value in expected.items():
                assert row[name] == pytest.approx(value, abs=1e-9), name


def test_a_constant_output_is_reported_as_such_and_never_as_zero():
    row = effects(steps(21), [[1902.0] * 21]).row(0, named=True)
    assert row["constant"]
    for name in ("spearman", "abs_spearman", "pearson", "kendall", "monotonicity", "strict_monotonicity"):
        assert np.isnan(row[name])
    assert (row["slope"], row["change"], row["parsed"]) == (0.0, 0.0, 1.0)


def test_missing_outputs_are_left_out_and_never_zero():
    s = steps(21)
    truth = 1900 + 50 * s
    holes = [float(v) if i % 3 else None for i, v in enumerate(truth)]
    row = effects(s, [holes]).row(0, named=True)
    assert row["spearman"] == pytest.approx(1.0)
    assert row["slope"] == pytest.approx(50.0)
    assert row["change"] == pytest.approx(50 * (s[20] - s[1]))
    assert row["n_parsed"] == 14
    nothing, one = effects(s, [[None] * 21, [None] * 20 + [5.0]]).iter_rows(named=True)
    for row in (nothing, one):
        assert not row["constant"]
        assert all(
            np.isnan(row[name]) for name in ("spearman", "slope", "change", "monotonicity", "strict_monotonicity")
        )
    assert (nothing["parsed"], one["n_parsed"]) == (0.0, 1)


def test_infinite_and_huge_outputs_do_not_spoil_a_row():
    table = effects([0, 1, 2, 3], [[1, 2, np.inf, 3], [1e300, 2e300, 3e300, 4e300], [5, 5, 5, 5 + 1e-9]])
    assert table["n_parsed"].to_list() == [3, 4, 4]
    np.testing.assert_allclose(table["pearson"][:2], [0.9819805060619659, 1.0])
    assert table["slope"][1] == pytest.approx(1e300)
    assert table["monotonicity"].to_list() == [1, 1, 1]


def test_steps_may_differ_by_row_and_come_in_any_order():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(6, 9)), rng.integers(0, 5, size=(6, 9)).astype(float)
    table = effects(x, y)
    for i in range(6):
        for name, value in oracle(x[i], y[i]).items():
            assert table[name][i] == pytest.approx(value, abs=1e-9)


def test_thousands_of_rows_are_measured_at_once():
    rng = np.random.default_rng(0)
    outputs = rng.integers(1800, 2000, size=(20_000, 21)).astype(float)
    outputs[rng.random(outputs.shape) < 0.1] = np.nan
    start = time.perf_counter()
    table = effects(steps(21), outputs)
    assert time.perf_counter() - start < 20
    for i in rng.integers(0, 20_000, 20):
        for name, value in oracle(steps(21), outputs[i]).items():
            assert table[name][int(i)] == pytest.approx(value, abs=1e-9)


def test_a_long_table_gives_a_row_per_entity_and_component():
    s = [-1.0, 0.0, 1.0]
    edits = pl.DataFrame(
        {
            "entity_id": ["Q2"] * 3 + ["Q1"] * 3 + ["Q1"] * 2,
            "component": [0, 0, 0, 0, 0, 0, 1, 1],
            "step": [1.0, 0.0, -1.0, *s, -1.0, 1.0],
            "output": [3.0, 2.0, 1.0, 9.0, None, 7.0, 4.0, 4.0],
        }
    )
    table = effects_table(edits)
    assert table.select("entity_id", "component").rows() == [("Q2", 0), ("Q1", 0), ("Q1", 1)]
    assert table["spearman"].to_list()[:2] == [1.0, -1.0]
    assert table["change"].to_list() == [2.0, -2.0, 0.0]
    assert table["n_parsed"].to_list() == [3, 2, 2]
    assert table["constant"].to_list() == [False, False, True]
    with pytest.raises(InputError, match="occurs twice"):
        effects_table(pl.concat([edits, edits]))
    with pytest.raises(InputError, match="no column layer"):
        effects_table(edits, by=("layer",))


def test_malformed_tables_are_refused():
    for x, y in (([0, 1], [[1, 2, 3]]), ([0, 0, 1], [[1, 2, 3]]), ([0, np.nan, 1], [[1, 2, 3]])):
        with pytest.raises(InputError, match="steps"):
            effects(x, y)
    with pytest.raises(InputError, match="expected parsed numbers"):
        effects([0, 1], [["1902", "about 1902"]])
    assert effects([0, 1, 2], np.empty((0, 3))).height == 0


def test_finding_1_rank_correlation_is_blind_to_size(planted):
    """A linear reader that rounds: the fitted edit and an equal-norm random one differ in change, hardly in |rho|."""
    world = planted(0)
    fitted = PLSSubspace(3).fit(world.X_fit, world.y_fit)
    vectors = edit_vectors(fitted, 0, 21)
    entities = world.X_test[:20]

    def read(shifts):
        return np.round(1800 + 100 / 6 * ((entities - world.mean)[:, None] + shifts) @ world.D[0])

    own = effects(steps(21), read(vectors))
    # Signed norms: a control must turn round in the middle as the edit does.
    doses = np.linalg.norm(vectors, axis=1) * np.sign(steps(21))
    unit_vectors = random_directions(256, n_draws=20, random_state=0)
    control = pl.concat([effects(steps(21), read(np.outer(doses, v))) for v in unit_vectors])
    assert own["spearman"].mean() > 0.99
    assert control["abs_spearman"].fill_nan(None).mean() > 0.8
    assert control["change"].abs().mean() < 0.1 * own["change"].mean()
    assert control["slope"].abs().quantile(0.95) < own["slope"].min()
