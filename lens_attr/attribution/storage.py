"""Saving a `Relevance`: tensors as safetensors, the rest as json, written whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from safetensors.torch import load
from safetensors.torch import save as to_bytes
from torch import Tensor

from lens_attr.errors import InputError, SavedResultError

if TYPE_CHECKING:
    from lens_attr.attribution.relevance import Relevance

FORMAT = 1
TENSORS = ("tokens", "token_ids", "attention_mask", "target_value", "position")
OPTIONAL = ("head_tokens", "heads_relu_dim", "special")
MAPPINGS = ("records", "flow", "extra")
PLAIN = ("str_tokens", "target", "method", "unit", "per_token")
SAVED = (*PLAIN, "metadata", "order")
"""What the json of a saved result holds."""

KINDS: dict[str, type] = {
    "str_tokens": list,
    "target": list,
    "method": str,
    "unit": str,
    "metadata": dict,
    "order": dict,
}


def save_parts(relevance: Relevance) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the plain rest of a result."""
    tensors = {name: getattr(relevance, name) for name in TENSORS}
    optional = {name: getattr(relevance, name) for name in OPTIONAL}
    tensors |= {name: value for name, value in optional.items() if value is not None}
    for mapping in MAPPINGS:
        entries = getattr(relevance, mapping)
        tensors |= {f"{mapping}/{name}": value for name, value in entries.items()}
    plain = {name: getattr(relevance, name) for name in PLAIN}
    plain["metadata"] = dict(relevance.metadata)
    plain["order"] = {mapping: list(getattr(relevance, mapping)) for mapping in MAPPINGS}
    return {name: value.contiguous() for name, value in tensors.items()}, plain


def save(relevance: Relevance, directory: Path) -> Path:
    """Write ``relevance.safetensors`` and ``relevance.json``; the json names the other's hash.

    Raises:
        InputError: ``directory`` is a file.
    """
    return write(directory, "relevance", *save_parts(relevance))


def write(directory: Path, name: str, tensors: dict[str, Tensor], plain: dict[str, Any]) -> Path:
    """Write ``<name>.safetensors`` and ``<name>.json`` of any result.

    Raises:
        InputError: ``directory`` is a file.
    """
    if directory.exists() and not directory.is_dir():
        raise InputError(f"{directory} is a file: give a directory to save into.")
    directory.mkdir(parents=True, exist_ok=True)
    data = to_bytes(tensors)
    plain = plain | {"format": FORMAT, "sha256": hashlib.sha256(data).hexdigest()}
    write_whole(directory / f"{name}.safetensors", data)
    text = json.dumps(plain, ensure_ascii=False, indent=1)
    write_whole(directory / f"{name}.json", text.encode())
    return directory


def write_whole(path: Path, data: bytes) -> None:
    """Replace ``path`` in one step, so that a crash leaves the old file or the new one.

    Raises:
        OSError: the disk is full, ...; then the old file is as it was.
    """
    with writing_whole(path) as file:
        file.write(data)


@contextmanager
def writing_whole(path: Path) -> Iterator[BinaryIO]:
    """As `write_whole`, for what is not in memory: yields a file that becomes ``path`` at the end.

    Raises:
        OSError: the disk is full, ...; then the old file is as it was.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_directory(path.parent)


def _sync_directory(path: Path) -> None:
    """Make the new name itself survive a power cut, where the system can."""
    with suppress(OSError):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def sha256_of(path: Path) -> str:
    """Checksum of a file, which is never whole in memory."""
    found = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            found.update(block)
    return found.hexdigest()


def load_fields(directory: Path) -> dict[str, Any]:
    """The fields of a saved result, as keyword arguments of `Relevance`.

    Raises:
        SavedResultError: missing, truncated, altered, or of an unknown format.
    """
    tensors, plain = read(directory, "relevance", SAVED)
    return fields_of(tensors, plain, directory / "relevance.json")


def fields_of(tensors: dict[str, Tensor], plain: dict[str, Any], path: Path) -> dict[str, Any]:
    """What `save_parts` took apart, as keyword arguments of `Relevance`.

    Raises:
        SavedResultError: ``plain``, the json at ``path``, does not fit the tensors.
    """
    problem = _damage(tensors, plain)
    if problem is not None:
        raise SavedResultError(f"{path} is damaged: {problem}. Save the result again.")
    fields: dict[str, Any] = {name: plain[name] for name in (*PLAIN, "metadata")}
    fields |= {name: tensors.get(name) for name in (*TENSORS, *OPTIONAL)}
    for mapping in MAPPINGS:
        names = plain["order"][mapping]
        fields[mapping] = {name: tensors[f"{mapping}/{name}"] for name in names}
    return fields


def _damage(tensors: dict[str, Tensor], plain: dict[str, Any]) -> str | None:
    """The first thing that does not fit, in words."""
    for name, kind in KINDS.items():
        if not isinstance(plain[name], kind):
            return f"{name!r} is no {kind.__name__}"
    order = plain["order"]
    for mapping in MAPPINGS:
        if not isinstance(order.get(mapping), list):
            return f"'order' has no list {mapping!r}"
    wanted = [*TENSORS, *(f"{mapping}/{name}" for mapping in MAPPINGS for name in order[mapping])]
    absent = [name for name in wanted if name not in tensors]
    if absent:
        return f"it names {absent[0]!r}, which is not among the tensors"
    rows, columns = tensors["tokens"].shape
    each = [row for row in plain["str_tokens"] if isinstance(row, list) and len(row) == columns]
    if not len(each) == len(plain["str_tokens"]) == len(plain["target"]) == rows:
        return f"'str_tokens' and 'target' are not of {rows} examples with {columns} tokens"
    return None


def read(
    directory: Path, name: str, wanted: Sequence[str]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the plain rest that `write` wrote; the latter has the ``wanted`` keys.

    Raises:
        SavedResultError: missing, truncated, altered, or of an unknown format.
    """
    plain = _read_json(directory / f"{name}.json", wanted)
    try:
        data = (directory / f"{name}.safetensors").read_bytes()
    except OSError as error:
        raise SavedResultError(f"{directory} holds no {name}.safetensors: {error}") from error
    if hashlib.sha256(data).hexdigest() != plain["sha256"]:
        raise SavedResultError(
            f"{directory}/{name}.safetensors is truncated or altered: its checksum differs "
            f"from the one in {name}.json. Save the result again."
        )
    return load(data), plain


def _read_json(path: Path, wanted: Sequence[str]) -> dict[str, Any]:
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SavedResultError(f"no saved {path.stem} at {path.parent}: {error}") from error
    except ValueError as error:
        raise SavedResultError(f"{path} is truncated or no json: {error}") from error
    if not isinstance(plain, dict) or {*wanted, "sha256", "format"} - set(plain):
        raise SavedResultError(f"{path} is not a saved {path.stem.capitalize()}.")
    if plain["format"] != FORMAT:
        raise SavedResultError(
            f"{path} has format {plain['format']}, this version reads {FORMAT}: update lens_attr."
        )
    return plain
