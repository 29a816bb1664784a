"""Results as json files, written whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lens_attr.attribution.storage import write_whole
from lens_attr.errors import InputError, SavedResultError

FORMAT = 1


def write_json(directory: Path, name: str, content: dict[str, Any]) -> Path:
    """Write ``directory/name`` in one step, so that a crash leaves the old file or the new one.

    Raises:
        InputError: ``directory`` is a file.
    """
    if directory.exists() and not directory.is_dir():
        raise InputError(f"{directory} is a file: give a directory to save into.")
    directory.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"format": FORMAT} | content, ensure_ascii=False)
    write_whole(directory / name, text.encode())
    return directory


def read_json(directory: Path, name: str) -> dict[str, Any]:
    """What `write_json` wrote.

    Raises:
        SavedResultError: missing, truncated, or of an unknown format.
    """
    path = directory / name
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SavedResultError(f"there is no {name} in {directory}: {error}") from error
    except ValueError as error:
        raise SavedResultError(f"{path} is truncated or no json: {error}") from error
    if not isinstance(content, dict) or content.pop("format", None) != FORMAT:
        raise SavedResultError(f"{path} is of a format that this version does not read.")
    return content
