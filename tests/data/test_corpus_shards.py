"""Token shards: the same tokens as the tokenizer gives for each document; resumed; refused when they don't fit."""

import json

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from tokenizers import decoders as decoding
from transformers import PreTrainedTokenizerFast

from inscape.data.corpus import Corpus, CorpusConfig, Source, TokenShards, build_corpus, encode_corpus
from inscape.data.corpus import shards as sharding
from inscape.data.corpus.sources import TEXT_ONLY
from inscape.errors import InputError

TEXTS = {
    "en": [f"the cat sat on mat number {i} and </s> looked at {i * i}" for i in range(40)],
    "hi": [f"बिल्ली चटाई {i} पर बैठी" for i in range(25)],
    "wo": ["benn rekk la"],
}


def tokenizer(size=400, eos="</s>"):
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoding.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=["<unk>", "<s>", "</s>", "<pad>"], initial_alphabet=alphabet
    )
    backend.train_from_iterator([text for texts in TEXTS.values() for text in texts], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, **({"eos_token": eos} if eos else {}))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    lines = [
        {"id": f"{lang}{i}", "lang": lang, "text": text}
        for lang, texts in TEXTS.items()
        for i, text in enumerate(texts)
    ]
    (folder / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    source = Source(name="s", files=(str(folder / "a.jsonl"),), skip=(*TEXT_ONLY, "length", "near"), pii=())
    build_corpus(CorpusConfig(sources=(source,), validation=0.2), folder / "corpus", processes=1)
    return Corpus.open(folder / "corpus")


def test_tokens_are_those_of_each_document_and_decode_to_its_text(corpus, tmp_path):
    words = tokenizer()
    told = []
    shards = encode_corpus(corpus, words, tmp_path / "out", processes=1, progress=told.append)
    assert shards.languages == ["en", "hi", "wo"]
    assert shards.vocabulary == len(words)
    assert shards.eos_id == 2
    n = 0
    for split in ("train", "validation"):
        for language in shards.languages:
            part = shards.part(split, language)
            documents = list(corpus.documents([language], split))
            assert part.n_documents == len(documents) == len(part.starts) - 1
            assert part.tokens.dtype == np.uint16
            assert part.bytes.tolist() == [len(document.text.encode()) for document in documents]
            for i, document in enumerate(documents):
                ids = part.document(i)
                assert ids[-1] == 2
                assert not (ids[:-1] == 2).any()  # (text that spells the end-of-sequence token is text)
                assert words.decode(ids[:-1]) == document.text
            n += len(part.tokens)
    assert shards.n_tokens == n
    assert shards.n_documents == sum(len(texts) for texts in TEXTS.values())
    assert sum(told) == sum(len(text.encode()) for texts in TEXTS.values() for text in texts)
    empty = shards.part("validation", "wo")
    assert empty.n_documents == len(empty.tokens) == 0
    assert empty.starts.tolist() == [0]


def test_the_same_from_several_processes(corpus, tmp_path, monkeypatch):
    words = tokenizer()
    encode_corpus(corpus, words, tmp_path / "one", processes=1)
    monkeypatch.setattr(sharding, "_BATCH", 200)
    encode_corpus(corpus, words, tmp_path / "two", processes=2)
    files = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*") if path.is_file())
    assert len(files) == 19
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_a_part_that_is_done_is_not_encoded_again(corpus, tmp_path, monkeypatch):
    words = tokenizer()
    encode_corpus(corpus, words, tmp_path / "whole", processes=1)
    encode, calls = sharding._encode, []

    def stopping(texts):
        calls.append(texts)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return encode(texts)

    monkeypatch.setattr(sharding, "_encode", stopping)
    with pytest.raises(KeyboardInterrupt):
        encode_corpus(corpus, words, tmp_path / "out", processes=1)
    with pytest.raises(InputError, match="cannot be read"):
        TokenShards.open(tmp_path / "out")
    with pytest.raises(InputError, match="was begun for others"):
        encode_corpus(corpus, tokenizer(300), tmp_path / "out", processes=1)
    encode_corpus(corpus, words, tmp_path / "out", processes=1)
    assert not [texts for texts in calls[3:] if texts in calls[:2]]
    for file in (tmp_path / "whole").rglob("*.*"):
        assert file.read_bytes() == (tmp_path / "out" / file.relative_to(tmp_path / "whole")).read_bytes()
    stamp = len(calls)
    encode_corpus(corpus, words, tmp_path / "out", processes=1)
    assert len(calls) == stamp


def test_what_does_not_fit_is_refused(corpus, tmp_path):
    words = tokenizer()
    with pytest.raises(InputError, match="no end-of-sequence token"):
        encode_corpus(corpus, tokenizer(eos=None), tmp_path / "a", processes=1)
    shards = encode_corpus(corpus, words, tmp_path / "a", processes=1)
    with pytest.raises(InputError, match=r"other token shards \(tokenizer_sha256 differs\)"):
        encode_corpus(corpus, tokenizer(300), tmp_path / "a", processes=1)
    with pytest.raises(InputError, match="no part train/de, expected train or validation and one of en, hi, wo"):
        shards.part("train", "de")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "x").write_text("")
    with pytest.raises(InputError, match="holds other files"):
        encode_corpus(corpus, words, tmp_path / "b", processes=1)
    file = tmp_path / "a" / "train" / "en.tokens"
    file.write_bytes(file.read_bytes()[:-2])
    with pytest.raises(InputError, match=r"en\.tokens: \d+ bytes, expected \d+ bytes"):
        TokenShards.open(tmp_path / "a")


def test_large_vocabularies_take_four_bytes(corpus, tmp_path):
    words = tokenizer()
    words.add_tokens([f"<extra {i}>" for i in range(65_536 - len(words))])
    assert encode_corpus(corpus, words, tmp_path / "two", processes=1).part("train", "en").tokens.dtype == np.uint16
    words.add_tokens(["<one more>"])
    assert encode_corpus(corpus, words, tmp_path / "four", processes=1).part("train", "en").tokens.dtype == np.uint32
