"""Restarting in the middle gives what a whole forward gives, on every family and backend."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from typing import Any

import pytest
import small
import tiny
import torch
from torch import Tensor

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


@every_family
def test_a_hook_in_the_last_mlp_sees_every_position(family: str, backend: str) -> None:
    """Only where nobody looks does the last MLP run on the scored position alone."""
    model = tiny.model(family, backend)
    graph, ids = resolve(model), tiny.token_ids(family, rows=3, length=9)
    position, seen = torch.tensor([8, 2, 5]), []
    last = graph.points("mlp_out")[-1]
    with torch.no_grad(), ExitStack() as stack:
        whole = graph.forward(ids, None)[torch.arange(3), position]
        alone = logits_of(graph, ids, position)
        last.on_forward(lambda out: seen.append(out.shape[1]), stack)
        watched = logits_of(graph, ids, position)
    assert seen == [9]
    assert tiny.error(alone, whole) < 1e-5 and tiny.error(watched, whole) < 1e-5
