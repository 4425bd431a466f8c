"""A sweep gives what transformers gives: every family, site, padding side and kernel, against plain hooks on one prompt."""

from typing import Any

import pytest
import torch
from rerun_by_hand import ByHand, add, logits_by_hand, noise, put, shape_of, sites_of, tensor
from tiny_models import CONTEXT, LAYERS, NAMES, VOCAB, WIDTH, build, close, forward, prompts, tiny, words
from torch import Tensor

import inscape
from inscape import Donors, Edit, Grid
from inscape.models.lm import LM

IDS = prompts(9, 4, 1, 6)
AT = [[2, 5], [1], [0], [0, 5]]


def rerun_equal_to_naive(lm: LM, edits: Any, ids: Any = IDS, relative: float = 1e-5, **options: Any) -> Tensor:
    cut, full = lm.rerun(ids, edits, **options), lm.rerun(ids, edits, naive=True, **options)
    assert cut.naive is None
    assert full.naive == "asked for"
    assert cut.values.dims == full.values.dims
    found, expected = tensor(cut.values), tensor(full.values)
    assert torch.equal(found.isnan(), expected.isnan())
    close(found.nan_to_num(0), expected.nan_to_num(0), relative)
    close(tensor(cut.base).nan_to_num(0), tensor(full.base).nan_to_num(0), relative)
    return found


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("attn", [None, "eager"])
def test_every_site_equals_plain_hooks(name: str, attn: str | None, side: str) -> None:
    lm = tiny(name, attn)
    cells, by_hand = [], []
    for number, site in enumerate(sites_of(lm)):
        layer = None if site == "embed" else number % LAYERS
        vector = noise(*shape_of(lm, site), seed=number)
        cells.append([inscape.add(site, layer, vector, tokens=AT[:3])])
        by_hand.append([ByHand(site, layer, at, add(vector)) for at in AT[:3]])
    found = lm.rerun(IDS[:3], cells, read="all", padding_side=side)
    assert found.naive is None
    assert found.values.dims == ("prompt", "cell", "token", "vocab")
    for row, ids in enumerate(IDS[:3]):
        clean = forward(lm.model, ids).logits[0]
        close(tensor(found.base)[row, : len(ids)], clean)
        assert tensor(found.base)[row, len(ids) :].isnan().all()
        for cell, edits in enumerate(by_hand):
            expected = logits_by_hand(name, lm, ids, [edits[row]])
            values = tensor(found.values)[row, cell]
            close(values[: len(ids)], expected)
            assert values[len(ids) :].isnan().all()
            if row == 0:  # (a query on one token alone can't be heard)
                assert (expected - clean).abs().max() > 1e-3 * clean.abs().max()


def test_no_family_is_packed_or_run_in_full_without_being_noticed(name: str) -> None:
    for lm in (tiny(name), tiny(name, "eager"), tiny(name, dtype=torch.bfloat16)):
        cut = lm.cut
        assert not isinstance(cut, str)
        # GPT-Neo's causal buffer and MPT's bias count columns of their own.
        assert cut.packed is (name not in ("gpt_neo", "mpt"))


@pytest.mark.parametrize("name", ["gpt2", "olmo2", "llama", "falcon_new", "bloom_post_norm", "gemma2", "opt", "mpt"])
def test_several_edits_in_one_cell(name: str) -> None:
    """Layers and tokens together, one site twice (the order matters), and two sites on one module."""
    lm = tiny(name)
    u, v, w = (noise(WIDTH, seed=n) for n in range(3))
    cells: list[list[tuple[str, int, list[list[int]], Any, Any]]] = [
        [("resid_post", 0, AT, "add", u), ("resid_post", 2, [[8], [3], [0], [1]], "add", v)],
        [("resid_post", 1, AT, "add", u), ("resid_post", 1, AT, "set", v), ("resid_post", 1, AT, "add", w)],
        [("resid_post", 1, AT, "set", v), ("resid_post", 1, AT, "add", u)],
        [("attn_out", 1, AT, "set", u), ("mlp_out", 0, AT, "add", v), ("resid_pre", 2, AT, "add", w)],
        [("resid_pre", 2, AT, "set", w), ("resid_post", 1, AT, "add", v)],  # post first, whatever the order given
    ]
    if "resid_mid" in lm.sites.available():
        cells.append([("attn_out", 1, AT, "add", u), ("resid_mid", 1, AT, "set", v)])
        cells.append([("resid_mid", 1, AT, "set", v), ("attn_out", 1, AT, "add", u)])
    edits = [[Edit(site, layer, at, kind, x) for site, layer, at, kind, x in cell] for cell in cells]
    for side in ("left", "right"):
        found = tensor(lm.rerun(IDS, edits, padding_side=side).values)
        for row, ids in enumerate(IDS):
            for nth, cell in enumerate(cells):
                by_hand = [
                    ByHand(site, layer, at[row], (add if kind == "add" else put)(x))
                    for site, layer, at, kind, x in cell
                ]
                close(found[row, nth], logits_by_hand(name, lm, ids, by_hand)[-1])
    assert (found[:, 1] - found[:, 2]).abs().max() > 0.01


@pytest.mark.parametrize("name", ["gpt2", "gemma3_text", "opt_post_norm"])
def test_base_edits(name: str) -> None:
    """Every cell stands on the base run's edits, which act first at a place; wherever they are above or below it."""
    lm = tiny(name)
    embedded = shape_of(lm, "embed")[0]
    grain = noise(4, 2, embedded, seed=9)
    u, v, w = (noise(WIDTH, seed=n) for n in range(3))
    some = [[1, 2], [], [0], [4]]  # one prompt without noise
    bases = {
        "embed": [inscape.add("embed", None, grain, tokens=some)],
        "below": [inscape.set_("resid_post", 0, u, tokens=some)],
        "above": [inscape.scale("mlp_out", 2, -2.0), inscape.add("z", 2, noise(*shape_of(lm, "z")), tokens="last")],
        "next block's input": [inscape.scale("resid_pre", 2, -0.5)],
        "the same, from the end": [inscape.scale("resid_pre", -1, -0.5)],
        "first block's input": [inscape.scale("resid_pre", -LAYERS, -0.5)],
        "logits": [inscape.scale("logits", None, -2.0, tokens="last")],
    }
    cells = [
        [inscape.set_("resid_post", 1, v, tokens="last")],
        [inscape.add("resid_post", 1, v, tokens=AT), inscape.project("resid_pre", 2, w)],
        [inscape.add("embed", None, noise(embedded, seed=4), tokens="first")],
        [inscape.add("resid_pre", 0, v, tokens="last")],
        [inscape.add("mlp_out", 1, w, tokens=some)],
        [inscape.add("logits", None, noise(VOCAB), tokens="last")],
        [],
    ]
    plain = tensor(lm.rerun(IDS, cells).base)
    for what, base in bases.items():
        for batch_size in (1, 64):
            found = rerun_equal_to_naive(lm, cells, base=base, batch_size=batch_size)
            assert torch.equal(found[:, -1], tensor(lm.rerun(IDS, cells, base=base, batch_size=batch_size).base)), what
        if what != "embed":
            assert (found[:, -1] - plain).abs().max() > 0.01, what
    # By hand, for the noise: token k of a prompt has noise k.
    found = tensor(lm.rerun(IDS, cells[:1], base=bases["embed"]).values)[:, 0]
    for row, ids in enumerate(IDS):
        edits = [ByHand("embed", None, [t], add(grain[row, k])) for k, t in enumerate(some[row])]
        close(found[row], logits_by_hand(name, lm, ids, [*edits, ByHand("resid_post", 1, [-1], put(v))])[-1])


@pytest.mark.parametrize("name", ["gpt2", "mpt"])
def test_no_batch_and_no_order_changes_a_result(name: str) -> None:
    lm, many = tiny(name), prompts(1, 9, 3, 3, 12, 5, 1)
    vectors, strengths = noise(7, WIDTH), noise(7, 2, seed=1, size=1)
    order = [4, 0, 6, 2, 5, 1, 3]
    grid = Grid("resid_post", [0, 1], "each", "add", vectors, strengths=strengths)
    mixed = Grid("resid_post", [0, 1], "each", "add", vectors[order], strengths=strengths[order])
    expected = lm.rerun(many, grid, batch_size=64).values
    for batch_size in (1, 5):
        close(*(tensor(lm.rerun(many, grid, batch_size=b).values).nan_to_num(0) for b in (batch_size, 64)))
    found = lm.rerun([many[i] for i in order], mixed, batch_size=3).values
    close(tensor(found).nan_to_num(0), tensor(expected)[order].nan_to_num(0))
    for row in (0, 4):
        alone = Grid("resid_post", [0, 1], "each", "add", vectors[row : row + 1], strengths=strengths[row : row + 1])
        one = lm.rerun([many[row]], alone).values
        close(tensor(one)[0], tensor(expected)[row, :, : len(many[row])])


@pytest.mark.parametrize("name", ["gpt2", "mistral", "gpt_neo", "bloom"])
def test_read_before_at_and_after_the_edit(name: str) -> None:
    lm = tiny(name)
    read = [[0, 8, 3], [0, 3], [0], [5, 0]]
    edit = inscape.add("attn_out", 0, noise(WIDTH), tokens=[[4], [2], [0], [3]])
    found = lm.rerun(
        IDS, [[edit], [inscape.add("resid_post", 2, noise(WIDTH), tokens=[[4], [2], [0], [3]])]], read=read
    )
    assert found.values.dims == ("prompt", "cell", "token", "vocab")
    values, base = tensor(found.values), tensor(found.base)
    for row, at in enumerate(read):
        first = [4, 2, 0, 3][row]
        expected = logits_by_hand(name, lm, IDS[row], [ByHand("attn_out", 0, [first], add(edit.vector))])
        for nth, token in enumerate(at):
            close(values[row, 0, nth], expected[token])
            assert torch.allclose(values[row, 0, nth], base[row, nth], atol=1e-5) == (token < first)
            # After the last block nothing mixes tokens any more.
            assert torch.allclose(values[row, 1, nth], base[row, nth], atol=1e-5) == (token != first)
        assert values[row, :, len(at) :].isnan().all()


@pytest.mark.parametrize("name", NAMES)
def test_prompts_as_long_as_the_context(name: str) -> None:
    lm, many = tiny(name), prompts(CONTEXT, CONTEXT - 1, 3)
    cells = [
        [inscape.add("resid_post", 0, noise(WIDTH), tokens=[[CONTEXT - 1], [0], [1]])],
        [inscape.add("embed", None, noise(*shape_of(lm, "embed")), tokens="first")],
        [inscape.add("k", 1, noise(*shape_of(lm, "k")), tokens="last")],
    ]
    for side in ("left", "right"):
        rerun_equal_to_naive(lm, cells, many, padding_side=side)
    found = tensor(lm.rerun(many, cells).values)[0, 0]
    by_hand = ByHand("resid_post", 0, [CONTEXT - 1], add(noise(WIDTH)))
    close(found, logits_by_hand(name, lm, many[0], [by_hand])[-1])


HALF = [*((name, torch.bfloat16) for name in NAMES), ("gpt2", torch.float16), ("mpt", torch.float16)]


@pytest.mark.parametrize(("name", "dtype"), HALF)
def test_half_precision_is_as_near_to_the_truth_as_full_forwards_are(name: str, dtype: torch.dtype) -> None:
    """The measure is the same weights in float32, and how far the naive path itself is from it."""
    half = tiny(name, dtype=dtype)
    exact = inscape.load(build(name, dtype=dtype).float(), words())
    cells = [
        [inscape.add(site, None if site == "embed" else n % LAYERS, noise(*shape_of(half, site), seed=n), tokens=at)]
        for n, site in enumerate(sites_of(half))
        for at in ("last", AT)
    ]
    truth = tensor(exact.rerun(IDS, cells, naive=True).values)
    cut, full = (half.rerun(IDS, cells, naive=naive) for naive in (False, True))
    assert cut.naive is None
    off, room = ((tensor(x.values) - truth).square().mean().sqrt().item() for x in (cut, full))
    assert room > 0
    assert off <= 1.1 * room


@pytest.mark.parametrize("name", ["gpt2", "gpt_neo", "opt", "bloom", "qwen3", "gemma2", "falcon_new", "mpt"])
def test_donors_give_their_activations(name: str) -> None:
    lm = tiny(name)
    donors = prompts(9, 6, 2, 5, seed=8)
    giving, taking = [[1, 7], [5], [0], [2, 3]], AT
    sites = ["resid_post", "z"]
    grid = Grid(
        sites, [0, 2], {"a": taking, "last": "last"}, "set",
        donors=[Donors(donors, {"a": giving, "last": "last"}), Donors(IDS[::-1], {"a": [[5, 0], [0], [0], [2, 3]],
                "last": "first"}, edits=[inscape.scale("resid_post", 0, 2.0)])], strengths=(1.0, 0.5),
    )  # fmt: skip
    found = lm.rerun(IDS, grid)
    assert found.values.dims == ("prompt", "site", "layer", "position", "donor", "strength", "vocab")
    rerun_equal_to_naive(lm, grid)
    for site in sites:
        values = lm.capture(donors, site, [2], giving)
        for row, ids in enumerate(IDS):
            rows = values.at()[values.prompt == row].flatten(1)
            edits = [ByHand(site, 2, [t], put(rows[k])) for k, t in enumerate(taking[row])]
            here = found.values.sel(site=site, layer=2, position="a", donor=0, strength=1.0, prompt=row)
            close(tensor(here), logits_by_hand(name, lm, ids, edits)[-1])


def test_a_prompt_that_gives_to_itself_changes_nothing() -> None:
    lm = tiny("qwen3")
    for site in ("embed", "q", "resid_mid", "logits"):
        found = lm.rerun(IDS, Grid(site, tokens="each", kind="set", donors=Donors(IDS)))
        values = tensor(found.values)
        same = torch.where(values.isnan(), 0, values - tensor(found.base).view(4, *[1] * (values.ndim - 2), VOCAB))
        assert same.abs().max() <= 1e-6 * tensor(found.base).abs().max()


def test_heads_one_by_one() -> None:
    for name in ("gpt2", "falcon_new", "gpt_neox", "phi3"):
        lm = tiny(name)
        for site in ("q", "v", "z"):
            heads, width = shape_of(lm, site)
            vector = noise(width)
            found = lm.rerun(IDS[:1], Grid(site, [1], "last", vector=vector, heads=[*range(heads), -1])).values
            for head in range(heads):
                one = torch.zeros(heads, width)
                one[head] = vector
                expected = logits_by_hand(name, lm, IDS[0], [ByHand(site, 1, [-1], add(one))])[-1]
                close(tensor(found.sel(head=head))[0].flatten(), expected)
            assert torch.equal(tensor(found.sel(head=-1)), tensor(found.sel(head=heads - 1)))


def test_a_model_with_gradients_on_gives_plain_numbers() -> None:
    lm = inscape.load(build("llama"), words())
    assert all(p.requires_grad for p in lm.model.parameters())
    probe = torch.nn.Linear(VOCAB, 1)
    grid = Grid(vector=noise(WIDTH).requires_grad_())
    with torch.enable_grad():
        by_probe = lm.rerun(IDS, grid, lambda logits, base, prompt: probe(logits)[:, 0])
        logits = lm.rerun(IDS, grid)
        lm.rerun(IDS, Grid("logits", vector=noise(VOCAB).requires_grad_()))
    assert logits.values.dtype == by_probe.values.dtype == "float32"
    close(tensor(by_probe.values), probe(tensor(logits.values))[..., 0].detach())
    assert all(p.grad is None for p in lm.model.parameters())


def test_float64_comes_back_as_float32() -> None:
    lm = tiny("gpt2", dtype=torch.float64)
    assert lm.rerun(IDS, Grid(vector=noise(WIDTH))).values.dtype == "float32"
    rerun_equal_to_naive(lm, Grid(vector=noise(WIDTH), strengths=(0.1, 0.7)), relative=1e-6)
