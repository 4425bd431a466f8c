"""Where a fact passes on its way to the answer (Meng, Bau, Andonian & Belinkov, NeurIPS 2022, 2202.05262, section 2).

Question. A model continues "The Eiffel Tower is in the city of" rightly. Which of its states, at which token and layer,
carry what makes the answer right?

Method, in the order of the paper:

1. prompts with a subject and an answer; those that the model does not answer are left out and named;
2. *noise*: N(0, ν²) on the embeddings of all subject tokens, ν three times their standard deviation, ten samples; the *total
   effect* is the probability of the answer in the clean run less that in the corrupted runs;
3. *restoring*: one state of the clean run is put back into the corrupted runs, at one token and one layer
   (``resid_post``) or a window of layers (``mlp_out``, ``attn_out``); the *indirect effect* is the probability gained.
   Beside it two controls at the same token and layer: the state of an unrelated prompt, and that of a run with other noise;
4. *patching* between prompts: the clean run's state in the run of a prompt about another subject (denoising) and the other
   way round (noising), measured by the logit difference of the two answers, 0 for one run and 1 for the other;
5. *attribution patching*, the first-order estimate of the denoising map from one gradient, and how well the two agree.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import polars as pl
from pydantic import Field

from inscape.data.fact_table import SCHEMA
from inscape.data.facts import Facts
from inscape.data.properties import PROPERTIES
from inscape.errors import InputError
from inscape.models import LM
from inscape.runs import Run
from inscape.studies import numeric_setup
from inscape.studies.causal_tracing_maps import moved, patch_map, role_map
from inscape.studies.causal_tracing_rows import Row, Rows, read_rows, rows_of_facts, table_of
from inscape.studies.causal_tracing_summary import summarise
from inscape.studies.causal_tracing_sweeps import Pair, attribute, embedding_spread, patch, trace
from inscape.studies.causal_tracing_tokens import (
    Question,
    first_difference,
    partners,
    question,
    question_of,
    token_texts,
)
from inscape.studies.numeric_setup import NumericConfig, Subject, sample, subject_of

OF_FACTS = 100
"""Prompts that are made from facts, unless told otherwise."""


class Config(NumericConfig):
    """``inscape trace``. Defaults are the paper's where it has a value; otherwise the text says why."""

    prompts: str | None = Field(
        default=None,
        description="JSONL file of rows {prompt, subject, answer, corrupt_subject, corrupt_answer, id}, the last three "
        "optional; without one, questions are made from facts",
    )
    n_prompts: int | None = Field(
        default=None,
        ge=1,
        description="most prompts, drawn by seed (default: all of a file, 100 of facts; paper: 1,000)",
    )
    template: int = Field(
        default=0, ge=0, description="which wording of the question, where prompts are made from facts"
    )
    only_correct: bool = Field(
        default=True, description="leave out prompts whose answer is not the model's first choice"
    )
    noise: float = Field(default=3.0, gt=0, description="noise in standard deviations of the subjects' embeddings")
    n_noise: int = Field(default=10, ge=1, description="samples of noise for each prompt")
    window: int | None = Field(
        default=None, ge=0,
        description="layers on each side that are restored together, for mlp_out and attn_out (default: a tenth of "
        "the layers; paper: 10 of 48 together)",
    )  # fmt: skip

    def identity(self) -> dict[str, object]:
        """Also not how the prompts' file is spelled: its hash is an input."""
        return {name: value for name, value in super().identity().items() if name != "prompts"}


SMOKE = {"size": "smoke", "n_prompts": 16, "n_noise": 3}
"""What ``--smoke`` sets: the whole pipeline at the smallest sizes."""


@dataclass(frozen=True, eq=False)
class Asked:
    """The rows of a run, and the facts that its model is trained on or that the rows are made from."""

    rows: Rows
    facts: Facts


def asked_for(config: Config) -> Asked:
    """The rows of a config, sampled.

    Raises:
        InputError: a row, a facts table or a choice that can't be used.
    """
    if config.prompts is not None:
        rows = read_rows(config.prompts, config.prefix)
        known = config.model is None or config.data is not None
        none = Facts(pl.DataFrame(schema=SCHEMA), "none: the prompts come from a file")
        facts = numeric_setup.facts_for(config) if known else none
        most = config.n_prompts
    else:
        facts = numeric_setup.facts_for(config)
        if config.property not in facts.properties:
            raise InputError(f"property {config.property}: not in these facts ({', '.join(facts.properties)})")
        rows = rows_of_facts(facts, PROPERTIES[config.property], config.template, config.prefix)
        most = config.n_prompts or OF_FACTS
    if most is not None and most < len(rows.rows):
        kept = sample(pl.DataFrame({"row": range(len(rows.rows))}), most, config.seed)["row"]
        note = f"{most} of {len(rows.rows)} prompts were drawn by seed."
        rows = Rows(tuple(rows.rows[i] for i in kept), rows.source, rows.sha256, (*rows.notes, note))
    return Asked(rows, facts)


def inputs_of(config: Config, asked: Asked) -> dict[str, str]:
    """What a run depends on, by content: prompts, facts, model and tokenizer."""
    return {"prompts": asked.rows.sha256, **numeric_setup.inputs_of(config, asked.facts)}


def run(config: Config, asked: Asked, run: Run) -> None:
    """All stages, each resumable; writes the tables and the summary."""
    study = _Study(config, asked, run)
    study.ask()
    study.trace()
    study.pair()
    study.patch()
    run.summary(summarise(run, seed=config.seed))


class _Study:
    """The state that stages hand on. The model is loaded when the first stage that needs it is not yet done."""

    def __init__(self, config: Config, asked: Asked, run: Run) -> None:
        self.config, self.asked, self.run = config, asked, run
        self.rows = asked.rows.rows
        self._subject: Subject | None = None

    @property
    def lm(self) -> LM:
        if self._subject is None:
            self._subject = subject_of(self.config, self.asked.facts, self.run)
            lm = self._subject.lm
            missing = [site for site in ("mlp_out", "attn_out") if site not in lm.sites.available()]
            self.run.record(
                prompts=self.asked.rows.source, prompts_notes=list(self.asked.rows.notes), sites_missing=missing,
                window=self.window(lm),
            )  # fmt: skip
        return self._subject.lm

    @cached_property
    def questions(self) -> list[Question]:
        return [question_of(self.lm, row) for row in self.rows]

    def window(self, lm: LM) -> int:
        return round(lm.n_layers / 10) if self.config.window is None else self.config.window

    # -- 1. what the model answers ---------------------------------------------------------------------------------

    def ask(self) -> None:
        def compute() -> dict[str, pl.DataFrame]:
            scores = self.lm.score(
                [q.ids for q in self.questions], [q.answer for q in self.questions], batch_size=self.config.batch_size,
                progress=numeric_setup.batches(self.run, "ask"),
            )  # fmt: skip
            rows = table_of(self.asked.rows).with_columns(
                pl.Series("clean", scores.total.exp().double().numpy()),
                pl.Series("correct", scores.greedy.numpy()),
                pl.Series("kept", scores.greedy.numpy() | (not self.config.only_correct)),
            )
            tokens = [
                {"id": row.id, "position": i, "token": text, "role": role}
                for row, q in zip(self.rows, self.questions, strict=True)
                for i, (text, role) in enumerate(zip(token_texts(self.lm, q.ids), q.roles(), strict=True))
            ]
            return {"rows": rows, "tokens": pl.DataFrame(tokens)}

        found = self.run.stage("ask", compute)
        self.kept = [i for i, kept in enumerate(found["rows"]["kept"]) if kept]

    # -- 2 and 3. noise, and what restoring gives back -------------------------------------------------------------

    def trace(self) -> None:
        if not self.kept:
            return
        spread = self.run.stage(
            "spread",
            lambda: {
                "spread": pl.DataFrame(
                    {"embedding_sd": [embedding_spread(self.lm, self.questions, self.config.batch_size)]}
                )
            },
        )["spread"]
        scale = self.config.noise * float(spread["embedding_sd"][0])
        partner = self.run.stage("partners", lambda: {"partners": self._partners()})["partners"]
        unrelated = dict(zip(partner["row"], partner["unrelated"], strict=True))

        def compute(key: str) -> pl.DataFrame:
            here: list[int] = json.loads(key)
            available = self.lm.sites.available()
            return trace(
                self.lm, [self.rows[i].id for i in here], [self.questions[i] for i in here],
                [None if unrelated[i] is None else self.questions[unrelated[i]] for i in here], here,
                sites=[s for s in ("resid_post", "mlp_out", "attn_out") if s in available], window=self.window(self.lm),
                n_noise=self.config.n_noise, scale=scale, seed=self.config.seed, batch_size=self.config.batch_size,
            )  # fmt: skip

        traced = self.run.map("tracing", self._portions(self.kept), compute)
        self.run.stage("role_map", lambda: {"role_map": role_map(traced, self.run.table("rows"), self.config.seed)})

    def _partners(self) -> pl.DataFrame:
        found = partners(self.rows, self.questions, self.kept, self.config.seed)
        return pl.DataFrame(
            {"row": self.kept, "corrupt": [p.corrupt for p in found], "unrelated": [p.unrelated for p in found]},
            schema={"row": pl.Int64, "corrupt": pl.Int64, "unrelated": pl.Int64},
        )

    def _portions(self, rows: Sequence[int]) -> list[str]:
        """Row numbers in portions of about one batch: what a killed run loses."""
        many = max(1, self.config.batch_size // self.config.n_noise)
        return [json.dumps(list(rows[at : at + many])) for at in range(0, len(rows), many)]

    # -- 4 and 5. patching between prompts, and its first-order estimate -------------------------------------------

    def pair(self) -> None:
        """A table with a row for each prompt kept: how it is corrupted, or why it can't be."""
        if not self.kept:
            return

        def compute() -> dict[str, pl.DataFrame]:
            partner = self.run.table("partners")
            return {
                "pairs": pl.DataFrame(
                    [self._pair(i, k) for i, k in zip(partner["row"], partner["corrupt"], strict=True)],
                    schema={"row": pl.Int64, "id": pl.String, "corrupt_subject": pl.String, "corrupt": pl.Int64,
                            "told": pl.List(pl.Int64), "correct": pl.Int64, "wrong": pl.Int64, "why": pl.String},
                )
            }  # fmt: skip

        self.pairs = self.run.stage("pairs", compute)["pairs"]

    def _pair(self, i: int, partner: int | None) -> dict[str, object]:
        row, asked = self.rows[i], self.questions[i]
        entry: dict[str, object] = {"row": i, "id": row.id, "corrupt": partner, "corrupt_subject": row.corrupt_subject}
        if row.corrupt_subject is None and partner is None:
            return entry | {"why": "no other prompt of the same wording has another answer"}
        if partner is not None:
            entry["corrupt_subject"] = self.rows[partner].subject
        other = self._corrupted(i, partner)
        answer: Sequence[int] = other.answer
        if row.corrupt_subject is not None and row.corrupt_answer is None:
            answer = self.lm.generate_ids([other.ids], max_new_tokens=1)[0]
        at = first_difference(asked.answer, answer)
        if at is None:
            return entry | {"why": "the answers of the two prompts don't differ"}
        return entry | {"told": list(asked.answer[:at]), "correct": asked.answer[at], "wrong": answer[at]}

    def _corrupted(self, i: int, partner: int | None) -> Question:
        row: Row = self.rows[i]
        if partner is not None:
            return self.questions[partner]
        assert row.corrupt_subject is not None
        # (Without an answer of its own, the prompt is cut where the clean answer would begin.)
        answer = row.answer if row.corrupt_answer is None else row.corrupt_answer
        return question(
            self.lm, row.about(row.corrupt_subject), row.start, row.corrupt_subject, answer, f"{row.place}, corrupted"
        )

    def patch(self) -> None:
        paired = self.pairs.filter(pl.col("why").is_null()) if self.kept else pl.DataFrame()
        if paired.is_empty():
            return
        unrelated = dict(self.run.table("partners").select("row", "unrelated").iter_rows())

        def pairs(key: str) -> list[Pair]:
            here = paired.filter(pl.col("row").is_in(json.loads(key)))
            return [
                Pair(
                    p["id"], self.questions[p["row"]].telling(p["told"]),
                    self._corrupted(p["row"], p["corrupt"]).telling(p["told"]), p["correct"], p["wrong"],
                    None if unrelated[p["row"]] is None else self.questions[unrelated[p["row"]]].telling(p["told"]),
                )
                for p in here.iter_rows(named=True)
            ]  # fmt: skip

        keys = self._portions(paired["row"].to_list())
        batch_size = self.config.batch_size
        patched = self.run.map("patching", keys, lambda key: patch(self.lm, pairs(key), batch_size=batch_size))
        estimated = self.run.map("attribution", keys, lambda key: attribute(self.lm, pairs(key), batch_size=batch_size))
        self.run.stage(
            "patch_map",
            lambda: {"patch_map": patch_map(moved(patched, estimated, self.run.table("rows")), self.config.seed)},
        )
