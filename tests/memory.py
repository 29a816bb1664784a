"""How much memory tensors take while something runs, counted, not measured: the same every time."""

from __future__ import annotations

import weakref
from collections import Counter
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


class Memory(TorchDispatchMode):
    """Counts the storage of every tensor that is made inside, once, until it is let go.

    Attributes:
        largest: bytes of the largest tensor.
        peak: bytes of all that were alive at one time.
    """

    def __init__(self) -> None:
        super().__init__()
        self.largest = self.peak = self._live = 0
        self._holders: Counter[int] = Counter()
        self._known: weakref.WeakSet[Tensor] = weakref.WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        inputs = {_address(one) for one in tree_iter((args, kwargs)) if isinstance(one, Tensor)}
        for one in tree_iter(result):
            if isinstance(one, Tensor):
                self._made(one, inputs)
        return result

    def _made(self, tensor: Tensor, inputs: set[int]) -> None:
        address, size = _address(tensor), tensor.untyped_storage().nbytes()
        if address in inputs and address not in self._holders:
            return  # a view of something that was there before
        if self._holders[address] == 0:
            self._live += size
            self.largest, self.peak = max(self.largest, size), max(self.peak, self._live)
        self._holders[address] += 1
        weakref.finalize(tensor, self._gone, address, size)

    def _gone(self, address: int, size: int) -> None:
        self._holders[address] -= 1
        if self._holders[address] == 0:
            del self._holders[address]
            self._live -= size


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
