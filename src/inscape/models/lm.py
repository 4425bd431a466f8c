"""A language model as an instrument: :func:`inscape.load` it, then read, write and run it.

::

    lm = inscape.load("path/or/hub-id")
    acts = lm.capture(prompts, site="resid_post", layers=[3, 4], tokens="mention_last", mentions=names)
    lm.generate(prompts, edits=[inscape.add("resid_post", 4, direction, strength=8.0)])

``lm.model`` stays the user's Hugging Face module: nothing is re-implemented, renamed or converted, and after every call it
is the same, bit for bit. Tensors in and out are plain; mix them with any other library.
"""

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from inscape.errors import InputError
from inscape.models.attribution import attribute
from inscape.models.capture import Activations, Collector, tap_points
from inscape.models.check import self_check
from inscape.models.chunk import Cut
from inscape.models.discovery import blocks_at, find_blocks, probe_ids
from inscape.models.edit import Edit, edit_taps
from inscape.models.families import FAMILIES
from inscape.models.forward import input_device, run
from inscape.models.generate import generate_ids
from inscape.models.grid import Grid
from inscape.models.loading import tokenizer_hash
from inscape.models.metrics import Metric
from inscape.models.proof import proven_cut
from inscape.models.regenerate import Generated
from inscape.models.rerun import Rerun, rerun
from inscape.models.score import Scorer, Scores, continuation_start
from inscape.models.sites import Sites
from inscape.models.store import ActivationStore
from inscape.models.stream import capture_to
from inscape.models.tokens import Batch, Encoded, Mention, Prompt, Tokens, encode, positions, refuse_too_long

Progress = Callable[[Iterator[Batch], int], Iterator[Batch]]
"""``progress(batches, total)`` gives the batches back, showing them pass."""


class LM:
    """A causal LM with its tokenizer and its proven hook points. Build it with :func:`inscape.load`.

    Attributes:
        model: the Hugging Face module.
        tokenizer: its tokenizer, or None.
        sites: the tap points of this model.
    """

    def __init__(
        self, model: nn.Module, tokenizer: Any, *, record: dict[str, Any], blocks: str | None = None, check: bool = True
    ) -> None:
        config = getattr(model, "config", None)
        if config is None or not hasattr(model, "get_input_embeddings"):
            raise InputError(f"expected a transformers causal LM, found {type(model).__name__}")
        self.model = model
        self.tokenizer = tokenizer
        self.config = config.get_text_config()
        ids = probe_ids(self.config.vocab_size, self.device)
        found = blocks_at(model, blocks) if blocks is not None else find_blocks(model, ids, self.config.hidden_size)
        self.sites = Sites(model, list(found), FAMILIES.get(self.config.model_type), self.config)
        if check:
            self_check(self.sites, ids)
        self._record = record

    # -- what it is ------------------------------------------------------------------------------------------------

    @property
    def n_layers(self) -> int:
        return len(self.sites.blocks)

    @property
    def d_model(self) -> int:
        return int(self.config.hidden_size)

    @property
    def device(self) -> torch.device:
        """Where token ids go in."""
        return input_device(self.model)

    @property
    def dtype(self) -> torch.dtype:
        return next(p.dtype for p in self.model.parameters() if p.is_floating_point())

    @property
    def context(self) -> int | None:
        """Tokens that fit, None if the positions have no end (ALiBi without a table)."""
        for name in ("max_position_embeddings", "n_positions", "max_seq_len"):
            if isinstance(value := getattr(self.config, name, None), int):
                return value
        return None

    @property
    def pad_id(self) -> int:
        for name in ("pad_token_id", "eos_token_id"):
            # (A tokenizer may know tokens that the model has no embedding for.)
            if isinstance(value := getattr(self.tokenizer, name, None), int) and value < self.vocab:
                return value
        return 0

    @property
    def vocab(self) -> int:
        """Rows of the embedding table."""
        return int(self.model.get_input_embeddings().weight.shape[0])  # type: ignore[operator]

    def record(self) -> dict[str, Any]:
        """What a result must say about its model: source, hashes, dtype, attention kernel, BOS rule, versions."""
        bos = None
        if self.tokenizer is not None:
            ids = self.tokenizer("a")["input_ids"]
            bos = bool(ids) and ids[0] == self.tokenizer.bos_token_id
        return {
            **self._record,
            "model_type": self.config.model_type,
            "n_layers": self.n_layers,
            "d_model": self.d_model,
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "dtype": str(self.dtype).removeprefix("torch."),
            "attention": getattr(self.model.config, "_attn_implementation", None),
            "tokenizer_sha256": tokenizer_hash(self.tokenizer),
            "adds_bos": bos,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        }

    # -- positions -------------------------------------------------------------------------------------------------

    def positions(
        self,
        prompts: Sequence[Prompt],
        tokens: Tokens,
        *,
        mentions: Sequence[Mention] | None = None,
        occurrence: int | None = None,
        bos: bool | None = None,
    ) -> list[list[int]]:
        """Token indices (from 0, unpadded, BOS included) that ``tokens`` names in each prompt."""
        return positions(self.encode(prompts, bos), tokens, mentions, occurrence)

    def token_ids(self, prompts: Sequence[Prompt], *, bos: bool | None = None) -> list[list[int]]:
        """The ids that the model is given for each prompt."""
        return [list(one.ids) for one in self.encode(prompts, bos, offsets=False)]

    def encode(
        self, prompts: Sequence[Prompt], bos: bool | None = None, new_tokens: int = 0, offsets: bool = True
    ) -> list[Encoded]:
        """Token ids, with character offsets; refused if ``new_tokens`` more than the prompt do not fit in the context."""
        if self.model.training:
            raise InputError(
                "the model is in training mode (dropout would change every number): call model.eval() first"
            )
        fast = self.tokenizer is not None and self.tokenizer.is_fast
        encoded = encode(self.tokenizer, prompts, bos=bos, offsets=offsets and fast)
        refuse_too_long(encoded, self.context, new_tokens)
        vocab = self.vocab
        for number, one in enumerate(encoded):
            if (wrong := max(one.ids)) >= vocab or (wrong := min(one.ids)) < 0:
                raise InputError(f"prompt {number}: token id {wrong} is not in the model's {vocab} embeddings")
        return encoded

    # -- read ------------------------------------------------------------------------------------------------------

    def capture(
        self,
        prompts: Sequence[Prompt],
        site: str = "resid_post",
        layers: int | Sequence[int] | None = None,
        tokens: Tokens = "last",
        *,
        mentions: Sequence[Mention] | None = None,
        occurrence: int | None = None,
        edits: Sequence[Edit] = (),
        bos: bool | None = None,
        batch_size: int = 64,
        padding_side: str = "left",
        device: str | torch.device = "cpu",
        dtype: torch.dtype | None = None,
        progress: Progress | None = None,
    ) -> Activations:
        """Activations at one site: rows are tokens of prompts, see :class:`Activations`."""
        many = self.capture_sites(
            prompts, [site], layers, tokens, mentions=mentions, occurrence=occurrence, edits=edits, bos=bos,
            batch_size=batch_size, padding_side=padding_side, device=device, dtype=dtype, progress=progress,
        )  # fmt: skip
        return next(iter(many.values()))

    def capture_sites(
        self,
        prompts: Sequence[Prompt],
        sites: Sequence[str],
        layers: int | Sequence[int] | None = None,
        tokens: Tokens = "last",
        *,
        mentions: Sequence[Mention] | None = None,
        occurrence: int | None = None,
        edits: Sequence[Edit] = (),
        bos: bool | None = None,
        batch_size: int = 64,
        padding_side: str = "left",
        device: str | torch.device = "cpu",
        dtype: torch.dtype | None = None,
        progress: Progress | None = None,
    ) -> dict[str, Activations]:
        """Activations at several sites in one pass, by site name. A capture sees the values after the edits.

        Raises:
            InputError: an unknown site or layer, a site that this family doesn't have, a prompt that is empty, too long
                or without the mention, NaN or Inf (:class:`NonFiniteError`).
        """
        points = tap_points(self.sites, sites, layers)
        encoded = self.encode(prompts, bos)
        at = positions(encoded, tokens, mentions, occurrence)
        if not any(at):
            raise InputError("capture: no prompts, or no tokens asked for")
        collector = Collector(points, at, device, dtype)
        _refuse_decode(edits)
        edit_taps_of = edit_taps(edits, self.sites, encoded, mentions, occurrence)
        kept: Callable[[Batch], Tensor | None] | None = None
        if "logits" in points:
            kept = (lambda batch: None) if any(e.site == "logits" for e in edits) else collector.columns
        run(
            self.model, encoded, lambda batch: (edit_taps_of(batch), collector.taps(batch)), batch_size=batch_size,
            pad_id=self.pad_id, padding_side=padding_side, logits_at=kept, progress=progress,
        )  # fmt: skip
        return collector.results()

    def logits(self, prompts: Sequence[Prompt], *, edits: Sequence[Edit] = (), **options: Any) -> Tensor:
        """Next-token logits ``[prompt, vocab]``; options as in :meth:`capture`."""
        return self.capture(prompts, "logits", edits=edits, **options).at()

    def capture_to(self, prompts: Iterable[Prompt], folder: str | Path, *args: Any, **options: Any) -> ActivationStore:
        """Activations of a stream of any length, on disk: see :func:`inscape.models.stream.capture_to`."""
        return capture_to(self, prompts, folder, *args, **options)

    # -- run -------------------------------------------------------------------------------------------------------

    def generate(self, prompts: Sequence[Prompt], **options: Any) -> list[str]:
        """Continuations as text, without the prompt, up to EOS; arguments as in :meth:`generate_ids`."""
        return self.decode(self.generate_ids(prompts, **options))

    def generate_ids(
        self,
        prompts: Sequence[Prompt],
        *,
        max_new_tokens: int = 16,
        edits: Sequence[Edit] = (),
        mentions: Sequence[Mention] | None = None,
        occurrence: int | None = None,
        bos: bool | None = None,
        batch_size: int = 64,
        use_cache: bool = True,
        progress: Progress | None = None,
        **options: Any,
    ) -> list[list[int]]:
        """New token ids per prompt, up to EOS and without it; greedy unless ``options`` (``GenerationConfig``) say else.

        Edits of the prompt act in the pass that reads the prompt; ``when="decode"`` ones at every token fed back.
        """
        if any(edit.site == "logits" for edit in edits):
            raise InputError("generate: edits of 'logits' are not taken (use a LogitsProcessor of transformers)")
        if max_new_tokens == 1 and any(edit.when == "decode" for edit in edits):
            raise InputError("generate: when='decode' acts on tokens fed back, and with one new token none is")
        encoded = self.encode(prompts, bos, new_tokens=max_new_tokens)
        return generate_ids(
            self.model, encoded, edit_taps(edits, self.sites, encoded, mentions, occurrence),
            max_new_tokens=max_new_tokens, batch_size=batch_size, pad_id=self.pad_id, use_cache=use_cache,
            options=options, progress=progress,
        )  # fmt: skip

    def decode(self, ids: Sequence[Sequence[int]]) -> list[str]:
        """Token ids as text, special tokens left out, spaces as they are."""
        if self.tokenizer is None:
            raise InputError("text was asked for, but the model was loaded without a tokenizer")
        # (transformers decodes an empty batch to one empty text.)
        return (
            self.tokenizer.batch_decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
            if ids
            else []
        )

    def score(
        self,
        prompts: Sequence[Prompt],
        continuations: Sequence[Prompt],
        *,
        edits: Sequence[Edit] = (),
        mentions: Sequence[Mention] | None = None,
        occurrence: int | None = None,
        bos: bool | None = None,
        batch_size: int = 64,
        progress: Progress | None = None,
    ) -> Scores:
        """Log-probability of each continuation after its prompt, both texts or both token ids.

        Texts are tokenised as one: a token that merges both sides is scored. Ids are put together as they are. Edits mean
        what they mean in :meth:`generate`: ``tokens`` and ``mentions`` are the prompt's (its tokens that do not reach into
        the continuation), ``when="decode"`` and ``"always"`` act on the continuation's tokens.
        """
        if len(prompts) != len(continuations):
            raise InputError(f"score: {len(prompts)} prompts, but {len(continuations)} continuations")
        pairs = list(zip(prompts, continuations, strict=True))
        for number, (p, c) in enumerate(pairs):
            if isinstance(p, str) != isinstance(c, str):
                raise InputError(f"score: pair {number} mixes text and token ids")
        joined = [p + c if isinstance(p, str) and isinstance(c, str) else [*p, *c] for p, c in pairs]
        whole = self.encode(joined, bos)
        starts = [
            continuation_start(p, c, one, number) for number, ((p, c), one) in enumerate(zip(pairs, whole, strict=True))
        ]
        scorer = Scorer(whole, starts)
        point = self.sites.tap("logits", None)
        heads = [
            Encoded(p if isinstance(p, str) else None, one.ids[:start], one.offsets and one.offsets[:start])
            for p, one, start in zip(prompts, whole, starts, strict=True)
        ]
        tails = [range(start, len(one.ids)) for one, start in zip(whole, starts, strict=True)]
        taps_of = edit_taps(edits, self.sites, heads, mentions, occurrence, tails)
        whole_logits = any(e.site == "logits" for e in edits)
        run(
            self.model, whole, lambda batch: (taps_of(batch), [scorer.tap(batch, point)]), batch_size=batch_size,
            pad_id=self.pad_id, logits_at=(lambda batch: None) if whole_logits else scorer.columns, progress=progress,
        )  # fmt: skip
        return scorer.results()

    # -- sweep -----------------------------------------------------------------------------------------------------

    def rerun(
        self,
        prompts: Sequence[Prompt],
        edits: Grid | Sequence[Sequence[Edit]],
        metric: Metric | Generated | Callable[[Tensor, Tensor, Tensor], Tensor] | None = None,
        *,
        read: Tokens = "last",
        base: Sequence[Edit] = (),
        mentions: Sequence[Mention] | None = None,
        occurrence: int | None = None,
        bos: bool | None = None,
        batch_size: int = 64,
        padding_side: str = "left",
        naive: bool = False,
        progress: Progress | None = None,
    ) -> Rerun:
        """A sweep: every prompt under every cell of ``edits``, at the cost of what the edits can change.

        Args:
            edits: a :class:`~inscape.models.grid.Grid`, or a list with the list of edits of each run.
            metric: what is read off the logits (:mod:`inscape.models.metrics`, or a function of logits ``[n, vocab]``,
                the base run's logits ``[n, vocab]`` and the prompt's number ``[n]``); None: the logits themselves;
                :class:`Generated`: continuations.
            read: the tokens whose logits are read (:class:`~inscape.models.metrics.Probability` knows its own).
            base: edits of the base run, on which every cell stands (a corrupted run, say).
            naive: run everything in full, to check.

        Equal to a full forward pass for each run: max |difference| ≤ 1e-4 × max |logit| in float32 (tested for every
        family and site; proven on a few tokens of this very model before the first sweep).
        """
        return rerun(
            self, prompts, edits, metric, read=read, base=base, mentions=mentions, occurrence=occurrence, bos=bos,
            batch_size=batch_size, padding_side=padding_side, naive=naive, progress=progress,
        )  # fmt: skip

    def attribute(
        self,
        prompts: Sequence[Prompt],
        edits: Grid | Sequence[Sequence[Edit]],
        metric: Metric | Callable[[Tensor, Tensor, Tensor], Tensor],
        *,
        read: Tokens = "last",
        base: Sequence[Edit] = (),
        mentions: Sequence[Mention] | None = None,
        occurrence: int | None = None,
        bos: bool | None = None,
        batch_size: int = 64,
        padding_side: str = "left",
        progress: Progress | None = None,
    ) -> Rerun:
        """:meth:`rerun`, estimated to first order from one forward and one backward pass (attribution patching).

        ``values`` are the base metric plus the estimated change of each cell; ``base`` is exact. What the estimate does
        not show: :mod:`inscape.models.attribution`. Memory: the graph of one batch (lower ``batch_size``).
        """
        return attribute(
            self, prompts, edits, metric, read=read, base=base, mentions=mentions, occurrence=occurrence, bos=bos,
            batch_size=batch_size, padding_side=padding_side, progress=progress,
        )  # fmt: skip

    @cached_property
    def cut(self) -> Cut | str:
        """How a sweep cuts this model's forward pass, proven on a few tokens; or why it can't, said once as a warning."""
        found = proven_cut(self)
        if isinstance(found, str):
            warnings.warn(f"rerun: {self.config.model_type} is run in full for every edit: {found}", stacklevel=5)
        return found

    def __repr__(self) -> str:
        return (
            f"LM({self._record.get('model')}: {self.config.model_type}, {self.n_layers} layers × {self.d_model}, "
            f"{str(self.dtype).removeprefix('torch.')}; sites: {', '.join(self.sites.available())})"
        )


def _refuse_decode(edits: Sequence[Edit]) -> None:
    for edit in edits:
        if edit.when == "decode":
            raise InputError(f"edit of {edit.site}: when='decode' acts on generated tokens, and a capture has none")
