"""Loading: a Hugging Face folder, a hub id, or a module that the user already has.

Weights come from safetensors, or through transformers' ``torch.load(weights_only=True)``; ``trust_remote_code`` is off
unless given. A folder is looked through before anything is built, so that a missing shard or a cut-off file is named.
"""

import hashlib
import json
import re
import struct
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from inscape.errors import InputError


def load_parts(
    source: str | Path,
    *,
    dtype: torch.dtype | str | None,
    device: str | torch.device | None,
    device_map: Any,
    attn_implementation: str | None,
    revision: str | None,
    trust_remote_code: bool,
) -> tuple[nn.Module, Any, dict[str, Any]]:
    """``(model in eval mode, tokenizer or None, record)`` of a folder or hub id."""
    if device is not None:
        device = usable_device(device)
    if isinstance(dtype, str) and dtype != "auto" and not isinstance(getattr(torch, dtype, None), torch.dtype):
        raise InputError(f"load: dtype={dtype!r} is no torch dtype (expected float32, bfloat16, float16 or auto)")
    path = Path(source)
    local = path.exists() or str(source).startswith((".", "/", "~"))
    if local:
        path = path.expanduser()
        check_folder(path)
        name = str(path)
    else:
        name = str(source)
    common: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    try:
        config = AutoConfig.from_pretrained(name, **common)
        if config.is_encoder_decoder:
            raise InputError(f"model {name}: {config.model_type} is an encoder-decoder; expected a causal LM")
        model, info = AutoModelForCausalLM.from_pretrained(
            name, config=config, dtype=dtype or "auto", device_map=device_map, attn_implementation=attn_implementation,
            output_loading_info=True, ignore_mismatched_sizes=True, **common,  # named below, with the weight
        )  # fmt: skip
    except InputError:
        raise
    except Exception as error:  # (a config or a weights file can be wrong in ways that raise anything)
        files = ", ".join(file.name for file in _weights(path)) if local else ""
        raise InputError(f"model {name}: {_one_line(error)}" + (f" (weights: {files})" if files else "")) from error
    for problem in ("missing_keys", "mismatched_keys"):
        if names := sorted(map(str, info.get(problem) or [])):
            raise InputError(
                f"model {name}: {len(names)} weights are {problem.split('_')[0]} from the checkpoint ({names[0]}, …); "
                "they would have been set at random"
            )
    if device is not None:
        model.to(device)
    model.eval()
    record: dict[str, Any] = {"model": name, "revision": getattr(config, "_commit_hash", None) or revision}
    if local:
        record |= {"model": path.name, **folder_hash(path)}
    return model, _tokenizer(name, common, local), record


def usable_device(device: str | torch.device) -> torch.device:
    """The torch device of that name; InputError where there is no such device, or this machine or torch has none."""
    try:
        # A name can be right and the device absent: only putting something there tells.
        return torch.empty(0, device=device).device
    except Exception as error:  # (an unknown name, a missing GPU and a torch without CUDA raise different things)
        raise InputError(f"device {str(device)!r} cannot be used: {_one_line(error)}") from error


def _tokenizer(name: str, common: dict[str, Any], local: bool) -> Any:
    if local and not any(
        (Path(name) / f).exists() for f in ("tokenizer.json", "tokenizer_config.json", "tokenizer.model")
    ):
        return None
    try:
        return AutoTokenizer.from_pretrained(name, **common)
    except Exception as error:  # (the tokenizers library raises bare Exceptions)
        raise InputError(f"tokenizer of {name}: {_one_line(error)}") from error


def check_folder(path: Path) -> None:
    """Refuse a model folder with a missing or broken config, a missing shard or a cut-off safetensors file."""
    if not path.is_dir():
        raise InputError(f"model {path}: no such folder (expected a Hugging Face model folder or a hub id)")
    config = path / "config.json"
    if not config.exists():
        raise InputError(f"model {path}: no config.json in the folder")
    _read_json(config)
    index = path / "model.safetensors.index.json"
    if index.exists():
        weight_map = _read_json(index).get("weight_map")
        if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
            raise InputError(f"{index}: expected a weight_map from weights to files")
        shards = sorted(set(weight_map.values()))
        for shard in shards:
            if not (path / shard).exists():
                raise InputError(f"model {path}: shard {shard} is missing ({len(shards)} are named in {index.name})")
    files = sorted(path.glob("*.safetensors"))
    if not files and not list(path.glob("pytorch_model*.bin")):
        raise InputError(f"model {path}: no weights (expected *.safetensors)")
    for file in files:
        try:
            with safe_open(file, "pt"):
                pass
        except (SafetensorError, OSError) as error:
            raise InputError(f"model {path}: {file.name} is damaged or cut off ({_one_line(error)})") from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise InputError(f"{path}: not readable as JSON ({_one_line(error)})") from error
    if not isinstance(value, dict):
        raise InputError(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value


def _weights(path: Path) -> list[Path]:
    return sorted([*path.glob("*.safetensors"), *path.glob("pytorch_model*.bin")])


def folder_hash(path: Path, whole_below: int = 2 << 30) -> dict[str, str]:
    """sha256 of config and weights. Above ``whole_below`` bytes the weights' headers and sizes stand for them."""
    weights = _weights(path)
    whole = sum(file.stat().st_size for file in weights) <= whole_below
    digest = hashlib.sha256((path / "config.json").read_bytes())
    for file in weights:
        digest.update(f"{file.name} {file.stat().st_size}".encode())
        with file.open("rb") as stream:
            if whole:
                while block := stream.read(1 << 22):
                    digest.update(block)
            else:
                head = stream.read(8)
                digest.update(head + stream.read(min(struct.unpack("<Q", head)[0], 1 << 24)))
    return {
        "model_sha256": digest.hexdigest(),
        "model_sha256_of": "config and weights" if whole else "config and headers",
    }


def tokenizer_hash(tokenizer: Any) -> str | None:
    """sha256 of the tokenizer's whole definition; None for one that has no serial form."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return hashlib.sha256(backend.to_str().encode()).hexdigest() if backend is not None else None


def _one_line(error: BaseException) -> str:
    text = " ".join(re.sub(r"\x1b\[[0-9;]*m", "", str(error)).split())[:300]
    return text if isinstance(error, InputError) or " " in text else f"{type(error).__name__} {text}".strip()
