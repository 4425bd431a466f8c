"""The sentences of the reports must follow from the numbers, in the awkward cases too."""

import numpy as np
import polars as pl
import pytest

from inscape.studies import numeric_comparison_page, numeric_monotonic_page
from inscape.studies.numeric_comparison import first_word
from inscape.studies.numeric_comparison_summary import best_signs
from inscape.studies.numeric_monotonic_plan import plan_edits
from inscape.subspaces.estimators import PLSSubspace

READS = {"r2_test_lo": 0.8, "r2_test_shuffled_hi": 0.0, "r2_above_names_lo": 0.5}
MOVES = {
    "slope_edit": 100.0, "slope_edit_lo": 90.0, "slope_edit_hi": 110.0, "slope_random_p95": 10.0, "n_random": 20,
    "slope_edit_median_lo": 80.0, "slope_random_median_p95": 9.0, "slope_shuffled": 30.0, "n_missing": 0, "n_entities": 60,
}  # fmt: skip


@pytest.mark.parametrize(
    ("changed", "says", "not_says"),
    [
        ({}, "more than 95 % of random directions", "no evidence"),
        ({"n_random": 3}, "only 3 random directions", "95 % of random"),
        ({"r2_above_names_lo": -0.1}, "no evidence of knowledge", "beyond what names alone give away."),
        ({"r2_test_lo": -0.2}, "can not be read", "can be read"),
        ({"r2_test_lo": None}, "could not be determined", "The value can"),
        ({"slope_edit_lo": 5.0}, "no effect is claimed", "moves the number that the model writes"),
        ({"slope_edit": -300.0, "slope_edit_lo": -320.0, "slope_edit_hi": -280.0}, "against", "no effect"),
        ({"slope_edit": None}, "nothing to move", "moves the number"),
        ({"n_missing": 60}, "nothing to move", "moves the number"),
        ({"slope_edit_median_lo": 1.0}, "a few entities carry", "no effect"),
    ],
)
def test_monotonic_verdict(changed, says, not_says):
    text = numeric_monotonic_page.verdict({**READS, **MOVES, **changed})
    assert says in text
    assert not_says not in text


GOOD = {
    "accuracy": 0.9, "accuracy_lo": 0.88, "accuracy_hi": 0.92,
    "accuracy_one_entity_floor": 0.75, "accuracy_above_floor_lo": 0.1,
    "n_pairs": 100, "n_invalid_answers": 0, "n_random": 20, "flip_both_signs": 0.6, "flip_both_signs_lo": 0.5,
    "flip_both_signs_random_p95": 0.3,
}  # fmt: skip


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({}, "The model compares"),
        ({}, "more than 95 % of random directions"),
        ({"accuracy_above_floor_lo": -0.01}, "not better than looking at one entity"),
        (
            {"accuracy_above_floor_lo": -0.4, "accuracy_lo": 0.45, "accuracy_hi": 0.55},
            "does not compare better than chance",
        ),
        (
            {"accuracy_above_floor_lo": -0.9, "accuracy": 0.1, "accuracy_lo": 0.05, "accuracy_hi": 0.2},
            "less than chance",
        ),
        ({"n_invalid_answers": 100}, "neither Yes nor No"),
        ({"flip_both_signs": None}, "no effect is claimed"),
        ({"flip_both_signs_lo": 0.2}, "no more answers than random"),
    ],
)
def test_comparison_verdict(changed, says):
    assert says in numeric_comparison_page.verdict({**GOOD, **changed})


@pytest.mark.parametrize(
    ("output", "word"),
    [
        (" Yes", "yes"),
        ("**Yes**", "yes"),
        ('"No".', "no"),
        ("(yes) because", "yes"),
        ("Yes:", "yes"),
        ("- no", "no"),
        ("", ""),
        ("...", ""),
    ],
)
def test_first_word(output, word):
    assert first_word(output) == word


def test_the_two_signs_are_opposite_and_best():
    table = pl.DataFrame(
        {
            "alpha": [-2.0, -1.0, 0.0, 1.0, 2.0], "sign": [-1, -1, 0, 1, 1],
            "flip_from_yes": [0.9, 0.9, 0.0, 0.1, 0.2], "flip_from_no": [0.95, 0.0, 0.0, 0.3, 0.6],
        }
    )  # fmt: skip
    # No's best of all is at -2, but that is Yes's sign: the pair is (-1, the gentler of two equals, and 2).
    assert best_signs(table) == (-1.0, 2.0, pytest.approx(0.75))


@pytest.mark.parametrize("kind", ["weights", "loadings", "coefficient"])
def test_planned_directions_are_what_their_names_say(kind):
    rng = np.random.default_rng(0)
    z = rng.normal(size=300)
    nuisance = rng.normal(size=300)
    X = np.outer(z, np.eye(12)[0]) + 8 * np.outer(nuisance, np.eye(12)[1]) + rng.normal(size=(300, 12))
    full = PLSSubspace(6).fit(X, z)
    fitted = full.truncate(3) if kind == "coefficient" else full
    plans = plan_edits(fitted, 3, X, z, kind, components=4, n_steps=5, n_random=4, n_shuffled=4, seed=0)
    own = [name for name in plans if name.startswith(kind)]
    assert own == ([f"{kind} 1"] if kind == "coefficient" else [f"{kind} {c}" for c in (1, 2, 3, 4)])
    norm = np.linalg.norm(plans[f"{kind} 1"], axis=1)
    same = {name: v for name, v in plans.items() if name.split()[0] != kind}
    assert len(same) == 2 + 4 + 4
    for vectors in same.values():
        assert np.linalg.norm(vectors, axis=1) == pytest.approx(norm)
        assert not vectors[2].any()
    ends = {
        name.split()[0]: plans[name][-1] / np.linalg.norm(plans[name][-1]) for name in (f"{kind} 1", *list(same)[:2])
    }
    expected = {"weights": full.weights_[:, 0] * full.x_scale_, "loadings": full.loadings_[:, 0] * full.x_scale_,
                "coefficient": full.truncate(3).coef_}  # fmt: skip
    for name, vector in expected.items():
        # Signed so that the value rises along it.
        assert ends[name] @ (vector / np.linalg.norm(vector)) * np.sign(vector @ full.coef_) == pytest.approx(
            1, abs=1e-9
        )
    assert abs(ends["weights"] @ ends["loadings"]) < 0.999
