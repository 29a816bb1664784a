"""Values of papers stand beside ours where the model is the same, and nowhere else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from test_cli import fast_load, good, models, run  # noqa: F401  (fixtures)

from lens_attr.errors import InputError
from lens_attr.evaluation import BenchTable, beside, read_published
from lens_attr.evaluation.published import FIELDS

HEAD = ",".join(FIELDS)
# An invented number: what is tested is where it is shown.
ROW = "A paper 2020,Table 9,demo-gpt2,sva,lrp,pg,12.5"


def write(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


@pytest.mark.usefixtures("fast_load")
def test_the_command_prints_them_beside_ours(tmp_path: Path) -> None:
    path = write(tmp_path / "papers.csv", HEAD, ROW, ROW.replace("demo-gpt2", "gpt2"))
    sizes = ["--task", "sva", "--methods", "lrp", "--n", "5", "--out", tmp_path / "out"]
    shown = good("bench", *sizes, "--published", path)
    assert "A paper 2020, Table 9" in shown and "12.5" in shown
    (one,) = json.loads(good("bench", *sizes, "--published", path, "--json"))["published"]
    table = BenchTable.load(tmp_path / "out")
    assert one["published"] == 12.5 and one["value"] == table.value("lrp", "sva", "pg").value
    assert json.loads(good("bench", *sizes, "--json"))["published"] == []
    found = read_published(path)
    assert list(beside(table, found, "openai-community/GPT2")["published"]) == [12.5]
    assert beside(table, found, "gpt2-medium").empty


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        ([], "line 1 must name the columns"),
        (["paper,value"], "line 1 must name the columns"),
        ([HEAD, ROW, "a,b,c"], "line 3 must have 7 columns"),
        ([HEAD, ROW.replace("sva", " ")], "line 2 must have 7 columns, none empty"),
        ([HEAD, ROW.replace("12.5", "nan")], "line 2: 'nan' is no number"),
    ],
)
def test_malformed_files_stop_the_run_before_anything_is_computed(
    tmp_path: Path, lines: list[str], reason: str
) -> None:
    path = write(tmp_path / "papers.csv", *lines)
    with pytest.raises(InputError, match=reason):
        read_published(path)
    ran = run("bench", "--task", "sva", "--published", path, "--out", tmp_path / "out")
    assert ran.exit_code == 1 and reason in ran.stderr
    assert not (tmp_path / "out").exists()
