"""What a GPU would see: rules that never wait for it, and few kernels to start.

Counted in the operations that torch dispatches, so it needs no GPU and is the same everywhere.
"""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack
from typing import Any

import pytest
import small
import tiny
import torch
from test_rules import supported
from torch import Tensor

import lens_attr as la
from lens_attr.attribution.embeddings import InputEmbeddings
from lens_attr.attribution.gradients import _cut, want
from lens_attr.attribution.recording import Recorder
from lens_attr.graph import resolve
from lens_attr.rules import PRESETS, RuleSet
from lens_attr.rules.session import Session

WAITS = {
    "_local_scalar_dense",  # .item(), bool(tensor), float(tensor), tensor.tolist()
    "nonzero",
    "equal",
    "is_nonzero",
    "masked_select",
    "unique_consecutive",
    "_unique2",
}
"""Operations whose answer the program must have before it goes on."""

INDEXED = {"index", "index_put", "index_put_", "_index_put_impl_"}
"""Waits too, if a tensor of booleans says where: the places are counted first."""


class Dispatched(torch.utils._python_dispatch.TorchDispatchMode):
    """Counts operations, and those that would make the program wait for the device."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels: Counter[str] = Counter()
        self.waits: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        moves = name == "_to_copy" and (kwargs or {}).get("device") is not None
        masked = name in INDEXED and any(_is_mask(one) for one in args[1])
        if name in WAITS or moves or masked:
            self.waits[name] += 1
        if not func.is_view:
            self.kernels[name] += 1
        return func(*args, **(kwargs or {}))


def _is_mask(index: Any) -> bool:
    return isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8)


def run(
    case: tuple[str, str], rules: RuleSet, *, lowered: bool, record: bool, checkpoint: bool = False
) -> tuple[Dispatched, Dispatched]:
    """What the forward and the backward of a call dispatch."""
    model, ids = tiny.model(*case), tiny.token_ids(case[0], rows=2)
    graph, inputs = resolve(model), InputEmbeddings()
    recorder = Recorder(torch.ones_like(ids, dtype=torch.bool), lowered=lowered)
    if record:
        want(graph, recorder, [])
    forward, backward = Dispatched(), Dispatched()
    session = Session(graph, rules, strict=True, lowered=lowered)
    with small.untyped(), ExitStack() as stack:
        inputs.attach(graph, stack)
        for context in (session, recorder) if lowered else (recorder, session):
            stack.enter_context(context)
        segments = _cut(graph, session, recorder, stack) if checkpoint else None
        with forward:
            logits = graph.logits_at(ids, None, torch.tensor([3, 3]))
        value = (logits[:, 12] - logits[:, 13]).sum()
        with backward:
            if segments is None:
                torch.autograd.grad(value, inputs.leaf)
            else:
                segments.gradient(value, inputs.leaf)
    return forward, backward


CASES = [
    (family, backend, preset)
    for family, backend in tiny.on_backends(["gpt2", "llama", "gemma2", "bert"])
    for preset in PRESETS
    if supported(family, backend, preset)
]


@pytest.mark.parametrize("lowered", [True, False], ids=["lowered", "backward hooks"])
@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_no_hook_waits_for_the_device(case: tuple[str, str, str], lowered: bool) -> None:
    *model, preset = case
    forward, backward = run(tuple(model), PRESETS[preset](), lowered=lowered, record=True)
    assert not backward.waits
    bare, _ = run(tuple(model), la.rules.gradient(), lowered=lowered, record=False)
    assert forward.waits == bare.waits, "only what the model itself waits for"


def test_that_a_hook_which_waits_would_be_found() -> None:
    @la.rules.custom(at="z")
    def halve_if_large(grad: Tensor) -> Tensor:
        return grad / 2 if grad.abs().max() > 1 else grad

    for lowered in (True, False):
        rules = la.rules.gradient() + halve_if_large
        _, backward = run(("gpt2", tiny.BACKENDS[0]), rules, lowered=lowered, record=False)
        assert backward.waits["_local_scalar_dense"] == 2


def test_that_a_hook_which_indexes_by_a_mask_would_be_found() -> None:
    @la.rules.custom(at="z")
    def positive(grad: Tensor) -> Tensor:
        kept = grad.clone()
        kept[grad < 0] = 0
        return kept + 0 * grad[grad > 0].sum()

    rules = la.rules.gradient() + positive
    _, backward = run(("gpt2", tiny.BACKENDS[0]), rules, lowered=True, record=False)
    assert backward.waits == {"index": 2, "index_put_": 2}


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_checkpointing_waits_for_the_device_once(case: tuple[str, str, str]) -> None:
    """However many blocks there are, and beside what the model itself waits for."""
    *model, preset = case
    rules = PRESETS[preset]()
    forward, backward = run(tuple(model), rules, lowered=True, record=True, checkpoint=True)
    bare, _ = run(tuple(model), la.rules.gradient(), lowered=False, record=False)
    assert forward.waits == bare.waits
    assert backward.waits - bare.waits <= Counter(_local_scalar_dense=1)
    assert backward.waits["_local_scalar_dense"] >= 1, "it does look"


FUSED_NORM = ("bert", "bridge")
"""Its true norm is one fused kernel; to freeze it, it must be taken apart."""


@pytest.mark.parametrize("case", [c for c in CASES if c[:2] != FUSED_NORM], ids="-".join)
def test_no_preset_starts_more_kernels_than_the_gradient(case: tuple[str, str, str]) -> None:
    *model, preset = case
    _, mine = run(tuple(model), PRESETS[preset](), lowered=True, record=False)
    _, true = run(tuple(model), la.rules.gradient(), lowered=True, record=False)
    assert mine.kernels.total() <= true.kernels.total()
