"""Causal tracing against the same experiment written with bare hooks, and the command from end to end.

The oracle knows nothing of sweeps, donors or caches: it runs the Hugging Face model once for every prompt, noise sample,
layer and token, with hooks that add the noise and overwrite one output.
"""

import json
from contextlib import ExitStack

import numpy as np
import polars as pl
import pytest
import torch

import inscape
from inscape.cli import main
from inscape.errors import InputError
from inscape.runs import read_run
from inscape.studies import causal_tracing, causal_tracing_sweeps, run_study
from inscape.studies.causal_tracing_maps import agreement, moved, patch_map
from inscape.studies.causal_tracing_summary import largest
from inscape.studies.causal_tracing_tokens import SO_FAR

TINY = {"size": "smoke", "n_prompts": 6, "n_noise": 2, "window": 1}


def trace(*arguments, code=0):
    with pytest.raises(SystemExit) as stopped:
        main(["trace", *map(str, arguments), "--quiet"])
    assert stopped.value.code == code


@pytest.fixture(scope="module")
def tiny_run(smoke_model, cache, tmp_path_factory):
    """A run on six questions about the smoke world, windows of three layers (clipped: the model has two)."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("INSCAPE_CACHE", str(cache))
        return run_study("causal-tracing", TINY, tmp_path_factory.mktemp("trace") / "run", quiet=True)


class Bare:
    """The model with bare hooks."""

    def __init__(self, folder):
        self.lm = inscape.load(folder)
        self.model = self.lm.model
        self.spots = {
            (site, layer): module
            for layer, block in enumerate(self.model.model.layers)
            for site, module in (("resid_post", block), ("mlp_out", block.mlp), ("attn_out", block.self_attn))
        }

    def run(self, ids, *, noise=None, first=0, put=(), keep=False):
        """Logits ``[token, vocab]`` (and outputs by spot) with noise on the embeddings from ``first`` on, values put in."""
        kept = {}
        with ExitStack() as stack, torch.no_grad():
            if noise is not None:

                def add(_, __, output):
                    output = output.clone()
                    output[0, first : first + len(noise)] += noise
                    return output

                stack.callback(self.model.get_input_embeddings().register_forward_hook(add).remove)
            for spot, module in self.spots.items():

                def look(_, __, output, spot=spot):
                    value = output[0] if isinstance(output, tuple) else output
                    for at, token, new in put:
                        if at == spot:
                            value[0, token] = new
                    if keep:
                        kept[spot] = value[0].clone()

                stack.callback(module.register_forward_hook(look).remove)
            logits = self.model(torch.tensor([ids])).logits[0].float()
        return (logits, kept) if keep else logits

    def probability(self, ids, answer, **edits):
        logits = self.run([*ids, *answer], **edits)
        steps = logits[len(ids) - 1 : -1].log_softmax(-1)
        return float(steps.gather(1, torch.tensor(answer)[:, None]).sum().exp())


@pytest.fixture(scope="module")
def bare(smoke_model):
    return Bare(smoke_model)


def asked(bare, row):
    """Ids of a row's prompt and answer, and the first and last token of its subject, found by hand."""
    tokenizer = bare.lm.tokenizer
    whole = tokenizer(row["prompt"] + row["answer"], return_offsets_mapping=True)
    start, end = row["prompt"].index(row["subject"]), row["prompt"].index(row["subject"]) + len(row["subject"])
    n = len(tokenizer(row["prompt"])["input_ids"])
    tokens = [i for i, (a, b) in enumerate(whole["offset_mapping"]) if a < end and b > start]
    return whole["input_ids"][:n], whole["input_ids"][n:], tokens[0], tokens[-1]


def test_indirect_effects_equal_bare_hooks(tiny_run, bare):
    rows, spread = tiny_run.table("rows"), tiny_run.table("spread")["embedding_sd"][0]
    assert rows["kept"].sum() >= 4
    weight = bare.model.get_input_embeddings().weight.detach()
    subjects = torch.cat([weight[ids[a : b + 1]] for ids, _, a, b in (asked(bare, r) for r in rows.to_dicts())])
    assert spread == pytest.approx(float(subjects.std()), rel=1e-5)
    traced = tiny_run.table("tracing")
    partner = {r["row"]: r["unrelated"] for r in tiny_run.table("partners").to_dicts()}
    checked = 0
    for number, row in enumerate(rows.to_dicts()[:4]):
        if not row["kept"]:
            continue
        ids, answer, first, last = asked(bare, row)
        assert row["clean"] == pytest.approx(bare.probability(ids, answer), abs=1e-5)
        draws = {
            draw: [
                torch.from_numpy(
                    np.random.default_rng([0, draw, number * 2 + s]).normal(0, 3 * spread, (last - first + 1, 48))
                ).float()
                for s in range(2)
            ]
            for draw in (0, 1)
        }
        corrupted = np.mean([bare.probability(ids, answer, noise=n, first=first) for n in draws[0]])
        _, clean = bare.run(ids, keep=True)
        other_ids, _, _, other_last = asked(bare, rows.row(partner[number], named=True))
        _, unrelated = bare.run(other_ids, keep=True)
        mine = traced.filter(pl.col("id") == row["id"])
        assert set(mine["position"]) == set(range(first, len(ids)))
        for cell in mine.to_dicts():
            token, s = cell["position"], cell["site"]
            layers = [cell["layer"]] if s == "resid_post" else [0, 1]  # the window is clipped
            restored = []
            for sample, noise in enumerate(draws[0]):
                if cell["state"] == "clean":
                    giver, at = clean, token
                elif cell["state"] == "unrelated prompt":
                    at = token - last + other_last if token <= last else token - len(ids) + len(other_ids)
                    giver = unrelated
                else:
                    giver, at = bare.run(ids, noise=draws[1][sample], first=first, keep=True)[1], token
                put = [((s, layer), token, giver[s, layer][at]) for layer in layers]
                restored.append(bare.probability(ids, answer, noise=noise, first=first, put=put))
            assert cell["restored"] == pytest.approx(np.mean(restored), abs=2e-5), cell
            assert cell["corrupted"] == pytest.approx(corrupted, abs=2e-5)
            checked += 1
    assert checked > 100


def test_patching_equals_bare_hooks(tiny_run, bare):
    rows, pairs = tiny_run.table("rows"), tiny_run.table("pairs").filter(pl.col("why").is_null())
    patched = tiny_run.table("patching")
    assert pairs.height >= 4
    for pair in pairs.head(3).to_dicts():
        runs = {}
        for which, number in (("clean", pair["row"]), ("corrupt", pair["corrupt"])):
            ids, answer, _, last = asked(bare, rows.row(number, named=True))
            k = len(pair["told"])
            assert answer[k] == pair["correct" if which == "clean" else "wrong"]
            ids = [*ids, *pair["told"]]
            logits, states = bare.run(ids, keep=True)
            runs[which] = ids, last, states, logits[-1]

        def difference(logits, pair=pair):
            return float(logits[pair["correct"]] - logits[pair["wrong"]])

        for direction, here, there in (("denoising", "corrupt", "clean"), ("noising", "clean", "corrupt")):
            ids, last, _, logits = runs[here]
            other_ids, other_last, states, _ = runs[there]
            cells = patched.filter((pl.col("id") == pair["id"]) & (pl.col("direction") == direction))
            assert cells.height > 6
            for cell in cells.to_dicts():
                token = cell["position"]
                at = token - last + other_last if token <= last else token - len(ids) + len(other_ids)
                spot = ("resid_post", cell["layer"])
                found = difference(bare.run(ids, put=[(spot, token, states[spot][at])])[-1])
                assert cell["patched"] == pytest.approx(found, abs=2e-3), cell
                assert cell["unpatched"] == pytest.approx(difference(logits), abs=2e-3)
                assert (cell["role"] == SO_FAR) == (token >= len(ids) - len(pair["told"]))


def test_at_the_last_layer_the_token_that_is_read_carries_everything(tiny_run):
    cells = tiny_run.table("patch_map").filter((pl.col("layer") == 1) & (pl.col("map") == "denoising"))
    told = tiny_run.table("pairs")["told"].list.len()
    assert (told > 0).any()
    cells_of = moved(tiny_run.table("patching"), tiny_run.table("attribution"), tiny_run.table("rows"))
    for row in tiny_run.table("pairs").filter(pl.col("why").is_null()).to_dicts():
        mine = cells_of.filter(
            (pl.col("id") == row["id"]) & (pl.col("map") == "denoising") & (pl.col("layer") == 1)
        ).sort("position")
        share = (mine["moved"] / mine["gap"]).to_list()
        assert share[-1] == pytest.approx(1, abs=1e-4)
        assert share[:-1] == pytest.approx([0] * (len(share) - 1), abs=1e-5)
    assert cells["n_rows"].max() == told.len()


def test_at_the_last_layer_attribution_knows_where_the_answer_is_read(tiny_run):
    """Only the final norm is between that state and the logits: the estimate has the right sign, and is 0 elsewhere."""
    cells = moved(tiny_run.table("patching"), tiny_run.table("attribution"), tiny_run.table("rows"))
    estimates = cells.filter((pl.col("map") == "attribution") & (pl.col("layer") == 1)).sort("id", "position")
    for _, mine in estimates.group_by("id"):
        moves = mine.sort("position")["moved"].to_list()
        assert moves[-1] > 0
        assert moves[:-1] == pytest.approx([0] * (len(moves) - 1), abs=1e-4)


def test_summary_and_page(tiny_run):
    summary = tiny_run.read_summary()
    estimates = ("total_effect", "indirect_effect_max", "control_max", "attribution_corr", "patch_max")
    for name in estimates:
        assert summary[f"{name}_lo"] <= summary[name] <= summary[f"{name}_hi"], name
    rows, traced = tiny_run.table("rows").filter("kept"), tiny_run.table("tracing")
    corrupted = traced.group_by("id").agg(pl.col("corrupted").first())
    total = (rows.join(corrupted, on="id")["clean"] - rows.join(corrupted, on="id")["corrupted"]).mean()
    assert summary["total_effect"] == pytest.approx(total)
    assert 0 < summary["rerun_share"] <= 1.5
    assert summary["indirect_effect_max_role"] != "last token"
    page = (tiny_run.folder / "report.html").read_text()
    assert "Which states carry the answer?" in page
    assert {"tracing", "curves", "example", "patching"} == set(tiny_run.figures)


def cells_of(shares, gaps):
    """One cell at layer 0 for each row: (subject, share)."""
    return pl.DataFrame(
        {
            "map": "denoising", "id": [f"r{i}" for i in range(len(shares))], "subject": [s for s, _ in shares],
            "layer": 0, "position": 1, "role": "last token", "gap": gaps,
            "moved": [x * g for (_, x), g in zip(shares, gaps, strict=True)],
        }
    )  # fmt: skip


def test_shares_are_ratios_of_means_and_subjects_are_the_unit():
    table = patch_map(cells_of([("a", 1.0), ("a", 1.0), ("b", 0.0)], [1.0, 3.0, 4.0]), 0).row(0, named=True)
    assert table["effect"] == pytest.approx(0.5)
    assert (table["effect_lo"], table["effect_hi"]) == (0, 1)  # two subjects: draws hold only a, only b, or both
    assert table["n_rows"] == 3
    alone = patch_map(cells_of([("a", 1.0), ("a", 0.0)], [1.0, 1.0]), 0).row(0, named=True)
    assert np.isnan(alone["effect_lo"])  # one subject says nothing about others


def test_agreement_is_pearson_over_all_cells():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 60))
    table = pl.DataFrame({"subject": [f"s{i % 7}" for i in range(60)], "activation": x, "attribution": x + y})
    found = agreement(table, 0)
    assert found.value == pytest.approx(np.corrcoef(x, x + y)[0, 1])
    assert found.lo < found.value < found.hi
    assert np.isnan(agreement(table.with_columns(pl.lit(0.0).alias("attribution")), 0).value)


def test_the_largest_cell_is_chosen_on_other_subjects_than_it_is_measured_on():
    subjects = ["a", "b", "c", "d"]
    effects = {
        ("a", 0): 1.0,
        ("c", 0): 1.0,
        ("b", 0): 0.1,
        ("d", 0): 0.3,
        ("a", 1): 0.0,
        ("c", 1): 0.0,
        ("b", 1): 2.0,
        ("d", 1): 2.0,
    }
    cells = pl.DataFrame(
        [{"subject": s, "layer": layer, "role": "last subject token", "effect": e} for (s, layer), e in effects.items()]
    )
    honest, favoured = (largest(cells, subjects, 0, chosen_where_measured=here) for here in (False, True))
    assert (honest.layer, honest.effect.value) == (0, pytest.approx(0.2))
    assert (favoured.layer, favoured.effect.value) == (1, pytest.approx(2.0))
    assert largest(cells.clear(), subjects, 0) is None


# -- the command -----------------------------------------------------------------------------------------------------------


def prompts_file(tmp_path, tiny_run, *more):
    rows = tiny_run.table("rows").filter("kept").head(3).to_dicts()
    path = tmp_path / "p.jsonl"
    given = [{k: r[k] for k in ("id", "prompt", "subject", "answer")} for r in rows]
    path.write_text("".join(json.dumps(row) + "\n" for row in [*given, *more]))
    return path, given


def test_the_command_traces_a_file_of_prompts(tmp_path, smoke_model, tiny_run, capsys):
    base = prompts_file(tmp_path, tiny_run)[1][0]
    path, given = prompts_file(
        tmp_path, tiny_run,
        {**base, "id": "wrong", "answer": " nobody"},
        {**base, "id": "alone", "prompt": base["prompt"].replace("In what", "Which")},
        {**base, "id": "explicit", "corrupt_subject": "Somebody"},
    )  # fmt: skip
    out = tmp_path / "out"
    trace("--model", smoke_model, "--prompts", path, "--out", out, "--n-noise", 2, "--no-only-correct")
    assert capsys.readouterr().out.strip() == str(out / "report.html")
    run = read_run(out)
    summary = run.read_summary()
    assert (summary["n_rows"], summary["n_kept"]) == (6, 6)
    assert summary["n_correct"] < 6
    pairs = {r["id"]: r for r in run.table("pairs").to_dicts()}
    subjects = {r["subject"] for r in given}
    assert pairs[given[0]["id"]]["corrupt_subject"] in subjects - {given[0]["subject"]}
    assert "no other prompt of the same wording" in pairs["alone"]["why"]
    assert pairs["explicit"]["corrupt_subject"] == "Somebody"
    page = (out / "report.html").read_text()
    assert "1 prompts could not be paired" in page
    assert "Wrongly answered prompts were kept" in page
    assert "prompts" in run.manifest["inputs"]

    before = {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.is_file() and p.name != ".lock"}
    trace("--model", smoke_model, "--prompts", path, "--out", out, "--n-noise", 2, "--no-only-correct")
    assert before == {p: p.stat().st_mtime_ns for p in before}
    path.write_text(path.read_text() + json.dumps({**base, "id": "new"}) + "\n")
    trace("--model", smoke_model, "--prompts", path, "--out", out, "--n-noise", 2, "--no-only-correct", code=2)
    assert "inputs.prompts" in capsys.readouterr().err


def test_prompts_that_the_model_does_not_answer_are_said_to_be_none(tmp_path, smoke_model, tiny_run):
    path, given = prompts_file(tmp_path, tiny_run)
    path.write_text(json.dumps({**given[0], "answer": " nobody knows"}) + "\n")
    trace("--model", smoke_model, "--prompts", path, "--out", tmp_path / "none")
    run = read_run(tmp_path / "none")
    summary = run.read_summary()
    assert (summary["n_rows"], summary["n_kept"], summary["total_effect"]) == (1, 0, None)
    page = (tmp_path / "none" / "report.html").read_text()
    assert "answers none of the prompts" in page
    assert given[0]["id"] in page


def test_one_prompt_alone_has_effects_but_no_controls_intervals_or_pairs(tmp_path, smoke_model, tiny_run):
    path, given = prompts_file(tmp_path, tiny_run)
    path.write_text(json.dumps(given[0]) + "\n")
    trace("--model", smoke_model, "--prompts", path, "--out", tmp_path / "one", "--n-noise", 2)
    run = read_run(tmp_path / "one")
    summary = run.read_summary()
    assert summary["total_effect"] is not None
    assert summary["total_effect_lo"] is None
    assert summary["n_pairs"] == 0
    assert set(run.table("tracing")["state"]) == {"clean", "second noise"}
    assert "patching" not in run.figures


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--prompts", "nowhere.jsonl"], "nowhere.jsonl: No such file"),
        (["--smoke", "--template", "9"], "6 questions"),
        (["--smoke", "--n-noise", "0"], "n_noise"),
        (["--smoke", "--properties", "elevation"], "birth_year"),
        (["--model", "nowhere", "--out", "o"], "nowhere"),
    ],
)
def test_bad_input_is_one_line(arguments, says, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    trace(*arguments, code=2)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("inscape: ")]
    assert len(lines) == 1
    assert says in lines[0]


def test_a_killed_run_goes_on_to_equal_tables(tmp_path, tiny_run, cache, monkeypatch):
    """Stopped in its second portion of tracing, then of patching: only what was not yet done is computed again."""
    real, calls = causal_tracing_sweeps.sweep, []

    class Killed(Exception):
        pass

    def counted(*arguments, **options):
        calls.append(len(arguments[1]))
        if len(calls) in kills:
            raise Killed
        return real(*arguments, **options)

    monkeypatch.setattr(causal_tracing_sweeps, "sweep", counted)
    config = {**TINY, "batch_size": 4}  # two prompts a portion, six sweeps each
    kills = {8, 20}
    for _ in range(2):
        with pytest.raises(Killed):
            run_study("causal-tracing", config, tmp_path / "r", quiet=True)
    run = run_study("causal-tracing", config, tmp_path / "r", quiet=True)
    monkeypatch.undo()
    monkeypatch.setenv("INSCAPE_CACHE", str(cache))
    whole = run_study("causal-tracing", config, tmp_path / "whole", quiet=True)
    assert run.manifest["stages"]["tracing"]["parts_from_earlier_sessions"] > 0
    for name in whole.tables:
        assert run.table(name).equals(whole.table(name)), name
    assert run.read_summary() == whole.read_summary()
    # The size of batches is no part of the result.
    assert run.read_summary()["total_effect"] == pytest.approx(tiny_run.read_summary()["total_effect"], abs=1e-5)


def test_a_file_needs_no_facts_and_the_model_of_the_world_can_be_asked_too(tmp_path, tiny_run):
    path, _ = prompts_file(tmp_path, tiny_run)
    config = causal_tracing.Config(prompts=str(path), size="smoke", n_prompts=2)
    found = causal_tracing.asked_for(config)
    assert len(found.rows.rows) == 2
    assert found.facts.properties  # what the model without a name is trained on
    assert "2 of 3 prompts were drawn" in found.rows.notes[-1]
    alone = causal_tracing.asked_for(causal_tracing.Config(prompts=str(path), model="somewhere"))
    assert alone.facts.properties == ()
    with pytest.raises(InputError, match="no facts"):
        causal_tracing.asked_for(causal_tracing.Config(model=str(tmp_path)))
