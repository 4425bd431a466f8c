"""The report of ``inscape corpus build``, made from its tables alone."""

from typing import Any

import altair as alt
import polars as pl

from inscape.runs import Headline, Page, Reported, Section
from inscape.runs.folder import RunFolder
from inscape.runs.theme import GRID, PALETTE
from inscape.studies.corpus_build import removed_by

NAMES = {
    "languages": "languages left out",
    "sample": "sampling",
    "markup": "markup",
    "empty": "empty",
    "exact": "exact copies",
    "template_lines": "template lines",
    "length": "length",
    "character_repetition": "repeated characters",
    "word_repetition": "repeated words",
    "special_characters": "special characters",
    "stop_words": "stop words",
    "language_id": "language identified",
    "pii": "personal data",
    "near": "near copies",
}
"""Steps, in order, as a reader sees them."""

SIZE, STEPS = "Size", "What the steps took"
HEADLINES = (
    Headline("megabytes_read", "Text read", "UTF-8 bytes of all sources, in 10⁶.", SIZE),
    Headline("megabytes_kept", "Text kept", "After all steps, both splits.", SIZE),
    Headline("share_kept", "… share", "Of the bytes read.", SIZE),
    Headline(
        "documents_read", "Documents read", "As the sources count them: pages, articles, sentences, modules.", SIZE
    ),
    Headline("documents_kept", "Documents kept", "After all steps, both splits.", SIZE),
    Headline("n_languages", "Languages", "With at least one document left; source code counts as one.", SIZE),
    Headline("megabytes_validation", "For validation", "Drawn by a hash of each document's id.", SIZE),
    *(
        Headline(f"removed_{step}", f"Removed: {name}", "Share of all bytes read.", STEPS)
        for step, name in NAMES.items()
        if step != "pii"
    ),
    Headline(
        "documents_with_personal_data",
        "Documents with personal data",
        "An address or a key was replaced by its tag.",
        STEPS,
    ),
    Headline("megabytes_per_second", "Speed", "Text read per second of all passes, all processes together.", SIZE),
)

REPORTED = (
    Reported("Steps", "by source lists of functions, chosen by hand", "one list; sources name what is left out for them"),
    Reported("Thresholds", "by fluent speakers, for 13 languages of OSCAR", "the values of en, fr, es, zh, ar, hi; its default for others",
             why="The others are not in the text of the paper."),
    Reported("Language identification", "fastText", "py3langid, similar languages together", why="Its model comes with the package."),
    Reported("Flagged words, perplexity", "filters of OSCAR", "not measured", why="Word lists and 5-gram models are not here."),
    Reported("Near copies", "SimHash of 64 bits, windows of 6 characters, at most 4 bits apart, for OSCAR; then repeated substrings", "the same SimHash for all; no substrings"),
    Reported("Personal data", "keys, e-mail, user names, IP addresses, for OSCAR", "the same four, for all natural text"),
)  # fmt: skip


def figures(run: RunFolder) -> dict[str, alt.TopLevelMixin]:
    """All figures, by name."""
    return {"steps": _steps(run), "languages": _languages(run)}


def _steps(run: RunFolder) -> alt.LayerChart:
    shown = [step for step in NAMES if step not in ("languages", "sample")]
    rows = removed_by(run, "source").filter(pl.col("step").is_in(shown))
    rows = rows.select("step", "source", "bytes").with_columns(pl.col("step").replace_strict(NAMES))
    base = alt.Chart(rows).encode(
        x=alt.X("step:N", title=None, sort=list(NAMES.values()), axis=alt.Axis(labelAngle=-40, orient="bottom")),
        y=alt.Y("source:N", title=None),
    )
    cells = base.mark_rect().encode(
        color=alt.condition(
            _NOTHING,
            alt.value(GRID),
            alt.Color(
                "bytes:Q",
                title="share of bytes removed",
                scale=alt.Scale(type="sqrt", domain=[0, 1]),
                legend=alt.Legend(orient="top", format="%"),
            ),
        )
    )
    text = base.mark_text(fontSize=10, color="white").encode(text=alt.Text("bytes:Q", format=".1%"))
    marked: alt.LayerChart = (cells + text.transform_filter(f"!({_NOTHING})")).properties(
        width=alt.Step(52), height=alt.Step(24)
    )
    return marked


def _languages(run: RunFolder) -> alt.Chart:
    rows = run.table("languages").group_by("language").agg(pl.col("bytes").sum() / 1e6)
    rows = rows.sort("bytes", descending=True).head(_MOST)
    return (
        alt.Chart(rows)
        .mark_bar(color=PALETTE[0])
        .encode(
            x=alt.X("bytes:Q", title="MB kept (logarithmic)", scale=alt.Scale(type="log")),
            y=alt.Y("language:N", title=None, sort=rows["language"].to_list()),
            tooltip=["language", alt.Tooltip("bytes:Q", format=".3f")],
        )
        .properties(height=alt.Step(14))
    )


_MOST = 50
_NOTHING = "datum.bytes < 0.0005"


def page(run: RunFolder) -> Page:
    """The report's content."""
    summary = run.read_summary()
    largest = sorted(
        (
            (float(summary[f"removed_{step}"] or 0), name)
            for step, name in NAMES.items()
            if f"removed_{step}" in summary
        ),
        reverse=True,
    )
    took = ", ".join(f"{name} {share:.1%}" for share, name in largest[:3] if share > 0)
    return Page(
        title="A corpus, step by step",
        lede=f"{float(summary['megabytes_kept'] or 0):,.1f} of {float(summary['megabytes_read'] or 0):,.1f} MB are kept, in "
        f"{summary['n_languages']} languages." + (f" Most was taken by: {took} (of all bytes read)." if took else ""),
        headlines=[headline for headline in HEADLINES if headline.key in summary],
        sections=(
            Section("What each step took away", "By source; shares are of what entered the step. A step that is left out for a source is missing in its row. Personal data is replaced, not removed.", figure="steps", table=_step_table(run)),
            Section("Languages", f"The {_MOST} largest, both splits." if run.table("languages")["language"].n_unique() > _MOST else "Both splits.", figure="languages", table=_language_table(run), table_limit=60),
            Section("Sources", "Licences are as their owners state them; share-alike terms pass on to the documents.", table=_source_table(run)),
        ),
        reported=REPORTED,
        notes=_notes(run),
        paper="Laurençon et al., The BigScience ROOTS Corpus, NeurIPS 2022 (arXiv 2303.03915); BigScience Workshop, BLOOM (arXiv 2211.05100)",
    )  # fmt: skip


def _step_table(run: RunFolder) -> pl.DataFrame:
    rows = removed_by(run).filter(pl.col("step") != "read")
    return rows.select(
        pl.col("step").replace_strict(NAMES),
        pl.col("documents_in").alias("documents in"),
        (pl.col("documents_in") - pl.col("documents_out")).alias("dropped"),
        pl.col("changed").alias("changed"),
        (pl.col("bytes_in") / 1e6).alias("MB in"),
        pl.col("documents").alias("share of documents dropped"),
        pl.col("bytes").alias("share of bytes removed"),
    )


def _language_table(run: RunFolder) -> pl.DataFrame:
    read = run.table("counts").filter(pl.col("step") == "read").group_by("language").agg(pl.col("bytes_in").sum())
    kept = run.table("languages").group_by("language").agg(
        pl.col("documents").sum(), (pl.col("bytes").sum() / 1e6).alias("MB kept"), pl.col("bytes").sum().alias("kept"),
        (pl.col("bytes").filter(pl.col("split") == "validation").sum() / 1e6).alias("MB for validation"),
    )  # fmt: skip
    rows = kept.join(read, on="language").sort("kept", "language", descending=[True, False])
    share = (pl.col("kept") / pl.col("bytes_in")).alias("share kept")
    return rows.select("language", "documents", "MB kept", "MB for validation", share)


def _source_table(run: RunFolder) -> pl.DataFrame:
    counts: Any = run.table("counts").filter(pl.col("step") == "read").group_by("source").agg(
        pl.col("documents_in").sum().alias("documents read"), (pl.col("bytes_in").sum() / 1e6).alias("MB read")
    )  # fmt: skip
    table = run.table("sources").rename({"name": "source"}).join(counts, on="source", how="left", maintain_order="left")
    return table.select("source", "licence", "weight", "documents read", "MB read")


def _notes(run: RunFolder) -> list[str]:
    record = run.manifest["record"]
    notes = []
    for key, what in (("without_stop_words", "have no list of stop words"), ("without_language_id", "are unknown to the language identifier")):  # fmt: skip
        if found := record[key]:
            shown = ", ".join(found[:40]) + (", …" if len(found) > 40 else "")
            notes.append(f"{len(found)} languages {what} and pass that filter: {shown}.")
    if (run.table("sources")["name"] == "python-stdlib").any():
        notes.append(
            f"The source code is that of Python {record['python']}: with another version the corpus is another one."
        )
    return notes
