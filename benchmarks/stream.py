"""What capture to disk costs: tokens per second, memory, and reading back.

**Speed.** GPT-2 small's shape with random weights, texts of 64 to 128 tokens, ``resid_post`` of layer 5 at every token in
bfloat16. ``capture_to`` (tokenising, offsets, hashing, checking, writing, flushing, checksums: all of it) against the bare
backbone cut off after that layer, in one process, in alternation; medians of the pairs' ratios of tokens per second::

    same batches     over the backbone on the very batches that capture_to makes, tokenised and padded beforehand
    corpus order     over the backbone on batches in the order of the texts, tokenised and padded beforehand

Both in wall time, and in the processor's time of the whole process, which another job on the machine disturbs less (and
which counts the writing thread in full, though it runs beside).

**Memory.** Peak resident memory of a process that streams N tokens and of one that streams 4 N through a small model
(4 layers × 256), several shards each; less that of one that streams a single batch.

**Reading.** Rows per second of shuffled batches of 4,096 from the page cache, and of the first eight batches after the cache
was emptied: most of their rows come from the disk, as those of a store larger than the memory always do.

    python benchmarks/stream.py [--repeat 9] [--prompts 64] [--only speed memory reading] [--json FILE]
"""

import argparse
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from tokenizers import Tokenizer, models, pre_tokenizers

import inscape
from capture import build, truncated
from inscape.models.store import ActivationStore
from inscape.models.stream import capture_to
from inscape.models.tokens import batches, encode

LAYER, BATCH = 5, 16


def words(count: int) -> Any:
    """A tokenizer whose words are ``t0 t1 …``."""
    tokenizer = Tokenizer(models.WordLevel({f"t{i}": i for i in range(count)}, unk_token="t0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return hf.PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def texts(count: int, vocab: int, low: int = 64, high: int = 128) -> Iterator[str]:
    draw = random.Random(0)
    for _ in range(count):
        yield " ".join(f"t{draw.randrange(vocab)}" for _ in range(draw.randint(low, high)))


def speed(repeat: int, count: int) -> dict[str, Any]:
    model = build("gpt2-small")
    lm = inscape.load(model, words(model.config.vocab_size))
    small = truncated(lm, "gpt2-small", LAYER + 1)
    prompts = list(texts(count, model.config.vocab_size))
    encoded = encode(lm.tokenizer, prompts)
    n = sum(len(one.ids) for one in encoded)

    def padded(cut: int) -> list[Any]:
        """Batches of consecutive stretches of ``cut`` prompts, each stretch sorted by length."""
        return [
            batch
            for at in range(0, count, cut)
            for batch in batches(encoded[at : at + cut], batch_size=BATCH, pad_id=0, device="cpu")
        ]

    def bare(todo: list[Any]) -> None:
        with torch.no_grad():
            for batch in todo:
                small(input_ids=batch.ids, attention_mask=batch.mask, use_cache=False)

    same, corpus = padded(16 * BATCH), padded(BATCH)
    with tempfile.TemporaryDirectory() as folder:
        number = iter(range(10**6))

        def stream() -> None:
            capture_to(lm, iter(prompts), f"{folder}/{next(number)}", layers=LAYER, batch_size=BATCH, shard_tokens=8192)

        calls: dict[str, Callable[[], None]] = {
            "same batches": lambda: bare(same),
            "capture_to": stream,
            "corpus order": lambda: bare(corpus),
        }
        bare(same[:2])
        wall: dict[str, list[float]] = {name: [] for name in calls}
        cpu: dict[str, list[float]] = {name: [] for name in calls}
        for turn in range(repeat):
            # (Back and forth, so that a load that grows or goes falls on all of them alike.)
            for name, call in list(calls.items())[:: 1 if turn % 2 else -1]:
                start, start_cpu = time.perf_counter(), time.process_time()
                call()
                wall[name].append(time.perf_counter() - start)
                cpu[name].append(time.process_time() - start_cpu)
            print(turn, {name: round(n / t[-1]) for name, t in wall.items()}, file=sys.stderr, flush=True)
    result: dict[str, Any] = {"tokens": n}
    for label, times in (("wall", wall), ("cpu", cpu)):
        result[f"tokens per {label} second"] = {name: n / statistics.median(t) for name, t in times.items()}
        for name in ("same batches", "corpus order"):
            each = [bare / ours for bare, ours in zip(times[name], times["capture_to"], strict=True)]
            result[f"{label}: over {name}"] = {"median": statistics.median(each), "each": each}
    return result


def small_lm() -> inscape.LM:
    model = build("gpt2")
    return inscape.load(model, words(model.config.vocab_size))


def stream_small(folder: str, count: int) -> None:
    lm = small_lm()
    capture_to(lm, texts(count, lm.config.vocab_size), folder, layers=2, batch_size=16, shard_tokens=8192)


def memory(count: int) -> dict[str, Any]:
    peaks = {}
    for prompts in (16, count, 4 * count):
        with tempfile.TemporaryDirectory() as folder:
            found = subprocess.run(
                [sys.executable, __file__, "--child", folder, str(prompts)], capture_output=True, text=True, check=True
            )
        peaks[prompts] = float(found.stdout)
    low = peaks[16]
    beyond = {f"{prompts} prompts": peaks[prompts] - low for prompts in (count, 4 * count)}
    return {"one batch (MiB)": low, "beyond it (MiB)": beyond}


def reading(count: int) -> dict[str, Any]:
    """A store of ``count`` × about 96 rows of 768 bfloat16 numbers (written with the embeddings of GPT-2's shape)."""
    model = build("gpt2-small")
    lm = inscape.load(model, words(model.config.vocab_size), check=False)
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        store = capture_to(lm, texts(count, model.config.vocab_size), folder, "embed", shard_tokens=65536)
        start = time.perf_counter()
        store.verify()
        size = sum(file.stat().st_size for file in Path(folder).iterdir())
        result |= {
            "rows": len(store),
            "MiB": size / 2**20,
            "verify MiB/s": size / 2**20 / (time.perf_counter() - start),
        }
        for cold in (False, True):
            del store  # (pages that are mapped are not dropped)
            for file in Path(folder).glob("*.safetensors") if cold else ():
                descriptor = os.open(file, os.O_RDONLY)
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
                os.close(descriptor)
            store = ActivationStore(folder)
            start, rows = time.perf_counter(), 0
            for batch in store.batches(4096):
                rows += len(batch)
                if cold and rows >= 32768:  # (what a store that is larger than the memory sees all the time)
                    break
            result[f"{'disk' if cold else 'page cache'}: rows/s"] = rows / (time.perf_counter() - start)
            del batch  # (it holds the store)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=9, help="timed pairs (default 9)")
    parser.add_argument("--prompts", type=int, default=64, help="prompts per timed pass (default 64)")
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default 1)")
    parser.add_argument(
        "--only", nargs="+", choices=["speed", "memory", "reading"], default=["speed", "memory", "reading"]
    )
    parser.add_argument("--json", type=Path, help="write the numbers there as well")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.child:
        stream_small(args.child[0], int(args.child[1]))
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
        return
    result: dict[str, Any] = {}
    if "speed" in args.only:
        result["speed"] = speed(args.repeat, args.prompts)
    if "memory" in args.only:
        result["memory"] = memory(2000)
    if "reading" in args.only:
        result["reading"] = reading(4000)
    print(json.dumps(result, indent=1))
    if args.json is not None:
        record = {"threads": args.threads, "torch": torch.__version__, "transformers": hf.__version__, **result}
        temporary = args.json.with_name(args.json.name + ".part")
        temporary.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        os.replace(temporary, args.json)


if __name__ == "__main__":
    main()
