"""One progress bar for every method: where it shows, when, and that it leaves nothing behind."""

from __future__ import annotations

import io
from typing import Any

import pytest
import small
import tiny
from rich.console import Console
from rich.progress import Progress, TaskID

import lens_attr as la
from lens_attr.attribution import progress

LONG = [
    ("integrated_gradients", {"steps": 3}),
    ("gradient_shap", {"n_samples": 3}),
    ("aieg", {"steps": 3}),
    ("occlusion", {}),
    ("ig_clipped", {"steps": 3}),
    ("gradient_l1", {}),
    ("deeplift", {"baseline": 9}),
    ("alti", {}),
    ("alti_logit", {}),
    ("attention_rollout", {}),
    ("attnlrp", {}),
    ("attnlrp", {"record": ["z"]}),
    ("attnlrp", {"checkpoint": True}),
]
SEVERAL = [la.Logit(12), la.LogitDiff(12, 13), la.Logit(9, position=2)]


class Seen:
    """Every bar: whether it started, how far it came, of how much."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, terminal: bool) -> None:
        self.bars: list[Progress] = []
        self.started: list[Progress] = []
        self.steps: list[float] = []
        seen = self

        class Spied(Progress):
            def __init__(self, **options: Any) -> None:
                super().__init__(**options)
                seen.bars.append(self)

            def start(self) -> None:
                seen.started.append(self)
                super().start()

            def advance(self, task_id: TaskID, advance: float = 1) -> None:
                seen.steps.append(advance)
                super().advance(task_id, advance)

        def console(stderr: bool) -> Console:
            assert stderr
            return Console(file=io.StringIO(), force_terminal=terminal, force_jupyter=False)

        monkeypatch.setattr(progress, "Progress", Spied)
        monkeypatch.setattr(progress, "Console", console)


@pytest.mark.parametrize("target", [la.Logit(12), SEVERAL], ids=["one", "several"])
@pytest.mark.parametrize(("method", "options"), LONG, ids=[" ".join([m, *o]) for m, o in LONG])
@pytest.mark.parametrize("name", small.GPT2)
@pytest.mark.filterwarnings("ignore::lens_attr.errors.Notice")
def test_it_moves_with_every_pass_and_ends_full(
    name: str, method: str, options: dict[str, Any], target: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = Seen(monkeypatch, terminal=True)
    monkeypatch.setattr(progress, "PATIENCE", 0.0)
    model, ids = small.model(name), tiny.token_ids("gpt2", rows=3)
    before = small.world(model)
    la.attribute(model, ids, target, method, batch_size=2, **options)
    assert small.world(model) == before
    (bar,) = seen.bars
    (task,) = bar.tasks
    assert seen.started == [bar] and task.finished and task.completed == task.total
    assert bar.live.transient and not bar.live.is_started


@pytest.mark.parametrize("options", [{}, {"record": ["z"]}], ids=["together", "one by one"])
def test_it_moves_while_backwards_run(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The forward of many targets is short; a bar that waits for forwards would never start."""
    seen = Seen(monkeypatch, terminal=True)
    clock = iter(range(1000))
    monkeypatch.setattr(progress, "monotonic", lambda: next(clock))
    monkeypatch.setattr(progress, "PATIENCE", tiny.N_LAYERS + 0.5)  # ticks, one for each block
    model, ids = small.model(small.GPT2[0]), tiny.token_ids("gpt2")
    la.attribute(model, ids, la.Logit(12), **options)
    assert len(seen.started) == 1
    seen.steps.clear()
    la.attribute(model, ids, SEVERAL, **options)
    backwards = [3] if not options else [1, 1, 1]
    assert seen.steps == [1] * tiny.N_LAYERS + [n * tiny.N_LAYERS for n in backwards]


def test_no_bar_outlives_its_call(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = Seen(monkeypatch, terminal=True)
    model, ids = small.model(small.GPT2[0]), tiny.token_ids("gpt2")
    la.attribute(model, ids, SEVERAL, progress=True)
    steps = len(seen.steps)
    la.attribute(model, ids, SEVERAL, progress=False)
    progress.backwards_done(5)
    assert len(seen.steps) == steps


@pytest.mark.parametrize(
    ("terminal", "patience", "shown", "starts"),
    [
        (True, 0.0, None, 1),
        (True, 3600.0, None, 0),  # nothing flickers where work is short
        (True, 3600.0, True, 1),
        (True, 0.0, False, 0),
        (False, 0.0, None, 0),
        (False, 0.0, True, 1),
    ],
)
def test_where_and_when_it_shows(
    terminal: bool,
    patience: float,
    shown: bool | None,
    starts: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen = Seen(monkeypatch, terminal)
    monkeypatch.setattr(progress, "PATIENCE", patience)
    model, ids = small.model(small.GPT2[0]), tiny.token_ids("gpt2")
    plain = la.attribute(model, ids, la.Logit(12), progress=False)
    watched = la.attribute(model, ids, la.Logit(12), progress=shown)
    assert len(seen.started) == starts
    assert watched.tokens.equal(plain.tokens)


def test_a_failure_takes_it_away(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = Seen(monkeypatch, terminal=True)
    model, ids = small.model(small.GPT2[0]), tiny.token_ids("gpt2")
    nothing = la.Metric(lambda logits: logits.detach()[:, -1, 5])
    before = small.world(model)
    with pytest.raises(la.InputError, match="does not depend on the logits"):
        la.attribute(model, ids, nothing, "integrated_gradients", progress=True)
    assert not seen.started[0].live.is_started
    steps = len(seen.steps)
    progress.backwards_done(1)
    assert len(seen.steps) == steps
    assert small.world(model) == before
