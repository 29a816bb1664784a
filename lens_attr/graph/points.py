"""Hook points and the roles they play, by backend and architecture.

A *role* says what an activation is (``"pattern"``, ``"z"``, ``"norm_scale"``); a `Point` is the
place in one model where it can be read and its gradient replaced. Rules speak of roles only.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from threading import get_ident
from typing import Any, Literal, get_args

from torch import Tensor, nn
from transformer_lens.hook_points import HookPoint

from lens_attr.errors import RuleConflictError, UnsupportedModelError
from lens_attr.graph.naming import PER_BLOCK

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
    def has_key_axis(self) -> bool:
        """Whether activations are [batch, head, query, key]."""
        return self.name.endswith((PER_BLOCK["scores"], PER_BLOCK["pattern"]))

    @property
    def converted(self) -> bool:
        """Whether forward hooks see a copy in another shape, which the model itself never reads."""
        return False

    @abstractmethod
    def on_forward(self, hook: TensorHook, stack: ExitStack) -> None:
        """Call ``hook`` with the activation of every forward of this thread until ``stack`` closes.

        Raises:
            RuleConflictError: another thread has a hook of ours here, see `_Adapter`.
        """

    @abstractmethod
    def on_backward(self, hook: TensorHook, stack: ExitStack) -> None:
        """Call ``hook`` with the gradient arriving here, for forwards run from now on.

        Raises:
            RuleConflictError: as in `on_forward`.
        """

    @abstractmethod
    def guard(self, on_change: Callable[[], None], stack: ExitStack) -> None:
        """Call ``on_change`` when a backward hook that is already here changes the gradient."""

    @abstractmethod
    def own_hooks(self) -> list[TensorHook]:
        """The hooks that `on_forward` and `on_backward` attached here and that still are."""

    @property
    @abstractmethod
    def place(self) -> tuple[int, str]:
        """Equal for two points that are one place under different names."""

    @property
    @abstractmethod
    def watched(self) -> bool:
        """Whether anybody's backward hook reads the gradient here."""


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

    A hook belongs to the thread that attached it. It ignores what other threads compute with the
    model, and two threads cannot have hooks at one point: each attaches first and looks then, so
    at least one of them sees the other and stands back.
    """

    def __init__(self, tensor_hook: TensorHook) -> None:
        self.tensor_hook = tensor_hook
        self.thread = get_ident()

    def ignores(self, tensor: Tensor, direction: Direction) -> bool:
        """Whether another thread computes this.

        Gradients of a GPU always come from a thread of torch's own, which says nothing.
        """
        known = direction == "fwd" or tensor.device.type == "cpu"
        return known and get_ident() != self.thread

    def refuse_other_threads(self, name: str, attached: Iterable[Any]) -> None:
        """Raise if one of the ``attached`` hooks is another thread's."""
        if any(isinstance(one, _Adapter) and one.thread != self.thread for one in attached):
            raise RuleConflictError(
                f"another thread is explaining this model right now (it has a hook at {name}), and "
                "the two would mix: hold a threading.Lock around your calls, or load the model "
                "once per thread."
            )

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
        return None if self.ignores(tensor, self.direction) else self.tensor_hook(tensor)

    def __repr__(self) -> str:
        """TransformerLens names the torch hook after this, which is how `remove` finds it."""
        return f"lens_attr hook {id(self)}"

    def remove(self) -> None:
        """See `_Adapter`."""
        hook_point = self.point.hook_point
        forward = self.direction == "fwd"
        handles = hook_point.fwd_hooks if forward else hook_point.bwd_hooks
        while mine := [handle for handle in handles if handle.user_hook is self]:
            with suppress(ValueError):  # another thread changed the list meanwhile
                handles.remove(mine[0])
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

    def own_hooks(self) -> list[TensorHook]:
        """See `Point`."""
        handles = [*self.hook_point.fwd_hooks, *self.hook_point.bwd_hooks]
        return _own(handle.user_hook for handle in handles)

    @property
    def place(self) -> tuple[int, str]:
        """See `Point`."""
        return id(self.hook_point), ""

    @property
    def watched(self) -> bool:
        """See `Point`."""
        return bool(self.hook_point._backward_hooks)

    def _attach(self, hook: TensorHook, direction: Direction, stack: ExitStack) -> None:
        adapter = _LensAdapter(self, hook, direction)
        stack.callback(adapter.remove)
        self.hook_point.add_hook(adapter, dir=direction)
        handles = [*self.hook_point.fwd_hooks, *self.hook_point.bwd_hooks]
        adapter.refuse_other_threads(self.name, (handle.user_hook for handle in handles))


@dataclass(frozen=True)
class ModulePoint(Point):
    """The input or output of a plain module: for activations that carry no HookPoint.

    TransformerLens's HookedEncoder computes the activation of its masked-word head in such a
    module; ignoring it would change the relevance by tens of percent.
    """

    module: nn.Module
    side: Literal["input", "output"]

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

    def own_hooks(self) -> list[TensorHook]:
        """See `Point`."""
        return _own([*self._table("fwd").values(), *self._table("bwd").values()])

    @property
    def place(self) -> tuple[int, str]:
        """See `Point`."""
        return id(self.module), self.side

    @property
    def watched(self) -> bool:
        """See `Point`."""
        return bool(self._table("bwd"))

    def _table(self, direction: Direction) -> dict[int, Any]:
        return getattr(self.module, f"_{MODULE_HOOKS[self.side, direction]}s")

    def _attach(self, hook: TensorHook, direction: Direction, stack: ExitStack) -> None:
        adapter = _ModuleAdapter(self, hook, direction)
        stack.callback(adapter.remove)
        kind = MODULE_HOOKS[self.side, direction]
        register = f"register_full_{kind}" if direction == "bwd" else f"register_{kind}"
        getattr(self.module, register)(adapter)
        tables = [self._table(one) for one in get_args(Direction)]
        adapter.refuse_other_threads(self.name, [h for table in tables for h in table.values()])


class _ModuleAdapter(_Adapter):
    """A hook in the signature of one of torch's four kinds of module hooks."""

    def __init__(self, point: ModulePoint, tensor_hook: TensorHook, direction: Direction) -> None:
        super().__init__(tensor_hook)
        self.point = point
        self.direction: Direction = direction

    def __call__(self, module: nn.Module, inputs: Any, output: Any = None) -> Any:
        reads_output = (self.point.side, self.direction) == ("output", "fwd")
        tensor = output if reads_output else inputs[0]
        if self.ignores(tensor, self.direction):
            return None
        result = self.tensor_hook(tensor)
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
