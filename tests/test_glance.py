"""What results show of themselves in Jupyter and in the terminal."""

from __future__ import annotations

from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from rich.console import Console
from test_plots import relevance

import lens_attr as la
from lens_attr.attribution.comparison import Comparison
from lens_attr.attribution.conservation import Conservation
from lens_attr.display import ColouredText, Glance, Shown, cell
from lens_attr.evaluation import AxesTable
from lens_attr.plots.at_a_glance import html_of, table, terminal_of
from lens_attr.rules.audit import Audit, Coverage
from lens_attr.runs import RunReport

EVIL = "<script>alert('&')</script>[bold]"


class Tags(HTMLParser):
    """The tags and the text of a fragment; every tag must be closed."""

    def __init__(self, fragment: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(fragment)
        assert not self.open, f"{self.open} are not closed"

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def in_terminal(shown: Any, width: int = 100) -> str:
    console = Console(width=width, force_terminal=False, color_system=None)
    with console.capture() as captured:
        console.print(shown)
    return captured.get()


def evil() -> Glance:
    texts = [ColouredText(EVIL, [EVIL, " b"], [1.0, -1.0], EVIL)]
    return Glance(EVIL, texts, [EVIL], pd.DataFrame({EVIL: [EVIL], "n": [0.5]}))


def test_text_that_looks_like_html_is_shown_letter_by_letter() -> None:
    page = Tags(html_of(evil()))
    assert "script" not in page.tags
    assert page.text.count(EVIL) == 6


def test_text_that_looks_like_markup_is_shown_letter_by_letter() -> None:
    assert in_terminal(terminal_of(evil()), width=400).count(EVIL) == 6


def test_numbers_stand_on_the_right_and_missing_values_are_a_dash() -> None:
    frame = pd.DataFrame({"name": ["a", "b"], "value": [0.5, float("nan")]})
    drawn = table(frame)
    assert [column.justify for column in drawn.columns] == ["left", "right"]
    assert in_terminal(drawn).split() == ["name", "value", "a", "0.500", "b", "-"]
    assert [cell(x) for x in (True, None, 3, 1e-9)] == ["yes", "-", "3", "1.00e-09"]


RELEVANCE = relevance([["<s>", " the", " keys"], ["<s>", " no"]])


def claims() -> AxesTable:
    row = {"axis": "target", "claim": "as good", "metric": "pg", "difference": 0.5, "p": 0.2}
    frame = pd.DataFrame([row | {"n": 9, "verdict": "holds"}] * 2)
    return AxesTable(la.evaluation.BenchTable(pd.DataFrame()), frame, frame, {"question": "none"})


def results() -> list[Shown]:
    one = torch.tensor([1.0])
    lost = {"attention": torch.tensor([[0.25, 0.5]])}
    rows = [Coverage("FreezeNorm", "norm_scale", "blocks.0.ln1.hook_scale", 0, 1)]
    return [
        RELEVANCE,
        Comparison({"lrp": RELEVANCE, "gim": RELEVANCE}),
        Conservation(one, one * 0.25, {"attention": one * 0.75}, lost, "logit"),
        Audit(True, [], rows, rules="lrp"),
        Audit(False, ["a reason"], rules="gim"),
        claims(),
        RunReport(Path("out/x"), 9, 2, 0, 9, True, ["a notice"]),
    ]


@pytest.mark.parametrize("shown", results(), ids=lambda result: type(result).__name__)
def test_every_result_shows_its_headline_everywhere(shown: Shown) -> None:
    headline = shown.glance().headline
    assert headline in Tags(shown._repr_html_()).text
    assert headline in " ".join(in_terminal(shown, width=400).split())


@pytest.mark.parametrize("shown", results(), ids=lambda result: type(result).__name__)
def test_what_is_shown_is_small(shown: Shown) -> None:
    assert len(shown._repr_html_()) < 6000
    assert len(repr(shown)) < 900


def test_a_relevance_shows_every_real_token_with_its_value() -> None:
    page = RELEVANCE._repr_html_()
    for example in range(2):
        for token, value in zip(
            RELEVANCE.real_str_tokens(example), RELEVANCE.real_tokens(example), strict=True
        ):
            assert f"{float(value):+.4g} logit" in page
            assert token.strip() in Tags(page).text
    assert "&lt;pad&gt;" not in page


def test_many_examples_are_cut_and_the_rest_counted() -> None:
    many = relevance([["<s>", " a"]] * 20)
    assert "... and 12 more" in many._repr_html_()
    assert len(many.glance().texts) == 8


def test_a_notice_of_the_result_is_shown() -> None:
    noted = replace(RELEVANCE, metadata={"notices": ["the gap is large"]})
    assert "the gap is large" in Tags(noted._repr_html_()).text


def test_what_was_lost_is_shown_per_block_with_the_last_on_top() -> None:
    (conservation,) = [r for r in results() if isinstance(r, Conservation)]
    shown = conservation.glance()
    assert shown.table is not None
    assert shown.table.to_dict("list") == {"block": [1, 0], "attention": [0.5, 0.25]}


def test_an_audit_says_where_the_true_gradient_is_kept() -> None:
    rows = [
        Coverage("FreezeNorm", "norm_scale", f"blocks.{i}.ln1.hook_scale", i, 1) for i in (0, 1)
    ]
    shown = Audit(True, [], [*rows, Coverage("", "z", "blocks.0.attn.hook_z", 0, 1)]).glance()
    assert shown.table is not None
    assert shown.table.to_dict("records") == [
        {"role": "norm_scale", "rule": "FreezeNorm", "hook_points": 2, "fired": 2},
        {"role": "z", "rule": "none: true gradient", "hook_points": 1, "fired": 1},
    ]


@pytest.fixture(scope="module")
def made() -> dict[str, Shown]:
    """Results of everything else, from a few sentences."""
    model = la.load("demo-gpt2")
    circuits = la.circuits
    pairs = circuits.sva_pairs(20, seed=1).aligned(model)[:3]
    clean, corrupted, target = pairs.inputs(model)
    run = (model, clean, corrupted, target)
    ranking = circuits.head_scores(model, (clean, target))
    curves = circuits.compare_pruning(model, (clean, target), [ranking], seeds=2)
    patched = circuits.patch(*run)
    edges = circuits.edge_scores(*run)
    circuit = circuits.extract(edges, 30)
    ablated = circuits.self_repair(model, clean[:1], la.TopLogit(), layers=[0], heads=[0])
    scored = la.attribute(model, clean[:1], la.TopLogit(), record=["scores"])
    faithfulness = circuits.compare_faithfulness(*run[:1], [edges], *run[1:], seeds=1)
    results = [
        ranking,
        curves,
        curves.curves[0],
        patched,
        circuits.agreement(la.attribute(model, clean, target), patched),
        edges,
        circuits.node_scores(*run),
        circuit,
        circuits.evaluate(model, circuit, clean, corrupted, target),
        faithfulness,
        faithfulness.curves[0],
        ablated,
        circuits.score_agreement(scored, ablated),
        la.evaluation.bench(model, "sva", ["lrp"], n=5),
        la.evaluation.ablate(model, "lrp", "sva", n=3),
        la.evaluation.bench_axes(model, "sva", ["lrp"], n=3),
    ]
    return {type(result).__name__: result for result in results}


OTHERS = {
    "Ranking": "24 heads by attnlrp, mean of 3 samples",
    "PruningComparison": "1 ranking pruned, beside 2 random orders",
    "PruningCurve": "attnlrp: area ",
    "PatchResult": "denoise head, source other: layer x head, 3 examples",
    "Agreement": "signed attribution against exact ",
    "EdgeScores": "927 edges by eap, in logit, 3 samples",
    "NodeScores": "24 heads by eap patching, in logit",
    "Circuit": " of 927 edges, ",
    "CircuitEvaluation": "faithfulness ",
    "FaithfulnessComparison": "1 ranking of edges, beside 1 random order",
    "FaithfulnessCurve": "eap, top, absolute: CPR ",
    "SelfRepair": " of keys, mean ablation, in logit",
    "ScoreAgreement": " attention scores against exact mean ablation",
    "BenchTable": "sva: ",
    "AblationTable": "parts of lrp: ",
    "AxesTable": "9 claims about the choices: ",
}


@pytest.mark.parametrize("name", OTHERS)
def test_every_other_result_shows_itself_too(name: str, made: dict[str, Shown]) -> None:
    shown = made[name]
    assert OTHERS[name] in shown.headline
    page = Tags(shown._repr_html_())
    assert shown.headline in page.text and "table" in page.tags
    assert shown.headline in " ".join(in_terminal(shown, width=400).split())
    assert len(shown._repr_html_()) < 12_000 and len(repr(shown)) < 200


def test_every_public_result_shows_itself(made: dict[str, Shown]) -> None:
    """A result that can be drawn can be looked at without drawing it."""
    for package in (la.circuits, la.evaluation):
        drawn = [getattr(package, name) for name in package.__all__]
        drawn = [kind for kind in drawn if isinstance(kind, type) and hasattr(kind, "plot")]
        assert drawn
        assert {kind.__name__ for kind in drawn} <= made.keys()


def test_every_result_with_a_table_shows_itself() -> None:
    """Whatever a user can turn into a table has a headline, a repr for Jupyter and for rich."""
    packages = (la, la.circuits, la.evaluation, la.rules, la.runs)
    public = [getattr(package, name) for package in packages for name in package.__all__]
    tables = {kind for kind in public if isinstance(kind, type) and hasattr(kind, "to_pandas")}
    assert len(tables) > 15
    silent = {kind.__name__ for kind in tables if not issubclass(kind, Shown)}
    assert not silent
