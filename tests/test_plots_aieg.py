"""The figures of AIEG: the values they carry, and what they refuse."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest
import torch

from lens_attr import plots
from lens_attr.attribution.comparison import Comparison
from lens_attr.attribution.relevance import Relevance
from lens_attr.errors import InputError
from lens_attr.plots.palette import POSITIVE
from lens_attr.plots.path_figures import MOST_LINES, PATH_FIGURES

WIDTH, STEPS = 5, 4


def result(n: int = 2, method: str = "aieg") -> Relevance:
    """Random parts of left-padded texts: the first has no padding, each later one a token more."""
    mask = torch.stack([torch.arange(WIDTH) >= min(i, 3) for i in range(n)])
    per_token = {
        name: torch.randn(n, WIDTH) * mask
        for name in ("integrated_gradients", "emphasised", "emphasised_normalised", "net_attention")
    }
    norms = {
        name: torch.rand(n, WIDTH) * mask for name in ("gradient_norm", "emphasised_gradient_norm")
    }
    path = {
        "alpha": torch.linspace(0, 1, STEPS + 1).expand(n, -1),
        "output": torch.randn(n, STEPS + 1),
        "emphasis": torch.rand(n, STEPS + 1),
    }
    return Relevance(
        tokens=torch.rand(n, WIDTH) * mask,
        token_ids=torch.zeros(n, WIDTH, dtype=torch.long),
        attention_mask=mask,
        str_tokens=[
            ["<pad>"] * min(i, 3) + [" <b>", " keys", "ys", " a", "."][min(i, 3) :]
            for i in range(n)
        ],
        target_value=torch.randn(n),
        target=[f"logit of '<{i}>'" for i in range(n)],
        position=torch.full((n,), WIDTH - 1),
        method=method,
        extra=(per_token | norms | path) if method == "aieg" else {},
        per_token=list(per_token | norms) if method == "aieg" else [],
    )


@pytest.mark.parametrize(
    ("draw", "name"), [("path_output", "output"), ("path_emphasis", "emphasis")]
)
def test_curves_against_alpha(draw: str, name: str) -> None:
    relevance = result()
    figure = getattr(plots, draw)(relevance)
    assert len(figure.data) == 2
    for i, line in enumerate(figure.data):
        assert np.allclose(line.x, np.linspace(0, 1, STEPS + 1))
        assert np.allclose(line.y, relevance.extra[name][i].numpy())
        assert line.name == f"{i}: logit of '&lt;{i}&gt;'"
    (one,) = getattr(plots, draw)(relevance, example=1).data
    assert np.allclose(one.y, relevance.extra[name][1].numpy())
    assert "alpha" in figure.layout.xaxis.title.text and figure.layout.yaxis.title.text


def test_many_examples_are_cut_and_the_title_says_so() -> None:
    figure = plots.path_output(result(12))
    assert len(figure.data) == MOST_LINES
    assert f"first {MOST_LINES} of 12 examples" in figure.layout.title.text
    assert len({line.line.color for line in figure.data}) == MOST_LINES


def test_the_parts_of_every_token_without_padding() -> None:
    relevance = result()
    figure = plots.path_parts(relevance, example=1)
    assert [bars.name for bars in figure.data] == ["integrated gradients", "with emphasis", "AIEG"]
    parts = (
        relevance.extra["integrated_gradients"],
        relevance.extra["emphasised"],
        relevance.tokens,
    )
    for bars, values in zip(figure.data, parts, strict=True):
        real = values[1, 1:].double()
        assert np.allclose(bars.y, real / real.abs().max())
        assert np.allclose([value for _, value in bars.customdata], real)
    assert list(figure.layout.xaxis.ticktext) == ["\u00a0keys", "ys", "\u00a0a", "."]


def test_output_times_emphasis_has_one_bar_per_explained_token() -> None:
    relevance = result(3)
    (bars,) = plots.output_emphasis(relevance).data
    product = (relevance.extra["output"] * relevance.extra["emphasis"])[:, 1:].double()
    assert np.allclose(bars.x, product.mean(1))
    assert bars.y[2] == "2: logit of '&lt;2&gt;'"
    assert len(plots.output_emphasis(relevance, example=0).data[0].x) == 1


def test_gradients_against_distance_share_one_scale() -> None:
    relevance = result()
    figure = plots.gradient_distance(relevance)
    plain, shorter, emphasised, _ = figure.data
    assert list(plain.x) == [4, 3, 2, 1, 0] and list(shorter.x) == [3, 2, 1, 0]
    assert np.allclose(plain.y, relevance.extra["gradient_norm"][0])
    assert np.allclose(emphasised.y, relevance.extra["emphasised_gradient_norm"][0])
    assert (plain.xaxis, emphasised.xaxis) == ("x", "x2")
    assert figure.layout.yaxis2.matches == "y"
    titles = [annotation.text for annotation in figure.layout.annotations]
    assert titles == ["integrated gradients", "with emphasis", "distance (tokens)"]
    logarithmic = plots.gradient_distance(relevance, log=True)
    assert logarithmic.layout.yaxis.type == logarithmic.layout.yaxis2.type == "log"


@pytest.mark.parametrize("kind", PATH_FIGURES)
def test_results_plot_themselves_and_the_theme_can_change(kind: str) -> None:
    relevance = result()
    figure = relevance.plot(kind=kind)
    assert figure == PATH_FIGURES[kind](relevance) == getattr(plots, kind)(relevance)
    figure.update_layout(template=plots.DARK)
    assert figure.layout.font.color is None


@pytest.mark.parametrize("kind", PATH_FIGURES)
@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda draw: draw(result(method="lrp")), "'lrp' has no.*method=\"aieg\""),
        (lambda draw: draw(result(), example=2), "example 2 is out of range"),
    ],
)
def test_what_cannot_be_drawn_is_refused(
    kind: str, draw: Callable[[Any], go.Figure], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        draw(PATH_FIGURES[kind])


def test_one_example_cut_from_a_padded_batch_looks_as_it_does_in_the_batch() -> None:
    whole = result()
    assert len(plots.path_output(whole[1]).data) == 1
    for draw in (plots.path_parts, plots.gradient_distance):
        ours, theirs = draw(whole[1]), draw(whole, example=1)
        for one, other in zip(ours.data, theirs.data, strict=True):
            assert np.array_equal(one.y, other.y) and np.array_equal(one.x, other.x)


def test_side_by_side_texts_with_green_for_positive_relevance() -> None:
    mixed, negative = result(1), result(1)
    mixed.tokens[0] = torch.tensor([2.0, -8.0, 1.0, 0.0, 4.0])
    negative.tokens.copy_(-negative.tokens.abs() - 1)
    comparison = Comparison({"integrated_gradients": mixed, "aieg": negative})
    figure = comparison.plot(colours="positive")
    first, second = figure.data
    assert list(first.marker.color) == [0.5, 0.0, 0.25, 0.0, 1.0]
    assert set(second.marker.color) == {0.0}
    axis = figure.layout.coloraxis
    assert (axis.cmin, axis.cmax) == (0, 1)
    assert axis.colorscale == POSITIVE
    assert "relevance -8" in first.customdata[1]
    signed = comparison.plot()
    assert min(signed.data[0].marker.color) == -1 and signed.layout.coloraxis.cmin == -1
    with pytest.raises(InputError, match="'signed' or 'positive', got 'green'"):
        comparison.plot(colours="green")


def test_options_of_other_figures_are_refused() -> None:
    with pytest.raises(InputError, match="unknown option 'pool' for a path_output figure"):
        result().plot(kind="path_output", pool="sum")
    with pytest.raises(InputError, match="no colours to limit"):
        result().plot(kind="path_output", limit=1.0)
