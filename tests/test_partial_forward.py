"""Restarting in the middle gives what a whole forward gives, on every family and backend."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from typing import Any

import pytest
import small
import tiny
import torch
from tiny import EXACT
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from lens_attr.graph import resolve
from lens_attr.graph.partial import (
    logits_of,
    read_streams,
    resume,
    rows_that_fit,
    without_padding,
)
from lens_attr.graph.tokens import TokenBatch

FAMILIES = tiny.on_backends([*tiny.FAMILIES, *tiny.DELEGATED])
every_family = pytest.mark.parametrize(("family", "backend"), FAMILIES)


def streams_of(graph: Any, ids: Tensor) -> tuple[dict[int, Tensor], Tensor]:
    """The stream before every block, and all logits."""
    found: dict[int, Tensor] = {}
    with torch.no_grad(), ExitStack() as stack:
        read_streams(graph, range(graph.n_layers), partial(found.__setitem__), stack)
        logits = graph.forward(ids, None)
    return found, logits


@every_family
@pytest.mark.parametrize("layer", range(tiny.N_LAYERS))
def test_resuming_gives_the_logits_of_a_whole_forward(
    family: str, backend: str, layer: int
) -> None:
    """With other tokens below: only what enters the block counts."""
    graph = resolve(tiny.model(family, backend, tiny.EXACT))
    ids = tiny.token_ids(family, rows=3, length=9)
    with tiny.precision(tiny.EXACT), torch.no_grad():
        streams, whole = streams_of(graph, ids)
        stand_in = torch.full((1, 9), 7)
        again = resume(graph, streams[layer], layer, stand_in, None)
        position = torch.tensor([8, 2, 5])
        narrow = resume(graph, streams[layer], layer, stand_in, position)
    assert tiny.error(again, whole) < 1e-9
    assert tiny.error(narrow, whole[torch.arange(3), position]) < 1e-9


@every_family
def test_resuming_runs_more_rows_than_went_in(family: str, backend: str) -> None:
    """And a changed stream changes its own row only."""
    graph = resolve(tiny.model(family, backend, tiny.EXACT))
    ids = tiny.token_ids(family, rows=2, length=6)
    with tiny.precision(tiny.EXACT), torch.no_grad():
        streams, whole = streams_of(graph, ids)
        rows = streams[1].repeat(2, 1, 1)
        rows[2] += 1 + torch.arange(rows.shape[-1])
        again = resume(graph, rows, 1, ids, None)
    assert tiny.error(again[[0, 1, 3]], whole[[0, 1, 1]]) < 1e-9
    assert tiny.error(again[2], whole[0]) > 1e-2


@pytest.mark.parametrize("name", small.EVERY)
def test_a_hook_of_the_users_on_the_stream_acts_once(name: str) -> None:
    model = small.model(name)
    graph, ids = resolve(model), torch.tensor([[5, 9, 12, 7]])
    steer = lambda stream, hook: stream + 3 * stream.roll(1, dims=-1)  # noqa: E731
    with model.hooks(fwd_hooks=[(graph.points("residual")[1].name, steer)]):
        streams, whole = streams_of(graph, ids)
        with torch.no_grad():
            again = resume(graph, streams[1], 1, ids, None)
    assert tiny.error(again, whole) < 1e-5
    assert tiny.error(streams_of(graph, ids)[1], whole) > 1e-2


@pytest.mark.parametrize("name", small.EVERY)
def test_restarting_leaves_no_trace(name: str) -> None:
    model = small.fresh(name)
    graph, ids = resolve(model), torch.tensor([[5, 9, 12, 7]])
    streams, _ = streams_of(graph, ids)
    before = small.world(model)
    with torch.no_grad():
        resume(graph, streams[1], 1, ids, torch.tensor([3]))
        logits_of(graph, ids, torch.tensor([3]))
    after = small.world(model)
    assert [what for what in before if before[what] != after[what]] == []


@pytest.mark.parametrize("name", small.EVERY)
def test_rows_without_padding_score_as_in_the_padded_batch(name: str) -> None:
    graph = resolve(small.model(name))
    ids = torch.tensor([[3, 3, 5, 9, 12], [8, 7, 6, 5, 11], [3, 3, 50, 9, 20]])
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1], [0, 0, 1, 1, 1]]).bool()
    position = torch.tensor([4, 3, 2])
    if name.startswith("bert"):  # padded on the right
        ids, mask, position = ids.flip(1), mask.flip(1), torch.tensor([2, 3, 0])
    batch = TokenBatch(ids, mask)
    groups = without_padding(batch)
    assert [group.index for group in groups] == [[0, 2], [1]]
    with torch.no_grad():
        padded = graph.logits_at(ids, mask, position)
        for group in groups:
            at = group.local(position[group.index])
            logits = logits_of(graph, group.token_ids, at)
            assert tiny.error(logits, padded[group.index]) < 1e-5


def test_a_group_splits_into_parts() -> None:
    (group,) = without_padding(TokenBatch(torch.arange(10).view(5, 2), torch.ones(5, 2).bool()))
    parts = list(group.split(2))
    assert [part.index for part in parts] == [[0, 1], [2, 3], [4]]
    assert torch.equal(torch.cat([part.token_ids for part in parts]), group.token_ids)


@pytest.mark.parametrize("name", small.GPT2)
def test_longer_rows_are_fewer(name: str) -> None:
    graph = resolve(small.model(name))
    assert rows_that_fit(graph, 4) > rows_that_fit(graph, 64) >= 1
    assert rows_that_fit(graph, 10**6) == 1


@pytest.mark.parametrize("name", [n for n in small.EVERY if "hooked" in n and "bert" not in n])
def test_hooked_transformer_computes_nothing_below(name: str) -> None:
    model = small.model(name)
    graph, ids = resolve(model), torch.tensor([[5, 9, 12, 7]])
    streams, _ = streams_of(graph, ids)
    fired: list[int] = []
    hooks = [
        (f"blocks.{layer}.attn.hook_z", lambda z, hook: fired.append(hook.layer()))
        for layer in (0, 1)
    ]
    with torch.no_grad(), model.hooks(fwd_hooks=hooks):
        resume(graph, streams[1], 1, ids, None)
    assert fired == [1]


# ------------------------------------------------------------------ one position in the last block


def narrow(graph: Any) -> bool:
    """Whether the last block computes less when one position is scored."""
    ids = tiny.token_ids("gpt2", rows=2, length=9)
    flops = {}
    for position in (torch.tensor([8, 2]), None):
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            logits_of(graph, ids, position)
        flops[position is None] = counter.get_total_flops()
    unembedding = 2 * 2 * 8 * graph.cfg.d_model * graph.d_vocab  # of the other positions
    return flops[True] - flops[False] > unembedding


@every_family
def test_the_last_block_runs_on_the_scored_position_alone(family: str, backend: str) -> None:
    graph = resolve(tiny.model(family, backend))
    assert narrow(graph) == (graph.attention_in_graph and family != "bert")


@pytest.mark.parametrize("name", small.GPT2)
def test_the_first_forward_does_not_end_the_shortcut(name: str) -> None:
    """Libraries hang hooks of their own on a model when it first runs."""
    graph = resolve(small.fresh(name))
    before = [graph.branches(layer) for layer in range(graph.n_layers)]
    with torch.no_grad():
        graph.forward(torch.tensor([[5, 9, 12]]), None)
    assert [graph.branches(layer) for layer in range(graph.n_layers)] == before
    assert all(before)


BEHIND = ["hook_attn_out", "mlp.hook_post", "hook_mlp_out", "hook_resid_post", "ln2.hook_scale"]


@pytest.mark.parametrize(("family", "backend"), tiny.on_backends(tiny.FAMILIES))
@pytest.mark.parametrize("name", [*BEHIND, "ln_final.hook_normalized"])
def test_whoever_looks_sees_every_position(family: str, backend: str, name: str) -> None:
    """A hook that moves the first position away must not meet the scored one in its place."""
    model = tiny.model(family, backend, EXACT)
    name = name if name.startswith("ln_final") else f"blocks.{tiny.N_LAYERS - 1}.{name}"
    if name not in model.hook_dict:
        pytest.skip(f"this model has no {name}")
    graph, ids = resolve(model), tiny.token_ids(family, rows=3, length=9)
    position, seen = torch.tensor([8, 2, 0]), []

    def shift_first(activation: Tensor, hook: Any) -> Tensor:
        seen.append(activation.shape[1])
        first = torch.arange(activation.shape[1]).view(1, -1, 1) == 0
        return torch.where(first, activation + 1.0, activation)

    with tiny.precision(EXACT), torch.no_grad(), model.hooks(fwd_hooks=[(name, shift_first)]):
        whole = graph.forward(ids, None)[torch.arange(3), position]
        alone = logits_of(graph, ids, position)
    assert set(seen) == {9}
    assert tiny.error(alone, whole) < 1e-9


@pytest.mark.parametrize("name", small.CAUSAL)
def test_a_plain_torch_hook_is_a_look_too(name: str) -> None:
    model = small.model(name)
    graph, seen = resolve(model), []
    look = model.blocks[-1].mlp.register_forward_hook(lambda m, i, out: seen.append(out.shape[1]))
    try:
        with torch.no_grad():
            logits_of(graph, torch.tensor([[5, 9, 12, 7]]), torch.tensor([3]))
    finally:
        look.remove()
    assert seen == [4]
