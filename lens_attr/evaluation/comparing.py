"""Two runs side by side: paired differences of the same samples, and whether claims hold."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import numpy as np
import pandas as pd
from jaxtyping import Float
from numpy.typing import NDArray

from lens_attr.errors import InputError
from lens_attr.evaluation import faithfulness, speed
from lens_attr.evaluation.baselines import BASELINES
from lens_attr.evaluation.benchmark import MEASURES
from lens_attr.evaluation.deletion import Deletion, headline
from lens_attr.evaluation.intervals import Interval, paired_test
from lens_attr.evaluation.results import BenchTable
from lens_attr.evaluation.running import COMPARED_AS, SAMPLES

Claim = Literal["at least", "equal"]
Verdict = Literal["holds", "does not hold", "undecided"]
Values = Float[NDArray[np.floating], " _"]

HEADLINES: dict[str, Callable[[pd.DataFrame], Mapping[str, Values]]] = {
    faithfulness.MODE: faithfulness.headline,
    speed.MODE: speed.headline,
}
"""From a per-sample table to every metric, by what ``metadata["mode"]`` says."""

COMPARED = ("task", "method", "metric", "first", "second", "difference", "low", "high", "p", "n")


def compare_runs(first: BenchTable, second: BenchTable, seed: int = 0) -> pd.DataFrame:
    """Every metric of every task and method that both runs hold, over the samples both used.

    Columns `COMPARED`: the means, the mean of first - second with its bootstrap 95 % interval,
    and the p-value of a paired permutation test. Shares are in percent.

    Raises:
        InputError: the runs hold no common results, or their samples differ.
    """
    rows = []
    for task, method in [key for key in first.samples if key in second.samples]:
        if method == SAMPLES:
            continue
        for metric, a, b in _paired(first, second, task, method):
            test = paired_test(a, b, seed)
            ends = (test.difference.value, test.difference.low, test.difference.high)
            means = (a.mean(), b.mean()) if len(a) else (np.nan, np.nan)
            rows.append((task, method, metric, *means, *ends, test.p, len(a)))
    if not rows:
        raise InputError(_nothing_in_common(first, second))
    return pd.DataFrame(rows, columns=list(COMPARED))


def _nothing_in_common(first: BenchTable, second: BenchTable) -> str:
    runs = {"first": first, "second": second}
    bare = {which: one for which, one in runs.items() if len(one.rows) and not one.samples}
    if not bare:
        return "the two runs have no task and method in common."
    commands = dict.fromkeys(one.metadata.get("command") for one in bare.values())
    again = " and ".join(f"'{command}'" for command in commands if command)
    return (
        "only samples can be paired, and there are no per-sample tables (samples/*.parquet) with "
        f"the {' and the '.join(bare)} run, as with results under version control: make them again"
        f"{f', {again}' if again else ''}."
    )


def verdict(difference: Interval, claim: Claim, margin: float) -> Verdict:
    """Whether first - second supports a claim, up to a margin that is too small to matter.

    ``"at least"``: holds where the interval lies above -margin, does not where it lies below.
    ``"equal"``: holds where it lies within the margin, does not where it lies outside. Otherwise
    the samples are too few to say.
    """
    if difference.n == 0:
        return "undecided"
    low, high = difference.low, difference.high
    if claim == "at least":
        return _three_ways(low >= -margin, high < -margin)
    return _three_ways(-margin <= low and high <= margin, low > margin or high < -margin)


def _three_ways(holds: bool, fails: bool) -> Verdict:
    return "holds" if holds else "does not hold" if fails else "undecided"


def _paired(
    first: BenchTable, second: BenchTable, task: str, method: str
) -> list[tuple[str, Values, Values]]:
    """Both runs' values of every metric over the samples that both used."""
    a, b = (table.samples[task, method] for table in (first, second))
    common = sorted(set(a["sample"]) & set(b["sample"]))
    if common:
        _check_same_texts(first, second, task, common)
    values = [
        values_of(table, frame.set_index("sample").loc[common].reset_index())
        for table, frame in ((first, a), (second, b))
    ]
    return [(name, values[0][name], values[1][name]) for name in values[0] if name in values[1]]


def _check_same_texts(first: BenchTable, second: BenchTable, task: str, common: list[int]) -> None:
    texts = [
        table.samples[task, SAMPLES].set_index("sample").loc[common, "text"].tolist()
        for table in (first, second)
    ]
    if texts[0] != texts[1]:
        raise InputError(f"the samples of task {task!r} differ between the two runs.")


def values_of(table: BenchTable, frame: pd.DataFrame) -> Mapping[str, Values]:
    """Every metric of one of a run's per-sample tables, sample by sample, as the run counts it."""
    settings, mode = table.metadata["settings"], table.metadata.get("mode")
    if mode in HEADLINES:
        return HEADLINES[mode](frame)
    if COMPARED_AS in table.metadata:
        factors = table.metadata[COMPARED_AS]
        return {
            name: factor * np.array(frame.get(name, ()), dtype=float)
            for name, factor in factors.items()
            if name in frame or frame.empty
        }
    if "sweep" in settings:
        return headline(frame, Deletion(k=settings["k"], sweep=settings["sweep"]))
    if frame.empty:
        return dict.fromkeys(MEASURES, np.array([]))
    return {name: 100.0 * frame[name].to_numpy(dtype=float) for name in MEASURES}


def mean_over_methods(first: BenchTable, second: BenchTable, metric: str) -> tuple[Values, Values]:
    """Each sample's mean over the methods that both runs hold, tasks one after the other.

    Pooled this way a sample counts once, however many methods explained it.
    """
    pooled: list[tuple[Values, Values]] = []
    for task in first.tasks:
        pairs = [
            (a, b)
            for of, method in first.samples
            if of == task and method not in (SAMPLES, *BASELINES) and (of, method) in second.samples
            for name, a, b in _paired(first, second, task, method)
            if name == metric
        ]
        if pairs:
            mine, theirs = zip(*pairs, strict=True)
            pooled.append((np.mean(mine, axis=0), np.mean(theirs, axis=0)))
    if not pooled:
        return np.array([]), np.array([])
    one, other = zip(*pooled, strict=True)
    return np.concatenate(one), np.concatenate(other)
