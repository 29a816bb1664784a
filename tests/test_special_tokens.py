"""Special tokens and attention sinks: how much they hold, and results without them."""

from __future__ import annotations

import io
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import small
import tiny
import torch
from rich.console import Console
from tiny import EXACT

import lens_attr as la
from lens_attr.graph import resolve


def explain(name: str, **options: Any) -> la.Relevance:
    texts = [small.text(name), small.text(name, "w8 w30")]
    with tiny.precision(EXACT):
        return la.attribute(small.model(name, EXACT), texts, la.Logit(" w6"), **options)


def by_hand(result: la.Relevance) -> torch.Tensor:
    """True where a string is special; padding is none."""
    special = [[s in ("<s>", "</s>", "[MASK]") for s in row] for row in result.str_tokens]
    return torch.tensor(special) & result.attention_mask


@pytest.mark.parametrize("name", small.EVERY)
def test_the_mass_they_hold(name: str) -> None:
    result = explain(name)
    assert torch.equal(result.special, by_hand(result)) and result.special.any()
    size = result.tokens.abs()
    want = (size * by_hand(result)).sum(dim=1) / size.sum(dim=1)
    assert tiny.error(result.special_mass, want) < 1e-12
    assert want.min() > 0 and want.max() < 1


@pytest.mark.parametrize("name", small.EVERY)
def test_ignored_and_separate(name: str) -> None:
    result = explain(name)
    kept, ignored, apart = (
        result.with_special_tokens(policy) for policy in ("keep", "ignore", "separate")
    )
    assert torch.equal(kept.tokens, result.tokens)
    for without in (ignored, apart):
        assert not without.tokens[by_hand(result)].any()
        assert torch.equal(without.tokens[~by_hand(result)], result.tokens[~by_hand(result)])
        assert torch.equal(without.special_mass, result.special_mass)
        assert torch.equal(without.head_tokens, result.head_tokens)
    assert torch.equal(apart.tokens + apart.extra["special_tokens"], result.tokens)
    assert "special_tokens" not in ignored.extra
    with pytest.raises(la.InputError, match="set aside already"):
        ignored.with_special_tokens("separate")


@pytest.mark.parametrize("name", small.EVERY)
@pytest.mark.parametrize("method", ["lrp", "gradient_shap", "aieg"])
def test_the_parts_of_one_example_have_its_tokens(name: str, method: str, tmp_path: Path) -> None:
    """The second text is shorter, so that it is padded in the batch."""
    if method == "aieg" and name not in small.CAUSAL:
        pytest.skip("not every masked model shows its pattern")
    result = explain(name, method=method).with_special_tokens("separate")
    again = la.Relevance.load(result.save(tmp_path))
    for one in (result[1], again[1]):
        real = result.attention_mask[1]
        assert real.sum() < len(real) and "special_tokens" in result.per_token
        for part in result.per_token:
            assert torch.equal(one.extra[part], result.extra[part][1:, real])
        before = explain(name, method=method)[1].tokens
        assert torch.equal(one.tokens + one.extra["special_tokens"], before)
    by_shape = {n for n, v in result.extra.items() if v.shape == result.tokens.shape}
    assert set(result.per_token) == by_shape, "every part with one value per token is declared"


def test_nothing_special_without_a_tokenizer_that_says_so() -> None:
    ids = tiny.token_ids("gpt2", rows=2)
    result = la.attribute(small.model(small.GPT2[0]), ids, la.Logit(12))
    assert not result.special.any() and result.special_mass.tolist() == [0, 0]
    assert torch.equal(result.with_special_tokens("ignore").tokens, result.tokens)


@pytest.mark.parametrize("name", small.GPT2)
def test_results_show_the_mass_and_keep_it(name: str, tmp_path: Path) -> None:
    result = explain(name)
    for shown, fate in ((result, "\n"), (result.with_special_tokens("ignore"), "(left out)")):
        shown.save(tmp_path)
        again = la.Relevance.load(tmp_path)
        assert torch.equal(again.special_mass, result.special_mass)
        console = Console(width=200, record=True, file=io.StringIO())
        console.print(again)
        percent = f"{float(result.special_mass.mean()):.0%}"
        most = f"{float(result.special_mass.max()):.0%}"
        note = f"{percent} of the absolute relevance, mean of 2 examples (at most {most})"
        text = console.export_text()
        assert note in text and fate in text
        torch.testing.assert_close(again[1].special_mass, result.special_mass[1:])


def test_tokens_by_name_and_by_mask() -> None:
    result = explain(small.GPT2[0])
    named = result.with_special_tokens("ignore", also="w9")
    assert named.tokens[0, result.str_tokens[0].index("w9")] == 0
    mask = torch.zeros_like(result.attention_mask)
    mask[:, -1] = True
    assert not result.with_special_tokens("ignore", also=mask).tokens[:, -1].any()
    assert float(result.with_special_tokens("keep", also=mask).special_mass[0]) > float(
        result.special_mass[0]
    )


def test_every_method_of_a_comparison() -> None:
    model = small.model(small.GPT2[0])
    compared = la.compare(model, "w5 w9 w12", la.Logit(" w6"), ["lrp", "gim"])
    for result in compared.with_special_tokens("separate").results.values():
        assert not result.tokens[result.special].any()


# ------------------------------------------------------------------------------------------- sinks


def sinks_by_hand(name: str, result: la.Relevance, threshold: float) -> torch.Tensor:
    """Loops over heads, tokens and the positions that see them."""
    shares = torch.zeros(result.tokens.shape)
    for example, real in enumerate(result.attention_mask):
        positions = real.nonzero().flatten().tolist()
        weights = result.records["pattern"][example]
        for key in positions:
            readers = [i for i in positions if i >= key or name.startswith("bert")]
            received = weights[:, :, readers, key].mean(dim=-1)
            shares[example, key] = (received > threshold).float().mean()
    return shares


@pytest.mark.parametrize("name", small.EVERY)
def test_sinks_equal_their_definition(name: str) -> None:
    model = small.model(name)
    ids = tiny.token_ids(name.split("-")[0], rows=2)
    mask = torch.ones_like(ids)
    padding = slice(-2, None) if name.startswith("bert") else slice(0, 2)
    mask[1, padding] = 0
    patterns: list[torch.Tensor] = []
    graph = resolve(model)
    with ExitStack() as stack, torch.no_grad():
        for point in graph.points("pattern"):
            point.on_forward(lambda p: patterns.append(p.detach()), stack)
        graph.forward(ids, mask.bool())
    empty = la.attribute(model, ids, la.Logit(12), attention_mask=mask)
    seen = replace(empty, records={"pattern": torch.stack(patterns, dim=1)})
    for threshold in (0.1, 0.3):
        found = la.attention_sinks(model, ids, threshold, attention_mask=mask)
        assert torch.equal(found, sinks_by_hand(name, seen, threshold))
    assert la.attention_sinks(model, ids, 0.0, attention_mask=mask).bool().equal(mask.bool())


def test_a_trained_model_and_its_sinks_set_apart() -> None:
    model, text = la.load("demo-gpt2"), "the keys to the cabinet"
    result = la.attribute(model, text, la.LogitDiff(" are", " is"))
    sinks = la.attention_sinks(model, text) > 0.5
    apart = result.with_special_tokens("separate", also=sinks)
    assert not apart.tokens[sinks].any()
    total = apart.tokens.sum() + apart.extra["special_tokens"].sum()
    assert float(total) == pytest.approx(float(result.tokens.sum()), rel=1e-5)


@pytest.mark.parametrize(
    ("policy", "also", "message"),
    [
        ("drop", None, "unknown policy for special tokens 'drop'"),
        ("ignore", "w50", "no token is 'w50'"),
        ("ignore", torch.ones(2, 2), r"boolean mask \[2, 5\]"),
    ],
)
def test_bad_policies(policy: Any, also: Any, message: str) -> None:
    result = explain(small.GPT2[0])
    with small.untyped(), pytest.raises(la.InputError, match=message):
        result.with_special_tokens(policy, also)


@pytest.mark.parametrize("threshold", [-0.1, 1.5, "much", True])
def test_bad_thresholds(threshold: Any) -> None:
    with small.untyped(), pytest.raises(la.InputError, match="threshold must be a number"):
        la.attention_sinks(small.model(small.GPT2[0]), "w5 w6", threshold)
