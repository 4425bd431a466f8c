"""Attention of the first layer read from weights (P2: Kamoda et al., Findings of NAACL 2025, arXiv 2501.15754).

Question. What do the heads of a first layer do with tokens and positions, and how far do weights alone foretell it? Do some
of them join the pieces that a tokenizer cut words into (*detokenization*)?

Method, in the order of the paper:

1. the logits of the first layer as a sum of terms, exact for known tokens (checked against the model's own attention);
2. *detokenization score*: the token-token term of a suffix (query) with every prefix (key), against the bigrams of a text:
   AUROC per suffix and head, beside the same architecture with its initial weights and a scorer that knows only how
   frequent tokens are; the prefixes that score highest;
3. *positions*: attention as the position terms alone predict it, against attention on texts (correlation, total variation);
   heads classed from weights as looking at themselves, the recent past, particular tokens or everything; and from texts;
4. *importance* of each term: how far attention moves when it is left out;
5. the key-token term against the frequency of tokens (Spearman).

Departures from the published code are on the study's docs page; ``published`` has its forms of the averages.
"""

import copy
from collections.abc import Callable
from functools import cached_property, partial

import numpy as np
import polars as pl
import torch

from inscape.attention import FirstLayer, first_layer
from inscape.attention.bigrams import Bigrams, count_bigrams
from inscape.attention.scores import bigram_auroc, top_prefixes, unigram_auroc
from inscape.models import LM, load
from inscape.runs import Run
from inscape.studies.detokenization_gpt2 import gpt2_checks, is_gpt2_small
from inscape.studies.detokenization_measures import (
    importance,
    keys_in_effect,
    kind_of_head,
    mean_curves,
    predicted_profile,
    profile,
    published_importance,
)
from inscape.studies.detokenization_setup import (
    SMOKE,
    Asked,
    Config,
    Subject,
    asked_for,
    documents_of,
    draw_texts,
    inputs_of,
    subject_of,
)
from inscape.studies.detokenization_suffixes import chosen_suffixes, shown
from inscape.studies.detokenization_summary import AT_INIT, TRAINED, UNIGRAM, summarise
from inscape.training.corpus import untrained

_FARTHEST = 64
_CHECKED = 4
_SIMULATED = 8
_CURVES = 300
_MANY_BYTES = 50_000_000


def run(config: Config, asked: Asked, run: Run) -> None:
    """All stages, each resumable; writes the tables and the summary."""
    study = _Study(config, asked, run)
    study.from_weights()
    if asked.files:
        study.observe()
        study.count()
        study.score()
        study.prefixes()
    study.compare_with_the_paper()
    run.summary(summarise(run, published=config.published, recent=config.recent, seed=config.seed))


class _Study:
    """The state that stages hand on. The model is loaded when the first stage that needs it is not yet done."""

    def __init__(self, config: Config, asked: Asked, run: Run) -> None:
        self.config, self.asked, self.run = config, asked, run

    @cached_property
    def subject(self) -> Subject:
        found = subject_of(self.config, self.asked, self.run)
        if is_gpt2_small(found.lm.config):
            self.run.record(gpt2_small=True)
        return found

    @property
    def lm(self) -> LM:
        return self.subject.lm

    @cached_property
    def terms(self) -> FirstLayer:
        return first_layer(self.lm)

    @cached_property
    def at_init(self) -> FirstLayer:
        """The same architecture, its weights drawn anew: for a model trained here, as its training drew them."""
        training = self.subject.training
        seed = self.config.seed if training is None else int(training["config"]["seed"])  # type: ignore[index]
        model = untrained(copy.deepcopy(self.lm.model.config), seed).to(self.lm.device)
        return first_layer(load(model, self.lm.tokenizer))

    @property
    def length(self) -> int:
        """Tokens of a text at most."""
        return min(self.config.length, self.terms.positions or self.config.length)

    @property
    def farthest(self) -> int:
        """The largest distance of a profile."""
        return min(_FARTHEST, self.length // 2)

    # -- 1. weights alone ------------------------------------------------------------------------------------------

    def from_weights(self) -> None:
        def compute() -> dict[str, pl.DataFrame]:
            heads, positions = self._foretold(self.terms)
            return {"heads": heads, "positions": positions}

        self.n_heads = self.run.stage("heads", compute)["heads"].height

        def key_terms() -> dict[str, np.ndarray]:
            every = [self.terms.token(head).float().cpu().numpy() for head in range(self.terms.heads)]
            return {"key_term": np.stack(every)}

        self.run.arrays("key_terms", key_terms)

    def _foretold(self, terms: FirstLayer) -> tuple[pl.DataFrame, pl.DataFrame]:
        """Heads and their profiles as weights foretell them, for tokens drawn from the prior of ``terms``."""
        n, farthest = self.length, self.farthest
        simulated, in_effect = self._simulated(terms)
        heads, positions = [], []
        for head in self.run.track(range(terms.heads), "positions: heads"):
            position = terms.position(head, range(farthest + 1))
            predicted = predicted_profile(position.attention, farthest, n)
            mu = [*position.mu.tolist(), None]
            positions += [
                {"head": head, "distance": d, "predicted": p, "simulated": s, "mu": m}
                for d, (p, s, m) in enumerate(zip(predicted.tolist(), simulated[head].tolist(), mu, strict=True))
            ]
            heads.append(
                {
                    "head": head,
                    "scheme": terms.scheme,
                    "sigma_ratio": terms.sigma_ratio,
                    "slope": position.slope,
                    "kind": kind_of_head(simulated[head], self.config.recent, float(in_effect[head])),
                    "keys_in_effect": float(in_effect[head]),
                }
            )
        frame = pl.DataFrame(heads, schema_overrides={"slope": pl.Float64}, infer_schema_length=None)
        return frame, pl.DataFrame(positions, infer_schema_length=None)

    def _simulated(self, terms: FirstLayer) -> tuple[np.ndarray, np.ndarray]:
        """Profile ``[head, D + 2]`` and `keys_in_effect` ``[head]`` on tokens drawn one by one from the prior."""
        draw = np.random.default_rng([self.config.seed, 59])
        prior = terms.prior.double().cpu().numpy()
        mass, keys = [], []
        for _ in range(_SIMULATED):
            ids = draw.choice(terms.vocab, self.length, p=prior / prior.sum()).tolist()
            attention = terms.logits(ids, bos=False).attention()
            mass.append(profile(attention, self.farthest).cpu().numpy())
            keys.append(keys_in_effect(attention, self.farthest).cpu().numpy())
        return np.mean(mass, axis=0), np.mean(keys, axis=0)

    # -- 2. attention on texts -------------------------------------------------------------------------------------

    def observe(self) -> None:
        def draw() -> dict[str, pl.DataFrame]:
            least = self.farthest + 1
            found = draw_texts(self.lm, self.asked.files, self.config.texts, self.length, least, self.config.seed)
            return {"texts": pl.DataFrame({"text": range(len(found)), "ids": found})}

        self.texts: list[list[int]] = self.run.stage("texts", draw)["texts"]["ids"].to_list()
        self.run.stage("check", lambda: {"check": self._check(self.texts[:_CHECKED])})
        self.run.map("attention", [str(i) for i in range(len(self.texts))], self._attention)

    def _check(self, texts: list[list[int]]) -> pl.DataFrame:
        """The terms' attention against the model's own, by text and head: largest differences of P, and of log P."""
        model = self.lm.model
        before = model.config._attn_implementation  # type: ignore[union-attr]
        rows = []
        try:
            model.set_attn_implementation("eager")  # type: ignore[operator]
            for number, ids in enumerate(texts):
                with torch.no_grad():
                    inputs = torch.tensor([ids], device=self.lm.device)
                    own = model(inputs, output_attentions=True).attentions[0][0].double()
                ours = self.terms.logits(ids, bos=False).attention().double()
                seen = own > 1e-6  # (below, float32 has few digits of a probability left)
                logs = (ours.clamp_min(1e-30).log() - own.clamp_min(1e-30).log()).abs() * seen
                off = (ours - own).abs()
                rows += [
                    {"text": number, "head": h, "error": float(off[h].max()), "log_error": float(logs[h].max())}
                    for h in range(len(own))
                ]
        finally:
            model.set_attn_implementation(before)  # type: ignore[operator]
        return pl.DataFrame(rows)

    def _attention(self, key: str) -> pl.DataFrame:
        """One text: profile, keys in effect and importance of terms, by head."""
        terms = self.terms.logits(self.texts[int(key)], bos=False)
        attention = terms.attention()
        mass = profile(attention, self.farthest).cpu().numpy()
        keys = keys_in_effect(attention, self.farthest).cpu().numpy()
        moved = importance(terms)
        published = published_importance(terms, self.terms.positions)
        return pl.DataFrame(
            [
                {
                    "text": int(key), "head": h, "profile": mass[h].tolist(), "keys_in_effect": float(keys[h]),
                    "terms": list(moved), "importance": [float(value[h]) for value in moved.values()],
                    "importance_published": [float(value[h]) for value in published.values()],
                }
                for h in range(len(attention))
            ]
        )  # fmt: skip

    # -- 3. bigrams ------------------------------------------------------------------------------------------------

    def count(self) -> None:
        def compute() -> dict[str, np.ndarray]:
            size = sum(file.stat().st_size for file in self.asked.files)
            processes = self.config.processes or (None if size >= _MANY_BYTES else 1)
            found = count_bigrams(
                self.asked.files, self.lm.tokenizer, documents=documents_of(self.asked.files[0]), vocab=self.lm.vocab,
                processes=processes,
            )  # fmt: skip
            numbers = np.array([found.documents, found.tokens, found.cuts])
            return {
                "suffix": found.suffix,
                "prefix": found.prefix,
                "count": found.count,
                "unigram": found.unigram,
                "n": numbers,
            }

        self.bigrams = bigrams_of(self.run.arrays("bigrams", compute))

        def foretold() -> dict[str, pl.DataFrame]:
            prior = torch.from_numpy(self.bigrams.unigram)
            heads, positions = self._foretold(first_layer(self.lm, prior=prior))
            return {"heads_by_frequency": heads, "positions_by_frequency": positions}

        self.run.stage("by_frequency", foretold)

    def score(self) -> None:
        every = [f"{name} {head}" for name in (TRAINED, AT_INIT) for head in range(self.n_heads)]

        def one(key: str) -> pl.DataFrame:
            name, _, head = key.rpartition(" ")
            if name == UNIGRAM:
                found = unigram_auroc(self.bigrams)
            else:
                found = bigram_auroc(*self._of(name).tables(int(head)), self.bigrams)
            seen = np.flatnonzero(~np.isnan(found))
            return pl.DataFrame({"scorer": name, "head": int(head), "suffix": seen, "auroc": found[seen]})

        self.run.map("auroc", [*every, f"{UNIGRAM} 0"], one)
        self.run.stage("roc", self._curves)

    def _of(self, name: str) -> FirstLayer:
        return self.terms if name == TRAINED else self.at_init

    def _curves(self) -> dict[str, pl.DataFrame]:
        counted = self.bigrams.rows()[0][self.bigrams.rows()[2] < self.lm.vocab]
        draw = np.random.default_rng([self.config.seed, 61])
        suffixes = np.sort(draw.choice(counted, min(_CURVES, len(counted)), replace=False))
        tables = {
            f"{name} {head}": [table.cpu().numpy() for table in self._of(name).tables(head)]
            for name in (TRAINED, AT_INIT)
            for head in range(self.n_heads)
        }
        scores: dict[str, Callable[[int], np.ndarray]] = {}
        for name, (queries, keys) in tables.items():
            scores[name] = partial(_scores, queries, keys)
        scores[f"{UNIGRAM} 0"] = lambda v: self.bigrams.unigram.astype(np.float64)
        found = mean_curves(scores, self.bigrams, suffixes).with_columns(
            pl.col("scorer").str.replace(r" \d+$", ""),
            pl.col("scorer").str.extract(r" (\d+)$").cast(pl.Int64).alias("head"),
        )
        curves = [
            {"scorer": name, "head": head, "fpr": x / 100, "tpr": float(y)}
            for (name, head), rows in found.group_by("scorer", "head", maintain_order=True)
            for x, y in enumerate(np.mean(rows["tpr"].to_list(), axis=0))
        ]
        return {"roc": pl.DataFrame(curves), "matched": found.drop("tpr")}

    def prefixes(self) -> None:
        def compute() -> dict[str, pl.DataFrame]:
            suffixes = chosen_suffixes(self.lm, self.bigrams, self.config.suffixes)
            parts = []
            for head in range(self.n_heads):
                top = top_prefixes(*self.terms.tables(head), suffixes, min(self.config.top, self.lm.vocab))
                counts = {
                    v: dict(zip(*map(np.ndarray.tolist, self.bigrams.prefixes(v)), strict=True)) for v in suffixes
                }
                parts.append(
                    top.with_columns(
                        pl.lit(head).alias("head"),
                        pl.Series(
                            "count", [counts[v].get(w, 0) for v, w in top.select("suffix", "prefix").iter_rows()]
                        ),
                        *(
                            pl.Series(f"{side}_text", [shown(self.lm, token) for token in top[side]], dtype=pl.String)
                            for side in ("suffix", "prefix")
                        ),
                    )
                )
            return {"prefixes": pl.concat(parts)}

        self.run.stage("prefixes", compute)

    # -- the paper's model -----------------------------------------------------------------------------------------

    def compare_with_the_paper(self) -> None:
        """Where the model is a GPT-2 small: its numbers beside those that the paper's authors report."""
        if self.run.manifest["record"].get("gpt2_small"):
            self.run.stage("gpt2", lambda: {"gpt2": gpt2_checks(self.run, self.terms, self.config.recent)})


def _scores(queries: np.ndarray, keys: np.ndarray, suffix: int) -> np.ndarray:
    return np.asarray(keys @ queries[suffix])


def bigrams_of(arrays: dict[str, np.ndarray]) -> Bigrams:
    """The counts that a run keeps in ``arrays/bigrams.safetensors``."""
    documents, tokens, cuts = arrays["n"].tolist()
    return Bigrams(
        arrays["suffix"],
        arrays["prefix"],
        arrays["count"],
        arrays["unigram"],
        documents=documents,
        tokens=tokens,
        cuts=cuts,
    )


__all__ = ["SMOKE", "Config", "asked_for", "inputs_of", "run"]
