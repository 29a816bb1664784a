"""Every option of every method: a value that it does not take is refused, by name and at once."""

from __future__ import annotations

import math
import re
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small
import tiny
import torch

import lens_attr as la
from lens_attr.attribution.registry import METHODS
from lens_attr.graph import resolve
from lens_attr.spelling import find, spell

NONSENSE = ["x", "", None, -1, 1.5, True, math.nan, -math.inf, 2**70, [], [3], {"a": 1}, object()]
NONSENSE += [torch.zeros(2, 3), torch.full((32,), math.nan), torch.zeros(32, dtype=torch.complex64)]

CALLED = {"record": "record|role or hook", "theta_minus": "theta", "theta_plus": "theta"}
"""What a message calls the option, where not by its name alone."""

FEW: dict[str, Any] = {"steps": 2, "n_samples": 2}


def refusal(*args: Any, **options: Any) -> str | None:
    """What is said where something is refused; no layers at all are no layers to act in."""
    try:
        la.attribute(*args, **options)
    except (la.InputError, la.RuleNotAppliedError) as error:
        return str(error)
    return None


@pytest.mark.parametrize(
    ("method", "option"), [(name, option) for name, m in METHODS.items() for option in m.options()]
)
@pytest.mark.filterwarnings("ignore::lens_attr.errors.Notice")
def test_nonsense_is_taken_or_refused_before_the_first_forward(method: str, option: str) -> None:
    """Never a raw traceback, never a complaint about the weights."""
    model, ids, forwards = small.model(small.GPT2[0]), tiny.token_ids("gpt2"), []
    few = {name: n for name, n in FEW.items() if name in METHODS[method].options()}
    with small.untyped(), ExitStack() as stack:
        first = resolve(model).points("residual")[0]
        first.on_forward(lambda stream: forwards.append(len(stream)), stack)
        for value in NONSENSE:
            forwards.clear()
            said = refusal(model, ids, la.Logit(12), method, **few | {option: value})
            if said is not None:
                assert not forwards, f"{value!r}: {said}"
                assert re.search(CALLED.get(option, option), said), f"{value!r}: {said}"


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("gradient_shap", {"baselines": torch.zeros(2, 32)}, r"baselines must be a list.*list\(tensor"),
    ("gradient_shap", {"baselines": 3}, "baselines must be a list.*got int"),
    ("gradient_shap", {"baselines": {"w5"}}, "baselines must be a list.*got set"),
    ("gradient_shap", {"noise": None}, "noise must be a number from 0 to 1e.18, got None"),
    ("gradient_shap", {"noise": "x"}, "noise must be a number from 0 to 1e.18, got 'x'"),
    ("gradient_shap", {"seed": 2**70}, f"seed must be at most {2**63 - 1}"),
    ("gradient_shap", {"baseline": 3.5}, "a baseline must be None, 'zero', 'pad', a token.*float"),
    ("ig_clipped", {"theta_plus": "x"}, "theta_plus must be a number.*or infinite, got 'x'"),
    ("ig_clipped", {"theta_plus": None}, "theta_plus must be a number.*got None"),
    ("integrated_gradients", {"quadrature": None}, "unknown quadrature None; known: gauss"),
    ("integrated_gradients", {"steps": 3000}, 'at most 2000 for Gauss-Legendre.*"midpoint"'),
    ("integrated_gradients", {"baseline": torch.full((32,), math.nan)}, "must hold finite real"),
    ("lrp", {"baseline": torch.full((32,), math.inf)}, "must hold finite real"),
    ("lrp", {"norm": math.nan}, "norm must be a number from -1e.18 to 1e.18, got nan"),
    ("lrp", {"layers": ""}, "layers must be several block numbers, got ''"),
    ("lrp", {"record": 3}, r"record must be a list of roles.*got 3"),
    ("occlusion", {"baseline": "remove", "embeddings": "full"}, "takes tokens out of the text"),
]


@pytest.mark.parametrize(("method", "options", "message"), REFUSED)
def test_the_message_names_the_option_and_what_it_takes(
    method: str, options: dict[str, Any], message: str
) -> None:
    with small.untyped(), pytest.raises(la.InputError, match=message):
        la.attribute(
            small.model(small.GPT2[0]), tiny.token_ids("gpt2"), la.Logit(12), method, **options
        )


def test_rules_refuse_bounds_that_are_no_numbers() -> None:
    with small.untyped(), pytest.raises(la.InputError, match=r"high must be a number.*got None"):
        la.rules.ClampGradient(high=None)  # type: ignore[arg-type]
    with pytest.raises(la.InputError, match="low must not exceed high"):
        la.rules.ClampGradient(low=1.0, high=0.0)


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("attnlrp", {"batch_size": 1}),
        ("gim", {"temperature": 3.0}),
        ("integrated_gradients", {"steps": 3, "batch_size": 1}),
        ("gradient_shap", {"n_samples": 3, "seed": 1, "noise": 0.5}),
        ("occlusion", {"window": 1, "max_batch_tokens": 40}),
        ("aieg", {"steps": 3}),
    ],
)
@pytest.mark.filterwarnings("ignore::lens_attr.errors.Notice")
def test_numbers_of_numpy_are_numbers(method: str, options: dict[str, Any], tmp_path: Path) -> None:
    """They come out of every computed sweep; what is saved is plain."""
    model, ids = small.model(small.GPT2[0]), tiny.token_ids("gpt2")
    computed = {name: np.array(value)[()] for name, value in options.items()}
    assert not any(type(value) in (int, float) for value in computed.values())
    plain = la.attribute(model, ids, la.Logit(12), method, **options)
    with small.untyped():
        result = la.attribute(model, ids, la.Logit(12), method, **computed)
    assert torch.equal(result.tokens, plain.tokens)
    result.save(tmp_path)
    assert la.Relevance.load(tmp_path).metadata == plain.metadata


@pytest.mark.parametrize("size", [True, 0, 1.5, "2", np.float64(2)])
def test_a_batch_size_is_a_whole_number(size: Any) -> None:
    wanted = "batch_size must be a whole number of at least 1"
    with small.untyped(), pytest.raises(la.InputError, match=wanted):
        la.attribute(small.model(small.GPT2[0]), "w5 w9", la.Logit(12), batch_size=size)


@pytest.mark.parametrize("occurrence", ["x", None, 1.5, True])
def test_an_occurrence_is_a_whole_number(occurrence: Any) -> None:
    with small.untyped(), pytest.raises(la.InputError, match="occurrence must be a whole number"):
        find(spell([" a", " b"]), "b", occurrence=occurrence)


# ------------------------------------------------------------------------------------------ names


@pytest.mark.parametrize("method", ["attnlrp", "integrated_gradients", "aieg", "occlusion"])
@pytest.mark.filterwarnings("ignore::lens_attr.errors.Notice")
def test_zero_is_a_baseline_by_name(method: str) -> None:
    model, ids = small.model(small.GPT2[0]), tiny.token_ids("gpt2")
    zero = la.attribute(model, ids, la.Logit(12), method, baseline="zero")
    assert torch.equal(zero.tokens, la.attribute(model, ids, la.Logit(12), method).tokens)
    other = la.attribute(model, ids, la.Logit(12), method, baseline=9)
    assert not torch.allclose(zero.tokens, other.tokens, atol=1e-3)


def test_one_place_to_record_may_be_given_by_name() -> None:
    model, ids = small.model(small.GPT2[0]), tiny.token_ids("gpt2")
    result = la.attribute(model, ids, la.Logit(12), record="pattern")  # type: ignore[arg-type]
    assert result.metadata["record"] == ["pattern"] and list(result.records) == ["pattern"]


# ------------------------------------------------------------------------- options of one of many


@pytest.mark.filterwarnings("ignore::lens_attr.errors.Notice")
def test_compare_takes_options_of_single_methods() -> None:
    model, ids = small.model(small.GPT2[0]), tiny.token_ids("gpt2")
    names = ["integrated_gradients", "gim", "attention_only"]
    options = {"integrated_gradients": {"steps": 3, "baseline": 9}, "gim": {"temperature": 3.0}}
    compared = la.compare(model, ids, la.Logit(12), names, options=options, batch_size=1)
    for name in names:
        alone = la.attribute(model, ids, la.Logit(12), name, **options.get(name, {}))
        assert torch.equal(compared[name].tokens, alone.tokens)
    assert compared["integrated_gradients"].metadata["steps"] == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gin": {}}, "options of 'gin', not compared; did you mean 'gim'"),
        ({"lrp": {"z": 1.0}}, "options of 'lrp', not compared"),
        ({"gim": 3}, "the options of gim must be a mapping, got 3"),
        (["gim"], "options go by method"),
        ({"gim": {"tempo": 3}}, "no switch 'tempo'"),
    ],
)
def test_options_of_no_method_are_refused(options: Any, message: str) -> None:
    with small.untyped(), pytest.raises(la.InputError, match=message):
        la.compare(
            small.model(small.GPT2[0]), tiny.token_ids("gpt2"), methods=["gim"], options=options
        )


@pytest.mark.parametrize("name", [small.GPT2[-1], small.MASKED[-1]])
def test_compare_all_leaves_out_what_is_not_defined_and_says_why(name: str) -> None:
    model, ids = small.model(name), tiny.token_ids(name.split("-")[0])
    options = {m.name: {k: n for k, n in FEW.items() if k in m.options()} for m in la.methods()}
    with pytest.warns(la.Notice) as caught:
        compared = la.compare(model, ids, la.Logit(12), "all", options=options)
    left_out = [m for m in METHODS if m not in compared.results]
    assert left_out == ([] if name in small.GPT2 else ["gim", "alti_logit", "deeplift"])
    notices = [str(notice.message) for notice in caught]
    for method in left_out:
        (said,) = [one for one in notices if one.startswith(f"{method} is left out: ")]
        assert len(said) > len(f"{method} is left out: ") + 20
