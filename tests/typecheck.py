"""The runtime type checker of the test suite: beartype, except on parameters with ``Literal``.

pytest's ``--jaxtyping-packages`` option applies it to every function of ``lens_attr``. The library
refuses an unknown name itself, with a message that says what is known; here that message must
arrive, not beartype's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, get_args, get_origin

from beartype import beartype


def check(function: Callable[..., Any]) -> Callable[..., Any]:
    if "<locals>" in function.__qualname__:  # decorated anew at every call, which is slow
        return function
    hints = getattr(function, "__annotations__", {})
    function.__annotations__ = {
        name: hint for name, hint in hints.items() if name == "return" or not has_literal(hint)
    }
    return beartype(function)


def has_literal(hint: Any) -> bool:
    if get_origin(hint) is Literal:
        return True
    return any(has_literal(part) for part in get_args(hint))
