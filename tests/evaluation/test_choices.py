"""Rank classification against the model's own logits, planted preferences, and what is reported over prompts."""

import math

import numpy as np
import polars as pl
import pytest

from inscape.data.benchmarks import Choice
from inscape.errors import InputError
from inscape.evaluation.choices import LINKS, MEASURES, Prompt, accuracies, by_prompt, prompts_of, rank


def xcopa(i, label=0, group="cause", language="en"):
    fields = {
        "premise": f"The house {i} was empty.",
        "choice1": "Nobody wanted it.",
        "choice2": "It was sold by the river.",
    }
    return Choice(f"test/{i}", "xcopa", language, fields, 2, label, group)


def rte(i, label):
    return Choice(
        f"rte1/{i}", "rte", "en", {"premise": f"House {i} was old.", "hypothesis": "It was old."}, 2, label, "rte1"
    )


def pair(i, label=0):
    return Choice(
        str(i), "crows_pairs", "en", {"more": f"Was it sold {i}?", "less": f"Was it true {i}?"}, 2, label, "age"
    )


ITEMS = {
    "xcopa": [xcopa(1), xcopa(2, 1, "effect"), xcopa(3, 0, "effect", "zh")],
    "rte": [rte(1, 0), rte(2, 1)],
    "crows_pairs": [pair(1), pair(2, 1)],
}


@pytest.mark.parametrize("task", ITEMS)
def test_the_choice_is_the_likeliest_option_by_hand(bloom, logp, task):
    rows = rank(bloom, ITEMS[task], batch_size=3)
    by_id = {item.id: item for item in ITEMS[task]}
    assert rows.height == sum(len(prompts_of(task, item.language)) for item in ITEMS[task])

    def scored(context, option):
        ids = bloom.tokenizer(context + option)["input_ids"]
        n = len(bloom.tokenizer(context)["input_ids"])
        assert ids[:n] == bloom.tokenizer(context)["input_ids"]  # (no token merges both sides here)
        return sum(logp(bloom, ids)[n - 1 :]), len(ids) - n

    for row in rows.iter_rows(named=True):
        item = by_id[row["id"]]
        prompt = next(p for p in prompts_of(task, item.language) if p.name == row["prompt"])
        fields = item.fields | {"stem": item.fields.get("premise", "").removesuffix(".")}
        fields |= (prompt.by_group or {}).get(item.group, {})
        context, *options = (text.format(**fields) for text in (prompt.context, *prompt.options))
        logps, sizes = zip(*(scored(context, option) for option in options), strict=True)
        assert row["margin"] == pytest.approx(logps[item.label] - logps[1 - item.label], rel=1e-4, abs=1e-4)
        lengths = [len(option.strip().encode()) for option in options]
        assert row["sum"] == (np.argmax(logps) == item.label)
        assert row["per_token"] == (np.argmax(np.divide(logps, sizes)) == item.label)
        assert row["per_byte"] == (np.argmax(np.divide(logps, lengths)) == item.label)
        if prompt.domain is None:
            assert row["pmi"] is None
        else:
            alone = [scored(prompt.domain.format(**fields), option)[0] for option in options]
            assert row["pmi"] == (np.argmax(np.subtract(logps, alone)) == item.label)
    assert set(rows["chance"]) == {0.5}


def test_measures_differ_where_they_should(bloom):
    rows = rank(bloom, ITEMS["xcopa"] + [xcopa(i, i % 2) for i in range(4, 24)])
    assert any((rows["sum"] != rows[name]).any() for name in ("per_token", "per_byte", "pmi"))


def test_options_that_tie_are_at_chance(bloom):
    same = Choice("a", "crows_pairs", "en", {"more": "It was sold.", "less": "It was sold."}, 2, 1, "age")
    rows = rank(bloom, [same])
    assert set(rows["sum"]) == {0.5}
    assert set(rows["margin"]) == {0.0}


def test_items_that_do_not_fit_are_left_out_under_all_prompts(gpt2):
    long = Choice("long", "xcopa", "en", ITEMS["xcopa"][0].fields | {"choice2": "old house " * 60}, 2, 0, "cause")
    short = Choice("s", "xcopa", "en", {"premise": "It was.", "choice1": "old", "choice2": "sold"}, 2, 0, "cause")
    assert set(rank(gpt2, [long, short], prompts_of("xcopa")[:3])["id"]) == {"s"}
    with pytest.raises(InputError, match="none of 1 items fits into the model's context of 48"):
        rank(gpt2, [long])


def planted(n_items, right, seed=0):
    """Rows of three prompts, with a share ``right`` of credit by sum; per_token is the other way round."""
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(n_items):
        for prompt, share in zip("abc", right, strict=True):
            credit = float(rng.random() < share)
            rows.append(
                {
                    "id": str(i), "task": "t", "language": "en", "group": "g", "prompt": prompt, "label": 0, "chance": 0.5,
                    "sum": credit, "per_token": 1 - credit, "per_byte": credit, "margin": 0.0,
                    "pmi": credit if prompt == "a" else None,
                }
            )  # fmt: skip
    return pl.DataFrame(rows)


def test_medians_and_ranges_over_prompts():
    rows = planted(400, (0.5, 0.7, 0.9))
    table = {row["measure"]: row for row in accuracies(rows).iter_rows(named=True)}
    assert list(table) == list(MEASURES)
    found, means = table["sum"], rows.group_by("prompt").agg(pl.col("sum").mean()).sort("prompt")["sum"].to_list()
    assert (found["least"], found["median"], found["most"]) == pytest.approx(tuple(means))
    assert found["lo"] < means[1] < found["hi"]
    # A share of 400 items: 1.96 standard errors each way.
    assert found["hi"] - found["lo"] == pytest.approx(2 * 1.96 * math.sqrt(0.7 * 0.3 / 400), rel=0.3)
    assert table["per_token"]["most"] == pytest.approx(1 - means[0])
    assert (table["pmi"]["prompts"], table["pmi"]["items"]) == (1, 400)
    each = by_prompt(rows)
    assert each["prompt"].to_list() == ["a", "b", "c"]
    assert each["sum"].to_list() == pytest.approx(means)
    assert each["pmi"].to_list()[1:] == [None, None]


def test_translations_of_an_item_are_items_of_their_own():
    english, french = (
        planted(30, (0.2, 0.2, 0.2)),
        planted(30, (0.9, 0.9, 0.9), 1).with_columns(pl.lit("fr").alias("language")),
    )
    (both,) = (
        accuracies(pl.concat([english, french]), ["task"]).filter(pl.col("measure") == "sum").iter_rows(named=True)
    )
    assert both["items"] == 60
    assert both["majority"] == 1  # (all labels are 0)
    # A copy of each item in another language tells nothing new: the interval stays as wide.
    copied = pl.concat([english, english.with_columns(pl.lit("xx").alias("language"))])
    widths = [accuracies(rows, ["task"]).select(pl.col("hi") - pl.col("lo"))["hi"][0] for rows in (english, copied)]
    assert widths[1] == pytest.approx(widths[0], rel=0.1)
    assert 0.4 < both["median"] < 0.7


def test_every_language_of_xcopa_has_its_links():
    for language in ("et", "ht", "id", "it", "qu", "sw", "ta", "th", "tr", "vi", "zh"):
        assert len({prompt.name for prompt in prompts_of("xcopa", language)}) >= 3
        assert len(set(LINKS[language])) == 2


def test_refusals(bloom):
    with pytest.raises(InputError, match="no prompts for task 'boolq'"):
        prompts_of("boolq")
    with pytest.raises(InputError, match="0 items of 0 tasks"):
        rank(bloom, [])
    with pytest.raises(InputError, match="2 items of 2 tasks"):
        rank(bloom, [xcopa(1), rte(1, 0)])
    with pytest.raises(InputError, match="no field 'why'"):
        rank(bloom, [rte(1, 0)], [Prompt("p", "{why}", ("a", "b"))])
    with pytest.raises(InputError, match=r"prompt p: 1 options, item rte1/1 has 2"):
        rank(bloom, [rte(1, 0)], [Prompt("p", "{premise}", (" a",))])
    with pytest.raises(InputError, match="no token to condition on"):
        rank(bloom, [rte(1, 0)], [Prompt("p", "", ("a", "b"))])
    with pytest.raises(InputError, match="nothing for 'rte1'"):
        rank(bloom, [rte(1, 0)], [Prompt("p", "{premise}", (" a", " b"), None, {"cause": {}})])
