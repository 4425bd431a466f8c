"""The mixture: nothing that is held out is trained on, targets follow from planted records, and bad files are named."""

import gzip
import re

import pytest
from planted_corpora import PAIRS, WORDS, sentence, write_corpora, write_gzip
from pydantic import ValidationError

from inscape.data.prompted import MixtureConfig, build_mixture, data_hash, end_id, spaced, token_ids
from inscape.data.prompts import TASKS, Prompt, Record, Sources, corpora_folder
from inscape.data.prompts.sources import cut, sentences_of
from inscape.errors import InputError

CONFIG = MixtureConfig(languages=("en", "fr", "sw"), held_out_languages=("de",), per_prompt=60, test_per_prompt=30)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_corpora(tmp_path_factory.mktemp("corpora"))


@pytest.fixture(scope="module")
def mixture(root):
    return build_mixture(CONFIG, root)


def test_there_are_enough_prompts_and_clusters():
    prompts = [prompt.name for task in TASKS.values() for prompt in task.prompts]
    assert len(set(prompts)) == len(prompts)
    trained = [task for task in TASKS.values() if not task.held_out]
    assert sum(not prompt.held_out for task in trained for prompt in task.prompts) >= 20
    assert len({task.cluster for task in trained}) >= 6
    held_out = {task.cluster for task in TASKS.values() if task.held_out}
    assert held_out.isdisjoint({task.cluster for task in trained})
    assert {"rte", "xcopa"} <= {task.name for task in TASKS.values() if task.held_out}


def test_every_trained_task_has_examples(mixture):
    assert {e.task for e in mixture.train} == {name for name, task in TASKS.items() if not task.held_out}
    assert {e.task for e in mixture.tests if e.new == "task"} == {n for n, task in TASKS.items() if task.held_out}
    assert {e.new for e in mixture.tests} == {"seen", "prompt", "language", "task"}
    assert all(e.new is None for e in mixture.train)


def test_what_is_held_out_is_not_trained_on(mixture):
    held_out_prompts = {p.name for task in TASKS.values() for p in task.prompts if p.held_out}
    assert held_out_prompts.isdisjoint({e.prompt for e in mixture.train})
    assert {e.prompt for e in mixture.tests if e.new == "prompt"} == held_out_prompts
    assert {e.language for e in mixture.train} == {"en", "fr", "sw"}
    assert {e.language for e in mixture.tests if e.new == "language"} == {"de"}
    # Nor does the language's name or any of its text appear in training, as an option or otherwise.
    trained = "\n".join(e.input + e.target + "".join(e.options or ()) for e in mixture.train)
    assert "German" not in trained
    assert not re.search(rf"({'|'.join(WORDS)})de\b|Title \d+ de|in de is", trained)
    assert "German" in "".join("".join(e.options or ()) for e in mixture.tests if e.new == "language")


def test_no_item_stands_on_both_sides_in_any_language(mixture):
    """Sentence numbers and page numbers are the same in every language: the test fifth must never be trained on."""
    first_test = PAIRS - PAIRS // 5
    numbers = [int(n) for e in mixture.train for n in re.findall(r"\bn(\d+)\b", e.input + e.target)]
    assert numbers
    assert max(numbers) < first_test
    # All words of wrong options and of questions about words come from the training side too.
    tested = {w for i in range(first_test, PAIRS) for w in re.findall(r"n\d+", sentence("fr", i))}
    assert not tested & {w for e in mixture.train for o in e.options or () for w in re.findall(r"\bn\d+\b", o)}
    pages = {side: {int(n) for e in some for n in re.findall(r"(?:page|Title|number) (\d+)", e.input + e.target)}
             for side, some in (("train", mixture.train), ("test", mixture.tests))}  # fmt: skip
    assert pages["train"]
    assert pages["train"].isdisjoint(pages["test"])
    pairs = {side: {frozenset(re.findall(r"\d+", e.input)) for e in some if e.task == "larger_number"}
             for side, some in (("train", mixture.train), ("test", mixture.tests))}  # fmt: skip
    assert pairs["train"].isdisjoint(pairs["test"])


def test_targets_follow_from_the_planted_texts(mixture):
    french = {sentence("fr", i): sentence("en", i) for i in range(PAIRS)}
    for e in (*mixture.train, *mixture.tests):
        assert not e.input.endswith((" ", "\n"))
        assert e.target.startswith(" ")
        if e.options is not None:
            assert e.target in e.options
            assert len(set(e.options)) == len(e.options)
        target = e.target.strip()
        if e.prompt == "to_english_put" and e.language == "fr":
            assert target == french[e.input.split("\n")[1]]
        if e.task == "order_repair":
            given = e.input.partition(": ")[2].split("\n")[0] if e.prompt == "order_put" else None
            if given is not None:
                assert sorted(given.split()) == sorted(target.split())
                assert given != target
        if e.task == "count_words" and e.prompt == "count_how_many":
            assert int(target) == len(e.input.split("\n")[0].split())
        if e.task == "contains" and e.prompt == "contains_occurs":
            words = [w.strip(".") for w in e.input.split("\n")[0].split()]
            assert (target == "yes") == (re.search(r'word "([^"]+)"', e.input)[1] in words)
        if e.task == "larger_number":
            assert int(target) == max(map(int, re.findall(r"\d+", e.input)))
        if e.kind == "span":
            assert target in e.input
        if e.task == "title":
            assert re.fullmatch(r"Title \d+ \w\w", target)
            assert "<" not in e.input
            assert "`" not in e.input
        if e.task == "language_name":
            assert target == {"fr": "French", "sw": "Swahili", "en": "English", "de": "German"}[e.language]
            assert target not in e.input
        if e.task == "xquad":
            assert "capital is Paris" in e.input
            assert "First" not in e.input
        if e.prompt == "rte_follow":
            assert (target == "yes") == (int(e.id.split("/")[1]) % 2 == 0)
        if e.prompt == "xcopa_link":
            number = int(e.id.rsplit("/", 1)[1])
            assert target == f"{e.language} {('one', 'two')[number % 2]} {number}."
            assert e.input.endswith(("because", "so")[number % 2])


@pytest.mark.parametrize(
    "task", [n for n, t in TASKS.items() if t.kind == "choice" and n not in ("count_words", "language_name")]
)
def test_no_option_place_gives_the_answer_away(root, task):
    answers = [r.answer for r in TASKS[task].records(Sources(root, ("en", "fr", "sw", "de")), 0)]
    assert 0.2 < sum(answers) / len(answers) < 0.8


def test_draws_are_capped_even_and_of_the_seed(root, mixture):
    counts = mixture.counts()
    assert sum(row["examples"] for row in counts) == len(mixture.train) + len(mixture.tests)
    of_prompt = [row for row in counts if row["prompt"] == "to_english_put" and row["new"] == "train"]
    assert {row["language"]: row["examples"] for row in of_prompt} == {"fr": 30, "sw": 30}
    assert build_mixture(CONFIG, root) == mixture
    assert build_mixture(CONFIG.model_copy(update={"seed": 1}), root).train != mixture.train


def test_the_hash_changes_with_the_data(tmp_path):
    root = write_corpora(tmp_path / "c")
    before = data_hash(CONFIG, root)
    assert data_hash(CONFIG, root) == before
    (root / "eval" / "rte" / "rte2_test.jsonl").write_text(
        '{"premise": "a", "hypothesis": "b", "label": "entailment"}\n'
    )
    assert data_hash(CONFIG, root) != before


def test_a_target_has_the_space_of_its_script():
    assert [spaced(text) for text in ("yes", "你好", "こんにちは", "ไทย", "Да", "「a")] == [
        " yes", "你好", "こんにちは", "ไทย", " Да", "「a",
    ]  # fmt: skip


def test_texts_are_cut_at_words_and_never_inside_a_character():
    assert cut("one two three", 9) == "one two"
    assert cut("日本語の文", 10) == "日本語"
    assert cut("short", 9) == "short"
    assert sentences_of("One. Two! 三。四？ five") == ["One.", "Two!", "三。", "四？", "five"]


def test_ids_are_of_each_side_alone():
    class Letters:
        eos_token_id = 7

        def __call__(self, text, add_special_tokens):
            assert add_special_tokens is False
            return {"input_ids": [ord(letter) for letter in text]}

    assert token_ids("ab", " c", Letters()) == ([97, 98], [32, 99])
    assert end_id(Letters()) == 7
    with pytest.raises(InputError, match="a side without tokens"):
        token_ids("ab", "", Letters())
    with pytest.raises(InputError, match="no end-of-text token"):
        end_id(None)


def broken(root, name, content):
    (root / name).write_bytes(content)
    return root


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("parallel/tatoeba.fr-en.tsv.gz", gzip.compress(b"only one side\n"), "line 1: expected a sentence, a tab"),
        ("parallel/tatoeba.fr-en.tsv.gz", b"not gzip", "not a whole gzip file"),
        ("parallel/tatoeba.fr-en.tsv.gz", gzip.compress(b"\xff\t\xfe\n"), "not UTF-8"),
        ("pretrain/fr.jsonl.gz", gzip.compress(b"{\n"), "line 1: not JSON"),
        ("pretrain/fr.jsonl.gz", gzip.compress(b'{"id": 3}\n'), "line 1: expected an object with the texts id"),
        ("eval/xquad/fr.json.gz", gzip.compress(b'{"data": [{}]}\n'), "not in the form of SQuAD"),
        ("eval/xcopa/fr.test.jsonl", b'{"premise": "a"}\n', "line 1: expected an object with premise"),
        (
            "eval/xcopa/fr.test.jsonl",
            b'{"premise": "a", "choice1": "b", "choice2": "c", "question": "why", "label": 0, "idx": 5}\n',
            "XCOPA fr item 5: question 'why'",
        ),
        (
            "eval/rte/rte1_test.jsonl",
            b'{"premise": "a", "hypothesis": "b", "label": "maybe"}\n',
            "RTE rte1/0: label 'maybe'",
        ),
    ],
)
def test_a_damaged_file_is_named(tmp_path, name, content, message):
    root = broken(write_corpora(tmp_path / "c"), name, content)
    with pytest.raises(InputError, match=message):
        build_mixture(CONFIG, root)


def test_missing_data_is_named(tmp_path, monkeypatch):
    root = write_corpora(tmp_path / "c", languages=("en", "fr", "de"))
    with pytest.raises(InputError, match=r"nothing in 'sw', expected parallel/.*sw-en.tsv.gz or pretrain/sw.jsonl.gz"):
        build_mixture(CONFIG, root)
    (root / "eval" / "rte" / "rte3_test.jsonl").unlink()
    with pytest.raises(InputError, match=r"rte3_test.jsonl: No such file"):
        build_mixture(CONFIG.model_copy(update={"languages": ("en", "fr")}), root)
    with pytest.raises(InputError, match="no such folder"):
        build_mixture(CONFIG, tmp_path / "nowhere")
    monkeypatch.delenv("INSCAPE_SHARED", raising=False)
    with pytest.raises(InputError, match="set INSCAPE_SHARED"):
        corpora_folder()
    monkeypatch.setenv("INSCAPE_SHARED", str(tmp_path))
    with pytest.raises(InputError, match="is not there"):
        corpora_folder()


def test_a_mixture_without_training_examples_is_refused(tmp_path):
    root = tmp_path / "c"
    (root / "pretrain").mkdir(parents=True)
    write_gzip(root / "pretrain" / "fr.jsonl.gz", ['{"id": "udhr/fr", "source": "udhr", "text": "a"}'])
    config = MixtureConfig(languages=("fr",), held_out_languages=(), tasks=("title",))
    with pytest.raises(InputError, match="no training example in fr"):
        build_mixture(config, root)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"languages": ("fr",), "held_out_languages": ("fr",)}, "'fr' is both trained on and held out"),
        ({"languages": ("xx",)}, "language 'xx' has no name here"),
        ({"tasks": ("nothing",)}, "no task 'nothing'"),
    ],
)
def test_a_config_that_cannot_be_is_refused(fields, message):
    with pytest.raises((ValidationError, InputError), match=message):
        MixtureConfig(**fields)


def test_a_prompt_without_an_answer_is_refused():
    record = Record("r", "g", "en", {"x": "1"}, 2, False)
    with pytest.raises(InputError, match="record r has answer 2 of 2 options"):
        Prompt("p", "{x}", options=("a", "b")).fill(record)
    with pytest.raises(InputError, match="of 0 options"):
        Prompt("p", "{x}").fill(record)
