"""Results made of numbers and words, saved as json field by field; arrays become lists."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lens_attr.circuits.files import read_json, write_json
from lens_attr.errors import SavedResultError

Result = TypeVar("Result")


def save(result: Any, directory: str | Path, name: str) -> Path:
    """Write the fields of ``result`` into ``directory/<name>.json``, whole or not at all.

    Raises:
        InputError: ``directory`` is a file.
    """
    return write_json(Path(directory), f"{name}.json", plain(result))


def load(build: Callable[[dict[str, Any]], Result], directory: str | Path, name: str) -> Result:
    """What ``build`` makes of the fields that `save` wrote.

    Raises:
        SavedResultError: missing, truncated, of an unknown format, or of another kind.
    """
    content = read_json(Path(directory), f"{name}.json")
    try:
        return build(content)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise SavedResultError(f"{directory}/{name}.json is no saved {name}: {error}") from error


def plain(value: Any) -> Any:
    """A value as json knows it."""
    if is_dataclass(value):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, pd.DataFrame):
        return value.to_dict("list")
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple | range):
        return [plain(entry) for entry in value]
    return value


def tables(content: Mapping[str, Any], *names: str) -> dict[str, pd.DataFrame]:
    """The fields ``names`` as tables."""
    return {name: pd.DataFrame(content[name]) for name in names}


def numbers(content: Mapping[str, Any], *names: str) -> dict[str, NDArray[np.float64]]:
    """The fields ``names`` as arrays."""
    return {name: np.array(content[name], dtype=np.float64) for name in names}
