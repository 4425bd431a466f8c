"""Edits of activations: add, set, scale, project, ablate. Out of place, on the rows asked for, and counted.

An :class:`Edit` names a site, a layer, tokens and a rule ``x → f(x)``. It follows ``x.device`` and ``x.dtype`` (half
precision is edited in float32 and rounded once). It changes exactly the asked rows: all others keep their bits. Every
forward pass counts its firings and the rows that it reached; an edit that fired never, or not once per forward pass, or
missed a row raises :class:`EditError`, because a steering result without its steering looks like a finding.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor

from inscape.errors import InputError
from inscape.models.hooks import Scope, Tap
from inscape.models.sites import LAYERLESS, Sites, parse_site
from inscape.models.tokens import Batch, Encoded, Mention, Tokens, Window, positions

Kind = Literal["add", "set", "scale", "project", "ablate"]
When = Literal["prompt", "decode", "always"]


class EditError(RuntimeError):
    """An edit did not act as asked: the run's result must not be used."""


@dataclass(frozen=True, eq=False)
class Edit:
    """One edit. Build it with :func:`add`, :func:`set_`, :func:`scale`, :func:`project` or :func:`ablate`.

    Attributes:
        site: a site name (or a TransformerLens name, which also gives the layer).
        layer: the layer, None for ``embed`` and ``logits``.
        tokens: which tokens of the prompt, as in ``capture``; not used for ``when="decode"``.
        kind: the rule.
        vector: float tensor of the site's feature shape ``[*feature]``, or one per prompt ``[prompt, *feature]``, or one
            per prompt and token ``[prompt, token, *feature]``; for ``project`` an orthonormal basis ``[r, d]``.
        strength: a number, or one per prompt ``[prompt]``.
        when: ``"prompt"`` = the prompt's tokens only; ``"decode"`` = every token fed back while generating, or every
            token of the continuation while scoring; ``"always"`` = both.
        head: for ``q, k, v, z``: one head, or None for all of them.
    """

    site: str
    layer: int | None
    tokens: Tokens
    kind: Kind
    vector: Tensor | None = None
    strength: float | Tensor = 1.0
    when: When = "prompt"
    head: int | None = None

    def __post_init__(self) -> None:
        site, layer = parse_site(self.site)
        if layer is not None and self.layer is not None and layer != self.layer:
            raise InputError(f"edit: site {self.site!r} names layer {layer}, but layer={self.layer}")
        object.__setattr__(self, "site", site)
        object.__setattr__(self, "layer", layer if layer is not None else self.layer)
        if site not in LAYERLESS and self.layer is None:
            raise InputError(f"edit: site {site!r} needs a layer")
        if self.head is not None and site not in ("q", "k", "v", "z"):
            raise InputError(f"edit: site {site!r} has no heads")
        if self.vector is not None and not isinstance(self.vector, Tensor):
            object.__setattr__(self, "vector", _as_tensor(self.vector, site))
        if self.kind not in get_args(Kind):
            raise InputError(f"edit of {site}: kind={self.kind!r}, expected one of {', '.join(get_args(Kind))}")
        if self.when not in ("prompt", "decode", "always"):
            raise InputError(f"edit of {site}: when={self.when!r}, expected 'prompt', 'decode' or 'always'")
        for name, value in (("vector", self.vector), ("strength", self.strength)):
            if isinstance(value, (Tensor, float)) and not torch.isfinite(torch.as_tensor(value)).all():
                raise InputError(f"edit of {site}: the {name} holds NaN or Inf")


def add(
    site: str, layer: int | None, vector: Tensor, *, tokens: Tokens = "all", strength: float | Tensor = 1.0,
    when: When = "prompt", head: int | None = None,
) -> Edit:  # fmt: skip
    """``x → x + strength · vector``: move along a direction at a dose."""
    return Edit(site, layer, tokens, "add", vector, strength, when, head)


def set_(
    site: str, layer: int | None, vector: Tensor, *, tokens: Tokens = "all", strength: float | Tensor = 1.0,
    when: When = "prompt", head: int | None = None,
) -> Edit:  # fmt: skip
    """``x → vector`` at strength 1 (activation patching); in between at a strength between 0 and 1."""
    return Edit(site, layer, tokens, "set", vector, strength, when, head)


def scale(
    site: str, layer: int | None, strength: float | Tensor, *, tokens: Tokens = "all", when: When = "prompt",
    head: int | None = None,
) -> Edit:  # fmt: skip
    """``x → strength · x``."""
    return Edit(site, layer, tokens, "scale", None, strength, when, head)


def project(
    site: str, layer: int | None, directions: Tensor, *, tokens: Tokens = "all", strength: float | Tensor = 1.0,
    when: When = "prompt", head: int | None = None,
) -> Edit:  # fmt: skip
    """``x → x - strength · P x`` with P the projection on the span of ``directions`` ``[d]`` or ``[r, d]``."""
    directions = torch.atleast_2d(torch.as_tensor(directions)).float()
    if directions.ndim != 2 or not torch.isfinite(directions).all():
        raise InputError(f"project: expected finite directions [d] or [r, d], found {tuple(directions.shape)}")
    basis, r = torch.linalg.qr(directions.T)
    if directions.shape[0] > directions.shape[1] or (r.diagonal().abs() <= 1e-6 * r.abs().max()).any():
        raise InputError(f"project: the {directions.shape[0]} directions are linearly dependent")
    return Edit(site, layer, tokens, "project", basis.T.contiguous(), strength, when, head)


def ablate(
    site: str, layer: int | None, *, mean: Tensor | None = None, tokens: Tokens = "all", when: When = "prompt",
    head: int | None = None,
) -> Edit:  # fmt: skip
    """``x → 0``, or → ``mean`` (mean ablation)."""
    return Edit(site, layer, tokens, "ablate", mean, 1.0, when, head)


def edit_taps(
    edits: Sequence[Edit],
    sites: Sites,
    prompts: Sequence[Encoded],
    mentions: Sequence[Mention] | None,
    occurrence: int | None = None,
    decoded: Sequence[Sequence[int]] | None = None,
    placed: Sequence[list[list[tuple[int, int]]]] | None = None,
) -> Callable[[Batch], list[Tap]]:
    """A function that gives the taps of ``edits`` for a batch; positions are resolved once, for all prompts.

    ``decoded``: for each prompt, positions of tokens beyond it that are already known (scoring); ``when="decode"`` and
    ``"always"`` act there as they do on the tokens fed back while generating. None: there are no such tokens.
    ``placed``: for each edit the tokens already found, ``(position, nth)`` for each prompt.
    """
    resolved = []
    for number, edit in enumerate(edits):
        if placed is not None:
            resolved.append((edit, sites.tap(edit.site, edit.layer), placed[number]))
            continue
        edit = checked_strength(edit, len(prompts))
        at = [[] for _ in prompts] if edit.when == "decode" else prompt_positions(edit, prompts, mentions, occurrence)
        hits = [[(position, nth) for nth, position in enumerate(one)] for one in at]
        if edit.when != "prompt" and decoded is not None:
            hits = [[*one, *((position, 0) for position in more)] for one, more in zip(hits, decoded, strict=True)]
        resolved.append((edit, sites.tap(edit.site, edit.layer), hits))

    def for_batch(batch: Batch) -> list[Tap]:
        return [Tap(point, EditOnBatch(edit, batch, at)) for edit, point, at in resolved]

    return for_batch


def prompt_positions(
    edit: Edit, prompts: Sequence[Encoded], mentions: Sequence[Mention] | None, occurrence: int | None
) -> list[list[int]]:
    """Which tokens of each prompt an edit writes to (from 0, unpadded); refused where it names none, or one twice."""
    at = positions(prompts, edit.tokens, mentions, occurrence)
    for number, one in enumerate(at):
        if len(set(one)) != len(one):
            raise InputError(f"edit of {edit.site}: prompt {number} names a token twice ({one})")
        # An empty list for one prompt is a choice; a window that fell off the prompt is not.
        if not one and (isinstance(edit.tokens, (str, Window)) or not any(at)):
            raise InputError(f"edit of {edit.site}: tokens={edit.tokens!r} names no token of prompt {number}")
    return at


def _as_tensor(vector: object, site: str) -> Tensor:
    try:
        return torch.as_tensor(vector)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"edit of {site}: the vector is a {type(vector).__name__}, expected numbers") from error


def checked_strength(edit: Edit, prompts: int) -> Edit:
    """The edit with its strength as a number or one per prompt; refused if neither."""
    if isinstance(edit.strength, Tensor):
        if edit.strength.ndim == 0:
            return replace(edit, strength=float(edit.strength))
        if edit.strength.shape != (prompts,):
            raise InputError(
                f"edit of {edit.site}: strength is {tuple(edit.strength.shape)}, expected ({prompts},): one per prompt"
            )
    return edit


class EditOnBatch:
    """An edit, bound to one batch: which rows and columns it touches, and with what."""

    def __init__(self, edit: Edit, batch: Batch, at: Sequence[Sequence[tuple[int, int]]]) -> None:
        self.edit = edit
        self.batch = batch
        self.prompts = len(at)
        hits = [(row, p + batch.shift[row], i, nth) for row, i in enumerate(batch.index) for p, nth in at[i]]
        self.rows, self.columns, self.prompt, self.nth = (
            torch.tensor([h[k] for h in hits], dtype=torch.int64) for k in range(4)
        )
        self.reached = 0

    def __call__(self, value: Tensor, scope: Scope) -> Tensor | None:
        rows, columns, prompt, nth = self.rows, self.columns - scope.offset, self.prompt, self.nth
        now = (columns >= 0) & (columns < value.shape[1])
        rows, columns, prompt, nth = rows[now], columns[now], prompt[now], nth[now]
        if self.edit.when != "prompt" and scope.forwards > 1:
            decoded = torch.arange(max(scope.width - scope.offset, 0), value.shape[1])
            every_row = torch.arange(scope.rows)
            rows = torch.cat([rows, every_row.repeat_interleave(len(decoded))])
            columns = torch.cat([columns, decoded.repeat(scope.rows)])
            prompt = torch.cat([prompt, torch.tensor(self.batch.index).repeat_interleave(len(decoded))])
            nth = torch.cat([nth, torch.zeros(len(decoded) * scope.rows, dtype=torch.int64)])
        elif scope.forwards == 1:
            self.reached = len(rows)
        if not len(rows):
            return None
        rows, columns = rows.to(value.device), columns.to(value.device)
        part = value if self.edit.head is None else value[:, :, self.head_of(value)]
        new = self.made_of(part[rows, columns], prompt, nth)
        out = value.clone()
        (out if self.edit.head is None else out[:, :, self.head_of(value)])[rows, columns] = new.to(value.dtype)
        return out

    def head_of(self, value: Tensor) -> int:
        head = self.edit.head
        assert head is not None
        if not -value.shape[2] <= head < value.shape[2]:
            raise InputError(f"edit of {self.edit.site}: no head {head}, there are {value.shape[2]}")
        return head

    def made_of(self, x: Tensor, prompt: Tensor, nth: Tensor) -> Tensor:
        """``f(x)`` on the touched rows ``[hit, *feature]``."""
        edit, strength = self.edit, self.edit.strength
        if isinstance(strength, Tensor):
            strength = strength[prompt]
        return rule(edit.kind, x, hit_vectors(edit, x, self.prompts, prompt, nth), strength)


def hit_vectors(edit: Edit, x: Tensor, prompts: int, prompt: Tensor, nth: Tensor) -> Tensor | None:
    """What an edit puts into ``x`` ``[hit, *feature]``: ``[*feature]`` or ``[hit, *feature]``, a basis, or None.

    ``prompt`` and ``nth`` (int64 ``[hit]``) pick from vectors that are per prompt, or per prompt and token.
    """
    vector, feature = edit.vector, x.shape[1:]
    if vector is None:
        return None
    if edit.kind == "project":
        if vector.shape[-1] != feature.numel():
            raise InputError(
                f"edit of {edit.site}: directions have {vector.shape[-1]} features, the site has {feature.numel()}"
            )
        return vector.to(x.device)
    per_prompt = vector.ndim > len(feature) and vector.shape[0] == prompts
    if vector.shape == feature:
        chosen = vector
    elif vector.ndim == len(feature) + 1 and vector.shape[1:] == feature and per_prompt:
        chosen = vector[prompt.to(vector.device)]
    elif vector.ndim == len(feature) + 2 and vector.shape[2:] == feature and per_prompt:
        if int(nth.max()) >= vector.shape[1]:
            raise InputError(
                f"edit of {edit.site}: vectors for {vector.shape[1]} tokens, but a prompt has {int(nth.max()) + 1}"
            )
        chosen = vector[prompt.to(vector.device), nth.to(vector.device)]
    else:
        raise InputError(
            f"edit of {edit.site}: vector has shape {tuple(vector.shape)}; expected {tuple(feature)}, "
            f"or that with a first axis per prompt ({prompts}), or per prompt and token"
        )
    return chosen.to(x.device)


def rule(kind: Kind, x: Tensor, vectors: Tensor | None, strength: float | Tensor) -> Tensor:
    """What an edit makes of ``x`` ``[hit, *feature]``; half precision is computed in float32, and not rounded back here.

    ``vectors``: ``[*feature]`` or ``[hit, *feature]``; for ``project`` an orthonormal basis ``[r, d]``; ``strength``: a
    number, or one per hit ``[hit]``.
    """
    wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    if vectors is not None:
        vectors = vectors.to(wide)
    if isinstance(strength, Tensor):
        strength = strength.to(wide).reshape(-1, *[1] * (wide.ndim - 1))
    match kind:
        case "scale":
            return wide * strength
        case "ablate":
            return torch.zeros_like(wide) if vectors is None else vectors.expand_as(wide)
    assert vectors is not None
    match kind:
        case "project":
            flat = wide.flatten(1)
            return wide - strength * ((flat @ vectors.T) @ vectors).view_as(wide)
        case "add":
            return wide + strength * vectors
        case "set":
            if isinstance(strength, Tensor):
                return torch.where(strength == 1, vectors, wide + strength * (vectors - wide))
            return vectors.expand_as(wide) if strength == 1 else wide + strength * (vectors - wide)


def check_fired(taps: Sequence[Tap], scope: Scope) -> None:
    """Raise :class:`EditError` unless every edit fired once per forward pass and reached every row asked for."""
    for tap in taps:
        function = tap.function
        if not isinstance(function, EditOnBatch):
            continue
        if tap.fired != scope.forwards or scope.forwards == 0:
            raise EditError(f"the edit of {tap.point} fired {tap.fired} times in {scope.forwards} forward passes")
        if function.edit.when != "decode" and function.reached != len(function.rows):
            raise EditError(
                f"the edit of {tap.point} reached {function.reached} of {len(function.rows)} token positions asked for"
            )
