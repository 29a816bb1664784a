"""Differentiate a forward block by block: only what enters each block is kept.

Activation checkpointing (Chen et al. 2016, arXiv 1604.06174), written out: the forward drops the
graph of each block as soon as the block is left, and the backward runs one block at a time again
and differentiates it. Every operation sees the numbers it would have seen, in both passes under the
same hooks and with gradients (without them, memory is laid out otherwise and sums round otherwise),
so the result has the same bits. Forward hooks fire twice, backward hooks once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from threading import get_ident
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_iter
from transformers import Cache, DynamicCache

from lens_attr.errors import InputError, UnsupportedModelError
from lens_attr.graph.model import ModelGraph

STREAM = "hidden_states"
"""What blocks call the residual stream, where it is not their first argument."""

Kind = Literal["forward_pre_hook", "forward_hook"]


@dataclass(frozen=True)
class _Passage:
    """One block in one forward.

    Attributes:
        entered: the stream before the block, as the forward made it.
        inside: the leaf that the block got instead.
        left: the leaf that the rest of the forward got instead of what the block made.
    """

    block: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    entered: Tensor
    inside: Tensor
    left: Tensor

    def again(self) -> Tensor:
        """The block's output, with the graph behind it up to ``inside``."""
        return _stream_of(self.block(*map(_emptied, self.args), **_emptied_values(self.kwargs)))


class Segments:
    """Cuts the next forward of a model before and after every block.

    Args:
        graph: the model.
        block_done: called with a block's index when its graph is gone, in forward and backward.
    """

    def __init__(self, graph: ModelGraph, block_done: Callable[[int], None]) -> None:
        self.blocks: list[nn.Module] = list(graph.model.blocks)
        self.block_done = block_done
        self.thread = get_ident()
        self._hooks = ExitStack()
        self._open: tuple[Any, ...] = ()
        self._passages: list[_Passage] = []

    def attach(self, stack: ExitStack) -> None:
        """Cut the forwards of this thread until `gradient` is called or ``stack`` closes."""
        stack.callback(self._passages.clear)
        stack.enter_context(self._hooks)
        for block in self.blocks:
            _register(block, "forward_pre_hook", self._enter, self._hooks)
            _register(block, "forward_hook", self._leave, self._hooks)

    def gradient(self, value: Tensor, leaf: Tensor, *, keep: bool = False) -> Tensor:
        """d value / d leaf.

        Args:
            value: one number that follows from what the last block made.
            leaf: what the first block's input follows from.
            keep: another gradient of the same forward will be asked for.

        Raises:
            UnsupportedModelError: not every block ran once, in order.
            InputError: a block gave other values the second time.
        """
        self._hooks.close()
        if [passage.block for passage in self._passages] != self.blocks:
            raise UnsupportedModelError(
                f"{len(self._passages)} blocks ran in this forward and the model has "
                f"{len(self.blocks)}: checkpointing needs each once. Use checkpoint=False."
            )
        sources = [leaf, *(passage.left for passage in self._passages)]
        (grad,) = torch.autograd.grad(value, sources[-1], retain_graph=keep)
        same: dict[int, Tensor] = {}
        for layer in reversed(range(len(self.blocks))):
            passage, source = self._passages[layer], sources[layer]
            grad, same[layer] = _through(passage, grad)
            if passage.entered is not source:
                (grad,) = torch.autograd.grad(passage.entered, source, grad, retain_graph=keep)
            self.block_done(layer)
        _refuse_other_values(same)
        return grad

    def _enter(self, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if get_ident() != self.thread:
            return None
        _refuse_other_inputs(block, (*args[1:], *(kwargs[k] for k in kwargs if k != STREAM)))
        entered = args[0] if args else kwargs[STREAM]
        inside = entered.detach().requires_grad_()
        args, kwargs = ((inside, *args[1:]), kwargs) if args else ((), kwargs | {STREAM: inside})
        self._open = args, kwargs, entered, inside
        return tuple(map(_emptied, args)), _emptied_values(kwargs)

    def _leave(self, block: nn.Module, _: Any, output: Any) -> Any:
        if get_ident() != self.thread:
            return None
        left = _stream_of(output).detach().requires_grad_()
        args, kwargs, entered, inside = self._open
        self._passages.append(_Passage(block, args, kwargs, entered, inside, left))
        self._open = ()
        _drop_pattern(block)
        self.block_done(len(self._passages) - 1)
        return left if isinstance(output, Tensor) else (left, *output[1:])


def _emptied(argument: Any) -> Any:
    """A cache for keys and values that holds none, where a block expects one.

    The forward's own would be filled twice, and would keep the graph of every block alive.
    """
    return DynamicCache() if isinstance(argument, Cache) else argument


def _emptied_values(kwargs: dict[str, Any]) -> dict[str, Any]:
    return {name: _emptied(value) for name, value in kwargs.items()}


def _through(passage: _Passage, grad: Tensor) -> tuple[Tensor, Tensor]:
    """The gradient that enters a block, from the one that leaves it; the graph ends here.

    The second is whether the block gave what it had given before, which nobody waits for yet. NaN
    equals NaN: on padding a model may compute anything.
    """
    again, before = passage.again(), passage.left
    same = ((again == before) | (again.isnan() & before.isnan())).all()
    (grad,) = torch.autograd.grad(again, passage.inside, grad)
    _drop_pattern(passage.block)
    return grad, same


def _drop_pattern(block: nn.Module) -> None:
    """The Bridge keeps every attention's last pattern, and so its graph, and never reads it."""
    attention: Any = getattr(block, "attn", None)
    if isinstance(getattr(attention, "_pattern", None), Tensor):
        attention._pattern = None


def _stream_of(output: Any) -> Tensor:
    """What a block made: some return it as the first of several."""
    return output if isinstance(output, Tensor) else output[0]


def _refuse_other_inputs(block: nn.Module, others: Iterable[Any]) -> None:
    if any(isinstance(one, Tensor) and one.requires_grad for one in tree_iter(tuple(others))):
        raise UnsupportedModelError(
            f"{type(block).__name__} reads another tensor with a gradient beside the residual "
            "stream, which checkpointing would lose. Use checkpoint=False."
        )


def _refuse_other_values(same: dict[int, Tensor]) -> None:
    """Look once, after the last block: a look waits for the device."""
    device = next(iter(same.values())).device
    flags = torch.stack([flag.to(device) for flag in same.values()]).tolist()
    changed = [layer for layer, flag in zip(same, flags, strict=True) if not flag]
    if changed:
        raise InputError(
            f"block {changed[-1]} gave other values when it ran again for its backward, so a hook of "
            "yours there is random or remembers something (or this device is not deterministic: "
            "torch.use_deterministic_algorithms(True)). Use checkpoint=False."
        )


def _register(module: nn.Module, kind: Kind, hook: Any, stack: ExitStack) -> None:
    """Removal is registered first and finds whatever was attached, wherever Ctrl-C strikes."""
    table = getattr(module, f"_{kind}s")

    def remove() -> None:
        for key in [key for key, one in table.items() if one is hook]:
            del table[key]
            getattr(module, f"_{kind}s_with_kwargs").pop(key, None)

    stack.callback(remove)
    # First in and last out, so that other hooks of the block act each time that it runs.
    first = {"prepend": True, "with_kwargs": True} if kind == "forward_pre_hook" else {}
    getattr(module, f"register_{kind}")(hook, **first)
