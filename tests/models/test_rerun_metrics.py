"""Metrics, read on the fly, are what one would compute from the logits of each run."""

from typing import Any

import numpy as np
import pytest
import torch
from rerun_by_hand import noise, tensor
from tiny_models import VOCAB, WIDTH, build, close, prompts, tiny, with_bos
from torch import Tensor

import inscape
from inscape import KL, Donors, Grid, InputError, LogitDifference, Logits, Probability
from inscape.models.lm import LM

IDS = prompts(7, 2, 5)
TEXTS = [" ".join(f"t{i}" for i in ids) for ids in IDS]
GRID = Grid("resid_post", [0, 2], {"first": "first", "last": "last"}, vector=noise(WIDTH), strengths=(1.0, -0.5))
EDITS = [
    inscape.add("resid_post", layer, noise(WIDTH), tokens=tokens, strength=strength)
    for layer in (0, 2) for tokens in ("first", "last") for strength in (1.0, -0.5)
]  # fmt: skip


@pytest.mark.parametrize("naive", [False, True])
@pytest.mark.parametrize("name", ["gpt2", "gemma2", "mpt"])
def test_against_the_logits_of_every_run(name: str, naive: bool) -> None:
    lm = tiny(name)
    full = lm.rerun(IDS, GRID, read="all", naive=True)
    logits, base = tensor(full.values), tensor(full.base)
    correct, wrong = [3, 90, 5], [4, 3, 3]
    rows = torch.arange(3)
    last = torch.tensor([6, 1, 4])

    given = lm.rerun(IDS, GRID, LogitDifference(correct, wrong), naive=naive)
    at_last = logits[rows, ..., last, :]
    difference = torch.stack([at_last[i, ..., correct[i]] - at_last[i, ..., wrong[i]] for i in range(3)])
    assert given.values.dims == ("prompt", "layer", "position", "strength")
    close(tensor(given.values), difference)
    close(tensor(given.base), base[rows, last, correct] - base[rows, last, wrong])
    by_text = LogitDifference([f"t{i}" for i in correct], [f"t{i}" for i in wrong])
    assert np.array_equal(lm.rerun(TEXTS, GRID, by_text, naive=naive).values, given.values)

    kl = lm.rerun(IDS, GRID, KL(), read="all", naive=naive)
    assert kl.values.dims == ("prompt", "layer", "position", "strength", "token")
    p = base.softmax(-1)[:, None, None, None]
    expected = (p * (p.log() - logits.log_softmax(-1))).sum(-1)
    off = (tensor(kl.values) - expected).abs()
    assert torch.equal(off.isnan(), expected.isnan())
    assert off.nan_to_num(0).max() <= 1e-5 * expected.nan_to_num(0).max()
    assert np.nanmax(np.abs(kl.base.values)) == 0
    assert np.nanmin(kl.values.values) > -1e-5

    seen: list[Tensor] = []

    def rank(now: Tensor, before: Tensor, prompt: Tensor) -> Tensor:
        assert now.shape == before.shape == (len(prompt), VOCAB)
        assert now.dtype == before.dtype == torch.float32
        seen.append(prompt)
        ids = torch.tensor(correct)[prompt]
        return (now > now.gather(1, ids[:, None])).sum(1) - (before > before.gather(1, ids[:, None])).sum(1)

    ranks = lm.rerun(IDS, GRID, rank, naive=naive)
    target = torch.stack([(at_last[i] > at_last[i, ..., correct[i], None]).sum(-1) for i in range(3)])
    target -= torch.stack([(base[i, last[i]] > base[i, last[i], correct[i]]).sum() for i in range(3)])[
        :, None, None, None
    ]
    assert torch.equal(tensor(ranks.values), target.float())
    assert not tensor(ranks.base).any()
    assert sum(map(len, seen)) == 3 * 9
    assert lm.rerun(IDS, GRID, Logits(), naive=naive).values.equals(lm.rerun(IDS, GRID, naive=naive).values)


def test_probabilities_equal_scores_of_edited_runs(name: str) -> None:
    lm = tiny(name)
    ends = [[[4], [5, 6]], [[7, 8, 9], [10]], [[11, 12], [13, 14]]]
    found = {log: lm.rerun(IDS, GRID, Probability(ends, log=log)) for log in (False, True)}
    assert found[True].values.dims == ("prompt", "layer", "position", "strength", "continuation")
    flat = tensor(found[True].values).flatten(1, 3)
    for k in range(2):
        of = [one[k] for one in ends]
        close(tensor(found[True].base)[:, k], lm.score(IDS, of).total)
        for cell, edit in enumerate(EDITS):
            close(flat[:, cell, k], lm.score(IDS, of, edits=[edit]).total)
    close(tensor(found[False].values), tensor(found[True].values).exp())
    single = lm.rerun(IDS, GRID, Probability([one[1] for one in ends]))
    assert single.values.dims == ("prompt", "layer", "position", "strength")
    close(tensor(single.values), tensor(found[False].values)[..., 1])


@pytest.mark.parametrize("when", ["prompt", "decode", "always"])
def test_probabilities_with_edits_of_the_continuation(when: Any) -> None:
    """Vectors, strengths, donors and tokens are each prompt's own, for each of its continuations; as in ``score``."""
    lm = tiny("llama")
    ends = [[[4, 5, 6], [5, 6]], [[7, 8, 9], [10, 11]], [[11, 12], [13, 14]]]
    by_prompt, strength = noise(3, WIDTH), torch.tensor([1.0, -1.0, 2.0])
    edits = [
        inscape.add("resid_post", 1, by_prompt, tokens=[[0, 3], [1], []], strength=strength, when=when),
        inscape.scale("mlp_out", 0, 3.0, tokens="last", when=when),
        inscape.add("logits", None, noise(VOCAB), tokens="last", when=when),
    ]
    found = tensor(lm.rerun(IDS, [[edit] for edit in edits], Probability(ends, log=True), batch_size=4).values)
    for k in range(2):
        for cell, edit in enumerate(edits):
            close(found[:, cell, k], lm.score(IDS, [one[k] for one in ends], edits=[edit]).total)
    donors = Donors(prompts(4, 4, 4, seed=3), "first")
    patched = lm.rerun(IDS, Grid("resid_mid", 1, kind="set", donors=donors), Probability(ends, log=True)).values
    given = lm.capture(donors.prompts, "resid_mid", 1, "first").at()
    for k in range(2):
        edit = inscape.set_("resid_mid", 1, given, tokens="last")
        close(tensor(patched)[:, 0, 0, 0, k], lm.score(IDS, [one[k] for one in ends], edits=[edit]).total)


def test_texts_are_read_with_their_prompt_and_their_bos() -> None:
    lm = inscape.load(build("gpt2"), with_bos())
    ends = [[" t4 t5", " t6"], [" t7", " t8 t9"], [" t10", " t11"]]
    edits = [[inscape.add("resid_post", 1, noise(WIDTH), tokens=[[1], [0, 1], [-1]])]]
    for bos in (None, True, False):
        found = tensor(lm.rerun(TEXTS, edits, Probability(ends, log=True), bos=bos).values)[:, 0]
        for k in range(2):
            of = [one[k] for one in ends]
            close(found[:, k], lm.score(TEXTS, of, edits=edits[0], bos=bos).total)
    each = lm.rerun(TEXTS, Grid("resid_post", 1, "each", vector=noise(WIDTH)), Probability(ends)).values
    assert each.sizes["position"] == 8
    assert np.isnan(each.values[1, 0, :, 0]).all(-1).tolist() == [False] * 3 + [True] * 5


def test_a_token_that_merges_into_the_continuation_is_not_edited(tokenizer_gpt2: Any) -> None:
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(tokenizer_gpt2)
    config = transformers.GPT2Config(vocab_size=len(tokenizer), n_embd=16, n_layer=2, n_head=2, n_positions=32)
    lm = inscape.load(transformers.GPT2LMHeadModel(config).eval(), tokenizer)
    edits = [[inscape.scale("resid_post", 0, 2.0, tokens=tokens)] for tokens in ("first", "last")]
    whole = ["The capital is", "A word"]
    found = tensor(lm.rerun(whole, edits, Probability([" Paris", " of"], log=True)).values)
    for cell, edit in enumerate(edits):
        close(found[:, cell], lm.score(whole, [" Paris", " of"], edits=edit).total)
    # "unbeliev" is cut otherwise when "able" follows.
    split = ["It is unbeliev", "A word"]
    assert lm.token_ids(split)[0] != lm.token_ids(["It is unbelievable"])[0][: len(lm.token_ids(split)[0])]
    with pytest.raises(InputError, match="of prompt 0 merges with the continuation"):
        lm.rerun(split, edits[1:], Probability(["able", " of"]))
    close(
        tensor(lm.rerun(split, edits[:1], Probability(["able", " of"], log=True)).values)[:, 0],
        lm.score(split, ["able", " of"], edits=edits[0]).total,
    )


def test_arrays_of_ids_are_continuations_too() -> None:
    lm = tiny("gpt2")
    plain = lm.rerun(IDS, GRID, Probability([[3, 4], [5], [6]])).values
    for kind in (np.array, torch.tensor, tuple):
        assert lm.rerun(IDS, GRID, Probability([kind([3, 4]), kind([5]), kind([6])])).values.equals(plain)


def test_a_token_that_cannot_come_adds_nothing_to_kl() -> None:
    """Padded vocabularies have a bias of minus infinity."""
    from inscape.models.metrics import KL as Metric

    base, edited = torch.tensor([[1.0, 2.0, -torch.inf]]), torch.tensor([[2.0, 1.0, -torch.inf]])
    none = torch.zeros(1, dtype=torch.int64)
    close(Metric().read(edited, base, none, none), Metric().read(edited[:, :2], base[:, :2], none, none))


def _numbers(*shape: int) -> Any:
    return lambda logits, base, prompt: torch.zeros(shape)


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        (LogitDifference([1, 2], [1, 2, 3]), "correct: expected one token for each of the 3 prompts, found 2"),
        (LogitDifference([1, 2, 3], [1, 2, 3, 4]), "wrong: expected one token for each of the 3 prompts, found 4"),
        (LogitDifference(["t1", "t2 t3", "t4"], [1, 2, 3]), "correct: 't2 t3' of prompt 1 is 2 tokens"),
        (LogitDifference("t1t", [1, 2, 3]), "correct: expected one token for each"),
        (LogitDifference([1, 2, VOCAB], [1, 2, 3]), "correct: token id 97 of prompt 2"),
        (LogitDifference([1, 2, 3], [1, -1, 3]), "wrong: token id -1 of prompt 1"),
        (LogitDifference([1, 2.0, 3], [1, 1, 3]), "correct: expected a text or a token id for prompt 1, found 2.0"),
        (Probability([[3], [4]]), "Probability: 2 for continuations of 3 prompts"),
        (Probability("abc"), "Probability: one text for continuations"),
        (Probability([[[3]], [[4]], [[5], [6]]]), "as many continuations for each prompt"),
        (Probability([[[3]], [4], [5]]), "one continuation for each prompt, or a list of them for each"),
        (Probability([[3], ["t4"], [5]]), "prompt 1"),
        (Probability([[3], "t4", [5]]), "prompt 1 and its continuation mix text and token ids"),
        (Probability([[3], [4], []]), "continuation 2 has no tokens"),
        (Probability([[3], [4], [VOCAB]]), "prompt 2: token id 97 is not in the model's 97 embeddings"),
        (Probability([[3], [4], [5] * 60]), "prompt 2 has 65 tokens; the model's context is 64"),
        (_numbers(2), r"metric: expected a tensor with one number per row \(3\), found \(2,\)"),
        (_numbers(3, 1), r"found \(3, 1\)"),
        (lambda logits, base, prompt: 1.0, "found float"),
        ("kl", "metric='kl', expected a Metric"),
        (KL, "expected a Metric"),
    ],
)
def test_wrong_metrics_are_refused(metric: Any, message: str) -> None:
    lm: LM = tiny("llama")
    for naive in (False, True):
        with pytest.raises(InputError, match=message) as error:
            lm.rerun(IDS, GRID, metric, naive=naive)
        assert "\n" not in str(error.value)


def test_texts_need_a_tokenizer() -> None:
    lm = inscape.load(build("gpt2"))
    with pytest.raises(InputError, match="'t1' of prompt 0 is 0 tokens"):
        lm.rerun(IDS, GRID, LogitDifference(["t1"] * 3, [1, 2, 3]))
