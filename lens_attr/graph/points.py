"""Hook points and the roles they play, by backend and architecture.

A *role* says what an activation is (``"pattern"``, ``"z"``, ``"norm_scale"``); a `Point` is the
place in one model where it can be read and its gradient replaced. Rules speak of roles only.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal, get_args

from torch import Tensor, nn
from transformer_lens.hook_points import HookPoint

from lens_attr.errors import UnsupportedModelError

Role = Literal[
    "embed",
    "pos_embed",
    "type_embed",
    "residual",
    "norm_scale",
    "q",
    "k",
    "v",
    "scores",
    "pattern",
    "z",
    "attn_out",
    "resid_mid",
    "mlp_in",
    "mlp_pre",
    "mlp_up",
    "mlp_post",
    "mlp_out",
    "head_pre",
    "head_post",
    "unembed_in",
    "logits",
]
"""``mlp_pre`` is the gate's pre-activation in a gated MLP and ``mlp_up`` what it multiplies;
``head_pre`` and ``head_post`` lie around the activation of BERT's masked-word head; ``residual``
is the stream before every block and after the last one. ``resid_mid`` is the stream between
attention and MLP (HookedTransformer), ``mlp_in`` the branch into the MLP's norm (Bridge)."""

ROLES: tuple[Role, ...] = get_args(Role)

TensorHook = Callable[[Tensor], "Tensor | None"]
"""Reads an activation (or a gradient); what it returns, if anything, replaces it."""

Undo = Callable[[], None]


@dataclass(frozen=True)
class Point(ABC):
    """A place in the model where an activation is read and its gradient replaced."""

    name: str

    @property
    def layer(self) -> int | None:
        """Block index, None outside the blocks."""
        match = re.match(r"blocks\.(\d+)\.", self.name)
        return int(match[1]) if match else None

    @abstractmethod
    def on_forward(self, hook: TensorHook) -> Undo:
        """Call ``hook`` with the activation of every forward until the returned undo is called."""

    @abstractmethod
    def on_backward(self, hook: TensorHook) -> Undo:
        """Call ``hook`` with the gradient arriving here, for forwards run from now on."""

    @abstractmethod
    def guard(self, on_change: Callable[[], None]) -> Undo:
        """Call ``on_change`` when a backward hook that is already here changes the gradient."""

    @abstractmethod
    def own_backward_hooks(self) -> list[TensorHook]:
        """The hooks that `on_backward` attached here and that are still attached."""


def _marked(adapter: Any, hook: TensorHook) -> Any:
    """``adapter``, remembering the hook it stands for."""
    adapter.lens_attr_hook = hook
    return adapter


def _own(adapters: Iterable[Any]) -> list[TensorHook]:
    found = (getattr(adapter, "lens_attr_hook", None) for adapter in adapters)
    return [hook for hook in found if hook is not None]


def _no_change(hook: Any, on_change: Callable[[], None]) -> Any:
    """``hook``, a torch backward hook, made to report that it returned a gradient."""

    def guarded(*args: Any) -> None:
        if hook(*args) is not None:
            on_change()

    guarded.guarded_by_lens_attr = True  # type: ignore[attr-defined]
    return guarded


def _guard_backward_hooks(
    module: nn.Module, ours: Collection[int], on_change: Callable[[], None]
) -> Undo:
    """Wrap the module's present backward hooks, but for ours and those guarded already."""
    table = module._backward_hooks
    originals = {
        key: hook
        for key, hook in table.items()
        if key not in ours and not getattr(hook, "guarded_by_lens_attr", False)
    }
    guarded = {key: _no_change(hook, on_change) for key, hook in originals.items()}

    def undo() -> None:
        for key, hook in originals.items():
            if table.get(key) is guarded[key]:
                table[key] = hook

    table.update(guarded)
    return undo


@dataclass(frozen=True)
class HookedPoint(Point):
    """A TransformerLens HookPoint."""

    hook_point: HookPoint

    def on_forward(self, hook: TensorHook) -> Undo:
        """See `Point`."""
        return self._attach(hook, "fwd")

    def on_backward(self, hook: TensorHook) -> Undo:
        """See `Point`."""

        return self._attach(hook, "bwd")

    def guard(self, on_change: Callable[[], None]) -> Undo:
        """See `Point`."""
        ours = {h.hook.id for h in self.hook_point.bwd_hooks if _own([h.user_hook])}
        return _guard_backward_hooks(self.hook_point, ours, on_change)

    def own_backward_hooks(self) -> list[TensorHook]:
        """See `Point`."""
        return _own(handle.user_hook for handle in self.hook_point.bwd_hooks)

    def _attach(self, tensor_hook: TensorHook, direction: Literal["fwd", "bwd"]) -> Undo:
        def adapter(tensor: Any, hook: HookPoint) -> Tensor | None:
            if not isinstance(tensor, Tensor):
                raise UnsupportedModelError(
                    f"{self.name} hands its {direction} hooks a {type(tensor).__name__}, not a "
                    "tensor: this model cannot be explained through it."
                )
            return tensor_hook(tensor)

        def undo() -> None:
            handles = getattr(self.hook_point, f"{direction}_hooks")
            for handle in [h for h in handles if h.user_hook is adapter]:
                handle.hook.remove()
                with suppress(ValueError):
                    handles.remove(handle)

        try:
            self.hook_point.add_hook(_marked(adapter, tensor_hook), dir=direction)
        except BaseException:
            undo()
            raise
        return undo


@dataclass(frozen=True)
class ModulePoint(Point):
    """The input or output of a plain module: for activations that carry no HookPoint.

    TransformerLens's HookedEncoder computes the activation of its masked-word head in such a
    module; ignoring it would change the relevance by tens of percent.
    """

    module: nn.Module
    side: Literal["input", "output"]

    def on_forward(self, hook: TensorHook) -> Undo:
        """See `Point`."""
        if self.side == "input":
            pre_hook = self.module.register_forward_pre_hook(lambda _, args: hook(args[0]))
            return pre_hook.remove

        def read_output(module: nn.Module, args: Any, output: Any) -> Tensor | None:
            return hook(output)

        return self.module.register_forward_hook(read_output).remove

    def on_backward(self, hook: TensorHook) -> Undo:
        """See `Point`."""

        def adapter(module: nn.Module, grads: Any, *_: Any) -> tuple[Tensor] | None:
            result = hook(grads[0])
            return None if result is None else (result,)

        if self.side == "input":
            return self.module.register_full_backward_hook(_marked(adapter, hook)).remove
        return self.module.register_full_backward_pre_hook(_marked(adapter, hook)).remove

    def guard(self, on_change: Callable[[], None]) -> Undo:
        """See `Point`."""
        ours = {key for key, hook in self.module._backward_hooks.items() if _own([hook])}
        return _guard_backward_hooks(self.module, ours, on_change)

    def own_backward_hooks(self) -> list[TensorHook]:
        """See `Point`."""
        side = "_backward_hooks" if self.side == "input" else "_backward_pre_hooks"
        return _own(getattr(self.module, side).values())


@dataclass(frozen=True)
class Activation:
    """One elementwise activation: post = f(pre), or post = f(pre) * up in a gated MLP."""

    pre: Point
    post: Point
    up: Point | None = None
