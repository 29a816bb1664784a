"""One progress bar for every method: where it shows, when, and that it leaves nothing behind."""

from __future__ import annotations

import io
from typing import Any

import pytest
import small
import tiny
from rich.console import Console
from rich.progress import Progress

import lens_attr as la
from lens_attr.attribution import progress

LONG = [
    ("integrated_gradients", {"steps": 3}),
    ("gradient_shap", {"n_samples": 3}),
    ("aieg", {"steps": 3}),
    ("occlusion", {}),
    ("deeplift", {"baseline": 9}),
    ("alti", {}),
    ("alti_logit", {}),
    ("attnlrp", {}),
]


class Seen:
    """Every bar: whether it started, how far it came, of how much."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, terminal: bool) -> None:
        self.bars: list[Progress] = []
        self.started: list[Progress] = []
        seen = self

        class Spied(Progress):
            def __init__(self, **options: Any) -> None:
                super().__init__(**options)
                seen.bars.append(self)

            def start(self) -> None:
                seen.started.append(self)
                super().start()

        def console(stderr: bool) -> Console:
            assert stderr
            return Console(file=io.StringIO(), force_terminal=terminal, force_jupyter=False)

        monkeypatch.setattr(progress, "Progress", Spied)
        monkeypatch.setattr(progress, "Console", console)


@pytest.mark.parametrize(("method", "options"), LONG, ids=[method for method, _ in LONG])
def test_it_moves_with_every_block_and_ends_full(
    method: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = Seen(monkeypatch, terminal=True)
    monkeypatch.setattr(progress, "PATIENCE", 0.0)
    model, ids = small.model(small.GPT2[0]), tiny.token_ids("gpt2", rows=3)
    before = small.world(model)
    la.attribute(model, ids, la.Logit(12), method, batch_size=2, **options)
    assert small.world(model) == before
    (bar,) = seen.bars
    (task,) = bar.tasks
    assert seen.started == [bar] and task.finished and task.completed == task.total
    assert bar.live.transient and not bar.live.is_started


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
    assert small.world(model) == before
