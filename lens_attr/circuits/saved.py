"""Results made of numbers and words, saved as json field by field; arrays become lists."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lens_attr.circuits.files import read_json, write_json
from lens_attr.errors import SavedResultError

Result = TypeVar("Result", bound="Saved")


class Saved:
    """A dataclass that is written as one json file and read back."""

    FILE: ClassVar[str]

    def save(self, directory: str | Path) -> Path:
        """Write the result as one json file into ``directory``, whole or not at all.

        Raises:
            InputError: ``directory`` is a file.
        """
        return write_json(Path(directory), self.FILE, self._as_plain())

    @classmethod
    def load(cls: type[Result], directory: str | Path) -> Result:
        """Read what `save` wrote.

        Raises:
            SavedResultError: missing, truncated, of an unknown format, or of another kind.
        """
        content = read_json(Path(directory), cls.FILE)
        try:
            return cls.of_plain(content)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise SavedResultError(
                f"{directory}/{cls.FILE} is no saved {cls.__name__}: {error}"
            ) from error

    def _as_plain(self) -> dict[str, Any]:
        return plain(self)

    @classmethod
    @abstractmethod
    def of_plain(cls: type[Result], content: Mapping[str, Any]) -> Result:
        """The result whose fields json knows as ``content``."""


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
