"""A page: a title, some prose, and sections that hold figures, tables and coloured text."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from lens_attr.plots import DARK, LIGHT
from lens_attr.report import assets

DEFAULT_HEIGHT = 450


@dataclass(frozen=True)
class Html:
    """Markup that goes into the page as it is: whoever makes it escapes what it shows."""

    markup: str


Content = go.Figure | pd.DataFrame | Html


@dataclass(frozen=True)
class Section:
    """One heading with what stands under it.

    Attributes:
        title: the heading, and the entry in the table of contents.
        prose: plain text; blank lines separate paragraphs.
        content: figures, tables and markup, in order. A table whose ``attrs`` have a ``"title"``
            shows it above.
        level: 2 for a section, 3 for a part of the one before it.
        files: where the numbers come from, named at its end.
    """

    title: str
    prose: str = ""
    content: Sequence[Content] = ()
    level: int = 2
    files: Sequence[str] = ()


@dataclass(frozen=True)
class Page:
    """Everything that one HTML file shows.

    Attributes:
        title: heading of the page and of the browser window.
        prose: plain text under the heading; blank lines separate paragraphs.
        sections: what follows.
        footer: plain text at the very end.
    """

    title: str
    prose: str = ""
    sections: Sequence[Section] = ()
    footer: str = ""


def write_page(page: Page, path: str | Path) -> Path:
    """Write one HTML file that needs no network: styles, figures and plotly are inside.

    Missing folders are made. The page follows the reader's light or dark setting.

    Args:
        page: what to show; all its text is escaped, apart from `Html`.
        path: the file.

    Returns:
        The path that was written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(render(page), encoding="utf-8")
    return path


def render(page: Page) -> str:
    """The HTML of a page. Plotly is embedded once, and only if the page holds a figure."""
    body = "\n".join(_section(section, i) for i, section in enumerate(page.sections))
    drawn = any(isinstance(c, go.Figure) for s in page.sections for c in s.content)
    return assets.PAGE.substitute(
        title=html.escape(page.title),
        style=assets.STYLE,
        prose=_paragraphs(page.prose),
        contents=_table_of_contents(page.sections),
        body=body,
        footer=_paragraphs(page.footer),
        scripts=_scripts(drawn, picks='<div class="picker">' in body),
    )


def _section(section: Section, i: int) -> str:
    tag = f"h{section.level}"
    parts = [f'<section id="s{i}"><{tag}>{html.escape(section.title)}</{tag}>']
    parts.append(_paragraphs(section.prose))
    parts += [_content(content) for content in section.content]
    if section.files:
        files = ", ".join(f"<code>{html.escape(file)}</code>" for file in section.files)
        parts.append(f'<p class="files">Read from {files}</p>')
    return "\n".join([*parts, "</section>"])


def _content(content: Content) -> str:
    if isinstance(content, Html):
        return content.markup
    if isinstance(content, pd.DataFrame):
        return table_of(content)
    return _figure(content)


def _paragraphs(text: str) -> str:
    blocks = (block.strip() for block in re.split(r"\n\s*\n", text))
    return "\n".join(f"<p>{html.escape(block)}</p>" for block in blocks if block)


def _table_of_contents(sections: Sequence[Section]) -> str:
    """Sections, each with a list of its parts."""
    entries: list[tuple[str, list[str]]] = []
    for i, section in enumerate(sections):
        link = f'<a href="#s{i}">{html.escape(section.title)}</a>'
        if section.level == 2 or not entries:
            entries.append((link, []))
        else:
            entries[-1][1].append(f"<li>{link}</li>")
    if len(entries) < 2:
        return ""
    items = (
        f"<li>{link}{f'<ul>{chr(10).join(parts)}</ul>' if parts else ''}</li>"
        for link, parts in entries
    )
    return f'<nav aria-label="Contents"><ul>{"".join(items)}</ul></nav>'


def table_of(frame: pd.DataFrame) -> str:
    """A table in a box of its own, so that a wide one scrolls without moving the page."""
    readable = frame.rename(columns=lambda name: str(name).replace("_", " "))
    for name in readable.select_dtypes("bool").columns:
        readable[name] = readable[name].map({True: "yes", False: "no"})
    markup = readable.to_html(
        index=False,
        border=0,
        justify="left",
        na_rep="-",
        float_format=lambda value: f"{value:.3f}",
        escape=True,
    )
    title = html.escape(str(frame.attrs.get("title", "")))
    above = f'<p class="caption">{title}</p>' if title else ""
    # A box that scrolls must be in the tab order, or keyboards cannot scroll it.
    box = f'role="region" tabindex="0" aria-label="{title or "table"}"'
    return f'{above}<div class="scroll" {box}>{markup}</div>'


def facts_list(facts: Mapping[str, object]) -> Html:
    """Names and values, one under the other; line breaks in a value are kept."""
    rows = (
        f"<dt>{html.escape(name)}</dt><dd>{html.escape(str(value))}</dd>"
        for name, value in facts.items()
    )
    return Html(f"<dl>{''.join(rows)}</dl>")


def _figure(figure: go.Figure) -> str:
    """A figure as data for the script at the end of the page; its title becomes a caption."""
    drawing = json.loads(str(figure.to_json()))
    layout = drawing["layout"]
    layout.pop("template", None)
    heading = layout.pop("title", {})
    layout.pop("width", None)
    height = layout.setdefault("height", DEFAULT_HEIGHT)
    layout["margin"] = {**layout.get("margin", {}), "t": _margin(layout)}
    titles = (heading.get("text"), heading.get("subtitle", {}).get("text"))
    title = ": ".join(filter(None, titles))
    caption = html.escape(_plain(title))
    return (
        f"<figure><figcaption>{caption}</figcaption>"
        f'<div class="plot" role="img" aria-label="{caption}" style="height:{int(height)}px">'
        f'<script type="application/json">{_script_json(drawing)}</script></div></figure>'
    )


def _margin(layout: Mapping[str, Any]) -> int:
    """Room above a figure without its title: for the titles of panels, where it has some."""
    above = [
        note["text"].count("<br>") + 1
        for note in layout.get("annotations", ())
        if note.get("yref") == "paper" and note.get("y", 0) >= 1
    ]
    return 12 + 18 * max(above, default=0)


def _plain(title: str) -> str:
    """The words of a plotly title, which may hold simple tags and entities."""
    return html.unescape(re.sub(r"<[^>]+>", " ", title)).strip()


def _script_json(value: object) -> str:
    """JSON that cannot end the script element around it."""
    return json.dumps(value, separators=(",", ":")).replace("<", "\\u003c")


def _scripts(drawn: bool, picks: bool) -> str:
    """Plotly and the drawing, the picker, or nothing: only what the page needs."""
    own = [assets.PICK] if picks else []
    if drawn:
        themes = {"light": LIGHT.to_plotly_json(), "dark": DARK.to_plotly_json()}
        own.append(assets.DRAW.substitute(themes=_script_json(themes)))
    library = f"<script>{get_plotlyjs()}</script>\n" if drawn else ""
    return library + (f"<script>{''.join(own)}</script>" if own else "")
