"""A directory with one result file of every kind, made of numbers that no model computed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from test_report import result

from lens_attr.attribution.generation import Generation
from lens_attr.attribution.relevance import Relevance
from lens_attr.circuits import (
    Agreement,
    Circuit,
    CircuitEvaluation,
    EdgeScores,
    FaithfulnessComparison,
    FaithfulnessCurve,
    PatchResult,
    PruningComparison,
    PruningCurve,
    Ranking,
    Wiring,
)
from lens_attr.circuits.files import write_json
from lens_attr.evaluation import BenchTable
from lens_attr.report import write_about
from lens_attr.runs.shards import Record, ShardFiles, Value

MODEL = {"backend": "HookedTransformer", "model_name": "demo-gpt2", "n_layers": 2, "n_heads": 2}
METADATA = {"model": MODEL, "versions": {"torch": "9.8.7"}}
SAMPLE = {"answer": " are", "foil": " is", "decided_by": ["keys"]}
WIRING = Wiring(n_layers=2, n_heads=2, n_kv_heads=2, mlps=True, parallel=False)
COMMAND = "lens-attr demo --n 40"


def generation(first: float = 0.5) -> Generation:
    """Two tokens that a prompt of two goes on with; the second has read the first."""
    relevance = Relevance(
        tokens=torch.tensor([[first, -1.0, 0.0, 0.0], [0.25, 2.0, 4.0, 0.0]]),
        token_ids=torch.zeros(2, 4, dtype=torch.long),
        attention_mask=torch.arange(4) < torch.tensor([[2], [3]]),
        str_tokens=[["the", " keys", " were", " lost"]] * 2,
        target_value=torch.tensor([3.0, 1.5]),
        target=["logit of ' were'", "logit of ' lost'"],
        position=torch.tensor([1, 2]),
        method="lrp",
        metadata=METADATA,
    )
    return Generation(relevance, n_prompt=2)


def ranking() -> Ranking:
    return Ranking(np.arange(4.0).reshape(2, 2), "gim", "relu_token", 50)


def pruning() -> PruningComparison:
    steps = np.linspace(1.0, 0.25, 5)
    curves = [
        PruningCurve(steps, steps, ranking().order, name, n=40, metadata={"ranked_on": 50})
        for name in ("gim", "random seed 0", "random seed 1")
    ]
    return PruningComparison(curves[:1], curves[1:])


def patched() -> PatchResult:
    return PatchResult(
        per_example=torch.arange(8.0).reshape(2, 2, 2), unpatched=torch.ones(2), other=None,
        axes=("layer", "head"), unit="head", mode="noise", source="zero", target=["a", "b"],
        metadata=METADATA,
    )  # fmt: skip


def agreement() -> Agreement:
    names = [f"layer {i}, head {j}" for i in range(2) for j in range(2)]
    scores = {"gim": np.array([0.1, 0.2, 0.3, 0.9]), "lrp": np.array([0.3, 0.1, 0.2, 0.4])}
    importance = np.array([0.0, 1.0, 2.0, 3.0])
    return Agreement(scores, importance, names, "signed", 2, "head, noise, zero")


def edges() -> EdgeScores:
    scores = np.where(WIRING.exists, -0.5, 0.0)
    return EdgeScores(WIRING, scores, "eap", n=7, metadata=METADATA)


def circuit() -> Circuit:
    chain = [("input", "a0.h0<v>"), ("a0.h0", "a1.h1<k>"), ("a1.h1", "logits")]
    return replace(Circuit.of_edges(WIRING, chain), metadata={"method": "eap", "by": "greedy"})


def evaluation(circuit: float = 0.75) -> CircuitEvaluation:
    return CircuitEvaluation(np.full(3, circuit), np.ones(3), np.zeros(3), 3, 60)


def faithfulness() -> FaithfulnessComparison:
    curve = FaithfulnessCurve([10.0, 100.0], [evaluation(0.5), evaluation(1.0)], "eap")
    return FaithfulnessComparison([curve], [replace(curve, method="random seed 0")])


def bench() -> BenchTable:
    columns = ["method", "task", "metric", "value", "low", "high", "n"]
    rows = [
        ["gim", "sva", "pg", 81.5, 70.0, 90.0, 12],
        ["random", "sva", "pg", 20.0, 9.0, 31.0, 12],
    ]
    task = {"source": "the generator", "read": 20, "dropped": {}, "used": 12}
    metadata = {"command": "lens-attr bench --n 20", "settings": {}, "model": MODEL}
    return BenchTable(
        pd.DataFrame(rows, columns=columns), {}, {"alti": "no <row>"}, {"sva": task}, metadata
    )


def data_set_run(folder: Path) -> None:
    files = ShardFiles(folder, 0, "this run")
    files.folder.mkdir(parents=True)
    good = Value(0, ["the", " keys"], [0.25, -1.5], 3.125, "logit of ' are'", 1)
    sha = files.write([good, Value(1, error="row 1 has no text")], "gim")
    files.finish(Record(0, (0, 2), files.parquet.name, sha, 1, True, [[0, 1]], {}))
    manifest = {"job": {"model": "demo-gpt2"}, "model": MODEL, "input": {"rows": 5}, "batches": {}}
    (folder / "manifest.json").write_text(json.dumps(manifest), "utf-8")


def write(folder: Path) -> Path:
    """One chapter with everything but the benchmark and the run, which lie beside it."""
    write_about(folder, "demo", COMMAND, title="All of it", prose="One of each.", order=["m"])
    model = folder / "m"
    for method in ("lrp", "gim"):
        one = replace(result(method), metadata=METADATA | {"sample": SAMPLE})
        one.save(model / "texts" / method)
        replace(one, target_value=torch.tensor([7.5]), target=["logit of ' was'"]).save(
            model / "other" / method
        )
    for each in (
        generation(),
        ranking(),
        pruning(),
        patched(),
        agreement(),
        edges(),
        circuit(),
        evaluation(),
    ):
        each.save(model)
    faithfulness().save(model)
    row = {"rule": "FreezeNorm", "role": "norm_scale", "hook_point": "a", "layer": 0, "fired": 3}
    content = {
        "rules": "gim",
        "accepted": True,
        "reasons": [],
        "coverage": [row, row | {"layer": 1}],
    }
    write_json(model / "coverage", "coverage.json", content)
    write_about(
        model, "demo", COMMAND, title="demo-gpt2", task="made-up sentences",
        methods=["gim", "lrp"], refused={"relp": "the <softmax> is hidden"},
    )  # fmt: skip
    bench().save(folder / "bench")
    data_set_run(folder / "run")
    return folder
