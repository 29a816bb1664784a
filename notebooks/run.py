"""Run the notebooks and store what their cells show.

    python notebooks/run.py                 # all of them
    python notebooks/run.py 01 04           # those whose names start so

Cells run in this process, one namespace per notebook, without a kernel. Figures are stored as
still pictures drawn by Chromium, tables and results as small HTML, so that a notebook reads well on
a page that runs nothing. Live, in Jupyter, the same figures can be hovered over.
"""

from __future__ import annotations

import ast
import base64
import contextlib
import io
import json
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

NOTEBOOKS = Path(__file__).parent
WIDTH = 780
Cell = dict[str, Any]


def code_cells(notebook: dict[str, Any]) -> list[Cell]:
    """The cells that run, in order."""
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def run(notebook: dict[str, Any], name: str) -> Iterator[tuple[Cell, str, Any]]:
    """Run every cell; each with what it printed and the value of its last line, if it has one."""
    namespace: dict[str, Any] = {"__name__": "__notebook__"}
    for number, cell in enumerate(code_cells(notebook), start=1):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            value = _execute("".join(cell["source"]), f"{name}, cell {number}", namespace)
        yield cell, printed.getvalue(), value


def _execute(source: str, name: str, namespace: dict[str, Any]) -> Any:
    tree = ast.parse(source, name)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, name, "exec", dont_inherit=True), namespace)
    if not isinstance(last, ast.Expr) or source.rstrip().endswith(";"):
        return None
    return eval(compile(ast.Expression(last.value), name, "eval", dont_inherit=True), namespace)


def shown(value: Any) -> dict[str, Any]:
    """A value as Jupyter shows it, by type of content; figures as a picture."""
    if hasattr(value, "to_plotly_json"):
        return {"image/png": picture(value), "text/plain": "Figure"}
    page = getattr(value, "_repr_html_", lambda: None)()
    return ({"text/html": page} if page else {}) | {"text/plain": repr(value)}


def picture(figure: Any) -> str:
    """A plotly figure as a PNG, in base64."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        raise SystemExit("figures are drawn by Chromium, which is not installed.")
    height = int(figure.layout.height or 450)
    figure.update_layout(width=WIDTH, height=height)
    with tempfile.TemporaryDirectory() as folder:
        page, image = Path(folder) / "figure.html", Path(folder) / "figure.png"
        inner = figure.to_html(full_html=False, config={"displayModeBar": False})
        page.write_text(f'<meta charset="utf-8"><body style="margin:0">{inner}', "utf-8")
        options = ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars")
        size = f"--window-size={WIDTH},{height}"
        more = (size, "--virtual-time-budget=4000", f"--screenshot={image}", page.as_uri())
        subprocess.run([chromium, *options, *more], check=True, capture_output=True, timeout=120)
        return base64.b64encode(image.read_bytes()).decode("ascii")


def store(path: Path) -> None:
    """Run a notebook and write it back with its outputs."""
    notebook = json.loads(path.read_text("utf-8"))
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        steps = list(run(notebook, path.stem))
    for number, (cell, printed, value) in enumerate(steps, start=1):
        outputs: list[dict[str, Any]] = []
        if printed:
            lines = printed.splitlines(keepends=True)
            outputs.append({"output_type": "stream", "name": "stdout", "text": lines})
        if value is not None:
            result = {"output_type": "execute_result", "execution_count": number, "metadata": {}}
            outputs.append(result | {"data": shown(value)})
        cell |= {"execution_count": number, "outputs": outputs}
    path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", "utf-8")


def main(prefixes: list[str]) -> None:
    """Run the notebooks whose names start with one of the prefixes, or all."""
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        if not prefixes or path.name.startswith(tuple(prefixes)):
            store(path)
            print(f"{path.name}: {path.stat().st_size / 1024:.0f} KiB", file=sys.stderr)


if __name__ == "__main__":
    main(sys.argv[1:])
