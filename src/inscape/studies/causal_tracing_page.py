"""The report of `causal-tracing`, made from its tables alone."""

from collections.abc import Mapping

import polars as pl

from inscape.runs import Headline, Page, Reported, Section
from inscape.runs.folder import RunFolder, Scalar
from inscape.studies.causal_tracing_maps import moved, side_by_side
from inscape.studies.causal_tracing_rows import named
from inscape.studies.causal_tracing_sweeps import CLEAN
from inscape.studies.causal_tracing_tokens import LAST

NOISE, RESTORE, PATCH = "Noise on the subject", "Restoring one state", "Patching between prompts"


def headlines(summary: Mapping[str, Scalar]) -> list[Headline]:
    """The numbers told to a reader; a largest effect is told with its place."""

    def place(name: str) -> str:
        role, layer = summary.get(f"{name}_role"), summary.get(f"{name}_layer")
        return "" if role is None else f"At the {role}, layer {layer}. "

    chosen = "Place chosen on every second subject, effect measured on the others."
    state = summary.get("control_max_state")
    return [
        Headline("n_rows", "Prompts", "Rows that were asked.", "The model"),
        Headline("n_kept", "… traced", "Those whose answer is the model's first choice, unless asked otherwise.", "The model"),
        Headline("clean_probability", "Probability of the answer", "Of the whole answer, in the clean run.", NOISE),
        Headline("corrupted_probability", "… with noise", "Mean over samples of noise on all subject tokens.", NOISE),
        Headline("total_effect", "Total effect", "The difference: what there is to restore.", NOISE),
        Headline("indirect_effect_max", "Largest indirect effect, hidden state", f"{place('indirect_effect_max')}Of one state before the last token. {chosen}", RESTORE),
        Headline("control_max", "Largest control effect, hidden state", f"{place('control_max')}{'State of the ' + str(state) + ': t' if state else 'T'}he larger of the two controls, at its own best place on the very subjects that are measured.", RESTORE),
        Headline("indirect_effect_max_mlp", "Largest indirect effect, MLP", f"{place('indirect_effect_max_mlp')}{chosen}", RESTORE),
        Headline("indirect_effect_max_attn", "Largest indirect effect, attention", f"{place('indirect_effect_max_attn')}{chosen}", RESTORE),
        Headline("n_pairs", "Prompts paired", "With a prompt of the same wording, another subject and another answer.", PATCH),
        Headline("patch_max", "Largest share moved", f"{place('patch_max')}Of the logit difference between two prompts, by one state before the last token. {chosen}", PATCH),
        Headline("patch_control_max", "… by a third prompt's state", f"{place('patch_control_max')}The state of neither subject: it moves about a half where it takes the wrong answer away without giving the right one.", PATCH),
        Headline("attribution_corr", "Attribution against activation patching", "Pearson correlation over all cells of all prompts; the interval draws subjects.", PATCH),
        Headline("rerun_share", "Work done", "Tokens × blocks that ran in the restoring sweeps, over those of a full forward pass for every run.", "Cost"),
    ]  # fmt: skip


REPORTED = (
    Reported("Total effect, GPT-2 XL, 1,000 statements", "18.6 %", key="total_effect",
             why="Another model and other prompts; here the probability is that of the whole answer, not of its first token."),
    Reported("Largest indirect effect of a hidden state, last subject token", "8.7 % (layer 15 of 48)", key="indirect_effect_max",
             why="Here the place is chosen on half of the subjects and measured on the other half."),
    Reported("Largest indirect effect of MLPs, last subject token", "6.6 %", key="indirect_effect_max_mlp", why="Windows of 10 layers there; here a fifth of the layers, and at least one."),
    Reported("Indirect effect of attention at the last subject token", "1.6 %", key="indirect_effect_max_attn", why="Here the largest over all tokens."),
    Reported("State of an unrelated prompt, or of other noise", "not measured", key="control_max", why="Added: a gain of probability is only evidence beside what any state gains there."),
)  # fmt: skip


def by_layer(run: RunFolder) -> pl.DataFrame:
    """How well the estimate agrees with patching, layer by layer."""
    pairs = side_by_side(moved(run.table("patching"), run.table("attribution"), run.table("rows")))
    return (
        pairs.group_by("layer", maintain_order=True)
        .agg(
            pl.corr("activation", "attribution").alias("correlation"),
            pl.col("activation").mean().alias("mean change, activation"),
            pl.col("attribution").mean().alias("mean change, attribution"),
            pl.len().alias("cells"),
        )
        .sort("layer")
    )


def examples(run: RunFolder) -> pl.DataFrame:
    """Prompts, answers, and what noise and the best single state do to them."""
    rows = run.table("rows").filter("kept")
    if "tracing" not in run.tables:
        return rows.select("id", "prompt", "answer", pl.col("clean").alias("p clean"))
    traced = run.table("tracing").filter((pl.col("state") == CLEAN) & (pl.col("site") == "resid_post"))
    early = traced.filter(pl.col("role") != LAST).sort("restored", descending=True, maintain_order=True)
    best = early.group_by("id", maintain_order=True).agg(
        pl.col("corrupted").first().alias("p with noise"), pl.col("restored").first().alias("p, best state restored"),
        pl.col("layer").first().alias("at layer"), pl.col("role").first().alias("at"),
    )  # fmt: skip
    table = rows.select("id", "prompt", "answer", pl.col("clean").alias("p clean")).join(
        best, on="id", how="left", maintain_order="left"
    )
    if "pairs" in run.tables:
        pairs = run.table("pairs").select("id", pl.col("corrupt_subject").alias("corrupted by"))
        table = table.join(pairs, on="id", how="left", maintain_order="left")
    return table


def verdict(summary: Mapping[str, Scalar]) -> str:
    """What came out, in words that follow from the intervals alone."""

    def number(key: str) -> float:
        value = summary.get(key)
        return float("nan") if value is None else float(value)

    if not summary.get("n_kept"):
        return "The model answers none of the prompts, so there is nothing to trace."
    if not number("total_effect_lo") > 0:
        return "Noise on the subject does not clearly lower the probability of the answer: there is nothing to restore, and no effect is claimed."
    start = f"Noise on the subject takes the probability of the answer from {number('clean_probability'):.2f} to {number('corrupted_probability'):.2f}."
    where = f"the {summary['indirect_effect_max_role']} at layer {summary['indirect_effect_max_layer']}"
    if number("indirect_effect_max_lo") > max(number("control_max"), 0.0):
        found = f"Of the states before the last token, that of {where} restores most of it ({number('indirect_effect_max'):+.2f}; the best control state {number('control_max'):+.2f})."
    elif summary.get("control_max") is None and number("indirect_effect_max_lo") > 0:
        found = (
            f"Restoring {where} gains {number('indirect_effect_max'):.2f}, but there was no control to compare it with."
        )
    else:
        found = (
            "No single state before the last token restores more of it than a control state may: no effect is claimed."
        )
    if summary.get("attribution_corr") is None:
        return f"{start} {found}"
    return f"{start} {found} Attribution patching agrees with activation patching at r = {number('attribution_corr'):.2f} over all cells."


def notes(run: RunFolder) -> list[str]:
    """Rows that were left out and why, counted and named."""
    record, rows = run.manifest["record"], run.table("rows")
    said = list(record.get("prompts_notes", []))
    if not run.manifest["config"]["only_correct"]:
        said.append(f"Wrongly answered prompts were kept: {int((~rows['correct']).sum())} of {rows.height}.")
    elif (left := rows.filter(~pl.col("kept"))["id"].to_list()):  # fmt: skip
        said.append(
            f"{len(left)} of {rows.height} prompts were left out, their answer is not the model's first choice: {named(left)}."
        )
    if record.get("sites_missing"):
        said.append(f"This model has no {' and no '.join(record['sites_missing'])}.")
    if "pairs" in run.tables:
        for (why,), group in run.table("pairs").drop_nulls("why").group_by("why", maintain_order=True):
            said.append(f"{group.height} prompts could not be paired ({why}): {named(group['id'].to_list())}.")
    if "patching" in run.tables:
        told = run.table("pairs").drop_nulls("told").filter(pl.col("told").list.len() > 0).height
        if told:
            said.append(
                f"In {told} pairs both answers begin alike: the prompts are continued by what they share, and the token after it is compared (row “answer so far”)."
            )
        flat = set(run.table("patching")["id"]) - set(
            moved(run.table("patching"), run.table("attribution"), rows)["id"]
        )
        if flat:
            said.append(
                f"{len(flat)} pairs are left out of the patching maps: the clean prompt does not prefer its answer more than the corrupted one does ({named(sorted(flat))})."
            )
    return said


def page(run: RunFolder) -> Page:
    """The report."""
    summary, record = run.read_summary(), run.manifest["record"]
    sections = []
    if "role_map" in run.tables:
        width = 2 * int(record["window"]) + 1
        windows = "one layer" if width == 1 else f"{width} layers"
        sections += [
            Section("What restoring a state gives back",
                    f"Average indirect effects: probability of the answer gained by putting one state back into the run with noise, at one token and one layer (hidden state) or {windows} (MLP, attention). First the clean run's state, then the two controls at the same places: the state of an unrelated prompt, and that of a run with other noise. "
                    "Tokens before the subject are left out: in a causal model they don't know of it. Where the subject is one token, putting its state back at the first layers undoes nearly all of the noise by construction.", "tracing"),
            Section("The two ends of the path", "The last subject token, where a fact is looked up if it is, and the last token, from which the answer is written; 95 % intervals over subjects. An answer of one token is restored whole at the last token of the last layer, by construction; a longer one is not, its later tokens are written from its earlier ones.", "curves"),
            Section("One prompt, token by token", "The prompt of median total effect. Tokens in brackets are the subject's; numbers are places in the prompt, from 0.", "example"),
        ]  # fmt: skip
    if "patching" in run.figures or ("patch_map" in run.tables and run.table("patch_map").height):
        sections.append(
            Section("Patching between prompts, and its estimate from one gradient",
                    "A state of the prompt about one subject is put into the run about another; 0 is the run patched, 1 the run that the state comes from. Activation patching runs the model for every cell; attribution estimates the same map (first order) from one backward pass. "
                    "Noising is the other way round: how much of the difference is lost. The control is a third prompt's state, which may take the wrong answer away without giving the right one (about a half): what counts is what exceeds it. The seconds that both took are in the run record.", "patching", by_layer(run),
                    caption="A point is one token and layer of one prompt; on the dashed line the estimate is right. The table: agreement by layer.")
        )  # fmt: skip
    sections.append(
        Section(
            "Prompts and answers",
            table=examples(run),
            table_limit=20,
            caption="The best state is that of the layer and token before the last with the highest probability, for each prompt by itself.",
        )
    )
    return Page(
        title="Which states carry the answer?",
        lede=f"{verdict(summary)} Model: {record.get('model')}; {summary['n_kept']} of {summary['n_rows']} prompts traced.",
        headlines=headlines(summary), sections=sections, reported=REPORTED, notes=notes(run),
        paper="Meng, Bau, Andonian & Belinkov: Locating and Editing Factual Associations in GPT. NeurIPS 2022, arXiv 2202.05262",
    )  # fmt: skip
