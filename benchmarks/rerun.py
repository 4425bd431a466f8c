"""What a sweep costs with ``rerun``, by hand and with other libraries: ratios, beside the floor in FLOPs.

GPT-2 small's shape, random weights (the blocks' matrices tripled, so that an edit shows), 16 prompts of 64 random tokens. A
random vector is added to ``resid_post``; what is read is logit(one token) - logit(another) at the last token. Every way
reduces the logits to it as they come, so that none has to store them. The sweeps (``--rows``)::

    last           12 layers × the last token × 10 strengths
    subject        12 layers × the token in the middle (32 of 64) × 10 strengths
    both           12 layers × {last, subject} × 10 strengths
    subject-once   12 layers × the token in the middle × 1 strength

``rerun`` is timed on the whole sweep. The other ways (:mod:`peers`) run a forward pass for each cell; they are timed on a
*sample* of cells, one just before and one just after the sweep of ``rerun``, and scaled to all cells (plus what a way runs
once for a sweep). The two cells are of layers ``l`` and ``L - 1 - l``, so that a way whose cost is linear in the layer is
judged fairly. Two forward passes without edits, with all logits and with the last token's, are timed beside each. All in
one process, in alternation; a number is the median over ``--repeat`` such rounds::

    faster than X    seconds of X / seconds of rerun
    cost             seconds / seconds of a forward pass with all logits ("plain forwards")
    floor            FLOPs that must run (:mod:`floor`) / FLOPs of a forward pass with all logits
    naive / floor    FLOPs of a forward pass with all logits for every cell / FLOPs that must run
    rerun / floor    seconds of rerun / (FLOPs that must run / rate), the rate being that of a forward pass with the last
                     token's logits in the same round

Before it is timed, each sweep is run once with its logits kept. On the sampled cells they are compared with those of
"hooks", as are those of every other way: max |difference| / max |logit|. More than 1e-4 ends the run: then it's not the same
computation. "Moved" is the same quotient for the edited and the unedited run, to judge the difference by.

    python benchmarks/rerun.py [--repeat 5] [--rows last both] [--threads 1] [--device cuda] [--json FILE] [--quick]
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from torch import Tensor

import inscape
from floor import Flops
from peers import Way, all_ways

TOLERANCE = 1e-4


@dataclass(frozen=True)
class Shape:
    layers: int
    width: int
    heads: int
    vocab: int
    prompts: int
    tokens: int
    strengths: int


FULL = Shape(layers=12, width=768, heads=12, vocab=50257, prompts=16, tokens=64, strengths=10)
QUICK = Shape(layers=3, width=64, heads=4, vocab=512, prompts=4, tokens=16, strengths=3)

ROWS: dict[str, tuple[tuple[str, ...], bool]] = {
    "last": (("last",), True),
    "subject": (("subject",), True),
    "both": (("last", "subject"), True),
    "subject-once": (("subject",), False),
}
"""By name: the tokens that are edited, and whether at all strengths or at one."""


class Bench:
    """The model, the prompts, and all ways to run a cell."""

    def __init__(self, shape: Shape, device: str) -> None:
        self.shape = shape
        torch.manual_seed(0)
        config = hf.GPT2Config(
            vocab_size=shape.vocab, n_embd=shape.width, n_layer=shape.layers, n_head=shape.heads,
            n_positions=max(shape.tokens, 64), bos_token_id=0, eos_token_id=None,
        )  # fmt: skip
        self.model = hf.AutoModelForCausalLM.from_config(config).eval().to(device)
        with torch.no_grad():
            for weight in self.model.transformer.h.parameters():
                if weight.ndim == 2:
                    weight *= 3
        self.ids = torch.randint(2, shape.vocab, (shape.prompts, shape.tokens)).to(device)
        self.vector = torch.randn(shape.width).to(device)
        self.tokens = {"last": shape.tokens - 1, "subject": shape.tokens // 2}
        self.correct, self.wrong = torch.randint(2, shape.vocab, (2, shape.prompts)).to(device)
        self.lm = inscape.load(self.model)
        self.flops = Flops.of(self.model, self.ids)
        if not self.flops.agrees(self.model, self.ids):
            raise SystemExit("the count of FLOPs is not that of torch.utils.flop_counter")
        self.ways = all_ways(self.model, self.ids)

    def plain(self, **more: Any) -> Tensor:
        with torch.no_grad():
            logits: Tensor = self.model(input_ids=self.ids, use_cache=False, **more).logits[:, -1]
        return logits

    def sweep(self, positions: tuple[str, ...], strengths: list[float], *, logits: bool = False) -> Any:
        grid = inscape.Grid(
            "resid_post", kind="add", vector=self.vector, strengths=strengths,
            tokens={name: [[self.tokens[name]]] * self.shape.prompts for name in positions},
        )  # fmt: skip
        metric = None if logits else inscape.LogitDifference(self.correct.tolist(), self.wrong.tolist())
        return self.lm.rerun(self.ids.tolist(), grid, metric)

    def cell(self, way: Way, layer: int, position: str, strength: float) -> tuple[float, Tensor]:
        """Seconds, and the logits, whose reduction to a logit difference is part of what is timed."""
        kept: list[Tensor] = []

        def call() -> None:
            logits_PV = way.cell(layer, self.tokens[position], strength * self.vector)
            chosen = [logits_PV.gather(1, ids[:, None])[:, 0] for ids in (self.correct, self.wrong)]
            (chosen[0] - chosen[1]).cpu()
            kept.append(logits_PV)

        return self.seconds(call), kept[0].float().cpu()

    def seconds(self, call: Callable[[], Any]) -> float:
        self._wait()
        start = time.perf_counter()
        call()
        self._wait()
        return time.perf_counter() - start

    def _wait(self) -> None:
        if self.ids.is_cuda:
            torch.cuda.synchronize()


def measure(bench: Bench, row: str, repeat: int) -> dict[str, Any]:
    """One row: see the module's docstring."""
    shape, flops = bench.shape, bench.flops
    positions, many = ROWS[row]
    strengths = [0.5 * (n + 1) for n in range(shape.strengths if many else 1)]
    cells = [(layer, bench.tokens[p]) for layer in range(shape.layers) for p in positions for _ in strengths]
    found = bench.sweep(positions, strengths, logits=True)
    unedited = bench.plain(logits_to_keep=1).float().cpu()
    difference = {name: 0.0 for name in ("rerun", *(way.name for way in bench.ways))}
    moved = 0.0
    rounds: list[dict[str, float]] = []
    for number in range(repeat):
        seconds = dict.fromkeys(("forward", "forward, last logit", *difference), 0.0)
        position, strength = number % len(positions), number * len(strengths) // repeat
        low = number % shape.layers
        for before, layer in ((True, low), (False, shape.layers - 1 - low)):
            seconds["forward"] += bench.seconds(bench.plain) / 2
            seconds["forward, last logit"] += bench.seconds(lambda: bench.plain(logits_to_keep=1)) / 2
            exact = torch.empty(0)
            for way in bench.ways:
                if way.base is not None and before:
                    seconds[way.name] += bench.seconds(way.base)
                one, logits = bench.cell(way, layer, positions[position], strengths[strength])
                seconds[way.name] += one * len(cells) / 2
                if way.name == "hooks":
                    exact = logits
                    ours = found.values.isel(layer=layer, position=position, strength=strength)
                    logits_of_rerun = torch.from_numpy(ours.transpose("prompt", "vocab").values)
                    difference["rerun"] = max(difference["rerun"], relative(logits_of_rerun, exact))
                    moved = max(moved, relative(unedited, exact))
                else:
                    difference[way.name] = max(difference[way.name], relative(logits, exact))
            if before:
                seconds["rerun"] = bench.seconds(lambda: bench.sweep(positions, strengths))
        rounds.append(seconds)
    for name, value in difference.items():
        if not value <= TOLERANCE:
            raise SystemExit(f"{row}: {name} is not the same computation: |difference| / |logit| is {value:.1e}")

    def median(name: str, of: str | None = None) -> float:
        return statistics.median(one[name] / (one[of] if of is not None else 1) for one in rounds)

    must, naive = flops.floor(cells), flops.forward(shape.tokens)
    return {
        "row": row,
        "runs": len(cells),
        "seconds": {name: median(name) for name in rounds[0]},
        "faster": {way.name: median(way.name, of="rerun") for way in bench.ways},
        "cost": {name: median(name, of="forward") for name in difference},
        "floor": must / naive,
        "least": flops.least(cells) / naive,
        "naive_over_floor": len(cells) * naive / must,
        "rerun_over_floor": median("rerun", of="forward, last logit") * flops.forward() / must,
        "difference": difference,
        "moved": moved,
        "share": found.share,
        "in_full": found.naive,
        "rounds": rounds,
    }


def relative(found: Tensor, exact: Tensor) -> float:
    """max |difference| / max |logit|; NaN where there is one."""
    return float((found - exact).abs().max() / exact.abs().max())


def tables(rows: list[dict[str, Any]], in_seconds: bool) -> str:
    """Two tables in Markdown; costs in plain forwards, or in seconds."""
    ways = list(rows[0]["faster"])
    first = [
        ["sweep", "runs", *(f"faster than {way}" for way in ways), "naive / floor", "rerun / floor", "tokens × blocks run",
         "difference", "moved"]
    ]  # fmt: skip
    second = [["cost in seconds" if in_seconds else "cost in plain forwards", "floor", "least", "rerun", *ways]]
    for row in rows:
        first.append(
            [row["row"], str(row["runs"]), *(f"{row['faster'][way]:.1f} ×" for way in ways),
             f"{row['naive_over_floor']:.1f} ×", f"{row['rerun_over_floor']:.2f} ×", f"{row['share']:.3f}",
             f"{row['difference']['rerun']:.1e}", f"{row['moved']:.1e}"]
        )  # fmt: skip
        unit = row["seconds"]["forward"] if in_seconds else 1.0
        costs = row["seconds"] if in_seconds else row["cost"]
        second.append(
            [row["row"], *(f"{row[x] * unit:.3g}" for x in ("floor", "least")), f"{costs['rerun']:.3g}",
             *(f"{costs[way]:.3g}" for way in ways)]
        )  # fmt: skip
    return "\n\n".join(_table(lines) for lines in (first, second))


def _table(lines: list[list[str]]) -> str:
    return "\n".join(
        f"| {' | '.join(line)} |" for line in (lines[0], ["---", *["---:"] * (len(lines[0]) - 1)], *lines[1:])
    )


def _versions() -> dict[str, str]:
    found = {}
    for name in ("torch", "transformers", "transformer-lens", "nnsight"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            print(f"{name} is not installed: not measured (make bench-peers)", file=sys.stderr)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--repeat", type=int, default=5, help="timed rounds per row (default 5; at least 5 for a report)"
    )
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default 1)")
    parser.add_argument("--device", default="cpu", help="cpu (ratios) or cuda (seconds)")
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS), metavar="NAME")
    parser.add_argument("--quick", action="store_true", help="a tiny model: shows that it runs, not what it costs")
    parser.add_argument("--json", type=Path, help="write the rows there as well, with every round's seconds")
    args = parser.parse_args()
    if args.repeat < 1:
        parser.error("--repeat: expected 1 or more")
    torch.set_num_threads(args.threads)
    versions = _versions()
    bench = Bench(QUICK if args.quick else FULL, args.device)
    for way in bench.ways:  # what a first call sets up is not the cost of a cell
        if way.base is not None:
            way.base()
        bench.cell(way, 0, "last", 1.0)
    rows = []
    for name in args.rows:
        start = time.perf_counter()
        rows.append(measure(bench, name, args.repeat))
        seconds = rows[-1]["seconds"]
        print(f"{name}: {time.perf_counter() - start:.0f} s; median seconds {seconds}", file=sys.stderr, flush=True)
        if rows[-1]["in_full"] is not None:
            print(f"{name}: rerun ran every cell in full: {rows[-1]['in_full']}", file=sys.stderr, flush=True)
    print(tables(rows, in_seconds=args.device != "cpu"))
    print(f"\nAll but rerun: a sample of {2 * args.repeat} cells, scaled to the sweep.")
    if args.json is not None:
        record = {
            "repeat": args.repeat, "threads": args.threads, "device": args.device, "versions": versions,
            "cpus": os.cpu_count(), "shape": vars(bench.shape), "tolerance": TOLERANCE, "rows": rows,
        }  # fmt: skip
        temporary = args.json.with_name(args.json.name + ".part")
        temporary.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        os.replace(temporary, args.json)


if __name__ == "__main__":
    main()
