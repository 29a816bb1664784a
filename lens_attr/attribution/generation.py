"""`Generation`: every token of a generated text explained by all that was read before it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lens_attr import display, spelling
from lens_attr.attribution import storage
from lens_attr.attribution.relevance import Relevance
from lens_attr.attribution.spans import Unit, spelled_by, unit_of_each
from lens_attr.attribution.special_tokens import (
    APART,
    MASS,
    Also,
    Policy,
    share,
    special_note,
)
from lens_attr.display import Glance, Shown
from lens_attr.errors import InputError, did_you_mean
from lens_attr.spelling import Spelling

if TYPE_CHECKING:
    import plotly.graph_objects as go

Over = Literal["prompt", "generated", "all"]
"""Which of the tokens that were read are shown: the prompt's, the generated ones, or both."""


@dataclass(frozen=True, repr=False)
class Matrix(Shown):
    """Relevance of what was read (columns) for what was generated (rows).

    Attributes:
        rows: strings of the generated tokens or words.
        columns: strings of what was read: the prompt, then the generated text but for its end.
        values: relevance, NaN where a row had not read a column yet.
        target_value: the explained number of each row.
        n_prompt: how many columns belong to the prompt.
        kind: ``"token"`` or ``"word"``.
        method: registry name of the method.
        unit: unit of the relevance, e.g. ``"logit"``.
    """

    rows: list[str]
    columns: list[str]
    values: Float[Tensor, "row column"]
    target_value: Float[Tensor, " row"]
    n_prompt: int
    kind: str
    method: str
    unit: str

    @property
    def headline(self) -> str:
        """Method, size, unit."""
        rows = display.count(len(self.rows), f"generated {self.kind}")
        return f"{self.method}, {rows} by {len(self.columns)} that were read, in {self.unit}"

    def to_pandas(self) -> pd.DataFrame:
        """One row per pair that was seen: row, generated, column, read, part, relevance, ..."""
        values = self.values.double().numpy()
        row, column = np.nonzero(~np.isnan(values))
        return pd.DataFrame(
            {
                "row": row,
                "generated": [self.rows[i] for i in row],
                "column": column,
                "read": [self.columns[i] for i in column],
                "part": np.where(column < self.n_prompt, "prompt", "generated"),
                "relevance": values[row, column],
                "target_value": self.target_value.double().numpy()[row],
            }
        )

    def plot(self, **options: Any) -> go.Figure:
        """Heatmap, generated text by what was read."""
        return display.figure_of("generation", self, **options)


@dataclass(frozen=True, repr=False)
class Generation(Shown):
    """Every generated token explained.

    ``g[i]`` is the `Relevance` of generated token ``i``, over the prompt and the tokens before it.

    Attributes:
        relevance: one row per generated token, over the whole text [generated, prompt +
            generated]; the attention mask of a row is True on what its prediction had read.
        n_prompt: how many tokens the prompt has, BOS included.
    """

    relevance: Relevance
    n_prompt: int

    def __len__(self) -> int:
        return len(self.relevance)

    def __getitem__(self, token: int) -> Relevance:
        """The relevance for one generated token, counted from 0."""
        if not -len(self) <= token < len(self):
            raise InputError(f"token {token} is out of range: {len(self)} were generated.")
        return self.relevance[token]

    def __iter__(self) -> Iterator[Relevance]:
        return iter(self.relevance)

    # -------------------------------------------------------------- the text

    @property
    def str_tokens(self) -> list[str]:
        """The tokens of the prompt and of the generated text."""
        return self.relevance.str_tokens[0]

    @property
    def generated_tokens(self) -> list[str]:
        """The generated tokens."""
        return self.str_tokens[self.n_prompt :]

    @property
    def prompt(self) -> str:
        """The prompt as its tokens spell it."""
        return self._spelling(slice(0, self.n_prompt)).text

    @property
    def generated(self) -> str:
        """The generated text as its tokens spell it."""
        return self._spelling(slice(self.n_prompt, None)).text

    def _spelling(self, part: slice) -> Spelling:
        ids = self.relevance.token_ids[0, part].tolist()
        spaces = spelling.carries_spaces(self.str_tokens)
        return spelled_by(self.relevance.metadata, self.str_tokens[part], ids, spaces)

    # ---------------------------------------------------------- one relevance

    def of(self, string: str, occurrence: int = 0) -> Relevance:
        """The relevance for a token, word or phrase of the generated text.

        Of several tokens it is the sum: of log-probabilities, that of the whole word.

        Args:
            string: tokens of the generated text, e.g. ``"cabinet"``.
            occurrence: which of its occurrences, counted from 0; -1 is the last.

        Raises:
            InputError: it does not occur (that often), or cuts through a token.
        """
        spelled = self._spelling(slice(self.n_prompt, None))
        span = spelling.find(spelled, string, occurrence, "generated text")
        covered = spelling.covering(spelled.spans, *span) or []
        rows = spelling.with_spaces_before(self.generated_tokens, covered)
        if len(rows) == 1:
            return self[rows[0]]
        seen = self.relevance.attention_mask[rows].any(dim=0)
        return self._sum(rows, torch.ones(len(rows)), seen)

    def accumulated(self, over: Over = "prompt", normalise: bool = False) -> Relevance:
        """What the whole generated text used: its tokens' relevance, summed over them.

        Args:
            over: which of the tokens that were read are kept, see `Over`.
            normalise: divide the relevance for every generated token by the sum of its absolute
                values first, so that each counts the same.

        Raises:
            InputError: unknown ``over``, or nothing generated was read (one generated token).
        """
        if over not in get_args(Over):
            raise InputError(f"unknown over {over!r}; {did_you_mean(str(over), get_args(Over))}")
        kept = self.relevance.attention_mask.any(dim=0)
        of_prompt = torch.arange(len(kept)) < self.n_prompt
        kept = kept & {"prompt": of_prompt, "generated": ~of_prompt}.get(over, kept)
        if not bool(kept.any()):
            raise InputError("a single generated token has read no generated token before it.")
        sizes = self.relevance.tokens.abs().sum(dim=1)
        weights = torch.where(sizes > 0, 1 / sizes, 0.0) if normalise else torch.ones(len(self))
        total = self._sum(range(len(self)), weights, kept)
        facts = {"accumulated": {"over": over, "normalised": normalise}}
        unit = "share" if normalise else total.unit
        return replace(total, unit=unit, metadata={**total.metadata, **facts})

    def with_special_tokens(self, policy: Policy, also: Also = None) -> Generation:
        """The same with special tokens kept, ignored or set apart, for every generated token.

        Args:
            policy: see `Relevance.with_special_tokens`. `accumulated` and `of` add up what is set
                apart, too.
            also: what else counts as special: strings of tokens, or a mask [generated, pos] or [1,
                pos] of the whole text (``la.attention_sinks(model, g.relevance.token_ids[:1])``
                above a threshold).

        Raises:
            InputError: as `Relevance.with_special_tokens`.
        """
        if isinstance(also, Tensor) and also.ndim == 2 and len(also) == 1:
            also = also.expand(len(self), -1)
        return replace(self, relevance=self.relevance.with_special_tokens(policy, also))

    def _sum(
        self,
        rows: Sequence[int],
        weights: Float[Tensor, " row"],
        kept: Bool[Tensor, " pos"],
    ) -> Relevance:
        """A weighted sum of rows, of the kept positions.

        Parts of single methods are left out, but for what was set apart. Where special tokens are
        ignored, their mass is the mean of the rows'.
        """
        every, chosen = self.relevance, list(rows)
        alike = replace(every, attention_mask=kept.expand_as(every.attention_mask))[chosen[-1]]

        def total(values: Tensor) -> Tensor:
            return torch.tensordot(weights.to(values), values[chosen], dims=1)[None]

        heads, relu = every.head_tokens, every.heads_relu_dim
        tokens = total(every.tokens)[:, kept]
        extra: dict[str, Tensor] = {}
        if APART in every.extra:
            apart = total(every.extra[APART])[:, kept]
            extra = {APART: apart, MASS: share(apart, tokens)}
        elif MASS in every.extra:
            extra = {MASS: every.extra[MASS][chosen].mean(dim=0, keepdim=True)}
        whole = bool((kept >= every.attention_mask[chosen].any(dim=0)).all())
        return replace(
            alike,
            tokens=tokens,
            target_value=total(every.target_value),
            target=[_sum_of([every.target[i] for i in chosen])],
            position=torch.tensor([int(kept.sum()) - 1]),
            head_tokens=None if heads is None else total(heads)[:, :, kept],
            heads_relu_dim=total(relu) if whole and relu is not None else None,
            flow={name: total(value) for name, value in every.flow.items()} if whole else {},
            records={},
            extra=extra,
            per_token=[name for name in extra if name == APART],
        )

    # ------------------------------------------------------------ every pair

    def matrix(self, words: bool = False) -> Matrix:
        """Relevance of everything read for everything generated.

        Args:
            words: sum the tokens of a word, of what was generated as of what was read. Sums are
                conserved, so a word of several tokens has also read its own first tokens.
        """
        every, n = self.relevance, self.n_prompt
        units = self._units(words)
        rows = [
            replace(u, tokens=tuple(i - n for i in u.tokens)) for u in units if u.tokens[0] >= n
        ]
        into, out = _membership(rows, len(self)), _membership(units, len(self.str_tokens)).T
        seen = into @ every.attention_mask.double() @ out > 0
        values = torch.where(seen, into @ every.tokens.double() @ out, torch.nan)
        read = seen.any(dim=0)
        return Matrix(
            rows=[unit.string for unit in rows],
            columns=[unit.string for unit, seen in zip(units, read.tolist(), strict=True) if seen],
            values=values[:, read].to(every.tokens.dtype),
            target_value=(into @ every.target_value.double()).to(every.target_value.dtype),
            n_prompt=sum(unit.tokens[0] < n for unit in units),
            kind="word" if words else "token",
            method=every.method,
            unit=every.unit,
        )

    def _units(self, words: bool) -> list[Unit]:
        """Units of the whole text; a word never crosses the end of the prompt."""
        tokens = self.str_tokens
        if not words:
            return [Unit(token, None, (i,)) for i, token in enumerate(tokens)]
        return unit_of_each(self._spelling(slice(None)), tokens, spelling.words, self.n_prompt)

    def sources(self) -> pd.DataFrame:
        """Where each generated token comes from: relevance summed over the prompt and the rest.

        Columns: generated, prompt, earlier (generated before it), total, target, target_value.
        """
        tokens = self.relevance.tokens.double()
        prompt, earlier = tokens[:, : self.n_prompt].sum(1), tokens[:, self.n_prompt :].sum(1)
        return pd.DataFrame(
            {
                "generated": self.generated_tokens,
                "prompt": prompt.tolist(),
                "earlier": earlier.tolist(),
                "total": (prompt + earlier).tolist(),
                "target": self.relevance.target,
                "target_value": self.relevance.target_value.double().tolist(),
            }
        )

    def to_pandas(self, words: bool = False) -> pd.DataFrame:
        """One row per generated token (or word) and token it had read, see `Matrix.to_pandas`."""
        return self.matrix(words).to_pandas()

    # --------------------------------------------------------------- showing

    @property
    def headline(self) -> str:
        """Method, number of generated tokens, unit."""
        one = self.relevance
        generated = display.count(len(self), "generated token")
        return f"{one.method}, {generated} after {self.n_prompt} of the prompt, in {one.unit}"

    def glance(self) -> Glance:
        """What all generated tokens used of the text, and where each comes from."""
        text = self.accumulated("all").words().coloured_text()
        heading = "relevance for all generated tokens, summed"
        notes = [f"generated: {self.generated!r}", *special_note(self.relevance, "token")]
        notes += self.relevance.metadata.get("notices", ())
        table = self.sources()
        if len(table) > display.MOST_ROWS:
            notes.append(f"the first {display.MOST_ROWS} of {len(table)} generated tokens:")
        rows = table.drop(columns="target").head(display.MOST_ROWS)
        return Glance(self.headline, [replace(text, heading=heading)], notes, rows)

    def plot(self, words: bool = True, **options: Any) -> go.Figure:
        """Heatmap of `matrix`, generated text by what was read."""
        return self.matrix(words).plot(**options)

    # ---------------------------------------------------------------- saving

    def save(self, directory: str | Path) -> Path:
        """Write ``generation.safetensors`` and ``generation.json`` into ``directory``."""
        tensors, plain = storage.save_parts(self.relevance)
        facts = plain | {"n_prompt": self.n_prompt}
        return storage.write(Path(directory), "generation", tensors, facts)

    @staticmethod
    def load(directory: str | Path) -> Generation:
        """Read what `save` wrote.

        Raises:
            SavedResultError: missing, truncated, altered, or written by an unknown format.
        """
        wanted = (*storage.SAVED, "n_prompt")
        tensors, plain = storage.read(Path(directory), "generation", wanted)
        fields = storage.fields_of(tensors, plain, Path(directory) / "generation.json")
        return Generation(Relevance(**fields), plain["n_prompt"])


def _sum_of(targets: Sequence[str]) -> str:
    if len(targets) <= 3:
        return " + ".join(targets)
    return f"{targets[0]} + ... + {targets[-1]} ({len(targets)} terms)"


def _membership(units: Sequence[Unit], n: int) -> Float[Tensor, "unit token"]:
    """1 where a token belongs to a unit."""
    found = torch.zeros(len(units), n, dtype=torch.float64)
    for i, unit in enumerate(units):
        found[i, list(unit.tokens)] = 1
    return found
