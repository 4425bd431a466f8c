"""The lm-evaluation-harness: its table of results, what is said where it is not installed, and a run where it is."""

import importlib.util
import json
import sys

import pytest

from inscape.errors import InputError
from inscape.evaluation.lm_eval import ROWS, run_tasks, table


@pytest.fixture(scope="module")
def checkpoint(bloom, tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    bloom.model.save_pretrained(folder)
    bloom.tokenizer.save_pretrained(folder)
    return folder


def test_the_table_of_results():
    # As simple_evaluate of lm-eval 0.4.13 returns them.
    found = {
        "results": {
            "xcopa_et": {"alias": "xcopa_et", "acc,none": 0.48, "acc_stderr,none": 0.02, "sample_len": 500},
            "lambada": {"perplexity,none": 31.5, "perplexity_stderr,none": "N/A", "alias": " - lambada"},
        },
        "versions": {"xcopa_et": 1.0},
        "n-samples": {"xcopa_et": {"original": 500, "effective": 100}},
    }
    rows = table(found)
    assert rows.schema == ROWS
    assert rows.rows() == [
        ("xcopa_et", "acc", "none", 0.48, 0.02, 100, "1.0"),
        ("lambada", "perplexity", "none", 31.5, None, None, ""),
    ]


def test_without_it_the_extra_is_named(checkpoint, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(InputError, match=r"tasks xcopa_et need the lm-evaluation-harness .*inscape\[eval\]"):
        run_tasks(checkpoint, ["xcopa_et"])
    with pytest.raises(InputError, match="no task named"):
        run_tasks(checkpoint, [])
    with pytest.raises(InputError, match="nowhere"):
        run_tasks(checkpoint / "nowhere", ["xcopa_et"])


@pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="needs lm-eval (the extra eval)")
def test_a_task_of_local_files(checkpoint, logp, bloom, tmp_path):
    items = [{"q": f"The house {i} was", "a": [" old", " sold"], "y": i % 2} for i in range(8)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    (tmp_path / "task.yaml").write_text(
        "task: local_choice\ndataset_path: json\noutput_type: multiple_choice\ntest_split: test\n"
        f"dataset_kwargs:\n  data_files:\n    test: {tmp_path / 'rows.jsonl'}\n"
        'doc_to_text: "{{q}}"\ndoc_to_choice: "{{a}}"\ndoc_to_target: y\nmetric_list:\n  - metric: acc\n'
    )
    (row,) = run_tasks(checkpoint, ["local_choice"], include=tmp_path).rows(named=True)
    right = []
    for item in items:
        start = len(bloom.tokenizer(item["q"])["input_ids"])
        scores = [sum(logp(bloom, bloom.tokenizer(item["q"] + a)["input_ids"])[start - 1 :]) for a in item["a"]]
        right.append(scores.index(max(scores)) == item["y"])
    assert (row["metric"], row["items"]) == ("acc", 8)
    assert row["value"] == pytest.approx(sum(right) / 8)
    with pytest.raises(InputError, match="has no task 'no_such'"):
        run_tasks(checkpoint, ["no_such"], include=tmp_path)
