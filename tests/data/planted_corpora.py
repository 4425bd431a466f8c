"""A small folder laid out as the corpora pack, every text made up, so that leaks can be seen by name."""

import gzip
import json

# fmt: off
WORDS = [
    "sun", "moon", "river", "stone", "bread", "water", "night", "horse", "apple", "light", "paper",
    "green", "table", "music", "north", "island", "door", "seven",
]
# fmt: on
PAIRS = 60


def sentence(language, number):
    """Distinct for every language and number, with words that have spaces and, in English, none in common."""
    return (
        " ".join(f"{WORDS[(number * 7 + 5 * k) % len(WORDS)]}{language}" for k in range(3 + number % 4))
        + f" n{number}."
    )


def write_corpora(root, languages=("en", "fr", "sw", "de")):
    for folder in ("parallel", "pretrain", "eval/xquad", "eval/xcopa", "eval/rte"):
        (root / folder).mkdir(parents=True)
    for language in languages:
        if language != "en":
            # English sides are shared between files, as they are in Tatoeba: a leak if splits were by file alone.
            lines = [f"{sentence(language, i)}\t{sentence('en', i)}" for i in range(PAIRS)]
            write_gzip(root / "parallel" / f"tatoeba.{language}-en.tsv.gz", lines)
        write_gzip(root / "pretrain" / f"{language}.jsonl.gz", map(json.dumps, documents(language)))
        write_gzip(root / "eval" / "xquad" / f"{language}.json.gz", [json.dumps(xquad(language))])
        rows = [
            {
                "premise": f"{language} premise {i}.", "choice1": f"{language} one {i}.", "choice2": f"{language} two {i}.",
                "question": ("cause", "effect")[i % 2], "label": i % 2, "idx": i, "changed": False,
            }
            for i in range(8)
        ]  # fmt: skip
        (root / "eval" / "xcopa" / f"{language}.test.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    for part in (1, 2, 3):
        rows = [
            {
                "premise": f"Premise {part} {i}",
                "hypothesis": f"Claim {i}.",
                "label": ("entailment", "not_entailment")[i % 2],
            }
            for i in range(6)
        ]
        (root / "eval" / "rte" / f"rte{part}_test.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    return root


def documents(language):
    for i in range(40):
        lines = [
            f"What <em>page {i}</em> in {language} is for. It says more.",
            f"Title {i} {language}",
            f"Use :ref:`part {i}` of {language} number {i}. Then stop.",
            "Last line.",
        ]
        yield {
            "id": f"gnome/help/{language}/page{i}",
            "lang": language,
            "source": "gnome-help",
            "text": "\n".join(lines),
        }
    yield {"id": f"udhr/{language}", "lang": language, "source": "udhr", "text": "no title\nin this\none"}


def xquad(language):
    context = f"First {language} sentence. The {language} capital is Paris {language}. A third one."
    question = {
        "id": "q1",
        "question": f"What is the {language} capital?",
        "answers": [{"text": f"Paris {language}", "answer_start": context.index("Paris")}],
    }
    return {"data": [{"title": "T", "paragraphs": [{"context": context, "qas": [question]}]}]}


def write_gzip(path, lines):
    path.write_bytes(gzip.compress(("\n".join(lines) + "\n").encode()))
