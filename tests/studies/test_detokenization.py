"""`inscape run detokenization` from end to end on small models of three position schemes, resumed, and refused."""

import itertools
import json
import random

import numpy as np
import polars as pl
import pytest
import torch
from transformers import BloomConfig, GPT2Config, LlamaConfig

import inscape
from inscape.cli import main
from inscape.errors import InputError
from inscape.runs import read_run
from inscape.studies import detokenization, run_study
from inscape.studies.detokenization_setup import draw_texts
from inscape.studies.detokenization_suffixes import chosen_suffixes
from inscape.training.corpus import fit_bpe, untrained

SMALL = {"texts": 6, "length": 24, "recent": 4, "top": 4}
TERMS = {
    "gpt2": {"ee", "ep", "pe", "pp", "e", "p"},
    "bloom": {"ee", "e", "alibi"},
    "llama": {"ee"},
}
WORDS = [
    "marsh",
    "marshland",
    "selvo",
    "tin",
    "tinder",
    "over",
    "the",
    "hill",
    "hillside",
    "ran",
    "rang",
    "cat",
    "catfish",
]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    draw = random.Random(0)
    file = tmp_path_factory.mktemp("corpus") / "text.txt"
    file.write_text("\n\n".join(" ".join(draw.choice(WORDS) for _ in range(40)) for _ in range(40)))
    return file


def a_folder(family, corpus, folder, rows=None):
    """A model of a family with every parameter drawn at random, and a tokenizer of the text."""
    tokenizer = fit_bpe(corpus.read_text().split("\n\n"), 300)
    ids = {"vocab_size": rows or len(tokenizer), "bos_token_id": None, "eos_token_id": 0, "pad_token_id": None}
    config = {
        "gpt2": lambda: GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=32, **ids),
        "bloom": lambda: BloomConfig(hidden_size=16, n_layer=2, n_head=2, **ids),
        "llama": lambda: LlamaConfig(
            hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
            max_position_embeddings=32, **ids,
        ),
    }[family]()  # fmt: skip
    model = untrained(config)
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=draw))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=["gpt2", "bloom", "llama"])
def done(request, corpus, tmp_path_factory):
    root = tmp_path_factory.mktemp(request.param)
    model = a_folder(request.param, corpus, root / "model")
    given = {"model": str(model), "corpus": [str(corpus)], **SMALL}
    return request.param, given, run_study("detokenization", given, root / "run", quiet=True)


def test_a_run_has_its_numbers_and_its_page(done):
    family, _, run = done
    summary = run.read_summary()
    heads = 4 if family == "llama" else 2
    assert summary["sum_of_terms_max_error"] < 1e-5
    assert 0 < summary["auroc_best_head"] < 1
    assert summary["auroc_best_head"] == max(summary[f"auroc_head_{head}"] for head in range(heads))
    assert summary[f"auroc_head_{summary['best_head']}"] == summary["auroc_best_head"]
    assert summary["auroc_best_head_lo"] < summary["auroc_best_head"] < summary["auroc_best_head_hi"]
    assert (summary["sigma_ratio_max"] > 1) == (family == "gpt2")
    assert -1 <= summary["position_profile_corr"] <= 1
    assert (summary["token_frequency_spearman"] is None) == (family == "llama")
    assert {key.removeprefix("importance_") for key in summary if key.startswith("importance_")} - {"r"} == TERMS[
        family
    ]
    for name in ("at_init", "unigram"):
        assert summary[f"auroc_matched_{name}"] is not None
    assert 0.3 < summary["auroc_best_head_at_init"] < 0.7
    page = (run.folder / "report.html").read_text()
    assert "One head at a time" in page
    spec = json.loads((run.folder / "figures" / "heads.json").read_text())
    [picker] = [one for one in spec["params"] if one["name"] == "head"]
    assert (picker["bind"]["options"], picker["value"]) == (list(range(heads)), summary["best_head"])


def test_counts_are_those_of_the_text(done, corpus):
    _, given, run = done
    tokenizer = inscape.load(given["model"], check=False).tokenizer
    rows = [tokenizer(text)["input_ids"] for text in corpus.read_text().split("\n\n")]
    pairs = {pair for row in rows for pair in itertools.pairwise(row)}
    assert run.read_summary()["n_bigrams"] == sum(len(row) - 1 for row in rows)
    assert run.read_summary()["n_distinct_bigrams"] == len(pairs)
    top = run.table("prefixes")
    seen = {(p, s): n for p, s, n in top.select("prefix", "suffix", "count").iter_rows()}
    assert all((n > 0) == (pair in pairs) for pair, n in seen.items())
    assert top["rank"].max() == 4


def test_profiles_are_of_the_models_own_attention(done):
    _, given, run = done
    lm = inscape.load(given["model"], attn_implementation="eager")
    texts = run.table("texts")["ids"].to_list()
    table = run.table("attention")
    for number, ids in enumerate(texts[:2]):
        with torch.no_grad():
            own = lm.model(torch.tensor([ids]), output_attentions=True).attentions[0][0]
        farthest = 12
        for head in range(len(own)):
            found = table.filter((pl.col("text") == number) & (pl.col("head") == head))["profile"][0].to_numpy()
            expected = [np.mean([own[head, i, i - d] for i in range(farthest, len(ids))]) for d in range(farthest + 1)]
            np.testing.assert_allclose(found[:-1], expected, atol=1e-5)


def test_a_run_goes_on_where_it_stopped_and_ends_the_same(done, tmp_path, monkeypatch):
    _, given, run = done

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(detokenization, "top_prefixes", killed)
        with pytest.raises(KeyboardInterrupt):
            run_study("detokenization", given, tmp_path / "run", quiet=True)
    before = read_run(tmp_path / "run")
    assert not before.done
    assert before.tables[-2:] == ["roc", "matched"]
    with monkeypatch.context() as patch:  # (what is done is not done again)
        patch.setattr(detokenization, "bigram_auroc", killed)
        patch.setattr(detokenization, "count_bigrams", killed)
        again = run_study("detokenization", given, tmp_path / "run", quiet=True)
    for name in run.tables:
        assert again.table(name).equals(run.table(name)), name
    assert again.read_summary() == run.read_summary()


def test_without_a_text_a_model_is_read_from_its_weights_alone(done, tmp_path):
    _, given, whole = done
    run = run_study("detokenization", {**given, "corpus": None}, tmp_path / "run", quiet=True)
    summary = run.read_summary()
    assert run.tables == ["heads", "positions"]
    assert (summary["auroc_best_head"], summary["n_bigrams"]) == (None, None)
    assert run.table("positions").equals(whole.table("positions"))
    assert "No text was given" in (run.folder / "report.html").read_text()


def test_the_published_form_counts_unseen_suffixes_as_zero(done, tmp_path):
    family, given, run = done
    if family != "gpt2":
        pytest.skip("one family is enough: the switch is not in the model")
    published = run_study("detokenization", {**given, "published": True}, tmp_path / "run", quiet=True).read_summary()
    usual = run.read_summary()
    vocab = read_run(run.folder).manifest["record"]["embedding_rows"]
    assert usual["n_suffixes"] < vocab
    for head in range(2):
        expected = usual[f"auroc_head_{head}"] * usual["n_suffixes"] / vocab
        assert published[f"auroc_head_{head}"] == pytest.approx(expected)
    assert published["importance_ee"] != pytest.approx(usual["importance_ee"], rel=0.01)


def test_a_model_of_the_papers_shape_is_compared_with_the_paper(done, tmp_path, monkeypatch):
    family, given, run = done
    if family != "gpt2":
        pytest.skip("the paper's model is a GPT-2")
    monkeypatch.setattr(detokenization, "is_gpt2_small", lambda config: True)
    monkeypatch.setattr("inscape.studies.detokenization_gpt2.AUROC", {1: 0.9, 0: 0.1})
    monkeypatch.setattr("inscape.studies.detokenization_gpt2.KINDS", {1: "self"})
    made = run_study("detokenization", given, tmp_path / "run", quiet=True)
    found = dict(made.table("gpt2").select("check", "here").iter_rows())
    published = run.read_summary()["auroc_head_1"] * run.read_summary()["n_suffixes"] / 300
    assert float(found["mean AUROC, head 1"]) == pytest.approx(published, abs=2e-3)
    assert found["first prefixes of 'iens', head 7"] == "no such token"
    assert "The paper’s model" in made.folder.joinpath("report.html").read_text().replace("'", "’").replace(
        "&#39;", "’"
    )


def test_smoke_needs_nothing_and_says_where_its_page_is(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("INSCAPE_SHARED", raising=False)
    for kind in ("gpt2", "bloom"):
        with pytest.raises(SystemExit) as stopped:
            main(["run", "detokenization", "--smoke", "--kind", kind, "--out", str(tmp_path / kind), "--quiet"])
        assert stopped.value.code == 0
        assert capsys.readouterr().out.strip().endswith("report.html")
        record = read_run(tmp_path / kind).manifest["record"]
        assert record["model_type"] == kind
        assert record["trained_here"]["validation_loss"] < record["trained_here"]["unigram_entropy"]


# -- what is refused -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(corpus, tmp_path_factory):
    return a_folder("gpt2", corpus, tmp_path_factory.mktemp("one") / "model")


def refused(message, tmp_path, **given):
    with pytest.raises(InputError, match=message):
        run_study("detokenization", {**SMALL, **given}, tmp_path / "run", quiet=True)


@pytest.mark.parametrize("content", [b"", b"\n\n \n"])
def test_an_empty_corpus_is_refused(model, tmp_path, content):
    (tmp_path / "empty.txt").write_bytes(content)
    refused("no document", tmp_path, model=str(model), corpus=[str(tmp_path / "empty.txt")])
    refused("0 documents", tmp_path / "untrained", corpus=[str(tmp_path / "empty.txt")])


def test_a_corpus_that_is_not_utf8_is_named_with_its_offset(model, tmp_path):
    file = tmp_path / "latin.txt"
    file.write_bytes(b"cat ran\n\nna\xefve cat\n")
    refused(rf"{file}: not UTF-8 at byte 11", tmp_path, model=str(model), corpus=[str(file)])


def test_files_of_two_kinds_and_missing_ones_are_refused(model, corpus, tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "cat"}\n')
    refused("files of one kind", tmp_path, model=str(model), corpus=[str(corpus), str(tmp_path / "a.jsonl")])
    refused("No such file", tmp_path, model=str(model), corpus=[str(tmp_path / "none.txt")])
    refused("no files", tmp_path, model=str(model), corpus=[])


def test_a_tokenizer_that_knows_more_than_the_embedding_is_refused(corpus, tmp_path):
    folder = a_folder("gpt2", corpus, tmp_path / "model", rows=270)
    refused("expected the tokenizer of the model", tmp_path, model=str(folder), corpus=[str(corpus)])


def test_an_embedding_with_more_rows_than_tokens_is_used_and_told(corpus, tmp_path):
    folder = a_folder("gpt2", corpus, tmp_path / "model", rows=320)
    run = run_study(
        "detokenization", {**SMALL, "model": str(folder), "corpus": [str(corpus)]}, tmp_path / "run", quiet=True
    )
    assert run.manifest["record"]["embedding_rows"] == 320
    assert "the embedding has 320 rows" in (run.folder / "report.html").read_text()


def test_a_model_without_a_tokenizer_is_refused(model, corpus, tmp_path):
    (tmp_path / "bare").mkdir()
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "bare" / name).write_bytes((model / name).read_bytes())
    refused("no tokenizer in the folder", tmp_path, model=str(tmp_path / "bare"), corpus=[str(corpus)])


def test_texts_shorter_than_asked_for_are_refused(model, tmp_path):
    (tmp_path / "short.txt").write_text("cat ran\n\nthe hill")
    refused("no document of 13 tokens", tmp_path, model=str(model), corpus=[str(tmp_path / "short.txt")])


def test_drawn_texts_are_documents_of_the_text(model, corpus):
    lm = inscape.load(model)
    documents = corpus.read_text().split("\n\n")
    found = draw_texts(lm, [corpus], 5, 16, 9, seed=0)
    assert len(found) == 5
    for ids in found:
        assert 9 <= len(ids) <= 16
        assert any(text.startswith(lm.decode([ids])[0]) for text in documents)
    assert found == draw_texts(lm, [corpus], 5, 16, 9, seed=0) != draw_texts(lm, [corpus], 5, 16, 9, seed=1)


def test_suffixes_are_those_asked_for_or_the_frequent_ones_inside_words(done):
    _, given, run = done
    lm = inscape.load(given["model"], check=False)
    from safetensors.numpy import load_file

    bigrams = detokenization.bigrams_of(load_file(run.folder / "arrays" / "bigrams.safetensors"))
    cat = lm.tokenizer(" cat")["input_ids"]
    assert len(cat) == 1
    assert chosen_suffixes(lm, bigrams, [" cat", " cat"]) == cat
    with pytest.raises(InputError, match="expected a text of one token"):
        chosen_suffixes(lm, bigrams, ["cat over"])
    shown = lm.tokenizer.convert_ids_to_tokens(chosen_suffixes(lm, bigrams, None))
    assert shown
    assert all(token.isalpha() and len(token) >= 3 and not token.startswith("Ġ") for token in shown)
