"""One section per kind of result. Every number in them is one that the result holds."""

from __future__ import annotations

import html
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from lens_attr import plots
from lens_attr.attribution.generation import Generation
from lens_attr.attribution.relevance import Relevance
from lens_attr.display import count, number
from lens_attr.evaluation import BenchTable
from lens_attr.evaluation.results import facts_of, shown_rows
from lens_attr.plots import html_tokens
from lens_attr.report.bench_figures import bench_figures
from lens_attr.report.page import Content, Html, Section, facts_list
from lens_attr.report.run_files import Chapter, DataSetRun, Found
from lens_attr.report.texts import Explanation, colour_key, explained_texts
from lens_attr.runs.notices import Notices

MOST_TEXTS = 24
"""Texts of one chapter; more make a page that nobody reads to its end."""
MOST_EDGES = 400
"""Edges of a circuit that can be told apart in a drawing."""
MOST_ROWS = 20
MOST_FILES = 4

HEADS = (
    "The relevance of every attention head, averaged over the samples of its ranking. Pruning "
    "removes those near zero first."
)
PRUNING = (
    "{units} are removed one at a time, the {order} relevant first ({ablation} ablation). A good "
    "ranking keeps the model accurate for longer than a random order does; the area under the "
    "curve sums that up, 1 is the most. Accuracy is measured on {n}{ranked}."
)
AGREEMENT = (
    "Each point is one cell: its attribution against what it really adds to the target, which "
    "patching tells. What is lost without it counts as added, so the sign is that of an "
    "attribution. A method to trust puts them on a rising line."
)
PATCHING = (
    "What happens to the target when one {unit} is replaced by {source} in {run}, mean over {n}. "
    "This is exact: the model runs once per cell. Orange: the target rises; blue: it falls. {sign}"
)
SIGNS = {
    "denoise": "What raises it carries something that the prediction needs.",
    "noise": "So blue cells support the target, which falls without them.",
}
SOURCES = {
    "other": "its value in the other run",
    "zero": "zero",
    "mean": "its mean",
    "resample": "its value on another text",
}
RUNS = {"denoise": "the corrupted run", "noise": "the clean run"}
PATCHED = {"attn_out": "attention layer", "mlp_out": "MLP", "resid": "residual stream"}
CIRCUIT = (
    "Edges between heads and MLPs. Orange edges support the target: it falls when they carry the "
    "corrupted prompt, so their scores are below zero. Blue edges work against it."
)
COVERAGE = (
    "Where each rule acted when the rules were tried on a few tokens. A rule that acts nowhere is "
    "an error, so nothing here was skipped in silence."
)
UNITS = {"head": "Attention heads", "mlp": "MLPs", "neuron": "Neurons"}


# ------------------------------------------------------------------- model and target


def setting(chapter: Chapter) -> list[Html]:
    """What was explained, of which model: what a chapter opens with."""
    facts: dict[str, str] = {}
    for found in chapter.found:
        model = metadata_of(found.result).get("model")
        if isinstance(model, Mapping):
            plain = {k: v for k, v in model.items() if not isinstance(v, Mapping)}
            facts |= {_label(key): _words(value) for key, value in plain.items()}
    explained = (*chapter.of("relevance.json"), *chapter.of("patching.json"))
    targets = list(dict.fromkeys(target for found in explained for target in found.result.target))
    if targets:
        others = f", and {len(targets) - 1} others" if len(targets) > 1 else ""
        facts["target"] = targets[0] + others
    if chapter.about.get("task"):
        facts["samples"] = str(chapter.about["task"])
    return [facts_list(facts)] if facts else []


def metadata_of(result: Any) -> Mapping[str, Any]:
    """How a result was made, as far as it says."""
    curves = getattr(result, "curves", None)
    source = curves[0] if curves else getattr(result, "relevance", result)
    return getattr(source, "metadata", None) or getattr(source, "manifest", None) or {}


def _label(key: str) -> str:
    return {"n_layers": "layers", "n_heads": "heads per layer"}.get(key, key.replace("_", " "))


def _words(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value)) or "none"
    return str(value)


# ----------------------------------------------------------------------------- tokens


def tokens(chapter: Chapter) -> list[Section]:
    """The texts, by prediction; results of several methods for one prediction stand together."""
    found = chapter.of("relevance.json")
    explanations = _explanations(found, chapter.about.get("methods", ()))
    if not explanations:
        return []
    left_out = len(explanations) - MOST_TEXTS
    prose = [_embeddings(found)]
    prose += [f"{count(left_out, 'text')} more in the files."] if left_out > 0 else []
    refused = [_refusal(m, why) for m, why in _refused(chapter).items() if m != "circuit"]
    content = [explained_texts(explanations[:MOST_TEXTS])]
    text = "\n\n".join(filter(None, [*prose, *refused]))
    return [Section("Tokens", text, content, level=3, files=_files(found))]


def _refused(chapter: Chapter) -> Mapping[str, str]:
    refused = chapter.about.get("refused")
    return refused if isinstance(refused, Mapping) else {}


def _refusal(what: str, why: str) -> str:
    return f"{what} is not available here: {why}"


def _embeddings(found: Sequence[Found]) -> str:
    partial = any(f.result.metadata.get("embeddings") == "token" for f in found)
    return "Explained are the word embeddings without their positions." if partial else ""


def _explanations(found: Sequence[Found], order: Sequence[str]) -> list[Explanation]:
    """Examples with the same tokens and the same target are one prediction."""
    places = {method: i for i, method in enumerate(order)}
    groups: dict[tuple[Any, ...], dict[str, Relevance]] = {}
    for one in (example for file in found for example in file.result):
        key = (tuple(one.token_ids[0].tolist()), one.target[0], int(one.position[0]))
        methods = groups.setdefault(key, {})
        methods[_unused(one.method, methods)] = one
    return [
        _explanation(dict(sorted(group.items(), key=lambda one: places.get(one[0], len(places)))))
        for group in groups.values()
    ]


def _unused(name: str, taken: Iterable[str]) -> str:
    """The same method twice, with other options: numbered."""
    names = [name, *(f"{name} ({i})" for i in range(2, 2 + len(list(taken))))]
    return next(each for each in names if each not in taken)


def _explanation(results: Mapping[str, Relevance]) -> Explanation:
    first = next(iter(results.values()))
    sample = first.metadata.get("sample", {})
    value = f"{first.target[0]} = {number(float(first.target_value[0]))}"
    if not sample:
        return Explanation(first.target[0], value, results)
    heading = f"Why “{sample['answer'].strip()}” rather than “{sample['foil'].strip()}”?"
    deciding = ", ".join(sample.get("decided_by", ()))
    return Explanation(heading, (f"decided by: {deciding}; " if deciding else "") + value, results)


# -------------------------------------------------------------------- generated texts


def generations(chapter: Chapter) -> list[Section]:
    """Every continuation: what the whole of it used, and what each of its words did."""
    found = chapter.of("generation.json")
    if not found:
        return []
    shown, left_out = found[:MOST_TEXTS], len(found) - MOST_TEXTS
    prose = f"{count(left_out, 'text')} more in the files." if left_out > 0 else ""
    content = [colour_key(), *(part for each in shown for part in _generation(each.result))]
    return [Section("Generated text", prose, content, level=3, files=_files(found))]


def _generation(result: Generation) -> list[Content]:
    text = result.accumulated("all").words().coloured_text()
    facts = {"prompt": result.prompt, "goes on": result.generated, "explained": result.headline}
    coloured = Html(html_tokens(text.tokens, text.values, text.unit))
    sources = _titled("Relevance of the prompt and of what was generated before", result.sources())
    return [facts_list(facts), coloured, result.plot(), sources]


# ------------------------------------------------------------------ heads and pruning


def heads(chapter: Chapter) -> list[Section]:
    """Head maps: of rankings, or where there is none of the results themselves."""
    ranked = [found for found in chapter.of("ranking.json") if found.result.unit == "head"]
    if ranked:
        drawn: list[Content] = [plots.heads(found.result) for found in ranked]
        return [Section("Heads", HEADS, drawn, level=3, files=_files(ranked))]
    found = [f for f in chapter.of("relevance.json") if f.result.head_tokens is not None]
    drawn = [plots.heads(f.result) for f in found[:MOST_TEXTS]]
    return [Section("Heads", "", drawn, level=3, files=_files(found))] if found else []


def pruning(chapter: Chapter) -> list[Section]:
    """Curves of accuracy, and their areas."""
    sections = []
    for found in chapter.of("pruning.json"):
        curve = found.result.curves[0]
        n_rank = curve.metadata.get("ranked_on")
        text = PRUNING.format(
            units=UNITS[curve.unit],
            order=curve.order,
            ablation=curve.ablation,
            n=count(curve.n, "sample"),
            ranked=f"; the ranking was made on {n_rank} others" if n_rank else "",
        )
        content = [plots.pruning(found.result), found.result.summary()]
        sections.append(Section("Pruning", text, content, level=3, files=[found.file]))
    return sections


# -------------------------------------------------------------- patching and circuits


def patching(chapter: Chapter) -> list[Section]:
    """Exact patching, and which method agrees with it."""
    sections = []
    for found in chapter.of("patching.json"):
        result = found.result
        text = PATCHING.format(
            unit=PATCHED.get(result.unit, result.unit),
            source=SOURCES.get(result.source, result.source),
            run=RUNS.get(result.mode, result.mode),
            n=count(len(result), "prompt"),
            sign=SIGNS.get(result.mode, ""),
        )
        layers = range(result.effects.shape[0]) if len(result.axes) == 3 else [None]
        drawn = [plots.patching(result, layer=layer) for layer in layers]
        sections.append(Section("Patching", text, drawn, level=3, files=[found.file]))
    for found in chapter.of("agreement.json"):
        content = [plots.agreement(found.result), found.result.to_pandas()]
        title = "Agreement with patching"
        sections.append(Section(title, AGREEMENT, content, level=3, files=[found.file]))
    return sections


def circuits(chapter: Chapter) -> list[Section]:
    """The circuit, how faithful it is, and the edges behind it."""
    content: list[Content] = []
    used = []
    for found in chapter.of("circuit.json"):
        used.append(found)
        if 0 < len(found.result) <= MOST_EDGES:
            content.append(plots.circuit(found.result))
        edges = found.result.to_pandas().head(MOST_ROWS)
        how = found.result.metadata.get("method", "score")
        content += [_titled(f"{found.result.headline}; the largest by {how}", edges)]
    for found in chapter.of("evaluation.json"):
        used.append(found)
        content += [_titled("With everything outside it corrupted", found.result.to_pandas())]
    for found in chapter.of("faithfulness.json"):
        used.append(found)
        content += [plots.faithfulness(found.result), found.result.summary()]
    if not chapter.of("circuit.json"):
        for found in chapter.of("edges.json"):
            used.append(found)
            content += [found.result.plot(), found.result.to_pandas().head(MOST_ROWS)]
    if content:
        return [Section("Circuit", CIRCUIT, content, level=3, files=_files(used))]
    why = _refused(chapter).get("circuit")
    return [Section("Circuit", _refusal("A circuit", why), level=3)] if why else []


def _titled(title: str, frame: pd.DataFrame) -> pd.DataFrame:
    """A table that says what it is."""
    frame.attrs["title"] = title
    return frame


# --------------------------------------------------------------------------- coverage


def coverage(chapter: Chapter) -> list[Section]:
    """Per rule set: whether it is accepted, and what acts at each kind of hook point."""
    found = chapter.of("coverage.json")
    content: list[Content] = []
    for one in found:
        verdict = "accepted" if one.result["accepted"] else "refused"
        reasons = "; ".join(one.result["reasons"])
        title = ": ".join(filter(None, [f"{one.result['rules']} is {verdict}", reasons]))
        content.append(_titled(title, _kinds(one.result["coverage"])))
    if not found:
        return []
    return [Section("Rule coverage", COVERAGE, content, level=3, files=_files(found))]


def _kinds(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """One row per role and rule, not per hook point."""
    frame = pd.DataFrame(list(rows), columns=["rule", "role", "hook_point", "layer", "fired"])
    if frame.empty:
        return frame
    found = frame.groupby(["role", "rule"], sort=False, as_index=False).agg(
        hook_points=("hook_point", "size"), times_fired=("fired", "sum")
    )
    return found.assign(rule=found["rule"].replace("", "none: true gradient"))


# -------------------------------------------------------------- benchmarks and runs


def benchmarks(chapter: Chapter) -> list[Section]:
    """Every task's table, and one figure per metric."""
    sections = []
    for found in chapter.of("summary.json"):
        table: BenchTable = found.result
        where = f" ({found.folder})" if len(chapter.of("summary.json")) > 1 else ""
        content: list[Content] = [
            _titled(f"{task}. {facts_of(facts)}", shown_rows(table, task))
            for task, facts in table.tasks.items()
        ]
        content += bench_figures(table)
        refused = "\n\n".join(_refusal(m, why) for m, why in table.refused.items())
        sections.append(Section(f"Benchmark{where}", refused, content, level=3, files=[found.file]))
    for found in chapter.of("claims.csv"):
        sections.append(Section("Choices", "", [found.result], level=3, files=[found.file]))
    return sections


def data_set_runs(chapter: Chapter) -> list[Section]:
    """What a run over a data set explained so far, with its first rows."""
    sections = []
    for found in chapter.of("manifest.json"):
        run: DataSetRun = found.result
        content: list[Content] = [facts_list(_run_facts(run))]
        good = [row for row in run.rows.to_dict("records") if not isinstance(row["error"], str)]
        content += [colour_key(), *map(_row, good)] if good else []
        sections.append(Section("Data set", "", content, level=3, files=[found.file]))
    return sections


def _run_facts(run: DataSetRun) -> dict[str, str]:
    done = sum(stop - start for start, stop in (record["rows"] for record in run.records))
    notices = Notices()
    for record in run.records:
        notices.add(record["notices"])
    job = {_label(key): _words(value) for key, value in run.manifest["job"].items()}
    return job | {
        "rows": f"{done} of {run.manifest['input'].get('rows', '?')} explained",
        "rows with an error": str(sum(record["errors"] for record in run.records)),
        **({"notices": " ".join(lines)} if (lines := notices.lines()) else {}),
    }


def _row(row: Mapping[str, Any]) -> Html:
    heading = f"row {row['row']}: {row['target']} = {number(float(row['target_value']))}"
    tokens = [str(token) for token in row["str_tokens"]]
    values = [float(value) for value in row["tokens"]]
    label = f'<div class="label"><span>{html.escape(heading)}</span></div>'
    return Html(label + html_tokens(tokens, values))


def _files(found: Sequence[Found]) -> list[str]:
    """The files, or where they lie and how many if they are many."""
    if len(found) <= MOST_FILES:
        return [each.file for each in found]
    return [f"{os.path.commonpath([each.file for each in found])} ({len(found)} files)"]


KINDS = (
    tokens,
    generations,
    heads,
    pruning,
    patching,
    circuits,
    coverage,
    benchmarks,
    data_set_runs,
)
"""The order of a chapter's story."""
