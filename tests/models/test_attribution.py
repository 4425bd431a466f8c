"""Attribution: the estimate is the slope of what the edit really does, in every family, and the sweep's own shape."""

import gc
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import HEADS, LAYERS, NAMES, WIDTH, build, close, prompts, tiny, words
from torch import Tensor, nn

import inscape
from inscape import Edit, EditError, InputError
from inscape.models import KL, Donors, Grid, LogitDifference, Logits, Metric, Probability, Rerun
from inscape.models.attribution import attribute
from inscape.models.capture import NonFiniteError
from inscape.models.lm import LM

CORRECT, WRONG = [3, 40, 5], [61, 7, 80]
IDS = prompts(6, 6, 6, seed=11)
UNLIKE = prompts(8, 4, 6, seed=12)
ROWS = [[1, 4], [3], [0, 2, 5]]
KINDS = ("add", "set", "scale", "project", "ablate")


def estimate(lm: LM, ids: Any, edits: Any, metric: Any = None, **options: Any) -> Rerun:
    fixed: dict[str, Any] = {"read": "last", "base": (), "mentions": None, "occurrence": None, "bos": None,
                             "batch_size": 64, "padding_side": "left", "progress": None}  # fmt: skip
    metric = metric if metric is not None else LogitDifference(CORRECT[: len(ids)], WRONG[: len(ids)])
    return attribute(lm, ids, edits, metric, **fixed | options)


def change(found: Rerun) -> Tensor:
    return torch.tensor((found.values - found.base).values)


def feature(lm: LM, site: str, layer: int | None) -> torch.Size:
    return lm.capture([IDS[0]], site, layer).values.shape[2:]


def noise(*shape: int, seed: int = 3) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def difference(lm: LM, ids: Any, edits: Sequence[Edit]) -> Tensor:
    """The logit difference of every prompt, in the model's own dtype."""
    logits = lm.logits(ids, edits=edits)
    rows = torch.arange(len(ids))
    return logits[rows, CORRECT[: len(ids)]] - logits[rows, WRONG[: len(ids)]]


def dosed(kind: str, site: str, layer: int | None, v: Tensor, dose: float, **more: Any) -> Edit:
    """An edit that goes the part ``dose`` of the way from x to f(x)."""
    match kind:
        case "add":
            return inscape.add(site, layer, v, strength=dose, **more)
        case "set":
            return inscape.set_(site, layer, v, strength=dose, **more)
        case "scale":
            return inscape.scale(site, layer, 1 - 1.7 * dose, **more)
        case "project":
            return inscape.project(site, layer, v[0, 0].flatten(), strength=dose, **more)
    return inscape.scale(site, layer, 1 - dose, **more)


def whole(kind: str, site: str, layer: int | None, v: Tensor, **more: Any) -> Edit:
    return inscape.ablate(site, layer, **more) if kind == "ablate" else dosed(kind, site, layer, v, 1.0, **more)


# -- against what edits do ---------------------------------------------------------------------------------------------


def slope(lm: LM, case: Sequence[Any], more: dict[str, Any], base: Sequence[Edit] = ()) -> Tensor:
    """``[prompt]``: how the logit difference changes with an edit's dose at dose 0, by differences of runs."""
    # Where a family computes in float32 whatever its weights, small steps drown: there a wide one, to fourth order.
    weights = {1: 1 / 2, -1: -1 / 2} if in_float64(lm) else {1: 2 / 3, -1: -2 / 3, 2: -1 / 12, -2: 1 / 12}
    step = 1e-6 if in_float64(lm) else 1e-3
    runs = [w * difference(lm, IDS, [*base, dosed(*case, k * step, **more)]) for k, w in weights.items()]
    return torch.stack(runs).sum(0) / step


def in_float64(lm: LM) -> bool:
    return lm.config.model_type in ("gpt2", "gpt_neox", "opt", "phi", "falcon", "stablelm")


def near(found: Tensor, real: Tensor, lm: LM, base: Tensor) -> None:
    """Equal; where scale makes no difference (before a norm) slopes are 0, so the size of the metric counts as well."""
    relative, absolute = (1e-4, 1e-6) if in_float64(lm) else (1e-2, 2e-4)
    off = (found - real).abs().max()
    assert off <= relative * real.abs().max() + absolute * base.abs().max(), f"{found} is not {real}"


@pytest.mark.parametrize("name", NAMES)
def test_slope_of_every_site(name: str) -> None:
    # Nothing of the estimate but the edit's rule is shared.
    lm = tiny(name, None, torch.float64)
    if name == "mpt":  # a slope next to a clip's kink is no limit of differences (raw autograd, below, has the clip)
        lm = inscape.load(build(name, dtype=torch.float64), words())
        for block in lm.sites.blocks:
            block.attn.clip_qkv = None
    cases = []
    for nth, site in enumerate(s for s in lm.sites.available() if s != "logits"):
        layer = None if site == "embed" else nth % LAYERS
        head = 1 if site in ("q", "z") else None
        shape = feature(lm, site, layer)[1 if head is not None else 0 :]
        v = noise(len(IDS), 3, *shape, seed=nth)
        more = {"tokens": ROWS, "head": head}
        cases += [((KINDS[(nth + step) % 5], site, layer, v), more) for step in (0, 2)]
    found = estimate(lm, IDS, [[whole(*case, **more)] for case, more in cases])
    base = difference(lm, IDS, [])
    close(torch.tensor(found.base.values), base, 1e-6)
    for nth, (case, more) in enumerate(cases):
        near(change(found)[:, nth], slope(lm, case, more), lm, base)


def test_small_doses_against_rerun() -> None:
    lm = tiny("llama")
    grid = Grid(("resid_pre", "resid_post"), tokens="each", vector=noise(WIDTH).float(), strengths=(-0.003, 0.003))
    metric = LogitDifference(CORRECT, WRONG)
    real, found = lm.rerun(UNLIKE, grid, metric, naive=True), estimate(lm, UNLIKE, grid)
    assert found.values.dims == real.values.dims == ("prompt", "site", "layer", "position", "strength")
    assert found.base.dims == real.base.dims
    assert found.naive is None
    for dim in real.values.dims:
        assert list(found.values[dim].values) == list(real.values[dim].values)
    assert (found.values.isnull() == real.values.isnull()).all()
    assert found.values.isnull().any()
    xr.testing.assert_allclose(found.base, real.base, rtol=1e-5)
    # A dose and its opposite: what bends cancels.
    ours, theirs = (torch.tensor(one.diff("strength").values) for one in (found.values, real.values))
    there = ~theirs.isnan()
    close(ours[there], theirs[there], 0.01)


def raw(lm: LM, ids: list[int], module: nn.Module, side: str) -> tuple[Tensor, Tensor]:
    """A module's input or output ``[token, feature]`` in a plain forward pass, and the logit difference's gradient."""
    kept: list[Tensor] = []

    def on_output(_: Any, args: Any, output: Any) -> Any:
        kept.append((output[0] if isinstance(output, tuple) else output).detach().requires_grad_())
        return (kept[0], *output[1:]) if isinstance(output, tuple) else kept[0]

    def on_input(_: Any, args: Any) -> Any:
        kept.append(args[0].detach().requires_grad_())
        return (kept[0], *args[1:])

    register = module.register_forward_hook if side == "out" else module.register_forward_pre_hook
    handle = register(on_output if side == "out" else on_input)
    logits = lm.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1]
    handle.remove()
    (slope,) = torch.autograd.grad(logits[CORRECT[0]] - logits[WRONG[0]], kept)
    return kept[0].detach()[0], slope[0]


@pytest.mark.parametrize("name", NAMES)
def test_raw_autograd_in_every_family(name: str) -> None:
    lm, ids, at = tiny(name), IDS[0], [0, 3]
    vector = noise(WIDTH).float()
    block, embedding = (raw(lm, ids, module, "out") for module in (lm.sites.blocks[1], lm.model.get_input_embeddings()))
    wide = noise(embedding[0].shape[1]).float()  # (embeddings may be narrower than the stream)
    edits = [
        [inscape.set_("embed", None, wide, tokens=[at])],
        [inscape.set_("resid_post", 1, vector, tokens=[at])],
        [inscape.add("resid_pre", 2, vector, tokens=[at], strength=0.3)],
    ]
    by_hand = [
        ((wide - embedding[0][at]) * embedding[1][at]).sum(),
        ((vector - block[0][at]) * block[1][at]).sum(),
        (0.3 * vector * block[1][at]).sum(),
    ]
    close(change(estimate(lm, [ids], edits))[0], torch.stack(by_hand), 1e-5)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_raw_autograd(name: str) -> None:
    lm, ids, at = tiny(name), IDS[0], [1, 4]
    block, d = lm.sites.blocks[1], WIDTH // HEADS
    gpt2 = name == "gpt2"
    attention = block.attn if gpt2 else block.self_attn
    vector = noise(WIDTH).float()
    stream, stream_slope = raw(lm, ids, block, "out")
    z, z_slope = raw(lm, ids, attention.c_proj if gpt2 else attention.o_proj, "in")
    k, k_slope = raw(lm, ids, attention.c_attn if gpt2 else attention.k_proj, "out")
    k_first = (HEADS + 1) * d if gpt2 else d  # head 1 of k
    part, narrow = slice(k_first, k_first + d), vector[:d]
    by_hand = [
        (0.7 * vector * stream_slope[at]).sum(),
        (0.5 * (vector - stream[at]) * stream_slope[at]).sum(),
        -(stream[at] * stream_slope[at]).sum(),
        (2.0 * z[at] * z_slope[at])[:, 2 * d : 3 * d].sum(),
        ((narrow - k[at, part]) * k_slope[at, part]).sum(),
    ]
    found = estimate(
        lm, [ids],
        [
            [inscape.add("resid_post", 1, vector, tokens=[at], strength=0.7)],
            [inscape.set_("resid_post", 1, vector, tokens=[at], strength=0.5)],
            [inscape.ablate("resid_post", 1, tokens=[at])],
            [inscape.scale("z", 1, 3.0, tokens=[at], head=2)],
            [inscape.set_("k", 1, narrow, tokens=[at], head=1)],
        ],
    )  # fmt: skip
    assert found.values.dims == ("prompt", "cell")
    close(change(found)[0], torch.stack(by_hand), 1e-5)


@pytest.mark.parametrize("log", [False, True])
def test_probability_of_continuations(log: bool) -> None:
    # Edits of the prompt's tokens and of the continuation's own, each sequence by itself, transformers alone.
    lm, ids = tiny("llama"), prompts(5, 3)
    continuations = [[[5, 6, 7], [8]], [[9, 10], [11, 12]]]
    vector = noise(WIDTH).float()
    edits = [
        [inscape.add("resid_post", 1, vector, tokens="last")],
        [inscape.add("resid_post", 1, vector, tokens="last", when="always")],
    ]
    found = estimate(lm, ids, edits, Probability(continuations, log=log), batch_size=3)
    assert found.values.dims == ("prompt", "cell", "continuation")
    for p, (prompt, several) in enumerate(zip(ids, continuations, strict=True)):
        for c, continuation in enumerate(several):
            kept: list[Tensor] = []

            def hook(_: Any, args: Any, output: Tensor, kept: list[Tensor] = kept) -> Tensor:
                kept.append(output.detach().requires_grad_())
                return kept[0]

            handle = lm.sites.blocks[1].register_forward_hook(hook)
            logits = lm.model(input_ids=torch.tensor([prompt + continuation]), use_cache=False).logits[0]
            handle.remove()
            rows = logits[len(prompt) - 1 : -1].log_softmax(-1)
            value = rows[range(len(continuation)), continuation].sum()
            value = value if log else value.exp()
            (slope,) = torch.autograd.grad(value, kept)
            steps = (slope[0] @ vector)[len(prompt) - 1 :]
            by_hand = torch.stack([steps[0], steps.sum()])
            close(torch.tensor(found.base.values[p, c]), value.detach(), 1e-5)
            close(torch.tensor(found.values[p, :, c].values), value.detach() + by_hand, 1e-5)
    one = estimate(lm, ids, edits, Probability([c[1] for c in continuations], log=log))
    close(torch.tensor(one.values.values), torch.tensor(found.values.values[..., 1]), 1e-5)
    assert one.values.dims == ("prompt", "cell")


def test_exact_where_the_model_is_linear() -> None:
    # Parallel blocks, and no final norm: the last block's values, z and outputs reach the logits by linear maps alone.
    model = build("gptj")
    model.transformer.ln_f = nn.Identity()
    lm, last = inscape.load(model, words(), check=False), LAYERS - 1
    metric, v = LogitDifference(CORRECT, WRONG), 5 * noise(WIDTH).float()
    everywhere = [
        Grid(("attn_out", "mlp_out", "resid_post"), last, vector={"a": v, "b": -v}, strengths=(1.0, 30.0)),
        Grid("resid_post", last, kind="set", vector=v, strengths=torch.tensor([[1.0, 2.0], [0.5, 1.0], [-3.0, 0.0]])),
        Grid(("v", "z"), last, tokens="each", kind="scale", strengths=(0.0, -4.0), heads=range(HEADS)),
        Grid("v", last, tokens="each", kind="set", donors=[Donors(prompts(8, 4, 6, seed=s)) for s in (20, 21)]),
        Grid("mlp_act", last, kind="ablate"),
        Grid("resid_post", last, kind="project", vector=torch.stack([v, noise(WIDTH, seed=8).float()])),
        # Edits of one place follow one another, and overlap in part.
        [
            [inscape.scale("v", last, 0.5, tokens="all"), inscape.scale("v", last, 0.5, tokens="first", head=1)],
            [inscape.add("resid_post", last, v), inscape.scale("resid_post", last, 3.0)],
            [inscape.add("mlp_out", last, v), inscape.add("resid_post", last, v), inscape.ablate("attn_out", last)],
            [],
        ],
    ]
    for edits in everywhere:
        real, found = lm.rerun(UNLIKE, edits, metric, naive=True), estimate(lm, UNLIKE, edits)
        assert found.values.dims == real.values.dims
        there = ~real.values.isnull().values
        close(torch.tensor(found.values.values)[there], torch.tensor(real.values.values)[there], 1e-5)
        assert (found.values.isnull().values == ~there).all()


# -- what it does with a sweep -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_padding_changes_nothing(name: str) -> None:
    lm = tiny(name)
    sites = [site for site in lm.sites.available() if site != "logits"]
    cells = [[inscape.scale(site, None if site == "embed" else 1, 2.0, tokens="all")] for site in sites]
    alone = [
        estimate(lm, [ids], cells, LogitDifference([c], [w])) for ids, c, w in zip(UNLIKE, CORRECT, WRONG, strict=True)
    ]
    for side in ("left", "right"):
        padded = estimate(lm, UNLIKE, cells, padding_side=side)
        close(change(padded), torch.cat([change(one) for one in alone]), 1e-4)
        close(torch.tensor(padded.base.values), torch.tensor([one.base.item() for one in alone]), 1e-4)


@pytest.mark.parametrize("size", [1, 2])
def test_batches(size: int) -> None:
    lm, totals = tiny("gpt2"), []

    def progress(batches: Iterator[Any], total: int) -> Iterator[Any]:
        totals.append(total)
        yield from batches

    grid = Grid(tokens="each", kind="ablate")
    a, b = estimate(lm, UNLIKE, grid), estimate(lm, UNLIKE, grid, batch_size=size, progress=progress)
    close(change(b).nan_to_num(), change(a).nan_to_num(), 1e-5)
    assert totals == [-(-3 // size)]


def moved(logits: Tensor, base: Tensor, prompt: Tensor) -> Tensor:
    """A metric that is 0 in the base run, so that values are changes, and small ones are not rounded beside it."""
    return (logits - base)[:, 3]


@settings(max_examples=25, deadline=None)
@given(
    strengths=st.lists(st.floats(-50, 50).filter(lambda s: s == 0 or abs(s) > 1e-9), min_size=1, max_size=4),
    layers=st.lists(st.integers(0, LAYERS - 1), min_size=1, unique=True),
    seed=st.integers(0, 1000),
)
def test_linear_in_dose_tokens_and_layers(strengths: list[float], layers: list[int], seed: int) -> None:
    lm, v = tiny("qwen2"), noise(WIDTH, seed=seed).float()
    unit = change(estimate(lm, IDS, Grid("attn_out", layers, tokens="each", vector=v), moved))
    each = change(estimate(lm, IDS, Grid("attn_out", layers, tokens="each", vector=v, strengths=strengths), moved))
    for nth, strength in enumerate(strengths):  # [prompt, layer, position, strength]
        off = (each[..., nth] - strength * unit[..., 0]).abs().max()
        assert off <= 1e-4 * abs(strength) * unit.abs().max()
    together = [[inscape.add("attn_out", layer, v, tokens="all") for layer in layers]]
    off = (change(estimate(lm, IDS, together, moved))[:, 0] - unit.sum((1, 2, 3))).abs().max()
    assert off <= 1e-5 * unit.abs().sum((1, 2, 3)).max()


def test_window_is_the_sum_of_its_layers() -> None:
    lm = tiny("gemma2")
    one = change(estimate(lm, IDS, Grid("mlp_out", kind="ablate")))
    window = change(estimate(lm, IDS, Grid("mlp_out", kind="ablate", window=1)))
    close(window, torch.stack([one[:, :2].sum(1), one.sum(1), one[:, 1:].sum(1)], 1), 1e-5)


def test_donors_and_heads_by_hand() -> None:
    lm, donors = tiny("gpt_neox"), prompts(6, 6, 6, seed=30)
    patched = change(estimate(lm, IDS, Grid("z", tokens=ROWS, kind="set", donors=Donors(donors))))
    theirs, ours = (lm.capture(p, "z", tokens=ROWS) for p in (donors, IDS))
    for layer in range(LAYERS):
        by_head = torch.zeros(len(IDS))
        for head in range(HEADS):
            # One vector for each prompt and token, 0 where a prompt has fewer.
            v = torch.zeros(len(IDS), 3, WIDTH // HEADS)
            for p, tokens in enumerate(ROWS):
                v[p, : len(tokens)] = (theirs.at(layer) - ours.at(layer))[ours.prompt == p][:, head]
            by_head += change(estimate(lm, IDS, [[inscape.add("z", layer, v, tokens=ROWS, head=head)]]))[:, 0]
        close(patched[:, layer, 0, 0], by_head, 1e-5)


def test_several_tokens_read() -> None:
    lm, read = tiny("gpt2"), [[1, 5], [2], [0, 3, 4]]
    grid = Grid("resid_pre", tokens="each", kind="ablate")
    many = estimate(lm, IDS, grid, read=read)
    assert many.values.dims == ("prompt", "layer", "position", "strength", "token")
    for p, tokens in enumerate(read):
        for nth in range(3):
            if nth >= len(tokens):
                assert many.values[p, ..., nth].isnull().all()
                continue
            one = estimate(lm, [IDS[p]], grid, LogitDifference([CORRECT[p]], [WRONG[p]]), read=[tokens[nth]])
            close(change(many)[p, ..., nth], change(one)[0], 1e-5)
            assert (change(one)[0, :, tokens[nth] + 1 :] == 0).all()  # what comes later is not read
    cells = LAYERS * 6
    assert many.share == pytest.approx((1 + 3) / cells)
    assert estimate(lm, IDS, grid).share == pytest.approx(2 / cells)


def test_base_edits() -> None:
    # The slope is taken on the base run, also where base and cell edit the same place.
    lm, v = tiny("llama", None, torch.float64), noise(WIDTH)
    base = [inscape.add("resid_post", 0, v, strength=2.0), inscape.project("resid_post", 1, v, tokens="all")]
    vectors = v.expand(3, 6, -1)
    cases = [("set", "resid_post", 0), ("ablate", "resid_post", 1), ("add", "mlp_out", 2), ("scale", "embed", None)]
    found = estimate(lm, IDS, [[whole(*case, vectors, tokens="all")] for case in cases], base=base)
    close(torch.tensor(found.base.values), difference(lm, IDS, base), 1e-6)
    for nth, case in enumerate(cases):
        real = slope(lm, (*case, vectors), {"tokens": "all"}, base)
        near(change(found)[:, nth], real, lm, difference(lm, IDS, base))
    shifted = estimate(lm, IDS, [[inscape.ablate("embed", None)]], base=[inscape.scale("logits", None, 3.0)])
    plain = estimate(lm, IDS, [[inscape.ablate("embed", None)]])
    close(change(shifted), 3 * change(plain), 1e-5)


def test_functions_of_logits() -> None:
    lm, edits = tiny("gpt2"), [[inscape.ablate("mlp_out", 1, tokens="all")]]
    correct = torch.tensor(CORRECT)
    found = estimate(lm, IDS, edits, lambda logits, base, prompt: logits[torch.arange(len(prompt)), correct[prompt]])
    wrong = estimate(
        lm, IDS, edits, lambda logits, base, prompt: -logits[range(len(prompt)), torch.tensor(WRONG)[prompt]]
    )
    both = estimate(lm, IDS, edits)
    close(change(found) + change(wrong), change(both), 1e-5)
    # The base run's logits are constants: what is compared with them has a slope of its own.
    compared = estimate(lm, IDS, edits, moved)
    own = estimate(lm, IDS, edits, lambda logits, base, prompt: logits[:, 3])
    assert (compared.base == 0).all()
    close(change(compared), change(own), 1e-5)


class Pair(Metric):
    """Two numbers for each row: a metric with a dimension of its own."""

    dims = ("side",)

    def coords(self) -> dict[str, list[Any]]:
        return {"side": ["correct", "wrong"]}

    def read(self, logits_NV: Tensor, base_NV: Tensor, sequence: Tensor, nth: Tensor) -> Tensor:
        return torch.stack([logits_NV[range(len(nth)), torch.tensor(s)[sequence]] for s in (CORRECT, WRONG)], 1)


def test_metric_with_its_own_dimension() -> None:
    lm, grid = tiny("gpt2"), Grid("mlp_out", kind="ablate")
    pair, both = estimate(lm, IDS, grid, Pair()), estimate(lm, IDS, grid)
    assert pair.values.dims == ("prompt", "layer", "position", "strength", "side")
    assert list(pair.values["side"].values) == ["correct", "wrong"]
    close(change(pair)[..., 0] - change(pair)[..., 1], change(both), 1e-5)


def test_bfloat16() -> None:
    half, full = tiny("llama", None, torch.bfloat16), tiny("llama")
    cells = [[inscape.scale(site, 1, 2.0)] for site in ("resid_pre", "z", "mlp_act")]
    tiny_dose = [[inscape.add("resid_post", 1, noise(WIDTH).float(), strength=1e-6)]]
    close(change(estimate(half, IDS, cells)), change(estimate(full, IDS, cells)), 0.1)
    # The step is not rounded to the model's 8 bits, where it would vanish beside x.
    at_one = [[inscape.add("resid_post", 1, noise(WIDTH).float())]]
    small, large = (estimate(half, IDS, edits, moved) for edits in (tiny_dose, at_one))
    close(1e6 * change(small), change(large), 1e-4)


# -- what it leaves alone ------------------------------------------------------------------------------------------------


def test_model_and_its_gradients_are_untouched() -> None:
    model = build("gpt2")
    lm = inscape.load(model, words())
    parameters = list(model.parameters())
    before = {name: value.clone() for name, value in model.state_dict().items()}

    def hooks() -> list[Any]:
        return [(tuple(m._forward_hooks), tuple(m._forward_pre_hooks)) for m in model.modules()]

    hooks_before = hooks()
    grid = Grid(("resid_pre", "z", "mlp_act"), kind="scale", strengths=(0.5,))
    with_gradients = estimate(lm, IDS, grid)
    assert all(p.grad is None and p.requires_grad for p in parameters)
    kept = torch.ones_like(parameters[3])
    parameters[3].grad = kept
    flags = [nth % 2 == 0 for nth in range(len(parameters))]
    for parameter, flag in zip(parameters, flags, strict=True):
        parameter.requires_grad_(flag)
    mixed = estimate(lm, IDS, grid)
    assert [p.requires_grad for p in parameters] == flags
    assert parameters[3].grad is kept
    assert (kept == 1).all()
    model.requires_grad_(False)
    frozen = estimate(lm, IDS, grid)
    with torch.no_grad():
        inside = estimate(lm, IDS, grid)
        assert not torch.is_grad_enabled()
    with torch.inference_mode():
        inferred = estimate(lm, IDS, grid)
        assert torch.is_inference_mode_enabled()
    for other in (mixed, frozen, inside, inferred):
        xr.testing.assert_identical(other.values, with_gradients.values)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert hooks() == hooks_before


def test_memory_is_freed_with_each_batch() -> None:
    lm, graphs = tiny("gpt2"), []

    def progress(batches: Iterator[Any], total: int) -> Iterator[Any]:
        for batch in batches:
            gc.collect()
            graphs.append(sum(type(o) is Tensor and o.grad_fn is not None for o in gc.get_objects()))
            yield batch

    estimate(lm, UNLIKE, Grid(tokens="each", kind="ablate"), batch_size=1, progress=progress)
    assert graphs[0] == graphs[1] == graphs[2]


# -- what it refuses -------------------------------------------------------------------------------------------------------

ONE = [[inscape.ablate("resid_pre", 1)]]


@pytest.mark.parametrize(
    ("edits", "metric", "message"),
    [
        (ONE, KL(), "gradient of KL is 0"),
        (ONE, Logits(), "need a gradient for each vocabulary entry"),
        (ONE, 3, "expected a metric or a function of logits, found int"),
        (ONE, lambda logits, base, prompt: logits.argmax(-1), "the metric has no gradient"),
        (ONE, lambda logits, base, prompt: base[:, 0], "the metric has no gradient"),
        (ONE, lambda logits, base, prompt: logits, "one number per row"),
        (ONE, lambda logits, base, prompt: logits[:, 0].masked_fill(prompt == 2, torch.nan), "in the metric of prompt 2"),
        (ONE, lambda logits, base, prompt: (logits - base)[:, 0].abs().sqrt(), "in the estimate for an edit of prompt"),
        ([[inscape.scale("logits", None, 2.0)]], None, "an edit of 'logits' has no model above it"),
        ([[inscape.add("resid_pre", 1, torch.ones(3))]], None, "vector has shape"),
        ([[inscape.ablate("q", 1, head=HEADS)]], None, f"no head {HEADS}"),
        ([[inscape.ablate("resid_pre", LAYERS)]], None, f"no layer {LAYERS}"),
        ([[]], None, "no cell has an edit"),
        ([], None, "no edits were given"),
    ],
)  # fmt: skip
def test_refused(edits: Any, metric: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        estimate(tiny("gpt2"), IDS, edits, metric)


def test_logits_themselves_are_refused() -> None:
    with pytest.raises(InputError, match="vocabulary entry"):
        attribute(
            tiny("gpt2"), IDS, ONE, None, read="last", base=(), mentions=None, occurrence=None, bos=None, batch_size=64,
            padding_side="left", progress=None,
        )  # type: ignore[arg-type]  # fmt: skip


class Gap(Probability):
    """How much more probable the first continuation is: one value of two sequences."""

    dims = ()  # type: ignore[assignment]

    def coords(self) -> dict[str, list[Any]]:
        return {}

    def together(self, values: Tensor, prompts: int) -> Tensor:
        both = super().together(values, prompts)
        return both[..., 0] - both[..., 1]


def test_value_of_several_sequences() -> None:
    with pytest.raises(InputError, match="several sequences together"):
        estimate(tiny("gpt2"), IDS, ONE, Gap([[[3], [4]]] * 3))


def test_no_prompts() -> None:
    with pytest.raises(InputError, match="no prompts"):
        estimate(tiny("gpt2"), [], ONE)


def test_non_finite_logits_name_the_prompt() -> None:
    model = build("gpt2")
    lm = inscape.load(model, words())
    with torch.no_grad():
        model.transformer.wte.weight[IDS[1][0]] = torch.nan
        model.lm_head.weight = nn.Parameter(build("gpt2").lm_head.weight)  # (it was the same tensor)
    with pytest.raises(NonFiniteError, match="in the logits of prompt 1"):
        estimate(lm, [[i for i in IDS[0] if i not in IDS[1]], IDS[1]], ONE)


def test_model_that_cuts_its_graph() -> None:
    model = build("gpt2")
    lm = inscape.load(model, words())
    model.transformer.h[1].register_forward_hook(
        lambda module, args, output: (output[0].detach(), *output[1:]) if isinstance(output, tuple) else output.detach()
    )
    with pytest.raises(InputError, match="no gradient with respect to mlp_out of layer 0"):
        estimate(lm, IDS, [[inscape.ablate("mlp_out", 0)], [inscape.ablate("mlp_out", 2)]])


def test_weights_made_in_inference_mode() -> None:
    with torch.inference_mode():
        lm = inscape.load(build("gpt2"), words())
    with pytest.raises(InputError, match="inference_mode"):
        estimate(lm, IDS, ONE)


def test_base_edit_that_does_not_fire() -> None:
    model = build("gpt2")
    lm = inscape.load(model, words())
    model.transformer.h[0].forward = lambda x, *args, **kwargs: x  # its parts are left out
    with pytest.raises(EditError, match="fired 0 times"):
        estimate(lm, IDS, ONE, base=[inscape.ablate("mlp_out", 0)])
    with pytest.raises(InputError, match="seen 0 times"):
        estimate(lm, IDS, [[inscape.ablate("mlp_out", 0)]])
