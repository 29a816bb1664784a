"""`checkpoint=True`: less memory, a second forward of every block, and the same bits."""

from __future__ import annotations

from contextlib import ExitStack
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import small
import tiny
import torch
from memory import Memory
from test_rules import supported
from tiny import explain
from torch import Tensor

import lens_attr as la
from lens_attr.graph import resolve
from lens_attr.rules import PRESETS
from lens_attr.rules.core import Placement, Rule, Tape

EVERY = tiny.on_backends(tiny.FAMILIES + tiny.DELEGATED)
METHODS = ("gradient_x_input", *(name for name in PRESETS if name != "gradient"))


def assert_same_bits(one: la.Relevance, other: la.Relevance) -> None:
    for name in ("tokens", "head_tokens", "heads_relu_dim", "target_value"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name
    for parts in ("flow", "records"):
        left, right = getattr(one, parts), getattr(other, parts)
        assert left.keys() == right.keys()
        assert all(torch.equal(left[key], right[key]) for key in left)
    assert one.metadata["fired"] == other.metadata["fired"]


@pytest.mark.parametrize("case", EVERY, ids=tiny.case_id)
def test_every_preset_gives_the_same_bits(case: tuple[str, str]) -> None:
    model, ids = tiny.model(*case), tiny.token_ids(case[0], rows=2)
    methods = [name for name in METHODS if case[0] in tiny.FAMILIES and supported(*case, name)]
    methods = methods or ["lrp", "attnlrp"]
    for method in methods:
        assert_same_bits(explain(model, method, ids, checkpoint=True), explain(model, method, ids))


@pytest.mark.parametrize("name", small.EVERY)
def test_what_is_recorded_has_the_same_bits(name: str) -> None:
    """With records the rules are backward hooks, which must stand in the second pass too."""
    model, text = small.model(name), [small.text(name), small.text(name, "w5 w9")]
    record = ["residual", "z", "neurons", "embed"]
    run = partial(la.attribute, model, text, la.LogitDiff(" w6", " w8"), "attnlrp", record=record)
    assert_same_bits(run(checkpoint=True), run())


@pytest.mark.parametrize("name", small.CAUSAL)
def test_any_target_of_the_logits_will_do(name: str) -> None:
    model, ids = small.model(name), tiny.token_ids(name.split("-")[0], rows=2)
    target = la.Metric(lambda logits: logits[:, -2:].logsumexp(dim=(1, 2)))
    run = partial(la.attribute, model, ids, target, "lrp")
    assert_same_bits(run(checkpoint=True), run())


@pytest.mark.parametrize("name", small.EVERY)
def test_nothing_is_left_on_the_model(name: str) -> None:
    model = small.fresh(name)
    run = partial(la.attribute, model, small.text(name), method="lrp", checkpoint=True)
    run()  # the Bridge adds permanent hooks of its own at first use
    before = small.world(model)
    run()
    with pytest.raises(RuntimeError, match="of the user"):
        _with_failing_hook(model, run)
    assert small.world(model) == before


def _with_failing_hook(model: Any, run: Any) -> None:
    def fail(tensor: Tensor) -> None:
        raise RuntimeError("of the user")

    with ExitStack() as stack:
        resolve(model).points("z")[1].on_forward(fail, stack)
        run()


# ------------------------------------------------------------------------------------- your hooks


def test_forward_hooks_of_yours_run_twice_and_backward_hooks_once() -> None:
    model, ids = tiny.fresh("gpt2", tiny.BACKENDS[0]), tiny.token_ids("gpt2")
    forward, backward = [], []
    hooks = {
        "fwd_hooks": [("blocks.0.hook_mlp_out", lambda out, hook: forward.append(1))],
        "bwd_hooks": [("blocks.0.hook_mlp_out", lambda grad, hook: backward.append(1))],
    }
    with model.hooks(**hooks):
        explain(model, "attnlrp", ids, checkpoint=True)
    assert (len(forward), len(backward)) == (2, 1)


@pytest.mark.parametrize("backend", tiny.BACKENDS)
def test_an_intervention_of_yours_acts_in_both_passes(backend: str) -> None:
    model, ids = tiny.fresh("gpt2", backend), tiny.token_ids("gpt2")

    def ablate(z: Tensor, hook: Any) -> Tensor:
        z = z.clone()
        z[:, :, 1] = 0
        return z

    untouched = explain(model, "attnlrp", ids)
    model.blocks[1].register_forward_pre_hook(lambda block, args: (args[0] * 2, *args[1:]))
    with model.hooks(fwd_hooks=[("blocks.0.attn.hook_z", ablate)]):
        plain, again = (explain(model, "attnlrp", ids, checkpoint=c) for c in (False, True))
    assert_same_bits(again, plain)
    assert not torch.equal(plain.tokens, untouched.tokens)


def test_a_hook_that_is_random_is_refused() -> None:
    model, ids = tiny.fresh("gpt2", tiny.BACKENDS[0]), tiny.token_ids("gpt2")
    noise = ("blocks.1.hook_mlp_out", lambda out, hook: out + torch.rand_like(out))
    with model.hooks(fwd_hooks=[noise]), pytest.raises(la.InputError, match="block 1 gave other"):
        explain(model, "lrp", ids, checkpoint=True)


# ------------------------------------------------------------------------------- rules that read


@dataclass(frozen=True, kw_only=True)
class Reading(Rule):
    """Scales the gradient at one point by what another point held."""

    at: str
    reads: str

    def place(self, graph: Any) -> list[Placement]:
        (point,), (source,) = graph.match(self.at), graph.match(self.reads)

        def transform(grad: Tensor, tape: Tape) -> Tensor:
            return grad * tape.value(source).abs().mean()

        return [Placement(point, transform, values=(source,))]


LOWER, UPPER = "blocks.0.hook_mlp_out", "blocks.1.hook_mlp_out"


def test_a_rule_may_read_what_lies_above_it() -> None:
    """Block 1 is done and its tensors are gone, but for those that block 0 still reads."""
    model, ids = tiny.model("gpt2", tiny.BACKENDS[0]), tiny.token_ids("gpt2")
    rules = la.rules.attnlrp() + Reading(at=LOWER, reads=UPPER)
    run = partial(explain, model, rules, ids)
    assert_same_bits(run(checkpoint=True), run())


@pytest.mark.parametrize("at", [UPPER, "ln_final.hook_scale"])
def test_a_rule_that_reads_what_lies_below_it_is_refused(at: str) -> None:
    model, ids = tiny.model("gpt2", tiny.BACKENDS[0]), tiny.token_ids("gpt2")
    rules = la.rules.gradient() + Reading(at=at, reads=LOWER)
    explain(model, rules, ids)
    with pytest.raises(la.InputError, match=f"reads {LOWER}.*checkpoint=False"):
        explain(model, rules, ids, checkpoint=True)


def test_checkpoint_is_yes_or_no() -> None:
    model, ids = tiny.model("gpt2", tiny.BACKENDS[0]), tiny.token_ids("gpt2")
    with small.untyped(), pytest.raises(la.InputError, match="checkpoint must be True or False"):
        explain(model, "lrp", ids, checkpoint=1)


# ----------------------------------------------------------------------------------------- memory


@pytest.fixture(scope="module")
def deep() -> Any:
    """Ten blocks, so that what one needs is little beside what all need."""
    return tiny.fresh("gpt2", tiny.BACKENDS[-1], edit=_ten_blocks)


def _ten_blocks(model: Any) -> None:
    model.config.n_layer = 10
    model.transformer.h.extend([deepcopy(model.transformer.h[0]) for _ in range(8)])


def peak(model: Any, length: int, method: str, **options: Any) -> int:
    ids = tiny.token_ids("gpt2", length=length)
    explain(model, method, ids, **options)  # the Bridge adds hooks of its own at first use
    with small.untyped(), Memory() as memory:
        explain(model, method, ids, **options)
    return memory.peak


@pytest.mark.parametrize("method", ["gradient_x_input", "lrp", "attnlrp", "gim", "relp"])
def test_memory_is_that_of_one_block(deep: Any, method: str) -> None:
    """One block of ten, and a stream for each."""
    whole, cut = (peak(deep, 60, method, checkpoint=c) for c in (False, True))
    assert cut < 0.2 * whole
    assert resolve(deep).n_layers == 10


def test_what_is_kept_per_block_is_the_stream(deep: Any) -> None:
    """From 2 to 10 blocks, by a few streams each: without checkpointing it is more than forty."""
    shallow, length = tiny.model("gpt2", tiny.BACKENDS[-1]), 60
    stream = length * 32 * 4
    for method in ("attnlrp", "gim"):
        few, many = (peak(m, length, method, checkpoint=True) for m in (shallow, deep))
        assert many - few <= 8 * 1.5 * stream


def test_a_job_may_ask_for_it(tmp_path: Any) -> None:
    """And the memory planner sees it."""
    import dataset

    from lens_attr.runs import preview

    needs = []
    for checkpoint in (False, True):
        job = dataset.job(tmp_path, options={"checkpoint": checkpoint}, method="lrp")
        needs.append(preview(job, model=dataset.model()).need)
    plain, cut = needs
    assert cut.per_token < plain.per_token
