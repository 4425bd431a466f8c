"""What capture costs: ratios to a plain forward pass, a row per family.

For each family a model of one shape, random weights. Timed in one process, in alternation, so that whatever else the
machine does falls on all of them alike; a row is the median over ``--repeat`` pairs::

    all layers      resid_post of every layer at the last token  /  plain forward (no logits but the last token's)
    full forward    the same capture                             /  plain forward with logits at every token
    half, exact     resid_post up to layer L/2                   /  the backbone truncated after that layer
    half, full      resid_post up to layer L/2                   /  plain forward (no logits but the last token's)

The truncated backbone has no final norm and no head: it is the least that any method can run. Peak memory is what the
allocator holds at most beyond the weights while a call runs (torch's own profiler of allocations, so that it is exact
and does not depend on what the process had before), as a ratio of the same pairs.

    python benchmarks/capture.py [--repeat 9] [--families gpt2 llama] [--json FILE]
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler's own chatter on stderr

import torch
import transformers as hf
from torch import nn

import inscape

LAYERS, WIDTH, HEADS, VOCAB, PROMPTS, TOKENS = 4, 256, 8, 8192, 16, 64
_NO_IDS = {"bos_token_id": 0, "eos_token_id": None, "pad_token_id": None}
_LLAMA_LIKE = {
    "vocab_size": VOCAB, "hidden_size": WIDTH, "intermediate_size": 4 * WIDTH, "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS, "max_position_embeddings": 256,
}  # fmt: skip
_GPT2_LIKE = {"vocab_size": VOCAB, "n_embd": WIDTH, "n_layer": LAYERS, "n_head": HEADS, "n_positions": 256}

SHAPES: dict[str, tuple[type, dict[str, Any]]] = {
    "gpt2": (hf.GPT2Config, _GPT2_LIKE),
    "gpt_neo": (
        hf.GPTNeoConfig,
        {
            "vocab_size": VOCAB, "hidden_size": WIDTH, "num_layers": LAYERS, "num_heads": HEADS,
            "attention_types": [[["global", "local"], LAYERS // 2]], "max_position_embeddings": 256,
        },
    ),
    "gpt_neox": (hf.GPTNeoXConfig, _LLAMA_LIKE),
    "gptj": (hf.GPTJConfig, {**_GPT2_LIKE, "rotary_dim": 16}),
    "opt": (
        hf.OPTConfig,
        {**_LLAMA_LIKE, "ffn_dim": 4 * WIDTH, "word_embed_proj_dim": WIDTH, "intermediate_size": None},
    ),
    "bloom": (hf.BloomConfig, {"vocab_size": VOCAB, "hidden_size": WIDTH, "n_layer": LAYERS, "n_head": HEADS}),
    "llama": (hf.LlamaConfig, {**_LLAMA_LIKE, "num_key_value_heads": 4}),
    "mistral": (hf.MistralConfig, {**_LLAMA_LIKE, "num_key_value_heads": 4, "sliding_window": 32}),
    "qwen2": (hf.Qwen2Config, {**_LLAMA_LIKE, "num_key_value_heads": 4}),
    "qwen3": (hf.Qwen3Config, {**_LLAMA_LIKE, "num_key_value_heads": 4, "head_dim": 32}),
    "gemma2": (hf.Gemma2Config, {**_LLAMA_LIKE, "num_key_value_heads": 4, "head_dim": 32, "sliding_window": 32}),
    "gemma3_text": (hf.Gemma3TextConfig, {**_LLAMA_LIKE, "num_key_value_heads": 4, "head_dim": 32, "sliding_window": 32}),
    "phi": (hf.PhiConfig, _LLAMA_LIKE),
    "phi3": (hf.Phi3Config, _LLAMA_LIKE),
    "olmo2": (hf.Olmo2Config, _LLAMA_LIKE),
    "falcon": (
        hf.FalconConfig,
        {"vocab_size": VOCAB, "hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS},
    ),
    "mpt": (
        hf.MptConfig,
        {"vocab_size": VOCAB, "d_model": WIDTH, "n_layers": LAYERS, "n_heads": HEADS, "max_seq_len": 256},
    ),
    "stablelm": (hf.StableLmConfig, {**_LLAMA_LIKE, "num_key_value_heads": HEADS}),
    "gpt2-small": (hf.GPT2Config, {"vocab_size": 50257, "n_embd": 768, "n_layer": 12, "n_head": 12, "n_positions": 1024}),
}  # fmt: skip


def build(name: str) -> Any:
    kind, shape = SHAPES[name]
    torch.manual_seed(0)
    return hf.AutoModelForCausalLM.from_config(
        kind(**{**_NO_IDS, **{k: v for k, v in shape.items() if v is not None}})
    ).eval()


def truncated(lm: inscape.LM, name: str, layers: int) -> nn.Module:
    """The backbone of the same weights up to ``layers`` blocks, without final norm and head."""
    model = build(name)
    model.load_state_dict(lm.model.state_dict())
    backbone = model.base_model
    inner = getattr(backbone, "decoder", backbone)
    path = next(n for n, m in lm.model.named_modules() if m is not None and list(m.children()) == list(lm.sites.blocks))
    parent, last = path.rpartition(".")[0], path.rpartition(".")[2]
    owner = model.get_submodule(parent)
    setattr(owner, last, getattr(owner, last)[:layers])
    if hasattr(model.config, "num_hidden_layers"):
        model.config.num_hidden_layers = layers
    for norm in ("ln_f", "norm", "final_layer_norm", "final_layernorm", "norm_f"):
        if isinstance(getattr(inner, norm, None), nn.Module):
            setattr(inner, norm, nn.Identity())
    return backbone


def seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def peak_bytes(call: Callable[[], Any]) -> int:
    """Most bytes held at once by tensors allocated during ``call``, from the allocator's own record."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        call()
    held = most = 0
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most


def measure(name: str, repeat: int) -> dict[str, Any]:
    model = build(name)
    lm = inscape.load(model)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(2, lm.config.vocab_size, (PROMPTS, TOKENS), generator=generator)
    prompts, mask, half = ids.tolist(), torch.ones_like(ids), lm.n_layers // 2
    small = truncated(lm, name, half)
    keep: dict[str, Any] = {"logits_to_keep": 1}

    def plain(module: nn.Module, **more: Any) -> Any:
        with torch.no_grad():
            return module(input_ids=ids, attention_mask=mask, use_cache=False, **more)

    calls: dict[str, Callable[[], Any]] = {
        "forward": lambda: plain(model, **keep),
        "forward, all logits": lambda: plain(model),
        "truncated": lambda: plain(small),
        "capture all": lambda: lm.capture(prompts, "resid_post"),
        "capture half": lambda: lm.capture(prompts, "resid_post", list(range(half))),
    }
    expected = plain(small).last_hidden_state[:, -1]
    found = lm.capture(prompts, "resid_post", half - 1).at()
    if not torch.allclose(found, expected, rtol=1e-4, atol=1e-5):
        raise SystemExit(f"{name}: the truncated model is not the same computation")
    for call in calls.values():
        call()
    times: dict[str, list[float]] = {key: [] for key in calls}
    for _ in range(repeat):
        for key, call in calls.items():
            times[key].append(seconds(call))
    peaks = {key: peak_bytes(call) for key, call in calls.items()}
    pairs = {
        "all layers": ("capture all", "forward"),
        "full forward": ("capture all", "forward, all logits"),
        "half, exact": ("capture half", "truncated"),
        "half, full": ("capture half", "forward"),
    }
    return {
        "family": name,
        "forward_ms": 1e3 * statistics.median(times["forward"]),
        "time": {
            label: statistics.median(a / b for a, b in zip(times[ours], times[theirs], strict=True))
            for label, (ours, theirs) in pairs.items()
        },
        "memory": {label: peaks[ours] / peaks[theirs] for label, (ours, theirs) in pairs.items()},
    }


def table(rows: list[dict[str, Any]]) -> str:
    labels = list(rows[0]["time"])
    lines = [
        "| family | forward (ms) | "
        + " | ".join([*(f"{x}: time" for x in labels), *(f"{x}: memory" for x in labels)])
        + " |",
        "|---|" + "---:|" * (1 + 2 * len(labels)),
    ]
    for row in rows:
        cells = [f"{row[kind][label]:.2f}" for kind in ("time", "memory") for label in labels]
        lines.append(f"| {row['family']} | {row['forward_ms']:.1f} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--repeat", type=int, default=9, help="timed pairs per row (default 9; at least 5 for a report)"
    )
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default 1)")
    parser.add_argument("--families", nargs="+", choices=list(SHAPES), default=list(SHAPES), metavar="NAME")
    parser.add_argument("--json", type=Path, help="write the rows there as well")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows = []
    for name in args.families:
        rows.append(measure(name, args.repeat))
        print(f"{name}: {rows[-1]['time']}", file=sys.stderr, flush=True)
    print(table(rows))
    if args.json is not None:
        record = {
            "repeat": args.repeat, "threads": args.threads, "torch": torch.__version__, "transformers": hf.__version__,
            "cpus": os.cpu_count(), "prompts": PROMPTS, "tokens": TOKENS, "rows": rows,
        }  # fmt: skip
        temporary = args.json.with_name(args.json.name + ".part")
        temporary.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        os.replace(temporary, args.json)


if __name__ == "__main__":
    main()
