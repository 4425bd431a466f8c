"""`inscape tokenizer train` from end to end on a small corpus, resumed, and refused."""

import gzip
import json
import random

import pytest
from transformers import AutoTokenizer

from inscape.data.corpus.corpus import Corpus
from inscape.errors import InputError
from inscape.runs import Run
from inscape.runs.figures import draw
from inscape.studies import tokenizer_train, tokenizer_train_page
from inscape.training.bpe import token_counts, train_bpe, train_monolingual

WORDS = {
    "en": [
        "the",
        "of",
        "river",
        "mountain",
        "where",
        "people",
        "walk",
        "slowly",
        "toward",
        "evening",
        "and",
        "morning",
        "light",
    ],
    "el": [
        "το",
        "του",
        "ποταμός",
        "βουνό",
        "όπου",
        "άνθρωποι",
        "περπατούν",
        "αργά",
        "προς",
        "βράδυ",
        "και",
        "πρωί",
        "φως",
    ],
    "zh": ["山", "水", "人", "日", "月", "早上", "晚上", "慢慢", "走", "光"],
    "zh-Hant": ["語", "時", "間", "風", "雲", "書", "車", "馬"],
    "tiny": ["qua", "zu", "ri"],
}
SIZES = {"en": 400, "el": 120, "zh": 100, "zh-Hant": 60, "tiny": 9}


def lines_of(language, n, seed):
    draw_word = random.Random(f"{language} {seed}")
    return [" ".join(draw_word.choice(WORDS[language]) + "," * (i % 3 == 0) for i in range(12)) for _ in range(n)]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """A folder in the form of `inscape corpus build`."""
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "text").mkdir()
    languages = {}
    for language, n in SIZES.items():
        rows = {"train": lines_of(language, n, 0), "validation": lines_of(language, n // 10, 1)}
        with gzip.open(folder / "text" / f"{language}.jsonl.gz", "wt", encoding="utf-8") as file:
            for split, lines in rows.items():
                for i, text in enumerate(lines):
                    row = {"id": f"{split}{i}", "lang": language, "source": "made", "split": split, "text": text}
                    file.write(json.dumps(row) + "\n")
        languages[language] = {
            "sha256": language,
            **{
                split: {"bytes": sum(len(text.encode()) for text in lines), "documents": len(lines)}
                for split, lines in rows.items()
            },
        }
    (folder / "manifest.json").write_text(json.dumps({"format": "inscape corpus 1", "languages": languages}))
    return folder


@pytest.fixture(scope="module")
def sentences(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sentences")
    conllu = "".join(f"# sent_id = {i}\n# text = {text}\n1\tx\n\n" for i, text in enumerate(lines_of("zh", 40, 2)))
    (folder / "zh.conllu.gz").write_bytes(gzip.compress(conllu.encode()))
    (folder / "el.txt").write_text("\n".join(lines_of("el", 40, 2)) + "\n\n")
    (folder / "ko.txt").write_text("한국어 문장\n")
    (folder / "README.md").write_text("no sentences")
    return folder


def finished(out, corpus, **fields):
    config = tokenizer_train.Config(corpus=str(corpus), vocabulary=320, least_bytes=500, **fields)
    asked = tokenizer_train.asked_for(config)
    with Run.open(
        out,
        "tokenizer train",
        config.identity(),
        seed=config.seed,
        inputs=tokenizer_train.inputs_of(config, asked),
        quiet=True,
    ) as run:
        tokenizer_train.run(config, asked, run)
        for name, chart in tokenizer_train_page.figures(run).items():
            draw(run.folder / "figures", name, chart)
            run.manifest["figures"].append(name)
        run.finish(tokenizer_train_page.page(run))
    return run


@pytest.fixture(scope="module")
def done(corpus, sentences, tmp_path_factory):
    return finished(tmp_path_factory.mktemp("run") / "out", corpus, evaluation=str(sentences), sample_bytes=20_000)


def corpus_texts(corpus, *languages):
    opened = Corpus.open(corpus)
    return {name: lambda name=name: (document.text for document in opened.documents([name])) for name in languages}


def test_the_run_holds_the_tokenizer_of_the_corpus(done, corpus):
    saved = AutoTokenizer.from_pretrained(done.folder / "tokenizer")
    texts = corpus_texts(corpus, "el", "en", "zh", "zh-Hant")
    made = train_bpe(texts, 320, sample_bytes=20_000)
    assert saved.backend_tokenizer.to_str() == made.backend_tokenizer.to_str()
    shares = {row["language"]: row for row in done.table("shares").iter_rows(named=True)}
    assert set(shares) == set(texts)  # ("tiny" has less text than it takes)
    assert shares["zh-Hant"]["sampled"] == shares["zh-Hant"]["bytes"]
    assert shares["en"]["share_sampled"] < shares["en"]["share"]


def test_languages_are_held_against_their_own_tokenizer(done, corpus, sentences):
    rows = {row["language"]: row for row in done.table("fertility").iter_rows(named=True)}
    assert {name: row["sentences"] for name, row in rows.items()} == {"zh": 40, "el": 40, "ko": 1}
    tokenizer = AutoTokenizer.from_pretrained(done.folder / "tokenizer")
    alone = train_monolingual(corpus_texts(corpus, "zh", "zh-Hant"), 320)
    texts = lines_of("zh", 40, 2)
    assert rows["zh"]["ratio"] == pytest.approx(token_counts(tokenizer, texts).sum() / token_counts(alone, texts).sum())
    assert rows["zh"]["ratio_lo"] <= rows["zh"]["ratio"] <= rows["zh"]["ratio_hi"]
    assert rows["ko"]["ratio"] is None
    assert not rows["ko"]["trained_on"]
    summary = done.read_summary()
    assert (summary["sentences"], summary["sentences_not_restored"]) == (81, 0)
    assert (summary["vocabulary"], summary["padded_vocabulary"], summary["n_languages"]) == (320, 384, 4)
    assert summary["languages_compared"] == 2
    assert summary["languages_within_bar"] == sum(rows[name]["ratio"] <= 1.1 for name in ("zh", "el"))
    assert summary["fertility_el"] == rows["el"]["tokens"] / rows["el"]["words"]


def test_the_page_says_so(done):
    page = (done.folder / "report.html").read_text()
    assert "gives back all 81 sentences to the byte" in page
    assert "Evaluated, but nothing of them was learned from: ko." in page
    assert (done.folder / "figures" / "ratio.svg").exists()
    longest = done.table("longest")
    assert longest["characters"].to_list() == sorted(longest["characters"].to_list(), reverse=True)


def test_a_tokenizer_that_is_lost_is_made_again_and_one_that_was_changed_is_refused(done, corpus, sentences):
    file = done.folder / "tokenizer" / "tokenizer.json"
    before = file.read_bytes()
    again = {"evaluation": str(sentences), "sample_bytes": 20_000}
    file.unlink()
    finished(done.folder, corpus, **again)
    assert file.read_bytes() == before
    file.write_bytes(before + b" ")
    with pytest.raises(InputError, match="is not the tokenizer that this run made"):
        finished(done.folder, corpus, **again)
    file.write_bytes(before)


def test_without_sentences_the_text_held_back_is_judged(corpus, tmp_path):
    run = finished(tmp_path / "run", corpus, languages=("zh-Hant", "tiny", "en"), monolingual=False, sample_bytes=None)
    rows = {row["language"]: row for row in run.table("fertility").iter_rows(named=True)}
    assert {name: row["sentences"] for name, row in rows.items()} == {
        "en": 40,
        "zh-Hant": 6,
    }  # (of "tiny" nothing is held back)
    assert run.read_summary()["ratio_mean"] is None
    assert "ratio" not in tokenizer_train_page.figures(run)
    shares = {row["language"]: row["sampled"] for row in run.table("shares").iter_rows(named=True)}
    assert shares["tiny"] < shares["zh-Hant"] < shares["en"] < 4 * shares["tiny"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"corpus": None}, r"corpus: none given"),
        ({"languages": ("en", "xx")}, "no training text in 'xx'"),
        ({"least_bytes": 10**9}, "no language with 1000000000 bytes"),
        ({"evaluation": "nowhere"}, "evaluation nowhere: no such folder"),
    ],
)
def test_what_is_not_there_is_refused(corpus, fields, message):
    with pytest.raises(InputError, match=message):
        tokenizer_train.asked_for(tokenizer_train.Config(**{"corpus": str(corpus), "least_bytes": 500, **fields}))


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "no file <lang>.conllu"),
        ({"en.txt": b"\n \n"}, "no sentence in it"),
        ({"en.txt": b"\xff"}, "can't be read as UTF-8"),
        ({"en.txt.gz": gzip.compress(b"text " * 99)[:-9]}, "can't be read"),
        ({"en.txt.gz": b"text"}, "can't be read"),
        ({"en.txt": b"a\n", "en.conllu": b"# text = a\n"}, "two files of 'en'"),
    ],
)
def test_sentences_that_cannot_be_read_are_refused(tmp_path, files, message):
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        tokenizer_train.read_sentences(tmp_path)


def test_smoke_is_a_config(corpus):
    assert tokenizer_train.Config(corpus=str(corpus), **tokenizer_train.SMOKE).vocabulary == 512
