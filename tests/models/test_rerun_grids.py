"""Random sweeps, cut, equal the same sweeps run in full: whatever the edits, prompts, padding, batches and tokens read."""

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rerun_by_hand import noise, shape_of, sites_of, tensor
from tiny_models import LAYERS, NAMES, VOCAB, WIDTH, prompts, tiny
from torch import Tensor

import inscape
from inscape import Donors, Edit, Generated, Grid, InputError, Probability, Window
from inscape.models.lm import LM

QUICK = settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
LONG = settings(QUICK, max_examples=2500, derandomize=False)


@st.composite
def edit(draw: st.DrawFn, lm: LM, lengths: list[int], when: tuple[str, ...] = ("prompt",), logits: bool = True) -> Edit:
    site = draw(st.sampled_from([*sites_of(lm), *(["logits"] if logits else [])]))
    layer = None if site in ("embed", "logits") else draw(st.integers(-LAYERS, LAYERS - 1))
    kinds = ["add", "set", "project", "scale", "ablate"]
    kind: Any = draw(st.sampled_from(kinds))
    shape = shape_of(lm, site)
    head = draw(st.none() | st.integers(-shape[0], shape[0] - 1)) if len(shape) == 2 else None
    feature = shape if head is None else shape[1:]
    # Some prompts may go without, if not all do.
    tokens: Any = [draw(st.lists(st.integers(-n, n - 1), max_size=3, unique_by=lambda t, n=n: t % n)) for n in lengths]
    if not any(tokens) or draw(st.booleans()):
        tokens = draw(st.sampled_from(["last", "first", "all"]))
    widest = max(lengths) if tokens == "all" else max(map(len, tokens)) if isinstance(tokens, list) else 1
    seed = draw(st.integers(0, 9))
    of = draw(st.sampled_from([(), (len(lengths),), (len(lengths), widest)]))
    vector = None
    if kind == "project":
        vector = inscape.project("embed", None, noise(draw(st.integers(1, 2)), int(np.prod(feature)), seed=seed)).vector
    elif kind != "scale" and not (kind == "ablate" and draw(st.booleans())):
        vector = noise(*of, *feature, seed=seed, size=draw(st.sampled_from([0.3, 3.0])))
    number = st.sampled_from([1.0, -1.0, 0.5, 0.0, 2.0])
    strength: Any = draw(number)
    if draw(st.booleans()):
        strength = torch.tensor([draw(number) for _ in lengths])
    return Edit(site, layer, tokens, kind, vector, strength, draw(st.sampled_from(when)), head)  # type: ignore[arg-type]


@st.composite
def sweep(draw: st.DrawFn, when: tuple[str, ...] = ("prompt",), logits: bool = True) -> tuple[LM, Any, Any, Any]:
    lm = tiny(draw(st.sampled_from(NAMES)), draw(st.sampled_from([None, "eager"])))
    lengths = draw(st.lists(st.integers(1, 9), min_size=1, max_size=5))
    one = edit(lm, lengths, when, logits)
    cells = draw(st.lists(st.lists(one, max_size=3), min_size=1, max_size=5))
    base = draw(st.lists(one, max_size=2))
    options = {"base": base, "batch_size": draw(st.integers(1, 6))}
    return lm, prompts(*lengths, seed=draw(st.integers(0, 99))), cells, options


def equal(cut: Any, full: Any) -> None:
    assert cut.naive is None
    for found, expected in ((cut.values, full.values), (cut.base, full.base)):
        assert found.dims == expected.dims
        found, expected = tensor(found), tensor(expected)
        assert torch.equal(found.isnan(), expected.isnan())
        off = (found - expected).nan_to_num(0).abs().max()
        assert off <= 1e-4 * expected.nan_to_num(0).abs().max(), f"off by {off:.3g}"


def check_logits(case: Any, side: str, read: Any, data: st.DataObject) -> None:
    lm, ids, cells, options = case
    if read == "some":
        read = [data.draw(st.lists(st.integers(-len(one), len(one) - 1), min_size=1, max_size=3)) for one in ids]
    runs = [lm.rerun(ids, cells, read=read, padding_side=side, naive=naive, **options) for naive in (False, True)]
    equal(*runs)


SIDES, READS = st.sampled_from(["left", "right"]), st.sampled_from(["last", "all", "first", "some"])


@QUICK
@given(sweep(), SIDES, READS, st.data())
def test_logits_of_random_sweeps(case: Any, side: str, read: Any, data: st.DataObject) -> None:
    check_logits(case, side, read, data)


@pytest.mark.slow
@LONG
@given(sweep(), SIDES, READS, st.data())
def test_logits_of_many_random_sweeps(case: Any, side: str, read: Any, data: st.DataObject) -> None:
    check_logits(case, side, read, data)


def check_scores(case: Any, side: str, many: int, log: bool) -> None:
    lm, ids, cells, options = case
    texts = [prompts(*(1 + (i + k) % 3 for k in range(many)), seed=i) for i in range(len(ids))]
    metric = Probability(texts if many > 1 else [one[0] for one in texts], log=log)
    runs = [lm.rerun(ids, cells, metric, padding_side=side, naive=naive, **options) for naive in (False, True)]
    assert runs[0].values.dims == ("prompt", "cell", "continuation")[: 2 + (many > 1)]
    equal(*runs)


@settings(QUICK, max_examples=40)
@given(sweep(("prompt", "decode", "always")), SIDES, st.integers(1, 3), st.booleans())
def test_continuations_of_random_sweeps(case: Any, side: str, many: int, log: bool) -> None:
    check_scores(case, side, many, log)


@pytest.mark.slow
@LONG
@given(sweep(("prompt", "decode", "always")), SIDES, st.integers(1, 3), st.booleans())
def test_continuations_of_many_random_sweeps(case: Any, side: str, many: int, log: bool) -> None:
    check_scores(case, side, many, log)


def check_generated(case: Any, new: int) -> None:
    lm, ids, cells, options = case
    cut, full = (lm.rerun(ids, cells, Generated(new, ids=True), naive=naive, **options) for naive in (False, True))
    assert cut.naive is None
    assert cut.values.values.tolist() == full.values.values.tolist()
    assert cut.base.values.tolist() == full.base.values.tolist()


@settings(QUICK, max_examples=25)
@given(sweep(("prompt", "decode", "always"), logits=False), st.integers(2, 5))
def test_generation_in_random_sweeps(case: Any, new: int) -> None:
    check_generated(case, new)


@pytest.mark.slow
@settings(LONG, max_examples=1000)
@given(sweep(("prompt", "decode", "always"), logits=False), st.integers(2, 5))
def test_generation_in_many_random_sweeps(case: Any, new: int) -> None:
    check_generated(case, new)


# -- the names of a grid's dimensions ----------------------------------------------------------------------------------

IDS = prompts(6, 3, 4)
U, V = noise(WIDTH, seed=1), noise(WIDTH, seed=2)


@pytest.mark.parametrize("several", list(itertools.product([False, True], repeat=4)))
def test_dimensions_and_their_order(several: tuple[bool, ...]) -> None:
    """Of everything that may vary: the order is fixed, a single value has no dimension where one may be missing."""
    sites, layers, vectors, tokens = several
    lm = tiny("gpt2")
    grid = Grid(
        ["resid_post", "mlp_out"] if sites else "resid_post", [2, 0] if layers else 1,
        {"a": "first", "b": [[2], [1], [0]]} if tokens else "last", "set",
        {"u": U, "v": V} if vectors else U, strengths=(1.0, 0.25, 0.5),
    )  # fmt: skip
    found = lm.rerun(IDS, grid).values
    named = [*["site"] * sites, "layer", "position", *["vector"] * vectors, "strength"]
    assert found.dims == ("prompt", *named, "vocab")
    coords = {"site": ["resid_post", "mlp_out"], "layer": [2, 0] if layers else [1],
              "position": ["a", "b"] if tokens else ["last"], "vector": ["u", "v"],
              "strength": [1.0, 0.25, 0.5]}  # fmt: skip
    for name in named:
        assert found[name].values.tolist() == coords[name]
    assert found["prompt"].values.tolist() == [0, 1, 2]
    # Every value is that of its own coordinates: each cell by itself.
    for values in itertools.product(*(coords[name] for name in named)):
        at = dict(zip(named, values, strict=True))
        edit = Edit(
            at.get("site", "resid_post"), at["layer"], {"last": "last", "a": "first"}.get(at["position"], [[2], [1], [0]]),
            "set", {"u": U, "v": V}[at.get("vector", "u")], at["strength"],
        )  # fmt: skip
        expected = lm.logits(IDS, edits=[edit])
        assert (tensor(found.sel(at)) - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_layers_heads_donors_and_strengths_by_prompt() -> None:
    lm = tiny("llama")
    vector = noise(*shape_of(lm, "z")[1:])
    by_prompt = torch.tensor([[0.0, 1.0], [2.0, 0.5], [-1.0, 0.0]])
    found = lm.rerun(IDS, Grid("z", None, vector=vector, heads=[3, 1], strengths=by_prompt)).values
    assert found.dims == ("prompt", "layer", "position", "head", "strength", "vocab")
    assert found["layer"].values.tolist() == [0, 1, 2]
    assert found["head"].values.tolist() == [3, 1]
    assert found["strength"].values.tolist() == [0, 1]  # which column: the numbers differ by prompt
    expected = lm.logits(IDS, edits=[Edit("z", 2, "last", "add", vector, by_prompt[:, 1], "prompt", 1)])
    assert (tensor(found.sel(layer=2, head=1, strength=1))[:, 0] - expected).abs().max() <= 1e-5 * expected.abs().max()
    donors = lm.rerun(IDS, Grid("embed", kind="set", donors=[Donors(IDS[::-1], "first"), Donors(IDS)])).values
    assert donors.dims == ("prompt", "position", "donor", "strength", "vocab")
    assert donors["donor"].values.tolist() == [0, 1]
    by_layer = lm.rerun(IDS, Grid("resid_post", [-1, 0], vector={0: U, 2: V})).values
    assert by_layer["layer"].values.tolist() == [2, 0]
    expected = lm.logits(IDS, edits=[inscape.add("resid_post", 2, V, tokens="last")])
    assert (tensor(by_layer.sel(layer=2))[:, 0, 0] - expected).abs().max() <= 1e-5 * expected.abs().max()
    plain = lm.rerun(IDS, [[], [inscape.add("resid_post", 0, U)]])
    assert plain.values.dims == ("prompt", "cell", "vocab")
    assert plain.values["cell"].values.tolist() == [0, 1]
    assert plain.base.dims == ("prompt", "vocab")


def test_each_token_by_itself() -> None:
    lm = tiny("phi")
    found = lm.rerun(IDS, Grid("mlp_out", 1, "each", "set", U))
    assert found.values["position"].values.tolist() == list(range(6))
    for token in range(6):
        here = tensor(found.values.sel(position=token))[:, 0, 0]
        there = [i for i, ids in enumerate(IDS) if token < len(ids)]
        assert here.isnan().all(1).tolist() == [i not in there for i in range(3)]
        some = [[token] if i in there else [] for i in range(3)]
        expected = lm.logits(IDS, edits=[inscape.set_("mlp_out", 1, U, tokens=some)])
        assert (here - expected)[there].abs().max() <= 1e-5 * expected.abs().max()
    assert not np.isnan(found.base.values).any()


def test_windows_of_layers_are_clipped() -> None:
    lm = tiny("gpt2")
    donors = Donors(prompts(6, 3, 4, seed=5))
    given = lm.capture(donors.prompts, "mlp_out", None, "last")
    found = lm.rerun(IDS, Grid("mlp_out", None, kind="set", donors=donors, window=1)).values
    for layer, together in enumerate(([0, 1], [0, 1, 2], [1, 2])):
        edits = [inscape.set_("mlp_out", at, given.at(at), tokens="last") for at in together]
        expected = lm.logits(IDS, edits=edits)
        assert (tensor(found.sel(layer=layer))[:, 0, 0] - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_directions_are_made_orthonormal_and_differ_by_name() -> None:
    lm = tiny("olmo2")
    directions: dict[str, Tensor] = {"one": 5 * U, "two": torch.stack([U, U + V])}
    found = lm.rerun(IDS, Grid("resid_post", 1, "all", "project", directions, strengths=(1.0, 2.0))).values
    for name, vectors in directions.items():
        edit = inscape.project("resid_post", 1, vectors, strength=2.0)
        expected = lm.logits(IDS, edits=[edit])
        here = tensor(found.sel(vector=name, strength=2.0))[:, 0, 0]
        assert (here - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_positions_by_text() -> None:
    lm = tiny("llama")
    texts, mentions = ["t3 t7 t9 t4", "t7 t2", "t5 t9 t7 t8 t6"], ["t7", "t7", "t9 t7"]
    tokens = {"it": "mention_last", "near": Window("mention_last", 0, 1)}
    grid = Grid("resid_post", 0, tokens, "set", U)
    found = lm.rerun(texts, grid, mentions=mentions, read="mention_first").values
    at, read = {"it": [[1], [0], [2]], "near": [[1, 2], [0, 1], [2, 3]]}, [[1], [0], [1]]
    for label, columns in at.items():
        edit = inscape.set_("resid_post", 0, U, tokens=columns)
        expected = lm.capture(texts, "logits", tokens=read, edits=[edit]).at()
        assert (tensor(found.sel(position=label))[:, 0, 0] - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert found.sizes["vocab"] == VOCAB
    with pytest.raises(InputError, match="needs one mention per prompt"):
        lm.rerun(texts, grid)
