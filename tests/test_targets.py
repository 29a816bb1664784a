"""What is explained: every target equals what you would read off the model's logits by hand."""

from __future__ import annotations

import warnings
from contextlib import ExitStack
from functools import cache
from typing import Any

import pytest
import small
import tiny
import torch
from torch import Tensor

import lens_attr as la
from lens_attr.errors import Notice
from lens_attr.graph import resolve

TEXTS = ["w5 w9 w12 w7", "w30 w31", "w8 w7 w6 w5 w11"]
A, B = 6, 8

every_model = pytest.mark.parametrize("name", small.EVERY)
causal_models = pytest.mark.parametrize("name", small.CAUSAL)
masked_models = pytest.mark.parametrize("name", small.MASKED)


def prompts(name: str) -> list[str]:
    return [small.text(name, words) for words in TEXTS]


def logits_of(name: str, text: str) -> Tensor:
    """All logits [pos, d_vocab] of one text, from the model itself."""
    ids = la.attribute(small.model(name), text, la.Logit(A, position=0)).token_ids
    with torch.no_grad():
        return small.model(name)(ids)[0]


@cache
def explained_logits(name: str) -> Tensor:
    """Logits [example, d_vocab] where each text is explained by default, on its own."""
    if not name.startswith("bert"):
        return torch.stack([logits_of(name, text)[-1] for text in TEXTS])
    # The mask is every text's second word, after [CLS].
    return torch.stack([logits_of(name, text)[2] for text in prompts(name)])


TARGETS = {
    "Logit": (lambda a, b: la.Logit(a), lambda x: x[:, A]),
    "LogProb": (lambda a, b: la.LogProb(a), lambda x: x.log_softmax(-1)[:, A]),
    "LogitDiff": (lambda a, b: la.LogitDiff(a, b), lambda x: x[:, A] - x[:, B]),
    "TopLogit": (lambda a, b: la.TopLogit(), lambda x: x.max(-1).values),
}
every_target = pytest.mark.parametrize(("make", "by_hand"), TARGETS.values(), ids=list(TARGETS))


# ------------------------------------------------------------------------- values by hand


@every_model
@every_target
def test_value_by_hand(name: str, make: Any, by_hand: Any) -> None:
    target = make(f" w{A}", f" w{B}")
    found = la.attribute(small.model(name), prompts(name), target)
    torch.testing.assert_close(found.target_value, by_hand(explained_logits(name)))
    assert found.unit == ("nat" if isinstance(target, la.LogProb) else "logit")


SPECS = {
    "string": (f" w{A}", f" w{B}"),
    "id": (A, B),
    "strings": ([f" w{A}"] * 3, [f" w{B}"] * 3),
    "ids": ([A] * 3, [B] * 3),
    "mixed": (f" w{A}", B),
    "tensor": (torch.full((3,), A), torch.full((3,), B)),
}


@pytest.mark.parametrize("name", small.GPT2 + small.MASKED)
@pytest.mark.parametrize(("token", "foil"), SPECS.values(), ids=list(SPECS))
def test_a_token_is_a_string_or_an_id_for_all_or_for_each(name: str, token: Any, foil: Any) -> None:
    x = explained_logits(name)
    found = la.attribute(small.model(name), prompts(name), la.LogitDiff(token, foil))
    torch.testing.assert_close(found.target_value, x[:, A] - x[:, B])


@every_model
def test_one_token_per_example(name: str) -> None:
    x = explained_logits(name)
    found = la.attribute(
        small.model(name), prompts(name), la.LogitDiff([6, 7, 8], [" w20", " w21", " w22"])
    )
    by_hand = x[range(3), [6, 7, 8]] - x[range(3), [20, 21, 22]]
    torch.testing.assert_close(found.target_value, by_hand)
    assert found.target == [
        "logit of 'w6' - logit of 'w20'",
        "logit of 'w7' - logit of 'w21'",
        "logit of 'w8' - logit of 'w22'",
    ]


@causal_models
def test_metric_by_hand(name: str) -> None:
    """A function of all logits; padding is on the left, so -1 is every example's last token."""

    def entropy(logits: Tensor) -> Tensor:
        log_p = logits[:, -1].log_softmax(-1)
        return -(log_p.exp() * log_p).sum(-1)

    log_p = explained_logits(name).log_softmax(-1)
    found = la.attribute(small.model(name), TEXTS, la.Metric(entropy, name="entropy", unit="nat"))
    torch.testing.assert_close(found.target_value, -(log_p.exp() * log_p).sum(-1))
    assert found.target == ["entropy"] * 3
    assert found.unit == "nat"


@every_model
def test_a_metric_equals_the_target_it_spells_out(name: str) -> None:
    text = prompts(name)[0]
    expected = la.attribute(small.model(name), text, la.LogitDiff(A, B))
    position = int(expected.position[0])
    metric = la.Metric(lambda logits: logits[:, position, A] - logits[:, position, B])
    found = la.attribute(small.model(name), text, metric)
    torch.testing.assert_close(found.tokens, expected.tokens, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.target_value, expected.target_value)


@every_model
def test_the_top_logit_is_the_default_and_names_its_token(name: str) -> None:
    found = la.attribute(small.model(name), prompts(name))
    top = explained_logits(name).argmax(-1).tolist()
    token = small.model(name).tokenizer.decode
    assert found.target == [f"logit of {token([i])!r} (the top logit)" for i in top]
    by_id = la.attribute(small.model(name), prompts(name), la.Logit(top))
    assert torch.equal(found.tokens, by_id.tokens)


# ------------------------------------------------------------------------------ positions


@causal_models
@pytest.mark.parametrize("position", [0, 2, -1, -2])
def test_position_counts_real_tokens(name: str, position: int) -> None:
    by_hand = torch.stack([logits_of(name, text)[position] for text in TEXTS])
    found = la.attribute(small.model(name), TEXTS, la.LogitDiff(A, B, position=position))
    torch.testing.assert_close(found.target_value, by_hand[:, A] - by_hand[:, B])


@causal_models
def test_one_position_per_example(name: str) -> None:
    where = [1, -1, 4]
    rows = [logits_of(name, text)[at] for text, at in zip(TEXTS, where, strict=True)]
    found = la.attribute(small.model(name), TEXTS, la.Logit(A, position=where))
    torch.testing.assert_close(found.target_value, torch.stack(rows)[:, A])


@every_model
@pytest.mark.parametrize("method", ["gradient_x_input", "attnlrp"])
def test_several_positions_of_one_text_equal_separate_calls(name: str, method: str) -> None:
    model, text, where = small.model(name), prompts(name)[0], [0, 3, -1, 1]
    options: dict[str, Any] = {"method": method, "embeddings": "token"}
    together = la.attribute(model, text, la.Logit(A, position=where), **options)
    assert len(together) == 4
    for row, position in zip(together, where, strict=True):
        # For a masked model, -1 alone means the mask.
        alone = [position % len(row.str_tokens[0])]
        single = la.attribute(model, text, la.Logit(A, position=alone), **options)
        assert torch.equal(row.position, single.position)
        torch.testing.assert_close(row.target_value, single.target_value)
        torch.testing.assert_close(row.tokens, single.tokens, rtol=1e-4, atol=1e-5)


@causal_models
def test_a_later_token_has_no_relevance(name: str) -> None:
    found = la.attribute(small.model(name), TEXTS[0], la.Logit(A, position=2))
    assert (found.tokens[0, 3:] == 0).all()
    assert found.tokens[0, :3].all()


@masked_models
def test_the_default_position_of_a_masked_model_is_the_mask(name: str) -> None:
    texts = ["w5 w9 [MASK] w12", "[MASK] w5"]
    found = la.attribute(small.model(name), texts, la.Logit(A))
    for example, position in enumerate(found.position.tolist()):
        assert found.str_tokens[example][position] == "[MASK]"


# -------------------------------------------------------------------------------- notices


@pytest.mark.parametrize("name", small.GPT2)
@pytest.mark.parametrize(
    "target", [la.LogitDiff(" w6 w7", " w8"), la.LogitDiff(" w6", " w8 w9 w10")]
)
def test_several_tokens_are_explained_at_the_first_with_a_notice(name: str, target: Any) -> None:
    with pytest.warns(Notice, match="explained at the first, 'w6' against 'w8'"):
        found = la.attribute(small.model(name), TEXTS[0], target)
    assert [notice for notice in found.metadata["notices"] if "'w6' against 'w8'" in notice]
    expected = la.attribute(small.model(name), TEXTS[0], la.LogitDiff(A, B))
    assert torch.equal(found.tokens, expected.tokens)


@pytest.mark.parametrize("name", small.GPT2)
def test_single_tokens_give_no_notice(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", Notice)
        found = la.attribute(small.model(name), TEXTS[0], la.LogitDiff(" w6", " w8"))
    assert found.metadata["notices"] == []


@cache
def demo(name: str) -> Any:
    return la.load(name)


def space_notices(name: str, text: str | list[str], target: Any) -> list[str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Notice)
        notices = la.attribute(demo(name), text, target).metadata["notices"]
    return [notice for notice in notices if "leading space" in notice]


@pytest.mark.parametrize("name", ["demo-gpt2", "demo-llama"])
@pytest.mark.parametrize("make", [la.Logit, la.LogProb, lambda word: la.LogitDiff(word, " is")])
@pytest.mark.parametrize("text", ["the keys near the cabinet", "the keys ,", ["the key", "a box"]])
def test_a_word_without_its_space_is_another_token_with_a_notice(
    name: str, make: Any, text: Any
) -> None:
    (notice,) = space_notices(name, text, make("are"))
    assert notice.startswith("'are': without a leading space")
    assert notice.endswith("the word here is ' are'")
    assert space_notices(name, text, make(" are")) == []


def test_target_and_foil_without_their_spaces_are_one_notice() -> None:
    (notice,) = space_notices("demo-gpt2", "the keys", la.LogitDiff("are", "is"))
    assert notice.startswith("'are', 'is': ") and notice.endswith("' are', ' is'")


@pytest.mark.parametrize(
    ("name", "text", "target"),
    [
        ("demo-gpt2", "the keys\n", la.Logit("are")),
        ("demo-gpt2", "the keys (", la.Logit("are")),
        ("demo-gpt2", "the keys", la.Logit("are", position=0)),  # what follows BOS
        ("demo-gpt2", "the keys", la.Logit(".")),
        ("demo-gpt2", "the keys", la.Logit(7)),
        ("demo-bert", "the keys [MASK] here .", la.Logit("are")),
    ],
)
def test_where_a_word_needs_no_space_there_is_no_notice(name: str, text: str, target: Any) -> None:
    assert space_notices(name, text, target) == []


# --------------------------------------------------------------------------- closed forms


@every_model
@every_target
def test_gradient_x_input_is_a_directional_derivative(name: str, make: Any, by_hand: Any) -> None:
    """Scaling a token's embedding by 1 + h changes the target by h times its relevance."""
    model, target, h = small.model(name, tiny.EXACT), make(A, B), 1e-5
    with tiny.precision(tiny.EXACT), torch.no_grad():
        found = la.attribute(
            model, prompts(name)[0], target, "gradient_x_input", embeddings="token"
        )
        n = found.tokens.shape[1]
        scales = 1 + h * torch.cat([torch.eye(n), -torch.eye(n)]).double()

        def scale_one_token_per_row(embedding: Tensor) -> Tensor:
            return embedding * scales[:, :, None]

        (embed,) = resolve(model).points("embed")
        with ExitStack() as stack:
            embed.on_forward(scale_one_token_per_row, stack)
            logits = model(found.token_ids.expand(2 * n, n))[:, found.position[0]]
        up, down = by_hand(logits).split(n)
    assert found.tokens.dtype == torch.float64
    torch.testing.assert_close(found.tokens[0], (up - down) / (2 * h), rtol=1e-6, atol=1e-8)


@every_model
def test_log_probabilities_of_all_tokens_cancel(name: str) -> None:
    """sum_v p(v) d log p(v) = 0, so their weighted relevance is zero."""
    model, texts = small.model(name, tiny.EXACT), prompts(name)[:1] * tiny.VOCAB
    every_token = la.LogProb(range(tiny.VOCAB))
    with tiny.precision(tiny.EXACT):
        found = la.attribute(model, texts, every_token, "gradient_x_input", embeddings="token")
    p = found.target_value.exp()
    assert float(p.sum()) == pytest.approx(1.0, abs=1e-9)
    assert (p @ found.tokens).abs().max() < 1e-9 * found.tokens.abs().max()


@every_model
def test_a_logit_difference_is_the_difference_of_logits(name: str) -> None:
    """Not only the value: with linear rules the relevance is linear in the target."""
    model, text = small.model(name, tiny.EXACT), prompts(name)[0]
    with tiny.precision(tiny.EXACT):
        both, one, other = (
            la.attribute(model, text, target, "attnlrp")
            for target in (la.LogitDiff(A, B), la.Logit(A), la.Logit(B))
        )
    torch.testing.assert_close(both.tokens, one.tokens - other.tokens, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(both.head_tokens, one.head_tokens - other.head_tokens)
