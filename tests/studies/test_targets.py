"""What the recipes have to reach, measured: the numbers of the documentation are those of these runs."""

import pytest

from inscape.data.facts import load_facts
from inscape.studies import run_study
from inscape.training.facts import train_facts_lm
from inscape.training.sizes import training_of

pytestmark = pytest.mark.slow


def test_demo_world(tmp_path):
    summary = run_study("numeric-monotonic", {"size": "demo"}, tmp_path / "demo", quiet=True).read_summary()
    assert summary["r2_test"] >= 0.3
    assert summary["r2_test_lo"] > summary["r2_test_shuffled_hi"]


def test_standard_world(tmp_path):
    summary = run_study("numeric-monotonic", {"size": "standard"}, tmp_path / "m", quiet=True).read_summary()
    assert summary["r2_test"] >= 0.6
    assert summary["r2_test_shuffled"] <= 0.1
    assert summary["slope_edit_lo"] > summary["slope_random_p95"]
    summary = run_study("numeric-comparison", {"size": "standard"}, tmp_path / "c", quiet=True).read_summary()
    assert summary["flip_valid_at_best_alpha_lo"] > summary["flip_random_p95"]
    assert summary["flip_both_signs_lo"] > summary["flip_both_signs_random_p95"]


def test_real_facts_are_answered(tmp_path, numeric_facts):
    facts = load_facts(numeric_facts, ["birth_year", "death_year", "elevation"], 1000)
    record = train_facts_lm(facts, training_of("facts", 0), tmp_path / "model")
    assert all(accuracy["questions"] >= 0.95 for accuracy in record["accuracy"].values())
