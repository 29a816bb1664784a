"""The HTML frame, the style sheet and the script of a page."""

from __future__ import annotations

from string import Template

PAGE = Template(
    """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; \
script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:">
<link rel="icon" href="data:,">
<title>$title</title>
<style>$style</style>
</head>
<body>
<a class="skip" href="#main">Skip to the results</a>
<header>
<h1>$title</h1>
$prose
$contents
</header>
<main id="main" tabindex="-1">
$body
</main>
<footer>$footer</footer>
$scripts
</body>
</html>
"""
)

STYLE = """
:root { color-scheme: light dark; --ink: #22262e; --soft: #5d6470; --page: #f4f5f7;
  --card: #ffffff; --line: #e0e3e8; --link: #1f5fa8; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e6ea; --soft: #a3a9b5; --page: #121418;
  --card: #1b1e24; --line: #343943; --link: #8ab8f0; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 16px; max-width: 1120px; background: var(--page);
  color: var(--ink); font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0.6em 0 0.4em; }
h2 { font-size: 1.3rem; line-height: 1.3; margin: 0 0 0.4em; }
h3 { font-size: 1.08rem; margin: 0 0 0.3em; }
header p, section > p { max-width: 46em; overflow-wrap: anywhere; }
p { margin: 0.5em 0; }
a { color: var(--link); }
a:focus-visible, input:focus-visible, select:focus-visible, summary:focus-visible,
.scroll:focus-visible { outline: 3px solid var(--link); outline-offset: 2px; }
main:focus { outline: none; }
.skip { position: absolute; left: -9999px; }
.skip:focus { position: static; }
nav > ul { display: flex; flex-wrap: wrap; gap: 0.2em 1.2em; list-style: none; padding: 0; }
nav > ul > li > a { font-weight: 600; }
nav ul ul { list-style: none; padding: 0; margin: 0.1em 0 0.4em; font-size: 0.92rem; }
section { background: var(--card); border: 1px solid var(--line); border-radius: 8px;
  padding: 16px 18px; margin: 16px 0; }
figure { margin: 14px 0 0; }
figcaption, .label { color: var(--soft); font-size: 0.9rem; }
.label { display: flex; flex-wrap: wrap; gap: 0 0.8em; margin-top: 0.8em; }
.label b { color: var(--ink); font-weight: 600; }
.example { margin-top: 16px; padding-top: 4px; border-top: 1px solid var(--line); }
.plot { width: 100%; }
.tokens { font: 15px/2 ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace;
  margin: 0.1em 0 0.2em; overflow-wrap: anywhere; }
.tokens span { padding: 0.22em 0.3em; border-radius: 3px; margin-right: 1px;
  -webkit-box-decoration-break: clone; box-decoration-break: clone; }
.refused { color: var(--soft); font-size: 0.92rem; margin: 0.1em 0 0.2em; }
.key { display: flex; flex-wrap: wrap; align-items: center; gap: 0.4em 0.7em;
  color: var(--soft); font-size: 0.9rem; }
.key i { width: 130px; height: 12px; border-radius: 3px; }
.scroll { overflow-x: auto; margin: 12px 0 0; }
table { border-collapse: collapse; font-size: 0.92rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 5px 14px 5px 0; border-bottom: 1px solid var(--line);
  white-space: nowrap; }
th { color: var(--soft); font-weight: 600; }
.caption { font-size: 0.92rem; color: var(--soft); margin: 12px 0 0; }
.files { font-size: 0.82rem; color: var(--soft); margin-top: 12px; overflow-wrap: anywhere; }
code { font: 0.95em ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace; }
dl { display: grid; grid-template-columns: minmax(7em, max-content) 1fr; gap: 0.15em 1em;
  margin: 0.5em 0; font-size: 0.94rem; }
dt { color: var(--soft); }
dd { margin: 0; white-space: pre-wrap; overflow-wrap: anywhere; }
.picker { display: flex; flex-wrap: wrap; gap: 0.4em 1.5em; align-items: center; margin: 8px 0;
  font-size: 0.94rem; }
fieldset { display: flex; flex-wrap: wrap; gap: 0.1em 1em; border: 0; padding: 0; margin: 0;
  min-width: 0; }
legend { float: left; color: var(--soft); padding: 0; margin-right: 1em; }
.picker label { white-space: nowrap; }
.picker > label { display: flex; gap: 0.5em; align-items: center; min-width: 0; max-width: 100%; }
.picker select { min-width: 0; font: inherit; }
summary { cursor: pointer; color: var(--soft); font-size: 0.9rem; width: fit-content; }
[hidden] { display: none !important; }
footer { color: var(--soft); font-size: 0.88rem; overflow-wrap: anywhere; }
@media (max-width: 480px) { body { padding: 8px; }
  nav ul ul { display: flex; flex-wrap: wrap; gap: 0 0.9em; }
  section { padding: 12px 10px; }
  dl { grid-template-columns: 1fr; } dd { margin-bottom: 0.4em; } }
@media print {
  :root { color-scheme: light; --ink: #000; --soft: #444; --page: #fff; --card: #fff;
    --line: #bbb; --link: #000; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
  body { max-width: none; padding: 0; font-size: 11pt; }
  nav, .picker, .skip, details:not([open]) { display: none; }
  section { border: 0; padding: 0; }
  h2 { break-before: page; } section:first-child h2 { break-before: auto; }
  h2, h3, figcaption, .caption { break-after: avoid; }
  figure, .example, tr { break-inside: avoid; }
  .scroll { overflow: visible; } th, td { white-space: normal; }
}
"""

PICK = """
for (const block of document.querySelectorAll(".explanations")) {
  const boxes = Array.from(block.querySelectorAll("input[data-method]"));
  const text = block.querySelector("select");
  const pick = () => {
    const shown = new Set(boxes.filter((box) => box.checked).map((box) => box.dataset.method));
    for (const strip of block.querySelectorAll(".strip"))
      strip.hidden = boxes.length > 0 && !shown.has(strip.dataset.method);
    for (const example of block.querySelectorAll(".example"))
      example.hidden = text !== null && text.value !== "" && example.dataset.text !== text.value;
  };
  block.addEventListener("change", pick);
  pick();
}
"""

DRAW = Template(
    """
const themes = $themes;
for (const {layout} of Object.values(themes)) {  // there is no button that undoes a zoom
  layout.dragmode = false;
  layout.xaxis.fixedrange = layout.yaxis.fixedrange = true;
}
const dark = window.matchMedia("(prefers-color-scheme: dark)");
const paper = window.matchMedia("print");
function draw(place) {
  const drawing = JSON.parse(place.dataset.drawing);
  drawing.layout.template = dark.matches && !paper.matches ? themes.dark : themes.light;
  Plotly.react(place, drawing.data, drawing.layout, {responsive: true, displayModeBar: false});
}
const places = Array.from(document.querySelectorAll(".plot"));
for (const place of places) {
  place.dataset.drawing = place.querySelector("script").textContent;
  place.replaceChildren();
}
const redraw = () => places.forEach(draw);
for (const setting of [dark, paper]) setting.addEventListener("change", redraw);
redraw();
"""
)
