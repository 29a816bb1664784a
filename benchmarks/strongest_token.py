"""How often does a method name the same most important token as occlusion?

    python benchmarks/strongest_token.py

Prints the table of docs/which-method.md: percent of 100 held-out sentences per task, the token that
opens the text left aside.
"""

from __future__ import annotations

import warnings
from typing import Any

import pandas as pd

import lens_attr as la
from lens_attr.demo import TASKS, generate

MODELS = ("demo-gpt2", "demo-llama")
METHODS: dict[str, dict[str, Any]] = {
    "gradient_x_input": {},
    "lrp": {},
    "attnlrp": {},
    "gim": {},
    "relp": {},
    "gradient_l1": {},
    "integrated_gradients": {},
    "deeplift": {"baseline": "pad"},
    "alti_logit": {},
}
N, SEED = 100, 5


def strongest(result: la.Relevance) -> list[int]:
    """The most relevant token of every text."""
    return [int(one.tokens[0, 1:].argmax()) for one in result]


def shares(model: Any, task: str) -> dict[str, float]:
    """Percent of sentences in which each method agrees with occlusion."""
    texts, target = la.sample_inputs(model, generate(task, N, seed=SEED))
    exact = strongest(la.attribute(model, texts, target, method="occlusion"))
    found = {}
    for method, options in METHODS.items():
        named = strongest(la.attribute(model, texts, target, method=method, **options))
        found[method] = 100 * sum(a == b for a, b in zip(named, exact, strict=True)) / N
    return found


def main() -> None:
    """Print the table."""
    warnings.simplefilter("ignore")
    columns = {}
    for name in MODELS:
        model = la.load(name)
        columns |= {f"{name} {task}": shares(model, task) for task in TASKS}
    print(pd.DataFrame(columns).to_string(float_format="%.0f"))


if __name__ == "__main__":
    main()
