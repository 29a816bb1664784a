"""Activation patching: against `transformer_lens.patching`, and against loops anyone can read."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import small
import tiny
import torch
from torch import Tensor
from transformer_lens import patching

import lens_attr as la
from lens_attr.circuits import patch

CLEAN = ["w5 w9 w12 w7 w30", "w8 w7 w6 w5 w11", "w50 w9 w20 w41 w33"]
CORRUPTED = ["w5 w9 w13 w7 w30", "w8 w17 w6 w5 w11", "w49 w9 w20 w41 w32"]
TARGET = la.LogitDiff([" w6", " w20", " w9"], [" w8", " w21", " w40"])
IDS = torch.tensor([[6, 8], [20, 21], [9, 40]])

FAMILIES = [f"{family}-{backend}" for family, backend in tiny.on_backends(["gpt2", "llama"])]
DELEGATED = ["bert-bridge", "gptj-bridge"]

every_model = pytest.mark.parametrize("name", small.EVERY)
causal_models = pytest.mark.parametrize("name", small.CAUSAL)
gpt2_models = pytest.mark.parametrize("name", small.GPT2)


def texts(name: str, prompts: list[str]) -> list[str]:
    return [small.text(name, prompt) for prompt in prompts]


def run(
    name: str, *arguments: Any, clean: Any = None, corrupted: Any = None, **options: Any
) -> Any:
    """`patch` on the prompts above."""
    prompts = texts(name, clean or CLEAN), texts(name, corrupted or CORRUPTED)
    return patch(small.model(name), *prompts, TARGET, *arguments, **options)


@cache
def ids_of(name: str) -> tuple[Tensor, Tensor, Tensor]:
    """Clean ids, corrupted ids, and the explained position."""
    both = [la.attribute(small.model(name), texts(name, p), TARGET) for p in (CLEAN, CORRUPTED)]
    return both[0].token_ids, both[1].token_ids, both[0].position


def score(name: str, logits: Tensor) -> Tensor:
    """Answer - foil of each of the three examples."""
    at = logits[torch.arange(3), ids_of(name)[2]]
    return at.gather(1, IDS)[:, 0] - at.gather(1, IDS)[:, 1]


# ----------------------------------------------------------- against transformer_lens.patching

THEIRS: dict[tuple[str, bool], Any] = {
    ("head", False): patching.get_act_patch_attn_head_out_all_pos,
    ("head", True): patching.get_act_patch_attn_head_out_by_pos,
    ("q", False): patching.get_act_patch_attn_head_q_all_pos,
    ("k", False): patching.get_act_patch_attn_head_k_all_pos,
    ("v", False): patching.get_act_patch_attn_head_v_all_pos,
    ("q", True): patching.get_act_patch_attn_head_q_by_pos,
    ("k", True): patching.get_act_patch_attn_head_k_by_pos,
    ("v", True): patching.get_act_patch_attn_head_v_by_pos,
    ("pattern", False): patching.get_act_patch_attn_head_pattern_all_pos,
    ("pattern", True): patching.get_act_patch_attn_head_pattern_by_pos,
    ("resid", True): patching.get_act_patch_resid_pre,
    ("attn_out", True): patching.get_act_patch_attn_out,
    ("mlp_out", True): patching.get_act_patch_mlp_out,
}


@torch.no_grad()
def theirs(name: str, unit: str, positions: bool, mode: str) -> Tensor:
    model, (clean, corrupted, _) = small.model(name), ids_of(name)
    run, source = (corrupted, clean) if mode == "denoise" else (clean, corrupted)
    _, cache = model.run_with_cache(source)
    metric = lambda logits: score(name, logits).mean()  # noqa: E731
    return torch.as_tensor(THEIRS[unit, positions](model, run, cache, metric))


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("mode", ["denoise", "noise"])
@pytest.mark.parametrize(("unit", "positions"), list(THEIRS))
def test_equals_transformer_lens(name: str, unit: Any, positions: bool, mode: Any) -> None:
    found, wanted = run(name, unit, mode, positions=positions), theirs(name, unit, positions, mode)
    assert found.metric.shape == wanted.shape
    torch.testing.assert_close(found.metric, wanted.double(), rtol=1e-4, atol=1e-5)
    assert found.effects.abs().max() > 0.01
