# ruff: noqa: E501 (a prompt stands on one line)
"""Tasks that no training sees: *question answering* (XQuAD), *causes* (XCOPA), *entailment* (RTE).

They are evaluation sets. All of their items are for testing, in every language asked for.
"""

from inscape.data.prompts.sources import Sources
from inscape.data.prompts.task import Prompt, Record, Task
from inscape.errors import InputError

_PREMISE = 500  # bytes: longer RTE premises don't fit into the rows of a small model


def _answers(sources: Sources, seed: int) -> list[Record]:
    return [
        Record(
            f"xquad/{q.language}/{q.id}", f"xquad/{q.id}", q.language,
            {"text": q.sentence, "question": q.question, "answer": q.answer}, None, True,
        )
        for q in sources.questions
    ]  # fmt: skip


def _causes(sources: Sources, seed: int) -> list[Record]:
    words = {"cause": ("because", "What was the cause?"), "effect": ("so", "What happened then?")}
    records = []
    for language, item in sources.causes:
        if item["question"] not in words or item["label"] not in (0, 1):
            raise InputError(
                f"XCOPA {language} item {item['idx']}: question {item['question']!r} and label {item['label']!r}, "
                "expected cause or effect, and 0 or 1"
            )
        link, question = words[item["question"]]
        fields = {
            "premise": item["premise"].strip(), "a": item["choice1"].strip(), "b": item["choice2"].strip(),
            "link": link, "question": question, "stem": item["premise"].strip().rstrip(".。"),
        }  # fmt: skip
        records.append(
            Record(f"xcopa/{language}/{item['idx']}", f"xcopa/{item['idx']}", language, fields, item["label"], True)
        )
    return records


def _entailments(sources: Sources, seed: int) -> list[Record]:
    if "en" not in sources.languages:
        return []
    records = []
    for number, item in sources.entailments:
        if item["label"] not in ("entailment", "not_entailment"):
            raise InputError(f"RTE {number}: label {item['label']!r}, expected entailment or not_entailment")
        if len(item["premise"].encode()) <= _PREMISE:
            fields = {"premise": item["premise"], "hypothesis": item["hypothesis"].rstrip(".")}
            records.append(Record(number, number, "en", fields, int(item["label"] != "entailment"), True))
    return records


TASKS = (
    Task("xquad", "question answering", "span", _answers, (
        Prompt("xquad_question", "{text}\nQuestion: {question}\nAnswer:", "{answer}"),
        Prompt("xquad_find", "Find the answer in the text.\nText: {text}\n{question}\nAnswer:", "{answer}"),
        Prompt("xquad_says", "{question}\nThe text \"{text}\" has the answer:", "{answer}"),
    ), held_out=True),
    Task("xcopa", "causes", "choice", _causes, (
        Prompt("xcopa_link", "{stem} {link}", options=("{a}", "{b}")),
        Prompt("xcopa_question", "{premise}\n{question}\n- {a}\n- {b}\nAnswer:", options=("{a}", "{b}")),
        Prompt("xcopa_letter", "{premise}\n{question}\nA: {a}\nB: {b}\nAnswer:", options=("A", "B")),
    ), held_out=True),
    Task("rte", "entailment", "choice", _entailments, (
        Prompt("rte_follow", "{premise}\nDoes it follow that {hypothesis}? yes or no:", options=("yes", "no")),
        Prompt("rte_true", "{premise}\n{hypothesis}\nIs the second line true if the first is? Answer yes or no.\nAnswer:", options=("yes", "no")),
        Prompt("rte_claim", "Report: {premise}\nClaim: {hypothesis}\nThe report supports the claim, true or false?", options=("true", "false")),
    ), held_out=True),
)  # fmt: skip
