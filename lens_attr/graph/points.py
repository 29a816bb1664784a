"""Hook points and the roles they play, by backend and architecture.

A *role* says what an activation is (``"pattern"``, ``"z"``, ``"norm_scale"``); a `Point` is the
place in one model where it can be read and its gradient replaced. Rules speak of roles only.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable
from contextlib import ExitStack
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

Direction = Literal["fwd", "bwd"]


@dataclass(frozen=True)
class Point(ABC):
    """A place in the model where an activation is read and its gradient replaced."""

    name: str

    @property
    def layer(self) -> int | None:
        """Block index, None outside the blocks."""
        match = re.match(r"blocks\.(\d+)\.", self.name)
        return int(match[1]) if match else None

    @property
    def converted(self) -> bool:
        """Whether forward hooks see a copy in another shape, which the model itself never reads."""
        return False

    @property
    @abstractmethod
    def has_forward_hooks(self) -> bool:
        """Whether anybody reads or changes the activation here."""

    @abstractmethod
    def on_forward(self, hook: TensorHook, stack: ExitStack) -> None:
        """Call ``hook`` with the activation of every forward until ``stack`` closes."""

    @abstractmethod
    def on_backward(self, hook: TensorHook, stack: ExitStack) -> None:
        """Call ``hook`` with the gradient arriving here, for forwards run from now on."""

    @abstractmethod
    def guard(self, on_change: Callable[[], None], stack: ExitStack) -> None:
        """Call ``on_change`` when a backward hook that is already here changes the gradient."""

    @abstractmethod
    def own_backward_hooks(self) -> list[TensorHook]:
        """The hooks that `on_backward` attached here and that are still attached."""


def _own(adapters: Iterable[Any]) -> list[TensorHook]:
    return [adapter.tensor_hook for adapter in adapters if isinstance(adapter, _Adapter)]


def _no_change(hook: Any, on_change: Callable[[], None]) -> Any:
    """``hook``, a torch backward hook, made to report that it returned a gradient."""

    def guarded(*args: Any) -> None:
        if hook(*args) is not None:
            on_change()

    guarded.guarded_by_lens_attr = True  # type: ignore[attr-defined]
    return guarded


def _guard_backward_hooks(
    module: nn.Module, ours: Collection[int], on_change: Callable[[], None], stack: ExitStack
) -> None:
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

    stack.callback(undo)
    table.update(guarded)


class _Adapter(ABC):
    """One attached hook. Its removal is registered first and finds whatever was attached.

    So Ctrl-C at any instant leaves nothing behind, not even halfway through an ``add_hook``.
    """

    def __init__(self, tensor_hook: TensorHook) -> None:
        self.tensor_hook = tensor_hook

    @abstractmethod
    def remove(self) -> None:
        """Detach, if attached."""


class _LensAdapter(_Adapter):
    """A hook in the signature of TransformerLens's HookPoint."""

    def __init__(self, point: HookedPoint, tensor_hook: TensorHook, direction: Direction) -> None:
        super().__init__(tensor_hook)
        self.point = point
        self.direction: Direction = direction

    def __call__(self, tensor: Any, hook: Any) -> Tensor | None:
        if not isinstance(tensor, Tensor):
            raise UnsupportedModelError(
                f"{self.point.name} hands its {self.direction} hooks a {type(tensor).__name__}, "
                "not a tensor: this model cannot be explained through it."
            )
        return self.tensor_hook(tensor)

    def __repr__(self) -> str:
        """TransformerLens names the torch hook after this, which is how `remove` finds it."""
        return f"lens_attr hook {id(self)}"

    def remove(self) -> None:
        """See `_Adapter`."""
        hook_point = self.point.hook_point
        forward = self.direction == "fwd"
        handles = hook_point.fwd_hooks if forward else hook_point.bwd_hooks
        handles[:] = [handle for handle in handles if handle.user_hook is not self]
        table = hook_point._forward_hooks if forward else hook_point._backward_hooks
        for key, torch_hook in list(table.items()):
            if getattr(torch_hook, "__name__", None) == repr(self):
                del table[key]


@dataclass(frozen=True)
class HookedPoint(Point):
    """A TransformerLens HookPoint."""

    hook_point: HookPoint

    @property
    def converted(self) -> bool:
        """See `Point`."""
        return getattr(self.hook_point, "hook_conversion", None) is not None

    @property
    def has_forward_hooks(self) -> bool:
        """See `Point`."""
        return bool(self.hook_point._forward_hooks)

    def on_forward(self, hook: TensorHook, stack: ExitStack) -> None:
        """See `Point`."""
        self._attach(hook, "fwd", stack)

    def on_backward(self, hook: TensorHook, stack: ExitStack) -> None:
        """See `Point`."""
        self._attach(hook, "bwd", stack)

    def guard(self, on_change: Callable[[], None], stack: ExitStack) -> None:
        """See `Point`."""
        ours = {h.hook.id for h in self.hook_point.bwd_hooks if _own([h.user_hook])}
        _guard_backward_hooks(self.hook_point, ours, on_change, stack)

    def own_backward_hooks(self) -> list[TensorHook]:
        """See `Point`."""
        return _own(handle.user_hook for handle in self.hook_point.bwd_hooks)

    def _attach(self, hook: TensorHook, direction: Direction, stack: ExitStack) -> None:
        adapter = _LensAdapter(self, hook, direction)
        stack.callback(adapter.remove)
        self.hook_point.add_hook(adapter, dir=direction)


@dataclass(frozen=True)
class ModulePoint(Point):
    """The input or output of a plain module: for activations that carry no HookPoint.

    TransformerLens's HookedEncoder computes the activation of its masked-word head in such a
    module; ignoring it would change the relevance by tens of percent.
    """

    module: nn.Module
    side: Literal["input", "output"]

    @property
    def has_forward_hooks(self) -> bool:
        """See `Point`."""
        return bool(self._table("fwd"))

    def on_forward(self, hook: TensorHook, stack: ExitStack) -> None:
        """See `Point`."""
        self._attach(hook, "fwd", stack)

    def on_backward(self, hook: TensorHook, stack: ExitStack) -> None:
        """See `Point`."""
        self._attach(hook, "bwd", stack)

    def guard(self, on_change: Callable[[], None], stack: ExitStack) -> None:
        """See `Point`."""
        ours = {key for key, hook in self.module._backward_hooks.items() if _own([hook])}
        _guard_backward_hooks(self.module, ours, on_change, stack)

    def own_backward_hooks(self) -> list[TensorHook]:
        """See `Point`."""
        return _own(self._table("bwd").values())

    def _table(self, direction: Direction) -> dict[int, Any]:
        return getattr(self.module, f"_{MODULE_HOOKS[self.side, direction]}s")

    def _attach(self, hook: TensorHook, direction: Direction, stack: ExitStack) -> None:
        adapter = _ModuleAdapter(self, hook, direction)
        stack.callback(adapter.remove)
        kind = MODULE_HOOKS[self.side, direction]
        register = f"register_full_{kind}" if direction == "bwd" else f"register_{kind}"
        getattr(self.module, register)(adapter)


class _ModuleAdapter(_Adapter):
    """A hook in the signature of one of torch's four kinds of module hooks."""

    def __init__(self, point: ModulePoint, tensor_hook: TensorHook, direction: Direction) -> None:
        super().__init__(tensor_hook)
        self.point = point
        self.direction: Direction = direction

    def __call__(self, module: nn.Module, inputs: Any, output: Any = None) -> Any:
        reads_output = (self.point.side, self.direction) == ("output", "fwd")
        result = self.tensor_hook(output if reads_output else inputs[0])
        return (result,) if self.direction == "bwd" and result is not None else result

    def remove(self) -> None:
        """See `_Adapter`."""
        table = self.point._table(self.direction)
        for key in [key for key, hook in table.items() if hook is self]:
            del table[key]


MODULE_HOOKS: dict[tuple[str, str], str] = {
    ("input", "fwd"): "forward_pre_hook",
    ("output", "fwd"): "forward_hook",
    ("input", "bwd"): "backward_hook",
    ("output", "bwd"): "backward_pre_hook",
}
"""Which of torch's hooks sees the input or output of a module, or the gradient there."""


@dataclass(frozen=True)
class Activation:
    """One elementwise activation: post = f(pre), or post = f(pre) * up in a gated MLP."""

    pre: Point
    post: Point
    up: Point | None = None
