"""`inscape plan` against the paper's own table, and energy against its own figures."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from inscape.errors import InputError
from inscape.training.architectures import SIZES, ModelConfig, build
from inscape.training.energy import CPU_CORE, FRANCE, GPUS, co2_kg, energy_kwh
from inscape.training.parallel import Layout
from inscape.training.plan import Split, counts_of, memory_of, plan, plan_command, splits

# fmt: off
PUBLISHED = [  # size, parameters and those without the embedding, in millions
    ("560m", 559.2, 302.3), ("1b1", 1065.3, 680.0), ("1b7", 1722.4, 1208.6),
    ("3b", 3002.6, 2360.3), ("7b1", 7069.0, 6041.4), ("176b", 176_247.3, 172_650.6),
]
# fmt: on
GPU_HOURS, MWH, TONNES = 1.08e6, 433, 24.7
ITERATION_SECONDS, ITERATION_TOKENS = 105, 2048 * 2048


@pytest.mark.parametrize(("size", "millions", "without_embedding"), PUBLISHED)
def test_parameters_are_those_of_the_paper(size, millions, without_embedding):
    counts = counts_of(SIZES[size])
    assert abs(counts.all / 1e6 - millions) <= 0.1
    assert abs(counts.non_embedding / 1e6 - without_embedding) <= 0.1
    layers, h, words = SIZES[size].layers, SIZES[size].width, SIZES[size].vocabulary
    assert counts.all == layers * (12 * h**2 + 13 * h) + words * h + 4 * h


def test_an_iteration_of_the_paper_is_as_fast_as_the_paper_says():
    """105 s for 2,048 rows of 2,048 tokens on 384 GPUs are reported as 149 to 150 TFLOP/s."""
    found = plan(SIZES["176b"], 384, name="176b")
    tflops = found.hardware_flops * ITERATION_TOKENS / ITERATION_SECONDS / 384 / 1e12
    assert 149 <= tflops <= 150


def test_days_and_gpu_hours_of_the_paper():
    """Without restarts and waiting, which the paper's 1.08 million hours hold as well."""
    found = plan(SIZES["176b"], 384, name="176b", tflops=150)
    assert found.tokens == 366e9
    assert found.days == pytest.approx(105.6, abs=0.1)
    assert 0.85 * GPU_HOURS < found.gpu_hours < GPU_HOURS
    assert found.days == pytest.approx(2 * plan(SIZES["176b"], 768, name="176b", tflops=150).days)


def test_energy_and_co2_of_the_paper():
    watts = GPUS["a100-80gb"].watts
    kwh = energy_kwh(GPU_HOURS * 3600, watts)
    assert kwh / 1e3 == pytest.approx(MWH, rel=0.005)
    assert co2_kg(kwh, FRANCE) / 1e3 == pytest.approx(TONNES, rel=0.005)
    assert energy_kwh(3600, 1000, 1.2) == pytest.approx(1.2)
    assert energy_kwh(3600, 2 * CPU_CORE) == pytest.approx(0.02)
    found = plan(SIZES["176b"], 384, name="176b", pue=1.0)
    assert found.kwh == pytest.approx(found.gpu_hours * watts / 1000)
    assert found.co2_kg == pytest.approx(found.kwh * FRANCE / 1000)


def test_a_checkpoint_of_the_paper_has_its_size():
    """2.3 TB with optimizer, 329 GB of weights: float32 weights and two moments beside the bfloat16 ones."""
    everything = counts_of(SIZES["176b"]).all
    assert 2 * everything / 2**30 == pytest.approx(329, rel=0.005)
    paper = Split("", tensor_parallel=4, pipeline_parallel=12, megatron=True)
    # All replicas' optimizer states in one, and float32 gradients that a checkpoint doesn't hold.
    states = memory_of(SIZES["176b"], counts_of(SIZES["176b"]), paper).states * paper.gpus - 4 * everything
    assert states / 2**40 == pytest.approx(2.3, rel=0.03)


def test_the_papers_layout_fits_its_gpus_and_a_whole_model_does_not():
    found = plan(SIZES["176b"], 384, name="176b", micro_batch=2)
    by_name = {split.name: (split, memory.gib) for split, memory in found.memory}
    split, gib = by_name["Megatron, tensor 4 × pipeline 12 (paper)"]
    assert (split.replicate, split.gpus) == (8, 384)
    assert 25 < gib < 0.9 * 80
    assert by_name["a whole model on each"][1] > 2600
    assert by_name["FSDP2 × tensor 8"][1] < 0.9 * 80 < by_name["FSDP2, parameters kept"][1]


@pytest.mark.parametrize("gpus", [1, 2, 12, 16, 48, 384])
def test_layouts_use_all_gpus_and_can_be_asked_for(gpus):
    for split in splits(SIZES["176b"], gpus):
        assert split.gpus == gpus
        if not split.megatron:
            asked = Layout(
                replicate=split.replicate, data_shards=split.data_shards, tensor_parallel=split.tensor_parallel
            )
            assert asked.shards(gpus) == split.data_shards


def test_states_are_split_over_shards_and_memory_falls():
    config = SIZES["7b1"]
    counts = counts_of(config)
    one, eight = (memory_of(config, counts, Split("", data_shards=n)) for n in (1, 8))
    assert one.states == 16 * counts.all == 8 * eight.states
    kept = memory_of(config, counts, Split("", data_shards=8, reshard_after_forward=False))
    assert kept.gathered > eight.gathered
    again = memory_of(config, counts, Split("", data_shards=8), recompute=False)
    assert again.activations > 3 * eight.activations
    assert memory_of(config, counts, Split("", data_shards=8), micro_batch=4).activations == 4 * eight.activations


@pytest.mark.parametrize("kind", ["bloom", "gpt2", "llama", "gpt_neox"])
def test_operations_are_those_that_a_model_does(kind):
    """Counted by torch on the forward pass, attention as matrix products; the loss's product is added."""
    config = ModelConfig(kind=kind, width=32, layers=2, heads=4, context=16, vocabulary=64)
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        hidden = build(config)(torch.zeros(3, 16, dtype=torch.int64))
        hidden @ build(config).head_weight.T
    found = plan(config, 1)
    assert 3 * counter.get_total_flops() / (3 * 16) == pytest.approx(found.model_flops)
    blocks = counter.get_total_flops() / 48 - 2 * 64 * 32
    assert found.hardware_flops == pytest.approx(found.model_flops + blocks)


def test_defaults_of_tokens_and_speed():
    found = plan(SIZES["nano"], 2, gpu="h200-141gb")
    assert found.tokens == 20 * found.counts.all
    assert found.tflops == pytest.approx(989 * 150 / 312)
    assert found.mfu == pytest.approx(150 / 312 * found.model_flops / found.hardware_flops)
    assert plan(SIZES["nano"], 2, recompute=False).mfu == pytest.approx(150 / 312)


def test_the_command_prints_what_was_asked_for(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    plan_command("176b", gpus=384)
    printed = capsys.readouterr().out
    for part in ("176,247.3", "106 days", "Megatron, tensor 4 × pipeline 12 (paper)", "467 MWh"):
        assert part in printed
    plan_command("sizes", gpus=8)
    printed = capsys.readouterr().out
    assert all(size in printed for size, _, _ in PUBLISHED)
    file = tmp_path / "mine.yaml"
    file.write_text("width: 64\nlayers: 2\nheads: 4\nvocabulary: 512\nlearning_rate: 1\n")
    plan_command(str(file))
    printed = capsys.readouterr().out
    assert "mine" in printed
    assert f"{(2 * (12 * 64**2 + 13 * 64) + 512 * 64 + 4 * 64) / 1e6:.1f}" in printed


def test_budget_and_rows_of_a_pretraining_config_are_read(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    file = tmp_path / "pretrain.yaml"
    file.write_text("model: mini\nsteps: 1000000\nrows: 20\nlength: 256\nshards: somewhere\n")
    plan_command(str(file))
    found = plan(SIZES["mini"], 1, length=256)
    row = next(line for line in capsys.readouterr().out.splitlines() if "pretrain " in line)
    assert [cell.strip() for cell in row.split("│")][4:6] == ["5.12", f"{found.model_flops / 1e9:.3g}"]
    assert found.model_flops < plan(SIZES["mini"], 1).model_flops
    file.write_text("model: mini\ntokens: 7000000000\n")
    plan_command(str(file))
    row = next(line for line in capsys.readouterr().out.splitlines() if "pretrain " in line)
    assert row.split("│")[4].strip() == "7"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("model: huge\n", "model 'huge', expected one of nano"),
        ("model: {width: 10, heads: 3}\n", "expected a multiple of the heads"),
        ("model: {wide: 10}\n", "Extra inputs"),
        ("steps: 3\n", "no model in it"),
        ("- 1\n", "expected fields of a config"),
        ("a: [\n", "not YAML"),
    ],
)
def test_bad_configs_are_refused(tmp_path, content, message):
    file = tmp_path / "bad.yaml"
    file.write_text(content)
    with pytest.raises(InputError, match=message):
        plan_command(str(file))


def test_what_cannot_be_is_refused():
    with pytest.raises(InputError, match=r"176c.*expected a YAML file, sizes, or one of nano"):
        plan_command("176c")
    with pytest.raises(InputError, match="gpu 'tpu'"):
        plan(SIZES["nano"], 1, gpu="tpu")
    with pytest.raises(InputError, match="gpus 0"):
        plan(SIZES["nano"], 0)
    with pytest.raises(InputError, match="tokens -1"):
        plan(SIZES["nano"], 1, tokens=-1)
    with pytest.raises(InputError, match="PUE"):
        energy_kwh(1, 1, 0.5)
    with pytest.raises(InputError, match=">= 0"):
        co2_kg(-1)
