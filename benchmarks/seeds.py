"""Does the result of the demo models hold for other training seeds?

``python benchmarks/seeds.py`` trains every demo model with seeds 1 and 2 (seed 0 is what ships;
the seeds were fixed before any attribution was computed), explains subject-verb agreement by the
methods below, and writes ``results/seeds.json`` and ``results/seeds.md``. A model that is trained
already in ``out/seeds/SEED/MODEL`` is not trained again; ``--no-train`` leaves the others out and
says so in the table. On one core training takes hours.

The negative control is AttnLRP's own relevance with the tokens of each sample in random order.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

import lens_attr as la
from lens_attr.evaluation import BenchTable, Interval, bench, mean_interval
from lens_attr.evaluation.plausibility import pointing_game
from lens_attr.evaluation.results import MODEL
from lens_attr.evaluation.store import write_text

RESULTS = Path(__file__).parent / "results"
WORK = Path("out/seeds")
SEEDS = (0, 1, 2)
MODELS = ("demo-gpt2", "demo-llama", "demo-bert")
METHODS = ("attnlrp", "lrp", "alti_logit", "alti")
CONTROL = "attnlrp, shuffled"


def folder_of(model: str, seed: int, work: Path, train: bool) -> str | Path | None:
    """What `la.load` takes; None where the model is not there and is not to be trained."""
    if seed == 0:
        return model
    folder = work / str(seed) / model
    if not (folder / "README.md").exists():  # the card is written last
        if not train:
            return None
        from lens_attr.demo import train as training

        training.train(model, folder, seed)
    return folder


def measure(model: str | Path, n: int) -> dict[str, Any]:
    """PG of every method, the control and random, with their intervals."""
    table = bench(la.load(str(model), device="cpu"), "sva", list(METHODS), n=n)
    names = ("random", *(name for name in METHODS if name not in table.refused))
    found = {name: table.value(name, "sva", "pg") for name in names}
    found[CONTROL] = shuffled(table)
    chance = found["random"]
    return {
        "accuracy": table.value(MODEL, "sva", "accuracy").value,
        "pg": {name: [one.value, one.low, one.high] for name, one in found.items()},
        "beats_random": [name for name, one in found.items() if one.low > chance.high],
        "n": chance.n,
    }


def shuffled(table: BenchTable, method: str = "attnlrp", seed: int = 0) -> Interval:
    """PG in percent of a method whose scores are put in random order among the judged tokens."""
    described = table.samples["sva", "samples"].set_index("sample")
    found = []
    for row in table.samples["sva", method].to_dict("records"):
        about = described.loc[row["sample"]]
        judged = ~np.array(about["special"], dtype=bool)
        scores = np.random.default_rng([seed, row["sample"]]).permutation(
            np.array(row["scores"])[judged]
        )
        found.append(pointing_game(scores, np.array(about["inside"], dtype=bool)[judged]))
    return mean_interval(100.0 * np.array(found))


def page(rows: list[dict[str, Any]]) -> str:
    """One line per model and seed."""
    names = ("random", CONTROL, *METHODS)
    lines = [
        "# Three training seeds",
        "",
        "Pointing game in percent on subject-verb agreement with its 95 % interval; bold where it "
        "is above random with the intervals apart. Made by `python benchmarks/seeds.py`.",
        "",
        f"| model | seed | accuracy | n | {' | '.join(names)} |",
        "|---|---:|---:|---:|" + "---:|" * len(names),
    ]
    lines += [_line(row, names) for row in rows]
    return "\n".join(lines) + "\n"


def _line(row: dict[str, Any], names: tuple[str, ...]) -> str:
    start = f"| {row['model']} | {row['seed']} |"
    if "pg" not in row:
        return f"{start} not trained yet |" + " |" * (len(names) + 1)
    cells = [_cell(row, name) for name in names]
    return f"{start} {row['accuracy']:.1f} | {row['n']} | {' | '.join(cells)} |"


def _cell(row: dict[str, Any], name: str) -> str:
    if name not in row["pg"]:
        return "-"
    value, low, high = row["pg"][name]
    shown = f"{value:.1f}"
    shown = f"**{shown}**" if name in row["beats_random"] else shown
    return f"{shown} [{low:.1f}, {high:.1f}]"


def measured(work: Path, n: int, train: bool) -> Iterator[dict[str, Any]]:
    """One row per model and seed, in order."""
    for model in MODELS:
        for seed in SEEDS:
            source = folder_of(model, seed, work, train)
            row: dict[str, Any] = {"model": model, "seed": seed}
            print(f"{model}, seed {seed}: {'not trained yet' if source is None else 'measured'}")
            yield row if source is None else row | measure(source, n)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=400, help="samples")
    parser.add_argument("--work", type=Path, default=WORK, help="where the trained models are")
    parser.add_argument("--no-train", action="store_true", help="only what is trained already")
    options = parser.parse_args()
    rows = list(measured(options.work, options.n, not options.no_train))
    write_text(RESULTS / "seeds.json", json.dumps(rows, indent=1) + "\n")
    write_text(RESULTS / "seeds.md", page(rows))


if __name__ == "__main__":
    main()
