"""`Relevance`: the one result object that tokens, heads, circuits, tables and figures share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import pandas as pd
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lens_attr import display
from lens_attr.attribution import storage
from lens_attr.attribution.conservation import Conservation, conservation_of
from lens_attr.attribution.spans import SpanRelevance, SpanSpec, by_sentence, by_span, by_word
from lens_attr.attribution.special_tokens import (
    MASS,
    Also,
    Policy,
    chosen,
    mass_on,
    special_note,
    under_policy,
)
from lens_attr.display import MOST_SHOWN, ColouredText, Glance, Shown
from lens_attr.errors import InputError, did_you_mean

if TYPE_CHECKING:
    import plotly.graph_objects as go

Pool = Literal["sum", "relu_token", "relu_dim"]
"""How z * dz [pos, d_head] becomes one number per head (LRPx 5.3, Appendix D).

``sum``: everything added, signs kept. ``relu_token``: summed over d_head, negative tokens dropped.
``relu_dim``: negative entries dropped before any sum.
"""


@dataclass(frozen=True, repr=False)
class Relevance(Shown):
    """What each part of the input and of the model contributed to one number, per example.

    Padded positions hold zero everywhere. ``B`` examples, ``P`` positions, ``L`` layers, ``H``
    heads.

    Attributes:
        tokens: relevance of each input token, in units of ``unit``.
        token_ids: the ids that were read, padded.
        attention_mask: True where a token is real, False on padding.
        str_tokens: one string per position and example, padding included.
        target_value: the explained number.
        target: what was explained, in words, one per example.
        position: the explained position (index into the padded row).
        method: registry name of the method, e.g. ``"attnlrp"``.
        unit: unit of the relevance, e.g. ``"logit"``.
        head_tokens: relevance z * dz of each head at each position, summed over d_head.
        heads_relu_dim: the ``relu_dim`` pooling, which cannot be derived from ``head_tokens``.
        records: activation x arriving gradient at every recorded role or hook point.
        flow: relevance summed over all positions at the joints of every block, for `check`.
        extra: parts that belong to one method alone (emphasis factors, per-layer terms, ...).
        per_token: names of those in ``extra`` that have one value per token [B, P].
        special: True on tokens that the tokenizer calls special (BOS, [CLS], [SEP], [MASK]).
        metadata: everything needed to say how this was made (model, rules, options, versions).
    """

    tokens: Float[Tensor, "B P"]
    token_ids: Int[Tensor, "B P"]
    attention_mask: Bool[Tensor, "B P"]
    str_tokens: list[list[str]]
    target_value: Float[Tensor, " B"]
    target: list[str]
    position: Int[Tensor, " B"]
    method: str
    unit: str = "logit"
    head_tokens: Float[Tensor, "B L P H"] | None = None
    heads_relu_dim: Float[Tensor, "B L H"] | None = None
    records: Mapping[str, Tensor] = field(default_factory=dict)
    flow: Mapping[str, Tensor] = field(default_factory=dict)
    extra: Mapping[str, Tensor] = field(default_factory=dict)
    metadata: Mapping[str, Any] = field(default_factory=dict)
    special: Bool[Tensor, "B P"] | None = None
    per_token: Sequence[str] = ()

    def __len__(self) -> int:
        return len(self.str_tokens)

    def __getitem__(self, example: int) -> Relevance:
        """One example without its padding; records keep their padded layout."""
        if not -len(self) <= example < len(self):
            raise InputError(f"example {example} is out of range: there are {len(self)}.")
        example %= len(self)
        real = self.attention_mask[example]
        keep = slice(example, example + 1)
        first_real = int(real.nonzero()[0])
        return replace(
            self,
            tokens=self.tokens[keep, real],
            token_ids=self.token_ids[keep, real],
            attention_mask=self.attention_mask[keep, real],
            str_tokens=[self.real_str_tokens(example)],
            target_value=self.target_value[keep],
            target=self.target[keep],
            position=self.position[keep] - first_real,
            head_tokens=None if self.head_tokens is None else self.head_tokens[keep][:, :, real],
            heads_relu_dim=None if self.heads_relu_dim is None else self.heads_relu_dim[keep],
            records={name: value[keep] for name, value in self.records.items()},
            flow={name: value[keep] for name, value in self.flow.items()},
            extra={
                name: value[keep, real] if name in self.per_token else value[keep]
                for name, value in self.extra.items()
            },
            special=None if self.special is None else self.special[keep, real],
        )

    def __iter__(self) -> Iterator[Relevance]:
        return (self[i] for i in range(len(self)))

    def glance(self) -> Glance:
        """The coloured texts, up to the first 8 examples."""
        shown = [self.coloured_text(i) for i in range(min(len(self), MOST_SHOWN))]
        notes = [f"... and {len(self) - MOST_SHOWN} more"] if len(self) > MOST_SHOWN else []
        notes += special_note(self, "example")
        return Glance(self.headline, shown, [*notes, *self.metadata.get("notices", ())])

    @property
    def headline(self) -> str:
        """Method, number of examples, unit."""
        return f"{self.method}, {display.count(len(self), 'example')}, in {self.unit}"

    def coloured_text(self, example: int = 0) -> ColouredText:
        """One example's tokens and relevance, headed by what was explained."""
        values = self.real_tokens(example).double().tolist()
        explained = f"{self.target[example]} = {display.number(float(self.target_value[example]))}"
        heading = f"{explained}; relevance adds up to {display.number(sum(values))} {self.unit}"
        return ColouredText(heading, self.real_str_tokens(example), values, self.unit)

    def real_str_tokens(self, example: int = 0) -> list[str]:
        """The strings of one example without padding."""
        pairs = zip(self.str_tokens[example], self.attention_mask[example].tolist(), strict=True)
        return [token for token, real in pairs if real]

    def real_tokens(self, example: int = 0) -> Float[Tensor, " pos"]:
        """The relevance of one example without padding."""
        return self.tokens[example, self.attention_mask[example]]

    def heads(self, pool: Pool = "sum") -> Float[Tensor, "B L H"]:
        """Relevance of each head, pooled over positions and d_head.

        Args:
            pool: ``"sum"``, ``"relu_token"`` or ``"relu_dim"``, see `Pool`.

        Raises:
            InputError: unknown pooling, or the method gives no head relevance.
        """
        if pool not in get_args(Pool):
            raise InputError(f"unknown pool {pool!r}; {did_you_mean(pool, get_args(Pool))}")
        if self.head_tokens is None or self.heads_relu_dim is None:
            raise InputError(f"method {self.method!r} gives no head relevance.")
        if pool == "relu_dim":
            return self.heads_relu_dim
        per_token = self.head_tokens.relu() if pool == "relu_token" else self.head_tokens
        return per_token.sum(dim=2)

    def words(self) -> SpanRelevance:
        """Relevance of each word: the sum over its tokens, so that all sums are conserved.

        Words lie between whitespace and hold their punctuation; WordPiece keeps no spaces, so
        there punctuation stands apart. Special tokens and line breaks are units of their own.
        """
        return by_word(self)

    def sentences(self) -> SpanRelevance:
        """Relevance of each sentence, which ``.``, ``!``, ``?`` or a line break ends."""
        return by_sentence(self)

    def spans(self, wanted: Sequence[SpanSpec]) -> SpanRelevance:
        """Relevance of chosen parts of every text, and of the rest together.

        Args:
            wanted: strings that occur once, or characters ``(start, end)`` of the text as the
                tokens spell it (``texts`` of the result; no leading space).

        Raises:
            InputError: a string that does not occur or occurs several times, a span that cuts
                through a token, or spans that overlap.
        """
        return by_span(self, wanted)

    @property
    def attention(self) -> Float[Tensor, "B L H query key"]:
        """Pattern (or score) x arriving gradient, recorded with ``record=["pattern"]``.

        Raises:
            InputError: neither ``"pattern"`` nor ``"scores"`` was recorded.
        """
        for name in ("pattern", "scores"):
            if name in self.records:
                return self.records[name]
        raise InputError('attention was not recorded: pass record=["pattern"] to la.attribute.')

    @property
    def special_mass(self) -> Float[Tensor, " B"]:
        """Share of the absolute relevance that special tokens hold (held, where set aside)."""
        if MASS in self.extra:
            return self.extra[MASS]
        return mass_on(self.tokens, chosen(self, None))

    def with_special_tokens(self, policy: Policy, also: Also = None) -> Relevance:
        """The same result with its special tokens kept, ignored or set apart.

        `special_mass` says in every case what share of the absolute relevance they hold. Only
        ``tokens`` change; nothing is rescaled.

        Args:
            policy: ``"keep"``; ``"ignore"``: their relevance is 0; ``"separate"``: likewise, and it
                stands in ``extra["special_tokens"]`` [B, P], so that both add up to what it was.
            also: what else counts as special, such as attention sinks: a mask [B, P]
                (``la.attention_sinks(model, text) > 0.5``), or tokens by their string.

        Raises:
            InputError: unknown policy, a mask of another shape, a string that is no token, or
                special tokens that are set aside already.
        """
        return under_policy(self, policy, also)

    def check(self) -> Conservation:
        """How far the relevance is from the target, and where in the model the rest went."""
        return conservation_of(self)

    def to_pandas(self) -> pd.DataFrame:
        """One row per real token: example, pos, str_token, token_id, relevance, target_value."""
        rows = []
        for example in range(len(self)):
            real = self.attention_mask[example]
            frame = pd.DataFrame(
                {
                    "example": example,
                    "pos": range(int(real.sum())),
                    "str_token": self.real_str_tokens(example),
                    "token_id": self.token_ids[example, real].tolist(),
                    "relevance": self.real_tokens(example).double().tolist(),
                    "target": self.target[example],
                    "target_value": float(self.target_value[example]),
                    "method": self.method,
                }
            )
            rows.append(frame)
        return pd.concat(rows, ignore_index=True)

    def plot(self, **options: Any) -> go.Figure:
        """Token heatmap; ``kind="heads"`` draws the map [layer, head], ``"head_tokens"`` heads by
        tokens; see `lens_attr.plots.relevance`.
        """
        return display.figure_of("relevance", self, **options)

    def save(self, directory: str | Path) -> Path:
        """Write ``relevance.safetensors`` and ``relevance.json`` into ``directory``."""
        return storage.save(self, Path(directory))

    @staticmethod
    def load(directory: str | Path) -> Relevance:
        """Read what `save` wrote.

        Raises:
            SavedResultError: missing, truncated, altered, or written by an unknown format.
        """
        return Relevance(**storage.load_fields(Path(directory)))
