"""The part *tasks* of the miniature on planted corpora and a tiny BLOOM; its numbers and words on planted answers."""

import csv
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
from transformers import BloomConfig

sys.path.append(str(Path(__file__).parents[1] / "data"))
from planted_corpora import PAIRS, sentence, write_corpora

from inscape.evaluation.choices import ROWS
from inscape.evaluation.translation import corpus_score
from inscape.runs import Run
from inscape.studies import multilingual_tasks as part
from inscape.studies import multilingual_tasks_page as page
from inscape.studies.multilingual_setup import Asked, Config, Made
from inscape.studies.multilingual_tasks_summary import ablations, choices, middle, score_translations
from inscape.training.architectures import save_hf
from inscape.training.bloom import Bloom
from inscape.training.corpus import fit_bpe

TASKS_HERE = ("translation_match", "order_repair", "larger_number", "rte", "xcopa")
SIZES = {"en": 9, "sw": 5, "fr": 3}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = write_corpora(tmp_path_factory.mktemp("pack") / "corpora")
    with (root / "eval" / "crows_pairs.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["", "sent_more", "sent_less", "stereo_antistereo", "bias_type"])
        for i in range(9):
            writer.writerow([i, f"The old man {i} was slow.", f"The young man {i} was slow.", "stereo", "age"])
    return root


def made_of(run, root, languages):
    """What the first part of the study gives, with a BLOOM that was drawn at random."""
    config = Config(
        size="smoke", languages=languages, held_out=("ru",), finetuning_steps=2, threads=1, corpora=str(root)
    )
    tokenizer = fit_bpe(["Which number is larger yes no sun moon river green true false"] * 3, 300)
    model = Bloom(BloomConfig(vocab_size=len(tokenizer), hidden_size=16, n_layer=1, n_head=2, initializer_range=0.1))
    save_hf(model, model.hf_config, tokenizer, run.folder / "model" / "checkpoints" / "step-3")
    corpus = SimpleNamespace(bytes_by_language=lambda: SIZES)
    return Made(run, config, Asked(root), corpus, run.folder, None, run.folder / "model", {})


@pytest.fixture(scope="module")
def done(root, tmp_path_factory):
    run = Run.open(tmp_path_factory.mktemp("run") / "r", "x", {}, seed=0, quiet=True)
    made = made_of(run, root, ("en", "fr", "sw"))
    few = part.finetuning(made)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(part, "finetuning", lambda _: (few[0].model_copy(update={"tasks": TASKS_HERE}), few[1]))
        part.stages(run, made)
    run.summary(part.summary(run, made.config))
    yield run, made
    run.close()


def test_everything_is_measured_before_and_after(done):
    run, _ = done
    summary = run.read_summary()
    for name in ("finetune_valid", "finetune_stopped", "heldout_prompt_accuracy", "heldout_language_correct",
                 "heldout_task_ranked", "xcopa_accuracy", "rte_accuracy", "crows_pairs_share"):  # fmt: skip
        assert 0 <= summary[f"{name}_before"] <= 1
        assert 0 <= summary[f"{name}_after"] <= 1
    for name in ("bleu_raw", "bleu_truncated", "chrf_raw", "bleu_raw_1shot", "chrf_truncated_from_en"):
        assert 0 <= summary[f"{name}_after"] <= 100
        assert {f"{name}_before_lo", f"{name}_before_hi"} <= set(summary)
    assert "bleu_raw_from_en_after" not in summary
    for name in ("not_normalised", "all_tokens"):
        assert summary[f"ablation_{name}_bits_per_byte"] != 0
        assert 0 <= summary[f"finetune_valid_{name}"] <= 1
    # Finetuning changed the model that choices are asked of.
    margins = run.table("tasks_choices").group_by("variant", maintain_order=True).agg("margin")["margin"]
    assert not np.allclose(margins[0], margins[1])


def test_languages_are_those_that_were_read(done):
    run, made = done
    config, _ = part.finetuning(made)
    assert config.languages == ("en", "fr", "sw")
    assert config.held_out_languages == ("de",)  # (there is nothing in Russian here)
    answers = run.table("answers")
    assert set(answers.filter(pl.col("new") == "language")["language"]) == {"de"}
    asked = run.table("tasks_choices")
    assert set(asked.filter(pl.col("task") == "xcopa")["language"]) == {"en", "fr", "sw"}
    # Eight pairs in all are of one language: that with most text.
    rows = run.table("tasks_translation")
    assert set(rows["language"]) == {"sw"}
    assert rows.group_by("variant", "shots", "into", "prompt").len()["len"].to_list() == [8] * 24
    tests = {sentence("en", i) for i in range(PAIRS - PAIRS // 5, PAIRS)}
    assert set(rows.filter(pl.col("into") == "en")["reference"]) <= tests


def test_one_shot_shows_a_pair_that_is_not_tested(root, tmp_path, monkeypatch):
    calls = []

    def translate(lm, pairs, names, *, into, examples, **_):
        calls.append((into, pairs, examples))
        return pl.DataFrame({"id": [pair.id for pair in pairs]})

    monkeypatch.setattr(part, "translate", translate)
    with Run.open(tmp_path / "r", "x", {}, seed=0, quiet=True) as run:
        rows = part._translations(None, run, made_of(run, root, ("en", "fr", "sw")), ["fr", "sw"])
    assert rows["shots"].to_list() == ([0] * 8 + [1] * 8) * 2
    assert [into for into, _, _ in calls] == ["en", "fr", "en", "fr", "en", "sw", "en", "sw"]
    for n, (into, pairs, examples) in enumerate(calls):
        assert len(pairs) == 4
        assert len(examples) == n // 2 % 2
        assert all(pair.test for pair in pairs)
        assert not any(pair.test for pair in examples)
        assert into in ("en", pairs[0].language)


def test_a_language_that_was_pretrained_on_is_not_held_out(root, tmp_path):
    with Run.open(tmp_path / "r", "x", {}, seed=0, quiet=True) as run:
        config, _ = part.finetuning(made_of(run, root, ("en", "de")))
    assert config.held_out_languages == ()


def test_what_is_done_is_not_done_again(done, monkeypatch):
    run, made = done
    before = {name: run.table(name) for name in ("answers", "tasks_choices", "tasks_translation", "tasks_scores")}

    def refuse(*_, **__):
        raise AssertionError("loaded a model")

    few = part.finetuning(made)
    monkeypatch.setattr(part, "finetuning", lambda _: (few[0].model_copy(update={"tasks": TASKS_HERE}), few[1]))
    monkeypatch.setattr(part, "load", refuse)
    monkeypatch.setattr(part.finetune, "load", refuse)
    part.stages(run, made)
    assert all(run.table(name).equals(frame) for name, frame in before.items())
    run.summary(part.summary(run, made.config))


def test_the_page_has_its_figures_and_numbers(done):
    run, _ = done
    summary, charts = run.read_summary(), part.figures(run)
    sections = part.sections(run)
    assert {section.figure for section in sections} - {None} == set(charts)
    for name in ("tasks_choices", "tasks_translation"):
        charts[name].to_dict()
    for line in (*part.headlines(run), *part.reported(run)):
        assert line.key in summary
    text = " ".join(section.text for section in sections)
    assert "languages that neither training shows (de)" in text
    assert "nan" not in text.lower().split()
    some = next(section.table for section in sections if section.heading == "Some translations")
    assert some.columns == ["language", "source", "reference", "before", "after"]
    assert any("epochs" in note for note in part.notes(run))


class Planted:
    """Tables by name, as a run has them."""

    def __init__(self, summary=None, **tables):
        self.manifest = {"seed": 0, "record": {}}
        self.tables = list(tables)
        self.table = tables.__getitem__
        self.read_summary = lambda: summary or {}


def test_ablations_are_paired_and_drawn_by_prompt():
    rng = np.random.default_rng(0)
    rows = []
    for prompt in range(30):
        for i in range(4):
            bits = float(rng.normal(5, 1))
            where = {"id": str(i), "task": "t", "prompt": str(prompt), "language": "en", "new": "seen"}
            for variant, more in (("before", 9.0), ("finetuned", 0.0), ("not normalised", 0.5), ("all tokens", 0.0)):
                right = variant != "all tokens" if prompt < 15 else variant == "finetuned"
                rows.append(
                    {**where, "variant": variant, "bits_per_byte": bits + more, "correct": right, "valid": True,
                     "ranked": None}
                )  # fmt: skip
    run = Planted(answers=pl.DataFrame(rows, infer_schema_length=None))
    found = {(row["variant"], row["measure"]): row for row in ablations(run).iter_rows(named=True)}
    one = found["not normalised", "bits_per_byte"]
    assert (one["difference"], one["lo"], one["hi"]) == pytest.approx((-0.5, -0.5, -0.5))
    assert one["examples"] == 120
    half = found["not normalised", "correct"]
    assert half["difference"] == pytest.approx(0.5)
    # Drawn by prompt, 30 of them: 1.96 standard errors of a half each way.
    assert half["hi"] - half["lo"] == pytest.approx(2 * 1.96 * np.sqrt(0.25 / 30), rel=0.2)
    assert found["all tokens", "correct"]["difference"] == 1
    assert found["all tokens", "bits_per_byte"]["difference"] == 0
    assert found["not normalised", "ranked"]["difference"] is None
    text = page._ablation_text(run)
    assert "Every target counting alike helps right answer, bits per target byte" in text
    assert "A loss on targets alone helps right answer, at" in text


def translated(variant, into, prompt, raw, reference):
    return {
        "variant": variant, "shots": 0, "id": str(hash(reference)), "language": "fr", "into": into, "prompt": prompt,
        "source": "le chat est sur la table", "reference": reference, "raw": raw, "truncated": raw.split("\n")[0],
        "stopped": True,
    }  # fmt: skip


def test_scores_are_of_all_sentences_together_and_the_middle_prompt_counts():
    sentences = [f"the cat number {word} is on the table" for word in ("one", "two", "three", "four")]
    rows = []
    for variant in ("before", "finetuned"):
        for prompt, ending in (("a", "\nand on and on it goes"), ("b", ""), ("c", " which is green")):
            rows += [translated(variant, "en", prompt, text + ending, text) for text in sentences]
        rows.append(translated(variant, "fr", "a", "le chat", "le chat"))
    scores = score_translations(pl.DataFrame(rows), 0)
    assert set(scores["language"]) == {"all"}
    out = scores.filter(pl.col("into") == "all")
    assert set(out["metric"]) == {"chrf"}
    run = Planted(tasks_scores=scores)
    found = {(r["variant"], r["into"], r["output"], r["metric"]): r for r in middle(run).iter_rows(named=True)}
    raw, cut = found["before", "en", "raw", "bleu"], found["before", "en", "truncated", "bleu"]
    by_hand = corpus_score([text + " which is green" for text in sentences], sentences, "bleu", "en")
    assert raw["score"] == pytest.approx(
        by_hand.value
    )  # (worst with what comes after the first line, best with nothing)
    assert raw["least"] < raw["score"] < raw["most"] == pytest.approx(100)
    assert (raw["lo"], raw["hi"]) == pytest.approx((by_hand.lo, by_hand.hi))
    assert cut["score"] == pytest.approx(100)
    assert found["before", "en", "source", "bleu"]["score"] < 20
    assert raw["sentences"] == 4


def choice_rows(task, n, share):
    rows = []
    for variant in ("before", "finetuned"):
        for i in range(n):
            for prompt in "abc":
                credit = float(i < share * n)
                rows.append(
                    {"variant": variant, "id": str(i), "task": task, "language": "en", "group": "g", "prompt": prompt,
                     "label": i % 2, "chance": 0.5, "sum": credit, "per_token": credit, "per_byte": credit, "pmi": None,
                     "margin": 0.0}
                )  # fmt: skip
    return pl.DataFrame(rows, schema={"variant": pl.String} | ROWS)


def test_chance_is_said_to_be_chance():
    tables = [choice_rows("xcopa", 40, 0.5), choice_rows("rte", 40, 0.9), choice_rows("crows_pairs", 40, 0.1)]
    run = Planted(tasks_choices=pl.concat(tables))
    assert sorted(choices(run, ["task"])["median"]) == [0.1, 0.1, 0.5, 0.5, 0.9, 0.9]
    text = page._choice_text(run)
    assert "XCOPA: 50.0% before finetuning" in text
    assert "not told apart from chance" in text.split("RTE")[0]
    assert ", above chance" in text.split("RTE")[1].split("CrowS")[0]
    assert "below no preference" in text.split("CrowS-Pairs: ")[1]


def test_the_words_follow_the_intervals():
    summary = {"k_before": 0.1, "k_after": 0.3, "c_lo": 0.1, "c_hi": 0.3}
    assert (
        page._moved(summary, "k", "Right", "c") == "Right: 10.0% before, 30.0% after (a rise: +10.0 to +30.0 points)."
    )
    assert "a fall" in page._moved({**summary, "c_lo": -0.3, "c_hi": -0.1}, "k", "Right", "c")
    assert "may be none" in page._moved({**summary, "c_lo": -0.1}, "k", "Right", "c")
    assert "no test changed" in page._moved({**summary, "c_lo": 0.0, "c_hi": 0.0}, "k", "Right", "c")
    assert page._moved({**summary, "c_lo": None}, "k", "Right", "c").endswith("30.0% after.")
    assert page._moved({}, "k", "Right", "c") == "Right: not measured."
    poor = page._translation_text(
        {"chrf_truncated_after_lo": 3.0, "chrf_source_after_hi": 9.0, "bleu_truncated_after": 0.4}
    )
    assert "not clearly above" in poor
    assert "does not translate" in poor
    good = page._translation_text(
        {"chrf_truncated_after_lo": 30.0, "chrf_source_after_hi": 9.0, "bleu_truncated_after": 20.0}
    )
    assert "are above what an untranslated copy gets" in good
    assert "does not translate" not in good


def test_without_sentence_pairs_nothing_is_translated(root, tmp_path):
    with Run.open(tmp_path / "r", "x", {}, seed=0, quiet=True) as run:
        assert part._to_translate(made_of(run, root, ("en",))) == []
    assert "Translation" not in {one.heading for one in page.sections(_without_translation())}


def _without_translation():
    rows = [
        {"id": "1", "task": "t", "prompt": p, "language": "en", "new": new, "variant": v, "valid": True, "stopped": True,
         "correct": True, "ranked": True, "bits_per_byte": 1.0}
        for p in "ab" for v in ("before", "finetuned", "not normalised", "all tokens") for new in ("seen", "prompt")
    ]  # fmt: skip
    names = ("train_examples", "train_prompts", "train_clusters", "train_languages", "prompts")
    summary = {f"finetune_n_{name}": 1 for name in names}
    counts = pl.DataFrame([{"new": "seen", "language": "en"}])
    return Planted(summary, answers=pl.DataFrame(rows), counts=counts, tasks_choices=choice_rows("rte", 10, 0.5))
