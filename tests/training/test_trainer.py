"""The loop against one written out by hand; runs that are stopped, spoiled or short of disk, and go on."""

import errno
import json
import os
import signal
import sys

import pytest
import torch
import torch.distributed.checkpoint
import torch.nn.functional as F
from transformers import AutoModelForCausalLM

from inscape.errors import InputError
from inscape.runs.writing import RunWriteError
from inscape.training import architectures, run_folder
from inscape.training.architectures import ModelConfig, build
from inscape.training.batches import Batch, share
from inscape.training.checkpoints import Checkpoints
from inscape.training.metrics_log import read_metrics
from inscape.training.parallel import Layout, Parallel
from inscape.training.schedule import Schedule
from inscape.training.trainer import TrainingConfig, train

SHAPE = ModelConfig(width=16, layers=2, heads=2, vocabulary=64)
SCHEDULE = Schedule(steps=12, rows=6, learning_rate=5e-3, warmup_share=0.2)
CONFIG = TrainingConfig(schedule=SCHEDULE)
SAVING = CONFIG.model_copy(update={"save_seconds": 0.0})  # (a state after every step)


def batch(step, rows=6, length=10):
    g = torch.Generator().manual_seed(step)
    tokens = torch.randint(0, 64, (rows, length + 1), generator=g)
    weights = (torch.rand(rows, length, generator=g) + 0.5) * (torch.rand(rows, length, generator=g) > 0.05)
    segments = (torch.rand(rows, length, generator=g) > 0.8).cumsum(1).to(torch.int32)
    return Batch(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous(), weights, segments)


def alone(activation_checkpointing=False):
    return Parallel.start(Layout(activation_checkpointing=activation_checkpointing), device="cpu")


def trained(folder, config=CONFIG, batches=batch, identity=None, **options):
    model = build(SHAPE, seed=1)
    return train(model, batches, config, folder, identity=identity or {"data": 1}, parallel=alone(), **options), model


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    result, model = trained(folder)
    return folder, result, model


def test_losses_and_weights_are_those_of_a_loop_written_out(whole):
    model = build(SHAPE, seed=1)
    matrices = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}],
        betas=(0.9, 0.95), eps=1e-8, foreach=False,
    )  # fmt: skip
    for step, (found, line) in enumerate(zip(whole[1].losses, read_metrics(whole[0]), strict=True)):
        b = batch(step)
        logits = model(b.ids, b.segments) @ model.head_weight.T
        loss = (
            F.cross_entropy(logits.flatten(0, 1), b.targets.flatten(), reduction="none") * b.weights.flatten()
        ).sum()
        loss = loss / b.weights.sum()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = SCHEDULE.rate_at(step)
        optimizer.step()
        optimizer.zero_grad()
        assert found == pytest.approx(loss.item(), abs=1e-5)
        assert line.grad_norm == pytest.approx(float(norm), rel=1e-4)
        assert (line.step, line.tokens, line.skipped) == (step + 1, 60 * (step + 1), False)
    for (name, one), other in zip(model.named_parameters(), whole[2].parameters(), strict=True):
        # (Softmax doesn't see the keys' bias: its gradient is rounding, which AdamW makes as large as any.)
        if "query_key_value.bias" not in name:
            torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("options", [{"micro_rows": 1}, {"micro_rows": 4}, {"dtype": "bf16"}])
def test_micro_batches_change_nothing_and_bfloat16_little(options, whole, tmp_path):
    found, _ = trained(tmp_path, CONFIG.model_copy(update=options))
    assert found.losses == pytest.approx(whole[1].losses, abs=0.02 if "dtype" in options else 1e-5)
    assert ("dtype" in options) == (abs(found.losses[-1] - whole[1].losses[-1]) > 1e-5)


def test_activation_checkpointing_changes_nothing(whole, tmp_path):
    found = train(build(SHAPE, seed=1), batch, CONFIG, tmp_path, identity={}, parallel=alone(True))
    assert found.losses == pytest.approx(whole[1].losses, abs=1e-6)


def test_targets_that_do_not_count_are_left_out_of_the_output_layer(tmp_path):
    def few(step, keep=True):
        b = batch(step)
        weights = b.weights.clone()
        weights[:, :7] = 0 if keep else 1e-30  # (so small that nothing is left of them, yet they are computed)
        return Batch(b.ids, b.targets, weights, b.segments)

    short = CONFIG.model_copy(update={"schedule": Schedule(steps=3, rows=6)})
    some, _ = trained(tmp_path / "some", short, few)
    every, _ = trained(tmp_path / "every", short, lambda step: few(step, keep=False))
    assert some.losses == pytest.approx(every.losses, abs=1e-6)


# -- what is written ---------------------------------------------------------------------------------------------------


def test_checkpoints_are_hugging_face_folders_at_powers_of_two(whole):
    series = Checkpoints(whole[0])
    assert [(c.step, c.tokens) for c in series] == [(0, 0), (1, 60), (2, 120), (4, 240), (8, 480), (12, 720)]
    last = series.at(12).load()
    ids = batch(0).ids
    with torch.no_grad():
        ours = whole[2](ids) @ whole[2].head_weight.T
        torch.testing.assert_close(last(ids).logits, ours, atol=1e-4, rtol=1e-4)
        first = AutoModelForCausalLM.from_pretrained(whole[0] / "checkpoints/step-0")
        torch.testing.assert_close(
            first(ids).logits, (m := build(SHAPE, seed=1))(ids) @ m.head_weight.T, atol=1e-4, rtol=1e-4
        )


def test_only_the_last_state_is_kept_and_a_finished_run_is_not_run_again(whole):
    assert [path.name for path in (whole[0] / "state").iterdir()] == ["step-12"]

    def never(step):
        raise AssertionError("a step was asked for")

    again, model = trained(whole[0], batches=never)
    assert again == whole[1]
    for one, other in zip(model.parameters(), whole[2].parameters(), strict=True):
        assert torch.equal(one, other)


def test_every_so_many_steps_and_only_the_end(tmp_path):
    config = CONFIG.model_copy(update={"export_every": 5, "export_powers": False})
    assert config.exports() == [5, 10, 12]
    assert config.model_copy(update={"export_every": None}).exports() == [12]


def test_tensorboard(tmp_path):
    trained(tmp_path, CONFIG.model_copy(update={"tensorboard": True, "schedule": Schedule(steps=1, rows=6)}))
    assert next((tmp_path / "tensorboard").iterdir()).name.startswith("events")


def test_tensorboard_that_is_not_installed_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(InputError, match=r"tensorboard is not installed: pip install 'inscape\[logs\]'"):
        trained(tmp_path, CONFIG.model_copy(update={"tensorboard": True}))


# -- stopped and started again -----------------------------------------------------------------------------------------


class Stop(Exception):
    pass


def stopping(at):
    """An `advance` that ends the run when so many steps are done."""
    done = 0

    def advance(steps):
        nonlocal done
        done += steps
        if done >= at:
            raise Stop

    return advance


def lines(folder):
    return [(line.step, line.tokens, line.loss, line.grad_norm, line.learning_rate) for line in read_metrics(folder)]


def test_a_stopped_run_goes_on_to_the_same_losses_and_weights(whole, tmp_path):
    for at in (3, 7):
        with pytest.raises(Stop):
            trained(tmp_path, SAVING, advance=stopping(at))
    # What a kill leaves: a torn state with a higher number, lines of steps after the last state, half a line.
    (tmp_path / "state/step-11.part").mkdir()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write((whole[0] / "metrics.jsonl").read_text().splitlines()[7] + '\n{"step": 9, "tok')
    told = []
    result, model = trained(tmp_path, advance=told.append)
    assert told == [7, *[1] * 5]
    assert result.losses == whole[1].losses
    assert lines(tmp_path) == lines(whole[0])
    for one, other in zip(model.parameters(), whole[2].parameters(), strict=True):
        assert torch.equal(one, other)
    assert [path.name for path in (tmp_path / "state").iterdir()] == ["step-12"]


def test_killed_in_the_middle_of_a_step(whole, tmp_path):
    def deadly(step):
        if step == 9:
            os.kill(os.getpid(), signal.SIGKILL)
        return batch(step)

    child = os.fork()
    if child == 0:
        try:
            trained(tmp_path, SAVING, deadly)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert [path.name for path in (tmp_path / "state").iterdir()] == [
        "step-8"
    ]  # (step 9's batch is made during step 8)
    assert not (tmp_path / "checkpoints/step-12").exists()
    result, _ = trained(tmp_path)
    assert result.losses == whole[1].losses


def test_another_run_is_refused_by_the_name_of_what_differs(whole):
    for changed, name in (
        ({"weight_decay": 0.2}, "training.weight_decay"),
        ({"schedule": SCHEDULE.model_copy(update={"learning_rate": 1.0})}, "training.schedule.learning_rate"),
    ):
        with pytest.raises(InputError, match=rf"holds another run, which differs in {name} \(was .*, now .*\)"):
            trained(whole[0], CONFIG.model_copy(update=changed))
    with pytest.raises(InputError, match=r"differs in data \(was 1, now 2\)"):
        trained(whole[0], identity={"data": 2})
    # How it is carried out may change.
    trained(whole[0], CONFIG.model_copy(update={"micro_rows": 2, "save_seconds": 9.0}))


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("training.json", "{", "training.json: not readable"),
        ("training.json", '{"format": "x"}', "format 'x', expected"),
        ("state/step-12/counters.json", "", "a damaged training state"),
        ("metrics.jsonl", "", "0 lines of 12 steps done"),
        ("metrics.jsonl", "[]\n", "metrics.jsonl:1: no metrics of a step"),
    ],
)
def test_damaged_files_are_named(whole, file, content, message):
    path = whole[0] / file
    before = path.read_bytes()
    path.write_text(content)
    try:
        with pytest.raises(InputError, match=message):
            trained(whole[0])
    finally:
        path.write_bytes(before)


@pytest.mark.parametrize("moment", ["state", "counters", "export"])
def test_a_full_disk_leaves_the_last_good_state(moment, whole, tmp_path, monkeypatch):
    full = OSError(errno.ENOSPC, "No space left on device")
    calls = 0

    def failing(original):
        def call(*arguments, **options):
            nonlocal calls
            calls += 1
            if calls == 4:
                raise full
            return original(*arguments, **options)

        return call

    where = {
        "state": (torch.distributed.checkpoint, "save"),
        "counters": (run_folder, "write_text"),
        "export": (architectures, "save_file"),
    }[moment]
    with monkeypatch.context() as patch:
        patch.setattr(*where, failing(getattr(*where)))
        with pytest.raises(RunWriteError, match=r"no space left for .*the same command"):
            trained(tmp_path, SAVING)
    assert [path.name for path in (tmp_path / "state").iterdir()] == [
        {"state": "step-3", "counters": "step-2", "export": "step-3"}[moment]
    ]
    result, _ = trained(tmp_path)
    assert result.losses == whole[1].losses


# -- spikes and bad batches --------------------------------------------------------------------------------------------


def test_a_step_whose_loss_is_no_number_is_skipped_and_reported(whole, tmp_path):
    def spoiled(step):
        b = batch(step)
        if step == 2:
            b.weights[0, 0] = float("inf")
        return b

    config = CONFIG.model_copy(update={"export_every": 1})
    result, _ = trained(tmp_path, config, spoiled)
    assert result.skipped == [3]
    assert result.losses[:2] == whole[1].losses[:2]
    assert result.losses[2] != result.losses[2]
    at = {step: Checkpoints(tmp_path).at(step).load().state_dict() for step in (2, 3, 4)}
    assert all(torch.equal(tensor, at[3][name]) for name, tensor in at[2].items())
    assert not all(torch.equal(tensor, at[4][name]) for name, tensor in at[3].items())
    line = (tmp_path / "metrics.jsonl").read_text().splitlines()[2]
    assert json.loads(line)["loss"] is None
    assert json.loads(line)["skipped"] is True
    again, _ = trained(tmp_path, config, spoiled)  # (finished: what is read back is the same)
    assert again.skipped == [3]


def test_spikes_in_a_row_end_the_run(tmp_path):
    def spoiled(step):
        b = batch(step)
        b.weights[0, 0] = float("inf")
        return b

    with pytest.raises(InputError, match=r"training diverged: 4 spikes in a row up to step 4 .* below 0.005"):
        trained(tmp_path, CONFIG.model_copy(update={"spikes_allowed": 3}), spoiled)


def test_impossible_batches_are_refused(tmp_path):
    b = batch(0)
    with pytest.raises(InputError, match="a step without a target that counts"):
        trained(tmp_path, batches=lambda step: Batch(b.ids, b.targets, torch.zeros_like(b.weights)))
    with pytest.raises(InputError, match=r"batch: ids is torch.int32 \[6, 10\], expected torch.int64"):
        Batch(b.ids.int(), b.targets, b.weights)
    with pytest.raises(InputError, match=r"batch: segments is torch.int32 \[3, 10\], expected torch.int32 \[6, 10\]"):
        Batch(b.ids, b.targets, b.weights, b.segments[:3])


def test_rows_are_shared_without_loss():
    for rows in (1, 5, 8):
        for parts in (1, 2, 3):
            ranges = [share(rows, part, parts) for part in range(parts)]
            assert [i for first, last in ranges for i in range(first, last)] == list(range(rows))
            assert max(b - a for a, b in ranges) - min(b - a for a, b in ranges) <= 1
