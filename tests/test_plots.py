"""Figures: the values and words they carry, and what they refuse."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import plotly.graph_objects as go
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lens_attr import plots
from lens_attr.attribution.comparison import Comparison
from lens_attr.attribution.relevance import Relevance
from lens_attr.circuits.results import PruningComparison, PruningCurve, Ranking
from lens_attr.errors import InputError
from lens_attr.plots.palette import INK, LINES, POSITIVE, SCALE
from lens_attr.plots.token_text import boxes, columns

SHORT = ["<s>", " the", " keys", " near", " the"]
LONG = ["<s>", *([" the", " ke", "ys", "\n", " 犬", "<b>"] * 6)]
LAYERS, HEADS = 2, 3


def relevance(texts: Sequence[list[str]] = (SHORT,), method: str = "attnlrp") -> Relevance:
    """Random relevance of some left-padded texts."""
    width = max(map(len, texts))
    mask = torch.tensor([[i >= width - len(text) for i in range(width)] for text in texts])
    heads = torch.randn(len(texts), LAYERS, width, HEADS) * mask[:, None, :, None]
    return Relevance(
        tokens=torch.randn(len(texts), width) * mask,
        token_ids=torch.zeros(len(texts), width, dtype=torch.long),
        attention_mask=mask,
        str_tokens=[["<pad>"] * (width - len(text)) + text for text in texts],
        target_value=torch.randn(len(texts)),
        target=["logit of ' are' - logit of ' is'"] * len(texts),
        position=torch.full((len(texts),), width - 1),
        method=method,
        head_tokens=heads,
        heads_relu_dim=heads.relu().sum(2),
        records={"pattern": torch.randn(len(texts), LAYERS, HEADS, width, width)},
    )


def curve(method: str, heads: int = 4, order: str = "least") -> PruningCurve:
    """A random pruning curve."""
    return PruningCurve(
        accuracy=np.random.rand(heads + 1),
        logit_diff=np.random.randn(heads + 1),
        pruned=[(0, head) for head in range(heads)],
        method=method,
        order=order,
        n=7,
    )


def texts_of(figure: go.Figure) -> list[str]:
    return [heading.text for heading in figure.layout.annotations]


@pytest.mark.parametrize(
    ("token", "shown"),
    [
        (" keys", " keys"),
        ("Ġkeys", " keys"),
        ("▁keys", " keys"),
        ("##ys", "##ys"),
        ("\n", "↵"),
        ("Ċ", "↵"),
        ("\t", "⇥"),
        ("  ", "··"),
        ("", "∅"),
    ],
)
def test_tokens_are_readable(token: str, shown: str) -> None:
    assert plots.readable(token) == shown


def test_wide_letters_take_two_columns_and_accents_none() -> None:
    assert columns("犬a") == 3
    assert columns("e\u0301") == 1


@given(st.lists(st.text(max_size=12), min_size=1, max_size=60), st.integers(5, 100))
def test_boxes_never_overlap_nor_leave_their_line(tokens: list[str], wrap: int) -> None:
    placed = boxes(tokens, wrap)
    assert len(placed) == len(tokens)
    for box, after in pairwise(placed):
        assert after.line - box.line in (0, 1)
        if after.line == box.line:
            assert after.left >= box.left + box.width
            assert after.left + after.width <= wrap
        else:
            assert after.left == 0


def test_token_figure_has_one_box_per_token_in_order_with_its_relevance() -> None:
    result = relevance([SHORT])
    figure = plots.relevance(result)
    (bars,) = figure.data
    assert list(bars.text) == ["&lt;s&gt;", "the", "keys", "near", "the"]
    assert list(bars.marker.color) == result.real_tokens().double().tolist()
    assert all(np.diff(bars.base) > 0)
    assert "position 4" in bars.customdata[4]
    assert f"{float(result.tokens[0, 4]):+.4g}" in bars.customdata[4]


def test_token_colours_are_centred_at_zero_and_name_their_unit() -> None:
    axis = plots.relevance(relevance([SHORT, LONG])).layout.coloraxis
    assert axis.cmin == -axis.cmax
    assert axis.colorbar.title.text == "relevance (logit)"
    assert plots.relevance(relevance(), limit=2.5).layout.coloraxis.cmax == 2.5


def test_token_figure_leaves_padding_out() -> None:
    short, long = plots.relevance(relevance([SHORT, LONG])).data
    assert (len(short.text), len(long.text)) == (len(SHORT), len(LONG))
    assert "&lt;pad&gt;" not in short.text


def test_long_texts_continue_on_the_next_line() -> None:
    rows = plots.relevance(relevance([LONG]), wrap=30).data[0].y
    assert len(set(rows)) > 2


def test_many_examples_are_cut_and_the_title_says_so() -> None:
    figure = plots.relevance(relevance([SHORT] * 23))
    assert len(figure.data) == 20
    assert figure.layout.title.text == "Token relevance, attnlrp, first 20 of 23 examples"
    assert len(plots.relevance(relevance([SHORT] * 23), example=22).data) == 1


def test_all_zero_relevance_can_be_drawn() -> None:
    result = relevance()
    result.tokens.zero_()
    assert plots.relevance(result).layout.coloraxis.cmax == 1.0


def test_comparison_colours_each_method_by_its_own_largest() -> None:
    methods = {name: relevance([SHORT], name) for name in ("lrp", "gim")}
    methods["gim"].tokens.mul_(1000)
    figure = plots.comparison(Comparison(methods))
    assert texts_of(figure) == ["lrp", "gim"]
    for bars in figure.data:
        assert max(map(abs, bars.marker.color)) == 1.0
    assert f"{float(methods['gim'].tokens[0, 0]):+.4g}" in figure.data[1].customdata[0]


@pytest.mark.parametrize("pool", ["sum", "relu_token", "relu_dim"])
def test_head_map_shows_the_pooled_relevance(pool: str) -> None:
    result = relevance([SHORT, LONG])
    (cells,) = plots.heads(result, pool=pool).data
    expected = result.heads(pool).double().mean(0).numpy()
    assert np.allclose(cells.z, expected)
    (one,) = plots.heads(result, pool=pool, example=1).data
    assert np.allclose(one.z, result.heads(pool)[1].double().numpy())


def test_head_map_of_a_ranking() -> None:
    scores = np.arange(6.0).reshape(LAYERS, HEADS)
    figure = plots.heads(Ranking(scores, "gim", "sum", 12))
    assert np.array_equal(figure.data[0].z, scores)
    assert figure.layout.title.text == "Head scores, gim, sum, mean of 12 samples"
    assert figure.layout.xaxis.title.text == "head"
    assert figure.layout.yaxis.title.text == "layer"


def test_attention_map_keeps_equal_tokens_apart_and_drops_padding() -> None:
    result = relevance([SHORT, LONG])
    figure = plots.attention(result, layer=1, head=2, example=0)
    (cells,) = figure.data
    start = len(LONG) - len(SHORT)
    assert np.allclose(cells.z, result.records["pattern"][0, 1, 2, start:, start:].numpy())
    assert list(figure.layout.xaxis.tickvals) == [0, 1, 2, 3, 4]
    assert figure.layout.xaxis.ticktext[1] == figure.layout.xaxis.ticktext[4]


def test_pruning_figure_has_every_method_and_random_as_a_band() -> None:
    random = [curve(f"random seed {seed}") for seed in range(3)]
    figure = plots.pruning(PruningComparison([curve("lrp"), curve("gim")], random))
    top, bottom, mean, lrp, gim = figure.data
    heights = np.stack([one.accuracy for one in random])
    assert np.array_equal(top.y, heights.max(0)) and np.array_equal(bottom.y, heights.min(0))
    assert np.allclose(mean.y, heights.mean(0))
    assert lrp.name.startswith("lrp (area ") and gim.name.startswith("gim (area ")
    assert list(lrp.customdata) == [
        "whole model",
        "removed 0.0",
        "removed 0.1",
        "removed 0.2",
        "removed 0.3",
    ]
    assert figure.layout.xaxis.title.text == "heads removed"


def test_pruning_figure_of_one_curve_and_of_logit_differences() -> None:
    one = curve("gim")
    assert len(one.plot().data) == 1
    figure = one.plot(y="logit_diff")
    assert np.array_equal(figure.data[0].y, one.logit_diff)
    assert figure.layout.yaxis.title.text.endswith("(logit)")


def test_html_tokens_are_escaped_coloured_and_spaced() -> None:
    markup = plots.html_tokens(["<s>", " a", "b"], [0.0, -2.0, 1.0])
    assert "&lt;s&gt;</span> <span" in markup and "<s>" not in markup
    assert "</span><span" in markup  # "b" continues the word " a"
    assert plots.shade(-1.0) in markup and plots.shade(0.5) in markup
    assert "-2 logit" in markup


def test_results_plot_themselves() -> None:
    result = relevance()
    assert result.plot() == plots.relevance(result)
    assert result.plot(kind="heads", pool="sum") == plots.heads(result, pool="sum")
    assert Comparison({"lrp": result}).plot() == plots.comparison(Comparison({"lrp": result}))


@pytest.mark.parametrize("draw", [plots.relevance, plots.heads])
def test_the_theme_can_be_changed_afterwards(draw: Callable[..., go.Figure]) -> None:
    figure = draw(relevance())
    assert figure.layout.template.layout.paper_bgcolor == "#ffffff"
    figure.update_layout(template=plots.DARK)
    assert figure.layout.template.layout.paper_bgcolor == plots.DARK.layout.paper_bgcolor
    assert figure.layout.font.color is None


def _luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))


def _contrast(one: str, other: str) -> float:
    low, high = sorted([_luminance(one), _luminance(other)])
    return (high + 0.05) / (low + 0.05)


def test_text_is_legible_on_every_colour_and_lines_on_both_themes() -> None:
    assert all(_contrast(INK, colour) >= 4.5 for _, colour in (*SCALE, *POSITIVE))
    for theme in (plots.LIGHT, plots.DARK):
        paper = theme.layout.paper_bgcolor
        assert _contrast(theme.layout.font.color, paper) >= 7
        assert all(_contrast(line, paper) >= 2.4 for line in LINES)


@given(st.floats(-1, 1))
def test_shades_mirror_the_scale(share: float) -> None:
    assert _luminance(plots.shade(share)) <= _luminance(plots.shade(0.0))
    assert plots.shade(3.0) == SCALE[-1][1] and plots.shade(-3.0) == SCALE[0][1]


def _nan() -> Relevance:
    result = relevance()
    result.tokens[0, 0] = float("nan")
    return result


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: plots.relevance(relevance(), kind="head"), "did you mean 'heads'"),
        (lambda: plots.relevance(relevance(), example=1), "out of range"),
        (lambda: plots.relevance(relevance(), pool="sum"), "unknown option 'pool'"),
        (lambda: plots.relevance(relevance(), limit=0.0), "above zero"),
        (lambda: plots.relevance(relevance(), wrap=0), "above zero"),
        (lambda: plots.relevance(_nan()), "NaN"),
        (lambda: plots.comparison(Comparison({})), "no method"),
        (lambda: plots.comparison(Comparison({"a": relevance()}), example=3), "out of range"),
        (lambda: plots.heads(relevance(), pool="relu"), "unknown pool"),
        (lambda: plots.heads(Ranking(np.ones((1, 1)), "gim"), pool="sum"), "pooled"),
        (lambda: plots.heads(Ranking(np.ones((1, 1)), "gim"), limit=-1.0), "above zero"),
        (lambda: plots.attention(relevance(), layer=2, head=0), "layer 2 is out of range"),
        (lambda: plots.attention(relevance(), layer=0, head=3), "head 3 is out of range"),
        (lambda: plots.pruning(PruningComparison([])), "no pruning curve"),
        (lambda: plots.pruning(PruningComparison([curve("a")]), y="acc"), "accuracy"),
        (lambda: plots.pruning(PruningComparison([curve("a"), curve("b", 3)])), "differ"),
        (lambda: plots.html_tokens(["a"], []), "1 tokens but 0 values"),
    ],
)
def test_what_cannot_be_drawn_is_refused(draw: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        draw()
