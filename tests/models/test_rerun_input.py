"""What a sweep refuses, in one line that says what was found and what was expected."""

from typing import Any

import numpy as np
import pytest
import torch
from rerun_by_hand import noise
from tiny_models import LAYERS, VOCAB, WIDTH, prompts, tiny

import inscape
from inscape import Donors, Edit, EditError, Generated, Grid, InputError, Probability, Window

IDS = prompts(6, 3, 4)
V = noise(WIDTH)


def add(*args: Any, **options: Any) -> list[list[Edit]]:
    return [[inscape.add(*args, **options)]]


REFUSED: list[tuple[Any, dict[str, Any], str]] = [
    (lambda: Grid(vector=V), {"prompts": []}, "no prompts were given"),
    (lambda: Grid(vector=V), {"prompts": "t1 t2"}, "expected a list of prompts"),
    (lambda: Grid(vector=V), {"prompts": [[]]}, "prompt 0 is empty"),
    (lambda: Grid(vector=V), {"prompts": [[VOCAB]]}, "token id 97 is not in the model's 97 embeddings"),
    (lambda: Grid(vector=V), {"prompts": [[3] * 65]}, "prompt 0 has 65 tokens; the model's context is 64"),
    (lambda: Grid(vector=V), {"batch_size": 0}, "batch_size=0, expected at least 1"),
    (lambda: Grid(vector=V), {"batch_size": -2}, "batch_size=-2, expected at least 1"),
    (lambda: Grid(vector=V), {"padding_side": "both"}, "padding_side: expected 'left' or 'right', found 'both'"),
    (lambda: Grid(vector=V), {"read": [[0], [], [0]]}, r"read=\[\[0\], \[\], \[0\]\] names no token of prompt 1"),
    (lambda: Grid(vector=V), {"read": Window("first", -3, -1)}, "names no token of prompt 0"),
    (lambda: Grid(vector=V), {"read": "middle"}, "unknown tokens 'middle'"),
    (lambda: Grid(vector=V), {"read": [[0], [3], [0]]}, "prompt 1 has 3 tokens: no index 3"),
    (lambda: Grid(vector=V), {"read": "mention"}, "needs one mention per prompt"),
    (list, {}, "no edits were given"),
    (lambda: None, {}, "expected a Grid, or a list with a list of edits"),
    (lambda: inscape.scale("z", 0, 2.0), {}, "expected a Grid, or a list with a list of edits"),
    (lambda: [inscape.scale("z", 0, 2.0)], {}, "expected a Grid, or a list with a list of edits"),
    (lambda: [["z"]], {}, "expected a Grid, or a list with a list of edits"),
    (lambda: Grid("resid", vector=V), {}, "unknown site 'resid'"),
    (lambda: Grid(["z", "resid"], vector=V), {}, "unknown site 'resid'"),
    (lambda: Grid([], vector=V), {}, "a dimension is empty"),
    (lambda: Grid("resid_post", [0, LAYERS], vector=V), {}, "no layer 3: the model has layers 0 to 2"),
    (lambda: Grid("resid_post", -LAYERS - 1, vector=V), {}, "no layer -4"),
    (lambda: add("resid_post", LAYERS, V), {}, "no layer 3"),
    (lambda: Grid("resid_post", [], vector=V), {}, "a dimension is empty"),
    (lambda: Grid("resid_post", "all", vector=V), {}, "layers='all', expected layers by number"),
    (lambda: Grid("resid_post", [0.5], vector=V), {}, "expected layers by number"),
    (lambda: Grid("embed", 0, vector=V), {}, "site 'embed' has no layers"),
    (lambda: Grid(["resid_post", "logits"], vector=V), {}, "site 'logits' has no layers"),
    (lambda: Grid("blocks.1.hook_resid_post", vector=V), {}, "names layer 1, but layer=0"),
    (lambda: Grid(kind="multiply", vector=V), {}, "kind='multiply', expected one of add, set"),
    (lambda: Grid(), {}, "kind='add' needs a vector"),
    (lambda: Grid(kind="set"), {}, "kind='set' needs a vector or donors"),
    (lambda: Grid(vector=V, window=-1), {}, "window=-1, expected 0 or more"),
    (lambda: Grid(vector=V, when="later"), {}, "when='later'"),
    (lambda: Grid(vector="up"), {}, "the vector is a str, expected numbers"),
    (lambda: Grid(vector=V * float("nan")), {}, "the vector holds NaN or Inf"),
    (lambda: Grid(vector=V[:-1]), {}, r"edit of resid_post: vector has shape \(31,\); expected \(32,\)"),
    (lambda: Grid(vector=noise(2, WIDTH)), {}, r"vector has shape \(2, 32\); .*per prompt \(3\)"),
    (lambda: Grid(vector=noise(4, WIDTH)), {}, r"vector has shape \(4, 32\); .*per prompt \(3\)"),
    (lambda: Grid(vector=noise(3, 1, WIDTH), tokens="all"), {}, "vectors for 1 tokens, but a prompt has 6"),
    (lambda: Grid("q", vector=V), {}, r"edit of q: vector has shape \(32,\); expected \(4, 8\)"),
    (lambda: Grid("logits", vector=V), {}, r"edit of logits: vector has shape \(32,\); expected \(97,\)"),
    (lambda: Grid("embed", vector=V[1:]), {}, r"edit of embed: vector has shape \(31,\)"),
    (lambda: Grid(["z", "resid_pre"], vector=V), {}, "edit of z: vector has shape"),
    (lambda: Grid(vector={}), {}, "a dimension is empty"),
    (lambda: Grid(vector={0: V}), {}, r"no vector for layer 1 \(there are 0\)"),
    (lambda: Grid(kind="project", vector=noise(2, WIDTH - 1)), {}, "directions have 31 features, the site has 32"),
    (lambda: Grid(kind="project", vector=torch.stack([V, V])), {}, "linearly dependent"),
    (lambda: Grid(vector=V, strengths=()), {}, "a dimension is empty"),
    (lambda: Grid(vector=V, strengths=2.0), {}, "strengths are a float; expected numbers"),
    (lambda: Grid(vector=V, strengths=["a"]), {}, "strengths are a list; expected numbers"),
    (lambda: Grid(vector=V, strengths=torch.ones(3, 1, 1)), {}, "strengths are a Tensor; expected numbers"),
    (lambda: Grid(vector=V, strengths=torch.ones(2, 5)), {}, "strengths for 2 prompts, there are 3"),
    (lambda: Grid(vector=V, strengths=(1.0, float("inf"))), {}, "the strength holds NaN or Inf"),
    (lambda: add("resid_post", 0, V, strength=torch.ones(2)), {}, r"strength is \(2,\), expected \(3,\): one per prompt"),
    (lambda: Grid(vector=V, heads=[0]), {}, "site 'resid_post' has no heads"),
    (lambda: Grid("z", vector=V[:8], heads=[4]), {}, "edit of z: no head 4, there are 4"),
    (lambda: Grid("k", vector=V[:8], heads=[-3]), {}, "edit of k: no head -3, there are 2"),
    (lambda: Grid("z", vector=V[:8], heads=[]), {}, "a dimension is empty"),
    (lambda: Grid(vector=V, tokens={}), {}, "a dimension is empty"),
    (lambda: Grid(vector=V, tokens="ends"), {}, "unknown tokens 'ends'"),
    (lambda: Grid(vector=V, tokens=[[0], [1]]), {}, r"tokens: expected an entry per prompt \(3\), found 2"),
    (lambda: Grid(vector=V, tokens=[[0], [3], [0]]), {}, "prompt 1 has 3 tokens: no index 3"),
    (lambda: Grid(vector=V, tokens=[[0, -6], [0], [0]]), {}, r"prompt 0 names a token twice"),
    (lambda: Grid(vector=V, tokens=[[], [], []]), {}, "names no token of prompt 0"),
    (lambda: Grid(vector=V, tokens=Window("last", 1, 2)), {}, "names no token of prompt 0"),
    (lambda: Grid(vector=V, when="decode"), {}, "when='decode' acts on tokens after the prompt; this metric has none"),
    (lambda: Grid(vector=V), {"base": [inscape.scale("z", 0, 2.0, when="decode")]}, "this metric has none"),
    (lambda: Grid(vector=V), {"base": add("resid_post", 0, V[1:])[0]}, r"vector has shape \(31,\)"),
    (lambda: Grid(vector=V), {"base": add("resid_post", 9, V)[0]}, "no layer 9"),
    (lambda: Grid(kind="set", donors=Donors(IDS[:2])), {}, "donors: expected one for each of the 3 prompts, found 2"),
    (lambda: Grid(kind="set", donors=[]), {}, "a dimension is empty"),
    (lambda: Grid(donors=Donors(IDS)), {}, "donors give whole values: they need kind='set'"),
    (lambda: Grid(kind="set", donors=Donors(IDS), vector=V), {}, "donors give whole values"),
    (lambda: Grid("z", kind="set", donors=Donors(IDS), heads=[0]), {}, "donors give whole values"),
    (lambda: Grid(kind="set", donors=Donors(IDS, "all")), {}, "donor 0 gives 6 tokens for the 1 of 'last'"),
    (lambda: Grid(kind="set", donors=Donors(IDS[::-1]), tokens="all"), {}, "donor 0 gives 4 tokens for the 6 of 'all'"),
    (
        lambda: Grid(kind="set", donors=Donors(IDS, {"a": "last", "c": "last"}), tokens={"a": "last", "b": "first"}),
        {}, "donors: tokens for 'a', 'c'; the grid has 'a', 'b'",
    ),
    (lambda: Grid(kind="set", donors=Donors(IDS[::-1]), tokens="each"), {}, "has 4 tokens: no index 4"),
    (lambda: Grid(kind="set", donors=Donors(IDS), tokens={"a": "last", "b": [[], [], []]}), {}, "names no token"),
    (lambda: Grid(kind="set", donors=Donors([[3], [], [4]])), {}, "prompt 1 is empty"),
]  # fmt: skip


@pytest.mark.parametrize(("grid", "more", "message"), REFUSED)
@pytest.mark.parametrize("naive", [False, True])
def test_refused(grid: Any, more: dict[str, Any], message: str, naive: bool) -> None:
    lm = tiny("llama")
    options = dict(more)
    given = options.pop("prompts", IDS)
    with pytest.raises(InputError, match=message) as error:
        lm.rerun(given, grid(), naive=naive, **options)
    assert "\n" not in str(error.value)
    assert not isinstance(error.value, EditError)


@pytest.mark.parametrize("prompts_of_vectors", [2, 4])
def test_vectors_for_other_prompts_are_refused_with_several_continuations_too(prompts_of_vectors: int) -> None:
    """There, what is per prompt is spread over sequences: too many would have been cut off in silence."""
    metric = Probability([[[3], [4]]] * 3)
    for kind in ("add", "set", "ablate"):
        with pytest.raises(InputError, match=r"per prompt \(3\)"):
            tiny("llama").rerun(IDS, Grid(kind=kind, vector=noise(prompts_of_vectors, WIDTH)), metric)
    with pytest.raises(InputError, match="one per prompt"):
        tiny("llama").rerun(IDS, add("resid_post", 0, V, strength=torch.ones(prompts_of_vectors)), metric)


def test_sites_that_a_model_lacks() -> None:
    for name, why in (("gptj", "parallel"), ("opt_post_norm", "norm on the residual stream")):
        with pytest.raises(InputError, match=f"site 'resid_mid' is not to be had.*{why}"):
            tiny(name).rerun(IDS, Grid("resid_mid", vector=V))


def test_numbers_of_other_libraries_are_taken() -> None:
    lm = tiny("gpt2")
    expected = lm.rerun(IDS, Grid("resid_post", [1], vector=V, strengths=[1.0, 2.0]))
    for vector in (V.numpy(), V.tolist(), V.double()):
        for layers in (np.int64(1), np.array([1]), (1,), -2):
            found = lm.rerun(IDS, Grid("resid_post", layers, vector=vector, strengths=np.array([1, 2])))
            assert found.values.equals(expected.values)
    ids = [torch.tensor(one) for one in IDS]
    assert lm.rerun(ids, Grid("resid_post", [1], vector=V, strengths=[1.0, 2.0])).values.equals(expected.values)


def test_a_model_in_training_mode_is_refused() -> None:
    from tiny_models import build

    lm = inscape.load(build("gpt2"))
    lm.model.train()
    with pytest.raises(InputError, match="training mode"):
        lm.rerun(IDS, Grid(vector=V))
    lm.model.eval()
    assert lm.rerun(IDS, Grid(vector=V), Generated(1, ids=True)).naive is None
