"""Something goes wrong at every single hook firing of a call: the model is as before each time.

Everything lens_attr does inside a model's forward and backward it does in hooks. The firings of an
undisturbed call are counted first; then as many calls fail, one at each.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import small
import tiny
import torch
from transformers import PreTrainedModel

import lens_attr as la
from lens_attr.attribution.recording import Probe
from lens_attr.graph import points
from lens_attr.graph.segments import Segments
from lens_attr.rules.session import PointHook

PRESETS = ["gradient_x_input", "lrp", "attnlrp", "gim", "relp"]
MODELS = [(f, b) for f in ("gpt2", "llama", "bert") for b in tiny.BACKENDS]
NO_GIM = ("bert", "bridge")
"""Its pattern is outside the autograd graph."""

CASES = [
    (*model, preset) for model in MODELS for preset in PRESETS if (model, preset) != (NO_GIM, "gim")
]


class Fault(Exception):
    """What is raised."""


def first_block_only(model: PreTrainedModel) -> None:
    """One block has every kind of hook point and half the firings."""
    inner: Any = getattr(model, "transformer", None) or getattr(model, "model", None)
    inner = inner or model.bert.encoder  # type: ignore[union-attr]
    name = "h" if hasattr(inner, "h") else "layers" if hasattr(inner, "layers") else "layer"
    setattr(inner, name, getattr(inner, name)[:1])
    model.config.num_hidden_layers = 1


ENTRANCES = [
    (points._LensAdapter, "__call__"),
    (points._ModuleAdapter, "__call__"),
    (PointHook, "__call__"),
    (PointHook, "cut"),
    (Probe, "read_gradient"),
    (Segments, "_enter"),
    (Segments, "_leave"),
    (Segments, "gradient"),
]
"""Where a forward or a backward enters our code: hooks, and the nodes of the lowered form."""


@contextmanager
def failing_at(firing: int, error: type[BaseException]) -> Iterator[list[str]]:
    """Raise at the n-th firing of our hooks, in the forward or the backward; yields them all."""
    fired: list[str] = []
    originals = [getattr(owner, method) for owner, method in ENTRANCES]

    def watched(original: Any) -> Any:
        def call(self: Any, *args: Any, **options: Any) -> Any:
            place = self.point.name if hasattr(self, "point") else original.__qualname__
            fired.append(f"{place} {getattr(self, 'direction', 'bwd')}")
            if len(fired) == firing:
                raise error
            return original(self, *args, **options)

        return call

    for (owner, method), original in zip(ENTRANCES, originals, strict=True):
        setattr(owner, method, watched(original))
    try:
        yield fired
    finally:
        for (owner, method), original in zip(ENTRANCES, originals, strict=True):
            setattr(owner, method, original)


def around(model: Any) -> list[Any]:
    """What `small.world` looks at, without its forward: quick enough for every single firing."""
    inner = getattr(model, "original_model", model)
    everyone = [*model.modules(), *inner.modules(), *model.hook_dict.values()]
    modules = list({id(module): module for module in everyone}.values())
    return [
        [tuple(getattr(m, table).items()) for m in modules for table in small.HOOK_TABLES],
        [(list(h.fwd_hooks), list(h.bwd_hooks)) for h in model.hook_dict.values()],
        [(p.requires_grad, p.grad is None) for p in inner.parameters()],
        [module.training for module in modules],
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
    ]


OPTIONS: dict[str, dict[str, Any]] = {
    "lowered": {},
    "backward hooks": {"record": ["residual"]},
    "checkpoint": {"checkpoint": True},
}
WAYS = [
    (case, way)
    for case in CASES
    for way in OPTIONS
    if way != "checkpoint" or case[2] == "attnlrp"  # its hooks do not depend on the preset
]


@pytest.mark.parametrize(("case", "way"), WAYS, ids=tiny.case_id)
def test_a_fault_at_any_firing_leaves_no_trace(case: tuple[str, str, str], way: str) -> None:
    family, backend, preset = case
    options = OPTIONS[way]
    model = tiny.fresh(family, backend, edit=first_block_only)
    text = small.text(family, "w5 w9 w12")

    def call() -> la.Relevance:
        return la.attribute(model, text, la.LogitDiff(" w6", " w8"), preset, **options)

    with small.untyped():
        call()  # the Bridge adds permanent hooks of its own at first use
        before, world = around(model), small.world(model)
        with failing_at(0, Fault) as firings:
            expected = call()
        directions = {firing.rpartition(" ")[2] for firing in firings}
        assert len(firings) > 15 and directions == {"fwd", "bwd"}
        injected = 0
        for error in (Fault, KeyboardInterrupt):
            for firing in range(1, len(firings) + 1):
                with failing_at(firing, error) as fired, pytest.raises(error):
                    call()
                assert len(fired) == firing, "nothing of ours may run after the fault"
                assert around(model) == before
                injected += 1
        assert injected == 2 * len(firings)
        assert small.world(model) == world
        assert torch.equal(call().tokens, expected.tokens)


def test_the_test_would_notice_a_hook_that_stays() -> None:
    model = tiny.fresh("gpt2", tiny.BACKENDS[0], edit=first_block_only)
    before = around(model)
    model.blocks[0].attn.hook_z.add_hook(lambda tensor, hook: None)
    assert around(model) != before
