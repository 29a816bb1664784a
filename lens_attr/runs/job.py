"""`Job`: what a data-set run computes, and how. Read from YAML or a dictionary, and checked."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args

import yaml

from lens_attr.attribution.registry import method
from lens_attr.errors import InputError, did_you_mean
from lens_attr.runs.sources import COLUMNS

Executor = Literal["local", "ray"]

HOW = ("out", "executor", "workers", "address", "memory")
"""Fields that change how a run is carried out but not one bit of its values."""

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?\s*", re.IGNORECASE)
_BINARY = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}


@dataclass(frozen=True, kw_only=True)
class Job:
    """One method over one data set on one model.

    Relative paths start from the current directory.

    Attributes:
        model: what `lens_attr.load` takes: a hub name, a directory, or a demo model.
        data: a file (``.jsonl``, ``.csv``, ``.tsv``, ``.parquet``), a Hugging Face data set saved
            on disk, a glob, or several of these; read in this order (a glob sorted).
        out: the directory that holds everything the run writes.
        method: a name from ``la.methods()``.
        options: of the method, e.g. ``{"embeddings": "token"}``.
        columns: which column of the data holds ``text``, ``target``, ``foil``, ``position``, if it
            is called otherwise.
        split: of a Hugging Face data set with several.
        backend: as in `lens_attr.load`, as ``dtype`` and ``device``.
        rows_per_shard: rows in one output file, the unit of work and of resuming.
        tokens_per_batch: padded tokens in one forward; None lets the memory planner choose.
        threads: CPU threads of each worker; None: torch's own number, shared among ``workers``.
        executor: ``"local"`` or ``"ray"``.
        workers: processes that hold the model; 1 with ``"local"`` is this process.
        address: of a running Ray cluster; None starts one on this machine.
        memory: what a worker may use, e.g. ``"8 GB"``; None: most of what is free.
    """

    model: str
    data: str | tuple[str, ...]
    out: str
    method: str = "attnlrp"
    options: Mapping[str, Any] = field(default_factory=dict)
    columns: Mapping[str, str] = field(default_factory=dict)
    split: str | None = None
    backend: str = "auto"
    dtype: str = "float32"
    device: str | None = None
    rows_per_shard: int = 1024
    tokens_per_batch: int | None = None
    threads: int | None = None
    executor: Executor = "local"
    workers: int = 1
    address: str | None = None
    memory: str | int | None = None

    def __post_init__(self) -> None:
        for name, kind in _KINDS.items():
            _check_kind(name, getattr(self, name), kind)
        if not self.data:
            raise InputError("data names no file.")
        for name in ("rows_per_shard", "tokens_per_batch", "threads", "workers"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name} must be at least 1, got {value}.")
        _check_known("executor", self.executor, get_args(Executor))
        if self.address is not None and self.executor != "ray":
            raise InputError("address is of a Ray cluster: set executor: ray, or leave it out.")
        for name, column in self.columns.items():
            _check_known("column", name, COLUMNS)
            _check_kind(f"the column of {name}", column, (str,))
        self._check_options()
        _ = self.memory_bytes

    def _check_options(self) -> None:
        """The method must exist and take these options; they must survive a trip through JSON."""
        try:
            json.dumps(dict(self.options))
        except (TypeError, ValueError, RecursionError) as error:
            raise InputError(f"options must be plain numbers, strings and lists: {error}") from None
        if "record" in self.options:
            raise InputError("a run keeps token relevance only: it takes no option 'record'.")
        method(self.method).explainer(**self.options)

    @property
    def memory_bytes(self) -> int | None:
        """``memory`` in bytes.

        Raises:
            InputError: not a size.
        """
        if self.memory is None or isinstance(self.memory, int):
            return self.memory
        match = _SIZE.fullmatch(self.memory)
        if match is None:
            raise InputError(f"memory {self.memory!r} is no size: write '8 GB' or '500 MiB'.")
        number, unit, binary = match.groups()
        return int(float(number) * (_BINARY if binary else _UNITS)[unit.lower()])

    def deciding(self) -> dict[str, Any]:
        """Every field that decides the values; two jobs equal here give the same bits."""
        plain = json.loads(json.dumps(asdict(self)))
        return {name: value for name, value in plain.items() if name not in HOW}

    @property
    def sha256(self) -> str:
        """Hash of `deciding`."""
        return digest(self.deciding())

    @staticmethod
    def of(source: Job | Mapping[str, Any] | str | Path) -> Job:
        """A job from a YAML file, or a mapping with the same keys.

        Raises:
            InputError: no YAML, a key that is unknown, missing or twice, or a value of a wrong
                type.
        """
        if isinstance(source, Job):
            return source
        if isinstance(source, (str, Path)):
            source = _read(Path(source))
        if not isinstance(source, Mapping):
            raise InputError(f"a job is a mapping of names to values, got {type(source).__name__}.")
        known = [f.name for f in fields(Job)]
        for name in source:
            _check_known("key", str(name), known)
        missing = [name for name in ("model", "data", "out") if source.get(name) is None]
        if missing:
            raise InputError(f"the job has no {' and no '.join(missing)}.")
        given: dict[str, Any] = {k: value for k, value in source.items() if value is not None}
        for name in ("model", "out"):
            given[name] = str(given[name]) if isinstance(given[name], Path) else given[name]
        data = given["data"]
        several = isinstance(data, (list, tuple))
        given["data"] = tuple(map(str, data)) if several else str(data)
        return Job(**given)


_KINDS: dict[str, tuple[type, ...]] = {
    "model": (str,),
    "data": (str, tuple),
    "out": (str,),
    "method": (str,),
    "options": (Mapping,),
    "columns": (Mapping,),
    "split": (str, type(None)),
    "backend": (str,),
    "dtype": (str,),
    "device": (str, type(None)),
    "rows_per_shard": (int,),
    "tokens_per_batch": (int, type(None)),
    "threads": (int, type(None)),
    "executor": (str,),
    "workers": (int,),
    "address": (str, type(None)),
    "memory": (str, int, type(None)),
}
_NAMES = {str: "text", int: "a whole number", Mapping: "a mapping", tuple: "a list"}


def _check_kind(name: str, value: Any, kinds: tuple[type, ...]) -> None:
    if isinstance(value, kinds) and not isinstance(value, bool):
        inside = value if isinstance(value, tuple) else ()
        if all(isinstance(one, str) for one in inside):
            return
    wanted = " or ".join(_NAMES[kind] for kind in kinds if kind in _NAMES)
    raise InputError(f"{name} must be {wanted}, got {value!r}.")


def _check_known(what: str, name: Any, known: Any) -> None:
    if name not in known:
        raise InputError(f"unknown {what} {name!r}; {did_you_mean(str(name), known)}")


def digest(value: Any) -> str:
    """SHA-256 of a plain value's JSON."""
    plain = json.dumps(value, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(plain.encode()).hexdigest()


JobLike = Job | Mapping[str, Any] | str | Path


class _Loader(yaml.SafeLoader):
    """Plain data only, and no key twice."""

    def compose_mapping_node(self, anchor: Any) -> Any:
        """As written, before merge keys (``<<``) put those of other mappings beside its own."""
        node = super().compose_mapping_node(anchor)
        keys = [(key.tag, key.value) for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key[1]!r} stands there twice", node.start_mark
                )
        return node


def _read(path: Path) -> Any:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the job {path}: {error}") from error
    try:
        return yaml.load(text, Loader=_Loader)
    except RecursionError:
        raise InputError(f"{path} is nested too deeply.") from None
    except Exception as error:  # over odd scalars PyYAML raises whatever the conversion does
        raise InputError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
