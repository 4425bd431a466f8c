"""The report of `detokenization`, made from its tables alone."""

from collections.abc import Mapping

import polars as pl

from inscape.runs import Headline, Page, Reported, Section
from inscape.runs.folder import RunFolder, Scalar
from inscape.studies.detokenization_figures import figures
from inscape.studies.detokenization_summary import frequency_correlations, head_scores, observed_heads

WORDS, PLACES, SUM = "Which tokens come before which", "Positions and attention", "The decomposition"

HEADLINES = (
    Headline("auroc_best_head", "Best head", "Mean AUROC over suffixes: true prefixes of the text against all other tokens. The best of the heads, chosen here.", WORDS),
    Headline("best_head", "… which is head", "Counted from 0.", WORDS),
    Headline("auroc_best_head_at_init", "… of the untrained model", "The same architecture with its initial weights; its best head.", WORDS),
    Headline("auroc_unigram", "Token frequency alone", "A scorer that puts frequent tokens first, whatever the suffix.", WORDS),
    Headline("auroc_above_unigram", "Best head less token frequency", "Suffix by suffix; below 0 the head tells less than frequency.", WORDS),
    Headline("auroc_matched_best_head", "Best head, tokens equally frequent", "Each other token counts as often as the text holds it, so that frequency helps little: what the head knows of pairs.", WORDS),
    Headline("auroc_matched_unigram", "… token frequency alone", "The same negatives.", WORDS),
    Headline("auroc_matched_at_init", "… of the untrained model", "The same negatives; its best head.", WORDS),
    Headline("n_bigrams", "Bigrams in the text", "Pairs of adjacent tokens within documents.", WORDS),
    Headline("position_profile_corr", "Predicted and observed profile", "Correlation over distances of attention as positions alone predict it with attention on texts; mean over heads.", PLACES),
    Headline("position_profile_total_variation", "… total variation", "0: the same; 1: nothing in common. Mean over heads.", PLACES),
    Headline("position_profile_corr_by_frequency", "… correlation, tokens as frequent as in the text", "Positions averaged over tokens by their frequency instead of all alike.", PLACES),
    Headline("kinds_agree", "Heads whose kind weights foretell", "Self, recent past, content or diffuse: from random tokens, and from texts.", PLACES),
    Headline("kinds_agree_by_frequency", "… tokens as frequent as in the text", "From random tokens drawn by their frequency, and from texts.", PLACES),
    Headline("most_important_term", "Most important term", "Leaving it out moves attention most (KL, mean over heads). Letters as in the paper: e token, p position, the query's first; one letter: with a bias.", PLACES),
    Headline("token_frequency_spearman", "Key-token term and frequency", "Spearman, mean over heads; a dash where queries have no bias.", PLACES),
    Headline("sum_of_terms_max_error", "Sum of terms against the model", "Largest difference of a first-layer attention weight on texts.", SUM),
    Headline("sigma_ratio_max", "Largest σ by least", "What averaging σ over positions or tokens can hide at most; 1 where nothing is averaged.", SUM),
)  # fmt: skip

REPORTED = (
    Reported("Mean AUROC of the best head", "gpt2, head 7: 0.876 (OpenWebText, 9.0e9 tokens, unseen suffixes as 0)", key="auroc_best_head",
             why="Another model and text; unseen suffixes are left out unless `published` is set."),
    Reported("Untrained model, token frequency", "not reported", key="auroc_unigram", why="Added here: frequent tokens come before everything."),
    Reported("Predicted and observed attention", "a figure, compared by eye", key="position_profile_corr", why="A score is added."),
    Reported("Importance of terms", "KL of unscaled logits, divided by the number of keys", key="most_important_term",
             why="By default here the model's own scale and the sum over keys."),
)  # fmt: skip


def page(run: RunFolder) -> Page:
    """The report's content."""
    summary = run.read_summary()
    drawn = figures(run)
    sections = []
    if "heads" in drawn:
        sections.append(Section("One head at a time", "Choose a head. Its attention by distance on texts and as weights foretell it; how far its attention moves when a term is left out; and the tokens that it looks for before some suffixes (␣ is a space). Suffixes are chosen by how frequent they are, not by their score.", figure="heads"))  # fmt: skip
    if "auroc" in drawn:
        sections += [
            Section("Detokenization score", "For each suffix all tokens of the vocabulary are candidates; those that the text holds right before it are positives, weighted by how often. Frequent tokens come before everything, so a scorer that knows frequency alone does well: a head says something about pairs where it is above that scorer, or where other tokens are weighted by their frequency (last column).", figure="auroc", table=_auroc_table(run)),
            Section("ROC", "Mean curve over suffixes drawn by seed: the best head, the untrained model's best head, and token frequency.", figure="roc"),
        ]  # fmt: skip
    sections.append(Section("Attention by distance", "Attention at each distance: on texts; as the position terms alone predict it, all tokens of the vocabulary alike; and the same with tokens averaged by their frequency in the text. Where the first parts from the others, tokens decide. Kinds of heads are foretold from attention on tokens drawn at random.", figure="profiles", table=_heads_table(run)))  # fmt: skip
    if "importance" in drawn:
        sections.append(Section("Importance of terms", _importance_text(run), figure="importance", caption="KL of attention with all terms from attention without one, in nats. Importances don't add up."))  # fmt: skip
    if "gpt2" in run.tables:
        sections.append(Section("The paper's model", "This model has the shape of GPT-2 small. What the authors report for theirs, beside what was found here. On a text smaller than theirs the level of the AUROCs differs: true bigrams that it lacks count as negatives.", table="gpt2", table_limit=60))  # fmt: skip
    return Page(
        title="Attention of the first layer, read from weights",
        lede=verdict(summary),
        headlines=HEADLINES,
        sections=sections,
        reported=REPORTED,
        notes=_notes(run),
        paper="Kamoda, Heinzerling, Inaba, Kudo, Sakaguchi & Inui, Weight-based Analysis of Detokenization in Language Models, Findings of NAACL 2025 (arXiv 2501.15754)",
    )


def verdict(summary: Mapping[str, Scalar]) -> str:
    """What came out, in words that follow from the intervals alone."""

    def number(key: str) -> float:
        value = summary.get(key)
        return float("nan") if value is None else float(value)

    if summary.get("auroc_best_head") is None:
        return "No text was given: the report holds what follows from the weights alone. Give --corpus to hold it against bigrams and attention."
    head = f"Head {summary['best_head']} puts true prefixes above other tokens with an AUROC of {number('auroc_best_head'):.3f}"
    if number("auroc_above_init_lo") > 0:
        init = f"more than the best head of the untrained model ({number('auroc_best_head_at_init'):.3f})"
    else:
        init = f"not more than the best head of the untrained model ({number('auroc_best_head_at_init'):.3f}): no learned detokenization is claimed"
    if number("auroc_above_unigram_lo") > 0:
        unigram = f"It tells more than token frequency alone ({number('auroc_unigram'):.3f})."
    elif number("auroc_above_unigram_hi") < 0:
        unigram = f"Token frequency alone tells more ({number('auroc_unigram'):.3f})."
    else:
        unigram = f"It is not told from token frequency alone ({number('auroc_unigram'):.3f})."
    if number("auroc_matched_above_unigram_lo") > 0 and number("auroc_matched_above_init_lo") > 0:
        matched = f"Among tokens that are equally frequent, head {summary['auroc_matched_head']} knows pairs: {number('auroc_matched_best_head'):.3f}, where frequency gives {number('auroc_matched_unigram'):.3f} and the untrained model {number('auroc_matched_at_init'):.3f}."
    else:
        matched = f"Among tokens that are equally frequent no head is above both frequency ({number('auroc_matched_unigram'):.3f}) and the untrained model ({number('auroc_matched_at_init'):.3f})."
    corr = summary.get("position_profile_corr")
    places = (
        ""
        if corr is None
        else f" Positions alone foretell how attention falls with distance with a correlation of {number('position_profile_corr'):.2f}."
    )
    return f"{head}, {init}. {unigram} {matched}{places}"


def _auroc_table(run: RunFolder) -> pl.DataFrame:
    scores = head_scores(run, published=False).rename(
        {"auroc": "AUROC", "auroc_by_frequency": "by frequency of the suffix"}
    )
    published = head_scores(run, published=True).select("head", pl.col("auroc").alias("as published"))
    matched = (
        run.table("matched")
        .filter(pl.col("scorer") == "trained")
        .group_by("head")
        .agg(pl.col("auroc_matched").mean().alias("equally frequent tokens"))
    )
    return scores.join(published, on="head", maintain_order="left").join(matched, on="head", maintain_order="left")


def _heads_table(run: RunFolder) -> pl.DataFrame:
    heads = run.table("heads").select("head", pl.col("kind").alias("kind, from weights"))
    if "attention" not in run.tables:
        return heads
    observed = observed_heads(run, run.manifest["config"]["recent"]).select(
        "head", pl.col("kind_by_frequency").alias("… by token frequency"), pl.col("kind_observed").alias("kind, on texts"), "self", pl.col("recent").alias("recent past"), "farther",
        pl.col("keys_in_effect").alias("share of keys in effect"), pl.col("corr").alias("correlation"),
        pl.col("total_variation").alias("total variation"), pl.col("corr_by_frequency").alias("correlation by frequency"),
    )  # fmt: skip
    heads = heads.join(observed, on="head", maintain_order="left")
    if "auroc" in run.tables:
        spearman = frequency_correlations(run).rename({"spearman": "key term and frequency (Spearman)"})
        heads = heads.join(spearman, on="head", maintain_order="left")
    return heads


def _importance_text(run: RunFolder) -> str:
    if run.manifest["config"]["published"]:
        return "In the published form: logits are not scaled, and each query's divergence is divided by the number of its keys."
    return "At the scale of the model's own logits, summed over keys, mean over queries and texts."


def _notes(run: RunFolder) -> list[str]:
    record = run.manifest["record"]
    notes = []
    trained = record.get("trained_here")
    if trained:
        notes.append(f"The model was trained here: {trained['n_parameters']:,} parameters; held-out loss {trained['validation_loss']:.2f} nats per token, where token frequencies alone give {trained['unigram_entropy']:.2f}.")  # fmt: skip
    known, rows = record.get("tokenizer_length"), record.get("embedding_rows")
    if known is not None and known != rows:
        more = (
            "Rows without a token count as candidates that never occur."
            if known < rows
            else "Tokens without a row can't be used."
        )
        notes.append(f"The tokenizer knows {known:,} tokens and the embedding has {rows:,} rows. {more}")
    if "auroc" in run.tables:
        notes.append(
            "Suffixes that the text never holds after a token have no AUROC; they are left out of means, and counted as 0 in the published form."
        )
        notes.append(
            "The text is what the model was trained on, where it was trained here: the score tells what weights hold of it, not whether that generalises."
        )
    scheme = run.read_summary()["scheme"]
    if scheme == "additive":
        notes.append(
            "σ of the norm depends on token and position together and is averaged in the terms that follow from weights alone; the largest ratio is told above."
        )
    if run.table("heads").height > 16:
        notes.append("The figure of all heads shows the first 16; the picker has all of them.")
    return notes
