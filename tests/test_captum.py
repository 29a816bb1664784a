"""captum on the Hugging Face model beside lens_attr on TransformerLens: independent code, 1e-9.

captum's DeepLIFT is left out: it knows no attention, softmax or LayerNorm and falls back to
gradient x difference there (tests/test_deeplift.py checks ours against the definitions).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from captum.attr import (
    FeatureAblation,
    GradientShap,
    InputXGradient,
    IntegratedGradients,
    LayerIntegratedGradients,
    Occlusion,
    Saliency,
)
from tiny import EXACT, error
from torch import Tensor

from lens_attr.attribution.integrated_gradients import Draws

pytestmark = [
    pytest.mark.filterwarnings("ignore::lens_attr.errors.Notice"),
    pytest.mark.filterwarnings("ignore:.*baseline.*:UserWarning"),
]

CASES = tiny.on_backends(["gpt2", "llama"])
BASELINE, STEPS = 9, 7
QUADRATURES = {
    "left": "riemann_left",
    "right": "riemann_right",
    "midpoint": "riemann_middle",
    "gauss_legendre": "gausslegendre",
}


@contextmanager
def exact() -> Iterator[None]:
    """Float64 throughout; captum makes its step sizes in torch's default dtype."""
    torch.set_default_dtype(torch.float64)
    try:
        with tiny.precision(EXACT):
            yield
    finally:
        torch.set_default_dtype(torch.float32)


Score = Callable[..., Tensor]


def hugging_face(family: str) -> tuple[Any, Score, Tensor, Tensor]:
    """The model, the explained number of embeddings, those of the text and of the baseline."""
    model = tiny.hugging_face(family, EXACT)
    ids = tiny.token_ids(family)
    embed = model.get_input_embeddings()
    x, x0 = (embed(one).detach() for one in (ids, torch.full_like(ids, BASELINE)))

    def score(embedding: Tensor) -> Tensor:
        logits = model(inputs_embeds=embedding).logits[:, -1]
        return logits[:, 12] - logits[:, 13]

    return model, score, x, x0


def ours(case: tuple[str, str], method: str, **options: Any) -> Tensor:
    ids = tiny.token_ids(case[0])
    return tiny.explain(tiny.model(*case, EXACT), method, ids, **options).tokens


def agree(case: tuple[str, str], method: str, attributed: Tensor, **options: Any) -> None:
    got = ours(case, method, embeddings="token", **options)
    assert error(got, attributed) < 1e-9


@pytest.mark.parametrize("case", CASES, ids=tiny.case_id)
@pytest.mark.parametrize("quadrature", QUADRATURES)
def test_integrated_gradients(case: tuple[str, str], quadrature: str) -> None:
    _, score, x, x0 = hugging_face(case[0])
    with exact():
        method = QUADRATURES[quadrature]
        found = IntegratedGradients(score).attribute(x, x0, n_steps=STEPS, method=method)
    options = {"baseline": BASELINE, "steps": STEPS, "quadrature": quadrature}
    agree(case, "integrated_gradients", found.sum(dim=-1), **options)


@pytest.mark.parametrize("case", CASES, ids=tiny.case_id)
def test_integrated_gradients_of_a_layer_and_its_gap(case: tuple[str, str]) -> None:
    """captum hooks the embedding layer and is given ids; its delta is our completeness gap."""
    ids = tiny.token_ids(case[0])
    model, _, _, _ = hugging_face(case[0])
    with exact():

        def score(ids: Tensor) -> Tensor:
            logits = model(ids).logits[:, -1]
            return logits[:, 12] - logits[:, 13]

        layer = LayerIntegratedGradients(score, model.get_input_embeddings())
        found, delta = layer.attribute(
            ids, torch.full_like(ids, BASELINE), n_steps=STEPS, return_convergence_delta=True
        )
    options = {"baseline": BASELINE, "steps": STEPS, "embeddings": "token"}
    result = tiny.explain(tiny.model(*case, EXACT), "integrated_gradients", ids, **options)
    assert error(result.tokens, found.sum(dim=-1)) < 1e-9
    assert float((result.extra["completeness_gap"] - delta).abs()) < 1e-9 * float(delta.abs() + 1)


@pytest.mark.parametrize("case", CASES, ids=tiny.case_id)
def test_gradient_shap(case: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """captum is handed our random places; without noise nothing else is random."""
    alphas = Draws.make(STEPS, 1, seed=3).alpha.numpy()
    _, score, x, x0 = hugging_face(case[0])
    with exact():
        monkeypatch.setattr(np.random, "uniform", lambda *_: alphas)
        found = GradientShap(score).attribute(x, x0, n_samples=STEPS, stdevs=0.0)
    options = {"baseline": BASELINE, "n_samples": STEPS, "seed": 3, "noise": 0.0}
    agree(case, "gradient_shap", found.sum(dim=-1), **options)
    other = ours(case, "gradient_shap", embeddings="token", **options | {"seed": 4})
    assert error(other, found.sum(dim=-1)) > 1e-3


@pytest.mark.parametrize("case", CASES, ids=tiny.case_id)
@pytest.mark.parametrize("window", [1, 2, 3])
def test_occlusion(case: tuple[str, str], window: int) -> None:
    _, score, x, x0 = hugging_face(case[0])
    with exact(), torch.no_grad():
        width = x.shape[-1]
        found = Occlusion(score).attribute(x, (window, width), strides=(1, width), baselines=x0)
    agree(case, "occlusion", found[..., 0], baseline=BASELINE, window=window)


@pytest.mark.parametrize("case", CASES, ids=tiny.case_id)
def test_feature_ablation(case: tuple[str, str]) -> None:
    """One feature per token."""
    _, score, x, _ = hugging_face(case[0])
    with exact(), torch.no_grad():
        token = torch.arange(x.shape[1])[None, :, None].expand_as(x)
        found = FeatureAblation(score).attribute(x, feature_mask=token)
    agree(case, "occlusion", found[..., 0])


@pytest.mark.parametrize("case", CASES, ids=tiny.case_id)
def test_plain_gradients(case: tuple[str, str]) -> None:
    _, score, x, _ = hugging_face(case[0])
    with exact():
        product = InputXGradient(score).attribute(x.clone().requires_grad_())
        gradient = Saliency(score).attribute(x.clone().requires_grad_(), abs=False)
    agree(case, "gradient_x_input", product.sum(dim=-1).detach())
    assert error(ours(case, "gradient_l1"), gradient.abs().sum(dim=-1)) < 1e-9
    assert error(ours(case, "gradient_l2"), gradient.square().sum(dim=-1)) < 1e-9
