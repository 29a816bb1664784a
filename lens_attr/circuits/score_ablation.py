"""Self-repair: do keys of one attention row stand in for each other? (GIM, Edin et al. 2025)

Softmax attention repairs itself: when two keys carry the same value, ablating one moves its
attention to the other and the prediction stays. Ablating both shows what they do. The measure
here is exact; the predictions of gradient methods are first order in the same ablation.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import combinations, product
from numbers import Integral
from typing import Any, Literal, get_args

import pandas as pd
import torch
from jaxtyping import Bool, Float
from rich.console import Console
from rich.progress import track
from torch import Tensor

from lens_attr.attribution.scoring import target_value
from lens_attr.circuits.aligned import announce, settled
from lens_attr.circuits.reading import read_gradients
from lens_attr.circuits.self_repair_results import THRESHOLDS, SelfRepair, check_thresholds
from lens_attr.errors import InputError, UnsupportedModelError, checked_count, did_you_mean
from lens_attr.graph import ModelGraph, resolve
from lens_attr.graph.tokens import Text, TokenBatch, str_tokens, tokenize
from lens_attr.rules import PRESETS, RuleSet, preset
from lens_attr.targets import Resolved, Target, refuse_no_target

Replace = Literal["mean", "-inf"]
Queries = Sequence[int] | Literal["explained", "all"]

TSG = "tsg"
"""The true gradient but for the softmax Jacobian at temperature 2: GIM's step against self-repair
on its own."""

SMALLEST = 1e-6
"""Joint effects below this are not divided by."""

ROWS = 64


@dataclass(frozen=True)
class Row:
    """One attention row: the keys that a query of a head may read, in one example."""

    example: int
    layer: int
    head: int
    query: int
    scores: Float[Tensor, " key"]
    strength: Float[Tensor, " key"]
    real: Bool[Tensor, " key"]
    predicted: dict[str, Float[Tensor, " key"]]

    @property
    def keys(self) -> list[int]:
        """The keys the query may read."""
        return self.real.nonzero().flatten().tolist()

    def replacement(self, replace: Replace) -> float:
        """What an ablated score becomes."""
        return float(self.scores[self.real].mean()) if replace == "mean" else float("-inf")


@torch.inference_mode(False)
def self_repair(
    model: Any,
    text: Text,
    target: Target,
    *,
    methods: Sequence[str | RuleSet] = ("gradient", TSG, "gim"),
    replace: Replace = "mean",
    queries: Queries = "explained",
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    thresholds: Sequence[float] = THRESHOLDS,
    max_keys: int = 8,
    batch_size: int = ROWS,
    progress: bool = False,
) -> SelfRepair:
    """Ablate attention scores of one attention row, one by one and in pairs, exactly.

    For every (head, query) row, by default with the query at the explained position, each key's
    score is replaced by the row's mean (or -inf), and so are pairs of candidate keys: those with
    p * dL/dp above the smallest threshold. Methods predict (replacement - score) * dL/dscore with
    their own gradient, pairs as the sum.

    Args:
        model: a TransformerLens model whose softmax is in the autograd graph.
        text: as in ``la.attribute``.
        target: what is measured.
        methods: presets by name, ``"tsg"``, or rule sets, whose prediction is compared.
        replace: what an ablated score becomes; with ``"-inf"`` no prediction is defined.
        queries: which rows of every head: that of the ``"explained"`` position, ``"all"`` that the
            explained position can read from, or these, counted in real tokens as positions are.
        layers: which blocks; default: all.
        heads: which heads of each; default: all.
        thresholds: of p * dL/dp, in units of the target; the smallest selects the candidates.
        max_keys: candidates per row; the weaker ones are dropped and counted.
        batch_size: ablated runs per forward.
        progress: show a bar over the attention rows.

    Raises:
        InputError: unknown option, query, layer or head.
        UnsupportedModelError: the softmax is computed outside the autograd graph.
    """
    graph = resolve(model)
    refuse_no_target(target)
    rules = check_options(graph, methods, replace, thresholds, max_keys, batch_size)
    batch = tokenize(graph, text)
    resolved = settled(graph, batch, target.resolve(graph, batch))
    announce(graph, [batch], resolved)
    places = [
        (layer, head)
        for layer in _indices("layers", layers, graph.n_layers)
        for head in _indices("heads", heads, graph.n_heads)
    ]
    chosen = _queries(graph, batch, resolved, queries)
    rows = _rows(graph, batch, resolved, rules, places, chosen)
    whole = target_value(graph, batch, resolved)[0].detach()
    measure = partial(_measure, graph, batch, resolved, whole, replace, batch_size)
    found = _Found()
    for row in _watched(rows, progress):
        _ablate(row, measure, min(thresholds), max_keys, replace, found)
    names = list(rules)
    return SelfRepair(
        singles=pd.DataFrame(found.singles, columns=[*SINGLE, *names]),
        pairs=pd.DataFrame(found.pairs, columns=[*PAIR, *names]),
        methods=names,
        replace=replace,
        n_skipped=found.skipped,
        n_dropped=found.dropped,
        shape=(graph.n_layers, graph.n_heads),
        unit=resolved.unit,
        metadata={
            "model": graph.describe(),
            "thresholds": list(thresholds),
            "max_keys": max_keys,
            "queries": queries if isinstance(queries, str) else list(queries),
            "notices": list(resolved.notices),
        },
        target=list(resolved.labels),
        str_tokens=str_tokens(graph, batch),
        position=resolved.position.tolist(),
    )


ROW = ["example", "layer", "head", "query"]
SINGLE = [*ROW, "key", "strength", "effect"]
PAIR = [*ROW, "key_1", "key_2", "strength", "effect_1", "effect_2", "effect_both"]


class _Found:
    """Tables being filled."""

    def __init__(self) -> None:
        self.singles: list[dict[str, Any]] = []
        self.pairs: list[dict[str, Any]] = []
        self.skipped = 0
        self.dropped = 0


def check_options(
    graph: ModelGraph,
    methods: Sequence[str | RuleSet],
    replace: str,
    thresholds: Sequence[float],
    max_keys: int,
    batch_size: int,
) -> dict[str, RuleSet]:
    """The methods whose prediction is compared, by name, if `self_repair` takes the options.

    Raises:
        InputError, UnsupportedModelError: as `self_repair`.
    """
    if replace not in get_args(Replace):
        raise InputError(f"unknown replace {replace!r}; {did_you_mean(replace, get_args(Replace))}")
    check_thresholds(thresholds)
    checked_count("batch_size", batch_size)
    if max_keys < 2:
        raise InputError(f"max_keys must be at least 2 to form pairs, got {max_keys}.")
    if not graph.attention_in_graph:
        raise UnsupportedModelError(
            f"{graph.architecture} on {graph.backend} computes its softmax outside the autograd "
            "graph, so its attention scores can be neither ablated nor differentiated."
        )
    return {} if replace == "-inf" else _rule_sets(methods)


def _rule_sets(methods: Sequence[str | RuleSet]) -> dict[str, RuleSet]:
    found = {}
    for method in methods:
        if isinstance(method, RuleSet):
            found[method.name] = method
        elif method == TSG:
            found[TSG] = preset("gradient", temperature=2.0)
        elif method in PRESETS:
            found[method] = preset(method)
        else:
            known = [*PRESETS, TSG]
            raise InputError(f"unknown method {method!r}; {did_you_mean(method, known)}")
    if len(found) < len(methods):
        raise InputError("two methods have the same name.")
    return found


def _indices(name: str, chosen: Sequence[int] | None, n: int) -> list[int]:
    if chosen is None:
        return list(range(n))
    _check_numbers(name, chosen, "a list of numbers such as [0]")
    wrong = [i for i in chosen if not 0 <= i < n]
    if wrong:
        raise InputError(f"{name} {wrong} are out of range: the model has {name} 0 to {n - 1}.")
    return [int(i) for i in chosen]


def _check_numbers(name: str, chosen: Any, wanted: str) -> None:
    whole = isinstance(chosen, Collection) and all(isinstance(i, Integral) for i in chosen)
    if not whole or not len(chosen):
        raise InputError(f"{name} must be {wanted}, got {chosen!r}.")


def _queries(
    graph: ModelGraph, batch: TokenBatch, target: Resolved, queries: Queries
) -> list[list[int]]:
    """Of every example, the chosen queries as indices into its padded row."""
    explained = target.position.tolist()
    if queries == "explained":
        return [[position] for position in explained]
    every = [row.nonzero().flatten().tolist() for row in batch.attention_mask]
    if queries == "all":
        last = [max(row) for row in every] if graph.is_masked_model else explained
        return [[q for q in row if q <= at] for row, at in zip(every, last, strict=True)]
    _check_numbers("queries", queries, "'explained', 'all' or positions")
    for example, row in enumerate(every):
        wrong = [q for q in queries if not -len(row) <= q < len(row)]
        if wrong:
            raise InputError(
                f"query {wrong[0]} of example {example} is out of range: it has {len(row)} tokens."
            )
    return [list(dict.fromkeys(row[q] for q in queries)) for row in every]


def _watched(rows: list[Row], progress: bool) -> Iterable[Row]:
    return track(rows, "ablating scores", console=Console(stderr=True)) if progress else rows


# ---------------------------------------------------------------------------------- what is there


def _rows(
    graph: ModelGraph,
    batch: TokenBatch,
    target: Resolved,
    rules: dict[str, RuleSet],
    places: list[tuple[int, int]],
    queries: list[list[int]],
) -> list[Row]:
    """Every attention row of some queries of some heads, with what the methods predict for it."""
    scores, patterns = graph.points("scores"), graph.points("pattern")
    values: dict[str, Tensor] = {}
    with ExitStack() as stack:
        for point in (*scores, *patterns):
            keep = partial(_keep, values, point.name)
            point.on_forward(keep, stack)
        points = [*scores, *patterns]
        plain, _ = read_gradients(graph, preset("gradient"), points, batch, target)
    gradients = {
        name: read_gradients(graph, one, scores, batch, target)[0] for name, one in rules.items()
    }
    found = []
    each = [(example, query) for example, row in enumerate(queries) for query in row]
    for (example, query), (layer, head) in product(each, places):
        at = (example, head, query)
        s = values[scores[layer].name][at].double()
        p = values[patterns[layer].name][at].double()
        strength = p * plain[patterns[layer]][at].double()
        real = (s > torch.finfo(graph.dtype).min / 4) & batch.attention_mask[example]
        slopes = {name: g[scores[layer]][at].double() for name, g in gradients.items()}
        moved = torch.where(real, s[real].mean() - s, 0.0)
        predicted = {name: moved * slope for name, slope in slopes.items()}
        found.append(Row(example, layer, head, query, s, strength, real, predicted))
    return found


def _keep(values: dict[str, Tensor], name: str, activation: Tensor) -> None:
    values[name] = activation.detach()


# ------------------------------------------------------------------------------- what is measured


def _ablate(
    row: Row, measure: Any, threshold: float, max_keys: int, replace: Replace, found: _Found
) -> None:
    """Every key of a row alone, and its candidates in pairs."""
    keys = row.keys
    effects = dict(zip(keys, measure(row, [(key,) for key in keys]), strict=True))
    where = {"example": row.example, "layer": row.layer, "head": row.head, "query": row.query}
    for key in keys:
        predicted = {name: float(one[key]) for name, one in row.predicted.items()}
        strength = float(row.strength[key])
        single = {"key": key, "strength": strength, "effect": effects[key]}
        found.singles.append(where | single | predicted)
    candidates = sorted(
        (key for key in keys if float(row.strength[key]) > threshold),
        key=lambda key: -float(row.strength[key]),
    )
    found.dropped += max(0, len(candidates) - max_keys)
    pairs = list(combinations(sorted(candidates[:max_keys]), 2))
    for (a, b), both in zip(pairs, measure(row, pairs), strict=True):
        if abs(both) < SMALLEST:
            found.skipped += 1
            continue
        joint = {
            "key_1": a,
            "key_2": b,
            "strength": min(float(row.strength[a]), float(row.strength[b])),
            "effect_1": effects[a],
            "effect_2": effects[b],
            "effect_both": both,
        }
        predicted = {name: float(one[a] + one[b]) for name, one in row.predicted.items()}
        found.pairs.append(where | joint | predicted)


@torch.no_grad()
def _measure(
    graph: ModelGraph,
    batch: TokenBatch,
    target: Resolved,
    whole: Float[Tensor, " batch"],
    replace: Replace,
    size: int,
    row: Row,
    ablations: Sequence[tuple[int, ...]],
) -> list[float]:
    """Target after minus before each ablation of one row."""
    found: list[float] = []
    point = graph.points("scores")[row.layer]
    for part in _parts(ablations, size):
        index = [row.example] * len(part)
        with ExitStack() as stack:
            point.on_forward(partial(_replace, row, part, row.replacement(replace)), stack)
            values = target_value(graph, batch.rows(index), target.rows(index))[0]
        found += (values - whole[row.example]).double().tolist()
    return found


def _parts(ablations: Sequence[tuple[int, ...]], size: int) -> Iterator[Sequence[tuple[int, ...]]]:
    for start in range(0, len(ablations), size):
        yield ablations[start : start + size]


def _replace(
    row: Row,
    ablations: Sequence[tuple[int, ...]],
    value: float,
    scores: Float[Tensor, "copy head query key"],
) -> Float[Tensor, "copy head query key"]:
    scores = scores.clone()
    for copy, keys in enumerate(ablations):
        scores[copy, row.head, row.query, list(keys)] = value
    return scores
