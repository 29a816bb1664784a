"""Data-set runs: what is read, what is written, what is refused, and what becomes of bad rows."""

from __future__ import annotations

import csv
import errno
import gc
import json
import os
import resource
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dataset
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import small
import torch
from hypothesis import given
from hypothesis import strategies as st

import lens_attr as la
from lens_attr.graph import resolve
from lens_attr.runs import Job, launch, preview, ranks, shards, sources, worker
from lens_attr.runs.memory import Need, budget, is_out_of_memory, measure, peak_of
from lens_attr.runs.notices import Notices
from lens_attr.runs.plan import MOST_ROWS, batches_of, read_plan
from lens_attr.runs.sources import Row, read_rows

TEXT = "the keys near the old cabinet"


# --------------------------------------------------------------------------------------- the job


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"methd": "lrp"}, "unknown key 'methd'; did you mean 'method'"),
        ({"method": "atnlrp"}, "did you mean 'attnlrp'"),
        ({"options": {"temprature": 2}}, "did you mean 'temperature'"),
        ({"options": {"record": ["z"]}}, "token relevance only"),
        ({"options": {"baseline": torch.zeros(3)}}, "plain numbers"),
        ({"columns": {"txt": "sentence"}}, "unknown column 'txt'; did you mean 'text'"),
        ({"columns": {"text": 5}}, "column of text must be text"),
        ({"options": {"norm": 10**5000}}, "plain numbers"),
        ({"address": "auto"}, "set executor: ray"),
        ({"executor": "slurm"}, "unknown executor 'slurm'"),
        ({"rows_per_shard": 0}, "rows_per_shard must be at least 1"),
        ({"workers": "two"}, "workers must be a whole number"),
        ({"workers": True}, "workers must be a whole number"),
        ({"data": [3, {}]}, "no data at '3'"),
        ({"data": []}, "names no file"),
        ({"memory": "lots"}, "is no size"),
        ({"out": None}, "has no out"),
        ({"trust_remote_code": True}, "unknown key"),
    ],
)
def test_a_bad_job_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with small.untyped(), pytest.raises(la.InputError, match=message):
        dataset.run(dataset.job(tmp_path) | change)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: a\nmodel: b\ndata: c\nout: d", "twice"),
        ("[", "not YAML"),
        ("just words", "a mapping of names"),
        ("!!python/object/apply:os.system ['echo harm']", "not YAML"),
        ("model: a\ndata: b\nout: c\noptions: &a {x: *a}", "plain numbers"),
        ("[" * 5000, "nested too deeply"),
        ("workers: " + "9" * 5000, "not YAML"),
        ("split: 2001-99-99", "not YAML: month"),
    ],
)
def test_a_bad_yaml_file_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(text)
    with small.untyped(), pytest.raises(la.InputError, match=message):
        Job.of(path)


def test_yaml_and_mapping_are_the_same_job(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text("model: demo-gpt2\ndata: [a.jsonl, b/*.csv]\nout: c\noptions: {norm: 0.5}\n")
    fields = {"model": "demo-gpt2", "data": ["a.jsonl", "b/*.csv"], "out": Path("c")}
    assert Job.of(path) == Job.of(fields | {"options": {"norm": 0.5}})


def test_yaml_mappings_may_be_merged_but_hold_no_key_twice(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text("<<: {model: a, method: lrp}\nmethod: gim\ndata: b\nout: c\n")
    assert (Job.of(path).model, Job.of(path).method) == ("a", "gim")
    path.write_text("<<: {model: a, model: b}\ndata: b\nout: c\n")
    with pytest.raises(la.InputError, match="'model' stands there twice"):
        Job.of(path)


def test_only_what_decides_the_values_is_hashed(tmp_path: Path) -> None:
    job = dataset.job(tmp_path)
    same = {"workers": 4, "executor": "ray", "out": "elsewhere", "memory": "1 GB"}
    assert Job.of(job | same).sha256 == Job.of(job).sha256
    for change in ({"method": "lrp"}, {"dtype": "float64"}, {"options": {"norm": 0.5}}):
        assert Job.of(job | change).sha256 != Job.of(job).sha256


@pytest.mark.parametrize(
    ("size", "found"), [("8 GB", 8e9), ("1.5kB", 1500), ("2 MiB", 2**21), (17, 17), ("300", 300)]
)
def test_sizes(tmp_path: Path, size: str | int, found: float) -> None:
    assert Job.of(dataset.job(tmp_path, memory=size)).memory_bytes == found


# ---------------------------------------------------------------------------------------- reading

ROWS = [
    {"text": "the keys", "target": " are", "foil": " is"},
    {"text": 'a "quoted", text\nof two lines', "target": " are"},
    {"text": "naïve 日本 🙂"},
]


def plain(rows: Iterator[Row]) -> list[tuple[Any, ...]]:
    return [(row.index, row.text, row.target, row.foil, row.position, row.error) for row in rows]


def expected(rows: list[dict[str, Any]], start: int = 0) -> list[tuple[Any, ...]]:
    return [
        (i, row["text"], row.get("target"), row.get("foil"), row.get("position", -1), None)
        for i, row in enumerate(rows, start)
    ]


def save(rows: list[dict[str, Any]], path: Path) -> Path:
    frame = pd.DataFrame(rows)
    if path.suffix == ".parquet":
        frame.to_parquet(path)
    elif path.suffix in (".csv", ".tsv"):
        frame.to_csv(path, index=False, sep="\t" if path.suffix == ".tsv" else ",")
    else:
        dataset.write(path, rows)
    return path


@pytest.mark.parametrize("kind", [".jsonl", ".ndjson", ".csv", ".tsv", ".parquet"])
def test_every_kind_of_file_gives_the_same_rows(tmp_path: Path, kind: str) -> None:
    assert plain(read_rows(str(save(ROWS, tmp_path / f"data{kind}")))) == expected(ROWS)


def test_a_hugging_face_data_set_on_disk(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    one = datasets.Dataset.from_list(
        [{"text": None, "target": None, "foil": None} | r for r in ROWS]
    )
    one.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": one}).save_to_disk(tmp_path / "several")
    assert plain(read_rows(str(tmp_path / "one"))) == expected(ROWS)
    assert plain(read_rows(str(tmp_path / "several"), split="train")) == expected(ROWS)
    with pytest.raises(la.InputError, match="splits train"):
        list(read_rows(str(tmp_path / "several")))


def test_globs_and_lists_are_read_in_order(tmp_path: Path) -> None:
    save(ROWS[:1], tmp_path / "b.jsonl")
    save(ROWS[1:2], tmp_path / "a.csv")
    save(ROWS[2:], tmp_path / "c.parquet")
    found = read_rows([str(tmp_path / "[ab].*"), str(tmp_path / "c.parquet")])
    assert plain(found) == expected([ROWS[1], ROWS[0], ROWS[2]])


def test_columns_may_have_other_names(tmp_path: Path) -> None:
    rows = [{"sentence": "a b", "answer": " c", "target": "not this", "at": 1}]
    path = dataset.write(tmp_path / "d.jsonl", rows)
    names = {"text": "sentence", "target": "answer", "position": "at"}
    assert plain(read_rows(str(path), names)) == [(0, "a b", " c", None, 1, None)]


@pytest.mark.parametrize("kind", [".csv", ".parquet"])
def test_positions_and_ids_survive_tables_with_gaps(tmp_path: Path, kind: str) -> None:
    rows = [{"text": "a b", "position": 1}, {"text": "c d"}]
    path = save(rows, tmp_path / f"d{kind}")
    if kind == ".csv":
        path.write_text(path.read_text().replace("1.0", "1"))
    assert [row.position for row in read_rows(str(path))] == [1, -1]


def test_rows_that_cannot_be_read_say_where(tmp_path: Path) -> None:
    lines = [
        '{"text": "fine"}',
        "{oops",
        "",
        '["text"]',
        '{"text": 3}',
        '{"text": "a", "target": 1.5}',
        '{"text": "a", "foil": " b"}',
        '{"text": "a", "position": "last"}',
    ]
    path = dataset.write(tmp_path / "bad.jsonl", lines)
    path.write_bytes(path.read_bytes() + b'{"text": "\xff"}\n')
    found = [(row.where, row.error) for row in read_rows(str(path))]
    assert found[0] == ("bad.jsonl:1", None)
    assert [where for where, _ in found[1:]] == [f"bad.jsonl:{n}" for n in (2, 4, 5, 6, 7, 8, 9)]
    for (_, error), words in zip(
        found[1:],
        ["not JSON", "not a JSON object", "no 'text'", "token id", "no target", "whole", "utf-8"],
        strict=True,
    ):
        assert words in error


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "a", "target": %s}' % ("9" * 5000), "not JSON: Exceeds the limit"),
        ("[" * 100_000, "not JSON: maximum recursion depth"),
        ('{"text": "a", "position": "--1"}', "whole number, got '--1'"),
        ('{"text": "a", "position": "%s"}' % ("9" * 5000), "whole number"),
    ],
)
def test_an_odd_row_is_one_error(tmp_path: Path, line: str, message: str) -> None:
    path = dataset.write(tmp_path / "odd.jsonl", [{"text": "fine"}, line, {"text": "fine"}])
    errors = [row.error for row in read_rows(str(path))]
    assert errors[0] is errors[2] is None
    assert message in str(errors[1])


def test_a_byte_order_mark_costs_no_row(tmp_path: Path) -> None:
    path = tmp_path / "marked.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "a"}\n{"text": "b"}\n')
    assert [row.text for row in read_rows(str(path))] == ["a", "b"]


def test_a_damaged_page_costs_the_rows_of_its_group(tmp_path: Path) -> None:
    texts = [f"number {i}" for i in range(300)]
    path = tmp_path / "data.parquet"
    options: dict[str, Any] = {"compression": "none", "use_dictionary": False}
    pq.write_table(pa.table({"text": texts}), path, row_group_size=100, **options)
    whole = path.read_bytes()
    at = whole.index(b"number 150")
    path.write_bytes(whole[: at - 4] + b"\xff" * 4 + whole[at:])  # the length of that string
    rows = list(read_rows(str(path)))
    assert [row.index for row in rows] == list(range(300))
    assert [row.text for row in rows[:100] + rows[200:]] == texts[:100] + texts[200:]
    assert all("damaged" in str(row.error) for row in rows[100:200])
    path.write_bytes(whole[:at] + b"\xff" + whole[at + 1 :])
    assert [row.index for row in read_rows(str(path)) if row.error] == [150]


@pytest.mark.parametrize("kind", [".jsonl", ".csv", ".parquet"])
def test_a_column_that_is_named_must_be_there(tmp_path: Path, kind: str) -> None:
    path = str(save([{"text": "a", "answer": " b"}, {"text": "c"}], tmp_path / f"d{kind}"))
    assert next(iter(read_rows(path, {"target": "answer"}))).target == " b"
    with pytest.raises(la.InputError, match=r"no (column|record has) 'anwser'"):
        list(read_rows(path, {"target": "anwser"}))
    assert [row.target for row in read_rows(path)] == [None, None], "nobody asked for a target"


def test_a_mistyped_column_starts_no_run(tmp_path: Path) -> None:
    with pytest.raises(la.InputError, match="no record has 'anwser'"):
        dataset.run(dataset.job(tmp_path, columns={"target": "anwser"}))
    assert not (tmp_path / "out" / "manifest.json").exists()


@pytest.mark.parametrize("kind", [".jsonl", ".csv", ".parquet"])
def test_a_split_goes_with_data_that_have_some(tmp_path: Path, kind: str) -> None:
    path = str(save(ROWS, tmp_path / f"d{kind}"))
    with pytest.raises(la.InputError, match="has no splits"):
        list(read_rows(path, split="train"))


def test_csv_rows_that_cannot_be_read_say_where(tmp_path: Path) -> None:
    path = tmp_path / "bad.csv"
    path.write_bytes(
        b"text,target\nfine, a\nthree,cells,here\nb\xff, c\n" + b"x" * 200_000 + b",\ngood,"
    )
    found = [(row.where, row.text, row.error) for row in read_rows(str(path))]
    assert found[0] == ("bad.csv:2", "fine", None)
    assert found[1] == ("bad.csv:3", "", "3 cells in a table of 2 columns")
    assert found[2] == ("bad.csv:4", "", "not UTF-8")
    assert found[3] == ("bad.csv:5", "x" * 200_000, None)
    assert found[4] == ("bad.csv:6", "good", None)


def test_long_cells_are_one_cell_and_the_limit_is_as_before(tmp_path: Path) -> None:
    path = tmp_path / "long.csv"
    text = "the keys\nare " * 20_000
    path.write_text(f'text\na\n"{text}"\nb\n')
    before = csv.field_size_limit()
    for row, wanted in zip(read_rows(str(path)), ["a", text, "b"], strict=True):
        assert row.text == wanted
        assert csv.field_size_limit() == before


def test_a_header_that_cannot_be_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "_LONGEST_CELL", 10)
    (tmp_path / "d.csv").write_text("text" * 10)
    with pytest.raises(la.InputError, match=r"the header of .* is not CSV"):
        list(read_rows(str(tmp_path / "d.csv")))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("data.txt", "a", "unknown kind"),
        ("data.csv", "a,b\n1,2", "no column 'text'; it has: a, b"),
        ("data.parquet", "PAR", "not a Parquet file"),
        ("folder/data.jsonl", "{}", "is a directory"),
    ],
)
def test_data_of_another_kind_is_refused(
    tmp_path: Path, name: str, text: str, message: str
) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    with pytest.raises(la.InputError, match=message):
        list(read_rows(str(tmp_path / name.split("/")[0])))


def test_no_data_and_no_rows_are_refused(tmp_path: Path) -> None:
    with pytest.raises(la.InputError, match=r"no file matches.*load_dataset\(name\)"):
        dataset.run(dataset.job(tmp_path, data=str(tmp_path / "*.csv")))
    with pytest.raises(la.InputError, match="not one row"):
        dataset.run(dataset.job(tmp_path, []))


# --------------------------------------------------------------------------------------- the plan


@given(
    st.lists(st.integers(1, 30), max_size=600),
    st.integers(1, 200),
)
def test_batches_hold_every_row_once_within_the_budget(lengths: list[int], budget: int) -> None:
    batches = list(batches_of(list(enumerate(lengths)), budget))
    assert sorted(index for batch in batches for index, _ in batch) == list(range(len(lengths)))
    for batch in batches:
        longest = max(length for _, length in batch)
        assert len(batch) == 1 or len(batch) * longest <= budget
        assert len(batch) <= MOST_ROWS
        assert batch[-1][1] == longest


def test_the_plan_is_written_down(tmp_path: Path) -> None:
    dataset.run(dataset.job(tmp_path))
    plan = list(read_plan(tmp_path / "out" / "plan.jsonl"))
    assert [(shard.start, shard.stop) for shard in plan] == [(0, 16), (16, 32), (32, 40)]
    assert sorted(row for s in plan for b in s.batches for row in b) == list(range(dataset.ROWS))
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["batches"]["batches"] == sum(len(shard.batches) for shard in plan)
    assert manifest["input"]["rows"] == dataset.ROWS


@pytest.mark.parametrize("name", small.EVERY)
def test_the_peak_is_predicted_from_small_batches(name: str) -> None:
    model = small.fresh(name)
    graph = resolve(model)
    need = measure(model, graph, Job(model="m", data="d", out="o", method="attnlrp"))
    assert need is not None
    ids = torch.arange(12 * 40).view(12, 40) % 55 + 5
    measured = peak_of(lambda: la.attribute(model, ids, la.TopLogit(position=39)))
    assert need.peak(12, 40) == pytest.approx(measured, rel=0.2)
    assert need.peak(6, 40) < 0.7 * measured


def test_peak_memory_counts_what_is_alive_at_once() -> None:
    outside = torch.zeros(1000)

    def function() -> None:
        for _ in range(5):
            _ = outside + 1  # each is gone before the next
        kept = [torch.zeros(1000) for _ in range(3)]
        kept[0].view(10, 100).add_(1)

    assert 12_000 <= peak_of(function) <= 16_000


@pytest.mark.parametrize("name", small.EVERY)
@pytest.mark.parametrize("method", ["gradient_x_input", "lrp", "attnlrp"])
def test_a_call_leaves_no_tensor_to_the_garbage_collector(name: str, method: str) -> None:
    """What only the collector frees piles up over thousands of batches, on a GPU even more."""
    model = small.model(name)

    def call() -> None:
        la.attribute(model, small.text(name), la.Logit(6), method)

    with small.untyped():
        call()
        gc.collect()
        gc.disable()
        try:
            before = sum(type(one) is torch.Tensor for one in gc.get_objects())
            call()
            after = sum(type(one) is torch.Tensor for one in gc.get_objects())
        finally:
            gc.enable()
    assert after <= before


def test_the_budget_keeps_every_batch_within_memory(tmp_path: Path) -> None:
    need = Need(model=0, fixed=1000.0, per_token=50.0, per_pair=2.0)
    job = Job.of(dataset.job(tmp_path, tokens_per_batch=None))
    for free in (1e4, 1e5, 1e6):
        tokens = budget(job, need, free, torch.device("cpu"), longest=30)
        for length in range(1, 31):
            assert need.peak(tokens // length, length) <= free
    with pytest.raises(la.InputError, match="weights alone"):
        budget(job, need, -1.0, torch.device("cpu"), longest=30)


def test_less_memory_makes_smaller_batches(tmp_path: Path) -> None:
    job = dataset.job(tmp_path, tokens_per_batch=None)
    sizes = [
        preview(job | {"memory": memory}, model=dataset.model()) for memory in ("20 MB", "100 MB")
    ]
    assert sizes[0].tokens_per_batch < sizes[1].tokens_per_batch
    for size in sizes:
        assert size.peak is not None and size.need is not None
        assert size.peak - size.need.model <= size.available
    assert not (tmp_path / "out").exists()


# -------------------------------------------------------------------------------------- the values


def test_the_values_are_those_of_attribute(tmp_path: Path) -> None:
    report = dataset.run(dataset.job(tmp_path))
    assert (report.rows, report.computed, report.errors, report.exit_code) == (40, 40, 0, 0)
    assert report.complete
    found = dataset.table(tmp_path / "out")
    assert found["row"].tolist() == list(range(40))
    for row, sample in zip(found.itertuples(), dataset.samples(), strict=True):
        target = la.TopLogit()
        if "foil" in sample:
            target = la.LogitDiff(sample["target"], sample["foil"])
        elif "target" in sample:
            target = la.Logit(sample["target"])
        single = la.attribute(dataset.model(), sample["text"], target)
        assert list(row.str_tokens) == single.str_tokens[0]
        assert row.tokens.dtype == "float32"
        torch.testing.assert_close(torch.tensor(row.tokens), single.tokens[0], rtol=1e-4, atol=1e-5)
        assert row.target_value == pytest.approx(float(single.target_value[0]), rel=1e-5)
        assert row.target == single.target[0]
        assert row.position == int(single.position[0])
        assert row.method == "attnlrp" and pd.isna(row.error)
    pd.testing.assert_frame_equal(report.to_pandas(), found)


def test_options_and_positions_reach_the_method(tmp_path: Path) -> None:
    rows = [{"text": TEXT, "target": " are", "position": 2}, {"text": TEXT, "position": 3}]
    job = dataset.job(tmp_path, rows, method="gim", options={"embeddings": "token"})
    dataset.run(job)
    found = dataset.table(tmp_path / "out")
    single = la.attribute(
        dataset.model(), TEXT, la.Logit(" are", position=2), "gim", embeddings="token"
    )
    torch.testing.assert_close(torch.tensor(found["tokens"][0]), single.tokens[0])
    assert found["position"].tolist() == [2, 3]


def test_a_masked_model_explains_its_mask(tmp_path: Path) -> None:
    model = la.load("demo-bert", device="cpu")
    rows = [
        {"text": "the keys [MASK] here .", "target": " are", "foil": " is"},
        {"text": "the [MASK] near the old cabinet are here ."},
        {"text": "no mask here"},
    ]
    report = dataset.run(dataset.job(tmp_path, rows, model="demo-bert"), model)
    found = dataset.table(tmp_path / "out")
    assert report.errors == 1 and "has 0 [MASK]" in found["error"][2]
    for row in found[:2].itertuples():
        assert row.str_tokens[int(row.position)] == "[MASK]"


def test_the_manifest_says_how_it_was_made(tmp_path: Path) -> None:
    dataset.run(dataset.job(tmp_path))
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["method"] == "attnlrp" and manifest["device"] == "cpu"
    assert set(manifest["versions"]) >= {"lens_attr", "torch", "transformer-lens"}
    assert len(manifest["model"]["weights_sha256"]) == 64
    files = [(shard["file"], shard["rows"], shard["errors"]) for shard in manifest["shards"]]
    assert files == [
        ("000000.parquet", [0, 16], 0),
        ("000001.parquet", [16, 32], 0),
        ("000002.parquet", [32, 40], 0),
    ]


def test_the_weights_hash_sees_one_bit(tmp_path: Path) -> None:
    from lens_attr.graph.fingerprint import fingerprint

    model = small.fresh(small.GPT2[0])
    before = fingerprint(resolve(model))
    assert fingerprint(resolve(small.fresh(small.GPT2[0]))) == before
    with torch.no_grad():
        weight = next(iter(model.parameters())).view(-1)
        weight[3] = torch.nextafter(weight[3], torch.tensor(9.0))
    after = fingerprint(resolve(model))
    assert after["weights_sha256"] != before["weights_sha256"]
    assert after["tokenizer_sha256"] == before["tokenizer_sha256"]


def test_twice_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        dataset.run(dataset.job(tmp_path, out=str(tmp_path / name)))
    assert dataset.contents(tmp_path / "one") == dataset.contents(tmp_path / "two")


def test_the_threads_of_the_process_are_as_before(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    dataset.run(dataset.job(tmp_path, dataset.samples(2), threads=before + 1))
    assert torch.get_num_threads() == before


# ---------------------------------------------------------------------------------------- bad rows


def poisoned(word: str) -> Any:
    """demo-gpt2 with NaN for one word, which no other text of the tests holds."""
    model = la.load("demo-gpt2", device="cpu")
    if hasattr(model, "original_model"):  # on the Bridge the unembedding is the same parameter
        head = model.original_model.lm_head
        head.weight = torch.nn.Parameter(head.weight.detach().clone())
        weights = model.original_model.transformer.wte.weight
    else:
        weights = model.W_E
    (token,) = model.tokenizer(word, add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        weights[token] = float("nan")
    return model


def test_bad_rows_are_recorded_and_the_run_goes_on(tmp_path: Path) -> None:
    good = dataset.samples()
    bad: dict[int, Any] = {
        3: "{oops",
        7: {"text": "  \n "},
        8: {"text": "x " * 400},
        11: {"text": TEXT, "target": " zebra crossing"},
        12: {"text": TEXT, "position": 99},
        13: {"text": "half a pair: \ud800"},
        20: {"text": TEXT, "foil": " is"},
    }
    rows = [bad.get(i, row) for i, row in enumerate(good)]
    report = dataset.run(dataset.job(tmp_path, rows))
    assert report.exit_code == launch.SOME_ERRORS == 3
    found = dataset.table(tmp_path / "out")
    assert found["row"].tolist() == list(range(40))
    assert found[found["error"].notna()]["row"].tolist() == list(bad) and report.errors == 7
    assert all(found["error"][i].startswith(f"data.jsonl:{i + 1}: ") for i in bad)
    assert found["tokens"][3] is None and found["str_tokens"][7] is None
    whole = dataset.job(tmp_path, good, out=str(tmp_path / "good"))
    dataset.run(whole)
    kept = [i for i in range(40) if i not in bad]
    reference = dataset.table(whole["out"])
    for i in kept:
        torch.testing.assert_close(
            torch.tensor(found["tokens"][i]),
            torch.tensor(reference["tokens"][i]),
            rtol=1e-4,
            atol=1e-5,
        )


def test_nan_in_one_sample_leaves_the_others_alone(tmp_path: Path) -> None:
    model = poisoned(" dog")
    rows = dataset.samples()
    rows = [row for row in rows if " dog" not in row["text"]]
    rows[5] = {"text": "the dog"}
    rows[9] = {"text": "the old dog near the"}
    report = dataset.run(dataset.job(tmp_path, rows, tokens_per_batch=400), model)
    found = dataset.table(tmp_path / "out")
    assert found[found["error"].notna()]["row"].tolist() == [5, 9]
    assert "NaN" in found["error"][5] and report.exit_code == 3
    assert [5] in batches_of_run(tmp_path / "out"), "as it was explained, not as it was planned"
    assert all(torch.tensor(row).isfinite().all() for row in found["tokens"].dropna())


def test_an_error_nobody_thought_of_is_recorded_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    explain = worker.Worker.explain

    def broken(self: Any, rows: list[Row]) -> la.Relevance:
        if any(row.index == 17 for row in rows):
            raise ZeroDivisionError
        return explain(self, rows)

    monkeypatch.setattr(worker.Worker, "explain", broken)
    dataset.run(dataset.job(tmp_path, tokens_per_batch=400))
    found = dataset.table(tmp_path / "out")
    assert found["error"].dropna().tolist() == ["data.jsonl:18: ZeroDivisionError"]


def test_a_method_that_is_not_defined_is_refused_at_once(tmp_path: Path) -> None:
    model = la.load("demo-bert", backend="bridge", device="cpu")
    rows = [{"text": "the keys [MASK] here ."}]
    job = dataset.job(tmp_path, rows, model="demo-bert", method="gim", backend="bridge")
    with pytest.raises(la.UnsupportedModelError):
        dataset.run(job, model)


# ---------------------------------------------------------------------------------- out of memory


def batches_of_run(out: Path) -> list[list[int]]:
    """As the records tell them."""
    records = sorted(path for path in out.glob("shards/*.json") if path.stem.isdecimal())
    return [batch for record in records for batch in json.loads(record.read_text())["batches"]]


@contextmanager
def at_most(rows: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """A device that larger batches do not fit on; yields the sizes that were tried."""
    explain = worker.Worker.explain
    tried: list[int] = []

    def full(self: Any, given: list[Row]) -> la.Relevance:
        tried.append(len(given))
        if len(given) > rows:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return explain(self, given)

    with monkeypatch.context() as patch:
        patch.setattr(worker.Worker, "explain", full)
        yield tried


def test_out_of_memory_splits_the_batch_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = dataset.job(tmp_path, tokens_per_batch=200)
    with at_most(3, monkeypatch) as tried:
        report = dataset.run(job)
    assert report.errors == 0 and max(tried) > 3
    found = dataset.table(job["out"])
    assert found["row"].tolist() == list(range(40)) and found["error"].isna().all()
    records = [
        json.loads(p.read_text()) for p in sorted(Path(job["out"]).glob("shards/00000?.json"))
    ]
    batches = [batch for record in records for batch in record["batches"]]
    assert max(map(len, batches)) <= 3
    assert sorted(row for batch in batches for row in batch) == list(range(40))
    splits = sorted(path.name for path in Path(job["out"]).glob("shards/*.split.json"))
    assert splits and len(splits) == sum(
        record["batches"] != planned
        for record, planned in zip(
            sorted(records, key=lambda record: record["shard"]),
            [shard.batches for shard in read_plan(Path(job["out"]) / "plan.jsonl")],
            strict=True,
        )
    )


def test_a_split_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Started again where there is more memory, the run still takes the batches as they were."""
    job = dataset.job(tmp_path, tokens_per_batch=200)
    with at_most(3, monkeypatch):
        dataset.run(job)
    before = dataset.contents(job["out"])
    for record in Path(job["out"]).glob("shards/00000?.json"):
        record.unlink()
    with at_most(1000, monkeypatch) as tried:
        dataset.run(job)
    assert max(tried) <= 3
    assert dataset.contents(job["out"]) == before


def test_a_split_within_a_batch_that_raised_is_kept_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """First the NaN of one row halves its batch, then a half does not fit into memory."""
    rows = [row for row in dataset.samples() if " dog" not in row["text"]][:16]
    rows[5] = {"text": "the dog near the"}
    job = dataset.job(tmp_path, rows, tokens_per_batch=4000)
    model = poisoned(" dog")
    explain, tried = worker.Worker.explain, []

    def explained(self: Any, given: list[Row]) -> la.Relevance:
        tried.append([row.index for row in given])
        if len(given) in (2, 3) and len(tried) < 12:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return explain(self, given)

    monkeypatch.setattr(worker.Worker, "explain", explained)
    assert dataset.run(job, model).errors == 1
    out = Path(job["out"])
    taken, before = batches_of_run(out), dataset.contents(out)
    assert sorted(row for batch in taken for row in batch) == list(range(16)) and [5] in taken
    assert list(out.glob("shards/*.split.json"))
    (out / "shards" / "000000.json").unlink()
    dataset.run(job, model)
    assert batches_of_run(out) == taken
    assert dataset.contents(out) == before


def test_a_row_that_does_not_fit_alone_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with at_most(0, monkeypatch):
        report = dataset.run(dataset.job(tmp_path))
    assert report.errors == 40
    assert "out of memory, even alone" in dataset.table(tmp_path / "out")["error"][0]


def test_no_memory_to_measure_with_makes_small_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    job = dataset.job(tmp_path, tokens_per_batch=None)
    with monkeypatch.context() as patch:
        patch.setattr("lens_attr.attribution.attribute", full)
        seen = preview(job, model=dataset.model())
    assert seen.need is None and seen.tokens_per_batch == 3 * seen.scanned.longest
    with pytest.raises(ZeroDivisionError), monkeypatch.context() as patch:
        patch.setattr("lens_attr.attribution.attribute", lambda *_, **__: 1 / 0)
        preview(job, model=dataset.model())


@pytest.mark.parametrize(
    ("error", "answer"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (MemoryError(), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("size mismatch"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_what_out_of_memory_looks_like(error: Exception, answer: bool) -> None:
    assert is_out_of_memory(error) is answer


# ------------------------------------------------------------------------------------- a full disk


def with_a_small_disk(limit: int, job: dict[str, Any], code: int) -> None:
    """In a child process whose files may not grow beyond ``limit`` bytes."""

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        report = dataset.run(job)
        assert report.exit_code == code, report

    dataset.model()
    assert dataset.exit_status(dataset.fork(limited)) == 0


def test_a_full_disk_is_recorded_and_made_good_later(tmp_path: Path) -> None:
    """One long text makes the second shard too large for the disk; the others are written."""
    rows: list[Any] = dataset.samples(20)
    rows[10:14] = [{"text": " ".join(["the old keys near the cabinet"] * 12)}] * 4
    whole = dataset.job(tmp_path, rows, rows_per_shard=5, out=str(tmp_path / "whole"))
    dataset.run(whole)
    sizes = {path.name: path.stat().st_size for path in Path(whole["out"]).glob("**/*.parquet")}
    largest, second = sorted(sizes.values(), reverse=True)[:2]
    assert largest > second + 100
    job = whole | {"out": str(tmp_path / "out")}
    with_a_small_disk(second + 50, job, launch.UNWRITTEN)
    found = dataset.table(job["out"])
    assert found["row"].tolist() == list(range(20))
    lost = found[found["error"].notna()]
    assert lost["row"].tolist() == [10, 11, 12, 13, 14]
    assert os.strerror(errno.EFBIG) in lost["error"][10]
    assert "shards" in json.loads((Path(job["out"]) / "manifest.json").read_text())
    report = dataset.run(job)
    assert (report.exit_code, report.computed) == (0, 5)
    assert dataset.contents(job["out"]) == dataset.contents(whole["out"])


def test_not_even_the_error_can_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, data: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    job = dataset.job(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("lens_attr.runs.shards.write_whole", full)
        report = dataset.run(job)
    assert (report.rows, report.unwritten, report.exit_code) == (40, 40, 4)
    assert not report.complete and "No space left" in report.notices[0]
    assert dataset.run(job).exit_code == 0


def no_room(*_: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_no_room_to_write_a_split_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was not written down could not be done again, so it is not done."""
    job = dataset.job(tmp_path, tokens_per_batch=200)
    with at_most(3, monkeypatch), monkeypatch.context() as patch:
        patch.setattr(shards.ShardFiles, "keep", no_room)
        report = dataset.run(job)
    assert (report.unwritten, report.exit_code) == (32, 4), "the last shard needs no split"
    assert dataset.run(job).exit_code == 0


def test_no_room_to_complete_the_manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = dataset.job(tmp_path)
    dataset.run(job)
    whole = dataset.contents(job["out"])
    manifest = json.loads(whole["manifest.json"])
    (tmp_path / "out" / "manifest.json").write_text(json.dumps(manifest | {"shards": None}))
    with monkeypatch.context() as patch:
        patch.setattr("lens_attr.runs.manifest.write_whole", no_room)
        report = dataset.run(job)
    assert (report.rows, report.unwritten, report.exit_code) == (40, 0, 4)
    assert not report.complete and "No space left" in report.notices[0]
    assert dataset.run(job).exit_code == 0
    assert dataset.contents(job["out"]) == whole


def test_no_room_for_the_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = dataset.job(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("lens_attr.runs.manifest.write_whole", no_room)
        with pytest.raises(la.LensAttrError, match=r"cannot write the plan.*No space left"):
            dataset.run(job)
    assert list((tmp_path / "out").glob("*.tmp")) == []
    assert dataset.run(job).exit_code == 0


def test_the_table_of_a_run_without_shards_is_empty(tmp_path: Path) -> None:
    found = launch.RunReport(tmp_path, 0, 0, 0, 0, False).to_pandas()
    assert found.empty and list(found.columns) == shards.SCHEMA.names


# ---------------------------------------------------------------------------------------- notices


def test_notices_that_differ_in_their_numbers_are_one() -> None:
    found = Notices()
    found.add(["the gap is 9.5% (3 steps)", "no target"])
    found.add({"the gap is 106% (3 steps)": 4, "the gap is 1e-5% (3 steps)": 2})
    found.add(["no target", "a negative sum"])
    assert found.counted() == {"the gap is 106% (3 steps)": 7, "no target": 2, "a negative sum": 1}
    assert found.lines() == [
        "the gap is 106% (3 steps) (the highest of 7 such notices)",
        "no target (2 times)",
        "a negative sum",
    ]


def test_a_version_in_a_notice_is_no_size() -> None:
    found = Notices()
    found.add(["transformer-lens 3.9.0 folds 2 biases"])
    found.add(["transformer-lens 3.9.0 folds 4 biases"])
    assert found.counted() == {"transformer-lens 3.9.0 folds 4 biases": 2}


def test_a_run_tells_each_kind_of_notice_once(tmp_path: Path) -> None:
    job = dataset.job(tmp_path, method="integrated_gradients", options={"steps": 1})
    with warnings.catch_warnings():
        warnings.simplefilter("error", la.errors.Notice)  # the planner's batches are nobody's
        report = dataset.run(job)
    (notice,) = report.notices
    assert "completeness gap" in notice and "such notices" in notice


# ----------------------------------------------------------------------------- the out directory


def tree(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def test_everything_written_lies_under_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = dataset.job(tmp_path, out="deep/er/out")
    monkeypatch.chdir(tmp_path)
    before = tree(tmp_path)
    dataset.run(job)
    new = tree(tmp_path) - before - {"deep", "deep/er", "deep/er/out"}
    assert new and all(name.startswith("deep/er/out/") for name in new)
    assert not [name for name in new if name.endswith(".tmp")]


def test_files_are_as_readable_as_any_other(tmp_path: Path) -> None:
    dataset.run(dataset.job(tmp_path))
    (tmp_path / "mine").touch()
    usual = (tmp_path / "mine").stat().st_mode
    assert {path.stat().st_mode for path in (tmp_path / "out").rglob("*.*")} == {usual}


def test_a_directory_with_other_things_is_refused(tmp_path: Path) -> None:
    job = dataset.job(tmp_path)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").touch()
    with pytest.raises(la.InputError, match=r"other things \(thesis\.tex\)"):
        dataset.run(job)
    assert tree(tmp_path / "out") == {"thesis.tex"}


def test_a_file_as_out_is_refused(tmp_path: Path) -> None:
    job = dataset.job(tmp_path)
    (tmp_path / "out").touch()
    with pytest.raises(la.InputError, match="is a file"):
        dataset.run(job)


@pytest.mark.parametrize("name", ["shards", "plan.jsonl", "manifest.json"])
def test_a_link_that_leads_out_of_out_is_refused(tmp_path: Path, name: str) -> None:
    job = dataset.job(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(la.InputError, match="is a link"):
        dataset.run(job)
    assert tree(tmp_path / "elsewhere") == set()


def test_data_inside_out_is_refused(tmp_path: Path) -> None:
    with pytest.raises(la.InputError, match="own out directory"):
        dataset.run(dataset.job(tmp_path, out=str(tmp_path)))


# -------------------------------------------------------------------------------------------- ranks


@pytest.mark.parametrize(
    ("environment", "found"),
    [
        ({}, (0, 1)),
        ({"RANK": "2", "WORLD_SIZE": "4", "LOCAL_RANK": "0"}, (2, 4)),
        ({"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "3"}, (1, 3)),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "8"}, (0, 1)),
    ],
)
def test_shares(environment: dict[str, str], found: tuple[int, int]) -> None:
    share = ranks.share(environment)
    assert (share.rank, share.world) == found
    taken = [ranks.Share(rank, 3).includes(shard) for shard in range(9) for rank in range(3)]
    assert sum(taken) == 9


@pytest.mark.parametrize("rank", ["4", "-1", "x"])
def test_ranks_that_make_no_sense_are_refused(rank: str) -> None:
    with pytest.raises(la.InputError, match="no rank"):
        ranks.share({"RANK": rank, "WORLD_SIZE": "4"})


@pytest.mark.parametrize(
    ("wanted", "device"), [("cpu", None), ("cuda:0", None), ("cuda", "cuda:1"), (None, "cuda:1")]
)
def test_a_rank_computes_where_the_job_says(
    monkeypatch: pytest.MonkeyPatch, wanted: str | None, device: str | None
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert ranks.Share(3, 4, 3).device(wanted) == device
    assert ranks.own_gpu(wanted, 3) == device
    assert ranks.Share(0, 1, 0).device(wanted) is None, "alone, the job's word is enough"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert ranks.Share(3, 4, 3).device(wanted) is None


def test_the_rank_loads_its_model_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    asked: list[Any] = []
    monkeypatch.setattr(worker, "load", lambda *arguments: asked.append(arguments[3]))
    rank = ranks.Share(1, 2, 1)
    for device in ("cpu", None):
        job = Job.of(dataset.job(tmp_path, device=device))
        worker.load_model(job, rank.device(job.device))
    assert asked == ["cpu", "cuda:1"]


def test_ranks_share_the_work(tmp_path: Path) -> None:
    serial = dataset.job(tmp_path, out=str(tmp_path / "serial"))
    dataset.run(serial)
    job = dataset.job(tmp_path)

    def one(rank: int) -> None:
        os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2"}
        report = dataset.run(job)
        assert report.rows == (24, 16)[rank] == report.computed
        assert report.exit_code == 0

    children = [dataset.fork(lambda rank=rank: one(rank)) for rank in (1, 0)]
    assert [dataset.exit_status(child) for child in children] == [0, 0]
    assert dataset.contents(job["out"]) == dataset.contents(serial["out"])


def test_ranks_go_with_one_process_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(la.InputError, match="several ranks"):
        la.run(dataset.job(tmp_path, workers=2))
