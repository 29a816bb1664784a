"""Workers that die: the run goes on, and a row that kills them is an error like any other."""

from __future__ import annotations

import json
import multiprocessing as mp
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dataset
import pytest
import torch
from test_runs_resume import finished, job_in

import lens_attr as la
from lens_attr.runs import launch, worker
from lens_attr.runs.executors import ray as ray_executor
from lens_attr.runs.executors.deaths import CHANCE, TRIES
from lens_attr.runs.sources import Row

Explain = Callable[[worker.Worker, list[Row]], la.Relevance]


@pytest.fixture
def forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Worker processes that start at once: they have the model already."""
    dataset.model()
    fork = mp.get_context("fork")
    monkeypatch.setattr(mp, "get_context", lambda kind: fork)
    for module in (launch, worker):
        monkeypatch.setattr(module, "load_model", lambda *_: dataset.model())


@pytest.fixture
def deaths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Explain], Path]:
    """Workers that die where a test says; yields a file with a letter for each."""
    tally = tmp_path / "deaths"
    tally.touch()
    explain = worker.Worker.explain

    def deadly(where: Callable[[list[int]], bool]) -> Path:
        def explained(self: worker.Worker, rows: list[Row]) -> la.Relevance:
            if where([row.index for row in rows]):
                with tally.open("a") as file:
                    file.write("x")
                dataset.kill_self()
            return explain(self, rows)

        monkeypatch.setattr(worker.Worker, "explain", explained)
        return tally

    return deadly


def errors(out: Path) -> dict[int, str]:
    found = dataset.table(out)
    assert found["row"].tolist() == list(range(dataset.ROWS))
    return found.dropna(subset="error").set_index("row")["error"].to_dict()


@pytest.mark.usefixtures("forked")
def test_a_row_that_kills_its_workers_is_an_error(
    tmp_path: Path, deaths: Callable[..., Path]
) -> None:
    tally = deaths(lambda rows: 5 in rows)
    job = job_in(tmp_path, workers=2, tokens_per_batch=200)
    report = la.run(job, progress=False)
    out = tmp_path / "out"
    assert (report.errors, report.computed, report.exit_code) == (1, 40, 3)
    assert errors(out) == {
        5: f"samples.jsonl:6: {TRIES} workers died over this row alone, probably out of memory"
    }
    halvings = len(json.loads((out / "shards" / "000000.split.json").read_text())["batches"])
    assert TRIES + CHANCE <= tally.stat().st_size <= TRIES + CHANCE * halvings
    assert la.run(job | {"workers": 1}, progress=False).computed == 0
    assert not list(out.glob("shards/*.now.json"))


@pytest.mark.usefixtures("forked")
def test_what_was_learnt_from_the_dead_is_kept(tmp_path: Path, deaths: Callable[..., Path]) -> None:
    """Started again after the row was found out, in this very process, nobody dies of it."""
    tally = deaths(lambda rows: 5 in rows)
    job = job_in(tmp_path, workers=2)
    la.run(job, progress=False)
    before, died = dataset.contents(job["out"]), tally.stat().st_size
    (tmp_path / "out" / "shards" / "000000.json").unlink()
    assert la.run(job | {"workers": 1}, progress=False).computed == 16
    assert dataset.contents(job["out"]) == before and tally.stat().st_size == died


@pytest.mark.usefixtures("forked")
def test_one_death_is_chance_and_changes_no_bit(
    tmp_path: Path, deaths: Callable[..., Path]
) -> None:
    tally = deaths(lambda rows: 17 in rows and tally.stat().st_size == 0)
    job = job_in(tmp_path, workers=2)
    assert la.run(job, progress=False).exit_code == 0
    assert tally.stat().st_size == 1
    assert dataset.contents(job["out"]) == dataset.contents(finished())


@pytest.mark.usefixtures("forked")
def test_workers_that_never_begin_end_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "load_model", lambda *_: dataset.kill_self())
    with pytest.raises(la.LensAttrError, match=rf"{TRIES} workers died before they explained any"):
        la.run(job_in(tmp_path, workers=2), progress=False)
    assert mp.active_children() == []


# ------------------------------------------------------------------------------------------- ray


class FakeRay:
    """As much of Ray as a run needs, in this process. Actors die when ``dies`` says so."""

    def __init__(self, cpus: int = 2, dies: Callable[[], bool] = lambda: False) -> None:
        self.cpus, self.dies = cpus, dies
        self.up = False
        self.started: list[dict[str, Any]] = []
        self.killed = 0
        names = ("RayActorError", "OutOfMemoryError", "RayTaskError")
        self.exceptions = SimpleNamespace(**{name: type(name, (Exception,), {}) for name in names})

    def is_initialized(self) -> bool:
        return self.up

    def init(self, address: str | None, **_: Any) -> None:
        if address is not None:
            raise ConnectionError("Could not find any running Ray instance.")
        self.up = True

    def shutdown(self) -> None:
        self.up = False

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": float(self.cpus)}

    def remote(self, **needs: Any) -> Callable[[type], Any]:
        def actor(cls: type) -> Any:
            def start(*arguments: Any) -> Any:
                self.started.append(needs)
                made = cls(*arguments)
                do = SimpleNamespace(remote=lambda work: lambda: self._do(made, work))
                return SimpleNamespace(do=do)

            return SimpleNamespace(remote=start)

        return actor

    def _do(self, member: worker.Worker, work: worker.Work) -> Any:
        if self.dies():
            raise self.exceptions.RayActorError
        return member.do(work)

    def wait(self, refs: list[Any], num_returns: int) -> tuple[list[Any], list[Any]]:
        return refs[:num_returns], refs[num_returns:]

    def get(self, ref: Callable[[], Any]) -> Any:
        return ref()

    def kill(self, member: Any) -> None:
        self.killed += 1


def on_fake_ray(monkeypatch: pytest.MonkeyPatch, fake: FakeRay, job: dict[str, Any]) -> Any:
    monkeypatch.setitem(sys.modules, "ray", fake)
    for module in (launch, worker):
        monkeypatch.setattr(module, "load_model", lambda *_: dataset.model())
    return la.run(job, progress=False)


def test_an_actor_that_died_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([False, True])
    fake = FakeRay(dies=lambda: next(answers, False))
    job = job_in(tmp_path, executor="ray", workers=2)
    assert on_fake_ray(monkeypatch, fake, job).exit_code == 0
    assert dataset.contents(job["out"]) == dataset.contents(finished())
    assert (len(fake.started), fake.killed, fake.up) == (3, 1, False)


def test_actors_that_never_begin_end_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = FakeRay(dies=lambda: True)
    with pytest.raises(la.LensAttrError, match=f"{TRIES} workers died before"):
        on_fake_ray(monkeypatch, fake, job_in(tmp_path, executor="ray", workers=1))
    assert not fake.up


def test_a_cluster_too_small_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeRay(cpus=2)
    with pytest.raises(la.InputError, match="3 workers need a CPU each, and the Ray cluster has 2"):
        on_fake_ray(monkeypatch, fake, job_in(tmp_path, executor="ray", workers=3))
    assert not fake.started and not fake.up


def test_an_address_without_a_cluster_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = job_in(tmp_path, executor="ray", address="auto")
    with pytest.raises(la.InputError, match=r"no Ray cluster at address 'auto'.*ray start --head"):
        on_fake_ray(monkeypatch, FakeRay(), job)


@pytest.mark.parametrize(
    ("device", "cuda", "gpus"),
    [("cpu", True, 0), ("cuda:1", True, 1), (None, True, 1), (None, False, 0)],
)
def test_actors_ask_for_a_gpu_if_the_job_computes_on_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str | None, cuda: bool, gpus: int
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    job = la.Job.of(job_in(tmp_path, device=device, executor="ray"))
    assert ray_executor._needs(job) == {"CPU": 1, "GPU": gpus}
