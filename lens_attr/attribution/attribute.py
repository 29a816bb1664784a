"""`attribute` and `compare`: the front door."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from lens_attr._version import versions
from lens_attr.attribution.comparison import Comparison
from lens_attr.attribution.embeddings import Baseline, Embeddings
from lens_attr.attribution.explainer import Explained, Explainer
from lens_attr.attribution.gradients import OWN_OPTIONS, GradientTimesInput
from lens_attr.attribution.many_targets import resolve_targets, target_ids, text_major
from lens_attr.attribution.progress import watched
from lens_attr.attribution.registry import METHODS
from lens_attr.attribution.registry import method as method_named
from lens_attr.attribution.relevance import Relevance
from lens_attr.errors import (
    InputError,
    UnsupportedModelError,
    checked_optional_count,
    did_you_mean,
    give_notice,
)
from lens_attr.graph import ModelGraph, resolve
from lens_attr.graph.fingerprint import origin
from lens_attr.graph.tokens import (
    Text,
    TokenBatch,
    special_tokens,
    str_tokens,
    tokenize,
    unknown_words,
)
from lens_attr.rules import RuleSet
from lens_attr.targets import Resolved, Target, refuse_no_target

COMPARED = ("gradient_x_input", "lrp", "attnlrp", "gim")
"""What `compare` compares unless told otherwise."""

EVERY = "all"


@torch.inference_mode(False)
def attribute(
    model: Any,
    text: Text,
    target: Target | Sequence[Target] | None = None,
    method: str | RuleSet = "attnlrp",
    *,
    embeddings: Embeddings | None = None,
    baseline: Baseline = None,
    record: Sequence[str] = (),
    batch_size: int | None = None,
    attention_mask: Bool[Tensor, "batch pos"] | Int[Tensor, "batch pos"] | None = None,
    progress: bool | None = None,
    **options: Any,
) -> Relevance:
    """Which tokens and heads made this prediction.

    The logits never change, and nothing is left on the model: no hooks, flags or gradients.
    Methods made of rules take one forward and one modified backward per batch; what others cost
    stands in ``la.methods()``. Several targets take the same forwards as one, and equal as many
    calls: methods made of rules, gradient norms and DeepLIFT add one backward per target, the
    integrated gradients family one per target and step; occlusion, attention and ALTI add nothing.
    Backwards of several targets run as one where that is faster, on short texts.

    Args:
        model: a HookedTransformer, HookedEncoder or TransformerBridge.
        text: a string, a list of strings (padded here), or token ids [batch, pos].
        target: what is explained, e.g. ``la.LogitDiff(" are", " is")``; default: the top logit.
            Several, ``[la.Logit(" are"), la.Logit(" is")]``, share one forward (see below).
        method: a name from ``la.methods()``, or a `RuleSet` of your own.
        embeddings: ``"full"`` explains token plus position embedding, ``"token"`` the token's
            alone; default: the method's own.
        baseline: subtracted from the embedding: ``"zero"`` (the default of all methods but
            DeepLIFT, which chooses), ``"pad"``, a token (``" "`` in GIM's published setting; the
            word itself is ``" zero"``), an id, or a tensor [d_model], [pos, d_model] or [batch,
            pos, d_model].
        record: more places to read activation x gradient: roles (``"pattern"``, ``"neurons"``,
            ``"residual"``, ...), hook names, or globs.
        batch_size: explain this many texts at a time.
        attention_mask: for token ids with padding; True or 1 where a token is real.
        progress: show a progress bar on stderr or not; default: on a terminal or in a notebook,
            if it takes longer than two seconds.
        options: of the method, e.g. ``temperature=3.0`` for ``"gim"``, ``steps=50`` for
            ``"integrated_gradients"``.

    Returns:
        The relevance of every token, head and recorded place, in units of the target
        (attention-based methods have their own). One row per example; with a list of targets one
        per example and target, the targets of a text next to each other: row ``i * len(targets) +
        k`` explains text i by target k, and ``r.target`` says so in words.

    Raises:
        InputError: an argument that cannot be used.
        UnsupportedModelError: this model cannot be explained faithfully by this method.
        RuleConflictError: a backward hook of yours changes a gradient where a rule acts, or
            another thread is explaining this model.
        RuleNotAppliedError: a rule did not act, so the result would be wrong.
        NonFiniteError: NaN or infinite logits or relevance.
    """
    graph = resolve(model)
    _check_target(target)
    batch_size = checked_optional_count("batch_size", batch_size)
    chosen = {"embeddings": embeddings, "baseline": baseline, "record": _places(record)}
    options |= {name: value for name, value in chosen.items() if value is not None}
    explainer = _explainer(method, options)
    batch, targets = resolve_targets(graph, tokenize(graph, text, attention_mask), target)
    explainer.refuse(graph, batch)
    keep_width = explainer.keep_width or any(one.full is not None for one in targets)
    groups = [
        _Rows.of(batch, targets, explainer, index, keep_width)
        for index in _row_groups(len(batch), batch_size)
    ]
    with watched(graph, sum(group.passes(graph) for group in groups), progress):
        parts = [group.explain(graph, batch.token_ids.shape[1]) for group in groups]
    metadata = _metadata(graph, explainer, parts[0])
    metadata |= {"target_ids": target_ids(targets), "batch_size": batch_size}
    notices = _notices(graph, batch, targets, explainer, parts)
    for notice in notices:
        give_notice(notice)
    result = _assemble(graph, batch, targets, parts, method, metadata | {"notices": notices})
    return replace(result, per_token=list(explainer.per_token))


def compare(
    model: Any,
    text: Text,
    target: Target | Sequence[Target] | None = None,
    methods: str | RuleSet | Sequence[str | RuleSet] | None = None,
    *,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    **shared: Any,
) -> Comparison:
    """The same prediction explained by several methods: one table, one figure.

    Args:
        model: as in `attribute`, as ``text`` and ``target``.
        methods: names, or rule sets (called by their name), one or several; default: `COMPARED`;
            ``"all"``: every method there is. Of the last two a notice names those that are left
            out, because they cannot explain this model, and why.
        options: of single methods, by name, e.g. ``{"integrated_gradients": {"steps": 20}}``.
        shared: options of `attribute` for every method.

    Raises:
        InputError: no methods, or two of the same name; options of a method that is not compared.
        UnsupportedModelError: a method you named cannot explain this model.
    """
    named = methods is not None and methods != EVERY
    chosen = list(METHODS) if methods == EVERY else COMPARED if methods is None else methods
    chosen = [chosen] if isinstance(chosen, (str, RuleSet)) else chosen
    names = [method if isinstance(method, str) else method.name for method in chosen]
    if not names or len(set(names)) < len(names):
        raise InputError(f"methods must be one or more of different names, got {names}.")
    own = _options_of(names, options)
    results = {}
    for name, method in zip(names, chosen, strict=True):
        try:
            results[name] = attribute(model, text, target, method, **shared | own[name])
        except UnsupportedModelError as error:
            if named:
                raise
            give_notice(f"{name} is left out: {error}")
    return Comparison(results)


def _options_of(names: Sequence[str], options: Any) -> dict[str, dict[str, Any]]:
    """The options of each method, none where there are none."""
    options = {} if options is None else options
    if not isinstance(options, Mapping):
        raise InputError(f'options go by method, {{"gim": {{"z": 1.0}}}}, got {options!r}.')
    for name, own in options.items():
        if name not in names:
            raise InputError(f"options of {name!r}, not compared; {did_you_mean(name, names)}")
        if not isinstance(own, Mapping):
            raise InputError(f"the options of {name} must be a mapping, got {own!r}.")
    return {name: dict(options.get(name, {})) for name in names}


def prefix_exact(method: str | RuleSet, options: Mapping[str, Any]) -> bool:
    """`Explainer.prefix_exact` of a method as `attribute` would run it.

    Raises:
        InputError: a method or an option that there is not.
    """
    others = ("record", "batch_size", "attention_mask")
    own = {name: v for name, v in options.items() if name not in others and v is not None}
    return _explainer(method, own).prefix_exact


def _check_target(target: Any) -> None:
    several = isinstance(target, Sequence) and not isinstance(target, str)
    for one in target if several else [] if target is None else [target]:
        refuse_no_target(one, or_several=True)
    if several and not target:
        raise InputError("the list of targets is empty.")


def _places(record: Any) -> list[str] | None:
    """What to record, None for nothing."""
    several = [] if record is None else [record] if isinstance(record, str) else record
    if not isinstance(several, Collection) or not all(isinstance(one, str) for one in several):
        raise InputError(
            f'record must be a list of roles, hook names or globs, such as ["z"], got {record!r}.'
        )
    return list(several) or None


def _explainer(method: Any, options: dict[str, Any]) -> Explainer:
    if isinstance(method, str):
        return method_named(method).explainer(**options)
    if not isinstance(method, RuleSet):
        raise InputError(
            f"method must be a name or a RuleSet, got {type(method).__name__}; wrap a single rule: "
            "la.rules.gradient() + rule."
        )
    extra = sorted(options.keys() - set(OWN_OPTIONS))
    if extra:
        raise InputError(f"switches {extra} go with a method's name, not a RuleSet.")
    return GradientTimesInput(rules=method, **options)


def _notices(
    graph: ModelGraph,
    batch: TokenBatch,
    targets: Sequence[Resolved],
    explainer: Explainer,
    parts: Sequence[Explained],
) -> list[str]:
    """What the reader of the result must know, each once."""
    of_parts = [notice for part in parts for notice in part.notices]
    of_weights = explainer.processing_notices(graph.processing())
    of_targets = [notice for target in targets for notice in target.notices]
    found = [*unknown_words(graph, batch), *of_targets, *of_parts, *of_weights]
    return list(dict.fromkeys(found))


def _row_groups(n: int, size: int | None) -> list[list[int]]:
    """Indices of ``n`` rows, ``size`` at a time."""
    return [list(range(i, min(i + (size or n), n))) for i in range(0, n, size or n)]


@dataclass(frozen=True)
class _Rows:
    """Rows that are explained together, without the columns that are padding in all of them."""

    batch: TokenBatch
    targets: list[Resolved]
    explainer: Explainer
    columns: Int[Tensor, " columns"]

    @staticmethod
    def of(
        batch: TokenBatch,
        targets: Sequence[Resolved],
        explainer: Explainer,
        index: list[int],
        keep_width: bool,
    ) -> _Rows:
        """Some rows of the whole batch."""
        mask = batch.attention_mask[index]
        used = torch.ones_like(mask[0]) if keep_width else mask.any(dim=0)
        columns = used.nonzero().flatten()
        aimed = [target.rows(index) for target in targets]
        aimed = [target.at(torch.searchsorted(columns, target.position)) for target in aimed]
        own = explainer.rows(index, len(batch))
        return _Rows(batch.rows(index, columns), aimed, own, columns)

    def passes(self, graph: ModelGraph) -> int:
        """How many forwards and backwards they take."""
        these = graph, self.batch, self.targets
        return self.explainer.forwards(*these) + self.explainer.backwards(*these)

    def explain(self, graph: ModelGraph, width: int) -> Explained:
        """All targets, with the columns back where they were in the whole batch."""
        part = text_major(self.explainer.explain_many(graph, self.batch, self.targets))
        return _widen(part, self.columns, width)


def _widen(part: Explained, columns: Int[Tensor, " columns"], width: int) -> Explained:
    """Put the columns back where they were in the whole batch."""
    if len(columns) < width:
        tokens = part.tokens.new_zeros(len(part.tokens), width)
        part.tokens = tokens.index_copy(1, columns, part.tokens)
    if len(columns) < width and part.head_tokens is not None:
        batch, layers, _, heads = part.head_tokens.shape
        empty = part.head_tokens.new_zeros(batch, layers, width, heads)
        part.head_tokens = empty.index_copy(2, columns, part.head_tokens)
    return part


def _join(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat([part.detach().cpu() for part in parts])


def _join_if_any(parts: Sequence[Tensor | None]) -> Tensor | None:
    present = [part for part in parts if part is not None]
    return _join(present) if present else None


def _join_each(parts: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {key: _join([part[key] for part in parts]) for key in parts[0]}


def _assemble(
    graph: ModelGraph,
    batch: TokenBatch,
    targets: Sequence[Resolved],
    parts: list[Explained],
    method: str | RuleSet,
    metadata: dict[str, Any],
) -> Relevance:
    each_text = [i for i in range(len(batch)) for _ in targets]
    batch = batch.rows(each_text)
    return Relevance(
        tokens=_join([part.tokens for part in parts]),
        token_ids=batch.token_ids.cpu(),
        attention_mask=batch.attention_mask.cpu(),
        str_tokens=str_tokens(graph, batch),
        target_value=_join([part.target_value for part in parts]),
        target=[label for part in parts for label in part.labels],
        position=torch.stack([target.position for target in targets], dim=1).flatten().cpu(),
        method=method if isinstance(method, str) else method.name,
        unit=parts[0].unit or targets[0].unit,
        head_tokens=_join_if_any([part.head_tokens for part in parts]),
        heads_relu_dim=_join_if_any([part.heads_relu_dim for part in parts]),
        records=_join_each([part.records for part in parts]),
        flow=_join_each([part.flow for part in parts]),
        extra=_join_each([part.extra for part in parts]),
        metadata=metadata,
        special=special_tokens(graph, batch).cpu(),
    )


def _metadata(graph: ModelGraph, explainer: Explainer, part: Explained) -> dict[str, Any]:
    return {
        "model": graph.describe(),
        "loaded_from": origin(graph),
        **explainer.describe(),
        **part.metadata,
        "device": str(graph.device),
        "threads": torch.get_num_threads(),
        "prepend_bos": bool(getattr(graph.cfg, "default_prepend_bos", False)),
        "versions": versions(),
    }
