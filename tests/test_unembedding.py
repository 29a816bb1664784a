"""The end of a HookedTransformer's forward: the same logits without a copy of the unembedding."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch
from tiny import EXACT, error, explain
from torch import Tensor

from lens_attr.graph import resolve, unembedding
from lens_attr.graph.unembedding import unembeds_by_copy

HOOKED = [case for case in tiny.on_backends(tiny.FAMILIES) if case[1] == "hooked"]
if not HOOKED:
    pytest.skip("transformer-lens 4 has no HookedTransformer", allow_module_level=True)


@pytest.mark.parametrize("family", [family for family, _ in HOOKED if family != "bert"])
def test_the_logits_are_the_models_own(family: str) -> None:
    model, ids = tiny.model(family, "hooked", EXACT), tiny.token_ids(family, rows=2)
    assert unembeds_by_copy(model)
    own = model(ids)
    assert error(resolve(model).forward(ids, None), own) <= 1e-14
    last = torch.tensor([6, 2])
    assert error(resolve(model).logits_at(ids, None, last), own[[0, 1], last]) <= 1e-14


class Copies(torch.utils._python_dispatch.TorchDispatchMode):
    """Counts how often all of a matrix is copied."""

    def __init__(self, matrix: Tensor) -> None:
        super().__init__()
        self.matrix = matrix
        self.times = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket.__name__ == "clone":
            same_size = args[0].numel() == self.matrix.numel()
            self.times += same_size and args[0].data_ptr() == self.matrix.data_ptr()
        return func(*args, **(kwargs or {}))


def test_no_call_copies_the_unembedding() -> None:
    model, ids = tiny.model("gpt2", "hooked"), tiny.token_ids("gpt2")
    with Copies(model.W_U) as own:
        model(ids)
    with Copies(model.W_U) as ours:
        explain(model, "attnlrp", ids)
        explain(model, "occlusion", ids)
    assert (own.times, ours.times) == (1, 0)


@pytest.mark.parametrize("part", ["model", "unembed"])
def test_your_own_hook_on_what_is_left_out_still_acts(part: str) -> None:
    """Then the model's own forward runs, and the hook may change the logits."""
    model, ids = tiny.fresh("gpt2", "hooked"), tiny.token_ids("gpt2")
    plain = explain(model, "attnlrp", ids)
    hooked = {"model": model, "unembed": model.unembed}[part]
    hooked.register_forward_hook(lambda module, args, logits: 2 * logits)
    assert not unembeds_by_copy(model)
    assert error(explain(model, "attnlrp", ids).tokens, 2 * plain.tokens) <= 1e-6


def test_hook_points_of_the_unembedding_fire_and_may_change_it() -> None:
    model, ids = tiny.fresh("gpt2", "hooked"), tiny.token_ids("gpt2")
    plain = explain(model, "attnlrp", ids)
    seen: list[Tensor] = []

    def doubled(logits: Tensor, hook: Any) -> Tensor:
        seen.append(logits)
        return 2 * logits

    with model.hooks(fwd_hooks=[("unembed.hook_out", doubled)]):
        found = explain(model, "attnlrp", ids)
    assert len(seen) == 1
    assert error(found.tokens, 2 * plain.tokens) <= 1e-6


def test_where_a_view_would_be_multiplied_wrongly_the_copy_is_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert "mps" in unembedding.WRONG_VIEWS
    monkeypatch.setattr(unembedding, "WRONG_VIEWS", ("cpu",))
    model = tiny.model("gpt2", "hooked")
    with Copies(model.W_U) as run:
        resolve(model).forward(tiny.token_ids("gpt2"), None)
    assert run.times == 1


def test_a_model_with_a_forward_of_its_own_runs_it() -> None:
    subclass, patched = tiny.fresh("gpt2", "hooked"), tiny.fresh("gpt2", "hooked")
    subclass.__class__ = type("Subclass", (type(subclass),), {})
    patched.unembed.forward = patched.unembed.forward
    assert not unembeds_by_copy(subclass) and not unembeds_by_copy(patched)
