"""Reading a store of activations: memory-mapped, by row, or in shuffled batches.

A store is a folder written by :func:`inscape.models.stream.capture_to`: shards (safetensors files, one tensor per captured
site and layer, and the index columns of :data:`inscape.models.shards.INDEX`) and ``index.json``, which lists them. Opening
it reads the index, and each shard's size and header; a missing, cut-off or foreign shard is named.
:meth:`ActivationStore.verify` reads everything once, and names a shard with a changed byte. Rows are read through the
system's page cache: a batch takes the memory of a batch, however large the store.
"""

import json
import os
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from inscape.errors import InputError
from inscape.models.shards import INDEX, Column, Layout, checksum
from inscape.models.shuffle import Permutation

INDEX_FILE = "index.json"
FORMAT, VERSION = "inscape activations", 1

Rows_ = slice | Sequence[int] | np.ndarray | Tensor


@dataclass(frozen=True, eq=False)
class Rows:
    """Some rows of a store: the values of each captured site and layer, and which tokens they are.

    Attributes:
        row: int64 ``[row]``, the rows' numbers in the store.
        values: ``[row, *feature]`` by column name (``"resid_post.3"``).
    """

    store: "ActivationStore"
    row: np.ndarray
    values: dict[str, Tensor]

    def at(self, site: str | None = None, layer: int | None = None) -> Tensor:
        """``[row, *feature]`` of one site and layer (of the only one, if None)."""
        if site is None and len(self.values) == 1:
            return next(iter(self.values.values()))
        return self.values[self.store.column(site, layer)]

    # Read when asked for: training needs none of them, and each is one more page to fetch.

    @cached_property
    def prompt(self) -> Tensor:
        """int64 ``[row]``: the prompt's number in the stream."""
        return self.store.read("prompt", self.row)

    @cached_property
    def position(self) -> Tensor:
        """int32 ``[row]``: the token's index in the unpadded prompt."""
        return self.store.read("position", self.row)

    @cached_property
    def start(self) -> Tensor:
        """int32 ``[row]``: where the token's characters begin in the prompt's text; -1 if unknown."""
        return self.store.read("start", self.row)

    @cached_property
    def end(self) -> Tensor:
        """int32 ``[row]``: where they end; -1 if unknown."""
        return self.store.read("end", self.row)

    @cached_property
    def token(self) -> Tensor:
        """int32 ``[row]``: the token's id."""
        return self.store.read("token", self.row)

    def __len__(self) -> int:
        return len(self.row)


class ActivationStore:
    """A store of activations, opened for reading.

    Args:
        folder: the store.
        partial: also open one that is not finished (the shards that are whole so far).

    Attributes:
        columns: the captured sites and layers by name, e.g. ``"resid_post.3"``, with the shape of a row of each.
        dtype: of the values.
        settings, model: how it was captured, and what :meth:`LM.record` said of the model.
        finished: whether the capture has come to the end of its prompts.

    Raises:
        InputError: no store, an unfinished one without ``partial``, a shard that is missing, cut off or not of this store.
    """

    def __init__(self, folder: str | Path, *, partial: bool = False) -> None:
        self.folder = Path(folder).expanduser()
        index = read_index(self.folder)
        self.settings: dict[str, Any] = index["settings"]
        self.model: dict[str, Any] = index["model"]
        self.finished: bool = index["finished"]
        if not self.finished and not partial:
            raise InputError(
                f"{self.folder} is not finished ({index['rows']} rows so far): run its capture again, or open it with "
                "partial=True"
            )
        check_shards(self.folder, index)
        self.dtype: torch.dtype = getattr(torch, self.settings["dtype"])
        self.columns = {name: tuple(shape) for name, shape in index["columns"].items()}
        self._layout = _layout(index)
        self._shards: list[dict[str, Any]] = index["shards"]
        self._rows: int = index["rows"]
        self._maps: dict[int, dict[str, Tensor]] = {}
        self._ids: tuple[int, list[str | int]] = (-1, [])

    def __len__(self) -> int:
        """How many rows there are."""
        return self._rows

    def __repr__(self) -> str:
        return (
            f"ActivationStore({self.folder}: {len(self)} rows of {', '.join(self.columns)}, "
            f"{self.settings['dtype']}{'' if self.finished else ', not finished'})"
        )

    def column(self, site: str | None = None, layer: int | None = None) -> str:
        """The name of a captured site's column; of the only one, if ``site`` is None."""
        if site is None and len(self.columns) == 1:
            return next(iter(self.columns))
        name = site if layer is None else f"{site}.{layer}"
        of_site = [column for column in self.columns if column.partition(".")[0] == site]
        if layer is None and len(of_site) == 1:
            return of_site[0]
        if name not in self.columns:
            raise InputError(f"{name} is not in this store; it holds {', '.join(self.columns)}")
        return str(name)

    def rows(self, site: str | None = None, layer: int | None = None, indices: Rows_ = slice(None)) -> Tensor:
        """``[row, *feature]`` of one site and layer, at these rows, in their order. Negative ones count from the end."""
        return self.read(self.column(site, layer), self._numbers(indices))

    def __getitem__(self, indices: Rows_) -> Rows:
        """These rows of all sites and layers."""
        row = self._numbers(indices)
        return Rows(self, row, {name: self.read(name, row) for name in self.columns})

    def batches(
        self,
        batch_size: int,
        *,
        site: str | None = None,
        layer: int | None = None,
        shuffle: bool = True,
        seed: int = 0,
        epochs: int | None = 1,
        start: int = 0,
        dtype: torch.dtype | None = None,
        pin_memory: bool = False,
    ) -> Iterator[Rows]:
        """Batches of rows; in each epoch every row comes once, in an order of its own.

        The order follows from ``seed`` and the number of rows, and is computed as it is used (no memory per row).
        The last batch of an epoch may be smaller.

        Args:
            batch_size: rows per batch.
            site, layer: the column to read; all of them if ``site`` is None.
            shuffle: random order; else that of the store.
            seed: of the order; each epoch has another.
            epochs: None goes on for ever.
            start: the number of the first batch, counted over all epochs: to go on where a training stopped.
            dtype: of the values; that of the store if None.
            pin_memory: in page-locked memory, for copies to a GPU that don't wait.
        """
        least = {"batch_size": 1, "start": 0, "seed": 0}
        for name, value in {"batch_size": batch_size, "start": start, "seed": seed}.items():
            if value < least[name]:
                raise InputError(f"{name}: expected at least {least[name]}, found {value}")
        names = list(self.columns) if site is None else [self.column(site, layer)]
        return self._batches(batch_size, names, shuffle, seed, epochs, start, dtype, pin_memory)

    def _batches(
        self,
        batch_size: int,
        names: Sequence[str],
        shuffle: bool,
        seed: int,
        epochs: int | None,
        start: int,
        dtype: torch.dtype | None,
        pin_memory: bool,
    ) -> Iterator[Rows]:
        per_epoch = -(-self._rows // batch_size)
        epoch, number = divmod(start, per_epoch) if per_epoch else (0, 0)
        while per_epoch and (epochs is None or epoch < epochs):
            order = Permutation(self._rows, (seed, epoch)) if shuffle else None
            for first in range(number * batch_size, self._rows, batch_size):
                last = min(first + batch_size, self._rows)
                places = np.arange(first, last)
                row = places if order is None else order(places)
                values = {name: self.read(name, row, pin_memory=pin_memory and dtype is None) for name in names}
                if dtype is not None:
                    values = {name: value.to(dtype) for name, value in values.items()}
                    if pin_memory:
                        values = {name: value.pin_memory() for name, value in values.items()}
                yield Rows(self, row, values)
            epoch, number = epoch + 1, 0

    def prompt_id(self, number: int) -> str | int:
        """The id that the user gave to a prompt, by the prompt's number."""
        if not self.settings["prompt_ids"]:
            raise InputError(f"{self.folder} was captured without prompt_ids")
        shard = bisect_left(self._shards, number, key=lambda entry: entry["last_prompt"])
        if shard == len(self._shards) or number < self._shards[shard]["first_prompt"]:
            raise InputError(f"no row of {self.folder} is of prompt {number}")
        if self._ids[0] != shard:
            entry = self._shards[shard]
            with (self.folder / entry["file"]).open("rb") as file:
                file.seek(entry["bytes"] - entry["id_bytes"])
                self._ids = (shard, json.loads(file.read()))
        return self._ids[1][number - self._shards[shard]["first_prompt"]]

    def verify(self) -> None:
        """Read every byte and compare checksums. Raises :class:`InputError`, which names the damaged shards."""
        damaged = []
        for entry in self._shards:
            try:
                file = os.open(self.folder / entry["file"], os.O_RDONLY)
            except OSError as error:
                raise InputError(f"{self.folder}: {entry['file']} cannot be read ({error.strerror})") from error
            try:
                if checksum(file) != entry["crc32"]:
                    damaged.append(entry["file"])
            finally:
                os.close(file)
        if damaged:
            raise InputError(f"{self.folder}: the content of {', '.join(damaged)} is not what was written (checksum)")

    def read(self, name: str, row: np.ndarray, *, pin_memory: bool = False) -> Tensor:
        """Rows (int64 numbers, none negative) of a column, by its name; ``[row, *feature]``."""
        shape = INDEX[name].shape if name in INDEX else self.columns[name]
        dtype = INDEX[name].dtype if name in INDEX else self.dtype
        result = torch.empty((len(row), *shape), dtype=dtype, pin_memory=pin_memory)
        order = np.argsort(row, kind="stable")  # ascending: neighbours on the disk are fetched together
        numbers, places = row[order], torch.from_numpy(order)
        capacity = self._layout.capacity
        at = 0
        while at < len(numbers):
            shard = int(numbers[at]) // capacity
            end = int(np.searchsorted(numbers, (shard + 1) * capacity))
            inside = torch.from_numpy(numbers[at:end] - shard * capacity)
            result.index_copy_(0, places[at:end], self._columns_of(shard)[name].index_select(0, inside))
            at = end
        return result

    def _columns_of(self, shard: int) -> dict[str, Tensor]:
        """The tensors of a shard, whose memory is the mapped file."""
        if shard not in self._maps:
            entry = self._shards[shard]
            # (A private map, which keeps no file open: a store may have more shards than a process may have files.)
            mapped = torch.from_file(str(self.folder / entry["file"]), False, entry["bytes"], dtype=torch.uint8)
            offsets, rows = self._layout.offsets(entry["rows"]), entry["rows"]
            self._maps[shard] = {
                name: mapped[offsets[name] : offsets[name] + rows * column.row_bytes]
                .view(column.dtype)
                .view(rows, *column.shape)
                for name, column in self._layout.columns.items()
            }
        return self._maps[shard]

    def _numbers(self, indices: Rows_) -> np.ndarray:
        if isinstance(indices, slice):
            return np.arange(*indices.indices(self._rows))
        row = np.asarray(indices)
        if row.ndim != 1 or (row.size and not np.issubdtype(row.dtype, np.integer)):
            raise InputError(f"rows: expected a slice or a list of whole numbers, found {indices!r:.80}")
        row = row.astype(np.int64)
        wrong = row[(row < -self._rows) | (row >= self._rows)]
        if wrong.size:
            raise InputError(f"no row {wrong[0]}: the store has {self._rows}")
        return np.where(row < 0, row + self._rows, row)


def read_index(folder: Path) -> dict[str, Any]:
    """The index of a store. Raises :class:`InputError` if there is none, or none that this version can read."""
    path = folder / INDEX_FILE
    if not path.is_file():
        raise InputError(f"{folder} is no store of activations: no {INDEX_FILE} there")
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is damaged: {error}") from error
    if not isinstance(index, dict) or index.get("format") != FORMAT:
        raise InputError(f"{path}: expected the index of a store of activations")
    if index.get("version") != VERSION:
        raise InputError(f"{path} is of version {index.get('version')!r}; this inscape reads version {VERSION}")
    if missing := {"settings", "model", "columns", "finished", "rows", "prompts", "shards"} - set(index):
        raise InputError(f"{path} is damaged: {', '.join(sorted(missing))} missing")
    return index


def _layout(index: dict[str, Any]) -> Layout:
    dtype = getattr(torch, index["settings"]["dtype"])
    columns = {name: Column(dtype, tuple(shape)) for name, shape in index["columns"].items()}
    return Layout({**INDEX, **columns}, index["settings"]["shard_tokens"])


def check_shards(folder: Path, index: dict[str, Any]) -> None:
    """Refuse a store with a shard that is missing, of the wrong size, or whose header is not what was written."""
    layout = _layout(index)
    for entry in index["shards"]:
        path = folder / entry["file"]
        try:
            with path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                head = file.read(layout.header_bytes)
        except FileNotFoundError:
            raise InputError(
                f"{folder}: {entry['file']} is missing ({len(index['shards'])} shards are listed)"
            ) from None
        except OSError as error:
            raise InputError(f"{folder}: {entry['file']} cannot be read ({error.strerror})") from error
        if size != entry["bytes"]:
            raise InputError(
                f"{folder}: {entry['file']} is cut off or changed: {size} bytes, expected {entry['bytes']}"
            )
        if head != layout.header(entry["rows"], entry["first_row"], entry["id_bytes"]):
            raise InputError(f"{folder}: the header of {entry['file']} is not what was written")
