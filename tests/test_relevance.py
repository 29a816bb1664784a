"""The result object: its numbers add up, survive saving, and mean what they say."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import pytest
import small
import tiny
import torch
from torch import Tensor

import lens_attr as la
from lens_attr.graph import resolve

TEXTS = ["w5 w9 w12 w7", "w30 w31", "w8 w7 w6 w5 w11"]
PAIR = la.LogitDiff(" w6", " w8")
N_LAYERS, N_HEADS, D_MODEL, D_HEAD = 2, 4, 32, 8

every_model = pytest.mark.parametrize("name", small.EVERY)
causal_models = pytest.mark.parametrize("name", small.CAUSAL)
gpt2_models = pytest.mark.parametrize("name", small.GPT2)


def prompts(name: str) -> list[str]:
    return [small.text(name, words) for words in TEXTS]


def explain(name: str, text: Any = None, **options: Any) -> la.Relevance:
    text = prompts(name) if text is None else text
    return la.attribute(small.model(name), text, **{"target": PAIR} | options)


def same(found: Tensor | None, expected: Tensor | None) -> None:
    torch.testing.assert_close(found, expected, rtol=2e-4, atol=2e-5)


# ----------------------------------------------------------------------------- shapes


@every_model
def test_shapes(name: str) -> None:
    r = explain(name)
    batch, length = r.token_ids.shape
    assert len(r) == batch == 3
    assert r.tokens.shape == r.attention_mask.shape == (batch, length)
    assert r.head_tokens is not None and r.heads_relu_dim is not None
    assert r.head_tokens.shape == (batch, N_LAYERS, length, N_HEADS)
    assert r.heads_relu_dim.shape == (batch, N_LAYERS, N_HEADS)
    assert r.target_value.shape == r.position.shape == (batch,)
    assert [len(row) for row in r.str_tokens] == [length] * batch
    assert r.unit == "logit"


SHAPES = {
    "embed": ("pos", D_MODEL),
    "residual": (N_LAYERS + 1, "pos"),
    "z": (N_LAYERS, "pos", N_HEADS, D_HEAD),
    "q": (N_LAYERS, "pos", N_HEADS, D_HEAD),
    "neurons": (N_LAYERS, "pos", "mlp"),
    "mlp_post": (N_LAYERS, "pos", "mlp"),
    "mlp_out": (N_LAYERS, "pos", D_MODEL),
    "attn_out": (N_LAYERS, "pos", D_MODEL),
    "pattern": (N_LAYERS, N_HEADS, "pos", "pos"),
    "scores": (N_LAYERS, N_HEADS, "pos", "pos"),
}


@causal_models
@pytest.mark.parametrize("role", SHAPES)
def test_shape_of_records(name: str, role: str) -> None:
    r = explain(name, record=[role])
    sizes = {"pos": r.tokens.shape[1], "mlp": small.model(name).cfg.d_mlp}
    expected = [sizes.get(axis, axis) for axis in SHAPES[role]]
    assert list(r.records) == [role]
    assert list(r.records[role].shape) == [3, *expected]


@causal_models
def test_records_by_hook_name_and_glob(name: str) -> None:
    r = explain(name, record=["mlp_out", "blocks.*.hook_mlp_out", "blocks.1.attn.hook_z", "z"])
    names = ["mlp_out", "blocks.0.hook_mlp_out", "blocks.1.hook_mlp_out", "blocks.1.attn.hook_z"]
    assert list(r.records) == [*names, "z"]
    for layer in range(N_LAYERS):
        by_name = r.records[f"blocks.{layer}.hook_mlp_out"]
        assert torch.equal(by_name, r.records["mlp_out"][:, layer])
    assert torch.equal(r.records["blocks.1.attn.hook_z"], r.records["z"][:, 1])


@every_model
@pytest.mark.parametrize("method", ["gradient_x_input", "lrp", "attnlrp"])
def test_recording_changes_nothing(name: str, method: str) -> None:
    plain = explain(name, method=method)
    recorded = explain(name, method=method, record=["z", "neurons", "residual", "v"])
    assert torch.equal(plain.tokens, recorded.tokens)
    assert torch.equal(plain.head_tokens, recorded.head_tokens)


# --------------------------------------------------------------------------- pooling


@every_model
@pytest.mark.parametrize("method", ["gradient_x_input", "attnlrp"])
def test_pooling_by_hand(name: str, method: str) -> None:
    r = explain(name, method=method, record=["z"])
    z = r.records["z"]  # [batch, layer, pos, head, d_head]
    same(r.head_tokens, z.sum(dim=-1))
    same(r.heads("sum"), z.sum(dim=(2, 4)))
    same(r.heads("relu_token"), z.sum(dim=4).clamp(min=0).sum(dim=2))
    same(r.heads("relu_dim"), z.clamp(min=0).sum(dim=(2, 4)))
    assert not torch.allclose(r.heads("sum"), r.heads("relu_token"))
    assert not torch.allclose(r.heads("relu_dim"), r.heads("relu_token"))


# ----------------------------------------------------------- examples and their padding


@every_model
def test_padding_has_no_relevance(name: str) -> None:
    r = explain(name, record=["z", "neurons", "residual"])
    padding = ~r.attention_mask
    assert padding.any()
    assert (r.tokens[padding] == 0).all()
    assert (r.head_tokens.transpose(1, 2)[padding] == 0).all()
    for role in ("z", "neurons", "residual"):
        assert (r.records[role].transpose(1, 2)[padding] == 0).all()
    assert (r.tokens[r.attention_mask] != 0).any()


@causal_models
def test_padding_has_no_attention(name: str) -> None:
    r = explain(name, record=["pattern"])
    for example, mask in enumerate(r.attention_mask):
        attention = r.attention[example]
        assert (attention[:, :, ~mask] == 0).all()
        assert (attention[:, :, :, ~mask] == 0).all()


@every_model
@pytest.mark.parametrize("method", ["gradient_x_input", "lrp", "attnlrp"])
def test_a_batch_equals_its_texts_one_by_one(name: str, method: str) -> None:
    together = explain(name, method=method, embeddings="token")
    for i, text in enumerate(prompts(name)):
        alone = explain(name, text, method=method, embeddings="token")
        same(together[i].tokens, alone.tokens)
        same(together[i].head_tokens, alone.head_tokens)
        same(together[i].heads_relu_dim, alone.heads_relu_dim)
        same(together[i].target_value, alone.target_value)
        assert torch.equal(together[i].token_ids, alone.token_ids)
        assert torch.equal(together[i].position, alone.position)
        assert together[i].str_tokens == alone.str_tokens


@every_model
@pytest.mark.parametrize("batch_size", [1, 2])
def test_the_batch_size_does_not_matter(name: str, batch_size: int) -> None:
    whole = explain(name, record=["z"], baseline=7)
    split = explain(name, record=["z"], baseline=7, batch_size=batch_size, progress=False)
    same(split.tokens, whole.tokens)
    same(split.head_tokens, whole.head_tokens)
    same(split.records["z"], whole.records["z"])
    for joint in whole.flow:
        same(split.flow[joint], whole.flow[joint])
    assert split.str_tokens == whole.str_tokens and split.target == whole.target
    assert torch.equal(split.position, whole.position)


@every_model
def test_iteration_gives_every_example_without_its_padding(name: str) -> None:
    r = explain(name)
    rows = list(r)
    assert [len(row) for row in rows] == [1, 1, 1]
    for i, row in enumerate(rows):
        assert row.attention_mask.all()
        assert row.tokens[0].tolist() == r.real_tokens(i).tolist()
        assert row.str_tokens[0] == r.real_str_tokens(i)
        assert torch.equal(row.tokens, r[i].tokens)
        assert row.str_tokens[0][int(row.position)] == r.str_tokens[i][int(r.position[i])]
    assert torch.equal(r[-1].tokens, r[2].tokens)
    assert r[1][0].str_tokens == r[1].str_tokens


def padded_ids(name: str, side: str) -> tuple[Tensor, Tensor, Tensor]:
    """Ids, mask and positions of the texts, padded with a word that must not matter."""
    rows = [explain(name, text) for text in prompts(name)]
    length = max(row.token_ids.shape[1] for row in rows)
    ids = torch.full((len(rows), length), 20)
    mask = torch.zeros(len(rows), length, dtype=torch.long)
    for i, row in enumerate(rows):
        n = row.token_ids.shape[1]
        where = slice(0, n) if side == "right" else slice(length - n, length)
        ids[i, where], mask[i, where] = row.token_ids[0], 1
    return ids, mask, torch.stack([row.position[0] for row in rows])


SIDES = [(name, side) for name in small.CAUSAL for side in ("left", "right")]
SIDES += [(name, "right") for name in small.MASKED]


@pytest.mark.parametrize(("name", "side"), SIDES)
def test_ids_with_a_mask_equal_texts(name: str, side: str) -> None:
    ids, mask, position = padded_ids(name, side)
    target = la.LogitDiff(6, 8, position=position.tolist())
    options: dict[str, Any] = {"embeddings": "token"}
    found = la.attribute(small.model(name), ids, target, attention_mask=mask, **options)
    same_mask = la.attribute(small.model(name), ids, target, attention_mask=mask > 0, **options)
    assert torch.equal(found.tokens, same_mask.tokens)
    for got, text in zip(found, prompts(name), strict=True):
        alone = explain(name, text, embeddings="token")
        same(got.tokens, alone.tokens)
        same(got.head_tokens, alone.head_tokens)
        same(got.target_value, alone.target_value)


# ------------------------------------------------------------------------------ tables


@every_model
def test_to_pandas(name: str) -> None:
    r = explain(name)
    frame = r.to_pandas()
    assert len(frame) == int(r.attention_mask.sum())
    for i in range(len(r)):
        rows = frame[frame["example"] == i]
        assert rows["relevance"].tolist() == r.real_tokens(i).double().tolist()
        assert rows["str_token"].tolist() == r.real_str_tokens(i)
        assert rows["token_id"].tolist() == r[i].token_ids[0].tolist()
        assert rows["pos"].tolist() == list(range(len(rows)))
        assert set(rows["target_value"]) == {float(r.target_value[i])}
        assert set(rows["target"]) == {"logit of 'w6' - logit of 'w8'"}
        assert set(rows["method"]) == {"attnlrp"}


@every_model
def test_compare(name: str) -> None:
    mine = la.rules.lrp().without("FreezeNorm")
    both = la.compare(small.model(name), prompts(name), PAIR, ["lrp", mine], embeddings="token")
    assert list(both.results) == ["lrp", "lrp without FreezeNorm"]
    assert torch.equal(both["lrp"].tokens, explain(name, method="lrp", embeddings="token").tokens)
    frame = both.to_pandas(example=1)
    assert list(frame) == ["str_token", *both.results]
    assert frame["str_token"].tolist() == both["lrp"].real_str_tokens(1)
    assert frame[mine.name].tolist() == both[mine.name].real_tokens(1).tolist()


# ------------------------------------------------------------------------ save and load


def assert_identical(found: la.Relevance, expected: la.Relevance) -> None:
    """Every field, bit for bit."""
    assert vars(found).keys() == vars(expected).keys()
    for field, value in vars(expected).items():
        other = getattr(found, field)
        if isinstance(value, Tensor):
            assert other.dtype == value.dtype and torch.equal(other, value), field
        elif field in ("records", "flow"):
            assert set(other) == set(value), field
            assert all(torch.equal(other[key], value[key]) for key in value), field
        else:
            assert other == value, field


@every_model
def test_a_saved_result_is_exactly_the_same(name: str, tmp_path: Any) -> None:
    r = explain(name, record=["z", "residual", "blocks.*.hook_mlp_out"], baseline=" w7")
    found = la.Relevance.load(r.save(tmp_path / "new" / "folder"))
    assert_identical(found, r)
    assert_identical(found[1], r[1])
    for pool in ("sum", "relu_token", "relu_dim"):
        assert torch.equal(found.heads(pool), r.heads(pool))
    assert str(found.check()) == str(r.check())
    assert found.to_pandas().equals(r.to_pandas())


@gpt2_models
def test_saving_one_example_and_saving_again(name: str, tmp_path: Any) -> None:
    """One example is a slice of the batch in memory; what is saved must not be the batch."""
    r = explain(name, record=["z"])
    for example in r:
        assert_identical(la.Relevance.load(example.save(tmp_path)), example)
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "relevance.json",
        "relevance.safetensors",
    ]


@gpt2_models
def test_text_that_is_not_ascii_survives(name: str, tmp_path: Any) -> None:
    r = explain(name)
    renamed = la.Relevance(
        **vars(r) | {"str_tokens": [["żółw", " 日本", "\u2028", '"\\', "", "😀"]] * 3}
    )
    assert la.Relevance.load(renamed.save(tmp_path)).str_tokens == renamed.str_tokens


# --------------------------------------------------------------------------- attention


@causal_models
@pytest.mark.parametrize("method", ["gradient_x_input", "lrp", "gim"])
def test_attention_is_pattern_times_gradient(name: str, method: str) -> None:
    """By hand: the pattern of a plain forward times the gradient that arrives at it."""
    model, text = small.model(name), TEXTS[0]
    r = explain(name, text, method=method, record=["pattern"])
    patterns = [f"blocks.{layer}.attn.hook_pattern" for layer in range(N_LAYERS)]
    values: dict[str, Tensor] = {}
    grads: dict[str, Tensor] = {}

    def keep(where: dict[str, Tensor]) -> Any:
        def hook(tensor: Tensor, hook: Any) -> None:
            where[hook.name] = tensor.detach()

        return hook

    hooks = {
        "fwd_hooks": [(p, keep(values)) for p in patterns],
        "bwd_hooks": [(p, keep(grads)) for p in patterns],
    }
    with model.hooks(**hooks):
        explain(name, text, method=method)
    by_hand = [v * g for v, g in zip(values.values(), reversed(grads.values()), strict=True)]
    same(r.attention, torch.stack(by_hand, dim=1))
    assert (r.attention.triu(1) == 0).all()


@causal_models
def test_attention_falls_back_to_scores(name: str) -> None:
    r = explain(name, record=["scores"])
    assert r.attention is r.records["scores"]
    assert r.attention.isfinite().all()
    assert (r.attention.triu(1) == 0).all(), "masked scores carry nothing"


@pytest.mark.parametrize("name", ["bert-bridge"])
def test_attention_outside_the_graph_cannot_be_recorded(name: str) -> None:
    with pytest.raises(la.InputError, match="outside the autograd graph"):
        explain(name, record=["pattern"])


# ---------------------------------------------------------------- baselines, embeddings


def by_hand(name: str, text: str, rules: la.rules.RuleSet) -> tuple[Tensor, Tensor]:
    """Token embedding and its gradient [pos, d_model], from a backward of one's own."""
    model, r = small.model(name), explain(name, text)
    with rules.on(model):
        value, leaf = small.run(model, r.token_ids, int(r.position))
        (grad,) = torch.autograd.grad(value, leaf)
    return leaf[0].detach(), grad[0]


@every_model
def test_baselines_are_subtracted_from_the_embedding(name: str) -> None:
    """sum g * (E[token] - E[baseline]), whichever way the baseline is given."""
    model, text, rules = small.model(name), prompts(name)[0], la.rules.attnlrp()
    embedding, gradient = by_hand(name, text, rules)
    w7 = resolve(model).token_embedding(7)
    given = {
        "nothing": (None, embedding),
        "zero": (torch.zeros(D_MODEL), embedding),
        "id": (7, embedding - w7),
        "token": (" w7", embedding - w7),
        "vector": (w7, embedding - w7),
        "rows": (embedding, 0 * embedding),
        "batch": (w7.expand(1, len(embedding), -1), embedding - w7),
    }
    for baseline, difference in given.values():
        found = explain(name, text, method=rules, embeddings="token", baseline=baseline)
        same(found.tokens[0], (gradient * difference).sum(dim=-1))


@every_model
def test_a_baseline_per_example_follows_its_example(name: str) -> None:
    length = explain(name).tokens.shape[1]
    options: dict[str, Any] = {"baseline": torch.randn(3, length, D_MODEL), "embeddings": "token"}
    whole = explain(name, **options)
    split = explain(name, batch_size=2, progress=False, **options)
    same(split.tokens, whole.tokens)


@every_model
def test_a_token_as_its_own_baseline_is_worth_nothing(name: str) -> None:
    text = small.text(name, "w7 w7 w7")
    found = explain(name, text, baseline=" w7", embeddings="token")
    is_w7 = found.token_ids == 7
    assert is_w7.sum() == 3
    assert (found.tokens[is_w7] == 0).all()


@every_model
def test_full_embeddings_add_the_position(name: str) -> None:
    """full = token + position (+ type) embedding, times the same gradient."""
    text, rules = prompts(name)[0], la.rules.attnlrp()
    graph = resolve(small.model(name))
    others = [point for role in ("pos_embed", "type_embed") for point in graph.points(role)]
    added: list[Tensor] = []
    with ExitStack() as stack:
        for point in others:
            point.on_forward(lambda value: added.append(value.detach()), stack)
        _, gradient = by_hand(name, text, rules)
    full, token = (explain(name, text, embeddings=which) for which in ("full", "token"))
    position = sum(added[: len(others)], torch.zeros_like(gradient))
    same(full.tokens - token.tokens, (gradient * position).sum(dim=-1).reshape(1, -1))
    assert len(others) == {"gpt2": 1, "llama": 0, "bert": 2}[name.split("-")[0]]


# ------------------------------------------------------------------- conservation check


@every_model
@pytest.mark.parametrize("method", ["gradient_x_input", "lrp", "attnlrp", "relp"])
def test_lost_parts_sum_to_the_gap(name: str, method: str) -> None:
    r = explain(name, method=method)
    c = r.check()
    same(c.target_value, r.target_value)
    same(sum(c.parts.values()), c.gap)
    same(c.gap, c.target_value - c.total)
    same(c.relative_gap, c.gap.abs() / r.target_value.abs())
    for part, lost in c.layers.items():
        assert lost.shape == (3, N_LAYERS)
        same(lost.sum(dim=1), c.parts[part])
    frame = c.to_pandas(example=2)
    assert frame["lost"].sum() == pytest.approx(float(c.gap[2]), rel=1e-3, abs=1e-4)
    assert frame["layer"].dropna().nunique() == N_LAYERS
    assert str(c).count("\n") == 3
    assert 'record=["pattern", "scores"]' in str(c).splitlines()[-1]


SEES_PATTERN = [name for name in small.EVERY if name != "bert-bridge"]
HOLDS_ATTENTION = {"gpt2": "attention", "llama": "attention", "bert": "rest of the block"}


@pytest.mark.parametrize("name", SEES_PATTERN)
@pytest.mark.parametrize("method", ["gradient_x_input", "lrp", "attnlrp", "gim"])
def test_the_softmax_is_a_part_of_its_own_where_it_is_recorded(name: str, method: str) -> None:
    plain = explain(name, method=method).check()
    apart = explain(name, method=method, record=["pattern", "scores"]).check()
    holder = HOLDS_ATTENTION[name.split("-")[0]]
    assert "softmax" not in plain.parts
    assert 'record=["pattern", "scores"]' not in str(apart)
    same(sum(apart.parts.values()), apart.gap)
    same(apart.layers[holder] + apart.layers["softmax"], plain.layers[holder])
    for part in plain.parts.keys() - {holder}:
        same(apart.parts[part], plain.parts[part])
    assert apart.layers["softmax"].abs().min() > 1e-4


@pytest.mark.parametrize("name", SEES_PATTERN)
def test_the_softmax_loses_what_its_derivative_says(name: str) -> None:
    """Of gradient x input, by hand: sum P dP - sum S dS, where dS = P (dP - sum_k P dP)."""
    model, text = small.model(name), prompts(name)[0]
    r = explain(name, text, method="gradient_x_input", record=["pattern", "scores"])
    seen: dict[str, Tensor] = {}
    hooks = [
        (f"blocks.{layer}.attn.{hook}", lambda value, hook: seen.update({hook.name: value}))
        for layer in range(N_LAYERS)
        for hook in ("hook_pattern", "hook_attn_scores")
    ]
    with torch.no_grad(), model.hooks(fwd_hooks=hooks):
        model(r.token_ids)
    for layer, of_pattern in enumerate(r.records["pattern"][0]):
        pattern = seen[f"blocks.{layer}.attn.hook_pattern"][0]
        scores = seen[f"blocks.{layer}.attn.hook_attn_scores"][0].where(pattern > 0, 0.0)
        of_scores = scores * (of_pattern - pattern * of_pattern.sum(dim=-1, keepdim=True))
        same(r.check().layers["softmax"][0, layer], of_pattern.sum() - of_scores.sum())


@pytest.mark.parametrize("name", SEES_PATTERN)
def test_under_lrp_the_softmax_takes_what_arrives(name: str) -> None:
    """Its pattern is a constant."""
    r = explain(name, method="lrp", record=["pattern", "scores"])
    same(r.check().layers["softmax"], r.records["pattern"].flatten(2).sum(dim=2))


@every_model
@pytest.mark.parametrize("method", ["gradient_x_input", "attnlrp"])
def test_what_the_output_biases_take(name: str, method: str) -> None:
    """The bias of the attention's output times the gradient that arrives there."""
    model, text = small.model(name), prompts(name)[0]
    r = explain(name, text, method=method, record=["attn_out"])
    (points, seen) = resolve(model).points("attn_out"), []
    with torch.no_grad(), ExitStack() as stack:
        for point in points:
            point.on_forward(lambda value: seen.append(value[0]), stack)
        model(r.token_ids)
    lost = r.check().layers["attention output bias"][0]
    for layer, attn_out in enumerate(seen):
        bias = model.blocks[layer].attn.b_O
        arriving = r.records["attn_out"][0, layer] / attn_out
        same(lost[layer], (0.0 * lost[layer] if bias is None else (bias * arriving).sum()).detach())


@pytest.mark.parametrize("case", tiny.on_backends(["bert", "neox", "gpt2"]), ids=tiny.case_id)
def test_what_was_lost_is_shown_for_every_kind_of_block(case: tuple[str, str]) -> None:
    """Post-norm, parallel and sequential."""
    check = tiny.explain(tiny.model(*case), "attnlrp", tiny.token_ids(case[0])).check()
    shown = check.glance()
    assert shown.table is not None and shown.table.columns[0] == "block"
    assert set(shown.table) - {"block"} == set(check.layers)
    assert len(check.layers) >= 3
    assert any('record=["pattern", "scores"]' in note for note in shown.notes)


@every_model
def test_the_total_is_the_full_embedding(name: str) -> None:
    r = explain(name)
    same(r.check().total, r.tokens.sum(dim=1))
    with_baseline = explain(name, baseline=7, embeddings="token")
    same(with_baseline.check().total, r.check().total)


def without_biases(model: Any) -> None:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()


@pytest.mark.parametrize("name", small.EVERY)
def test_lrp_conserves_on_models_without_biases(name: str) -> None:
    family, backend = name.split("-")
    model = tiny.fresh(family, backend, edit=without_biases)
    found = la.attribute(model, prompts(name), PAIR, "lrp").check()
    assert (found.relative_gap < 1e-3).all()
    for method in ("gradient_x_input", "attnlrp"):
        other = la.attribute(model, prompts(name), PAIR, method, baseline=None).check()
        assert (other.relative_gap > 1e-2).any(), "a negative control"


# ---------------------------------------------------------------------------- metadata


@every_model
def test_metadata_says_how_it_was_made(name: str) -> None:
    r = explain(name, method="attnlrp", embeddings="token", baseline=" w7")
    about = r.metadata
    classes = {"bridge": ["TransformerBridge"], "hooked": ["HookedTransformer", "HookedEncoder"]}
    assert about["model"]["backend"] in classes[name.split("-")[1]]
    assert about["model"]["n_layers"] == N_LAYERS and about["model"]["n_heads"] == N_HEADS
    assert about["model"]["dtype"] == "float32" and about["model"]["weight_processing"] == []
    rules = [rule["rule"] for rule in about["rules"]]
    assert rules[:3] == ["FreezeNorm", "ScalePattern", "ScaleZ"]
    assert about["rules"][1]["factor"] == 0.5
    assert about["fired"]["backward_calls"] >= about["fired"]["points"] >= 3 * N_LAYERS
    assert about["embeddings"] == "token" and about["baseline"] == " w7"
    assert about["notices"] == []
    versions = about["versions"]
    assert set(versions) == {"lens_attr", "torch", "transformer-lens", "transformers"}
    assert versions["lens_attr"] == la.__version__


@pytest.mark.parametrize("backend", tiny.BACKENDS)
def test_metadata_says_where_the_model_came_from(backend: Any) -> None:
    model = la.load("demo-gpt2", backend=backend, device="cpu")
    about = la.attribute(model, ["the keys", "the"], batch_size=1).metadata
    assert about["loaded_from"] == {"name": "demo-gpt2", "revision": None}
    assert about["batch_size"] == 1


@every_model
def test_metadata_of_the_plain_gradient(name: str) -> None:
    r = explain(name, method="gradient_x_input", embeddings="token")
    assert r.metadata["rules"] == []
    assert r.metadata["fired"] == {"points": 0, "backward_calls": 0}


@every_model
def test_a_vanishing_full_gradient_is_announced(name: str) -> None:
    """BERT's LayerNorm after the embeddings makes their full gradient x input zero."""
    r = explain(name, method="gradient_x_input")
    announced = any("LayerNorm" in notice for notice in r.metadata["notices"])
    assert announced == name.startswith("bert")
    if announced:
        assert r.tokens.abs().max() < 1e-3 * r.target_value.abs().max()


@gpt2_models
@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
def test_other_dtypes(name: str, dtype: str) -> None:
    r = la.attribute(small.model(name, dtype), prompts(name), PAIR, record=["z"])
    exact = explain(name, record=["z"])
    assert r.metadata["model"]["dtype"] == dtype
    assert r.tokens.dtype == (torch.float32 if dtype == "bfloat16" else torch.float64)
    scale = exact.tokens.abs().max()
    assert (r.tokens - exact.tokens).abs().max() < (0.15 if dtype == "bfloat16" else 1e-4) * scale
