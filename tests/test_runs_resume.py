"""A run that is killed, changed, or spread over workers: the same bits, and every row once."""

from __future__ import annotations

import itertools
import json
import multiprocessing as mp
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import dataset
import pytest
import small
import tiny
import torch
from typer.testing import CliRunner

import lens_attr as la
from lens_attr import _version
from lens_attr.cli import app
from lens_attr.runs import ranks, start
from lens_attr.runs.lock import at_work


@cache
def finished() -> Path:
    """The output of a run that nothing disturbed; tests copy it."""
    folder = Path(tempfile.mkdtemp(dir=tiny._root()))
    assert dataset.run(job_in(folder)).exit_code == 0
    return folder / "out"


@pytest.fixture(scope="module")
def whole() -> dict[str, bytes]:
    """What such a run leaves behind."""
    return dataset.contents(finished())


@cache
def data() -> Path:
    """One file for all tests: its path is part of the job."""
    return dataset.write(tiny._root() / "samples.jsonl", dataset.samples())


def job_in(folder: Path, **fields: Any) -> dict[str, Any]:
    return dataset.job(folder, data=str(data()), **fields)


def started(folder: Path) -> dict[str, Any]:
    """A job that has been run."""
    job = job_in(folder)
    shutil.copytree(finished(), job["out"])
    return job


@contextmanager
def other_data(rows: list[Any]) -> Iterator[None]:
    """The data file with other rows."""
    before = data().read_bytes()
    dataset.write(data(), rows)
    try:
        yield
    finally:
        data().write_bytes(before)


@pytest.fixture
def without_planner(monkeypatch: pytest.MonkeyPatch) -> None:
    """No batches are measured before a run: for tests that start many."""
    monkeypatch.setattr(start, "measure", lambda model, graph, job: None)


# --------------------------------------------------------------------------------------- killed

SYSTEM_CALLS = ("replace", "fsync")
"""Everything a run leaves on disk passes through these."""


def dying(job: dict[str, Any], call: int) -> Callable[[], None]:
    """A run that is killed before its n-th system call that changes the disk for good."""

    def function() -> None:
        calls = itertools.count(1)

        def deadly(real: Callable[..., Any]) -> Callable[..., Any]:
            def called(*args: Any) -> Any:
                if next(calls) == call:
                    dataset.kill_self()
                return real(*args)

            return called

        for name in SYSTEM_CALLS:
            setattr(os, name, deadly(getattr(os, name)))  # in a child process of its own
        dataset.run(job)

    return function


@pytest.mark.usefixtures("without_planner")
def test_killed_before_every_write_it_resumes(tmp_path: Path) -> None:
    dataset.model()
    job = dataset.job(tmp_path, dataset.samples(4), rows_per_shard=2)
    dataset.run(job)
    whole, deaths = dataset.contents(job["out"]), 0
    for call in itertools.count(1):
        job["out"] = str(tmp_path / f"out{call}")
        if dataset.exit_status(dataset.fork(dying(job, call))) == 0:
            break
        deaths += 1
        assert dataset.run(job).exit_code == 0
        assert dataset.contents(job["out"]) == whole
    assert deaths >= 18


def test_killed_again_and_again_it_comes_to_its_end(
    tmp_path: Path, whole: dict[str, bytes]
) -> None:
    """At random instants, many times over the same run."""
    dataset.model()
    job, dice = job_in(tmp_path), random.Random(0)
    deaths = 0
    for _ in range(40):
        child = dataset.fork(lambda: dataset.run(job))
        time.sleep(dice.uniform(0.0, 0.8))
        os.kill(child, signal.SIGKILL)
        deaths += dataset.exit_status(child) == -signal.SIGKILL
        if (Path(job["out"]) / "shards" / "000001.json").exists():
            break
    assert deaths > 1
    assert dataset.run(job).exit_code == 0
    assert dataset.contents(job["out"]) == whole
    assert list(Path(job["out"]).rglob(".*.tmp")) == []


def test_a_finished_run_computes_nothing_again(tmp_path: Path, whole: dict[str, bytes]) -> None:
    report = dataset.run(job := started(tmp_path))
    assert (report.rows, report.computed, report.complete) == (40, 0, True)
    assert dataset.contents(job["out"]) == whole


@pytest.mark.parametrize("spoil", ["cut", "bit", "gone"])
def test_a_damaged_shard_is_done_again(tmp_path: Path, whole: dict[str, bytes], spoil: str) -> None:
    job = started(tmp_path)
    file = Path(job["out"]) / "shards" / "000001.parquet"
    content = file.read_bytes()
    if spoil == "gone":
        file.unlink()
    else:
        middle = len(content) // 2
        changed = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
        file.write_bytes(content[:middle] if spoil == "cut" else changed)
    assert dataset.run(job).computed == 16
    assert dataset.contents(job["out"]) == whole


@pytest.mark.slow
def test_the_command_killed_and_given_again(tmp_path: Path, whole: dict[str, bytes]) -> None:
    """As a user would: a process of its own, SIGKILL while shards appear, the same command.

    The second time in this process, which has everything imported.
    """
    job = tmp_path / "job.yaml"
    out = tmp_path / "out"
    fields = job_in(tmp_path)
    job.write_text(json.dumps(fields))  # JSON is YAML
    command = [sys.executable, "-m", "lens_attr.cli", "run", str(job)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not (out / "shards" / "000000.parquet").exists():
        time.sleep(0.002)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    done = CliRunner().invoke(app, command[3:])
    assert done.exit_code == 0, done.output
    assert dataset.contents(out) == whole


# --------------------------------------------------------------------------------------- changed


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "lrp"}, "method was 'attnlrp' and is 'lrp'"),
        ({"options": {"norm": 0.5}}, r"options was {} and is {'norm': 0.5}"),
        ({"tokens_per_batch": 80}, "tokens_per_batch was 40 and is 80"),
        ({"rows_per_shard": 8}, "rows_per_shard was 16 and is 8"),
    ],
)
def test_a_changed_job_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    job = started(tmp_path)
    before = dataset.contents(job["out"])
    with pytest.raises(la.InputError, match=message):
        dataset.run(job | change)
    assert dataset.contents(job["out"]) == before


def test_a_changed_way_to_carry_it_out_is_not(tmp_path: Path) -> None:
    job = started(tmp_path)
    assert dataset.run(job | {"memory": "1 GB"}).computed == 0


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda rows: [*rows[:20], {"text": "other"}, *rows[21:]], r"row 20 \(data\.jsonl:21\) "),
        (lambda rows: rows[1:], r"row 0 \(data\.jsonl:1\) differs"),
        (lambda rows: rows[:-1], "it has 39 rows"),
        (lambda rows: rows[:16], "it has 16 rows"),
        (lambda rows: [*rows, rows[0]], r"more rows: data\.jsonl:41 is new"),
        (lambda rows: rows + rows, "more rows"),
        (lambda rows: [*rows[:9], "{oops", *rows[10:]], "row 9"),
    ],
)
def test_a_changed_input_is_refused(
    tmp_path: Path, edit: Callable[[list[Any]], list[Any]], message: str
) -> None:
    job = started(tmp_path)
    rows = edit(dataset.samples())
    with other_data(rows), pytest.raises(la.InputError, match=message.replace("data", "samples")):
        dataset.run(job)


def test_a_full_last_shard_may_not_be_followed_by_more(tmp_path: Path) -> None:
    rows = dataset.samples(33)
    job = dataset.job(tmp_path, rows[:32])
    dataset.run(job)
    dataset.write(tmp_path / "data.jsonl", rows)
    with pytest.raises(la.InputError, match=r"data\.jsonl:33 is new"):
        dataset.run(job)


def test_a_changed_model_is_refused(tmp_path: Path) -> None:
    job = started(tmp_path)
    model = la.load("demo-gpt2", device="cpu")
    with torch.no_grad():
        next(iter(model.parameters())).view(-1)[0] += 1
    with pytest.raises(la.InputError, match="another model: weights_sha256 was"):
        dataset.run(job, model)


def test_a_changed_version_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = started(tmp_path)
    monkeypatch.setattr(_version, "__version__", "99.0")
    with pytest.raises(la.InputError, match=r"lens_attr was '.*' and is '99\.0'"):
        dataset.run(job)


def test_a_changed_plan_is_refused(tmp_path: Path) -> None:
    job = started(tmp_path)
    plan = Path(job["out"]) / "plan.jsonl"
    plan.write_text(plan.read_text().replace('"start":16', '"start":15'))
    with pytest.raises(la.InputError, match="was altered"):
        dataset.run(job)


@pytest.mark.parametrize("text", ["", "{}", '{"format": 99}', "[]"])
def test_a_broken_manifest_is_refused(tmp_path: Path, text: str) -> None:
    job = started(tmp_path)
    (Path(job["out"]) / "manifest.json").write_text(text)
    with pytest.raises(la.SavedResultError, match=r"manifest\.json"):
        dataset.run(job)


def test_shards_without_a_manifest_belong_to_nobody(tmp_path: Path) -> None:
    job = started(tmp_path)
    (Path(job["out"]) / "manifest.json").unlink()
    for same_or_not in ({}, {"method": "gradient_l1"}):
        with pytest.raises(la.InputError, match=r"holds shards but no manifest\.json"):
            dataset.run(job | same_or_not)


def test_shards_of_another_run_are_not_taken_over(tmp_path: Path, whole: dict[str, bytes]) -> None:
    """Records, checksums and splits of another method, beside this run's manifest and plan."""
    job = job_in(tmp_path, method="gradient_l1")
    dataset.run(job)
    shards = Path(job["out"]) / "shards"
    (shards / "000001.split.json").write_text('{"run": "another", "batches": [[99]]}')
    for name in ("manifest.json", "plan.jsonl"):
        shutil.copy(finished() / name, job["out"])
    assert dataset.run(job_in(tmp_path)).computed == 40
    assert dataset.contents(job["out"]) == whole


# ------------------------------------------------------------------------------------------ ranks


def as_rank(job: dict[str, Any], rank: int, world: int) -> Callable[[], None]:
    def function() -> None:
        os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world)}
        assert dataset.run(job).exit_code == 0

    return function


def test_another_number_of_ranks_may_finish(tmp_path: Path, whole: dict[str, bytes]) -> None:
    """Rank 0 of 3 does its part; then the whole is resumed by a single process."""
    dataset.model()
    job = job_in(tmp_path)
    assert dataset.exit_status(dataset.fork(as_rank(job, 0, 3))) == 0
    assert len(list(Path(job["out"]).glob("**/*.parquet"))) == 1
    report = dataset.run(job)
    assert report.computed == 24 and report.complete
    assert dataset.contents(job["out"]) == whole


def test_ranks_that_end_together_leave_each_other_alone(tmp_path: Path) -> None:
    """A complete run given to four ranks at once, again and again."""
    job = dataset.job(tmp_path, dataset.samples(4), rows_per_shard=2)
    dataset.run(job)
    whole = dataset.contents(job["out"])
    for _ in range(8):
        children = [dataset.fork(as_rank(job, rank, 4)) for rank in range(4)]
        assert [dataset.exit_status(child) for child in children] == [0] * 4
    assert dataset.contents(job["out"]) == whole


def test_only_the_last_one_at_work_sweeps(tmp_path: Path) -> None:
    job = started(tmp_path)
    half = Path(job["out"]) / "shards" / ".000001.parquet.0123.tmp"
    half.touch()
    before = (Path(job["out"]) / "manifest.json").stat().st_mtime_ns
    with at_work(Path(job["out"]), rank=1):
        assert dataset.run(job).complete
        assert half.exists(), "rank 1 may be writing it"
    assert dataset.run(job).complete
    assert not half.exists()
    assert (Path(job["out"]) / "manifest.json").stat().st_mtime_ns == before, "nothing to add"


def test_the_same_job_twice_at_once_is_refused(tmp_path: Path) -> None:
    job = started(tmp_path)
    with (
        at_work(Path(job["out"]), rank=0),
        pytest.raises(la.InputError, match="another process is running this job"),
    ):
        dataset.run(job)
    assert dataset.run(job).complete


def test_a_place_is_free_when_its_process_is_killed(tmp_path: Path) -> None:
    def killed() -> None:
        with at_work(tmp_path, rank=0):
            dataset.kill_self()

    assert dataset.exit_status(dataset.fork(killed)) == -signal.SIGKILL
    with at_work(tmp_path, rank=0) as alone:
        assert alone()


def test_without_locks_nothing_is_refused_and_nothing_swept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows, and network disks that know none."""
    monkeypatch.setitem(sys.modules, "fcntl", None)
    with at_work(tmp_path, rank=0), at_work(tmp_path, rank=0) as alone:
        assert not alone()


# ---------------------------------------------------------------------------------------- workers


@contextmanager
def killer(out: Path, victims: Callable[[], list[int]]) -> Iterator[list[int]]:
    """Kills one worker with SIGKILL as soon as the first shard is there; yields whom."""
    killed: list[int] = []
    over = threading.Event()

    def watch() -> None:
        while not over.is_set() and not killed:
            if list(out.glob("shards/*.parquet")):
                for victim in victims()[:1]:
                    os.kill(victim, signal.SIGKILL)
                    killed.append(victim)
            time.sleep(0.002)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield killed
    finally:
        over.set()
        thread.join()


@pytest.mark.slow
def test_worker_processes_equal_the_serial_run(tmp_path: Path, whole: dict[str, bytes]) -> None:
    job = job_in(tmp_path, workers=2)
    with killer(tmp_path / "out", lambda: [p.pid for p in mp.active_children()]) as killed:
        report = la.run(job, progress=False)
    assert len(killed) == 1
    assert (report.rows, report.computed, report.exit_code) == (40, 40, 0)
    assert dataset.contents(job["out"]) == whole
    assert mp.active_children() == []


@pytest.mark.slow
def test_a_worker_that_cannot_load_the_model_says_why(tmp_path: Path) -> None:
    """The model disappears between planning and working."""
    copy = tmp_path / "model"
    shutil.copytree(la.demo.DEMO_MODELS["demo-gpt2"], copy)
    job = job_in(tmp_path, model=str(copy))
    dataset.run(job)
    (Path(job["out"]) / "shards" / "000001.json").unlink()
    (copy / "config.json").unlink()
    with small.untyped(), pytest.raises(la.InputError, match=r"config\.json"):
        la.run(job | {"workers": 2}, progress=False)
    assert mp.active_children() == []


# -------------------------------------------------------------------------------------------- ray


def ray_workers() -> list[int]:
    """Processes of the Ray actors that this process started."""
    psutil = pytest.importorskip("psutil")
    return [
        child.pid
        for child in psutil.Process().children(recursive=True)
        if child.is_running() and "".join(child.cmdline()[:1]).startswith("ray::Worker")
    ]


@pytest.mark.slow
def test_ray_equals_the_serial_run_though_a_worker_is_killed(
    tmp_path: Path, whole: dict[str, bytes]
) -> None:
    ray = pytest.importorskip("ray")
    job = job_in(tmp_path, executor="ray", workers=2)
    with killer(tmp_path / "out", ray_workers) as killed:
        report = la.run(job, progress=False)
    assert len(killed) == 1
    assert (report.rows, report.computed, report.exit_code) == (40, 40, 0)
    assert dataset.contents(job["out"]) == whole
    assert not ray.is_initialized()


def test_without_ray_the_way_out_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = started(tmp_path) | {"executor": "ray"}
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(la.InputError, match=r"pip install 'lens_attr\[ray\]'"):
        la.run(job, progress=False)


def test_the_launcher_is_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert ranks.share() == ranks.Share(1, 2, 0)
