"""Where relevance does not add up to F(x) - F(baseline), the result and a notice say so."""

from __future__ import annotations

from typing import Any

import pytest
import small
import tiny
import torch
from tiny import EXACT, error

import lens_attr as la
from lens_attr.attribution.completeness import incomplete, remedy

LLAMA, GPT2 = tiny.on_backends(["llama"])[0], tiny.on_backends(["gpt2"])[0]
COUNTED = {"integrated_gradients": "steps", "aieg": "steps", "gradient_shap": "n_samples"}


def explained(case: tuple[str, str], method: str, n: int, **options: Any) -> la.Relevance:
    ids = tiny.token_ids(case[0], rows=2)
    return tiny.explain(tiny.model(*case, EXACT), method, ids, **{COUNTED[method]: n}, **options)


@pytest.mark.parametrize("method", COUNTED)
def test_a_zero_baseline_on_llama_is_noticed(method: str) -> None:
    """All change lies next to zero, where a few steps or samples do not look."""
    said = (
        rf"completeness gap is up to \d+%.*Take more {COUNTED[method].removeprefix('n_')} \(now 4"
    )
    with pytest.warns(la.Notice, match=said):
        result = explained(LLAMA, method, 4)
    change = result.target_value - result.extra["baseline_value"]
    assert float((result.extra["completeness_gap"] / change).abs().max()) > 0.05
    assert any("completeness gap" in one for one in result.metadata["notices"])


@pytest.mark.parametrize("method", ["integrated_gradients", "aieg"])
def test_a_near_baseline_and_many_steps_are_not(method: str) -> None:
    result = explained(GPT2, method, 200, baseline=9)
    assert not result.metadata["notices"]
    change = result.target_value - result.extra["baseline_value"]
    assert float((result.extra["completeness_gap"] / change).abs().max()) < 0.05


@pytest.mark.filterwarnings("ignore::lens_attr.errors.Notice")
def test_the_gap_of_aieg_is_that_of_the_integrated_gradients_inside() -> None:
    result = explained(GPT2, "aieg", 7, baseline=9)
    plain = explained(GPT2, "integrated_gradients", 7, baseline=9, quadrature="right")
    for name in ("baseline_value", "completeness_gap"):
        assert error(result.extra[name], plain.extra[name]) < 1e-10
    assert error(result.extra["completeness_gap"], torch.zeros(2)) > 1e-4


@pytest.mark.filterwarnings("ignore::lens_attr.errors.Notice")
def test_the_gap_of_gradient_shap_is_chance() -> None:
    """F(x0) is its mean over the baselines drawn; the gap falls as its standard error says."""
    options = {"baselines": [9, 7, 20], "noise": 0.0}
    few, many = (explained(GPT2, "gradient_shap", n, **options) for n in (20, 500))
    for result in (few, many):
        change = result.target_value - result.extra["baseline_value"]
        gap = result.extra["completeness_gap"]
        assert error(result.tokens.sum(dim=1) - change, gap) < 1e-10
        assert bool((gap.abs() < 4.5 * result.extra["completeness_standard_error"]).all())
    shrunk = few.extra["completeness_standard_error"] / many.extra["completeness_standard_error"]
    assert float(shrunk.min()) > 2.5 and float(shrunk.max()) < 10  # sqrt(500 / 20) = 5
    each = [explained(GPT2, "integrated_gradients", 1, baseline=b) for b in options["baselines"]]
    values = torch.stack([one.extra["baseline_value"] for one in each])
    assert bool((many.extra["baseline_value"] >= values.min(dim=0).values).all())
    spread = values.std(dim=0) / 500**0.5
    off = (many.extra["baseline_value"] - values.mean(dim=0)).abs()
    assert bool((off < 4.5 * spread).all())


@pytest.mark.filterwarnings("ignore::lens_attr.errors.Notice")
def test_one_baseline_without_noise_has_one_value() -> None:
    found = explained(GPT2, "gradient_shap", 5, baseline=9, noise=0.0)
    plain = explained(GPT2, "integrated_gradients", 5, baseline=9)
    assert error(found.extra["baseline_value"], plain.extra["baseline_value"]) < 1e-10
    noisy = explained(GPT2, "gradient_shap", 5, baseline=9, noise=0.5)
    assert error(noisy.extra["baseline_value"], plain.extra["baseline_value"]) > 1e-3


def test_what_is_noticed() -> None:
    one, zero = torch.ones(1), torch.zeros(1)
    assert not incomplete("it", one, zero, 0.049 * one, "")
    assert incomplete("it", one, zero, -0.051 * one, "Do this.") == [
        "it does not sum to F(x) - F(baseline): the completeness gap is up to 5% of that "
        'difference (r.extra["completeness_gap"]). Do this.'
    ]
    assert not incomplete("it", 1e6 * one, 1e6 * one, one, "")  # rounding of the two values
    assert "a baseline nearer" in remedy("steps", 3, "pad")
    assert remedy("steps", 3, "zero") == remedy("steps", 3, None) != remedy("steps", 3, 5)


@pytest.mark.parametrize("method", ["aieg", "gradient_shap"])
@pytest.mark.filterwarnings("ignore::lens_attr.errors.Notice")
def test_a_padded_batch_has_the_gaps_of_its_texts(method: str) -> None:
    model, texts = small.model(small.GPT2[0], EXACT), ["w5 w9 w12 w7", "w8 w3"]
    options = {"method": method, "baseline": " w9", "target": la.Logit(6), COUNTED[method]: 4}
    with tiny.precision(EXACT):
        both = la.attribute(model, texts, **options)
        for i, text in enumerate(texts):
            alone = la.attribute(model, text, **options)
            for name in ("baseline_value", "completeness_gap"):
                assert error(both.extra[name][i], alone.extra[name][0]) < 1e-8
