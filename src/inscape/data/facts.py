"""A table of facts: entity, numeric property, value; checked once, so that nobody downstream has to check again.

`Facts` is what worlds generate, what files are loaded into and what models are trained on and measured against. Its
rows stand in one order (property, split, then the order of the source), because a seeded sample is only repeatable on
rows in a fixed order. The hash is that of the table's canonical text, order included: two tables with one hash give
one training run.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import polars as pl

from inscape.data.fact_files import read_fact_files
from inscape.data.fact_table import SCHEMA, SPLITS, check_rows, in_order, table_text, typed
from inscape.data.properties import PROPERTIES, property_named
from inscape.errors import InputError


@dataclass(frozen=True, eq=False)
class Facts:
    """Facts about entities.

    Attributes:
        rows: columns property (our name), split ("train", "dev" or "test"), entity_id, label, value (float64, in the
            property's unit) and popularity (float64, nullable); sorted by property (order of `PROPERTIES`) and split,
            otherwise in the order given.
        source: path or description of the world, for the record of a run.
        notes: what was left out or changed and why, counted and named, for the report.

    Raises:
        InputError: columns are missing, or `check_rows` refuses a row.
    """

    rows: pl.DataFrame
    source: str
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        rows = typed(self.rows, self.source)
        check_rows(rows.iter_rows(), [f"{self.source}: row {index}" for index in range(rows.height)])
        object.__setattr__(self, "rows", in_order(rows))
        object.__setattr__(self, "notes", tuple(self.notes))

    @property
    def properties(self) -> tuple[str, ...]:
        """Names of the properties that have rows, in the order of `PROPERTIES`."""
        present = set(self.rows["property"].unique())
        return tuple(name for name in PROPERTIES if name in present)

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of `table_text`, hence of the bytes of the file that `save_facts` writes as .tsv."""
        return hashlib.sha256(table_text(self.rows).encode()).hexdigest()

    def of(self, property: str, split: str | None = None) -> pl.DataFrame:
        """Rows of one property (our name or the Wikidata id), of one split or of all.

        Raises:
            InputError: there is no such property or split, or these facts have no row of it.
        """
        name = property_named(property).name
        if split is not None and split not in SPLITS:
            raise InputError(f"{self.source}: split {split!r}, expected one of {', '.join(SPLITS)}")
        rows = self.rows.filter(pl.col("property") == name)
        if split is not None:
            rows = rows.filter(pl.col("split") == split)
        if rows.is_empty():
            where = name if split is None else f"{name}, split {split}"
            raise InputError(f"{self.source}: no facts of {where}, expected one of {', '.join(self.properties)}")
        return rows


def load_facts(
    path: str | os.PathLike[str], properties: Sequence[str] | None = None, limit: int | None = None
) -> Facts:
    """Load facts from files.

    Args:
        path: one of
            - a folder of Wikidata tables `P569.train.tsv` (entity_id, entity_label, value, popularity_degree) and of
              rows as published by Heinzerling & Inui 2024, `numprop_P569.quantile_9.sample_0.train.jsonl`;
            - one such file; its name gives property and split;
            - one facts table as `save_facts` writes it, .tsv or .parquet.
        properties: names or Wikidata ids of the properties to load; all by default. Other files aren't read.
        limit: at most so many entities per property over all its splits, see `limited`.

    Where a property has both `global_dev` and `test`, `global_dev` (500 entities for every property) becomes the split
    "test" and the `test` file is left out, with a note; so all nine properties are measured on tests of one size.

    Raises:
        InputError: file, line, what was found and what was expected, for anything that can't be read as facts.
    """
    wanted = None if properties is None else tuple(dict.fromkeys(property_named(name).name for name in properties))
    if wanted is not None and not wanted:
        raise InputError("properties: an empty list, expected at least one property (or none given, for all)")
    rows, places, notes = read_fact_files(Path(path), wanted)
    check_rows(rows, places)
    facts = Facts(pl.DataFrame(rows, schema=SCHEMA, orient="row"), str(path), tuple(notes))
    absent = [name for name in wanted or () if name not in facts.properties]
    if absent:
        raise InputError(f"{path}: no facts of {', '.join(absent)}, expected from: {', '.join(facts.properties)}")
    return facts if limit is None else limited(facts, limit)


def save_facts(facts: Facts, path: str | os.PathLike[str]) -> Path:
    """Write the rows as a facts table that `load_facts` reads back exactly; .tsv or .parquet by the name's ending.

    The table appears whole or not at all. `source` and `notes` aren't part of it.

    Raises:
        InputError: another ending, or the place can't be written to.
    """
    target = Path(path)
    if target.suffix not in (".tsv", ".parquet"):
        raise InputError(f"{target}: can't save facts as {target.suffix!r}, expected a name in .tsv or .parquet")
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as file:
                if target.suffix == ".tsv":
                    file.write(table_text(facts.rows).encode())
                else:
                    facts.rows.write_parquet(file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise InputError(f"{target}: facts can't be written ({error.strerror or error})") from error
    return target


def limited(facts: Facts, limit: int) -> Facts:
    """At most `limit` entities of each property, in proportion to its splits, chosen by a fixed rule.

    Shares are rounded by largest remainder, with at least one entity of every split that is there. Within a split the
    entities with the smallest SHA-256 of their id stay: the choice depends on nothing but the ids, and takes the same
    entities for latitude and longitude, which share theirs.

    Raises:
        InputError: `limit` is smaller than the number of splits of a property.
    """
    kept: list[pl.DataFrame] = []
    notes: list[str] = []
    for name in facts.properties:
        rows = facts.of(name)
        splits = {split: rows.filter(pl.col("split") == split) for split in SPLITS}
        sizes = {split: part.height for split, part in splits.items() if part.height}
        shares = _shares(sizes, limit, f"{facts.source}: limit {limit} for {name}")
        kept.extend(_least_hashed(splits[split], share) for split, share in shares.items())
        left_out = rows.height - sum(shares.values())
        if left_out:
            notes.append(f"{name}: {left_out} of {rows.height} entities left out by limit {limit}")
    return Facts(pl.concat(kept), facts.source, (*facts.notes, *notes))


def _shares(sizes: Mapping[str, int], limit: int, place: str) -> dict[str, int]:
    """Divide `limit` among groups in proportion to their sizes, each at least 1 and at most its size."""
    total = sum(sizes.values())
    if limit >= total:
        return dict(sizes)
    if limit < len(sizes):
        raise InputError(f"{place}: expected at least {len(sizes)}, one entity for each of {', '.join(sizes)}")
    shares = {group: max(1, limit * size // total) for group, size in sizes.items()}
    by_remainder = sorted(sizes, key=lambda group: -(limit * sizes[group] % total))
    for group in by_remainder:
        if sum(shares.values()) < limit and shares[group] < sizes[group]:
            shares[group] += 1
    while sum(shares.values()) > limit:
        # Lifting a small split to 1 can overdraw; the largest share pays.
        shares[max(shares, key=lambda group: shares[group])] -= 1
    return shares


def _least_hashed(rows: pl.DataFrame, n: int) -> pl.DataFrame:
    digests = [hashlib.sha256(entity.encode()).digest() for entity in rows["entity_id"]]
    chosen = sorted(range(rows.height), key=lambda index: digests[index])[:n]
    return rows[sorted(chosen)]


def unambiguous(facts: Facts) -> Facts:
    """Leave out facts that can't be answered from the entity's name, because another entity has the same name.

    In each property and label the most popular entity stays (unknown popularity counts least; ties go to the first
    row). Namesakes in *different* splits count too: what was learned for one would be scored on the other.
    """
    ranked = facts.rows.with_row_index("row")
    first = ranked.sort("popularity", descending=True, nulls_last=True, maintain_order=True).unique(
        ["property", "label"], keep="first", maintain_order=True
    )
    left_out = ranked.join(first, on="row", how="anti").sort("row")
    notes: list[str] = []
    for name in facts.properties:
        dropped = left_out.filter(pl.col("property") == name)
        if dropped.height:
            named = ", ".join(f"{label} ({entity})" for label, entity in dropped.select("label", "entity_id").rows())
            notes.append(f"{name}: {dropped.height} left out, a more popular entity has the same name: {named}")
    return Facts(first.sort("row").drop("row"), facts.source, (*facts.notes, *notes))
