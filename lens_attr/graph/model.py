"""`ModelGraph`: one view of HookedTransformer, HookedEncoder and TransformerBridge."""

from __future__ import annotations

import fnmatch
import importlib
import re
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePath
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformer_lens.hook_points import HookPoint
from transformers.activations import ACT2FN

from lens_attr.errors import InputError, UnsupportedModelError, did_you_mean
from lens_attr.graph import naming
from lens_attr.graph.naming import ROLES, Role
from lens_attr.graph.points import Activation, HookedPoint, ModulePoint, Point
from lens_attr.graph.unembedding import logits_from, unembeds_by_copy
from lens_attr.graph.vocabulary import spelling_facts

Backend = Literal["HookedTransformer", "HookedEncoder", "TransformerBridge"]


def backend_class(name: Backend) -> type | None:
    """The TransformerLens class, or None where the installed version no longer has it."""
    try:
        return getattr(importlib.import_module("transformer_lens"), name)
    except ImportError:
        return None
    except AttributeError:
        return getattr(importlib.import_module("transformer_lens.model_bridge"), name)


def backend_of(model: Any) -> Backend:
    """Which TransformerLens class ``model`` is.

    Raises:
        InputError: it is none of them.
    """
    names: tuple[Backend, ...] = ("HookedTransformer", "HookedEncoder", "TransformerBridge")
    for name in names:
        cls = backend_class(name)
        if cls is not None and isinstance(model, cls):
            return name
    raise InputError(
        f"expected a TransformerLens model (HookedTransformer, HookedEncoder or "
        f"TransformerBridge), got {type(model).__name__}. Load one with la.load(name), or wrap a "
        "Hugging Face model: TransformerBridge.boot_transformers(name, hf_model=model)."
    )


def resolve(model: Any) -> ModelGraph:
    """The graph of a model, after checking that it can be explained faithfully.

    Raises:
        InputError: not a TransformerLens model, or in train mode with dropout.
        UnsupportedModelError: quantised, spread over devices, a mixture of experts, ...
    """
    graph = ModelGraph(model, backend_of(model))
    graph.refuse_unsupported()
    return graph


@dataclass(frozen=True)
class ModelGraph:
    """Roles resolved to hook points, and the forward pass, of one model.

    Holds no state of its own: everything is read off ``model``.
    """

    model: Any
    backend: Backend

    @property
    def cfg(self) -> Any:
        """The model's TransformerLens configuration."""
        return self.model.cfg

    @property
    def architecture(self) -> str:
        """Hugging Face architecture name, ``"custom"`` for a model built from a configuration."""
        bridge = self.backend == "TransformerBridge"
        name = self.cfg.architecture if bridge else self.cfg.original_architecture
        return name or ("BertForMaskedLM" if self.backend == "HookedEncoder" else "custom")

    @property
    def is_masked_model(self) -> bool:
        """True for BERT: reads both sides and predicts at a mask."""
        return self.architecture == "BertForMaskedLM"

    @property
    def n_layers(self) -> int:
        """Number of blocks."""
        return self.cfg.n_layers

    @property
    def n_heads(self) -> int:
        """Number of query heads per block."""
        return self.cfg.n_heads

    @property
    def n_ctx(self) -> int:
        """Longest input in tokens."""
        return self.cfg.n_ctx

    @property
    def d_vocab(self) -> int:
        """Number of token ids."""
        return self.cfg.d_vocab

    @property
    def tokenizer(self) -> Any:
        """The model's tokenizer, or None."""
        return self.model.tokenizer

    @cached_property
    def device(self) -> torch.device:
        """Where the parameters live."""
        return next(iter(self.model.parameters())).device

    @cached_property
    def dtype(self) -> torch.dtype:
        """Dtype of the parameters."""
        return next(iter(self.model.parameters())).dtype

    @property
    def attention_in_graph(self) -> bool:
        """Whether gradients pass through scores and pattern hook points."""
        delegated = self.architecture in naming.DELEGATED_ATTENTION
        return not (self.backend == "TransformerBridge" and delegated)

    # ---------------------------------------------------------------- points

    @cached_property
    def _hook_points(self) -> dict[str, Any]:
        return dict(self.model.hook_dict)

    def _point(self, name: str) -> Point:
        return HookedPoint(name, self._hook_points[name])

    def points(self, role: Role) -> list[Point]:
        """The points of a role in order of the forward pass; empty where the model has none."""
        if role in naming.NORM_SUFFIXES:
            return self._in_every_norm(naming.NORM_SUFFIXES[role])
        if role in ("head_pre", "head_post") and self.backend == "HookedEncoder":
            side: Literal["input", "output"] = "input" if role == "head_pre" else "output"
            return [ModulePoint(f"mlm_head.act_fn ({side})", self.model.mlm_head.act_fn, side)]
        bridge = self.backend == "TransformerBridge"
        if self.is_masked_model and role in ("resid_mid", "mlp_in"):
            return []  # post-norm: neither lies between attention and MLP
        if bridge and role == "resid_mid":
            return []
        if role == "mlp_out" and getattr(self.cfg, "attn_only", False):
            return []  # HookedTransformer has the hook but never fires it
        if bridge and self.is_masked_model and role in naming.BRIDGE_BERT_PER_BLOCK:
            return self._per_block(role, naming.BRIDGE_BERT_PER_BLOCK[role])
        if bridge and role in naming.BRIDGE_PER_BLOCK:
            return self._per_block(role, naming.BRIDGE_PER_BLOCK[role])
        if role in naming.PER_BLOCK:
            return self._per_block(role, naming.PER_BLOCK[role])
        return self._once(role)

    def _per_block(self, role: Role, suffix: str) -> list[Point]:
        names = [f"blocks.{i}.{suffix}" for i in range(self.n_layers)]
        points = [self._point(name) for name in names if name in self._hook_points]
        if role == "residual":
            points.append(self._after_last_block())
        return points

    def _after_last_block(self) -> Point:
        last = f"blocks.{self.n_layers - 1}."
        names = [last + name for name in naming.AFTER_LAST_BLOCK]
        return self._point(next(name for name in names if name in self._hook_points))

    def branches(self, layer: int) -> list[Point]:
        """Where a block's output projection and its MLP begin, if nobody looks behind them.

        From there to the next block's attention (or the logits) every position is computed apart
        from the others, so a forward hook may leave only one: sums with the stream then broadcast,
        and are right at that position. Empty where someone's hook reads or changes what lies
        behind, in post-norm models, and where Hugging Face's own attention might reshape it again.
        """
        if self.is_masked_model or not self.attention_in_graph or self._watched_behind_z(layer):
            return []
        z, *mlp = naming.BRANCHES[self.backend]
        return self._present(layer, [z]) + self._present(layer, mlp)[:1]

    def attention_input(self, layer: int) -> list[Point]:
        """Where a block's stream, normalised, enters its attention and nothing else."""
        after_attention = self.architecture in naming.NORM_AFTER_ATTENTION
        if self.is_masked_model or not self.attention_in_graph or after_attention:
            return []
        return self._present(layer, [naming.ATTENTION_INPUT[self.backend]])

    def _present(self, layer: int, names: Sequence[str]) -> list[Point]:
        full = [f"blocks.{layer}.{name}" for name in names]
        return [self._point(name) for name in full if name in self._hook_points]

    def _watched_behind_z(self, layer: int) -> bool:
        """Whether a forward hook of somebody else than the libraries is attached there."""
        modules = list(self.model.blocks[layer].modules())
        if layer == self.n_layers - 1:
            unembed_in = self._hook_points[naming.ONCE["unembed_in"][0]]
            modules += [*self.model.ln_final.modules(), unembed_in]
        return any(_is_watched(module) for module in modules if id(module) not in self._up_to_z)

    @cached_property
    def _up_to_z(self) -> frozenset[int]:
        """Ids of the hook points before the output projection of any block, by whatever name."""
        return frozenset(
            id(hook)
            for name, hook in self._hook_points.items()
            if name.startswith("blocks.") and name.split(".", 2)[2].startswith(naming.UP_TO_Z)
        )

    def _once(self, role: Role) -> list[Point]:
        table = naming.ONCE
        if self.backend == "TransformerBridge":
            table = table | naming.BRIDGE_ONCE
            table = table | (naming.BRIDGE_BERT_ONCE if self.is_masked_model else {})
        present = [name for name in table.get(role, ()) if name in self._hook_points]
        return [self._point(present[0])] if present else []

    def _in_every_norm(self, suffix: str) -> list[Point]:
        """One point of every norm once (the Bridge lists one HookPoint under several names)."""
        seen: dict[int, Point] = {}
        for name, hook_point in self._hook_points.items():
            if name.rpartition(".")[2] == suffix:
                seen.setdefault(id(hook_point), self._point(name))
        return list(seen.values())

    def activations(self) -> list[Activation]:
        """Every elementwise activation with its neighbours: MLPs, and BERT's masked-word head."""
        pres, posts, ups = (self.points(role) for role in ("mlp_pre", "mlp_post", "mlp_up"))
        if bool(ups) != bool(getattr(self.cfg, "gated_mlp", False)):
            raise UnsupportedModelError(
                f"{self.architecture}: cfg.gated_mlp is {self.cfg.gated_mlp} but "
                f"{len(ups)} hook points {naming.PER_BLOCK['mlp_up']!r} exist."
            )
        gated = ups or [None] * len(pres)
        found = [Activation(*sites) for sites in zip(pres, posts, gated, strict=True)]
        head = zip(self.points("head_pre"), self.points("head_post"), strict=True)
        return found + [Activation(pre, post) for pre, post in head]

    def activation_function(self) -> Callable[[Tensor], Tensor]:
        """The function of every site in `activations`, elementwise.

        Raises:
            UnsupportedModelError: it is not elementwise, or not known.
        """
        name = str(getattr(self.cfg, "act_fn", ""))
        if name not in ACT2FN:
            raise UnsupportedModelError(f"act_fn={name!r} is not a known elementwise activation.")
        return ACT2FN[name]

    def soft_cap(self, role: Literal["scores", "logits"]) -> float | None:
        """The c of ``c * tanh(x / c)`` that this model applies there (Gemma 2), if it does."""
        name = {"scores": "attn_scores_soft_cap", "logits": "output_logits_soft_cap"}[role]
        cap = getattr(self.cfg, name, None)
        return cap if cap is not None and cap > 0 else None

    def match(self, pattern: str) -> list[Point]:
        """The points whose hook name equals or matches a glob such as ``blocks.*.hook_mlp_out``.

        Raises:
            InputError: nothing matches.
        """
        names = [name for name in self._hook_points if fnmatch.fnmatchcase(name, pattern)]
        if not names:
            known = set(self._hook_points)
            if "*" in pattern:
                known = {re.sub(r"\.\d+\.", ".*.", name) for name in known}
            hint = did_you_mean(pattern, known)
            raise InputError(f"no hook point matches {pattern!r} on this {self.backend}; {hint}")
        seen: dict[int, Point] = {}
        for name in names:
            seen.setdefault(id(self._hook_points[name]), self._point(name))
        return list(seen.values())

    def named(self, entry: str) -> list[Point]:
        """The points of a role, or those that a hook name or a glob matches.

        Raises:
            InputError: neither a role nor a hook name of this model.
        """
        if entry in ROLES:
            return self.points(entry)
        if not any(mark in entry for mark in (".", "*", "hook_")):
            raise InputError(f"unknown role or hook {entry!r}; {did_you_mean(entry, ROLES)}")
        return self.match(entry)

    def sees_gradient(self, point: Point) -> bool:
        """False for scores and pattern of attention computed outside the autograd graph."""
        delegated: list[Point] = []
        if not self.attention_in_graph:
            delegated = self.points("scores") + self.points("pattern")
        return point not in delegated

    def behind_pattern(self, pattern: Point) -> list[Point]:
        """Points of the same attention whose gradient may all come through the pattern."""
        roles: tuple[Role, ...] = ("pattern", "v", "z", "attn_out")
        besides = {point.place for role in roles for point in self.points(role)}
        inside = f"blocks.{pattern.layer}.attn."
        return [
            point
            for point in self.every_point
            if point.name.startswith(inside) and point.place not in besides
        ]

    @cached_property
    def every_point(self) -> list[Point]:
        """Every place a rule can act on, once."""
        seen = {id(hook): self._point(name) for name, hook in reversed(self._hook_points.items())}
        return [*seen.values(), *self._module_points()]

    def _module_points(self) -> list[Point]:
        points = self.points("head_pre") + self.points("head_post")
        return [point for point in points if isinstance(point, ModulePoint)]

    # --------------------------------------------------------------- forward

    def forward(
        self, token_ids: Int[Tensor, "batch pos"], attention_mask: Bool[Tensor, "batch pos"] | None
    ) -> Float[Tensor, "row n_logits d_vocab"]:
        """Logits, of every position unless `logits_at` narrows them.

        Pass ``attention_mask`` (True = real token) only where there is padding. There are as many
        rows as examples, unless a hook puts more into the residual stream (`graph.partial`).
        """
        if attention_mask is None:
            return self.run(token_ids)
        mask = attention_mask.long()
        if self.backend == "HookedEncoder":
            return self.model(token_ids, one_zero_attention_mask=mask)
        return self.run(token_ids, attention_mask=mask)

    def run(self, entering: Tensor, **switches: Any) -> Float[Tensor, "row n_logits d_vocab"]:
        """The model's own forward, with its switches, or its equal in less time."""
        if not unembeds_by_copy(self.model):
            return self.model(entering, **switches)
        stream = self.model(entering, stop_at_layer=self.n_layers, **switches)
        return logits_from(self.model, stream, self.soft_cap("logits"))

    def logits_at(
        self,
        token_ids: Int[Tensor, "batch pos"],
        attention_mask: Bool[Tensor, "batch pos"] | None,
        position: Int[Tensor, " batch"],
    ) -> Float[Tensor, "batch d_vocab"]:
        """Logits of one position per example; the others are never unembedded."""
        return self.logits_at_each(token_ids, attention_mask, position[:, None])[:, 0]

    def logits_at_each(
        self,
        token_ids: Int[Tensor, "batch pos"],
        attention_mask: Bool[Tensor, "batch pos"] | None,
        positions: Int[Tensor, "batch n_positions"],
    ) -> Float[Tensor, "batch n_positions d_vocab"]:
        """Logits of some positions per example; the others are never unembedded."""
        rows = torch.arange(len(positions), device=positions.device)[:, None]
        (unembed_in,) = self.points("unembed_in")
        with ExitStack() as stack:
            unembed_in.on_forward(lambda stream: stream[rows, positions], stack)
            return self.forward(token_ids, attention_mask)

    def token_embedding(self, token_id: int) -> Float[Tensor, " d_model"]:
        """The embedding of one token, as it stands at the ``embed`` point."""
        embed = self.model.embed.embed if self.backend == "HookedEncoder" else self.model.embed
        with torch.no_grad():
            return embed(torch.tensor([[token_id]], device=self.device))[0, 0].detach()

    # ------------------------------------------------------------ refusals

    def refuse_unsupported(self) -> None:
        """Raise where a faithful explanation is known to be impossible."""
        self._refuse_storage()
        self._refuse_train_mode()
        self._refuse_architecture()

    def _refuse_storage(self) -> None:
        parameters = list(self.model.parameters())
        devices = {parameter.device for parameter in parameters}
        if len(devices) > 1:
            raise UnsupportedModelError(
                f"the model is spread over {sorted(map(str, devices))}; load it on one device."
            )
        quantised = getattr(self.cfg, "load_in_4bit", False)
        if quantised or any(not p.is_floating_point() for p in parameters):
            raise UnsupportedModelError(
                "the model is quantised: gradients through packed weights are not supported. "
                "Load it in float32 or bfloat16."
            )
        if any(parameter.is_inference() for parameter in parameters):
            raise UnsupportedModelError(
                "the weights were created under torch.inference_mode() and cannot carry "
                "gradients: load the model outside of it."
            )

    def _refuse_train_mode(self) -> None:
        original = getattr(self.model, "original_model", self.model)
        modules = dict.fromkeys([*self.model.modules(), *original.modules()])
        dropping = [module for module in modules if module.training and _drops(module)]
        if dropping:
            raise InputError(
                f"the model is in train mode with dropout ({type(dropping[0]).__name__}), so its "
                "relevance would be random: call model.eval() first."
            )

    def _refuse_architecture(self) -> None:
        if getattr(self.cfg, "num_experts", None):
            raise UnsupportedModelError(
                f"{self.architecture} is a mixture of experts: its mlp.hook_pre and "
                "mlp.hook_post do not surround one activation, so no rule can be placed there."
            )
        if self.backend != "TransformerBridge":
            return
        if self.architecture not in naming.BRIDGE_ARCHITECTURES:
            raise UnsupportedModelError(
                f"{self.architecture} on TransformerBridge is not verified: its hook points may "
                f"mean something else. Verified: {', '.join(sorted(naming.BRIDGE_ARCHITECTURES))}."
            )
        for flag in ("use_split_qkv_input", "use_attn_in"):
            if getattr(self.cfg, flag, False):
                raise UnsupportedModelError(
                    f"{flag} on TransformerBridge reroutes the input of attention around "
                    f"ln1.hook_scale, which silently breaks norm freezing: "
                    f"call model.set_{flag}(False)."
                )

    # ------------------------------------------------------------- metadata

    def describe(self) -> dict[str, Any]:
        """What the metadata of a result says about the model."""
        return {
            "backend": self.backend,
            "architecture": self.architecture,
            "model_name": shared_name(str(getattr(self.cfg, "model_name", "") or "")),
            "dtype": str(self.dtype).removeprefix("torch."),
            "n_layers": self.n_layers,
            "n_heads": self.n_heads,
            "spelling": spelling_facts(self.tokenizer),
            "weight_processing": self.processing(),
        }

    def processing(self) -> list[str]:
        """Which weight processing of TransformerLens this model went through; [] for raw weights.

        Read off the weights themselves, since TransformerLens keeps no record of it.
        """
        raw_bridge = self.backend == "TransformerBridge" and not getattr(
            self.model, "compatibility_mode", False
        )
        if raw_bridge or self.backend == "HookedEncoder":
            return []
        folded = str(self.cfg.normalization_type).endswith("Pre")
        found = {
            "layer norm folded": folded or getattr(self.cfg, "layer_norm_folding", False),
            WRITING_WEIGHTS_CENTRED: _centred(self.model.W_E[:64]),
            "unembedding centred": _centred(self.model.W_U[:16]),
            VALUE_BIASES_FOLDED: _folded_away(self.model.b_V, self.model.b_O),
        }
        return [name for name, holds in found.items() if holds]


VALUE_BIASES_FOLDED = "value biases folded"
WRITING_WEIGHTS_CENTRED = "writing weights centred"


def shared_name(name: str) -> str:
    """Without the folders of a local model, which are nobody else's business; hub names stay."""
    return PurePath(name).name if PurePath(name).is_absolute() else name


def _is_watched(module: nn.Module) -> bool:
    """Whether someone else than the libraries has a forward hook there; theirs come and go."""
    if isinstance(module, HookPoint):
        return bool(module._forward_hooks)
    hooks = [*module._forward_pre_hooks.values(), *module._forward_hooks.values()]
    theirs = (str(getattr(hook, "__module__", "")) for hook in hooks)
    return any(not name.startswith(("transformer_lens.", "transformers.")) for name in theirs)


def _drops(module: nn.Module) -> bool:
    """Whether it drops at random in train mode: as a layer, or as a function at its own rate.

    Hugging Face attention keeps that rate as a number, e.g. ``attention_dropout``.
    """
    if isinstance(module, nn.modules.dropout._DropoutNd):
        return module.p > 0
    rates = [value for name, value in vars(module).items() if "drop" in name]
    return any(isinstance(rate, (int, float)) and rate > 0 for rate in rates)


def _centred(rows: Tensor) -> bool:
    rows = rows.detach().double()
    return bool(rows.mean(dim=-1).abs().max() < 1e-5 * rows.abs().mean())


def _folded_away(value_biases: Tensor, output_biases: Tensor) -> bool:
    return bool((value_biases == 0).all()) and bool((output_biases != 0).any())
