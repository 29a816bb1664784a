"""`attribute` and `compare`: the front door."""

from __future__ import annotations

import importlib.metadata
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Bool, Int
from rich.console import Console
from rich.progress import track
from torch import Tensor

from lens_attr._version import __version__
from lens_attr.attribution.comparison import Comparison
from lens_attr.attribution.gradients import (
    Baseline,
    Embeddings,
    Explained,
    GradientOptions,
    explain,
    refuse_misfit,
)
from lens_attr.attribution.registry import method as method_named
from lens_attr.attribution.relevance import Relevance
from lens_attr.errors import InputError, Notice, UnsupportedModelError
from lens_attr.graph import VALUE_BIASES_FOLDED, ModelGraph, resolve
from lens_attr.graph.tokens import Text, TokenBatch, str_tokens, tokenize
from lens_attr.rules import RuleSet
from lens_attr.targets import Resolved, Target, TopLogit

COMPARED = ("gradient_x_input", "lrp", "attnlrp", "gim")
"""What `compare` compares unless told otherwise."""


@torch.inference_mode(False)
def attribute(
    model: Any,
    text: Text,
    target: Target | None = None,
    method: str | RuleSet = "attnlrp",
    *,
    embeddings: Embeddings = "full",
    baseline: Baseline = None,
    record: Sequence[str] = (),
    batch_size: int | None = None,
    attention_mask: Bool[Tensor, "batch pos"] | Int[Tensor, "batch pos"] | None = None,
    progress: bool | None = None,
    **switches: Any,
) -> Relevance:
    """Which tokens and heads made this prediction.

    One forward and one modified backward per batch; the logits never change, and nothing is left
    on the model: no hooks, flags or gradients.

    Args:
        model: a HookedTransformer, HookedEncoder or TransformerBridge.
        text: a string, a list of strings (padded here), or token ids [batch, pos].
        target: what is explained, e.g. ``la.LogitDiff(" are", " is")``; default: the top logit.
        method: a name from ``la.methods()``, or a `RuleSet` of your own.
        embeddings: ``"full"`` explains token plus position embedding, ``"token"`` the token's
            alone.
        baseline: subtracted from the embedding: None for zero, a token (``" "`` in GIM's
            published setting), an id, or a tensor [d_model], [pos, d_model] or [batch, pos,
            d_model].
        record: more places to read activation x gradient: roles (``"pattern"``, ``"neurons"``,
            ``"residual"``, ...), hook names, or globs.
        batch_size: explain this many examples at a time, with a progress bar.
        attention_mask: for token ids with padding; True or 1 where a token is real.
        progress: show the bar or not; default: where there is more than one batch.
        switches: of the preset, e.g. ``temperature=3.0`` for ``"gim"``.

    Returns:
        The relevance of every token, head and recorded place, in units of the target.

    Raises:
        InputError: an argument that cannot be used.
        UnsupportedModelError: this model cannot be explained faithfully by this method.
        RuleConflictError: a backward hook of yours changes a gradient where a rule acts.
        RuleNotAppliedError: a rule did not act, so the result would be wrong.
        NonFiniteError: NaN or infinite logits or relevance.
    """
    graph = resolve(model)
    _check_options(target, embeddings, batch_size)
    target = target or TopLogit()
    rules = _rules(method, switches)
    batch = tokenize(graph, text, attention_mask)
    copies = target.copies(batch)
    batch = batch.rows([0] * copies) if copies != 1 else batch
    resolved = target.resolve(graph, batch)
    options = GradientOptions(rules, embeddings, baseline, record)
    refuse_misfit(graph, baseline, batch)
    keep_width = bool(record) or resolved.full is not None or isinstance(baseline, Tensor)
    rows = _row_groups(len(batch), batch_size, progress)
    parts = [_explain_rows(graph, batch, resolved, options, index, keep_width) for index in rows]
    metadata = _metadata(graph, options, parts[0])
    notices = [
        *resolved.notices,
        *_degenerate(graph, options, parts[0]),
        *_processed(metadata["model"]["weight_processing"]),
    ]
    for notice in notices:
        warnings.warn(notice, Notice, stacklevel=2)
    return _assemble(graph, batch, resolved, parts, method, metadata | {"notices": notices})


def compare(
    model: Any,
    text: Text,
    target: Target | None = None,
    methods: Sequence[str | RuleSet] | None = None,
    **options: Any,
) -> Comparison:
    """The same prediction explained by several methods: one table, one figure.

    Args:
        model: as in `attribute`, as ``text``, ``target`` and ``options``.
        methods: names, or rule sets (called by their name); default: `COMPARED`, without those
            that this model cannot be explained by, which a notice names.

    Raises:
        InputError: no methods, or two of the same name.
        UnsupportedModelError: a method you named cannot explain this model.
    """
    chosen = COMPARED if methods is None else methods
    names = [method if isinstance(method, str) else method.name for method in chosen]
    if not names or len(set(names)) < len(names):
        raise InputError(f"methods must be one or more of different names, got {names}.")
    results = {}
    for name, method in zip(names, chosen, strict=True):
        try:
            results[name] = attribute(model, text, target, method, **options)
        except UnsupportedModelError as error:
            if methods is not None:
                raise
            warnings.warn(f"{name} is left out: {error}", Notice, stacklevel=2)
    return Comparison(results)


def _check_options(target: Any, embeddings: str, batch_size: int | None) -> None:
    if target is not None and not isinstance(target, Target):
        raise InputError(
            f"target must be la.Logit, la.LogitDiff, la.LogProb, la.TopLogit or la.Metric, got "
            f"{type(target).__name__}: write la.Logit({target!r})."
        )
    if embeddings not in ("full", "token"):
        raise InputError(f"embeddings must be 'full' or 'token', got {embeddings!r}.")
    if batch_size is not None and batch_size < 1:
        raise InputError(f"batch_size must be at least 1, got {batch_size}.")


def _rules(method: str | RuleSet, switches: dict[str, Any]) -> RuleSet:
    if not isinstance(method, (str, RuleSet)):
        raise InputError(
            f"method must be a name or a RuleSet, got {type(method).__name__}; wrap a single rule: "
            "la.rules.gradient() + rule."
        )
    if isinstance(method, RuleSet):
        if switches:
            raise InputError(f"switches {sorted(switches)} go with a method's name, not a RuleSet.")
        return method
    return method_named(method).rules(**switches)


def _degenerate(graph: ModelGraph, options: GradientOptions, part: Explained) -> list[str]:
    """A LayerNorm right after the embeddings makes their plain gradient x input zero."""
    embedding_norms = {p.name for p in graph.points("norm_scale") if p.name.startswith("embed")}
    zero_baseline = options.baseline is None and options.embeddings == "full"
    if not embedding_norms or embedding_norms & set(part.fired) or not zero_baseline:
        return []
    return [
        "the embeddings pass a LayerNorm first, which does not change when they are scaled: with "
        "its true gradient the relevance of the full embedding is zero up to rounding. Use "
        'embeddings="token", a baseline, or a method that freezes norms (lrp, attnlrp).'
    ]


def _processed(processing: Sequence[str]) -> list[str]:
    """Folding a value bias into b_O moves it out of z, where head relevance is read."""
    if VALUE_BIASES_FOLDED not in processing:
        return []
    return [
        "the value biases of this model are folded into b_O: its head relevance differs from that "
        "of the raw weights (its token relevance does not). Load it with la.load to compare."
    ]


def _row_groups(n: int, size: int | None, progress: bool | None) -> Iterator[list[int]]:
    """Indices of ``n`` rows, ``size`` at a time, with a progress bar where there are several."""
    starts: Iterable[int] = range(0, n, size or n)
    if progress or (progress is None and size is not None and n > size):
        starts = track(list(starts), "explaining", console=Console(stderr=True), transient=True)
    for start in starts:
        yield list(range(start, min(start + (size or n), n)))


def _explain_rows(
    graph: ModelGraph,
    batch: TokenBatch,
    target: Resolved,
    options: GradientOptions,
    index: list[int],
    keep_width: bool,
) -> Explained:
    """Explain some rows, without the columns that are padding in all of them."""
    mask = batch.attention_mask[index]
    used = torch.ones_like(mask[0]) if keep_width else mask.any(dim=0)
    columns = used.nonzero().flatten()
    aimed = target.rows(index)
    aimed = aimed.at(torch.searchsorted(columns, aimed.position))
    if isinstance(options.baseline, Tensor) and options.baseline.shape[:-2] == (len(batch),):
        options = replace(options, baseline=options.baseline[index])
    part = explain(graph, batch.rows(index, columns), aimed, options)
    return _widen(part, columns, batch.token_ids.shape[1])


def _widen(part: Explained, columns: Int[Tensor, " columns"], width: int) -> Explained:
    """Put the columns back where they were in the whole batch."""
    if len(columns) < width:
        tokens = part.tokens.new_zeros(len(part.tokens), width)
        part.tokens = tokens.index_copy(1, columns, part.tokens)
        batch, layers, _, heads = part.head_tokens.shape
        empty = part.head_tokens.new_zeros(batch, layers, width, heads)
        part.head_tokens = empty.index_copy(2, columns, part.head_tokens)
    return part


def _join(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat([part.detach().cpu() for part in parts])


def _assemble(
    graph: ModelGraph,
    batch: TokenBatch,
    target: Resolved,
    parts: list[Explained],
    method: str | RuleSet,
    metadata: dict[str, Any],
) -> Relevance:
    first = parts[0]
    return Relevance(
        tokens=_join([part.tokens for part in parts]),
        token_ids=batch.token_ids.cpu(),
        attention_mask=batch.attention_mask.cpu(),
        str_tokens=str_tokens(graph, batch),
        target_value=_join([part.target_value for part in parts]),
        target=[label for part in parts for label in part.labels],
        position=target.position.cpu(),
        method=method if isinstance(method, str) else method.name,
        unit=target.unit,
        head_tokens=_join([part.head_tokens for part in parts]),
        heads_relu_dim=_join([part.heads_relu_dim for part in parts]),
        records={key: _join([part.records[key] for part in parts]) for key in first.records},
        flow={key: _join([part.flow[key] for part in parts]) for key in first.flow},
        metadata=metadata,
    )


def _metadata(graph: ModelGraph, options: GradientOptions, part: Explained) -> dict[str, Any]:
    baseline = options.baseline
    shown = f"tensor {list(baseline.shape)}" if isinstance(baseline, Tensor) else baseline
    libraries = ("torch", "transformer-lens", "transformers")
    return {
        "model": graph.describe(),
        "rules": options.rules.describe(),
        "fired": {"points": len(part.fired), "backward_calls": sum(part.fired.values())},
        "embeddings": options.embeddings,
        "baseline": shown,
        "prepend_bos": bool(getattr(graph.cfg, "default_prepend_bos", False)),
        "versions": {"lens_attr": __version__}
        | {name: importlib.metadata.version(name) for name in libraries},
    }
