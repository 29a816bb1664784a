"""AIEG: its theorems on plain functions, the literal formula on transformers, its parts."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import pytest
import small
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from reference import paths as literal
from tiny import EXACT, MASK, error
from torch import Tensor

import lens_attr as la
from lens_attr.attribution.aieg import emphasis_factors, emphasis_path, positive_norm
from lens_attr.attribution.paths import average_gradient, nodes, value_and_gradients
from lens_attr.graph import resolve

pytestmark = pytest.mark.filterwarnings("ignore::lens_attr.errors.Notice")

FAMILIES = tiny.on_backends(["gpt2", "llama", "gemma2", "bert", "gptj", "opt"])
BASELINE = 9
outputs = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=12)


def double(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def walk(function: Any, x: list[float], steps: int = 50) -> tuple[Tensor, Tensor, Any]:
    """(IG, a before PosNorm, the path) of a plain function from zero."""
    end = double([x])
    path = emphasis_path(lambda p, _: function(p), torch.zeros_like(end), end, steps, size=7)
    return (end * path.gradient)[0], (end * path.emphasised)[0], path


# ------------------------------------------------------------------------------------- theorems


@given(outputs)
def test_emphasis_lies_between_zero_and_one_and_starts_at_zero(values: list[float]) -> None:
    factors = emphasis_factors(double(values))
    assert float(factors[0]) == 0
    assert bool((factors >= 0).all() and (factors <= 1).all())


@given(outputs, st.lists(st.floats(-1e6, 1e6), min_size=12, max_size=12))
def test_emphasis_keeps_the_sign_of_the_gradient(values: list[float], grads: list[float]) -> None:
    factors = emphasis_factors(double(values))
    gradients = double(grads)[: len(factors)]
    product = factors * gradients
    assert bool((product * gradients >= 0).all())
    assert bool((product.abs() <= gradients.abs()).all())


@given(st.floats(-1e6, 1e6), st.integers(2, 9))
def test_emphasis_is_zero_where_the_output_is_flat(value: float, length: int) -> None:
    assert bool((emphasis_factors(double([value] * length)) == 0).all())


@given(outputs, st.floats(1e-3, 1e3))
def test_emphasis_does_not_depend_on_the_unit_of_the_output(
    values: list[float], unit: float
) -> None:
    assert torch.allclose(
        emphasis_factors(double(values)), emphasis_factors(double(values) * unit), atol=1e-9
    )


def test_emphasis_is_one_where_the_output_changes_sign_or_leaves_zero() -> None:
    assert emphasis_factors(double([0, 2, -1, -1, 0, 0])).tolist() == [0, 1, 1, 0, 1, 0]
    assert emphasis_factors(double([1, 3])).tolist() == [0, 0.5]


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=9))
def test_positive_norm_shares_out_the_positive_part(values: list[float]) -> None:
    shares = positive_norm(double(values))
    assert bool((shares >= 0).all())
    if max(values) > 0:
        assert abs(float(shares.sum()) - 1) < 1e-9
        assert int(shares.argmax()) == int(double(values).argmax())
    else:
        assert float(shares.sum()) == 0


def recurrent(points: Tensor) -> Tensor:
    """h_1 = relu(1 - x_1), h_2 = relu(h_1 - x_2), y = 2 - h_2: saturates at y = 2."""
    hidden = torch.zeros(len(points), dtype=points.dtype) + 1
    for step in range(points.shape[1]):
        hidden = (hidden - points[:, step]).relu()
    return 2 - hidden


def test_the_saturated_relu_network_that_gradient_x_input_cannot_explain() -> None:
    """y = 2 at the input and 1 at the baseline, yet x * gradient = 0 everywhere."""
    x = double([[1.0, 0.5]])
    every = torch.zeros(1, dtype=torch.long)
    value, (gradient,) = value_and_gradients(lambda p, _: recurrent(p), x, every)
    assert float(value) == 2 and float(recurrent(torch.zeros_like(x))) == 1
    assert float((x * gradient).abs().max()) == 0
    ig, emphasised, path = walk(recurrent, [1.0, 0.5], steps=3000)
    assert abs(float(ig.sum()) - 1) < 1e-3
    assert torch.allclose(ig, double([2 / 3, 1 / 3]), atol=1e-3)
    assert bool((emphasised > 0).all())
    assert torch.allclose(positive_norm(emphasised), double([2 / 3, 1 / 3]), atol=1e-3)
    assert float(path.emphasis[0, 2001:].abs().max()) == 0  # flat beyond alpha = 2/3


def test_the_plain_mean_is_that_of_integrated_gradients() -> None:
    function = lambda p: (p[:, 0] * p[:, 1] + p[:, 0]).exp()  # noqa: E731
    _, _, path = walk(function, [0.7, -0.4], steps=20)
    end = double([[0.7, -0.4]])
    mean = average_gradient(
        lambda p, _: function(p), torch.zeros_like(end), end, *nodes("right", 20), size=3
    )
    assert torch.allclose(path.gradient, mean, atol=1e-14)


def test_aieg_is_not_linear() -> None:
    """Against the paper: the parts of f + g are not the sum of the parts of f and of g."""

    def first(p: Tensor) -> Tensor:
        return 1 + p[:, 0]

    def second(p: Tensor) -> Tensor:
        return 5 + p[:, 1] ** 2

    x = [1.0, 1.0]
    (ig_f, a_f, _), (ig_g, a_g, _) = walk(first, x), walk(second, x)
    ig_sum, a_sum, _ = walk(lambda p: first(p) + second(p), x)
    assert torch.allclose(ig_sum, ig_f + ig_g)
    assert float((a_sum - a_f - a_g).abs().max()) > 0.3 * float(a_sum.abs().max())
    shares = positive_norm(a_f) + positive_norm(a_g)
    assert float((positive_norm(a_sum) - shares).abs().max()) > 0.3


# ------------------------------------------------------------------------------- on transformers


def explain(case: tuple[str, str], ids: Tensor, **options: Any) -> la.Relevance:
    options = {"baseline": BASELINE, "steps": 5} | options
    return tiny.explain(tiny.model(*case, EXACT), "aieg", ids, **options)


def reference(family: str, words: list[int], steps: int = 5, row: int | None = None) -> Any:
    hf = tiny.hugging_face(family, EXACT)
    position = words.index(MASK) if family == "bert" else len(words) - 1
    attention = literal.mean_attention(hf, words, position if row is None else row)
    x = literal.word_embeddings(hf, words)
    x0 = literal.word_embeddings(hf, [BASELINE] * len(words))
    score = literal.score(hf, position, 12, 13)
    return literal.aieg(score, x, x0, steps, attention) | {"net_attention": attention}


@pytest.mark.parametrize("case", FAMILIES, ids=tiny.case_id)
def test_equals_the_literal_formula_on_the_hugging_face_model(case: tuple[str, str]) -> None:
    ids = tiny.token_ids(case[0], rows=2)
    result = explain(case, ids)
    loose = 1e-6 if case[0] == "gptj" else 1e-9
    with tiny.precision(EXACT):
        for row in range(2):
            want = reference(case[0], ids[row].tolist())
            assert error(result.tokens[row], want.pop("relevance")) < loose
            for name, value in want.items():
                assert error(result.extra[name][row], value) < loose


def test_the_parts_fit_together() -> None:
    result = explain(tiny.on_backends(["gpt2"])[0], tiny.token_ids("gpt2", rows=2), steps=8)
    extra = result.extra
    assert torch.equal(result.tokens, extra["emphasised_normalised"] * extra["net_attention"])
    assert torch.equal(extra["emphasis"], emphasis_factors(extra["output"]))
    assert torch.equal(extra["output"][:, -1], result.target_value)
    assert extra["alpha"][0].tolist() == [k / 8 for k in range(9)]
    assert error(extra["net_attention"].sum(1), torch.ones(2)) < 1e-9
    plain = tiny.explain(
        tiny.model(*tiny.on_backends(["gpt2"])[0], EXACT),
        "integrated_gradients",
        tiny.token_ids("gpt2", rows=2),
        baseline=BASELINE,
        steps=8,
        quadrature="right",
    )
    assert error(extra["integrated_gradients"], plain.tokens) < 1e-12
    assert bool((extra["emphasised_gradient_norm"] <= extra["gradient_norm"].max()).all())
    assert result.unit == "share of positive relevance x attention"
    assert float(result.tokens.sum(1).max()) <= 1


def test_the_row_of_the_token_of_interest() -> None:
    case = tiny.on_backends(["gpt2"])[0]
    words = [12, 5, 12, 9, 20]
    for occurrence, row in ((-1, 2), (0, 0), (1, 2)):
        result = explain(case, torch.tensor([words]), row="token", occurrence=occurrence)
        with tiny.precision(EXACT):
            want = reference("gpt2", words, row=row)
        assert error(result.extra["net_attention"][0], want["net_attention"]) < 1e-9
        assert torch.allclose(result.tokens[0], want["relevance"], atol=1e-12)
    predicting = explain(case, torch.tensor([words]))
    assert error(result.extra["net_attention"], predicting.extra["net_attention"]) > 0.1


def test_the_probability_of_the_token() -> None:
    case = tiny.on_backends(["gpt2"])[0]
    ids = tiny.token_ids("gpt2", rows=2)
    found = explain(case, ids, target=la.Logit(12), output="probability")
    metric = la.Metric(lambda logits: logits[:, -1].softmax(-1)[:, 12])
    want = explain(case, ids, target=metric)
    assert error(found.tokens, want.tokens) < 1e-10
    assert error(found.extra["output"], want.extra["output"]) < 1e-10
    assert found.target[0] == "probability of 'w12'"
    top = explain(case, ids, target=la.TopLogit(), output="probability")
    assert top.target[0].startswith("probability of") and float(top.target_value.min()) > 1 / 60


@pytest.mark.parametrize("case", tiny.on_backends(["gpt2", "bert"]), ids=tiny.case_id)
def test_the_norm_of_the_output_embedding(case: tuple[str, str]) -> None:
    ids = tiny.token_ids(case[0], rows=2)
    result = explain(case, ids, output="embedding_l1")
    row = ids[0].tolist().index(MASK) if case[0] == "bert" else -1
    with tiny.precision(EXACT), torch.no_grad():
        hf = tiny.hugging_face(case[0], EXACT)
        if case[0] == "bert":
            last = hf.cls.predictions.transform(hf.bert(ids).last_hidden_state)
        else:
            last = hf.transformer(ids).last_hidden_state
    assert error(result.target_value, last[:, row].abs().sum(-1)) < 1e-10
    assert result.target == ["l1 norm of the output embedding"] * 2
    assert error(result.tokens, explain(case, ids).tokens) > 0.01


def test_where_nothing_is_positive_all_is_zero_and_says_so() -> None:
    case = tiny.on_backends(["gpt2"])[0]
    ids = torch.full((1, 3), BASELINE)
    with pytest.warns(la.Notice, match="no token has a positive emphasised score.*none_positive"):
        result = explain(case, ids)
    assert bool(result.extra["none_positive"].all()) and float(result.tokens.abs().max()) == 0
    assert not bool(explain(case, tiny.token_ids("gpt2")).extra["none_positive"].any())


# ------------------------------------------------------------------------------------ contracts


@pytest.mark.parametrize("name", small.EVERY)
def test_a_padded_batch_equals_its_texts_alone(name: str) -> None:
    model = small.model(name, EXACT)
    texts = [small.text(name), small.text(name, "w5 w9 w8"), small.text(name, "w8 w3 w20")]
    options = {"method": "aieg", "target": la.Logit(6), "baseline": " w9", "steps": 4}
    with tiny.precision(EXACT):
        both = la.attribute(model, texts, **options)
        tight = la.attribute(model, texts, max_batch_tokens=1, batch_size=2, **options)
        for i, text in enumerate(texts):
            alone = la.attribute(model, text, **options)
            assert torch.allclose(both[i].tokens, alone.tokens, atol=1e-9)
            assert error(both.extra["emphasis"][i], alone.extra["emphasis"][0]) < 1e-7
    assert error(tight.tokens, both.tokens) < 1e-7
    assert error(tight.extra["emphasised"], both.extra["emphasised"]) < 1e-7
    for values in (both.tokens, both.extra["net_attention"], both.extra["gradient_norm"]):
        assert bool((values[~both.attention_mask] == 0).all())


@pytest.mark.parametrize("name", small.GPT2)
def test_steps_backwards_and_two_more_forwards(name: str) -> None:
    model, graph = small.model(name), resolve(small.model(name))
    forwards: list[int] = []
    backwards: list[int] = []
    with ExitStack() as stack:
        graph.points("residual")[0].on_forward(lambda x: forwards.append(len(x)), stack)
        graph.points("residual")[1].on_backward(lambda x: backwards.append(len(x)), stack)
        la.attribute(model, "w5 w9 w8", la.Logit(6), "aieg", steps=7, max_batch_tokens=8)
    assert (sum(forwards), sum(backwards)) == (9, 7)


@pytest.mark.parametrize("name", small.EVERY)
def test_nothing_is_left_on_the_model(name: str) -> None:
    model = small.fresh(name)
    la.attribute(model, small.text(name), la.Logit(6), "aieg", steps=2)
    before = small.world(model)
    with torch.no_grad():
        la.attribute(model, small.text(name), la.Logit(6), "aieg", steps=2, output="embedding_l1")
    assert small.world(model) == before


def test_a_model_that_hides_its_attention_is_refused() -> None:
    """A hook of the user's stands in for an implementation that shows something else."""
    model = small.fresh(small.GPT2[-1])
    point = resolve(model).points("pattern")[1]
    with ExitStack() as stack:
        point.on_forward(torch.ones_like, stack)
        with pytest.raises(la.UnsupportedModelError, match="carries no attention weights"):
            la.attribute(model, "w5 w9", la.Logit(6), "aieg", steps=2)


BAD = {
    "no steps": ({"steps": 0}, "steps must be a whole number of at least 1"),
    "output": ({"output": "logits"}, "output must be one of 'logit', 'probability'"),
    "row": ({"row": "last"}, "row must be 'predicting' or 'token'"),
    "not in the text": ({"row": "token"}, "'w6' 0 times, so there is no occurrence -1"),
    "occurrence": ({"row": "token", "occurrence": 2, "target": la.Logit(9)}, "'w9' 1 times"),
    "two tokens": ({"output": "probability", "target": la.LogitDiff(6, 7)}, "needs one token"),
    "no token": (
        {"row": "token", "target": la.Metric(lambda logits: logits[:, -1, 6])},
        "needs a target that names a token",
    ),
}


@pytest.mark.parametrize(("options", "message"), BAD.values(), ids=list(BAD))
def test_bad_input(options: dict[str, Any], message: str) -> None:
    with small.untyped(), pytest.raises(la.InputError, match=message):
        options = {"target": la.Logit(6), "method": "aieg"} | options
        la.attribute(small.model(small.GPT2[0]), "w5 w9", **options)
