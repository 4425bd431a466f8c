"""What the detokenization scores of a head cost: AUROC of every suffix over the whole vocabulary.

**Speed.** Tables in GPT-2 small's shape (50,257 tokens, heads of 64) of random numbers. `bigram_auroc` against the bare
matrix product of the same blocks (same rows, same dtype, into memory made beforehand), in one process, in alternation; a
share is the product's time over ours, the median of the pairs. ``product`` writes rows of just the vocabulary's length,
``padded product`` rows that begin where memory is aligned, as ours do: that alone can halve its time. Both in wall time, and
in the processor's time, which another job on the machine disturbs less. The counts are drawn: suffixes have a log-normal
number of prefixes, of median 3 and mean 16 (``small``: what a text of some million tokens gives), and of 300 and 1,600
(``large``: billions of them). ``--counts FILE`` takes those of a text (`Bigrams.save`) instead.

**Memory.** Peak resident memory of a process that scores one head, less what it held with tables and counts made.

    OMP_NUM_THREADS=1 python benchmarks/attention.py [--repeat 7] [--suffixes 4096] [--heads 1] [--device cpu] [--json FILE]
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from inscape.attention.bigrams import Bigrams
from inscape.attention.scores import ROWS, bigram_auroc

VOCAB, HEAD = 50_257, 64


def drawn(median: float, mean: float, suffixes: int, seed: int = 0) -> Bigrams:
    rng = np.random.default_rng(seed)
    sizes = np.exp(rng.normal(np.log(median), np.sqrt(2 * np.log(mean / median)), suffixes))
    sizes = sizes.astype(int).clip(1, VOCAB // 2)
    suffix = np.repeat(np.sort(rng.permutation(VOCAB)[:suffixes]), sizes)
    prefix = np.concatenate([np.sort(rng.permutation(VOCAB)[:size]) for size in sizes])
    count = rng.geometric(0.3, len(suffix))
    unigram = np.bincount(suffix, count, VOCAB).astype(np.int64)
    return Bigrams(suffix.astype(np.int32), prefix.astype(np.int32), count, unigram, 1, int(unigram.sum()), 0)


def part(bigrams: Bigrams, suffixes: int) -> Bigrams:
    """The counts of some suffixes, drawn evenly."""
    seen = bigrams.rows()[0]
    keep = np.isin(bigrams.suffix, np.random.default_rng(0).permutation(seen)[:suffixes])
    arrays = (bigrams.suffix[keep], bigrams.prefix[keep], bigrams.count[keep], bigrams.unigram)
    return Bigrams(*arrays, bigrams.documents, bigrams.tokens, bigrams.cuts)


def tables(vocab: int, heads: int, device: str) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Queries and keys of each head."""
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.randn(vocab, HEAD, generator=generator).to(device) for _ in range(2 * heads)]
    return list(zip(drawn[::2], drawn[1::2], strict=True))


def speed(bigrams: Bigrams, heads: int, repeat: int, device: str, rows: int) -> dict[str, Any]:
    vocab = len(bigrams.unigram)
    each_head = tables(vocab, heads, device)
    suffixes, _, sizes = bigrams.rows()
    chosen = torch.from_numpy(suffixes).to(device)
    plain = torch.empty(rows, vocab, device=device)
    padded = torch.empty(rows, -(-vocab // 16) * 16, device=device)[:, :vocab]

    def product(block: torch.Tensor) -> None:
        for queries, keys in each_head:
            for at in range(0, len(chosen), rows):
                some = chosen[at : at + rows]
                torch.matmul(queries[some], keys.T, out=block[: len(some)])

    def ours() -> None:
        for queries, keys in each_head:
            bigram_auroc(queries, keys, bigrams, rows=rows)

    calls = {
        "product": lambda: product(plain),
        "ours": ours,
        "padded product": lambda: product(padded),
    }
    wall: dict[str, list[float]] = {name: [] for name in calls}
    cpu: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(repeat + 1):
        for name, call in list(calls.items())[:: 1 if turn % 2 else -1]:
            start, start_cpu = time.perf_counter(), time.process_time()
            call()
            if device != "cpu":
                torch.cuda.synchronize()
            if turn:  # (the first is for warming up)
                wall[name].append(time.perf_counter() - start)
                cpu[name].append(time.process_time() - start_cpu)
    scores = len(chosen) * vocab * heads
    result: dict[str, Any] = {
        "suffixes": len(chosen),
        "heads": heads,
        "positives: mean and median": [float(sizes.mean()), float(np.median(sizes))],
        "block": [rows, HEAD, vocab],
    }
    for label, times in (("wall", wall), ("cpu", cpu)):
        for name in ("product", "padded product"):
            each = [a / b for a, b in zip(times[name], times["ours"], strict=True)]
            result[f"{label}: share of the {name}"] = {"median": statistics.median(each), "each": each}
        result[f"{label}: ns per score"] = {name: statistics.median(t) / scores * 1e9 for name, t in times.items()}
    return result


def memory(kind: str) -> float:
    """MiB that scoring takes, in a process of its own."""
    command = [sys.executable, __file__, "--child", kind]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def child(kind: str) -> None:
    bigrams = drawn(*KINDS[kind], 1024)
    [(queries, keys)] = tables(VOCAB, 1, "cpu")
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
    before = peak()
    bigram_auroc(queries, keys, bigrams)
    print(peak() - before)


def peak() -> float:
    """Most resident memory, MiB (Linux)."""
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024


KINDS = {"small": (3.0, 16.0), "large": (300.0, 1600.0)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=7, help="timed pairs (default 7)")
    parser.add_argument("--suffixes", type=int, default=4096, help="suffixes that are scored (default 4096)")
    parser.add_argument("--heads", type=int, default=1, help="heads that are scored, one after another (default 1)")
    parser.add_argument("--rows", type=int, default=ROWS, help=f"suffixes in a block (default {ROWS})")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default 1)")
    parser.add_argument("--counts", type=Path, help="bigrams of a text instead of drawn ones")
    parser.add_argument("--json", type=Path, help="write the numbers there as well")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.child:
        child(args.child)
        return
    if args.counts is not None:
        kinds = {"counts": part(Bigrams.load(args.counts), args.suffixes)}
    else:
        kinds = {name: drawn(*sizes, args.suffixes) for name, sizes in KINDS.items()}
    result: dict[str, Any] = {
        name: speed(b, args.heads, args.repeat, args.device, args.rows) for name, b in kinds.items()
    }
    if args.device == "cpu":
        result["memory (MiB)"] = {name: memory(name) for name in KINDS}
    print(json.dumps(result, indent=1))
    if args.json is not None:
        record = {"threads": args.threads, "torch": torch.__version__, **result}
        temporary = args.json.with_name(args.json.name + ".part")
        temporary.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        os.replace(temporary, args.json)


if __name__ == "__main__":
    main()
