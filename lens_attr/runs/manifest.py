"""The manifest: what a run was started with. A run is resumed only if all of it still holds."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from lens_attr._version import versions
from lens_attr.attribution.storage import write_whole
from lens_attr.errors import InputError, SavedResultError
from lens_attr.graph import ModelGraph
from lens_attr.graph.fingerprint import fingerprint
from lens_attr.runs.job import Job, digest

FORMAT = 1
MANIFEST, PLAN = "manifest.json", "plan.jsonl"


@dataclass(frozen=True)
class Manifest:
    """Fixed at the first start, but for ``shards``, which is filled in at the end.

    Attributes:
        job: the fields that decide the values.
        job_sha256: their hash.
        model: backend, architecture, dtype, and hashes of weights and tokenizer.
        method: what made the relevance.
        versions: of lens_attr and what it computes with.
        device: where it is computed.
        threads: CPU threads per worker, on which the last bits can depend.
        input: rows, rows with errors, tokens, and the hash of all rows.
        batches: tokens per batch, number of batches and shards, memory estimate.
        plan_sha256: of the plan file.
        shards: file, rows, checksum and errors of each, once the run is complete.
    """

    job: Mapping[str, Any]
    job_sha256: str
    model: Mapping[str, Any]
    method: str
    versions: Mapping[str, str]
    device: str
    threads: int
    input: Mapping[str, Any]
    batches: Mapping[str, Any]
    plan_sha256: str
    shards: list[dict[str, Any]] | None = None
    format: int = FORMAT

    @property
    def run(self) -> str:
        """Hash of all that is fixed at the first start: what a shard must belong to."""
        return digest(asdict(replace(self, shards=None)))

    def write(self, out: Path) -> None:
        """Write ``manifest.json``, whole or not at all."""
        write_whole(out / MANIFEST, (json.dumps(asdict(self), indent=1) + "\n").encode())

    def complete(self, shards: list[dict[str, Any]]) -> Manifest:
        """The manifest of a run in which no shard is missing."""
        return replace(self, shards=shards)

    @staticmethod
    def read(out: Path) -> Manifest | None:
        """The manifest in ``out``, None where no run was started.

        Raises:
            SavedResultError: unreadable, or of another format.
        """
        try:
            plain = json.loads((out / MANIFEST).read_text(encoding="utf-8"))
            found = Manifest(**plain)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError) as error:
            raise SavedResultError(f"{out / MANIFEST} is no manifest of a run: {error}") from error
        if found.format != FORMAT:
            raise SavedResultError(
                f"{out / MANIFEST} has format {found.format}, this version reads {FORMAT}."
            )
        return found

    def refuse_other(self, what: str, then: Mapping[str, Any], now: Mapping[str, Any]) -> None:
        """Raise unless both say the same.

        Raises:
            InputError: with every difference.
        """
        changes = [
            f"{name} was {_shown(then.get(name))} and is {_shown(now.get(name))}"
            for name in dict.fromkeys([*then, *now])
            if then.get(name) != now.get(name)
        ]
        if changes:
            raise InputError(
                f"this run was started with another {what}: {'; '.join(changes)}. "
                "Put it back, or choose another out directory."
            )

    def refuse_other_job(self, job: Job) -> None:
        """Raise unless job and library versions are those of the first start.

        Raises:
            InputError: with every difference.
        """
        self.refuse_other("job", self.job, job.deciding())
        self.refuse_other("version", self.versions, versions_now())

    def refuse_other_model(self, graph: ModelGraph) -> None:
        """Raise unless weights, tokenizer and device are those of the first start.

        Raises:
            InputError: with every difference.
        """
        now = describe_model(graph) | {"device": device_name(graph)}
        self.refuse_other("model", dict(self.model) | {"device": self.device}, now)


def _shown(value: Any) -> str:
    text = value[:12] if isinstance(value, str) and len(value) == 64 else repr(value)
    return text if len(text) <= 200 else text[:200] + "..."


def versions_now() -> dict[str, str]:
    """Of everything the bits of a value can depend on."""
    return versions("tokenizers")


def describe_model(graph: ModelGraph) -> dict[str, Any]:
    """What the model is, down to its weights."""
    return graph.describe() | fingerprint(graph)


def device_name(graph: ModelGraph) -> str:
    """``"cpu"``, or the name of the GPU."""
    where = graph.device
    return torch.cuda.get_device_name(where) if where.type == "cuda" else where.type
