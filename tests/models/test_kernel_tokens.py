"""Positions named by text: character spans, real tokenizers, windows, and every way in which a name can be wrong."""

from pathlib import Path
from typing import Any

import pytest
import transformers as hf
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import build, words
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

import inscape
from inscape import InputError, Window
from inscape.models.tokens import Encoded, batches, encode, mention_span, positions


@pytest.fixture(scope="session")
def gpt2(tokenizer_gpt2: Path) -> Any:
    return hf.AutoTokenizer.from_pretrained(tokenizer_gpt2)


@pytest.fixture(scope="session")
def neox(tokenizer_neox: Path) -> Any:
    return hf.PreTrainedTokenizerFast(tokenizer_file=str(tokenizer_neox / "tokenizer.json"))


@pytest.fixture(params=["gpt2", "neox"])
def real(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(request.param)


def pieces(tokenizer: Any, text: str, mention: Any, tokens: Any = "mention", **options: Any) -> list[str]:
    encoded = encode(tokenizer, [text], offsets=True)
    at = positions(encoded, tokens, [mention], **options)[0]
    return [tokenizer.decode([encoded[0].ids[i]]) for i in at]


@pytest.mark.parametrize(
    ("text", "mention"),
    [
        ("Karl Popper was born in 1902", "Karl Popper"),  # at the start: no space before it
        ("In what year was Karl Popper born?", "Karl Popper"),
        ("The book is by Karl Popper", "Karl Popper"),  # at the end
        ("When was Sigríður Þorsteinsdóttir born?", "Sigríður Þorsteinsdóttir"),
        ("Wann wurde 毛泽东 geboren?", "毛泽东"),
        ("Was Ōe Kenzaburō born prior to Émile Zola?", "Émile Zola"),
        ("How high is Espoo? One word answer only:", "Espoo"),
    ],
)
def test_mentions_in_real_tokenizers(real: Any, text: str, mention: str) -> None:
    encoded = encode(real, [text], offsets=True)
    found = positions(encoded, "mention", [mention])[0]
    assert found == list(range(found[0], found[-1] + 1))
    assert real.decode([encoded[0].ids[i] for i in found]).strip() == mention
    assert positions(encoded, "mention_first", [mention])[0] == found[:1]
    assert positions(encoded, "mention_last", [mention])[0] == found[-1:]
    span = text.index(mention), text.index(mention) + len(mention)
    assert positions(encoded, "mention", [span])[0] == found


@pytest.mark.parametrize("name", ["Sammy Davis Jr.", "Ken Griffey Sr.", "Martin Luther King Jr."])
def test_a_name_whose_full_stop_merges_with_the_question_mark(gpt2: Any, name: str) -> None:
    text = f"In what year was {name}?"
    assert pieces(gpt2, text, name, "mention_last") == [".?"], "the tokenizer no longer merges: choose another name"
    # Counting tokens of the name alone points one too early or at the wrong token; the span does not care.
    assert "".join(pieces(gpt2, text, name)).strip() == name + "?"


def test_a_mention_that_occurs_twice_or_not_at_all(gpt2: Any) -> None:
    text = "Was Paris bigger than Paris?"
    with pytest.raises(InputError, match="prompt 0: the mention 'Paris' occurs 2 times"):
        pieces(gpt2, text, "Paris")
    assert pieces(gpt2, text, "Paris", "mention_last", occurrence=0) == [" Paris"]
    encoded = encode(gpt2, [text], offsets=True)
    first, second = (positions(encoded, "mention_last", ["Paris"], n)[0][0] for n in (0, 1))
    assert first < second
    assert positions(encoded, "mention_last", ["Paris"], -1)[0][0] == second
    for mention, message in (("London", "does not occur"), ("", "mention is empty"), ("paris", "does not occur")):
        with pytest.raises(InputError, match=f"prompt 0: .*{message}"):
            pieces(gpt2, text, mention)
    with pytest.raises(InputError, match="no occurrence 2"):
        pieces(gpt2, text, "Paris", occurrence=2)
    for span in ((3, 3), (5, 2), (0, 99), (-2, 4)):
        with pytest.raises(InputError, match="is no character span"):
            pieces(gpt2, text, span)


def test_overlapping_occurrences_are_counted() -> None:
    with pytest.raises(InputError, match="occurs 2 times"):
        mention_span("ananas", "ana", 0)


def test_windows_are_clipped_to_the_prompt(gpt2: Any) -> None:
    encoded = encode(gpt2, ["a b c d e"], offsets=True)
    assert positions(encoded, Window("first", -2, 1)) == [[0, 1]]
    assert positions(encoded, Window("last", -1, 3)) == [[3, 4]]
    assert positions(encoded, Window("mention_last", -1, 1), ["c"]) == [[1, 2, 3]]
    assert positions(encoded, Window("last", 1, 3)) == [[]]


def llama_like() -> Any:
    """A tokenizer that cuts Espoo and Popper into three pieces each, as Llama-2's does: ``▁`` before words, and a BOS."""
    pieces_of = "▁How ▁high ▁is ▁Es po o ? ▁One ▁word ▁answer ▁only : ▁In ▁what ▁year ▁was ▁Karl ▁P op per ▁born"
    tokens = ["<s>", "<unk>", *pieces_of.split()]
    alphabet = sorted({c for token in tokens[2:] for c in token})
    vocab = {token: i for i, token in enumerate(dict.fromkeys([*tokens, *alphabet]))}
    merges: list[tuple[str, str]] = []
    for token in tokens[2:]:
        # Build each token from the left, one character at a time.
        for n in range(1, len(token)):
            pair = (token[:n], token[n])
            vocab.setdefault(token[:n], len(vocab))
            vocab.setdefault(token[: n + 1], len(vocab))
            if pair not in merges:
                merges.append(pair)
    # Longer merges of the middle of a word ("po", "pper") must not be eaten by shorter ones of its start.
    order = {"▁E": 0, "▁P": 0}
    merges.sort(key=lambda pair: order.get("".join(pair), 1))
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return hf.PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", unk_token="<unk>")


def test_a9_windows_of_espoo_and_popper() -> None:
    tokenizer = llama_like()
    espoo = "How high is Espoo? One word answer only:"
    popper = "In what year was Karl Popper born?"
    encoded = encode(tokenizer, [espoo, popper], offsets=True)
    split = [tokenizer.convert_ids_to_tokens(list(e.ids)) for e in encoded]
    assert split[0][:9] == ["<s>", "▁How", "▁high", "▁is", "▁Es", "po", "o", "?", "▁One"]
    assert split[1] == ["<s>", "▁In", "▁what", "▁year", "▁was", "▁Karl", "▁P", "op", "per", "▁born", "?"]
    names = ["Espoo", "Karl Popper"]
    assert positions(encoded, "mention_last", names) == [[6], [8]]
    # Two before the name's last token to one after. The authors' side-effect runs took Popper's window for both.
    assert positions(encoded, Window("mention_last", -2, 1), names) == [[4, 5, 6, 7], [6, 7, 8, 9]]


NAME = st.text(st.sampled_from("abcdeÉñøß毛東ЖÞ.'- "), min_size=1, max_size=14).map(str.strip).filter(bool)


@settings(max_examples=150, deadline=None)
@given(
    before=st.sampled_from(["", "Was ", "In what year was ", "«"]),
    name=NAME,
    after=st.sampled_from(["", "?", " born?", "'s birthdate?", "», one word:"]),
)
def test_the_tokens_found_cover_the_mention_and_no_other_touches_it(
    gpt2: Any, neox: Any, before: str, name: str, after: str
) -> None:
    text = before + name + after
    if text.count(name) != 1 or text.find(name, text.find(name) + 1) >= 0:
        return
    start, end = len(before), len(before) + len(name)
    for tokenizer in (gpt2, neox):
        encoded = encode(tokenizer, [text], offsets=True)
        found = positions(encoded, "mention", [name])[0]
        offsets = tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
        covered = {c for i in found for c in range(*offsets[i])}
        # (GPT-2's offsets leave out the space that a token begins with.)
        assert covered >= {c for c in range(start, end) if text[c] != " "}
        for i, (a, b) in enumerate(offsets):
            # (A token of spaces alone has an empty range in some tokenizers: within the mention it belongs to it.)
            touches = any(start <= c < end for c in range(a, b)) or (a == b and start < a < end)
            assert touches == (i in found)


def test_bos_counts_as_a_position(gpt2: Any) -> None:
    plain, bos = (encode(gpt2, ["In Espoo"], offsets=True, bos=b) for b in (None, True))
    assert bos[0].ids == (gpt2.bos_token_id, *plain[0].ids)
    (at,), (later,) = positions(plain, "mention_last", ["Espoo"]), positions(bos, "mention_last", ["Espoo"])
    assert later == [at[0] + 1]


def test_a_tokenizer_without_offsets() -> None:
    class Slow(hf.PreTrainedTokenizer):
        @property
        def vocab_size(self) -> int:
            return 97

        def get_vocab(self) -> dict[str, int]:
            return {f"t{i}": i for i in range(97)}

        def _tokenize(self, text: str) -> list[str]:
            return text.split()

        def _convert_token_to_id(self, token: str) -> int:
            return int(token[1:]) if token[1:].isdigit() else 0

        def _convert_id_to_token(self, index: int) -> str:
            return f"t{index}"

    slow = inscape.load(build("gpt2"), Slow())
    fast = inscape.load(build("gpt2"), words())
    assert (slow.logits(["t3 t4"]) == fast.logits(["t3 t4"])).all()
    assert slow.generate(["t3 t4"], max_new_tokens=2) == fast.generate(["t3 t4"], max_new_tokens=2)
    for call in (
        lambda: slow.capture(["t3 t4"], tokens="mention", mentions=["t4"]),
        lambda: slow.score(["t3"], [" t4"]),
    ):
        with pytest.raises(InputError, match="offsets"):
            call()
    assert slow.record()["tokenizer_sha256"] is None


def test_a_tokenizer_that_closes_texts_with_eos_leaves_the_prompt_open() -> None:
    backend = words().backend_tokenizer
    backend.post_processor = processors.TemplateProcessing(single="$A t1", special_tokens=[("t1", 1)])
    tokenizer = hf.PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="t1")
    assert tokenizer("t5 t6")["input_ids"] == [5, 6, 1]
    encoded = encode(tokenizer, ["t5 t6", "t5 t1"], offsets=True)
    assert encoded[0].ids == (5, 6)
    assert encoded[0].offsets == ((0, 2), (3, 5))


def test_batches_hold_mask_positions_and_shift() -> None:
    prompts = [Encoded(None, ids, None) for ids in ((5, 6), (7, 8, 9), (4,))]
    (left,) = batches(prompts, batch_size=8, pad_id=3, device="cpu")
    assert left.index == (1, 0, 2)
    assert left.ids.tolist() == [[7, 8, 9], [3, 5, 6], [3, 3, 4]]
    assert left.mask.tolist() == [[1, 1, 1], [0, 1, 1], [0, 0, 1]]
    assert left.position_ids.tolist() == [[0, 1, 2], [0, 0, 1], [0, 0, 0]]
    assert left.shift == (0, 1, 2)
    (right,) = batches(prompts, batch_size=8, pad_id=3, device="cpu", padding_side="right")
    assert right.ids.tolist() == [[7, 8, 9], [5, 6, 3], [4, 3, 3]]
    assert right.shift == (0, 0, 0)
