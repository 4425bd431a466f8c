"""The headline numbers of `detokenization`, with their intervals, from the run's tables.

AUROCs are means over suffixes, and suffixes are what the bootstrap draws; attention is measured on texts, and texts are
drawn. The best head is the largest of several, chosen where it is measured; so is that of the untrained model, beside which
it stands. What the intervals don't cover: other seeds of training, and other texts of the same kind.
"""

from collections.abc import Callable

import numpy as np
import polars as pl

from inscape.runs import RunFolder
from inscape.runs.folder import Scalar
from inscape.runs.intervals import Interval, bootstrap, proportion
from inscape.studies.detokenization_measures import agreement, kind_of_head

TRAINED, AT_INIT, UNIGRAM = "trained", "at init", "unigram"
_UNIFORM, _BY_FREQUENCY = "positions", "positions_by_frequency"
_DRAWS = 1000
_NOTHING = proportion(np.array([]))


def summarise(run: RunFolder, *, published: bool, recent: int, seed: int) -> dict[str, Scalar]:
    """Flat: name → number; estimates with ``_lo`` and ``_hi``."""
    heads = run.table("heads")
    summary: dict[str, Scalar] = {
        "n_heads": heads.height,
        "scheme": str(heads["scheme"][0]),
        "sigma_ratio_max": float(heads["sigma_ratio"].max()),  # type: ignore[arg-type]
    }
    absent = (
        "sum_of_terms_max_error",
        "sum_of_terms_max_log_error",
        "n_texts",
        "n_bigrams",
        "n_distinct_bigrams",
        "n_tokens",
    )
    summary |= dict.fromkeys((*absent, "n_suffixes", "best_head", "token_frequency_spearman"))
    if "attention" in run.tables:
        check = run.table("check")
        summary |= {
            "sum_of_terms_max_error": float(check["error"].max()),  # type: ignore[arg-type]
            "sum_of_terms_max_log_error": float(check["log_error"].max()),  # type: ignore[arg-type]
            "n_texts": run.table("texts").height,
        }
    summary |= _attention(run, published, recent, seed)
    if "auroc" in run.tables:
        arrays = _arrays(run, "bigrams")
        summary |= {
            "n_bigrams": int(arrays["count"].sum()),
            "n_distinct_bigrams": len(arrays["count"]),
            "n_tokens": int(arrays["unigram"].sum()),
            "n_suffixes": run.table("auroc").filter(pl.col("scorer") == UNIGRAM).height,
        }
        spearman = frequency_correlations(run)["spearman"].drop_nulls()
        summary["token_frequency_spearman"] = float(spearman.mean()) if len(spearman) else None  # type: ignore[arg-type]
    return summary | _auroc(run, published, seed)


def _auroc(run: RunFolder, published: bool, seed: int) -> dict[str, Scalar]:
    names = ["auroc_best_head", "auroc_best_head_at_init", "auroc_unigram", "auroc_above_init", "auroc_above_unigram"]
    names += ["auroc_matched_best_head", "auroc_matched_at_init", "auroc_matched_unigram", "auroc_matched_above_init",
              "auroc_matched_above_unigram"]  # fmt: skip
    estimates = dict.fromkeys(names, _NOTHING)
    plain: dict[str, Scalar] = {"auroc_matched_head": None}
    if "auroc" in run.tables:
        values = by_scorer(run, published)
        means = {key: float(np.mean(each)) for key, each in values.items()}
        best = _best(means, TRAINED)
        plain["best_head"] = best[1]
        for (name, head), each in values.items():
            if name == TRAINED:
                estimates[f"auroc_head_{head}"] = bootstrap(each, seed=seed, n=_DRAWS)
        estimates |= _against(values, best, _best(means, AT_INIT), "auroc", seed)
        matched = {
            (str(name), int(head)): rows.sort("suffix")["auroc_matched"].to_numpy()
            for (name, head), rows in run.table("matched").group_by("scorer", "head", maintain_order=True)
        }
        means = {key: float(np.nanmean(each)) for key, each in matched.items()}
        plain["auroc_matched_head"] = _best(means, TRAINED)[1]
        estimates |= _against(matched, _best(means, TRAINED), _best(means, AT_INIT), "auroc_matched", seed)
    return plain | _flat(estimates)


def _best(means: dict[tuple[str, int], float], name: str) -> tuple[str, int]:
    return max((key for key in means if key[0] == name), key=lambda key: means[key])


def _against(
    values: dict[tuple[str, int], np.ndarray], best: tuple[str, int], init: tuple[str, int], prefix: str, seed: int
) -> dict[str, Interval]:
    """The best head, the untrained model's best and the unigram scorer; and the differences, suffix by suffix."""

    def interval(each: np.ndarray) -> Interval:
        return bootstrap(each, seed=seed, n=_DRAWS)

    unigram = values[UNIGRAM, 0]
    at_init = "auroc_best_head_at_init" if prefix == "auroc" else f"{prefix}_at_init"
    return {
        f"{prefix}_best_head": interval(values[best]),
        at_init: interval(values[init]),
        f"{prefix}_unigram": interval(unigram),
        f"{prefix}_above_init": interval(values[best] - values[init]),
        f"{prefix}_above_unigram": interval(values[best] - unigram),
    }


def by_scorer(run: RunFolder, published: bool) -> dict[tuple[str, int], np.ndarray]:
    """AUROC by scorer and head, float64 ``[suffix]``, in one order of suffixes.

    Suffixes without a bigram are left out; ``published`` has a 0 for each of them.
    """
    vocab = len(_arrays(run, "bigrams")["unigram"])
    found = {}
    for (name, head), rows in run.table("auroc").group_by("scorer", "head", maintain_order=True):
        each = rows.sort("suffix")["auroc"].to_numpy()
        found[str(name), int(head)] = np.append(each, np.zeros(vocab - len(each))) if published else each
    return found


def head_scores(run: RunFolder, published: bool) -> pl.DataFrame:
    """``head``, ``auroc`` (mean over suffixes) and ``auroc_by_frequency`` (each as often as it ends a bigram)."""
    arrays = _arrays(run, "bigrams")
    times = np.bincount(arrays["suffix"], arrays["count"], len(arrays["unigram"]))
    weighted = run.table("auroc").filter(pl.col("scorer") == TRAINED).group_by("head").agg(
        pl.struct("suffix", "auroc").map_batches(
            lambda s: pl.Series([np.average(s.struct.field("auroc"), weights=times[s.struct.field("suffix").to_numpy()])]),
            return_dtype=pl.Float64, returns_scalar=True,
        ).alias("auroc_by_frequency")
    )  # fmt: skip
    means = [
        {"head": h, "auroc": float(v.mean())} for (name, h), v in by_scorer(run, published).items() if name == TRAINED
    ]
    return pl.DataFrame(means).join(weighted, on="head", maintain_order="left")


def observed_heads(run: RunFolder, recent: int) -> pl.DataFrame:
    """By head: kinds from weights and from texts, masses, and how well positions alone foretell the profile."""
    observed = run.table("attention")
    by_frequency = run.table("heads_by_frequency")["kind"].to_list()
    rows = []
    for head in run.table("heads").iter_rows(named=True):
        here = observed.filter(pl.col("head") == head["head"])
        mass = np.array(here["profile"].to_list()).mean(0)
        keys = float(here["keys_in_effect"].mean())  # type: ignore[arg-type]
        parts = {"self": mass[0], "recent": mass[1 : recent + 1].sum(), "farther": mass[recent + 1 :].sum()}
        corr, distance = agreement(_predicted(run, head["head"]), mass)
        again = agreement(_predicted(run, head["head"], _BY_FREQUENCY), mass)
        rows.append(
            {
                "head": head["head"], "kind": head["kind"], "kind_by_frequency": by_frequency[head["head"]],
                "kind_observed": kind_of_head(mass, recent, keys),
                **{name: float(part) for name, part in parts.items()}, "keys_in_effect": keys, "corr": corr,
                "total_variation": distance, "corr_by_frequency": again[0], "total_variation_by_frequency": again[1],
            }
        )  # fmt: skip
    return pl.DataFrame(rows)


def frequency_correlations(run: RunFolder) -> pl.DataFrame:
    """By head: Spearman's correlation of the key-token term with the count of the token, over tokens that the text holds.

    Null where the term is the same for all (queries have no bias).
    """
    from scipy.stats import spearmanr

    unigram, terms = _arrays(run, "bigrams")["unigram"], _arrays(run, "key_terms")["key_term"]
    held = unigram > 0
    rows = []
    for head, term in enumerate(terms):
        flat = np.ptp(term[held]) == 0
        rows.append({"head": head, "spearman": None if flat else float(spearmanr(term[held], unigram[held]).statistic)})
    return pl.DataFrame(rows, schema={"head": pl.Int64, "spearman": pl.Float64})


def term_importance(run: RunFolder, published: bool, seed: int) -> pl.DataFrame:
    """``head``, ``term``, and the mean ``importance`` over texts, with its interval in ``lo`` and ``hi``."""
    column = "importance_published" if published else "importance"
    long = (
        run.table("attention")
        .select("head", "terms", pl.col(column).alias("importance"))
        .explode("terms", "importance")
    )
    rows = []
    for (head, term), here in long.group_by("head", "terms", maintain_order=True):
        found = bootstrap(here["importance"].to_numpy(), seed=seed, n=_DRAWS)
        rows.append({"head": head, "term": term, "importance": found.value, "lo": found.lo, "hi": found.hi})
    return pl.DataFrame(rows, schema_overrides=dict.fromkeys(("importance", "lo", "hi"), pl.Float64))


def _attention(run: RunFolder, published: bool, recent: int, seed: int) -> dict[str, Scalar]:
    measures = ("position_profile_corr", "position_profile_total_variation")
    names = [f"{name}{ending}" for name in (*measures, "kinds_agree") for ending in ("", "_by_frequency")]
    estimates = dict.fromkeys(names, _NOTHING)
    plain: dict[str, Scalar] = {"most_important_term": None}
    if "attention" not in run.tables:
        return plain | _flat(estimates)
    n_heads = run.table("heads").height
    observed = np.array(run.table("attention").sort("text", "head")["profile"].to_list())
    observed = observed.reshape(-1, n_heads, observed.shape[-1])  # [text, head, D + 2]

    def mean_agreement(which: int, predicted: list[np.ndarray]) -> Callable[[np.ndarray], float]:
        def statistic(texts: np.ndarray) -> float:
            mean = observed[texts.astype(np.int64)].mean(0)
            every = [agreement(p, o)[which] for p, o in zip(predicted, mean, strict=True)]
            return float(np.nanmean(every)) if not np.isnan(every).all() else float("nan")

        return statistic

    for table, ending in ((_UNIFORM, ""), (_BY_FREQUENCY, "_by_frequency")):
        predicted = [_predicted(run, head, table) for head in range(n_heads)]
        for which, name in enumerate(measures):
            statistic = mean_agreement(which, predicted)
            estimates[f"{name}{ending}"] = bootstrap(np.arange(len(observed)), statistic, seed=seed, n=_DRAWS)
    heads = observed_heads(run, recent)
    for ending in ("", "_by_frequency"):
        same = heads[f"kind{ending}"] == heads["kind_observed"]
        estimates[f"kinds_agree{ending}"] = proportion(same.to_numpy())
    terms = term_importance(run, published, seed).group_by("term", maintain_order=True).agg(pl.col("importance").mean())
    for term, value in terms.iter_rows():
        plain[f"importance_{term}"] = value
    plain["most_important_term"] = str(terms.sort("importance", descending=True, nulls_last=True)["term"][0])
    return plain | _flat(estimates)


def _predicted(run: RunFolder, head: int, table: str = _UNIFORM) -> np.ndarray:
    return run.table(table).filter(pl.col("head") == head).sort("distance")["predicted"].to_numpy()


def _arrays(run: RunFolder, name: str) -> dict[str, np.ndarray]:
    from safetensors.numpy import load_file

    return dict(load_file(run.folder / "arrays" / f"{name}.safetensors"))


def _flat(estimates: dict[str, Interval]) -> dict[str, Scalar]:
    summary: dict[str, Scalar] = {}
    for name, interval in estimates.items():
        summary |= interval.summary(name)
    return summary
