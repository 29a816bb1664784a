"""Relevance of words, sentences and spans of characters: sums over the tokens they are made of."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from lens_attr import display, spelling
from lens_attr.display import MOST_SHOWN, ColouredText, Glance, Shown
from lens_attr.errors import InputError
from lens_attr.spelling import Span, Spelling

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from lens_attr.attribution.relevance import Relevance

SpanSpec = tuple[int, int] | str
"""Characters of the text ``(start, end)``, or a string that occurs in it once."""

Cut = Callable[[str], list[Span]]
"""A text to the spans of its words or sentences."""

THE_REST = "(the rest)"


@dataclass(frozen=True)
class Unit:
    """A word, sentence, span or special token.

    Attributes:
        string: how it reads.
        span: its characters in the text; None for special tokens, white space, and the rest.
        tokens: the tokens it is made of, counted without padding.
    """

    string: str
    span: Span | None
    tokens: tuple[int, ...]


@dataclass(frozen=True, repr=False)
class SpanRelevance(Shown):
    """Relevance summed over units that share out the tokens, so that all sums are conserved.

    Every token belongs to exactly one unit of its example. Tokens that stand for no text (BOS,
    [CLS], ...) and line breaks are units of their own.

    Attributes:
        kind: what the units are: ``"word"``, ``"sentence"`` or ``"span"``.
        texts: of each example, what its tokens spell; spans count its characters.
        units: of each example, in order.
        scores: relevance of each unit, one tensor per example, in units of ``unit``.
        head_scores: likewise of each head, None where the method gives no head relevance.
        target: what was explained, in words, one per example.
        target_value: the explained number.
        method: registry name of the method.
        unit: unit of the relevance, e.g. ``"logit"``.
    """

    kind: str
    texts: list[str]
    units: list[list[Unit]]
    scores: list[Float[Tensor, " _"]]
    head_scores: list[Float[Tensor, "layer _ head"]] | None
    target: list[str]
    target_value: Float[Tensor, " batch"]
    method: str
    unit: str

    def __len__(self) -> int:
        return len(self.units)

    def __getitem__(self, example: int) -> SpanRelevance:
        """One example."""
        if not -len(self) <= example < len(self):
            raise InputError(f"example {example} is out of range: there are {len(self)}.")
        i = example % len(self)
        heads = self.head_scores
        return SpanRelevance(
            self.kind,
            [self.texts[i]],
            [self.units[i]],
            [self.scores[i]],
            None if heads is None else [heads[i]],
            [self.target[i]],
            self.target_value[i : i + 1],
            self.method,
            self.unit,
        )

    def __iter__(self) -> Iterator[SpanRelevance]:
        return (self[i] for i in range(len(self)))

    def strings(self, example: int = 0) -> list[str]:
        """How the units of one example read."""
        return [unit.string for unit in self.units[example]]

    @property
    def headline(self) -> str:
        """Method, kind of unit, number of examples, unit of relevance."""
        examples = display.count(len(self), "example")
        return f"{self.method} by {self.kind}, {examples}, in {self.unit}"

    def coloured_text(self, example: int = 0) -> ColouredText:
        """One example's units and relevance, headed by what was explained."""
        values = self.scores[example].double().tolist()
        explained = f"{self.target[example]} = {display.number(float(self.target_value[example]))}"
        heading = f"{explained}; relevance adds up to {display.number(sum(values))} {self.unit}"
        # With a space in front, as words stand in a text.
        return ColouredText(heading, [f" {s}" for s in self.strings(example)], values, self.unit)

    def glance(self) -> Glance:
        """The coloured texts, up to the first 8 examples."""
        shown = [self.coloured_text(i) for i in range(min(len(self), MOST_SHOWN))]
        more = len(self) - MOST_SHOWN
        return Glance(self.headline, shown, [f"... and {more} more"] if more > 0 else [])

    def to_pandas(self) -> pd.DataFrame:
        """One row per unit: example, kind, string, characters, tokens, relevance, target."""
        rows = [
            {
                "example": example,
                self.kind: unit.string,
                "start": None if unit.span is None else unit.span[0],
                "end": None if unit.span is None else unit.span[1],
                "tokens": len(unit.tokens),
                "relevance": score,
                "target": self.target[example],
                "target_value": float(self.target_value[example]),
                "method": self.method,
            }
            for example in range(len(self))
            for unit, score in zip(
                self.units[example], self.scores[example].double().tolist(), strict=True
            )
        ]
        return pd.DataFrame(rows).astype({"start": "Int64", "end": "Int64"})

    def plot(self, **options: Any) -> go.Figure:
        """The text, every unit coloured by its relevance."""
        return display.figure_of("spans", self, **options)


# ---------------------------------------------------------------------- made of a relevance


def spellings(relevance: Relevance) -> list[Spelling]:
    """The text that the tokens of each example spell."""
    tokens = [relevance.real_str_tokens(i) for i in range(len(relevance))]
    spaces = spelling.carries_spaces([token for row in tokens for token in row])
    ids = [
        row[mask].tolist()
        for row, mask in zip(relevance.token_ids, relevance.attention_mask, strict=True)
    ]
    each = zip(tokens, ids, strict=True)
    return [spelled_by(relevance.metadata, *one, spaces) for one in each]


def spelled_by(
    metadata: Mapping[str, Any], tokens: Sequence[str], ids: Sequence[int], spaces: bool
) -> Spelling:
    """The text that some tokens of a result spell.

    Results say themselves which ids stand for no text and how words are marked; of those that do
    not (made by hand), it is told from the strings.

    Args:
        metadata: of the result.
        tokens: one string per token.
        ids: their ids.
        spaces: whether words seem to be marked by the space before them.
    """
    facts = metadata.get("model", {}).get("spelling", {})
    known = facts.get("special")
    special = None if known is None else [token in known for token in ids]
    return spelling.spell(tokens, special, facts.get("spaces", spaces))


def by_word(relevance: Relevance) -> SpanRelevance:
    """See `Relevance.words`."""
    return _cut(relevance, "word", spelling.words)


def by_sentence(relevance: Relevance) -> SpanRelevance:
    """See `Relevance.sentences`."""
    return _cut(relevance, "sentence", spelling.sentences)


def by_span(relevance: Relevance, wanted: Sequence[SpanSpec]) -> SpanRelevance:
    """See `Relevance.spans`."""
    if isinstance(wanted, str) or not isinstance(wanted, Sequence) or not wanted:
        raise InputError(f"spans must be a list of strings and (start, end) pairs, got {wanted!r}.")
    spelled = spellings(relevance)
    units = [
        _chosen(one, relevance.real_str_tokens(i), [_span(one, spec) for spec in wanted])
        for i, one in enumerate(spelled)
    ]
    return _summed(relevance, "span", spelled, units)


def unit_of_each(
    spelled: Spelling, tokens: Sequence[str], cut: Cut, boundary: int = 0
) -> list[Unit]:
    """Units in order: those of the text, with tokens of no text and line breaks apart.

    Args:
        spelled: the text, and where each token stands.
        tokens: their strings.
        cut: makes spans of the text.
        boundary: no unit holds tokens on both sides of this one.
    """
    apart = [
        span is None or (not token.strip() and bool(token.strip(" ")))
        for token, span in zip(tokens, spelled.spans, strict=True)
    ]
    in_text = [None if alone else s for alone, s in zip(apart, spelled.spans, strict=True)]
    groups = [
        side
        for group in spelling.grouped(cut(spelled.text), in_text)
        for side in ([i for i in group if i < boundary], [i for i in group if i >= boundary])
        if side
    ]
    groups += [[i] for i, alone in enumerate(apart) if alone]
    return [_unit(spelled, tokens, group) for group in sorted(groups)]


def _unit(spelled: Spelling, tokens: Sequence[str], group: Sequence[int]) -> Unit:
    spans = [span for i in group if (span := spelled.spans[i]) is not None]
    span = (min(start for start, _ in spans), max(end for _, end in spans)) if spans else None
    if span is None or span[0] == span[1]:
        return Unit(tokens[group[0]], None, tuple(group))
    return Unit(spelled.text[slice(*span)], span, tuple(group))


def _cut(relevance: Relevance, kind: str, cut: Cut) -> SpanRelevance:
    spelled = spellings(relevance)
    tokens = [relevance.real_str_tokens(i) for i in range(len(relevance))]
    units = [unit_of_each(*pair, cut) for pair in zip(spelled, tokens, strict=True)]
    return _summed(relevance, kind, spelled, units)


def _span(spelled: Spelling, spec: SpanSpec) -> Span:
    """One entry of ``spans`` as characters that are whole tokens."""
    if isinstance(spec, str):
        first, last = (spelling.find(spelled, spec, which) for which in (0, -1))
        if first != last:
            raise InputError(
                f"{spec!r} occurs several times in the text, first at {first} and last at {last}: "
                "give the span of the one you mean."
            )
        return first
    whole = isinstance(spec, tuple) and len(spec) == 2 and all(isinstance(i, int) for i in spec)
    if not whole or not 0 <= spec[0] < spec[1]:
        raise InputError(f"a span must be a string or (start, end) with start < end, got {spec!r}.")
    if spelling.covering(spelled.spans, *spec) is None:
        spelling.refuse_cut(spelled, *spec, what=f"the span {spec}")
    return spec


def _chosen(spelled: Spelling, strings: Sequence[str], spans: Sequence[Span]) -> list[Unit]:
    """A unit for each span, in the order given, and one for every other token."""
    units, taken = [], set[int]()
    for span in spans:
        covered = spelling.covering(spelled.spans, *span) or []
        tokens = spelling.with_spaces_before(strings, covered)
        if taken & set(tokens):
            raise InputError(
                f"the span {span} ({spelled.text[slice(*span)]!r}) overlaps another one: then the "
                "sums would count tokens twice."
            )
        taken |= set(tokens)
        units.append(Unit(spelled.text[slice(*span)], span, tuple(tokens)))
    rest = tuple(i for i in range(len(spelled.spans)) if i not in taken)
    return [*units, Unit(THE_REST, None, rest)] if rest else units


def _summed(
    relevance: Relevance, kind: str, spelled: Sequence[Spelling], units: list[list[Unit]]
) -> SpanRelevance:
    examples = range(len(relevance))
    scores = [_sums(relevance.real_tokens(i)[None, :, None], units[i])[0, :, 0] for i in examples]
    heads, mask = relevance.head_tokens, relevance.attention_mask
    return SpanRelevance(
        kind=kind,
        texts=[one.text for one in spelled],
        units=units,
        scores=scores,
        head_scores=None
        if heads is None
        else [_sums(heads[i][:, mask[i]], units[i]) for i in examples],
        target=list(relevance.target),
        target_value=relevance.target_value,
        method=relevance.method,
        unit=relevance.unit,
    )


def _sums(
    values: Float[Tensor, "layer pos head"], units: Sequence[Unit]
) -> Float[Tensor, "layer unit head"]:
    return torch.stack([values[:, list(unit.tokens)].sum(dim=1) for unit in units], dim=1)
