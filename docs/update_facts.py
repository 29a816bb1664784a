"""Write what the registry says of the methods into the docs and the README.

    python docs/update_facts.py

Run it when a method, its options or its description change; the tests hold them equal.
"""

from __future__ import annotations

import re
from pathlib import Path

import lens_attr as la

DOCS = Path(__file__).parent


def put(page: Path, opening: str, text: str, closing: str) -> None:
    """Replace what stands between two marks."""
    between = re.compile(f"({opening})\n.*?\n({closing})", flags=re.DOTALL)
    written, count = between.subn(lambda found: f"{found[1]}\n{text}\n{found[2]}", page.read_text())
    if count != 1:
        raise SystemExit(f"{page} has {count} places between {opening!r} and {closing!r}")
    page.write_text(written)


for method in la.methods():
    page = DOCS / "methods" / f"{method.name}.md"
    put(page, "<!-- facts -->", f"\n{method.to_markdown()}\n", "<!-- end of facts -->")

table = la.methods().to_markdown()
put(DOCS.parent / "README.md", "<!-- methods:.*?-->", table, "<!-- end of methods -->")
put(DOCS / "methods" / "index.md", "<!-- methods -->", f"\n{table}\n", "<!-- end of methods -->")
