"""Stability: does relevance stay where it was when a text is said a little differently?

Each sample is explained as it is and edited; the edit keeps the meaning and the model's answer.
The relevance of the words that both versions share is compared by Spearman's rank correlation.
Stability alone proves nothing: scores that never look at the model can be perfectly stable, as
the baseline ``first_token`` shows.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from numpy.typing import NDArray

from lens_attr.attribution.embeddings import Embeddings
from lens_attr.errors import InputError, did_you_mean
from lens_attr.evaluation.baselines import BASELINES
from lens_attr.evaluation.benchmark import answered, tasks_of
from lens_attr.evaluation.intervals import mean_interval
from lens_attr.evaluation.predictions import Prediction, predict, target_of
from lens_attr.evaluation.results import COLUMNS, BenchTable
from lens_attr.evaluation.running import (
    BATCH,
    COMPARED_AS,
    SAMPLES,
    Methods,
    Run,
    Scores,
    fingerprint_of,
    metadata_of,
    methods_by_name,
    progress_bar,
)
from lens_attr.evaluation.store import Store
from lens_attr.evaluation.tasks import (
    ALL_EDITS,
    SEGMENTATION,
    Pairs,
    Task,
    TokenSample,
    View,
    edited,
    text_read,
    view,
)
from lens_attr.evaluation.tasks.edits import same_rivals, word_spans
from lens_attr.graph import ModelGraph, resolve
from lens_attr.graph.tokens import token_string
from lens_attr.rules import RuleSet

MEASURES: Mapping[str, float] = {"rank_correlation": 1.0, "undefined": 100.0}
"""With the factor between the per-sample tables and what is shown."""

FEWEST_WORDS = 3
"""Shared words below which a rank correlation says nothing."""

PIECE_MARKS = ("Ġ", "▁", "##")
"""What byte-level BPE, SentencePiece and WordPiece write before a word, or inside of one."""

Words = list[tuple[str, list[int]]]
"""Each word of a text in lower case, with its tokens."""


@dataclass(frozen=True)
class Stability:
    """What is edited and explained.

    Attributes:
        edits: names from ``tasks.ALL_EDITS``; pairs from a file bring their own.
        contrastive: explain answer - foil, with the foil of the text as it was; otherwise the
            highest logit among the task's candidates.
        embeddings: what methods explain, where they have the choice.
        keep_incorrect: use samples that the model gets wrong as well.
        seed: of the edits, the random baseline and the bootstrap.
    """

    edits: Sequence[str] = ALL_EDITS
    contrastive: bool = True
    embeddings: Embeddings | None = None
    keep_incorrect: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        for name in self.edits:
            if name not in ALL_EDITS:
                raise InputError(f"unknown edit {name!r}; {did_you_mean(name, ALL_EDITS)}")


@dataclass(frozen=True)
class _Version:
    """One sample, edited, and the words that it shares with what it was: their tokens in both."""

    sample: TokenSample
    shared: Sequence[tuple[str, list[int], list[int]]]


@dataclass(frozen=True)
class _Edit:
    """All samples of one task after one edit; ``versions`` by the index of the sample."""

    name: str
    versions: Mapping[int, _Version]
    facts: Mapping[str, Any]


@dataclass(frozen=True)
class _Plan:
    """One task: its samples as they were, what the model says of them, and every edit."""

    name: str
    originals: Mapping[int, TokenSample]
    predictions: dict[int, Prediction]
    edits: Sequence[_Edit]

    @property
    def wanted(self) -> list[TokenSample]:
        """The samples of which some edit is left."""
        indices = sorted({i for edit in self.edits for i in edit.versions})
        return [self.originals[i] for i in indices]

    @property
    def explanations(self) -> int:
        """How many texts every method explains."""
        return len(self.wanted) + sum(len(edit.versions) for edit in self.edits)


def bench_stability(
    model: Any,
    tasks: str | Task | Pairs | Sequence[str | Task | Pairs] = "sva",
    methods: Methods = "all",
    *,
    n: int = 1000,
    settings: Stability | None = None,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    out: str | Path | None = None,
    batch_size: int = BATCH,
    progress: bool = False,
    command: str = "",
) -> BenchTable:
    """Edit every sample in ways that keep its meaning, and correlate the relevance of its words.

    Rows are named by task and edit, e.g. ``"sva/synonym"``. Samples are used that the model
    predicts correctly; an edit that changes the model's answer is dropped and counted. A ranking
    that is constant over the shared words correlates with nothing: it counts as 0, and as
    ``undefined``.

    Args:
        model: as in `bench`, as ``methods``, ``options``, ``out`` and the rest.
        tasks: what is edited, or pairs of versions from `tasks.read_pairs`.
        n: at most so many samples of each task.
        settings: what is edited and explained.

    Raises:
        InputError: unknown task, method, edit or option, or ``out`` holds another run.
    """
    settings = settings or Stability()
    graph = resolve(model)
    chosen = methods_by_name(methods)
    if n < 1 or batch_size < 1:
        raise InputError(f"n and batch_size must be at least 1, got {n} and {batch_size}.")
    views: dict[str, View] = {}
    plans = [_plan(graph, one, settings, batch_size, views) for one in _pairs(tasks, n, settings)]
    metadata = metadata_of(graph, settings, options or {}, command) | {COMPARED_AS: MEASURES}
    folder = None if out is None else Path(out)
    store = Store(folder, fingerprint_of(metadata, views))
    everyone: dict[str, str | RuleSet | None] = {**dict.fromkeys(BASELINES), **chosen}
    total = len(everyone) * sum(plan.explanations for plan in plans)
    with progress_bar(progress, total) as advance:
        run = Run(model, graph, store, options or {}, settings.embeddings, batch_size, advance)
        for plan in plans:
            _run(run, plan, everyone, settings)
    edits = [edit for plan in plans for edit in plan.edits]
    table = BenchTable(
        rows=_table(run.samples, [edit.name for edit in edits], settings.seed),
        samples=run.samples,
        refused=run.refused,
        tasks={edit.name: edit.facts for edit in edits},
        metadata={**metadata, "notes": list(run.notes)},
    )
    if folder is not None:
        table.save(folder)
    run.warn()
    return table


# ----------------------------------------------------------------------------- versions


def _pairs(tasks: Any, n: int, settings: Stability) -> list[Pairs]:
    each = [tasks] if isinstance(tasks, (str, Task, Pairs)) else list(tasks)
    plain = [one.task if isinstance(one, Pairs) else one for one in each]
    return [
        _first(one, task) if isinstance(one, Pairs) else edited(task, settings.edits, settings.seed)
        for one, task in zip(each, tasks_of(plain, n, settings.seed), strict=True)
    ]


def _first(pairs: Pairs, task: Task) -> Pairs:
    """Only the pairs of a task that was cut."""
    kept = {
        name: {i: one for i, one in versions.items() if i < len(task.samples)}
        for name, versions in pairs.versions.items()
    }
    return replace(pairs, task=task, versions=kept)


def _plan(
    graph: ModelGraph, pairs: Pairs, settings: Stability, batch_size: int, views: dict[str, View]
) -> _Plan:
    """Every version as tokens; the views made on the way are added to ``views``."""
    task = pairs.task
    views[task.name] = original = view(graph, task, truth=False)
    predictions = predict(graph, answered(original), batch_size)
    originals = {one.index: one for one in original.samples}
    used = {
        i: one for i, one in originals.items() if settings.keep_incorrect or predictions[i].correct
    }
    edits = []
    for name, given, versions, dropped in _versions(graph, pairs, used, settings.seed, views):
        dropped["the unedited text cannot be mapped to tokens"] += len(given - {*originals})
        dropped["the model gets the unedited text wrong"] += len((given & {*originals}) - {*used})
        same = _same_answer(graph, versions, used, predictions, dropped, batch_size)
        shared = _with_shared_words(graph, same, used, dropped)
        edits.append(_Edit(name, shared, _facts(task, len(given), dropped, len(shared))))
    return _Plan(task.name, used, predictions, edits)


def _versions(
    graph: ModelGraph,
    pairs: Pairs,
    used: Mapping[int, TokenSample],
    seed: int,
    views: dict[str, View],
) -> Iterator[tuple[str, set[int], list[TokenSample], Counter[str]]]:
    """Of each edit: its name, which samples it was to edit, the edited ones, and what was lost."""
    for edit, made in pairs.versions.items():
        name, index = f"{pairs.task.name}/{edit}", [i for i in made if i in used]
        task = Task(name, same_rivals(pairs.task, [made[i] for i in index]), pairs.task.source)
        views[name] = seen = view(graph, task, truth=False)
        samples = [replace(one, index=index[one.index]) for one in seen.samples]
        unedited = {*pairs.unedited.get(edit, ())}
        dropped = Counter({"the text has nothing that the edit changes": len(unedited & {*used})})
        yield name, unedited | {*made}, samples, dropped + seen.dropped
    if pairs.segmentation:
        vocabulary = graph.tokenizer.get_vocab()
        split = [
            resegmented(graph, one, vocabulary, random.Random(f"{seed}/{one.index}"))
            for one in used.values()
        ]
        samples = [one for one in split if one is not None]
        dropped = Counter({"no token can be split in two": len(split) - len(samples)})
        everyone = {*range(len(pairs.task.samples))}
        yield f"{pairs.task.name}/{SEGMENTATION}", everyone, samples, dropped


def resegmented(
    graph: ModelGraph, sample: TokenSample, vocabulary: Mapping[str, int], rng: random.Random
) -> TokenSample | None:
    """The same text with one token as two pieces of the vocabulary; None if no token allows it."""
    if len(sample) == graph.n_ctx:
        return None
    text = text_read(graph, sample.sample)
    found = [
        (i, cut, pieces)
        for i, span in enumerate(sample.spans)
        if span and not sample.special[i]
        for cut, pieces in _splits(graph, sample.token_ids[i], text[slice(*span)], vocabulary)
    ]
    if not found:
        return None
    i, cut, pieces = rng.choice(found)
    start, end = sample.spans[i] or (0, 0)
    twice = {
        name: (*value[:i], value[i], *value[i:])
        for name, value in (
            ("inside", sample.inside), ("special", sample.special), ("context", sample.context)
        )
    }  # fmt: skip
    return replace(
        sample,
        token_ids=(*sample.token_ids[:i], *pieces, *sample.token_ids[i + 1 :]),
        spans=(
            *sample.spans[:i], (start, start + cut), (start + cut, end), *sample.spans[i + 1 :]
        ),
        position=sample.position + (i <= sample.position),
        **twice,
    )  # fmt: skip


def _splits(
    graph: ModelGraph, token: int, letters: str, vocabulary: Mapping[str, int]
) -> Iterator[tuple[int, tuple[int, int]]]:
    """Where a token of plain letters can be cut, and the two ids."""
    piece = graph.tokenizer.convert_ids_to_tokens(token)
    mark = next((m for m in PIECE_MARKS if piece.startswith(m)), "")
    bare = piece.removeprefix(mark)
    if bare.lower() != letters.lower() or not bare.isascii() or not bare.isalpha():
        return
    inner = getattr(graph.tokenizer.backend_tokenizer.model, "continuing_subword_prefix", None)
    for cut in range(1, len(bare)):
        ids = (vocabulary.get(mark + bare[:cut]), vocabulary.get((inner or "") + bare[cut:]))
        if ids[0] is not None and ids[1] is not None:
            yield cut, (ids[0], ids[1])


def _same_answer(
    graph: ModelGraph,
    versions: Sequence[TokenSample],
    used: Mapping[int, TokenSample],
    predictions: Mapping[int, Prediction],
    dropped: Counter[str],
    batch_size: int,
) -> list[TokenSample]:
    """Versions that are other tokens than the original, and of which the model says the same."""
    comparable = []
    for one in versions:
        before = used[one.index]
        if one.token_ids == before.token_ids:
            dropped["the edit changes no token"] += 1
        elif (one.answer, one.foil) != (before.answer, before.foil):
            dropped["answer or foil are other tokens after the edit"] += 1
        else:
            comparable.append(one)
    after = predict(graph, comparable, batch_size)
    kept = []
    for one in comparable:
        if _says_the_same(one, predictions[one.index], after[one.index]):
            kept.append(one)
        else:
            dropped["the edit changes the model's prediction"] += 1
    return kept


def _says_the_same(sample: TokenSample, before: Prediction, after: Prediction) -> bool:
    """With a foil, which of the two is higher; otherwise the token of the highest logit."""
    if sample.foil is None:
        return before.top_id == after.top_id
    return before.correct == after.correct


def _with_shared_words(
    graph: ModelGraph,
    versions: Sequence[TokenSample],
    used: Mapping[int, TokenSample],
    dropped: Counter[str],
) -> dict[int, _Version]:
    found = {}
    for one in versions:
        shared = shared_words(words(graph, used[one.index]), words(graph, one))
        if len(shared) < FEWEST_WORDS:
            dropped[f"fewer than {FEWEST_WORDS} words are shared"] += 1
        else:
            found[one.index] = _Version(one, shared)
    return found


def words(graph: ModelGraph, sample: TokenSample) -> Words:
    """The words of a sample with their tokens; a token belongs to the first word it touches."""
    text = text_read(graph, sample.sample)
    spans = word_spans(text)
    tokens: list[list[int]] = [[] for _ in spans]
    for i, span in enumerate(sample.spans):
        touched = (w for w, (a, b) in enumerate(spans) if span and span[0] < b and span[1] > a)
        word = None if sample.special[i] else next(touched, None)
        if word is not None:
            tokens[word].append(i)
    return [
        (text[a:b].casefold(), mine)
        for (a, b), mine in zip(spans, tokens, strict=True)
        if mine
    ]  # fmt: skip


def shared_words(first: Words, second: Words) -> list[tuple[str, list[int], list[int]]]:
    """Words of both texts in the same order, with their tokens in each; case does not matter."""
    matcher = SequenceMatcher(None, [w for w, _ in first], [w for w, _ in second], autojunk=False)
    return [
        (*first[a + i], second[b + i][1])
        for a, b, size in matcher.get_matching_blocks()
        for i in range(size)
    ]


# ------------------------------------------------------------------------------ running


def _run(
    run: Run, plan: _Plan, everyone: Mapping[str, str | RuleSet | None], settings: Stability
) -> None:
    """The texts as they were, then every edit."""
    run.samples[plan.name, SAMPLES] = _described(run.graph, plan.wanted)
    for name, method in everyone.items():

        def scored(
            batch: list[TokenSample], name: str = name, method: str | RuleSet | None = method
        ) -> list[dict[str, Any]]:
            scores = _scores(run, name, method, plan, settings, 0, batch)
            return [
                {"sample": one.index, "scores": values.tolist()}
                for one, values in zip(batch, scores, strict=True)
            ]

        run.every_batch(plan.name, name, plan.wanted, scored)
    for number, edit in enumerate(plan.edits, start=1):
        run.samples[edit.name, SAMPLES] = _described_edit(run.graph, edit, plan)
        samples = [version.sample for version in edit.versions.values()]
        for name, method in everyone.items():
            rows = partial(_compared, run, name, method, plan, settings, number, edit)
            run.every_batch(edit.name, name, samples, rows)


def _scores(
    run: Run,
    name: str,
    method: str | RuleSet | None,
    plan: _Plan,
    settings: Stability,
    number: int,
    batch: list[TokenSample],
) -> list[Scores]:
    """Of every token. The random baseline draws anew for each edit, by its ``number``."""
    if method is not None:
        target = target_of(batch, plan.predictions, settings.contrastive)
        return run.explain(name, method, batch, target)[0]
    return [
        BASELINES[name](~np.array(one.special), settings.seed + number, one.index) for one in batch
    ]


def _compared(
    run: Run,
    name: str,
    method: str | RuleSet | None,
    plan: _Plan,
    settings: Stability,
    number: int,
    edit: _Edit,
    batch: list[TokenSample],
) -> list[dict[str, Any]]:
    """The rows of one batch of edited samples."""
    before = run.samples[plan.name, name].set_index("sample")["scores"]
    rows = []
    for one, after in zip(
        batch, _scores(run, name, method, plan, settings, number, batch), strict=True
    ):
        shared = edit.versions[one.index].shared
        pairs = [
            (sum(before[one.index][i] for i in a), sum(after[i] for i in b)) for _, a, b in shared
        ]
        first, second = (np.array(side, dtype=float) for side in zip(*pairs, strict=True))
        correlation = rank_correlation(first, second)
        rows.append(
            {
                "sample": one.index,
                "rank_correlation": 0.0 if np.isnan(correlation) else correlation,
                "undefined": bool(np.isnan(correlation)),
                "words": len(shared),
                "scores": first.tolist(),
                "edited_scores": second.tolist(),
            }
        )
    return rows


def rank_correlation(
    first: Float[NDArray[np.floating], " word"], second: Float[NDArray[np.floating], " word"]
) -> float:
    """Spearman's rho, equal values sharing their mean rank; NaN where one side is constant."""
    a, b = _ranks(first), _ranks(second)
    a, b = a - a.mean(), b - b.mean()
    scale = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / scale if scale else np.nan


def _ranks(values: Float[NDArray[np.floating], " word"]) -> Float[NDArray[np.floating], " word"]:
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[place]


# ------------------------------------------------------------------------------- tables


_TEXT = ("source", "licence", "text", "suffix", "tokens", "position")
_EDITED = ("text", "edited", "edited_tokens", "shared_words")


def _described(graph: ModelGraph, samples: Sequence[TokenSample]) -> pd.DataFrame:
    rows = [
        {
            "sample": one.index,
            "source": one.sample.source,
            "licence": one.sample.licence,
            "text": one.sample.text,
            "suffix": one.sample.suffix,
            "tokens": [token_string(graph, i) for i in one.token_ids],
            "position": one.position,
        }
        for one in samples
    ]
    return pd.DataFrame(rows, columns=["sample", *_TEXT])


def _described_edit(graph: ModelGraph, edit: _Edit, plan: _Plan) -> pd.DataFrame:
    rows = [
        {
            "sample": index,
            "text": plan.originals[index].sample.text,
            "edited": version.sample.sample.text,
            "edited_tokens": [token_string(graph, i) for i in version.sample.token_ids],
            "shared_words": [word for word, _, _ in version.shared],
        }
        for index, version in edit.versions.items()
    ]
    return pd.DataFrame(rows, columns=["sample", *_EDITED])


def _table(
    samples: Mapping[tuple[str, str], pd.DataFrame], names: Sequence[str], seed: int
) -> pd.DataFrame:
    rows: list[tuple[Any, ...]] = []
    for (task, method), frame in samples.items():
        if task not in names or method == SAMPLES:
            continue
        for metric, factor in MEASURES.items():
            values = frame[metric].to_numpy(dtype=float) if len(frame) else np.array([])
            one = mean_interval(values, seed)
            ends = (factor * end for end in (one.value, one.low, one.high))
            rows.append((method, task, metric, *ends, one.n))
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _facts(task: Task, given: int, dropped: Counter[str], used: int) -> dict[str, Any]:
    lost = {reason: count for reason, count in dropped.items() if count}
    facts = {
        "source": task.source,
        "licences": sorted({sample.licence for sample in task.samples}),
        "read": given,
        "left_out": dict(task.left_out),
        "dropped": lost,
        "used": used,
    }
    return facts if used else {**facts, "empty": "every sample was dropped"}
