"""A tokenizer fitted to a text: whole words where the text has them, single digits always, bytes for all the rest.

Byte-level BPE with an empty merge list and `ignore_merges`: a pre-token that is in the vocabulary becomes one token,
anything else falls back to its UTF-8 bytes. So every name of the training text is few tokens, every number is its
digits (a model can then read a value digit by digit, and no value has a token of its own), and every other text still
has an encoding. A trained merge list would give the same words plus thousands of half-words that nothing uses, each
with an embedding to train.

Rules, chosen so that a model meets the same tokens in a prompt as in its training text:

- The first word is encoded as if a space came before it ("Mara" and " Mara" are the same token at the start).
  Decoding drops that space: `decode(encode(text)) == text` for every text that doesn't itself begin with a space.
- No token is added by itself: no BOS exists; `END` closes a sentence, ends generation and pads.
- Offsets are those of the visible characters: the space before a word belongs to no mention.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from tokenizers.pre_tokenizers import ByteLevel
from transformers import PreTrainedTokenizerFast

from inscape.errors import InputError

END = "<|endoftext|>"

#: One digit, one run of letters with their marks, one other sign (each with the space before it), or one white space.
_PRE_TOKENS = r" ?\p{N}| ?[\p{L}\p{M}]+| ?[^\s\p{L}\p{N}\p{M}]|\s"


def fit_tokenizer(texts: Iterable[str], max_words: int = 50_000) -> PreTrainedTokenizerFast:
    """A tokenizer in which the `max_words` most frequent words of `texts` are one token each.

    The same texts in any order give the same tokenizer: words are numbered by falling frequency, then by spelling.

    Raises:
        InputError: `texts` holds no word.
    """
    pre_tokenizer = pre_tokenizers.Sequence(
        [
            # Metaspace with a real space does nothing but put one before the first word.
            pre_tokenizers.Metaspace(replacement=" ", prepend_scheme="first", split=False),
            pre_tokenizers.Split(Regex(_PRE_TOKENS), "isolated"),
            ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(piece for piece, _ in pre_tokenizer.pre_tokenize_str(text))
    if not counts:
        raise InputError("tokenizer: the texts to fit it to hold no word, expected at least one")
    vocabulary = [END, *sorted(ByteLevel.alphabet()), *(f"Ġ{digit}" for digit in "0123456789")]
    known = set(vocabulary)
    ranked = sorted(counts, key=lambda word: (-counts[word], word))
    vocabulary += [word for word in ranked if word not in known][:max_words]

    tokenizer = Tokenizer(
        models.BPE(vocab={word: i for i, word in enumerate(vocabulary)}, merges=[], ignore_merges=True)
    )
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=END,
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )
