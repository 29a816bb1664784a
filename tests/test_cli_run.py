"""``lens-attr run``: what it prints, writes and ends with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import dataset
import pytest
from test_cli import good, run

import lens_attr as la
from lens_attr.runs import launch, start


@pytest.fixture(autouse=True)
def fast_load(monkeypatch: pytest.MonkeyPatch) -> None:
    """The shared model instead of a new one for each command."""
    for module in (launch, start):
        monkeypatch.setattr(module, "load_model", lambda *_: dataset.model())


def job_file(folder: Path, rows: list[Any] | None = None, **fields: Any) -> Path:
    path = folder / "job.yaml"
    path.write_text(json.dumps(dataset.job(folder, rows, **fields)))  # JSON is YAML
    return path


def test_it_runs_and_says_what_came_of_it(tmp_path: Path) -> None:
    shown = good("run", job_file(tmp_path))
    assert "rows: 40" in shown and "with an error: 0" in shown
    assert len(dataset.table(tmp_path / "out")) == 40
    again = good("run", job_file(tmp_path))
    assert "explained now: 0" in again


def test_json(tmp_path: Path) -> None:
    document = json.loads(good("run", job_file(tmp_path), "--json"))
    assert document["rows"] == document["explained now"] == 40
    assert document["complete"] is True
    assert document["results"] == str((tmp_path / "out").resolve())


def test_quiet_prints_nothing(tmp_path: Path) -> None:
    assert good("run", job_file(tmp_path), "--quiet") == ""


def test_a_dry_run_prints_the_plan_and_writes_nothing(tmp_path: Path) -> None:
    rows = [*dataset.samples(10), "{oops"]
    shown = good("run", job_file(tmp_path, rows, tokens_per_batch=None), "--dry-run")
    for words in ("rows: 11", "rows that cannot be explained: 1", "batches: ", "estimated peak"):
        assert words in shown
    assert "data.jsonl:11: not JSON" in shown
    assert not (tmp_path / "out").exists()
    document = json.loads(good("run", job_file(tmp_path, rows), "--dry-run", "--json"))
    assert document["problems"][0].startswith("data.jsonl:11")


def test_exit_codes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("run", tmp_path / "nothing.yaml").exit_code == 2
    refused = run("run", job_file(tmp_path, method="atnlrp"))
    assert refused.exit_code == 1 and "did you mean 'attnlrp'" in refused.stderr
    some = run("run", job_file(tmp_path, [*dataset.samples(4), {"text": ""}]))
    assert some.exit_code == 3 and "with an error: 1" in some.stdout
    changed = run("run", job_file(tmp_path, method="lrp"))
    assert changed.exit_code == 1 and "method was 'attnlrp' and is 'lrp'" in changed.stderr

    def full(path: Path, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    job = job_file(tmp_path, dataset.samples(4), out=str(tmp_path / "full"))
    with monkeypatch.context() as patch:
        patch.setattr("lens_attr.runs.shards.write_whole", full)
        unwritten = run("run", job)
    assert unwritten.exit_code == 4
    assert "not written: 4" in unwritten.stdout and "No space left" in unwritten.stderr
    assert run("run", job).exit_code == 0


def test_ctrl_c_ends_with_130_and_can_be_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lens_attr.runs import worker

    do = worker.Worker.do

    def interrupted(self: Any, work: Any) -> Any:
        if work.planned.shard == 1:
            raise KeyboardInterrupt
        return do(self, work)

    job = job_file(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(worker.Worker, "do", interrupted)
        assert run("run", job).exit_code == 130
    assert "explained now: 24" in good("run", job)


def test_notices_of_the_rows_are_told_once(tmp_path: Path) -> None:
    rows = [{"text": "the keys", "target": " are not", "foil": " is not"}] * 3
    shown = run("run", job_file(tmp_path, rows, tokens_per_batch=3))
    assert shown.stderr.count("several tokens") == 1
    assert isinstance(la.Job.of(tmp_path / "job.yaml"), la.Job)
