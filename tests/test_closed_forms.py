"""A model small enough to compute every method by hand; where it is linear, they all agree.

Two tokens of one number each, x = (3, 5); one attention head, no norm, no MLP. With value and
output 2, and scores s_ij = w x_i x_j, the logit at the second token is

    F = x_1 + 2 (p_0 x_0 + p_1 x_1),    p = softmax(w x_1 x_0, w x_1 x_1)

w = 0 makes it linear: p = (1/2, 1/2), F = x_0 + 2 x_1 = 13. w = ln(3) / 10 makes p = (1/4, 3/4) and
F = 14.
"""

from __future__ import annotations

from math import log, sqrt
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor

import lens_attr as la

pytestmark = [
    pytest.mark.skipif("hooked" not in tiny.BACKENDS, reason="no Bridge without norms"),
    pytest.mark.filterwarnings("ignore::lens_attr.errors.Notice"),
]

W = log(3) / 10
TARGET = la.Logit(2)


def two_tokens(w: float) -> Any:
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    sizes = {"n_layers": 1, "n_heads": 1, "d_model": 1, "d_head": 1, "n_ctx": 2, "d_vocab": 3}
    cfg = HookedTransformerConfig(
        **sizes,
        attn_only=True,
        normalization_type=None,
        use_attn_scale=False,
        dtype=torch.float64,
        device="cpu",
    )
    model = HookedTransformer(cfg).eval()
    attention = model.blocks[0].attn
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.embed.W_E[:2, 0] = torch.tensor([3.0, 5.0])
        attention.W_Q.fill_(w)
        attention.W_K.fill_(1)
        attention.W_V.fill_(2)
        attention.W_O.fill_(1)
        model.unembed.W_U[0, 2] = 1
    return model


def explain(w: float, method: str, **options: Any) -> la.Relevance:
    return la.attribute(two_tokens(w), torch.tensor([[0, 1]]), TARGET, method, **options)


def close(found: Tensor, want: tuple[float, ...]) -> bool:
    return torch.allclose(found[0].double(), torch.tensor(want, dtype=torch.float64), rtol=1e-12)


# ------------------------------------------------------------------------------ where it is linear

LINEAR: dict[str, dict[str, Any]] = {
    "gradient_x_input": {},
    "lrp": {},
    "relp": {},
    "integrated_gradients": {"steps": 1},
    "ig_clipped": {"steps": 1},
    "gradient_shap": {"n_samples": 2, "noise": 0.0},
    "occlusion": {},
    "deeplift": {},
}


@pytest.mark.parametrize("method", LINEAR)
def test_one_answer_where_the_model_is_linear(method: str) -> None:
    """F = x_0 + 2 x_1: every method that sums to the target says 3 and 10."""
    result = explain(0.0, method, **LINEAR[method])
    assert float(result.target_value) == 13 and close(result.tokens, (3, 10))


@pytest.mark.parametrize(
    "method", ["integrated_gradients", "gradient_shap", "occlusion", "deeplift"]
)
def test_and_against_a_baseline(method: str) -> None:
    """x - x0 in the place of x: the baseline is the first token everywhere."""
    options = LINEAR[method] | {"baseline": 0}
    assert close(explain(0.0, method, **options).tokens, (0, 4))


def test_what_is_not_conserved() -> None:
    """Half of what passes through attention is lost to the pattern, which is constant here."""
    for method in ("attnlrp", "gim"):
        assert close(explain(0.0, method).tokens, (1.5, 7.5))
    assert close(explain(0.0, "gradient_l1").tokens, (1, 2))
    assert close(explain(0.0, "gradient_l2").tokens, (1, 4))


def test_attention_and_mixing() -> None:
    """T_1(x_0) = 3, T_1(x_1) = 5 + 5, y_1 = 13; attention brings 3 and 5 to the logit."""
    assert close(explain(0.0, "attention_only").tokens, (1 / 2, 1 / 2))
    assert close(explain(0.0, "attention_rollout").tokens, (1 / 4, 3 / 4))
    assert close(explain(0.0, "alti").tokens, (3 / 13, 10 / 13))
    logit = explain(0.0, "alti_logit")
    assert close(logit.tokens, (3, 5)) and float(logit.extra["initial"]) == 5


def test_emphasis() -> None:
    """From F_0 = 0 every EF but the first is |F_k - F_(k-1)| / (F_k + F_(k-1)) = 1 / (2 k - 1)."""
    result = explain(0.0, "aieg", steps=3)
    assert close(result.extra["emphasis"], (0, 1, 1 / 3, 1 / 5))
    mean = (1 + 1 / 3 + 1 / 5) / 3
    assert close(result.extra["emphasised"], (3 * mean, 10 * mean))
    assert close(result.tokens, (3 / 13 / 2, 10 / 13 / 2))


# --------------------------------------------------------------------------- where attention moves

SLOPE = 3 / 16
"""p_0 p_1, the derivative of the softmax."""
TEMPERED = sqrt(3) / (1 + sqrt(3)) ** 2
"""The same of softmax(s / 2): probabilities as 1 to the root of 3."""


def through_scores(slope: float) -> tuple[float, float]:
    """x dF/dx by way of p_1, a function of w x_1 (x_1 - x_0), with dF/dp_1 = 2 (x_1 - x_0)."""
    of_p1 = 2 * (5 - 3)
    return 3 * of_p1 * -W * 5 * slope, 5 * of_p1 * W * (2 * 5 - 3) * slope


def test_every_preset() -> None:
    """By way of the values 2 p_j x_j = 1.5 and 7.5; the residual connection brings 5."""
    ways = {
        "gradient_x_input": (1.0, 1.0, SLOPE),
        "lrp": (1.0, 0.0, SLOPE),
        "attnlrp": (1 / 2, 1 / 4, SLOPE),
        "gim": (1 / 2, 1 / 4, TEMPERED),
        "relp": (1.0, 1.0, SLOPE),
    }
    for method, (of_values, of_scores, slope) in ways.items():
        first, second = through_scores(slope)
        want = (of_values * 1.5 + of_scores * first, 5 + of_values * 7.5 + of_scores * second)
        result = explain(W, method)
        assert float(result.target_value) == pytest.approx(14, rel=1e-12)
        assert close(result.tokens, want), method
    assert sum(explain(W, "lrp").tokens[0].tolist()) == pytest.approx(14, rel=1e-12)


def test_occlusion_moves_attention() -> None:
    """x_0 = 0: p_1 = 3^2.5 / (1 + 3^2.5) of 10; x_1 = 0: p = (1/2, 1/2), half of 6."""
    share = 3**2.5 / (1 + 3**2.5)
    assert close(explain(W, "occlusion").tokens, (14 - (5 + 10 * share), 14 - 3))


def test_sums_to_the_change() -> None:
    """F(0) = 0. The integrand is smooth, so few nodes are exact; DeepLIFT needs none."""
    for method, options in (("integrated_gradients", {"steps": 16}), ("deeplift", {})):
        result = explain(W, method, **options)
        assert float(result.tokens.sum()) == pytest.approx(14, rel=1e-9)
        assert not close(result.tokens, (1.5, 12.5))
