import numpy as np
import polars as pl
import pytest
from pydantic import ValidationError
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import RidgeCV

from inscape.data.properties import PROPERTIES
from inscape.data.worlds.numeric import PERSON_PROPERTIES, PLACE_PROPERTIES, NumericWorldSpec, numeric_world
from inscape.errors import InputError


def test_same_seed_same_facts_other_seed_other_facts():
    spec = NumericWorldSpec(n_people=50, n_places=40, seed=3)
    facts = numeric_world(spec)
    assert facts.sha256 == numeric_world(spec).sha256
    assert facts.sha256 != numeric_world(spec.model_copy(update={"seed": 4})).sha256


def test_dropping_a_property_changes_nothing_else():
    everything = numeric_world(NumericWorldSpec(n_people=50, n_places=40))
    only = numeric_world(NumericWorldSpec(n_people=50, n_places=40, properties=("death_year", "longitude")))
    assert only.rows.equals(everything.rows.filter(pl.col("property").is_in(["death_year", "longitude"])))


def test_counts_splits_and_labels():
    facts = numeric_world(NumericWorldSpec(n_people=100, n_places=60, dev_fraction=0.2, test_fraction=0.3))
    assert facts.properties == PERSON_PROPERTIES + PLACE_PROPERTIES
    births = facts.of("birth_year")
    assert births.group_by("split").len().sort("split").rows() == [("dev", 20), ("test", 30), ("train", 50)]
    # An entity is in one split only, across all of its properties, and a label names one entity only.
    per_entity = facts.rows.group_by("entity_id").agg(pl.col("split").n_unique(), pl.col("label").n_unique())
    assert per_entity["split"].max() == 1
    assert per_entity["label"].max() == 1
    assert facts.rows.group_by("label").agg(pl.col("entity_id").n_unique())["entity_id"].max() == 1
    assert facts.rows["entity_id"].n_unique() == 160


def test_unique_last_words_and_shared_ones():
    def last_words(facts):
        return [label.split()[-1] for label in facts.rows.unique("entity_id")["label"]]

    alone = last_words(numeric_world(NumericWorldSpec(n_people=300, n_places=300)))
    assert len({word.lower() for word in alone}) == 600
    shared = last_words(numeric_world(NumericWorldSpec(n_people=300, n_places=300, shared_last_names=3)))
    assert len(set(shared)) == 200


def test_words_of_names_are_no_words_of_templates():
    facts = numeric_world(NumericWorldSpec(n_people=2000, n_places=2000))
    names = {word.lower() for label in facts.rows["label"].unique() for word in label.split()}
    names -= {"port", "new", "upper", "lower", "old", "little", "great", "fort"}
    templates = [t for prop in PROPERTIES.values() for t in (*prop.questions, *prop.statements)]
    templates += [c.template for prop in PROPERTIES.values() for c in prop.comparisons]
    words = {word.strip("?.,{}").lower() for template in templates for word in template.split()}
    assert not names & words


def test_distributions():
    facts = numeric_world(NumericWorldSpec(n_people=2000, n_places=2000, first_year=1600, last_birth_year=1900))
    births = facts.of("birth_year")["value"].to_numpy()
    assert births.min() >= 1600
    assert births.max() <= 1900
    # Uniform: mean and spread of the formula, to five standard errors.
    assert abs(births.mean() - 1750) < 5 * 300 / np.sqrt(12 * 2000)
    assert births.std() == pytest.approx(300 / np.sqrt(12), rel=0.05)
    both = facts.of("birth_year").join(facts.of("death_year"), on="entity_id")
    ages = (both["value_right"] - both["value"]).to_numpy()
    assert ages.min() >= 18
    assert ages.max() <= 99
    population = facts.of("population")["value"].to_numpy()
    assert np.median(np.log10(population)) == pytest.approx(np.log10(30_000), abs=0.15)
    assert {len(PROPERTIES["population"].format(v).rstrip("0")) for v in population} <= {1, 2}
    latitude, longitude = facts.of("latitude")["value"].to_numpy(), facts.of("longitude")["value"].to_numpy()
    assert np.allclose(latitude * 10, np.round(latitude * 10))
    assert abs(np.corrcoef(latitude, longitude)[0, 1]) < 5 / np.sqrt(2000)


def test_the_living_have_no_death_year():
    facts = numeric_world(NumericWorldSpec(n_people=200, n_places=10, last_year=2000))
    deaths = facts.of("death_year")
    assert deaths["value"].max() <= 2000
    living = 200 - deaths.height
    assert living > 0
    assert any(note.startswith(f"{living} of 200 people") for note in facts.notes)


@pytest.mark.parametrize("name", PERSON_PROPERTIES + PLACE_PROPERTIES)
def test_names_say_nothing_about_values(name):
    """The floor that needs no model: character n-grams of the name predict nothing (planted: ~0.9 if they did)."""
    facts = numeric_world(NumericWorldSpec(n_people=800, n_places=800, seed=1))
    train, test = facts.of(name, "train"), facts.of(name, "test")
    names = TfidfVectorizer(analyzer="char", ngram_range=(1, 4))

    def floor(train_values, test_values):
        ridge = RidgeCV(np.logspace(-2, 4, 13)).fit(names.fit_transform(train["label"]), train_values)
        return ridge.score(names.transform(test["label"]), test_values)

    assert abs(floor(train["value"], test["value"])) < 0.05
    # The same floor does see a value that names carry: their first letter.
    first_letters = [[float(ord(label[0])) for label in rows["label"]] for rows in (train, test)]
    assert floor(*first_letters) > 0.5


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"properties": ("birth_year", "weight")}, "weight"),
        ({"properties": ()}, "properties"),
        ({"first_year": 1900, "last_birth_year": 1800}, "first_year"),
        ({"dev_fraction": 0.6, "test_fraction": 0.4}, "train"),
        ({"shared_last_names": 5, "first_names": 3}, "shared_last_names"),
        ({"n_persons": 5}, "n_persons"),
    ],
)
def test_bad_specs_are_refused(change, named):
    with pytest.raises(ValidationError, match=named):
        NumericWorldSpec(**change)


def test_too_few_entities():
    with pytest.raises(InputError, match="9 places"):
        numeric_world(NumericWorldSpec(n_people=50, n_places=9))
    assert numeric_world(NumericWorldSpec(n_people=50, n_places=0, properties=("birth_year",))).rows.height == 50
