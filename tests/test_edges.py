"""Edge scores against a model whose every edge carries a mask (`reference.edges`)."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import small
import tiny
import torch
from reference import PRESETS, contrast
from reference.edges import MaskedModel
from tiny import EXACT, TARGET
from torch.utils._python_dispatch import TorchDispatchMode

import lens_attr as la
from lens_attr.circuits import EdgeScores, edge_scores, exact_edge_effects

REFERENCED = tiny.on_backends(["gpt2", "llama", "qwen2"])
EVERY = tiny.on_backends(
    [*(f for f in tiny.FAMILIES if f != "bert"), *tiny.DELEGATED], tiny.BACKENDS
)
RULES = {"eap": "gradient_x_input", "eap_ig": "gradient_x_input"} | {
    name: name for name in ("relp", "gim", "attnlrp", "lrp")
}
CLEAN = tiny.token_ids("gpt2", rows=2)
CORRUPTED = CLEAN.clone()
CORRUPTED[:, 2], CORRUPTED[:, 4] = 9, 33
DIRECTION = contrast(tiny.VOCAB, TARGET.token, TARGET.foil)
TOLERANCE = 1e-9


@cache
def masked(family: str) -> MaskedModel:
    original = tiny.hugging_face(family, EXACT)
    return MaskedModel(original.state_dict(), original.config)


def scores(case: tuple[str, str], method: Any = "eap", **options: Any) -> EdgeScores:
    with tiny.precision(EXACT):
        model = tiny.model(*case, EXACT)
        clean, corrupted = options.pop("ids", (CLEAN, CORRUPTED))
        return edge_scores(model, clean, corrupted, TARGET, method, **options)


def exact(case: tuple[str, str], **options: Any) -> EdgeScores:
    with tiny.precision(EXACT):
        model = tiny.model(*case, EXACT)
        return exact_edge_effects(model, CLEAN, CORRUPTED, TARGET, **options)


def assert_same(got: EdgeScores, want: dict[tuple[str, str], float]) -> None:
    """The same edges, and the same numbers up to rounding."""
    table = {(row.source, row.target): row.score for row in got.to_pandas().itertuples()}
    assert set(table) == set(want)
    largest = max(map(abs, want.values()))
    assert max(abs(table[edge] - want[edge]) for edge in want) <= TOLERANCE * largest


def mean(per_example: list[dict[tuple[str, str], float]]) -> dict[tuple[str, str], float]:
    return {edge: float(np.mean([one[edge] for one in per_example])) for edge in per_example[0]}


# ------------------------------------------------------------------------ equal to the definition


@pytest.mark.parametrize("method", RULES)
@pytest.mark.parametrize("case", REFERENCED, ids=tiny.case_id)
def test_a_score_is_the_gradient_of_a_mask_on_the_edge(case: tuple[str, str], method: str) -> None:
    steps = 3 if method == "eap_ig" else 1
    pairs = zip(CLEAN, CORRUPTED, strict=True)
    rules = PRESETS[RULES[method]]
    want = [masked(case[0]).mask_gradients(c, k, DIRECTION, rules, steps) for c, k in pairs]
    assert_same(scores(case, method, steps=steps), mean(want))


@pytest.mark.parametrize("case", tiny.on_backends(["gpt2", "llama"]), ids=tiny.case_id)
def test_exact_effects_are_runs_with_one_mask_set(case: tuple[str, str]) -> None:
    reference = masked(case[0])
    wants = []
    for clean, corrupted in zip(CLEAN, CORRUPTED, strict=True):
        base = reference.patched(clean, corrupted, DIRECTION, [])
        wants.append(
            {
                edge: reference.patched(clean, corrupted, DIRECTION, [edge]) - base
                for edge in reference.edges()
            }
        )
    assert_same(exact(case), mean(wants))


def test_denoising_swaps_the_two_runs() -> None:
    case = REFERENCED[0]
    swapped = exact(case, mode="denoise")
    with tiny.precision(EXACT):
        model = tiny.model(*case, EXACT)
        noised = exact_edge_effects(model, CORRUPTED, CLEAN, TARGET, mode="noise")
    np.testing.assert_allclose(swapped.scores, noised.scores, atol=1e-12)
    assert swapped.method == "exact (denoise)"


# ----------------------------------------------------------------------------- every architecture


@pytest.mark.parametrize("case", EVERY, ids=tiny.case_id)
def test_the_score_is_the_slope_of_the_exact_effect(case: tuple[str, str]) -> None:
    """Between nearly equal inputs the exact effect is linear: on every family, norms included."""
    clean, corrupted = CLEAN[:1], CLEAN[:1].clone()
    corrupted[:, 2] = 6
    with tiny.precision(EXACT):
        model = tiny.fresh(*case, EXACT, edit=_nearly_equal_words)
        args = (model, clean, corrupted, TARGET)
        predicted, measured = edge_scores(*args), exact_edge_effects(*args)
    largest = np.abs(measured.scores).max()
    assert largest > 1e-9
    assert np.abs(predicted.scores - measured.scores).max() < 2e-4 * largest


def _nearly_equal_words(model: Any) -> None:
    """The embedding of the corrupting word is that of the word it replaces, moved a little."""
    embedding = model.get_input_embeddings().weight
    with torch.no_grad():
        embedding[6] = embedding[CLEAN[0, 2]] + 1e-6 * torch.randn(embedding.shape[1])


@pytest.mark.parametrize("method", ["eap", "attnlrp", "gim"])
@pytest.mark.parametrize("family", ["llama", "gemma2", "qwen3", "neox"])
def test_both_backends_agree(family: str, method: str) -> None:
    if len(tiny.BACKENDS) == 1:
        pytest.skip("only one backend is installed")
    hooked, bridge = (scores((family, backend), method) for backend in tiny.BACKENDS)
    np.testing.assert_allclose(hooked.scores, bridge.scores, atol=1e-9)
    assert hooked.wiring == bridge.wiring


@pytest.mark.parametrize("case", tiny.on_backends(["llama"]), ids=tiny.case_id)
def test_rank_correlation_with_exact_patching(
    case: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    """A random model with many tokens: what a first-order score can be expected to give."""
    clean = tiny.token_ids("llama", rows=8, length=9)
    corrupted = clean.clone()
    corrupted[:, 3] = clean[:, 3].roll(1)
    with tiny.precision(EXACT):
        model = tiny.model(*case, EXACT)
        truth = exact_edge_effects(model, clean, corrupted, TARGET)
        found = {name: edge_scores(model, clean, corrupted, TARGET, name) for name in RULES}
    rho = {name: spearman(one, truth) for name, one in found.items()}
    with capsys.disabled():
        print(f"\n{case}: Spearman with exact edge patching " + str(rho))
    shuffled = np.random.default_rng(0).permutation(truth.scores[truth.wiring.exists])
    chance = spearman_of(shuffled, truth.scores[truth.wiring.exists])
    assert rho["eap"] > 0.5 and rho["eap_ig"] > 0.5
    assert abs(chance) < 0.3


def spearman(one: EdgeScores, other: EdgeScores) -> float:
    here = one.wiring.exists
    return spearman_of(one.scores[here], other.scores[here])


def spearman_of(a: np.ndarray, b: np.ndarray) -> float:
    from scipy.stats import spearmanr

    return round(float(spearmanr(a, b)[0]), 3)


# ---------------------------------------------------------------------------- batches and padding


@pytest.mark.parametrize("name", small.CAUSAL)
@pytest.mark.parametrize("method", ["eap", "eap_ig", "gim"])
def test_a_padded_data_set_is_the_mean_of_its_examples(name: str, method: str) -> None:
    model = small.model(name)
    clean = ["w5 w9 w12 w7", "w30 w31", "w8 w7 w6 w5 w11"]
    corrupted = ["w5 w20 w12 w7", "w30 w33", "w8 w7 w9 w5 w11"]
    targets = ([" w6", " w40", " w20"], [" w8", " w41", " w33"])
    together = edge_scores(model, clean, corrupted, la.LogitDiff(*targets), method)
    singles = [
        edge_scores(model, c, k, la.LogitDiff(t, f), method).scores
        for c, k, t, f in zip(clean, corrupted, *targets, strict=True)
    ]
    np.testing.assert_allclose(together.scores, np.mean(singles, axis=0), atol=2e-5)
    for size in (1, 2):
        parts = edge_scores(
            model, clean, corrupted, la.LogitDiff(*targets), method, batch_size=size
        )
        np.testing.assert_allclose(parts.scores, together.scores, atol=2e-5)
    assert together.n == 3


def test_a_metric_of_all_logits_sees_the_whole_batch() -> None:
    """Its columns are those of the padded batch, however the examples are split."""
    model = small.model(small.GPT2[0])
    clean, corrupted = ["w5 w9 w12 w7", "w30 w31"], ["w5 w20 w12 w7", "w30 w33"]
    metric = la.Metric(lambda logits: logits[:, 4, 6] - logits[:, 4, 8])
    together = edge_scores(model, clean, corrupted, metric)
    split = edge_scores(model, clean, corrupted, metric, batch_size=1)
    named = edge_scores(model, clean, corrupted, la.LogitDiff(6, 8))
    np.testing.assert_allclose(split.scores, together.scores, atol=2e-5)
    np.testing.assert_allclose(named.scores, together.scores, atol=2e-5)


def test_unknown_words_are_announced() -> None:
    model = small.model(small.GPT2[0])
    with pytest.warns(la.Notice, match="does not know every word of example 0"):
        edge_scores(model, "w5 hello", "w5 w6", TARGET)


def test_small_pieces_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = scores(REFERENCED[0], "eap")
    monkeypatch.setattr("lens_attr.circuits.stream.CHUNK_FLOATS", 1)
    np.testing.assert_allclose(scores(REFERENCED[0], "eap").scores, whole.scores, atol=1e-12)


def test_positions_sum_to_the_whole() -> None:
    case = REFERENCED[0]
    found = scores(case, "eap", per_position=True)
    assert found.by_position is not None
    assert found.by_position.shape == (*found.scores.shape, CLEAN.shape[1])
    np.testing.assert_allclose(found.by_position.sum(-1), scores(case, "eap").scores, atol=1e-12)
    from_input = found.by_position[0]
    changed = [pos for pos in range(CLEAN.shape[1]) if np.abs(from_input[:, pos]).max() > 0]
    assert changed == [2, 4]  # where the words differ
    table = found.positions_to_pandas()
    assert len(table) == found.wiring.n_edges * CLEAN.shape[1]


def test_exact_effects_per_position() -> None:
    """Where one position alone counts, patching the edge there is patching the edge."""
    case, corrupted = REFERENCED[0], CLEAN.clone()
    corrupted[:, 2] = 9
    with tiny.precision(EXACT):
        args = (tiny.model(*case, EXACT), CLEAN, corrupted, TARGET)
        found = exact_edge_effects(*args, per_position=True)
        whole = exact_edge_effects(*args)
    assert found.by_position is not None
    np.testing.assert_array_equal(found.scores, whole.scores)
    from_input, to_logits = found.by_position[0], found.by_position[:, -1]
    np.testing.assert_allclose(from_input[:, 2], whole.scores[0], atol=1e-12)
    assert np.abs(np.delete(from_input, 2, axis=1)).max() < 1e-12
    np.testing.assert_allclose(to_logits[:, -1], whole.scores[:, -1], atol=1e-12)
    assert np.abs(to_logits[:, :-1]).max() < 1e-12
    split = found.by_position.sum(axis=-1)
    assert np.abs(split - whole.scores).max() > 1e-3  # positions of an edge do not add up


@pytest.mark.parametrize("case", tiny.on_backends(["gpt2", "llama"]), ids=tiny.case_id)
def test_a_score_per_position_is_the_slope_of_the_exact_effect_there(case: tuple[str, str]) -> None:
    clean, corrupted = CLEAN[:1], CLEAN[:1].clone()
    corrupted[:, 2] = 6
    with tiny.precision(EXACT):
        model = tiny.fresh(*case, EXACT, edit=_nearly_equal_words)
        args = (model, clean, corrupted, TARGET)
        predicted = edge_scores(*args, per_position=True).by_position
        measured = exact_edge_effects(*args, per_position=True).by_position
    assert predicted is not None and measured is not None
    assert np.abs(predicted - measured).max() < 2e-4 * np.abs(measured).max()
    assert (np.abs(measured).max(axis=(0, 1)) > 1e-9).sum() > 3  # not one position alone


def test_memory_stays_that_of_z(monkeypatch: pytest.MonkeyPatch) -> None:
    """In small pieces, nothing is ever larger than the attention pattern of one block."""
    ids = tiny.token_ids("gpt2", rows=4, length=40)
    pattern = tiny.N_HEADS * ids.numel() * 40
    assert largest_tensor(ids) > 2 * pattern  # [source, position, d_model] in one piece
    monkeypatch.setattr("lens_attr.circuits.stream.CHUNK_FLOATS", 2000)
    assert largest_tensor(ids) <= pattern


def largest_tensor(ids: torch.Tensor) -> int:
    """Numbers in the largest tensor that any operation of `edge_scores` makes."""
    sizes = [0]

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            result = func(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor):
                sizes.append(result.numel())
            return result

    with Watch():
        edge_scores(tiny.model("gpt2", tiny.BACKENDS[0]), ids, ids.roll(1, 0), TARGET)
    return max(sizes)


# ------------------------------------------------------------------------------------ identities


@pytest.mark.parametrize("case", REFERENCED[:1], ids=tiny.case_id)
def test_one_step_of_the_path_is_eap(case: tuple[str, str]) -> None:
    one, eap = scores(case, "eap_ig", steps=1), scores(case, "eap")
    np.testing.assert_allclose(one.scores, eap.scores, atol=1e-14)
    assert np.abs(scores(case, "eap_ig", steps=5).scores - eap.scores).max() > 1e-3


def test_a_path_is_named() -> None:
    """Scores of one gradient and of several never carry the same name."""
    case = REFERENCED[0]
    assert scores(case, "gim").method == "gim"
    assert scores(case, "gim", steps=2).method == "gim, 2 steps"
    assert scores(case, la.rules.gradient(), steps=2).method == "gradient, 2 steps"
    assert scores(case, "eap_ig", steps=2).method == "eap_ig"


@pytest.mark.parametrize("case", REFERENCED[:1], ids=tiny.case_id)
def test_equal_inputs_score_zero(case: tuple[str, str]) -> None:
    assert not scores(case, "gim", ids=(CLEAN, CLEAN)).scores.any()


@pytest.mark.parametrize("name", small.CAUSAL)
def test_nothing_is_left_on_the_model(name: str) -> None:
    model = small.model(name)
    edge_scores(model, CLEAN, CORRUPTED, TARGET)  # the Bridge adds hooks at first use
    before = small.world(model)
    with torch.no_grad():
        edge_scores(model, CLEAN, CORRUPTED, TARGET, "gim")
        exact_edge_effects(model, CLEAN[:1], CORRUPTED[:1], TARGET)
    with pytest.raises(la.InputError):
        edge_scores(model, CLEAN, CORRUPTED, la.Metric(lambda logits: logits.sum()))
    assert small.world(model) == before


def test_a_rule_set_is_a_method() -> None:
    case = REFERENCED[0]
    rules = la.rules.gradient() + la.rules.FreezeNorm()
    by_hand, named = scores(case, rules), scores(case, la.rules.gradient(norm=0.0))
    np.testing.assert_allclose(by_hand.scores, named.scores, atol=1e-14)
    half = scores(case, la.rules.gradient(norm=0.5)).scores
    ends = scores(case, "eap").scores, named.scores
    # From the last layer down the norms act one after another, so only single norms are linear.
    wiring = by_hand.wiring
    last = [i for i, r in enumerate(wiring.receivers) if r.layer == tiny.N_LAYERS - 1]
    mlp = [i for i in last if wiring.receivers[i].kind == "mlp"]
    frozen_final = scores(case, la.rules.gradient() + la.rules.FreezeNorm(only="ln_final*"))
    assert not np.allclose(frozen_final.scores[:, mlp], ends[0][:, mlp])
    assert not np.allclose(half, ends[0])


# -------------------------------------------------------------------------------------- refusals


def refuse(match: str, *args: Any, error: type[Exception] = la.InputError, **options: Any) -> None:
    model = small.model(small.GPT2[0])
    with pytest.raises(error, match=match):
        edge_scores(model, *args, **options)


def test_what_is_refused() -> None:
    refuse(
        "row 1: clean has 3 tokens .*, corrupted 4",
        ["w5 w6", "w7 w8"],
        ["w5 w6", "w7 w8 w9"],
        TARGET,
    )
    refuse("2 clean but 1 corrupted", ["w5", "w6"], ["w5"], TARGET)
    refuse("unknown method 'eap_gi'; did you mean 'eap_ig'", "w5", "w6", TARGET, "eap_gi")
    refuse("steps must be a whole number", "w5", "w6", TARGET, "eap_ig", steps=0)
    refuse('a path of 5 steps.*method="eap_ig"', "w5", "w6", TARGET, "eap", steps=5)
    refuse("has no switch 'temprature'", "w5", "w6", TARGET, "gim", temprature=3)
    with small.untyped():
        refuse("target must be la", "w5", "w6", " w7")
    refuse("batch_size", "w5", "w6", TARGET, batch_size=0)
    refuse("same number of tokens", ["w5 w6", "w7"], ["w6 w6", "w8"], TARGET, per_position=True)
    refuse("go with a method's name", "w5", "w6", TARGET, la.rules.gim(), temperature=3.0)

    @la.rules.custom(at="*ln1.hook_scale")
    def half(grad: torch.Tensor) -> torch.Tensor:
        return grad / 2

    rules = la.rules.gradient() + half
    refuse("half acts at .*ln1", "w5", "w6", TARGET, rules, error=la.RuleConflictError)
    with pytest.raises(la.InputError, match="unknown mode"):
        exact_edge_effects(small.model(small.GPT2[0]), "w5", "w6", TARGET, mode="deniose")  # type: ignore[arg-type]
    with small.untyped(), pytest.raises(la.InputError, match=r"batch_size must be a whole .* None"):
        exact_edge_effects(small.model(small.GPT2[0]), "w5", "w6", TARGET, batch_size=None)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", small.MASKED)
def test_post_norm_models_are_refused(name: str) -> None:
    ids = tiny.token_ids("bert")
    with pytest.raises(la.UnsupportedModelError, match="post-norm"):
        edge_scores(small.model(name), ids, ids, TARGET)


def test_an_edited_stream_is_refused() -> None:
    model = small.fresh(small.GPT2[0])
    model.add_hook("blocks.0.hook_resid_post", lambda stream, hook: stream + 1.0)
    with pytest.raises(la.UnsupportedModelError, match="do not sum to its residual stream"):
        edge_scores(model, CLEAN, CORRUPTED, TARGET)


# ----------------------------------------------------------------------------------- the results


def test_scores_survive_saving(tmp_path: Any) -> None:
    found = scores(REFERENCED[0], "eap", per_position=True)
    again = EdgeScores.load(found.save(tmp_path / "edges"))
    np.testing.assert_array_equal(again.scores, found.scores)
    np.testing.assert_array_equal(again.by_position, found.by_position)
    assert (again.wiring, again.method, again.n) == (found.wiring, found.method, found.n)
    assert again.to_pandas().equals(found.to_pandas())
    (tmp_path / "edges" / "edges.json").write_text("{")
    with pytest.raises(la.SavedResultError, match="truncated"):
        EdgeScores.load(tmp_path / "edges")
    with pytest.raises(la.SavedResultError, match=r"no edges\.json"):
        EdgeScores.load(tmp_path)


def test_edges_by_name() -> None:
    found = scores(("llama", tiny.BACKENDS[0]))
    top = found.to_pandas().iloc[0]
    assert found[top.source, top.target] == top.score
    with pytest.raises(la.InputError, match=r"no 'a1\.h9<k>'.*did you mean"):
        found["input", "a1.h9<k>"]
    with pytest.raises(la.InputError, match="does not come before"):
        found["a1.h0", "a0.h0<q>"]
