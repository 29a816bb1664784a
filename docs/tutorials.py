"""A hook of mkdocs: every notebook, with its stored outputs, becomes a page under ``tutorials/``.

Nothing is run. Cells become text and code, tables stay HTML, figures become images.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

NOTEBOOKS = Path(__file__).resolve().parents[1] / "notebooks"
FOLDER = "tutorials"
STYLE = """
.output { overflow-x: auto; border-left: 3px solid var(--md-default-fg-color--lightest);
  padding-left: 0.8rem; font-size: 0.68rem; }
.output table { border-collapse: collapse; }
.output th, .output td { padding: 0.15rem 0.7rem 0.15rem 0; text-align: left; }
"""


def on_files(files: Files, config: Any) -> Files:
    """Add the pages and the images to what mkdocs builds."""
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        notebook = json.loads(path.read_text("utf-8"))
        images: dict[str, bytes] = {}
        page = "\n\n".join(_page(notebook, path.stem, images))
        files.append(File.generated(config, f"{FOLDER}/{path.stem}.md", content=page))
        for name, image in images.items():
            files.append(File.generated(config, f"{FOLDER}/{name}", content=image))
    return files


def _page(notebook: dict[str, Any], name: str, images: dict[str, bytes]) -> Iterator[str]:
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            yield source
            continue
        yield _fenced(source, "python")
        for output in cell["outputs"]:
            yield _output(output, name, images)
    yield f"*This page is the notebook `notebooks/{name}.ipynb`: run it to change things.*"
    yield f"<style>{STYLE}</style>"


def _output(output: dict[str, Any], name: str, images: dict[str, bytes]) -> str:
    if output["output_type"] == "stream":
        return _fenced("".join(output["text"]), "text")
    data = output["data"]
    if "image/png" in data:
        image = f"{name}_{len(images)}.png"
        images[image] = base64.b64decode(data["image/png"])
        return f"![The figure that this cell draws]({image})"
    if "text/html" in data:
        # A blank line would end the block of HTML.
        markup = re.sub(r"\n\s*\n", "\n", "".join(data["text/html"]))
        return f'<div class="output">\n{markup}\n</div>'
    return _fenced("".join(data["text/plain"]), "text")


def _fenced(text: str, language: str) -> str:
    """A block of code, behind more backticks than any line of it has."""
    longest = max((len(ticks) for ticks in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"
