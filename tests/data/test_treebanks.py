"""Treebanks: what a sentence has, which tasks stay, files that are not treebanks; and the shared PUD, counted apart."""

import gzip
import os
import re
from pathlib import Path

import numpy as np
import pytest

from inscape.data.treebanks import read_treebank, read_treebanks
from inscape.errors import InputError

PUD = Path(os.environ.get("INSCAPE_SHARED", Path(__file__).parents[3] / "shared")) / "data/corpora/eval/pud"

GERMAN = """\
# sent_id = s1
# text = Wir gehen ins Haus
1\tWir\twir\tPRON\t_\tCase=Nom|Person=1\t2\tnsubj\t_\t_
2\tgehen\tgehen\tVERB\t_\tPerson=1,3\t0\troot\t_\t_
3-4\tins\t_\t_\t_\tTypo=Yes\t_\t_\t_\t_
3\tin\tin\tADP\t_\t_\t5\tcase\t_\t_
4\tdas\tdas\tDET\t_\tCase=Acc\t5\tdet\t_\t_
5\tHaus\tHaus\tNOUN\t_\tCase=Acc|Number=Sing\t2\tobl:arg\t_\t_
5.1\tda\tda\tADV\t_\tDegree=Pos\t_\t_\t_\t_

# sent_id = s2
# text = Geh!
1\tGeh\tgehen\tVERB\t_\tMood=Imp\t0\troot\t_\t_
2\t!\t!\tPUNCT\t_\t_\t1\tpunct\t_\t_

"""


def written(folder: Path, text: str, name: str = "de.conllu") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_what_words_of_a_sentence_have(tmp_path):
    treebank = read_treebank(written(tmp_path, GERMAN))
    first = treebank.sentences[0]
    assert (treebank.language, treebank.ids, treebank.texts) == ("de", ("s1", "s2"), ("Wir gehen ins Haus", "Geh!"))
    # Neither the multiword token's Typo nor the empty node's Degree; both of the two persons; the relation's main part.
    assert first.features == {"Case=Nom", "Person=1", "Person=3", "Case=Acc", "Number=Sing"}
    assert first.upos == {"upos=PRON", "upos=VERB", "upos=ADP", "upos=DET", "upos=NOUN"}
    assert first.deprel == {f"deprel={name}" for name in ("nsubj", "root", "case", "det", "obl")}
    assert first.words == 5


def test_tasks_are_named_by_kind_and_bounded_by_share(tmp_path):
    tasks = read_treebank(written(tmp_path, GERMAN)).presence(("deprel", "feature"), least=0.5, most=0.5)
    assert tasks.names[:2] == ("deprel=case", "deprel=det")
    assert "Mood=Imp" in tasks.names
    assert "deprel=root" not in tasks.names  # both sentences have one
    assert [name.startswith("deprel=") for name in tasks.names] == [kind == "deprel" for kind in tasks.kinds]
    assert tasks.values[:, tasks.names.index("Mood=Imp")].tolist() == [False, True]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no sentences"),
        (GERMAN.replace("# sent_id = s2\n", ""), "sentence 2: no sent_id"),
        (GERMAN.replace("# text = Geh!\n", ""), "sentence 2: no text"),
        (GERMAN.replace("s2", "s1"), "sentence 2: sent_id s1 stands twice"),
        ("# sent_id = a\n# text = b\n1\tb\tb\n\n", "columns"),
        ("# sent_id = a\n# text = b\nx\tb\tb\tNOUN\t_\t_\t0\troot\t_\t_\n\n", "not CoNLL-U"),
        ("# sent_id = a\n# text = b\n\n", "no words"),
    ],
)
def test_a_file_that_is_no_treebank_is_refused(tmp_path, text, message):
    with pytest.raises(InputError, match=message):
        read_treebank(written(tmp_path, text))


def test_damaged_files_are_refused_by_name(tmp_path):
    whole = gzip.compress(GERMAN.encode() * 50)
    for name, content in (("cut.conllu.gz", whole[:-20]), ("no.conllu.gz", b"text"), ("l1.conllu", b"# text = \xe9")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=name.split(".")[0]):
            read_treebank(tmp_path / name)
    with pytest.raises(InputError, match="no such file"):
        read_treebank(tmp_path / "none.conllu")


def test_bad_requests(tmp_path):
    treebank = read_treebank(written(tmp_path, GERMAN))
    for arguments, message in (
        ({"kinds": ("lemma",)}, "unknown kinds"),
        ({"least": 0.9, "most": 0.1}, "expected 0 < least"),
        ({"kinds": ("upos",), "least": 0.6, "most": 0.9}, "expected at least one"),
    ):
        with pytest.raises(InputError, match=message):
            treebank.presence(**arguments)
    with pytest.raises(InputError, match="sample of 0"):
        treebank.sample(0)
    with pytest.raises(InputError, match="none for fr; there are de"):
        read_treebanks(tmp_path, ["de", "fr"])
    with pytest.raises(InputError, match="no such folder"):
        read_treebanks(tmp_path / "none")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(InputError, match="no treebank"):
        read_treebanks(empty)


@pytest.fixture(scope="module")
def pud():
    if not PUD.is_dir():
        pytest.skip("needs shared/data/corpora (set INSCAPE_SHARED)")
    return read_treebanks(PUD, ["es", "ja"])


def test_pud_is_parallel_and_a_sample_stays_so(pud):
    assert pud["es"].ids == pud["ja"].ids
    assert len(pud["es"]) == 1000
    samples = [treebank.sample(100) for treebank in pud.values()]
    assert samples[0].ids == samples[1].ids
    assert len(samples[0]) == 100
    assert set(pud["es"].sample(50).ids) < set(samples[0].ids)


def test_presence_in_pud_equals_a_count_of_the_bare_lines(pud):
    blocks = gzip.decompress((PUD / "es.conllu.gz").read_bytes()).decode().strip().split("\n\n")
    words = [re.findall(r"^\d+\t.*$", block, re.MULTILINE) for block in blocks]
    tasks = pud["es"].presence(("feature", "upos"))
    assert len(tasks) > 25
    by_hand = {
        "Case=Acc": [any(re.search(r"\bCase=(\w+,)*Acc\b", line.split("\t")[5]) for line in block) for block in words],
        "upos=AUX": [any(line.split("\t")[3] == "AUX" for line in block) for block in words],
    }
    for name, expected in by_hand.items():
        assert tasks.values[:, tasks.names.index(name)].tolist() == expected
    share = tasks.values.mean(axis=0)
    assert np.all((share >= 0.1) & (share <= 0.9))
    # Japanese has hardly any features: parts of speech and relations give it tasks.
    assert len(pud["ja"].presence()) == 1
    assert len(pud["ja"].presence(("feature", "upos", "deprel"))) > 15
