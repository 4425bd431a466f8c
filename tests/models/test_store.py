"""What is in a store: the same numbers as a capture, the right tokens, named when damaged, read in any order."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from tiny_models import build, prompts, tiny, with_bos, words

import inscape
from inscape import InputError, NonFiniteError, Window
from inscape.models.shuffle import Permutation
from inscape.models.store import ActivationStore
from inscape.models.stream import capture_to

LENGTHS = [5, 1, 17, 9, 9, 30, 2, 12, 3, 8, 21, 4]


def texts(*lengths: int, seed: int = 1) -> list[str]:
    return [" ".join(f"t{i}" for i in ids) for ids in prompts(*lengths, seed=seed)]


@pytest.fixture
def store(tmp_path: Path) -> ActivationStore:
    """242 rows of two layers, in shards of 40 rows."""
    many = texts(*LENGTHS * 2)
    return capture_to(
        tiny("gpt2"), iter(many), tmp_path / "store", "resid_post", [0, 2], dtype=torch.float32, batch_size=5,
        shard_tokens=40, prompt_ids=(f"p{i}" for i in range(len(many))),
    )  # fmt: skip


# -- the same numbers ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gpt2", "opt", "bloom", "llama", "gemma2", "falcon", "mpt", "stablelm"])
def test_values_are_those_of_capture(name: str, tmp_path: Path) -> None:
    """All in one window, so that the batches are the same: then bit for bit; bfloat16 is rounded once."""
    lm, many = tiny(name), texts(*LENGTHS)
    expected = lm.capture_sites(many, ["embed", "resid_post", "mlp_act", "z"], [2, 0], "all", batch_size=4)
    for dtype in (torch.float32, torch.bfloat16):
        store = capture_to(
            lm, many, tmp_path / str(dtype), ["embed", "resid_post", "mlp_act", "z"], [2, 0], dtype=dtype, batch_size=4,
            shard_tokens=50,
        )  # fmt: skip
        assert list(store.columns) == ["embed", "resid_post.2", "resid_post.0", "mlp_act.2", "mlp_act.0", "z.2", "z.0"]
        for site, acts in expected.items():
            for layer in acts.layers:
                assert torch.equal(store.rows(site, layer), acts.at(layer).to(dtype))
        rows = store[:]
        assert torch.equal(rows.prompt, acts.prompt)
        assert torch.equal(rows.position.long(), acts.position)


@pytest.mark.parametrize(
    "tokens", ["last", "first", "all", "mention", "mention_first", "mention_last", Window("mention_last", -2, 1)]
)
def test_all_token_specs(tokens: Any, tmp_path: Path) -> None:
    lm, many = tiny("llama"), texts(*LENGTHS)
    mentions = [text.split()[len(text.split()) // 2] for text in many]
    more: dict[str, Any] = {"occurrence": 0} if "mention" in str(tokens) else {}
    expected = lm.capture(many, "resid_post", 1, tokens, mentions=mentions, batch_size=3, **more)
    store = capture_to(
        lm, many, tmp_path, layers=1, tokens=tokens, mentions=iter(mentions), dtype=torch.float32, batch_size=3,
        shard_tokens=7, **more,
    )  # fmt: skip
    rows = store[:]
    assert torch.equal(rows.at(), expected.at())
    assert torch.equal(rows.prompt, expected.prompt)
    assert torch.equal(rows.position.long(), expected.position)


def test_indices_per_prompt_come_along_as_an_iterable(tmp_path: Path) -> None:
    lm, many = tiny("gpt2"), texts(*LENGTHS)
    at = [[0, -1], [], [3, 2, 1], *[[0]] * 9]
    expected = lm.capture(many, "resid_post", 1, at, batch_size=3)
    store = capture_to(lm, many, tmp_path, layers=1, tokens=(one for one in at), dtype=torch.float32, batch_size=3)
    assert torch.equal(store.rows(), expected.at())
    assert store[:].position.tolist() == expected.position.tolist()


def test_logits_and_ids_as_prompts(tmp_path: Path) -> None:
    lm, many = tiny("gpt2"), prompts(*LENGTHS)
    store = capture_to(lm, many, tmp_path, "logits", tokens="last", dtype=torch.float32)
    assert torch.equal(store.rows("logits"), lm.logits(many))
    rows = store[:]
    assert rows.token.tolist() == [ids[-1] for ids in many]
    assert set(rows.start.tolist()) == set(rows.end.tolist()) == {-1}


def test_windows_of_many_batches_are_captures_of_their_own(tmp_path: Path) -> None:
    """More prompts than one window holds: each window's rows are those of a capture of its prompts, in their order."""
    lm, many = tiny("gpt2"), prompts(*[3, 8, 1, 5] * 20)
    store = capture_to(lm, iter(many), tmp_path, layers=1, dtype=torch.float32, batch_size=2, shard_tokens=64)
    first = 0
    for at in range(0, len(many), 32):
        expected = lm.capture(many[at : at + 32], "resid_post", 1, "all", batch_size=2)
        rows = store[first : first + len(expected)]
        assert torch.equal(rows.at(), expected.at())
        assert torch.equal(rows.prompt, expected.prompt + at)
        first += len(expected)
    assert first == len(store)


def test_offsets_point_to_the_token_and_bos_has_no_characters(tmp_path: Path) -> None:
    many = ["t5  t77 é?", "t3"]  # (characters, not bytes; what is no word is t0)
    lm = inscape.load(build("gpt2"), with_bos())
    rows = capture_to(lm, many, tmp_path, layers=0)[:]
    found = [many[p][a:b] for p, a, b in zip(rows.prompt, rows.start, rows.end, strict=True)]
    assert found == ["", "t5", "t77", "é?", "", "t3"]
    assert rows.token.tolist() == [0, 5, 77, 0, 0, 3]


def test_long_prompts_are_cut_only_when_asked(tmp_path: Path) -> None:
    lm, many = tiny("gpt2"), texts(3, 100, 6)
    with pytest.raises(InputError, match="prompt 1 has 100 tokens; the model's context is 64"):
        capture_to(lm, many, tmp_path / "a", layers=0)
    store = capture_to(lm, many, tmp_path / "b", layers=0, max_tokens=5)
    assert store[:].prompt.tolist() == [0] * 3 + [1] * 5 + [2] * 5
    with pytest.raises(InputError, match="max_tokens=65, but the model's context is 64"):
        capture_to(lm, many, tmp_path / "c", layers=0, max_tokens=65)


# -- files ---------------------------------------------------------------------------------------------------------


def test_shards_are_plain_safetensors_of_exactly_the_asked_rows(store: ActivationStore) -> None:
    files = sorted(store.folder.glob("*.safetensors"))
    index = json.loads((store.folder / "index.json").read_text())
    assert [file.name for file in files] == [entry["file"] for entry in index["shards"]]
    together = [load_file(file) for file in files]
    assert [len(one["token"]) for one in together] == [40] * (len(store) // 40) + [len(store) % 40]
    whole = store[:]
    for name in ("prompt", "position", "start", "end", "token"):
        assert torch.equal(torch.cat([one[name] for one in together]), getattr(whole, name))
    for name, values in whole.values.items():
        assert torch.equal(torch.cat([one[name] for one in together]), values)
    assert sorted(path.name for path in store.folder.iterdir()) == sorted(
        [".lock", "index.json", *(file.name for file in files)]
    )


def test_prompt_ids(store: ActivationStore, tmp_path: Path) -> None:
    assert [store.prompt_id(n) for n in (0, 7, 23, 11)] == ["p0", "p7", "p23", "p11"]
    with pytest.raises(InputError, match=r"no row of .* is of prompt 24"):
        store.prompt_id(24)
    with pytest.raises(InputError, match="without prompt_ids"):
        capture_to(tiny("gpt2"), texts(3), tmp_path / "none", layers=0).prompt_id(0)


def test_a_missing_shard_is_named(store: ActivationStore) -> None:
    (store.folder / "shard-000002.safetensors").unlink()
    with pytest.raises(InputError, match=r"shard-000002.safetensors is missing"):
        ActivationStore(store.folder)


def test_a_cut_off_shard_is_named(store: ActivationStore) -> None:
    path = store.folder / "shard-000001.safetensors"
    os.truncate(path, path.stat().st_size - 3)
    with pytest.raises(InputError, match=r"shard-000001.safetensors is cut off"):
        ActivationStore(store.folder)


def _flip(path: Path, at: int) -> None:
    with path.open("rb+") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 4]))


@settings(max_examples=30, deadline=None)
@given(place=st.floats(0, 1, exclude_max=True), number=st.integers(0, 3))
def test_a_changed_byte_is_named(place: float, number: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("damaged")
    store = capture_to(tiny("gpt2"), prompts(20, 20, 20, 20), folder, layers=0, shard_tokens=20)
    store.verify()
    path = folder / f"shard-{number:06d}.safetensors"
    at = int(place * path.stat().st_size)
    _flip(path, at)
    with pytest.raises(InputError, match=f"content of {path.name} is not"):
        store.verify()
    if at < store._layout.header_bytes:  # the header is compared whole when the store is opened
        with pytest.raises(InputError, match=f"header of {path.name}"):
            ActivationStore(folder)


def test_verify_names_a_shard_that_went_away(store: ActivationStore) -> None:
    store.verify()
    (store.folder / "shard-000000.safetensors").unlink()
    with pytest.raises(InputError, match=r"shard-000000.safetensors cannot be read"):
        store.verify()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "is no store of activations"),
        ("{", "is damaged"),
        ("[]", "expected the index of a store"),
        ('{"format": "inscape activations", "version": 99}', "is of version 99"),
        ('{"format": "inscape activations", "version": 1, "rows": 3}', "columns, finished, model"),
    ],
)
def test_what_is_no_store_is_refused(content: str | None, message: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "index.json").write_text(content)
    with pytest.raises(InputError, match=message):
        ActivationStore(tmp_path)


# -- reading -------------------------------------------------------------------------------------------------------


def test_rows_by_number(store: ActivationStore) -> None:
    whole = store.rows("resid_post", 2)
    assert len(store) == len(whole) == 242
    some = [241, 3, 3, 39, 40, -1, 100]
    assert torch.equal(store.rows("resid_post", 2, some), whole[some])
    assert torch.equal(store[torch.tensor(some)].at("resid_post", 2), whole[some])
    assert torch.equal(store[30:90:7].values["resid_post.2"], whole[30:90:7])
    assert len(store[5:5]) == 0
    assert store.rows("resid_post", 2, []).shape == (0, 32)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s: s[[242]], "no row 242: the store has 242"),
        (lambda s: s[[-243]], "no row -243"),
        (lambda s: s[[0.5]], "expected a slice or a list of whole numbers"),
        (lambda s: s[[[1]]], "expected a slice or a list of whole numbers"),
        (lambda s: s.rows("resid_post", 1), r"resid_post.1 is not in this store; it holds resid_post.0, resid_post.2"),
        (lambda s: s.rows("resid_post"), "resid_post is not in this store"),
        (lambda s: s.rows(), "None is not in this store"),
        (lambda s: s.batches(0), "batch_size: expected at least 1, found 0"),
        (lambda s: s.batches(1, start=-1), "start: expected at least 0"),
    ],
)
def test_bad_requests_say_what_there_is(store: ActivationStore, call: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        call(store)


@pytest.mark.parametrize("batch_size", [1, 50, 242, 1000])
def test_every_row_once_per_epoch(store: ActivationStore, batch_size: int) -> None:
    whole = store.rows("resid_post", 0)
    seen: list[list[int]] = [[], []]
    per_epoch = -(-242 // batch_size)
    for number, batch in enumerate(store.batches(batch_size, site="resid_post", layer=0, epochs=2, seed=3)):
        assert torch.equal(batch.at(), whole[batch.row])
        assert torch.equal(batch.prompt, store.read("prompt", batch.row))
        seen[number // per_epoch] += batch.row.tolist()
    assert sorted(seen[0]) == sorted(seen[1]) == list(range(242))
    assert seen[0] != seen[1]
    assert seen[0] != sorted(seen[0])


def test_batches_follow_the_seed_and_go_on_where_they_stopped(store: ActivationStore) -> None:
    def rows(**options: Any) -> list[list[int]]:
        return [batch.row.tolist() for batch in store.batches(50, site="resid_post", layer=0, **options)]

    assert rows(seed=1) == rows(seed=1) != rows(seed=2)
    assert rows(epochs=3, start=7) == rows(epochs=3)[7:]
    assert rows(epochs=3, start=15) == []
    endless = store.batches(50, site="resid_post", layer=0, epochs=None, start=1000)
    assert next(endless).row.tolist() == rows(epochs=201)[1000]
    assert rows(shuffle=False) == [list(range(at, min(at + 50, 242))) for at in range(0, 242, 50)]


def test_batches_of_all_columns_in_another_dtype(store: ActivationStore) -> None:
    batch = next(store.batches(50, dtype=torch.bfloat16))
    assert set(batch.values) == {"resid_post.0", "resid_post.2"}
    assert torch.equal(batch.at("resid_post", 2), store.rows("resid_post", 2, batch.row).bfloat16())


def test_reading_changes_nothing(store: ActivationStore) -> None:
    before = {path.name: path.read_bytes() for path in store.folder.glob("*.safetensors")}
    rows = store[:]
    for values in rows.values.values():
        values.zero_()
    store.rows("resid_post", 0).zero_()
    assert store.rows("resid_post", 0).abs().min(-1).values.max() > 0
    assert before == {path.name: path.read_bytes() for path in store.folder.glob("*.safetensors")}


@given(n=st.integers(1, 3000), seed=st.integers(0, 2**32))
@settings(deadline=None)
def test_the_permutation_is_a_bijection(n: int, seed: int) -> None:
    found = Permutation(n, (seed,))(np.arange(n))
    assert np.array_equal(np.sort(found), np.arange(n))


@given(n=st.integers(2**33, 2**45), seed=st.integers(0, 2**32))
@settings(deadline=None, max_examples=20)
def test_the_permutation_of_more_rows_than_any_memory_holds(n: int, seed: int) -> None:
    """Places of a stretch go to different numbers in range; none is stored."""
    found = Permutation(n, (seed,))(np.arange(n - 5000, n))
    assert len(np.unique(found)) == 5000
    assert found.min() >= 0
    assert found.max() < n


def test_the_permutation_looks_random() -> None:
    """Against a uniform permutation: places and numbers uncorrelated, successors spread out, few fixed points."""
    n = 100_000
    found = Permutation(n, (0,))(np.arange(n))
    assert abs(np.corrcoef(np.arange(n), found)[0, 1]) < 0.02  # (6 standard errors)
    assert abs(np.corrcoef(found[:-1], found[1:])[0, 1]) < 0.02
    assert (found == np.arange(n)).sum() < 12  # (Poisson of mean 1)
    counts, *_ = np.histogram2d(np.arange(n), found, bins=20)
    chi2 = ((counts - n / 400) ** 2 / (n / 400)).sum()
    assert 361 - 6 * np.sqrt(2 * 361) < chi2 < 361 + 6 * np.sqrt(2 * 361)


def test_a_permutation_of_nothing_is_refused() -> None:
    with pytest.raises(InputError, match="a permutation of 0 rows"):
        Permutation(0, (0,))


# -- refused -------------------------------------------------------------------------------------------------------


def test_nan_is_refused_with_the_number_of_the_prompt(tmp_path: Path) -> None:
    model = build("gpt2")
    with torch.no_grad():
        model.transformer.wte.weight[7] = float("nan")
    lm = inscape.load(model, words(), check=False)
    many = ["t3 t4"] * 40 + ["t3 t7"] + ["t5"] * 3
    with pytest.raises(NonFiniteError, match=r"resid_post.1 is NaN or Inf.* at prompt 40$"):
        capture_to(lm, many, tmp_path, layers=1, batch_size=2, shard_tokens=50)
    assert not list(tmp_path.glob("*.part"))
    with pytest.raises(InputError, match="is not finished"):
        ActivationStore(tmp_path)


def test_what_does_not_fit_in_float16_is_refused_and_fits_in_bfloat16(tmp_path: Path) -> None:
    model = build("gpt2")
    with torch.no_grad():
        model.transformer.wte.weight[7] = 1e5
    lm = inscape.load(model, words(), check=False)
    with pytest.raises(NonFiniteError, match=r"too large for float16 \(largest: 6\.55e\+04\)"):
        capture_to(lm, ["t3", "t7"], tmp_path / "half", "embed", dtype=torch.float16)
    assert capture_to(lm, ["t3", "t7"], tmp_path / "bf", "embed").rows().isfinite().all()


def test_a_sum_that_overflows_is_no_infinity(tmp_path: Path) -> None:
    model = build("gpt2")
    with torch.no_grad():
        model.transformer.wte.weight[7] = 3e38
    lm = inscape.load(model, words(), check=False)
    assert capture_to(lm, ["t3", "t7"], tmp_path, "embed", dtype=torch.float32).rows().max() == 3e38


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": torch.int8}, "dtype: expected float64"),
        ({"batch_size": 0}, "batch_size: expected a whole number"),
        ({"shard_tokens": 2.5}, "shard_tokens: expected a whole number"),
        ({"prompts": "t3 t4"}, "found one text"),
        ({"prompts": []}, "no prompts, or no tokens"),
        ({"prompts": ["t3", 7]}, "prompt 1: expected a text or a list of token ids"),
        ({"prompts": ["t3"] * 70 + [""]}, "prompt 70 is empty"),
        ({"prompts": ["t3"] * 70 + [[5, 97]]}, "prompt 70: token id 97 is not in the model's 97"),
        ({"prompts": ["t3"] * 70 + ["t4"], "tokens": [0] * 70 + [2]}, "prompt 70 has 1 tokens: no index 2"),
        ({"tokens": "some"}, "unknown tokens 'some'"),
        ({"tokens": [0]}, "tokens end after 1 entries, and there are more prompts"),
        ({"tokens": [0, 0, 0]}, "tokens have more entries than the 2 prompts"),
        ({"tokens": [0, None]}, "tokens: expected indices for prompt 1, found None"),
        ({"tokens": "mention"}, "needs one mention per prompt"),
        ({"tokens": "mention", "mentions": ["t3", "t9"]}, "prompt 1: the mention 't9' does not occur"),
        ({"prompt_ids": ["a", 2.5]}, "prompt_ids: expected a text or an integer for prompt 1"),
        ({"prompt_ids": ["a"]}, "prompt_ids end after 1"),
        ({"site": "resid"}, "unknown site"),
        ({"layers": 3}, "no layer 3"),
    ],
)
def test_bad_input_is_refused(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        capture_to(**{"lm": tiny("gpt2"), "prompts": ["t3", "t4 t5"], "folder": tmp_path, "batch_size": 2, **options})


def test_a_folder_with_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(InputError, match=r"holds thesis.tex and no index.json"):
        capture_to(tiny("gpt2"), ["t3"], tmp_path)
    with pytest.raises(InputError, match="expected a folder"):
        capture_to(tiny("gpt2"), ["t3"], tmp_path / "thesis.tex")
