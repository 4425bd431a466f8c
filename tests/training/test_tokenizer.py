import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from inscape.errors import InputError
from inscape.training.tokenizer import END, fit_tokenizer

TEXTS = [
    "In what year was Zoë O'Hara-Núñez born?",
    "The elevation of Ōtsu is 12 metres.",
    "John Strutt, 3rd Baron Rayleigh",
    "Yes",
]


@pytest.fixture(scope="module")
def tokenizer():
    return fit_tokenizer(TEXTS)


def test_words_of_the_text_are_single_tokens(tokenizer):
    for word in ("year", "Zoë", "Ōtsu", "Rayleigh"):
        assert len(tokenizer(f"was {word}")["input_ids"]) == 2, word


def test_digits_are_single_tokens(tokenizer):
    assert tokenizer.convert_ids_to_tokens(tokenizer("1902")["input_ids"]) == ["Ġ1", "9", "0", "2"]
    assert tokenizer.convert_ids_to_tokens(tokenizer("in -33.9")["input_ids"])[-5:] == ["-", "3", "3", ".", "9"]
    tokens = [tokenizer.convert_ids_to_tokens(i) for i in range(len(tokenizer))]
    assert not [token for token in tokens if sum(sign.isdigit() for sign in token) > 1]


def test_no_token_is_added(tokenizer):
    assert tokenizer.bos_token_id is None
    assert tokenizer("")["input_ids"] == []
    assert tokenizer.eos_token_id not in tokenizer("In what year?")["input_ids"]
    assert tokenizer(f"Yes{END}")["input_ids"][-1] == tokenizer.eos_token_id == tokenizer.pad_token_id


def test_the_first_word_is_the_same_token_with_and_without_a_space(tokenizer):
    assert tokenizer("Zoë born")["input_ids"] == tokenizer(" Zoë born")["input_ids"]
    assert tokenizer("born Zoë")["input_ids"] == tokenizer("Zoë born")["input_ids"][::-1]


@given(st.text(max_size=60).filter(lambda text: not text.startswith(" ") and END not in text))
@settings(max_examples=300, deadline=None)
def test_round_trip_of_any_text(text):
    tokenizer = fit_tokenizer(TEXTS)
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


@given(
    st.text(st.characters(categories=("L", "M", "N", "P", "S")), min_size=1, max_size=20).filter(lambda t: END not in t)
)
@settings(max_examples=200, deadline=None)
def test_offsets_cover_a_mention_and_only_it(mention):
    tokenizer = fit_tokenizer(TEXTS)
    text = f"In what year was {mention} born?"
    start = len("In what year was ")
    encoded = tokenizer(text, return_offsets_mapping=True)
    of_mention = [
        (token, span)
        for token, span in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
        if span[0] < start + len(mention) and span[1] > start
    ]
    assert of_mention[0][1][0] == start
    assert of_mention[-1][1][1] == start + len(mention)
    assert tokenizer.decode([token for token, _ in of_mention]).lstrip(" ") == mention


def test_order_of_texts_does_not_matter():
    assert fit_tokenizer(TEXTS).get_vocab() == fit_tokenizer(TEXTS[::-1]).get_vocab()


def test_most_frequent_words_come_first_and_max_words_cuts_the_others():
    tokenizer = fit_tokenizer(["often often often", "rare"], max_words=1)
    assert len(tokenizer("often")["input_ids"]) == 1
    assert len(tokenizer("rare")["input_ids"]) == 5


def test_saved_folder_opens_as_an_auto_tokenizer(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    text = "In what year was Zoë born? 1902"
    assert again(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert again.decode(again(text)["input_ids"]) == text
    assert (again.bos_token_id, again.eos_token_id) == (None, tokenizer.eos_token_id)


def test_no_text_is_refused():
    with pytest.raises(InputError, match="no word"):
        fit_tokenizer([])
