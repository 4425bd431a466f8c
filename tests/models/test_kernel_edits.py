"""Edits: exactly the asked rows change, everything downstream equals a plain torch hook, and nothing happens silently."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny_models import CASES, HEADS, WIDTH, build, close, prompts, tiny, words
from torch import Tensor

import inscape
from inscape import Edit, EditError, InputError, Window
from inscape.models.lm import LM

IDS = prompts(8, 8, 8, seed=5)
ROWS = [[2, 5], [7], [0, 1, 6]]
SITES = ("embed", "resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post", "q", "k", "v", "z", "mlp_act")
KINDS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "add": lambda x, v: x + 1.5 * v,
    "set": lambda x, v: v.expand_as(x),
    "scale": lambda x, v: -0.5 * x,
    "project": lambda x, v: x - ((x * v).flatten(1).sum(1) / (v * v).sum()).view(-1, *[1] * v.ndim) * v,
    "ablate": lambda x, v: torch.zeros_like(x),
}


def make(kind: str, site: str, layer: int | None, vector: Tensor, tokens: Any = ROWS, **more: Any) -> Edit:
    match kind:
        case "add":
            return inscape.add(site, layer, vector, tokens=tokens, strength=1.5, **more)
        case "set":
            return inscape.set_(site, layer, vector, tokens=tokens, **more)
        case "scale":
            return inscape.scale(site, layer, -0.5, tokens=tokens, **more)
        case "project":
            return inscape.project(site, layer, vector.flatten(), tokens=tokens, **more)
    return inscape.ablate(site, layer, tokens=tokens, **more)


def features(name: str, lm: LM, site: str, head: int) -> slice:
    """Where a head's features stand in the output of the projection, by arithmetic of the family's own layout."""
    width = (getattr(lm.config, "head_dim", None) or WIDTH // HEADS) if site != "z" else lm.sites.head_shape(0)[2]
    kv = lm.sites.head_shape(0)[1]
    family = name.split("_")[0]
    if family in ("gpt2", "mpt", "phi3") and site != "z":
        start = {"q": 0, "k": HEADS, "v": HEADS + kv}[site] + head
    elif (family in ("bloom", "falcon") or name.startswith("gpt_neox")) and site != "z":
        per = HEADS // kv
        start = (head // per) * (per + 2) + head % per if site == "q" else head * (per + 2) + per + (site == "v")
    else:
        start = head
    return slice(start * width, (start + 1) * width)


def oracle(
    name: str, lm: LM, site: str, layer: int, rule: Callable[[Tensor], Tensor], head: int | None = None
) -> Tensor:
    """Last-token logits under a plain torch hook that changes rows of one module's tensor, transformers alone."""
    model, block = lm.model, lm.sites.blocks[layer]
    mid: dict[str, Tensor] = {}

    def change(x: Tensor) -> Tensor:
        y = x.clone().view(len(IDS), len(IDS[0]), -1)
        for row, tokens in enumerate(ROWS):
            if site == "resid_mid":
                stream = mid["pre"][row, tokens]
                y[row, tokens] = rule(stream + y[row, tokens]) - stream
            elif site in "qkvz":
                kv = lm.sites.head_shape(layer)[1]
                heads = range(HEADS if site in "qz" else kv) if head is None else [head]
                parts = [features(name, lm, site, h) for h in heads]
                new = rule(
                    torch.stack([y[row, tokens, part] for part in parts], 1)[:, slice(None) if head is None else 0]
                )
                for n, part in enumerate(parts):
                    y[row, tokens, part] = new[:, n] if head is None else new
            else:
                y[row, tokens] = rule(y[row, tokens])
        return y.view_as(x)

    def on_output(module: Any, args: Any, out: Any) -> Any:
        return (change(out[0]), *out[1:]) if isinstance(out, tuple) else change(out)

    def on_input(module: Any, args: Any, kwargs: Any) -> Any:
        if args:
            return (change(args[0]), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": change(kwargs["hidden_states"])}

    def remember(module: Any, args: Any, kwargs: Any) -> None:
        mid["pre"] = (args[0] if args else kwargs["hidden_states"]).clone()

    handles = []
    if site == "embed":
        handles.append(model.get_input_embeddings().register_forward_hook(on_output))
    elif site in ("resid_pre", "resid_post"):
        register = block.register_forward_pre_hook if site == "resid_pre" else block.register_forward_hook
        handles.append(register(on_input, with_kwargs=True) if site == "resid_pre" else register(on_output))
    else:
        handles.append(block.register_forward_pre_hook(remember, with_kwargs=True))
        module = lm.sites.tap("attn_out" if site == "resid_mid" else site, layer).module
        if site in ("z", "mlp_act"):
            handles.append(module.register_forward_pre_hook(on_input, with_kwargs=True))
        else:
            handles.append(module.register_forward_hook(on_output))
    with torch.no_grad():
        logits = model(input_ids=torch.tensor(IDS), use_cache=False).logits[:, -1]
    for handle in handles:
        handle.remove()
    return logits


@pytest.mark.parametrize("site", SITES)
def test_rows_and_downstream(name: str, lm: LM, site: str) -> None:
    if site not in lm.sites.available():
        with pytest.raises(InputError, match="resid_mid"):
            lm.logits(IDS, edits=[inscape.scale("resid_mid", 1, 2.0)])
        return
    layer = None if site == "embed" else 1
    before = lm.capture(IDS, site, layer, "all")
    clean = lm.logits(IDS)
    touched = torch.tensor(
        [t in ROWS[p] for p, t in zip(before.prompt.tolist(), before.position.tolist(), strict=True)]
    )
    vector = torch.randn(before.values.shape[2:], generator=torch.Generator().manual_seed(7))
    for kind, rule in KINDS.items():
        edit = make(kind, site, layer, vector)
        after = lm.capture(IDS, site, layer, "all", edits=[edit])
        assert torch.equal(after.values[~touched], before.values[~touched])
        assert torch.equal((after.values != before.values).flatten(1).any(1), touched), kind
        off = (after.at()[touched] - rule(before.at()[touched], vector)).abs().max()
        assert off <= 1e-6 * before.at().abs().max(), kind
        logits = lm.logits(IDS, edits=[edit])
        close(logits, oracle(name, lm, site, 1, lambda x, r=rule, v=vector: r(x, v)), 2e-5)
        assert not torch.allclose(logits, clean, rtol=1e-4), kind


@pytest.mark.parametrize("site", ["q", "k", "v", "z"])
def test_one_head(name: str, lm: LM, site: str) -> None:
    before = lm.capture(IDS, site, 1, "all")
    heads = before.values.shape[2]
    vector = torch.randn(before.values.shape[3], generator=torch.Generator().manual_seed(7))
    head = heads - 1
    touched = torch.tensor(
        [t in ROWS[p] for p, t in zip(before.prompt.tolist(), before.position.tolist(), strict=True)]
    )
    for kind in ("add", "project"):
        rule = KINDS[kind]
        edit = make(kind, site, 1, vector, head=head)
        after = lm.capture(IDS, site, 1, "all", edits=[edit]).at()
        expected = before.at().clone()
        expected[touched, head] = rule(expected[touched, head], vector)
        close(after, expected, 1e-6)
        assert torch.equal(after[:, :head], before.at()[:, :head])
        assert torch.equal(after[~touched], before.at()[~touched])
        logits = lm.logits(IDS, edits=[edit])
        close(logits, oracle(name, lm, site, 1, lambda x, r=rule: r(x, vector), head), 2e-5)
    with pytest.raises(InputError, match=f"no head {heads}"):
        lm.logits(IDS, edits=[make("add", site, 1, vector, head=heads)])


def test_nothing_done_is_nothing_changed(lm: LM) -> None:
    clean = lm.logits(IDS)
    for site in lm.sites.available():
        if site == "logits":
            continue
        layer = None if site == "embed" else 1
        shape = lm.capture(IDS[:1], site, layer).values.shape[2:]
        vector = torch.randn(shape, generator=torch.Generator().manual_seed(1))
        for edit in (
            inscape.add(site, layer, torch.zeros(shape)),
            inscape.add(site, layer, vector, strength=0.0),
            inscape.set_(site, layer, vector, strength=0.0),
            inscape.scale(site, layer, 1.0),
            inscape.project(site, layer, vector.flatten(), strength=0.0),
        ):
            assert torch.equal(lm.logits(IDS, edits=[edit]), clean), (site, edit.kind)


def test_a8_tuple_and_tensor_outputs_are_both_there() -> None:
    kinds = {}
    for name in CASES:
        seen: list[Any] = []
        lm = tiny(name)
        handle = lm.sites.blocks[0].register_forward_hook(lambda m, a, out, seen=seen: seen.append(out))
        lm.logits(IDS)
        handle.remove()
        kinds[name] = type(seen[0])
    assert tuple in kinds.values()
    assert torch.Tensor in kinds.values()


def test_edit_of_logits_acts_on_capture_and_score() -> None:
    lm = tiny("gpt2")
    bias = torch.zeros(97)
    bias[5] = 3.0
    edit = inscape.add("logits", None, bias, tokens="last")
    close(lm.logits(IDS, edits=[edit]), lm.logits(IDS) + bias, 1e-6)
    with pytest.raises(InputError, match="logits"):
        lm.generate(IDS, edits=[edit])


def test_vectors_and_strengths_per_prompt_and_token() -> None:
    lm = tiny("llama")
    before = lm.capture(IDS, "resid_post", 1, "all").at().view(3, 8, WIDTH)
    generator = torch.Generator().manual_seed(2)
    each = torch.randn(3, WIDTH, generator=generator)
    every = torch.randn(3, 2, WIDTH, generator=generator)
    dose = torch.tensor([0.0, 1.0, -2.0])
    tokens = [[1, 4]] * 3
    for vector, added in ((each, each[:, None].expand(3, 2, WIDTH)), (every, every)):
        edit = inscape.add("resid_post", 1, vector, tokens=tokens, strength=dose)
        # batch_size 2 puts the prompts in batches: the third must still get the third vector.
        after = lm.capture(IDS, "resid_post", 1, "all", edits=[edit], batch_size=2).at().view(3, 8, WIDTH)
        expected = before.clone()
        expected[:, [1, 4]] += dose[:, None, None] * added
        close(after, expected, 1e-6)


def test_edits_of_one_place_act_in_their_order() -> None:
    lm, one = tiny("llama"), torch.ones(WIDTH)
    x = lm.capture(IDS, "resid_post", 1, "all").at()
    double, plus = inscape.scale("resid_post", 1, 2.0), inscape.add("resid_post", 1, one)
    close(lm.capture(IDS, "resid_post", 1, "all", edits=[double, plus]).at(), 2 * x + 1, 1e-6)
    close(lm.capture(IDS, "resid_post", 1, "all", edits=[plus, double]).at(), 2 * (x + 1), 1e-6)


def test_resid_mid_sees_an_edit_of_the_block_input_whatever_the_order() -> None:
    lm, target = tiny("llama"), torch.linspace(-1, 1, WIDTH)
    pre, mid = inscape.add("resid_pre", 1, torch.ones(WIDTH)), inscape.set_("resid_mid", 1, target)
    for edits in ([pre, mid], [mid, pre]):
        after = lm.capture(IDS, "resid_mid", 1, "all", edits=edits).at()
        close(after, target.expand_as(after), 1e-5)
        mlp = lm.capture(IDS, "mlp_out", 1, "all", edits=edits).at()
        close(mlp, mlp[:1].expand_as(mlp), 1e-4)  # the MLP reads one and the same vector everywhere


def test_whole_projection_of_a_subspace() -> None:
    lm = tiny("gptj")
    directions = torch.randn(3, WIDTH, generator=torch.Generator().manual_seed(3))
    edit = inscape.project("resid_post", 0, directions)
    after = lm.capture(IDS, "resid_post", 0, "all", edits=[edit]).at()
    assert (after @ directions.T).abs().max() < 1e-4
    with pytest.raises(InputError, match="linearly dependent"):
        inscape.project("resid_post", 0, torch.stack([directions[0], 2 * directions[0]]))


def test_mean_ablation() -> None:
    lm = tiny("qwen3")
    mean = lm.capture(IDS, "z", 1, "all").at().mean(0)
    after = lm.capture(IDS, "z", 1, "all", edits=[inscape.ablate("z", 1, mean=mean, tokens=ROWS)])
    row = (after.prompt == 1) & (after.position == 7)
    assert torch.equal(after.at()[row][0], mean)


def test_numpy_vectors_are_taken() -> None:
    lm, vector = tiny("gpt2"), torch.linspace(0, 1, WIDTH)
    a = lm.logits(IDS, edits=[inscape.add("resid_post", 1, vector.double().numpy())])
    assert torch.equal(a, lm.logits(IDS, edits=[inscape.add("resid_post", 1, vector)]))


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda: inscape.add("resid_post", 1, torch.ones(WIDTH + 1)), "vector has shape"),
        (lambda: inscape.add("resid_post", 1, torch.ones(4, WIDTH)), "vector has shape"),
        (lambda: inscape.add("resid_post", 1, torch.ones(2, WIDTH)), "vector has shape"),
        (lambda: inscape.add("resid_post", 1, torch.ones(3, 1, WIDTH), tokens=ROWS), "vectors for 1 tokens"),
        (lambda: inscape.add("resid_post", 1, torch.ones(WIDTH), strength=torch.ones(2)), "one per prompt"),
        (lambda: inscape.add("resid_post", 1, torch.full((WIDTH,), float("nan"))), "NaN or Inf"),
        (lambda: inscape.scale("resid_post", 1, float("nan")), "NaN or Inf"),
        (lambda: inscape.add("resid_post", 3, torch.ones(WIDTH)), "no layer 3"),
        (lambda: inscape.add("resid_post", None, torch.ones(WIDTH)), "needs a layer"),
        (lambda: inscape.add("residual", 1, torch.ones(WIDTH)), "unknown site 'residual'"),
        (lambda: inscape.add("resid_post", 1, torch.ones(WIDTH), head=0), "has no heads"),
        (lambda: inscape.add("resid_post", 1, torch.ones(WIDTH), tokens=[[8], [0], [0]]), "no index 8"),
        (lambda: inscape.add("resid_post", 1, torch.ones(WIDTH), tokens=[[1, -7], [0], [0]]), "names a token twice"),
        (lambda: inscape.add("resid_post", 1, torch.ones(WIDTH), tokens=Window("last", 1, 3)), "names no token"),
        (lambda: inscape.add("resid_post", 1, torch.ones(WIDTH), when="later"), "when='later'"),
        (lambda: inscape.add("resid_post", 1, torch.ones(WIDTH), when="decode"), "when='decode'"),
        (lambda: inscape.add("resid_post", 1, ["a"] * WIDTH), "expected numbers"),
        (lambda: inscape.project("resid_post", 1, torch.ones(WIDTH + 1)), "directions have 33 features"),
    ],
)
def test_wrong_edits_are_refused(edit: Callable[[], Edit], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        tiny("gpt2").logits(IDS, edits=[edit()])
    assert "\n" not in str(caught.value)


def test_an_edit_that_did_not_act_raises() -> None:
    """A block that the model skips: the steering must not look as if it had been there."""
    model = build("llama")
    lm = inscape.load(model, words())
    inner = model.model.layers
    edit = inscape.add("resid_post", 1, torch.ones(WIDTH))
    model.model.layers = torch.nn.ModuleList([inner[0], inner[2]])
    model.config.num_hidden_layers = 2
    try:
        with pytest.raises(EditError, match="fired 0 times in 1 forward passes"):
            lm.logits(IDS, edits=[edit])
    finally:
        model.model.layers = inner


def test_resid_mid_set_to_nothing_is_nothing() -> None:
    lm = tiny("qwen2")
    after = lm.capture(IDS, "resid_mid", 1, "all", edits=[inscape.ablate("resid_mid", 1)]).at()
    assert not after.any()


def test_an_unknown_kind_of_edit_is_refused() -> None:
    with pytest.raises(InputError, match="kind='foo', expected one of add, set, scale, project, ablate"):
        inscape.Edit("resid_pre", 0, "last", "foo")  # type: ignore[arg-type]
