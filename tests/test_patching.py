"""Activation patching: against `transformer_lens.patching`, and against loops anyone can read."""

from __future__ import annotations

from contextlib import ExitStack
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import small
import tiny
import torch
from torch import Tensor
from transformer_lens import patching

import lens_attr as la
from lens_attr.circuits import PatchResult, patch
from lens_attr.circuits.replacement import donors
from lens_attr.graph import resolve
from lens_attr.graph.tokens import tokenize

CLEAN = ["w5 w9 w12 w7 w30", "w8 w7 w6 w5 w11", "w50 w9 w20 w41 w33"]
CORRUPTED = ["w5 w9 w13 w7 w30", "w8 w17 w6 w5 w11", "w49 w9 w20 w41 w32"]
TARGET = la.LogitDiff([" w6", " w20", " w9"], [" w8", " w21", " w40"])
IDS = torch.tensor([[6, 8], [20, 21], [9, 40]])

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


@pytest.mark.parametrize("name", small.CAUSAL)
@pytest.mark.parametrize("mode", ["denoise", "noise"])
@pytest.mark.parametrize(("unit", "positions"), list(THEIRS))
def test_equals_transformer_lens(name: str, unit: Any, positions: bool, mode: Any) -> None:
    found, wanted = run(name, unit, mode, positions=positions), theirs(name, unit, positions, mode)
    assert found.metric.shape == wanted.shape
    torch.testing.assert_close(found.metric, wanted.double(), rtol=1e-4, atol=1e-5)
    assert found.effects.abs().max() > 0.01


@pytest.mark.parametrize("name", ["bert-bridge", "bert-hooked"])
@pytest.mark.parametrize("mode", ["denoise", "noise"])
@pytest.mark.parametrize("unit", ["head", "q", "k", "v", "resid", "attn_out", "mlp_out"])
def test_masked_models_equal_plain_forwards(name: str, unit: Any, mode: Any) -> None:
    """Delegated attention too: what is put in arrives."""
    if name not in small.MASKED:
        pytest.skip("not installed")
    found = run(name, unit, mode)
    for cell in [(0, 1), (1, 2), (1, 3)]:
        wanted = by_hand(name, unit, mode, *cell).mean()
        assert found.metric[cell] == pytest.approx(float(wanted), rel=1e-4, abs=1e-5)
    assert found.effects.abs().max() > 0.01


HOOK = {
    "head": "attn.hook_z",
    "q": "attn.hook_q",
    "k": "attn.hook_k",
    "v": "attn.hook_v",
    "resid": "hook_resid_pre",
    "attn_out": "hook_attn_out",
    "mlp_out": "hook_mlp_out",
}


@torch.no_grad()
def by_hand(
    name: str, unit: str, mode: str, layer: int, index: int, value: Tensor | None = None
) -> Tensor:
    """One plain forward with one head (all positions) or one position replaced."""
    model, (clean, corrupted, _) = small.model(name), ids_of(name)
    base, other = (corrupted, clean) if mode == "denoise" else (clean, corrupted)
    inside_attention = (name, unit) == ("bert-bridge", "attn_out")  # hook_attn_out: after the norm
    hook = "attn.o.hook_out" if inside_attention else HOOK[unit]
    hook_name, kept = f"blocks.{layer}.{hook}", []

    def keep(activation: Tensor, hook: Any) -> None:
        kept.append(activation.clone())

    def put(activation: Tensor, hook: Any) -> Tensor:
        activation = activation.clone()
        part = (slice(None), slice(None), index) if activation.ndim == 4 else (slice(None), index)
        activation[part] = kept[0][part] if value is None else value[part]
        return activation

    with model.hooks(fwd_hooks=[(hook_name, keep)]):
        model(other)
    with model.hooks(fwd_hooks=[(hook_name, put)]):
        return score(name, model(base))


# ------------------------------------------------------------------ what the numbers mean


@every_model
@pytest.mark.parametrize("mode", ["denoise", "noise"])
def test_effects_are_patched_minus_unpatched(name: str, mode: Any) -> None:
    found = run(name, mode=mode)
    model, (clean, corrupted, _) = small.model(name), ids_of(name)
    with torch.no_grad():
        runs = [score(name, model(ids)).double() for ids in (clean, corrupted)]
    unpatched, other = runs[::-1] if mode == "denoise" else runs
    torch.testing.assert_close(found.unpatched, unpatched, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.other, other, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.effects, found.metric - found.unpatched.mean())
    sign = 1 if mode == "denoise" else -1
    assert torch.equal(found.importance, sign * found.effects)


@every_model
def test_patching_the_whole_stream_at_the_bottom_is_the_other_run(name: str) -> None:
    found = run(name, "resid", positions=False)
    torch.testing.assert_close(found.per_example[:, 0], found.other, rtol=1e-4, atol=1e-5)
    assert found.normalised[0] == pytest.approx(1.0, abs=1e-4)
    assert found.axes == ("layer",) and found.effects.shape == (tiny.N_LAYERS,)


@every_model
def test_patching_a_run_into_itself_changes_nothing(name: str) -> None:
    prompts = texts(name, CLEAN)
    found = patch(small.model(name), prompts, prompts, TARGET, "resid")
    assert found.effects.abs().max() < 1e-5
    with pytest.raises(la.InputError, match="both runs have the same target"):
        _ = patch(small.model(name), prompts, prompts, TARGET, "head").normalised


@causal_models
def test_a_later_position_cannot_matter_to_an_earlier_prediction(name: str) -> None:
    found = patch(
        small.model(name),
        CLEAN,
        CORRUPTED,
        la.LogitDiff([" w6", " w20", " w9"], [" w8", " w21", " w40"], position=2),
        "resid",
    )
    assert found.effects[:, 3:].abs().max() < 1e-5 < found.effects[:, :3].abs().max()


@every_model
def test_ablating_equals_overwriting_z(name: str) -> None:
    """zero; the mean over everything; another example's."""
    z = z_of(name)
    given = donors(tokenize(resolve(small.model(name)), texts(name, CLEAN)), seed=3)
    assert all(donor != example for example, donor in enumerate(given))
    for layer, head in [(0, 2), (1, 1)]:
        values = {
            "zero": torch.zeros_like(z[layer]),
            "mean": z[layer].mean(dim=(0, 1)).expand_as(z[layer]),
            "resample": z[layer][given],
        }
        for source, value in values.items():
            found = run(name, mode="noise", source=source, seed=3).per_example[:, layer, head]
            wanted = by_hand(name, "head", "noise", layer, head, value)
            torch.testing.assert_close(found, wanted.double(), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def z_of(name: str) -> list[Tensor]:
    """z of the clean run per layer, [example, pos, head, d_head]."""
    found: dict[int, Tensor] = {}
    points = resolve(small.model(name)).points("z")
    with ExitStack() as stack:
        for layer, point in enumerate(points):
            point.on_forward(lambda z, layer=layer: found.update({layer: z.clone()}), stack)
        small.model(name)(ids_of(name)[0])
    return [found[layer] for layer in range(len(points))]


@gpt2_models
def test_ablation_needs_no_corrupted_prompts(name: str) -> None:
    with_them = run(name, mode="noise", source="zero")
    alone = patch(small.model(name), CLEAN, None, TARGET, mode="noise", source="zero")
    assert torch.equal(with_them.effects, alone.effects) and alone.other is None
    with pytest.raises(la.InputError, match="no other run"):
        _ = alone.normalised


@gpt2_models
def test_a_pattern_of_zeros_is_a_head_of_zeros(name: str) -> None:
    """z = pattern @ v: two ways to remove a head."""
    pattern = run(name, "pattern", "noise", source="zero")
    head = run(name, "head", "noise", source="zero")
    torch.testing.assert_close(pattern.effects, head.effects, rtol=1e-4, atol=1e-5)


# --------------------------------------------------------------------------- how it is run


@every_model
@pytest.mark.parametrize("size", [1, 2, 7])
def test_the_batch_size_does_not_matter(name: str, size: int) -> None:
    whole, parts = run(name, "head"), run(name, "head", batch_size=size)
    torch.testing.assert_close(whole.per_example, parts.per_example, rtol=1e-4, atol=1e-5)


@every_model
def test_examples_of_different_lengths_equal_single_ones(name: str) -> None:
    clean = ["w5 w9 w12", "w8 w7 w6 w5 w11", "w50 w9 w20"]
    corrupted = ["w5 w9 w13", "w8 w17 w6 w5 w11", "w49 w9 w20"]
    found = run(name, clean=clean, corrupted=corrupted)
    for i, (a, b) in enumerate(zip(texts(name, clean), texts(name, corrupted), strict=True)):
        target = la.LogitDiff(TARGET.token[i], TARGET.foil[i])
        alone = patch(small.model(name), a, b, target)
        torch.testing.assert_close(found.per_example[i], alone.per_example[0], rtol=1e-4, atol=1e-5)


@gpt2_models
def test_any_target_will_do(name: str) -> None:
    """A function of all logits sees them where the padded batch has them."""
    model, clean, corrupted = small.model(name), ["w5 w9", *CLEAN[:2]], ["w5 w19", *CORRUPTED[:2]]
    metric = la.Metric(lambda logits: logits[:, -1, 6] - logits[:, -1, 8])
    both = [
        patch(model, clean, corrupted, target) for target in (metric, la.LogitDiff(" w6", " w8"))
    ]
    torch.testing.assert_close(both[0].per_example, both[1].per_example, rtol=1e-4, atol=1e-5)
    prob = patch(model, clean, corrupted, la.LogProb(" w6"))
    assert (prob.target_unit, prob.target[0]) == ("nat", "log-probability of 'w6'")
    wrong = la.Metric(lambda logits: logits.sum())
    with pytest.raises(la.InputError, match="one number per example"):
        patch(model, clean, corrupted, wrong)


@gpt2_models
def test_token_ids_instead_of_texts(name: str) -> None:
    clean, corrupted, _ = ids_of(name)
    target = la.LogitDiff(IDS[:, 0].tolist(), IDS[:, 1].tolist())
    found = patch(small.model(name), clean, corrupted, target)
    assert torch.equal(found.effects, run(name).effects)


@every_model
def test_patching_leaves_no_trace(name: str) -> None:
    model = small.model(name)
    run(name)
    before = small.world(model)
    for unit in ("head", "resid", "mlp_out", "k"):
        run(name, unit)
    after = small.world(model)
    assert [what for what in before if before[what] != after[what]] == []


@every_model
@pytest.mark.parametrize("forwards", [0, 1, 3])
def test_an_interrupted_sweep_leaves_no_trace(name: str, forwards: int) -> None:
    model = small.model(name)
    run(name)
    before = small.world(model)
    countdown = iter(range(forwards))

    def interrupt(z: Tensor, hook: Any) -> None:
        if next(countdown, None) is None:
            raise KeyboardInterrupt

    with model.hooks(fwd_hooks=[("blocks.1.attn.hook_z", interrupt)]):
        with pytest.raises(KeyboardInterrupt):
            run(name, batch_size=2)
    after = small.world(model)
    assert [what for what in before if before[what] != after[what]] == []


# ------------------------------------------------------------------------- the result object


@gpt2_models
def test_save_and_load(name: str, tmp_path: Path) -> None:
    for found in (
        run(name, "resid"),
        patch(small.model(name), CLEAN, None, TARGET, mode="noise", source="mean"),
    ):
        back = PatchResult.load(found.save(tmp_path))
        assert torch.equal(back.per_example, found.per_example)
        assert torch.equal(back.effects, found.effects)
        for name_ in ("axes", "unit", "mode", "source", "target", "target_unit", "metadata"):
            assert getattr(back, name_) == getattr(found, name_)
    (tmp_path / "patching.safetensors").write_bytes(b"cut")
    with pytest.raises(la.SavedResultError, match="truncated or altered"):
        PatchResult.load(tmp_path)
    with pytest.raises(la.SavedResultError, match="no saved patching"):
        PatchResult.load(tmp_path / "nowhere")


@gpt2_models
def test_to_pandas(name: str) -> None:
    found = run(name, "head")
    table = found.to_pandas()
    assert list(table) == ["layer", "head", "effect", "metric", "std_error"]
    row = table[(table["layer"] == 1) & (table["head"] == 2)].iloc[0]
    change = found.per_example[:, 1, 2] - found.unpatched
    assert row["effect"] == pytest.approx(float(change.mean()))
    assert row["std_error"] == pytest.approx(float(change.std() / 3**0.5))
    one = patch(small.model(name), CLEAN[0], CORRUPTED[0], la.LogitDiff(" w6", " w8"), "resid")
    assert one.to_pandas()["str_token"].tolist() == [t for _ in range(2) for t in one.str_tokens[0]]
    assert one.to_pandas()["std_error"].isna().all()


# ---------------------------------------------------------------------------------- refusals

BAD: dict[str, tuple[Any, Any, dict[str, Any], str]] = {
    "unit": (CLEAN, CORRUPTED, {"unit": "heads"}, "unknown unit 'heads'; did you mean 'head'"),
    "mode": (CLEAN, CORRUPTED, {"mode": "denoising"}, "unknown mode 'denoising'"),
    "source": (CLEAN, CORRUPTED, {"source": "nought"}, "unknown source 'nought'"),
    "batch size": (CLEAN, CORRUPTED, {"batch_size": 0}, "at least 1, got 0"),
    "batch size as text": (CLEAN, CORRUPTED, {"batch_size": "4"}, "at least 1, got '4'"),
    "unequal batches": (CLEAN, CORRUPTED[:2], {}, "3 clean but 2 corrupted prompts"),
    "misaligned": (
        CLEAN,
        [*CORRUPTED[:2], "w49 w9 w20"],
        {},
        r"row 2: clean has \d tokens \('w50 w9 w20 w41 w33'\), corrupted \d",
    ),
    "positions": (
        [*CLEAN[:2], "w5"],
        [*CORRUPTED[:2], "w6"],
        {"unit": "resid"},
        "row 2 has . tokens, row 0 has .*positions=False",
    ),
    "no corrupted": (CLEAN, None, {}, "without corrupted prompts.*mode='noise'"),
    "pattern": (CLEAN, CORRUPTED, {"unit": "pattern", "source": "mean"}, "queries and keys"),
}


@gpt2_models
@pytest.mark.parametrize(("clean", "corrupted", "options", "message"), BAD.values(), ids=list(BAD))
def test_what_patching_refuses(
    name: str, clean: Any, corrupted: Any, options: dict[str, Any], message: str
) -> None:
    with small.untyped(), pytest.raises(la.InputError, match=message):
        patch(small.model(name), clean, corrupted, TARGET, **options)


@gpt2_models
def test_other_refusals(name: str) -> None:
    model = small.model(name)
    with pytest.raises(la.InputError, match="at least two"):
        patch(model, "w5", None, la.Logit(6), mode="noise", source="resample")
    with small.untyped(), pytest.raises(la.InputError, match=r"target must be la\.Logit"):
        patch(model, CLEAN, CORRUPTED, " w6")  # type: ignore[arg-type]


def test_a_pattern_that_cannot_be_replaced_is_refused() -> None:
    with pytest.raises(la.UnsupportedModelError, match="can be read but not replaced"):
        run("bert-bridge", "pattern")


def test_a_mask_that_moves_is_refused() -> None:
    model = small.model("bert-bridge")
    with pytest.raises(la.InputError, match="row 0: the mask stands elsewhere"):
        patch(model, "w5 [MASK] w9", "w5 w9 [MASK]", la.Logit(6))


# --------------------------------------------------------------------------- every architecture


@pytest.mark.parametrize(("family", "backend"), tiny.on_backends([*tiny.FAMILIES, *tiny.DELEGATED]))
def test_heads_of_every_family_equal_plain_forwards(family: str, backend: str) -> None:
    """Parallel blocks, norms behind attention, grouped keys: what is shared is exact everywhere."""
    ids = tiny.token_ids(family, rows=2, length=7)
    with tiny.precision(tiny.EXACT), torch.no_grad():
        model = tiny.model(family, backend, tiny.EXACT)
        result = patch(model, ids, None, tiny.TARGET, "head", "noise", source="zero")
        target = tiny.TARGET.resolve(resolve(model), tokenize(resolve(model), ids))
        for layer, head in ((0, 1), (tiny.N_LAYERS - 1, 2)):
            point = resolve(model).points("z")[layer]
            with ExitStack() as stack:
                point.on_forward(partial(without_head, head), stack)
                logits = model(ids)[torch.arange(2), target.position]
            want = logits[:, tiny.TARGET.token] - logits[:, tiny.TARGET.foil]
            assert tiny.error(result.per_example[:, layer, head], want) < 1e-9


def without_head(head: int, z: Tensor) -> Tensor:
    z = z.clone()
    z[:, :, head] = 0
    return z


@causal_models
def test_attention_runs_once_for_all_heads_of_a_layer(name: str) -> None:
    model, rows = small.model(name), []
    last = resolve(model).points("pattern")[-1].name
    wide = 3 * tiny.N_HEADS
    with model.hooks(fwd_hooks=[(last, lambda p, hook: rows.append(len(p)))]):
        run(name, "head")
        heads, rows[:] = rows.count(wide), []
        run(name, "q")
    assert heads == 1  # with heads of the first block patched
    assert rows.count(wide) == 2


# ------------------------------------------------- rules beside TransformerLens's own patching


@causal_models
def test_rule_contexts_leave_their_patching_as_it_is(name: str) -> None:
    """Rules change gradients; a forward intervention inside their context gives the same."""
    model, (clean, corrupted, _) = small.model(name), ids_of(name)
    metric = lambda logits: score(name, logits).mean()  # noqa: E731
    sweep = patching.get_act_patch_attn_head_out_all_pos
    found = []
    for rules in (la.rules.gradient(), la.rules.attnlrp()):
        with rules.on(model):
            _, cache = model.run_with_cache(clean)
            found.append(torch.as_tensor(sweep(model, corrupted, cache, metric)))
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found[1].double(), run(name).metric, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", [name for name in small.GPT2 if name.endswith("bridge")])
def test_rule_contexts_compose_with_attribution_patching(name: str) -> None:
    """(clean - corrupted) times the rules' gradient, computed by their tool and by ours."""
    tool = pytest.importorskip("transformer_lens.tools.analysis.attribution_patching")
    model, (clean, corrupted, _) = small.model(name), ids_of(name)
    metric = lambda logits: logits[0, -1, 6] - logits[0, -1, 8]  # noqa: E731
    found = {}
    for rules in (la.rules.gradient(), la.rules.attnlrp()):
        with rules.on(model):
            found[rules.name] = tool.attribution_patch(model, clean[:1], corrupted[:1], metric)
        wanted = node_scores(model, clean[:1], corrupted[:1], rules)
        for node, value in found[rules.name].node_scores.items():
            if node.kind == "mlp_out":
                assert float(value) == pytest.approx(
                    float(wanted[node.layer, node.position]), abs=1e-4
                )
    plain, ruled = (result.node_scores for result in found.values())
    assert max(abs(float(plain[node] - ruled[node])) for node in plain) > 1e-2


def node_scores(model: Any, clean: Tensor, corrupted: Tensor, rules: Any) -> Tensor:
    """(clean - corrupted) mlp_out times its gradient in the corrupted run, [layer, pos]."""
    points, target = resolve(model).points("mlp_out"), la.LogitDiff(6, 8)
    record = [point.name for point in points]
    with torch.no_grad():
        _, before = model.run_with_cache(corrupted)
        _, after = model.run_with_cache(clean)
    r = la.attribute(model, corrupted, target, rules, record=record)
    rows = []
    for name in record:
        gradient = r.records[name] / before[name]
        rows.append(((after[name] - before[name]) * gradient).sum(dim=-1)[0])
    return torch.stack(rows)
