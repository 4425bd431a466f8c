"""The headline numbers of `causal-tracing`, with their intervals, from the run's tables.

The largest of many cells is large by selection too. So the cell (layer and role) is chosen on every second subject and
its effect is that on the others; the controls get their largest cell on these others themselves, which favours them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from inscape.runs import RunFolder
from inscape.runs.folder import Scalar
from inscape.runs.intervals import Interval, bootstrap, proportion
from inscape.studies.causal_tracing_maps import agreement, moved, per_row, share, side_by_side
from inscape.studies.causal_tracing_sweeps import CLEAN, DENOISING, UNRELATED_PATCH
from inscape.studies.causal_tracing_tokens import LAST, SO_FAR

SPLIT = 4
"""Subjects from which on the cell is chosen on one half and measured on the other."""

_NOTHING = proportion(np.array([]))

SITES = {"resid_post": "", "mlp_out": "_mlp", "attn_out": "_attn"}
"""Sites, and what their numbers' names end in."""


@dataclass(frozen=True)
class Best:
    """The largest cell: chosen on some rows, measured on others."""

    layer: int
    role: str
    effect: Interval


def summarise(run: RunFolder, *, seed: int) -> dict[str, Scalar]:
    """Flat: name → number; estimates with ``_lo`` and ``_hi``; the unit is the subject."""
    rows = run.table("rows")
    summary: dict[str, Scalar] = {
        "n_rows": rows.height,
        "n_kept": int(rows["kept"].sum()),
        "n_correct": int(rows["correct"].sum()),
    }
    return summary | _noise(run, seed) | _patching(run, seed)


def _noise(run: RunFolder, seed: int) -> dict[str, Scalar]:
    estimates = dict.fromkeys(("total_effect", "clean_probability", "corrupted_probability", "control_max"), _NOTHING)
    estimates |= {f"indirect_effect_max{ending}": _NOTHING for ending in SITES.values()}
    plain: dict[str, Scalar] = {"rerun_share": None, "n_layers": None}
    plain |= {f"indirect_effect_max{ending}_{what}": None for ending in SITES.values() for what in ("layer", "role")}
    plain |= {f"control_max_{what}": None for what in ("layer", "role", "state")}
    if "tracing" not in run.tables:
        return _flat(estimates) | plain
    traced, rows = run.table("tracing"), run.table("rows").filter("kept")
    corrupted = traced.filter(pl.col("state") == CLEAN).group_by("id").agg(pl.col("corrupted").first())
    ends = rows.select("subject", "id", "clean").join(corrupted, on="id", maintain_order="left")
    estimates |= {
        name: bootstrap(values.to_numpy(), groups=ends["subject"].to_list(), seed=seed)
        for name, values in (
            ("clean_probability", ends["clean"]),
            ("corrupted_probability", ends["corrupted"]),
            ("total_effect", ends["clean"] - ends["corrupted"]),
        )
    }
    plain |= {"rerun_share": float(traced["share"].mean()), "n_layers": int(traced["layer"].max()) + 1}  # type: ignore[arg-type]
    effects = per_row(traced, rows)
    subjects = ends["subject"].unique(maintain_order=True).to_list()
    # What comes after the last token's state is all that the answer depends on: there, at the last layer, everything is
    # restored by construction.
    early = effects.filter((pl.col("site") != "resid_post") | ~pl.col("role").is_in([LAST, SO_FAR]))
    for site, ending in SITES.items():
        cells = early.filter(pl.col("site") == site)
        best = largest(cells.filter(pl.col("state") == CLEAN), subjects, seed)
        if best is not None:
            estimates[f"indirect_effect_max{ending}"] = best.effect
            plain |= {f"indirect_effect_max{ending}_layer": best.layer, f"indirect_effect_max{ending}_role": best.role}
    controls = early.filter((pl.col("site") == "resid_post") & (pl.col("state") != CLEAN))
    found = {
        str(state): best
        for (state,), cells in controls.group_by("state", maintain_order=True)
        if (best := largest(cells, subjects, seed, chosen_where_measured=True)) is not None
    }
    if found:
        state, best = max(found.items(), key=lambda one: one[1].effect.value)
        estimates["control_max"] = best.effect
        plain |= {"control_max_layer": best.layer, "control_max_role": best.role, "control_max_state": state}
    return _flat(estimates) | plain


def _patching(run: RunFolder, seed: int) -> dict[str, Scalar]:
    names = ("attribution_corr", "patch_max", "patch_control_max")
    estimates = dict.fromkeys(names, _NOTHING)
    plain: dict[str, Scalar] = {"n_pairs": 0, "patch_rerun_share": None}
    plain |= {f"{name}_{what}": None for name in names[1:] for what in ("layer", "role")}
    if "patching" not in run.tables:
        return _flat(estimates) | plain
    patched = run.table("patching")
    cells = moved(patched, run.table("attribution"), run.table("rows"))
    plain |= {"n_pairs": cells["id"].n_unique(), "patch_rerun_share": float(patched["share"].mean())}  # type: ignore[arg-type]
    if cells.is_empty():
        return _flat(estimates) | plain
    estimates["attribution_corr"] = agreement(side_by_side(cells), seed)
    early = (
        cells.filter(~pl.col("role").is_in([LAST, SO_FAR]))
        .group_by("map", "id", "subject", "layer", "role", maintain_order=True)
        .agg(pl.col("moved").mean(), pl.col("gap").first())
    )
    subjects = cells["subject"].unique(maintain_order=True).to_list()
    for name, which, here in (("patch_max", DENOISING, False), ("patch_control_max", UNRELATED_PATCH, True)):
        best = largest(early.filter(pl.col("map") == which), subjects, seed, chosen_where_measured=here)
        if best is not None:
            estimates[name] = best.effect
            plain |= {f"{name}_layer": best.layer, f"{name}_role": best.role}
    return _flat(estimates) | plain


def largest(
    cells: pl.DataFrame, subjects: Sequence[str], seed: int, *, chosen_where_measured: bool = False
) -> Best | None:
    """The layer and role of the largest mean over the subjects 0, 2, …, and its mean over the subjects 1, 3, ….

    The mean is that of ``effect``, or of ``moved`` over that of ``gap``. With few subjects all of them serve for both;
    ``chosen_where_measured`` chooses on those that are measured. None if none has a cell.
    """
    chosen_on, measured_on = (subjects[::2], subjects[1::2]) if len(subjects) >= SPLIT else (subjects, subjects)
    if chosen_where_measured:
        chosen_on = measured_on
    relative = "gap" in cells.columns
    size = pl.col("moved").sum() / pl.col("gap").sum() if relative else pl.col("effect").mean()
    means = (
        cells.filter(pl.col("subject").is_in(chosen_on))
        .group_by("layer", "role", maintain_order=True)
        .agg(size.alias("size"))
        .sort("size", descending=True, maintain_order=True)
    )
    if means.is_empty():
        return None
    layer, role = int(means["layer"][0]), str(means["role"][0])
    there = cells.filter((pl.col("layer") == layer) & (pl.col("role") == role) & pl.col("subject").is_in(measured_on))
    if relative:
        return Best(layer, role, share(there, seed))
    return Best(layer, role, bootstrap(there["effect"].to_numpy(), groups=there["subject"].to_list(), seed=seed))


def _flat(estimates: dict[str, Interval]) -> dict[str, Scalar]:
    summary: dict[str, Scalar] = {}
    for name, interval in estimates.items():
        summary |= interval.summary(name)
    return summary
