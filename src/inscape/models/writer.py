"""Rows into shards: what the writing thread of :func:`inscape.models.stream.capture_to` does.

It is given, in this order, the values of each batch of a window, then the window's index columns; a shard is closed when
the window that holds its last row is written. Numbers of rows and prompts are those of the whole stream.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from inscape.errors import InputError
from inscape.models.capture import NonFiniteError
from inscape.models.shards import INDEX, Column, Layout, OpenShard, write_json
from inscape.models.sites import TapPoint
from inscape.models.store import INDEX_FILE

Slot = tuple[int, int, int]
"""A prompt's number, its first row, how many rows it has."""


def point_name(point: TapPoint) -> str:
    """The column's name: ``resid_post.3``, ``embed``."""
    return point.site if point.layer is None else f"{point.site}.{point.layer}"


class ShardWriter:
    """Writes rows where they belong, closes shards and keeps the index.

    Args:
        folder: the store.
        index: its index, as begun or as a killed run left it; changed in place.
        names: column names by site, in the order of the layers.
        dtype: of the values.
    """

    def __init__(
        self, folder: Path, index: dict[str, Any], names: Mapping[str, Sequence[str]], dtype: torch.dtype
    ) -> None:
        self.done: int = index["rows"]
        """Rows in shards that were whole at the beginning: not written again."""
        self._folder, self._index, self._names, self._dtype = folder, index, names, dtype
        self._capacity: int = index["settings"]["shard_tokens"]
        self._layout: Layout | None = None
        self._open: dict[int, OpenShard] = {}
        self._first_prompt: dict[int, int] = {}
        self._ids: dict[int, str | int] | None = {} if index["settings"]["prompt_ids"] else None
        self._rows = self.done
        self._last = (0, "")

    def values(self, slots: Sequence[Slot], values: Mapping[str, Tensor]) -> None:
        """Write a batch: ``values[site]`` is ``[row, layer, *feature]``, its rows those of the slots, one after another."""
        if self._layout is None:
            columns = {
                name: Column(self._dtype, tuple(values[site].shape[2:]))
                for site, names in self._names.items()
                for name in names
            }
            self._layout = Layout({**INDEX, **columns}, self._capacity)
            self._index["columns"] = {name: list(column.shape) for name, column in columns.items()}
        for site, names in self._names.items():
            x_RLF = values[site].cpu()
            # A sum is NaN or Inf if one of its terms is: cheaper than a mask; if it is, the mask tells (a sum can overflow).
            if not x_RLF.sum(dtype=torch.float64 if x_RLF.dtype == torch.float64 else torch.float32).isfinite():
                self._refuse_non_finite(slots, x_RLF, names)
            for nth, name in enumerate(names):
                bytes_RB = x_RLF[:, nth].flatten(1).contiguous().view(torch.uint8).numpy()
                at = 0
                for _, row, count in slots:
                    self._write(name, row, bytes_RB[at : at + count])
                    at += count

    def window(
        self,
        first_prompt: int,
        first_row: int,
        columns: Mapping[str, np.ndarray],
        ids: Sequence[str | int] | None,
        digests: Sequence[str],
    ) -> None:
        """Write the index columns of a window, all of whose values are written, and close the shards that end in it."""
        prompt = columns["prompt"]
        self._rows = end = first_row + len(prompt)
        if self._ids is not None and ids is not None:
            self._ids.update(enumerate(ids, first_prompt))
        for name, column in columns.items():
            self._write(name, first_row, column)
        for shard in range(-(-first_row // self._capacity), -(-end // self._capacity)):
            self._first_prompt[shard] = int(prompt[shard * self._capacity - first_row])
        for shard in range(max(first_row, self.done) // self._capacity, end // self._capacity):
            shard_end = (shard + 1) * self._capacity
            last = int(prompt[shard_end - 1 - first_row])
            whole = shard_end == end  # the window too, so that the next one is where to go on
            resume = {
                "prompt": first_prompt + len(digests) if whole else first_prompt,
                "row": end if whole else first_row,
            }
            self._close(shard, self._capacity, last, digests[last - first_prompt], resume)
            write_json(self._folder / INDEX_FILE, self._index)
        if len(prompt):
            self._last = (int(prompt[-1]), digests[int(prompt[-1]) - first_prompt])

    def finish(self, prompts: int, digest: str) -> None:
        """Close the last shard, and say that the store is finished."""
        if not self._rows:
            raise InputError("capture: no prompts, or no tokens asked for")
        shard, rows = divmod(self._rows, self._capacity)
        if rows:
            self._close(shard, rows, *self._last, {"prompt": prompts, "row": self._rows})
        self._index |= {"finished": True, "prompts": [prompts, digest]}
        write_json(self._folder / INDEX_FILE, self._index)

    def close(self) -> None:
        """Remove what is half done."""
        for shard in self._open.values():
            shard.discard()

    def _write(self, name: str, row: int, content: np.ndarray) -> None:
        content = content[max(0, self.done - row) :]
        row = max(row, self.done)
        while len(content):
            shard, at = divmod(row, self._capacity)
            fits = content[: self._capacity - at]
            if shard not in self._open:
                assert self._layout is not None
                self._open[shard] = OpenShard(self._folder, shard, self._layout)
            self._open[shard].write(name, at, fits)
            content, row = content[len(fits) :], row + len(fits)

    def _close(self, shard: int, rows: int, last_prompt: int, digest: str, resume: dict[str, int]) -> None:
        first = self._first_prompt.pop(shard)
        ids = None
        if self._ids is not None:
            ids = json.dumps([self._ids[number] for number in range(first, last_prompt + 1)]).encode()
            self._ids = {number: one for number, one in self._ids.items() if number >= last_prompt}
        entry = self._open[shard].close(rows, shard * self._capacity, ids)
        del self._open[shard]
        self._index["shards"].append(
            {**entry, "first_prompt": first, "last_prompt": last_prompt, "prompts_sha256": digest, "resume": resume}
        )
        self._index["rows"] += rows

    def _refuse_non_finite(self, slots: Sequence[Slot], x_RLF: Tensor, names: Sequence[str]) -> None:
        prompts = torch.tensor([prompt for prompt, _, count in slots for _ in range(count)])
        for nth, name in enumerate(names):
            finite_R = x_RLF[:, nth].flatten(1).isfinite().all(-1)
            if bad := sorted(set(prompts[~finite_R].tolist())):
                which = ", ".join(map(str, bad[:5])) + (", …" if len(bad) > 5 else "")
                raise NonFiniteError(
                    f"{name} is NaN or Inf, or too large for {str(self._dtype).removeprefix('torch.')} (largest: "
                    f"{torch.finfo(self._dtype).max:.4g}), at prompt {which}"
                )
