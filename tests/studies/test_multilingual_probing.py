"""The part *probing* of the miniature: a last checkpoint that can tell no two sentences apart must come out as such."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
import torch
from transformers import BloomConfig

from inscape.data.treebanks import KINDS, read_treebank
from inscape.errors import InputError
from inscape.probing.morphosyntax import probe, rows_of, sentence_splits
from inscape.probing.scores import f1_interval
from inscape.runs import Page, Run
from inscape.studies import multilingual_probing as part
from inscape.studies.multilingual_probing_page import told
from inscape.studies.multilingual_probing_summary import best_on_dev, by_task, difference, language_rows, moved
from inscape.studies.multilingual_setup import Asked, Config, Made
from inscape.training.architectures import save_hf
from inscape.training.bloom import Bloom
from inscape.training.corpus import fit_bpe

SIZES = {"en": 900, "zh": 100, "zh-Hant": 200, "code": 5}
MARKED, HIDDEN = "Case=Acc", "Mood=Sub"
N = 130


def write_treebanks(folder, languages=("en", "ru", "zh"), n=N):
    """Half of the sentences have the word "acc" (and Case=Acc), half "soon" (an adverb), half a mood that nothing shows.

    English has eight features more that nothing shows.
    """
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    has = rng.random((n, 11)) < 0.5
    for language in languages:
        with (folder / f"{language}.conllu").open("w") as stream:
            for i, (marked, adverb, mood, *more) in enumerate(has.tolist()):
                words = [("acc" if marked else "nom", "NOUN", MARKED if marked else "_")]
                words += [("soon" if adverb else "moon", "ADV" if adverb else "NOUN", HIDDEN if mood else "_")]
                if language == "en":
                    words += [("x", "NOUN", "|".join(f"X{k}=Yes" for k, one in enumerate(more) if one) or "_")]
                words += [("x", "NOUN", "_")] * (i % 4)
                text = " ".join(word for word, _, _ in words)
                stream.write(f"# sent_id = s{i}\n# text = {text}\n")
                for k, (word, upos, features) in enumerate(words, start=1):
                    stream.write(f"{k}\t{word}\t_\t{upos}\t_\t{features}\t0\troot\t_\t_\n")
                stream.write("\n")


def made_of(run, corpora):
    """Step 1 has random weights; step 3 the same embedding for all tokens."""
    config = Config(size="smoke", languages=("en", "zh", "zh-Hant"), held_out=("ru",), threads=1, corpora=str(corpora))
    tokenizer = fit_bpe(["acc nom soon moon x"] * 5, 270)
    torch.manual_seed(0)
    model = Bloom(BloomConfig(vocab_size=len(tokenizer), hidden_size=16, n_layer=1, n_head=2, initializer_range=0.1))
    for step in (0, 1, 3):
        if step == 3:
            with torch.no_grad():
                model.transformer.word_embeddings.weight.fill_(0.5)
        save_hf(model, model.hf_config, tokenizer, run.folder / "model" / "checkpoints" / f"step-{step}")
    corpus = SimpleNamespace(bytes_by_language=lambda: SIZES)
    return Made(run, config, Asked(corpora), corpus, run.folder, None, run.folder / "model", {})


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    root = tmp_path_factory.mktemp("pack")
    write_treebanks(root / "eval" / "pud")
    run = Run.open(tmp_path_factory.mktemp("run") / "r", "x", {}, seed=0, quiet=True)
    made = made_of(run, root)
    part.stages(run, made)
    run.summary(part.summary(run, made.config))
    yield run, made
    run.close()


def test_a_checkpoint_that_tells_nothing_apart_is_below_the_untrained_model_and_n_grams(done):
    summary = done[0].read_summary()
    for key in ("probe_above_random_init", "probe_above_ngrams", "probe_above_random_init_unseen",
                "probe_transfer_above_random_init"):  # fmt: skip
        assert summary[f"{key}_lo"] <= summary[key] <= summary[f"{key}_hi"] < -0.05
    assert summary["probe_f1_mean"] < 0.65
    text = part.sections(done[0])[0].text
    assert "below an untrained model" in text
    assert "below n-grams" in text
    assert "clearly above the untrained model in 0 of 3" in text
    assert "no sign of grammar beyond word forms" in text


def test_what_is_in_the_words_is_found_and_what_is_nowhere_is_not(done):
    run, _ = done
    for name in ("untrained", "n-grams"):
        for row in language_rows(run, name).iter_rows(named=True):
            f1 = dict(zip(row["task"], row["task_f1"], strict=True))
            assert f1[MARKED] > 0.9
            assert f1[HIDDEN] < 0.75
    tasks = {row["language"]: row["task"] for row in language_rows(run, "trained").iter_rows(named=True)}
    assert "upos=ADV" in tasks["zh"]
    assert "upos=ADV" not in tasks["en"]  # (it has features enough)
    assert len(tasks["en"]) == 10


def test_the_series_has_the_untrained_model_and_steps_after_the_first(done):
    rows = done[0].table("probing_series")
    assert rows["step"].unique().sort().to_list() == [None, 1, 3]
    assert rows.group_by("representation").agg(pl.col("layer").n_unique())["layer"].to_list() == [2, 2, 2]
    text = next(s.text for s in part.sections(done[0]) if s.heading == "By layer and checkpoint")
    assert "From step 1 to step 3, F1 at the best layers changes by -0." in text


def test_all_rows_are_tested_on_the_same_sentences(done):
    run, _ = done
    for name in ("probing_languages", "probing_transfer"):
        assert run.table(name)["test_sentences"].n_unique() == 1
    rows = run.table("probing_transfer")
    assert {tuple(tasks) for tasks in rows["task"]} == {(MARKED, HIDDEN, "upos=ADV")}
    pairs = moved(run).filter(representation="trained")
    assert pairs.height == 9
    # The same words in all languages: what the untrained model has of them moves from each to each.
    apart = moved(run).filter((pl.col("representation") == "untrained") & (pl.col("source") != pl.col("target")))
    for row in apart.iter_rows(named=True):
        assert dict(zip(row["task"], row["task_f1"], strict=True))[MARKED] > 0.9


def test_sizes_count_either_chinese_and_no_language_that_was_held_out(done):
    rows = done[0].table("probing_factors").filter(score="F1")
    counts = dict(zip(rows["test"], rows["languages"], strict=True))
    assert counts == {"Pearson, log size": 2, "Spearman": 3, "Mann-Whitney": 3, "ANOVA": 3}
    assert rows.filter(test="Pearson, log size")["statistic"][0] is None


def test_by_task_is_the_mean_over_the_languages_that_have_it(done):
    run, _ = done
    row = by_task(run).filter(task="upos=ADV").row(0, named=True)
    assert row["languages"] == 2
    own, floor = (
        np.mean([
            dict(zip(one["task"], one["task_f1"], strict=True))["upos=ADV"]
            for one in language_rows(run, name).filter(pl.col("language") != "en").iter_rows(named=True)
        ])
        for name in ("trained", "untrained")
    )  # fmt: skip
    assert row["f1"] == pytest.approx(own)
    assert row["above untrained"] == pytest.approx(own - floor)
    assert row["above untrained, lo"] <= row["above untrained"] <= row["above untrained, hi"] < 0


def test_a_second_run_reads_what_is_there(done, monkeypatch):
    run, made = done

    def never(*_, **__):
        raise AssertionError

    for name in ("read_treebanks", "load", "sentence_states"):
        monkeypatch.setattr(part, name, never)
    part.stages(run, made)
    assert part.summary(run, made.config).keys() == run.read_summary().keys()


def test_the_page_tells_only_of_numbers_that_are_there(done):
    run, _ = done
    summary = run.read_summary()
    assert {line.key for line in part.headlines(run)} <= set(summary)
    assert {line.key for line in part.reported(run) if line.key} <= set(summary)
    charts = part.figures(run)
    for name, chart in charts.items():
        run.figure(name, chart)
    sections = part.sections(run)
    assert {section.figure for section in sections if section.figure} == set(charts)
    for section in sections:
        assert "nan" not in section.text
        assert "None" not in section.text
    assert "zh" in " ".join(part.notes(run))
    assert Page("t", "l", part.headlines(run), sections, part.reported(run), part.notes(run))


def test_difference_is_the_paired_interval_over_sentences(tmp_path):
    write_treebanks(tmp_path / "pud", ("en", "zh"))
    rng = np.random.default_rng(1)
    of, less = [], []
    for language in ("en", "zh"):
        bank = read_treebank(tmp_path / "pud" / f"{language}.conllu")
        tasks, splits = bank.presence(("feature",)), sentence_splits(bank, (0, 1))
        X = rng.normal(size=(len(bank), 6))
        X[:, 0] += tasks.values[:, 0]
        less.append(probe(X[:, 1:], bank, tasks, splits, representation="noise"))
        of.append(probe(X, bank, tasks, splits, representation="signal"))
    made = SimpleNamespace(config=SimpleNamespace(languages=("en",)))
    for minus in (None, less):
        theirs = f1_interval(of, minus)
        ours = difference(part.table(of, made), None if minus is None else part.table(minus, made))
        np.testing.assert_allclose([ours.value, ours.lo, ours.hi], [theirs.value, theirs.lo, theirs.hi], atol=1e-6)


def test_best_on_dev_takes_the_first_of_equals_and_keeps_the_order():
    rows = pl.DataFrame({"language": ["b", "b", "b", "a"], "layer": [0, 1, 2, 0], "dev_f1": [0.5, 0.7, 0.7, 0.1]})
    assert best_on_dev(rows).select("language", "layer").rows() == [("b", 1), ("a", 0)]


def test_rare_tasks_are_left_out_and_too_few_sentences_refused(tmp_path):
    write_treebanks(tmp_path / "pud", ("en",))
    bank = read_treebank(tmp_path / "pud" / "en.conllu")
    tasks, splits = bank.presence(KINDS), sentence_splits(bank, (0, 1))
    train = rows_of(bank.ids, splits[1], "train")
    values = tasks.values.copy()
    values[:, 3] = False
    values[train[:11], 3] = True
    rare = dataclasses.replace(tasks, values=values)
    assert part.enough(rare, bank, bank, splits).names == tuple(n for n in tasks.names if n != tasks.names[3])
    with pytest.raises(InputError, match=r"probing en: no property has 12 .* among 20 sentences"):
        part.enough(tasks, bank, bank.sample(20), splits)


@pytest.mark.parametrize(
    ("ends", "word"), [((0.01, 0.2), "above"), ((-0.2, -0.01), "below"), ((-0.1, 0.1), "not told apart from")]
)
def test_told_by_the_interval_alone(ends, word):
    summary = {"k": 0.05, "k_lo": ends[0], "k_hi": ends[1]}
    assert told(summary, "k", "chance").startswith(f"{word} chance (+0.050")
    assert told({"k": 0.05, "k_lo": None, "k_hi": None}, "k", "chance") == "not compared with chance"
