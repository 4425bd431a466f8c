"""A series of checkpoints: whole ones only, in order of steps, read when asked for."""

import json
from types import SimpleNamespace

import pytest
import torch

from inscape.errors import InputError
from inscape.training.architectures import ModelConfig, build, save_hf
from inscape.training.checkpoints import Checkpoint, Checkpoints

CONFIG = ModelConfig(width=8, layers=1, heads=2, vocabulary=32)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with checkpoints at steps 0, 2 and 10, and some that are not whole."""
    folder = tmp_path_factory.mktemp("run")
    for step in (10, 0, 2):
        model = build(CONFIG, seed=step)
        save_hf(model, model.hf_config, None, folder / "checkpoints" / f"step-{step}")
    lines = [json.dumps({"step": step, "tokens": 64 * step, "loss": 1.0}) for step in range(1, 11)]
    (folder / "metrics.jsonl").write_text("\n".join([*lines, '{"step": 11, "tok']))
    made = folder / "checkpoints"
    for torn, missing in (("step-4", "model.safetensors"), ("step-5", "config.json")):
        model = build(CONFIG, seed=4)
        save_hf(model, model.hf_config, None, made / torn)
        (made / torn / missing).unlink()
    save_hf(model, model.hf_config, None, made / "step-6")
    weights = (made / "step-6" / "model.safetensors").read_bytes()
    (made / "step-6" / "model.safetensors").write_bytes(weights[:-5])
    save_hf(model, model.hf_config, None, made / ".step-7.123.part")
    save_hf(model, model.hf_config, None, made / "step-8.part")
    (made / "step-9").write_text("not a folder")
    return folder


def test_whole_checkpoints_are_listed_by_step(run):
    found = Checkpoints(run)
    assert [(one.step, one.tokens) for one in found] == [(0, 0), (2, 128), (10, 640)]
    assert [one.path.name for one in found] == ["step-0", "step-2", "step-10"]
    assert (len(found), found[-1].step, found.at(2).step) == (3, 10, 2)
    assert list(Checkpoints(run / "checkpoints")) == list(found)


def test_weights_are_those_of_the_step(run):
    for one in Checkpoints(run):
        expected = build(CONFIG, seed=one.step).hf_state_dict()
        model = one.load(dtype=torch.float32)
        assert not model.training
        assert model.config.model_type == "bloom"
        torch.testing.assert_close(dict(model.state_dict()) | {}, {**model.state_dict(), **expected}, rtol=0, atol=0)


def test_nothing_is_read_before_it_is_asked_for(run, monkeypatch):
    from inscape.training import checkpoints

    def refuse(*_, **__):
        raise AssertionError("weights were read")

    monkeypatch.setattr(checkpoints.AutoModelForCausalLM, "from_pretrained", refuse)
    [first, *_] = Checkpoints(run)
    with pytest.raises(AssertionError, match="weights were read"):
        first.load()


def test_a_training_that_goes_on_is_seen_by_refresh(run, tmp_path):
    model = build(CONFIG)
    save_hf(model, model.hf_config, None, tmp_path / "step-1")
    found = Checkpoints(tmp_path, tokens_per_step=7)
    assert [(one.step, one.tokens) for one in found] == [(1, 7)]
    save_hf(model, model.hf_config, None, tmp_path / "step-3")
    assert len(found) == 1
    assert [(one.step, one.tokens) for one in found.refresh()] == [(1, 7), (3, 21)]


def test_revisions_are_read_from_the_names_that_known_series_use():
    names = ["step1000", "global_step20000", "step300-tokens4B", "stage1-step500-tokens1.5B"]
    found = Checkpoints("someone/model", names)
    assert [(one.step, one.revision, one.tokens) for one in found] == [
        (300, "step300-tokens4B", 4 * 10**9),
        (500, "stage1-step500-tokens1.5B", 1_500_000_000),
        (1000, "step1000", None),
        (20000, "global_step20000", None),
    ]
    assert found[0].path is None
    assert [one.tokens for one in Checkpoints("someone/model", ["step3"], tokens_per_step=10)] == [30]
    assert [(one.step, one.revision) for one in Checkpoints("a/b", {"final": 7, "early": 1})] == [
        (1, "early"),
        (7, "final"),
    ]


def test_revisions_of_the_hub_are_listed_and_loaded_as_such(monkeypatch):
    refs = SimpleNamespace(
        branches=[SimpleNamespace(name=name) for name in ("main", "step5")], tags=[SimpleNamespace(name="step1")]
    )
    monkeypatch.setattr("huggingface_hub.list_repo_refs", lambda _: refs)
    found = Checkpoints("someone/model")
    assert [one.revision for one in found] == ["step1", "step5"]
    asked = []
    monkeypatch.setattr(
        "inscape.training.checkpoints.AutoModelForCausalLM.from_pretrained",
        lambda source, **options: asked.append((source, options)) or torch.nn.Module(),
    )
    found[1].load(dtype="auto")
    assert asked == [("someone/model", {"revision": "step5", "dtype": "auto"})]


def test_what_is_not_there_is_refused(tmp_path, run, monkeypatch):
    with pytest.raises(InputError, match="no checkpoint in it"):
        len(Checkpoints(tmp_path))
    with pytest.raises(InputError, match="no such folder"):
        len(Checkpoints(tmp_path / "nowhere"))
    with pytest.raises(InputError, match=r"no checkpoint at step 3, expected one of 0, 2, 10"):
        Checkpoints(run).at(3)
    with pytest.raises(InputError, match="a folder has no revisions"):
        len(Checkpoints(run, ["step1"]))
    with pytest.raises(InputError, match="no step in the name"):
        len(Checkpoints("a/b", ["main"]))
    with pytest.raises(InputError, match="both of step 1"):
        len(Checkpoints("a/b", ["step1", "global_step1"]))
    monkeypatch.setattr("huggingface_hub.list_repo_refs", lambda _: SimpleNamespace(branches=[], tags=[]))
    with pytest.raises(InputError, match="no branch or tag that names a step"):
        len(Checkpoints("a/b"))
    with pytest.raises(InputError, match=f"checkpoint {tmp_path}"):
        Checkpoint(0, 0, str(tmp_path)).load()
    with pytest.raises(InputError, match="no tokenizer"):
        Checkpoints(run)[0].tokenizer()
