"""What building a corpus costs: MB of text per second and core, beside a plain read of the same files.

**Text.** The corpora pack where ``--corpora`` (or ``INSCAPE_SHARED``) names one, else a pack of drawn words; some
``--megabytes`` of it, languages in the pack's own shares. MB are 10^6 bytes of UTF-8 text.

**Measured.** In one process, in alternation, the median of the repeats in wall time and in the processor's time: the read
(unpack, decode, parse JSON lines), the build with all steps, by pass; and encoding what is left with a byte-level BPE
trained on it. ``--processes N`` builds once more with N.

**Memory.** Peak resident memory of a process that builds a half and one that builds all of the text, less that of the read.

    OMP_NUM_THREADS=1 python benchmarks/corpus.py [--corpora FOLDER] [--megabytes 8] [--repeat 3] [--processes 2]
                                                  [--json FILE]
"""

import argparse
import gzip
import json
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from inscape.data.corpus import Corpus, CorpusConfig, build_corpus, encode_corpus, read_rows, shared_sources


def drawn_pack(folder: Path, megabytes: float) -> Path:
    """A pack of one source in one language, of words drawn by Zipf's law."""
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghijklmnoprstuvz", k=draw.randint(2, 9))) for _ in range(20_000)]
    weights = [1 / (i + 1) for i in range(len(words))]
    (folder / "pretrain").mkdir(parents=True)
    size = number = 0
    with gzip.open(folder / "pretrain" / "sw.jsonl.gz", "wt") as stream:
        while size < megabytes * 1e6:
            text = "\n".join(" ".join(draw.choices(words, weights, k=60)) for _ in range(8))
            stream.write(json.dumps({"id": str(number), "lang": "sw", "source": "udhr", "text": text}) + "\n")
            size, number = size + len(text), number + 1
    return folder


def part_of(pack: Path, megabytes: float, folder: Path) -> Path:
    """About so many MB of the pack, every n-th document of each file."""
    files = sorted((pack / "pretrain").glob("*.jsonl.gz"))
    total = sum(len(document.text.encode()) for document in read_rows(files))
    every = max(1, round(total / (megabytes * 1e6)))
    (folder / "pretrain").mkdir(parents=True)
    for file in files:
        with gzip.open(file, "rt", encoding="utf-8") as lines, gzip.open(folder / "pretrain" / file.name, "wt") as out:
            out.writelines(line for i, line in enumerate(lines) if i % every == 0)
    return folder


def timed(work: Callable[[], Any]) -> tuple[float, float, Any]:
    wall, own = time.perf_counter(), time.process_time()
    result = work()
    return time.perf_counter() - wall, time.process_time() - own, result


def read(pack: Path) -> int:
    return sum(len(document.text.encode()) for document in read_rows(sorted((pack / "pretrain").glob("*.jsonl.gz"))))


def config(pack: Path) -> CorpusConfig:
    return CorpusConfig(sources=shared_sources(pack, code=0))


def peak(what: str, pack: Path) -> float:
    """Peak resident MB of a fresh process that reads or builds the pack."""
    command = [sys.executable, __file__, "--peak", what, "--corpora", str(pack)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])


def measure(pack: Path, repeat: int, processes: int, scratch: Path) -> dict[str, Any]:
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    size = read(pack) / 1e6
    times: dict[str, list[tuple[float, float]]] = {}
    passes: dict[str, list[float]] = {}
    tokenizer = None
    for turn in range(repeat):
        out = scratch / f"corpus{turn}"
        wall, own, _ = timed(lambda: read(pack))
        times.setdefault("read", []).append((wall, own))
        wall, own, record = timed(partial(build_corpus, config(pack), out, processes=1))
        times.setdefault("build", []).append((wall, own))
        for name, seconds in record["seconds"].items():
            passes.setdefault(name, []).append(seconds)
        corpus = Corpus.open(out)
        if tokenizer is None:
            backend = Tokenizer(models.BPE())
            backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
            trainer = trainers.BpeTrainer(vocab_size=8000, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False)
            sample = (document.text for i, document in enumerate(corpus.documents()) if i % 8 == 0)
            backend.train_from_iterator(sample, trainer)
            tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")
        encode = partial(encode_corpus, corpus, tokenizer, scratch / f"shards{turn}", processes=1)
        wall, own, shards = timed(encode)
        times.setdefault("encode", []).append((wall, own))
    kept = sum(sum(corpus.bytes_by_language(split).values()) for split in ("train", "validation")) / 1e6
    result: dict[str, Any] = {"megabytes": size, "kept": kept, "tokens": shards.n_tokens}
    for name, found in times.items():
        amount = kept if name == "encode" else size
        result[name] = {
            "mb_per_s": amount / statistics.median(wall for wall, _ in found),
            "mb_per_cpu_s": amount / statistics.median(own for _, own in found),
        }
    result["passes_s"] = {name: statistics.median(found) for name, found in passes.items()}
    if processes > 1:
        wall, _, _ = timed(lambda: build_corpus(config(pack), scratch / "several", processes=processes))
        result["several"] = {
            "processes": processes,
            "mb_per_s": size / wall,
            "mb_per_s_and_process": size / wall / processes,
        }
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shared = os.environ.get("INSCAPE_SHARED")
    parser.add_argument("--corpora", type=Path, default=Path(shared, "data", "corpora") if shared else None)
    parser.add_argument("--megabytes", type=float, default=8)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--peak", choices=["read", "build"], help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.peak:
        with tempfile.TemporaryDirectory() as folder:
            if asked.peak == "read":
                read(asked.corpora)
            else:
                build_corpus(config(asked.corpora), folder, processes=1)
        # (Not getrusage: its maximum is inherited from the process that started this one.)
        status = Path("/proc/self/status").read_text()
        print(int(re.search(r"VmHWM:\s+(\d+)", status)[1]) / 1024)  # type: ignore[index]
        return
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        if asked.corpora is None:
            pack = drawn_pack(scratch / "pack", asked.megabytes)
            half = drawn_pack(scratch / "half", asked.megabytes / 2)
        else:
            pack = part_of(asked.corpora, asked.megabytes, scratch / "pack")
            half = part_of(asked.corpora, asked.megabytes / 2, scratch / "half")
        result = measure(pack, asked.repeat, asked.processes, scratch)
        base = peak("read", pack)
        result["memory_mb"] = {"half": peak("build", half) - base, "all": peak("build", pack) - base}
    print(f"{result['megabytes']:.1f} MB read, {result['kept']:.1f} kept, {result['tokens']:,} tokens")
    for name in ("read", "build", "encode"):
        row = result[name]
        print(f"{name:8} {row['mb_per_s']:7.2f} MB/s   {row['mb_per_cpu_s']:7.2f} MB per second of the processor")
    print("passes  ", ", ".join(f"{name} {seconds:.1f} s" for name, seconds in result["passes_s"].items()))
    if "several" in result:
        print(f"{asked.processes} processes: {result['several']['mb_per_s']:.2f} MB/s")
    print(f"memory   half {result['memory_mb']['half']:.0f} MB, all {result['memory_mb']['all']:.0f} MB above the read")
    if asked.json:
        asked.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
