"""The README is right: its code runs, and its table is the registry's."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import lens_attr as la

README = (Path(__file__).resolve().parents[1] / "README.md").read_text(encoding="utf-8")


def test_the_code_runs_from_top_to_bottom_on_a_demo_model(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    blocks = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    code = "\n".join(blocks).replace('la.load("gpt2")', 'la.load("demo-gpt2")')
    assert code.count("la.attribute(") >= 2
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})


def test_the_method_table_is_generated_from_the_registry() -> None:
    between = re.search(r"<!-- methods:.*?-->\n(.*?)\n<!-- end of methods -->", README, re.DOTALL)
    assert between is not None
    assert between[1] == la.methods().to_markdown()
