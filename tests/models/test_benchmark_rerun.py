"""The benchmark of sweeps: it runs on a tiny model, its ways agree, and its floor is what a cut model really computes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

ROOT = Path(__file__).parents[2]
ROWS = {"last": 9, "subject": 9, "both": 18, "subject-once": 3}


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    path = tmp_path_factory.mktemp("bench") / "rerun.json"
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks/rerun.py", "--quick", "--repeat", "3", "--json", path],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads(path.read_text())


def test_every_sweep_is_measured_and_in_the_tables(quick):
    printed, record = quick
    assert {row["row"]: row["runs"] for row in record["rows"]} == ROWS
    lines = printed.splitlines()
    for name in ROWS:
        assert len([line for line in lines if line.startswith(f"| {name} |")]) == 2  # ratios, and costs
    assert sum(line.startswith("| ---") for line in lines) == 2
    for row in record["rows"]:
        assert {"hooks", "hooks, last logit"} <= set(row["faster"])
        assert len(row["rounds"]) == 3
        assert all(seconds > 0 for one in row["rounds"] for seconds in one.values())


def test_every_way_gives_the_numbers_of_hooks_and_the_edits_show(quick):
    for row in quick[1]["rows"]:
        assert row["moved"] > 1e-2
        assert all(0 <= value <= 1e-5 for value in row["difference"].values())


def test_ratios_are_medians_over_the_rounds_and_the_floor_is_below_the_naive_sweep(quick):
    for row in quick[1]["rows"]:
        for way, found in row["faster"].items():
            middle = sorted(one[way] / one["rerun"] for one in row["rounds"])[1]
            assert found == pytest.approx(middle)
        assert row["least"] <= row["floor"] < row["runs"]
        assert row["naive_over_floor"] == pytest.approx(row["runs"] / row["floor"])


@pytest.fixture
def tiny(monkeypatch):
    """A GPT-2 of three blocks, prompts, and the count of FLOPs for them."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from floor import Flops

    config = transformers.GPT2Config(
        n_layer=3, n_embd=16, n_head=2, vocab_size=50, n_positions=16, bos_token_id=0, eos_token_id=None
    )
    model = transformers.GPT2LMHeadModel(config).eval()
    ids = torch.randint(2, 50, (2, 8))
    return model, ids, Flops.of(model, ids)


def counted(call) -> int:
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def test_a_block_costs_what_torch_counts_token_by_token(tiny):
    """Fed one token at a time over the cache, a block sees just the tokens up to its own: as the floor counts."""
    model, ids, flops = tiny
    del model.transformer.h[1:]
    first = 5
    cache = transformers.DynamicCache()
    with torch.no_grad():
        model(ids[:, :first], past_key_values=cache)

    def feed():
        for t in range(first, ids.shape[1]):
            model(ids[:, t : t + 1], past_key_values=cache)

    assert counted(feed) - (ids.shape[1] - first) * flops.head() == flops.block(first)


def test_the_floor_adds_up_what_each_cell_needs(tiny):
    model, ids, flops = tiny
    assert flops.agrees(model, ids)
    base = 3 * flops.block() + flops.head()
    assert flops.floor([]) == base
    assert flops.floor([(0, 7)]) == base + 2 * flops.block(7) + flops.head()
    assert flops.floor([(1, 4)] * 5) == base + 5 * (flops.block(4) + flops.head())
    assert flops.floor([(2, 7)]) == base + flops.head()  # the last block's output, where it is read
    assert flops.floor([(2, 4)]) == base  # and where it is not


def test_the_last_block_needs_keys_and_values_of_the_tokens_not_read(tiny):
    model, _, flops = tiny
    block = model.transformer.h[0]
    hidden = torch.randn(2, 4, 16)
    keys_and_values = counted(lambda: block.attn.c_attn(block.ln_1(hidden))) * 2 // 3  # c_attn makes queries as well
    assert flops.last_block(first=3) == flops.block(first=7) + keys_and_values
    assert flops.least([(0, 7)]) == flops.least([]) + 2 * flops.block(7) + flops.head()


def test_a_count_of_another_model_is_noticed(tiny):
    model, ids, flops = tiny
    del model.transformer.h[2:]
    assert not flops.agrees(model, ids)


def test_no_rounds_are_refused(monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.setattr(sys, "argv", ["rerun.py", "--repeat", "0"])
    import rerun

    with pytest.raises(SystemExit):
        rerun.main()
    assert "--repeat: expected 1 or more" in capsys.readouterr().err


def test_another_computation_ends_the_run(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import rerun

    bench = rerun.Bench(rerun.QUICK, "cpu")
    hooks, sweep = bench.ways[0].cell, bench.sweep
    bench.ways.append(rerun.Way("wrong", lambda layer, token, shift: hooks(layer, token, 1.01 * shift)))
    with pytest.raises(SystemExit, match="last: wrong is not the same computation"):
        rerun.measure(bench, "last", 1)
    bench.ways.pop()
    bench.sweep = lambda positions, strengths, **more: sweep(positions, [1.01 * s for s in strengths], **more)
    with pytest.raises(SystemExit, match="subject: rerun is not the same computation"):
        rerun.measure(bench, "subject", 1)
