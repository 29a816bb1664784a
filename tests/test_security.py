"""Nothing here runs what it reads: no pickle, no remote code, no markup from a prompt."""

from __future__ import annotations

import ast
import inspect
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import dataset
import pytest
import tiny
import torch
from test_report import result

import lens_attr as la
from lens_attr.attribution.comparison import Comparison
from lens_attr.graph import backend_class
from lens_attr.graph.model import shared_name
from lens_attr.plots import html_tokens
from lens_attr.report import Page, Section, explained_text, write_page
from lens_attr.runs.lock import at_work

PACKAGE = Path(la.__file__).parent
SOURCES = {
    str(path.relative_to(PACKAGE)): ast.parse(path.read_text()) for path in PACKAGE.rglob("*.py")
}

UNSAFE_MODULES = {
    "pickle",
    "cPickle",
    "_pickle",
    "cloudpickle",
    "dill",
    "joblib",
    "marshal",
    "shelve",
}
UNSAFE_CALLS = {
    "torch.load",
    "torch.save",
    "np.load",
    "numpy.load",
    "pd.read_pickle",
    "yaml.unsafe_load",
    "yaml.full_load",
    "os.system",
    "eval",
    "exec",
}


def imported(tree: ast.AST) -> set[str]:
    """Top-level modules that a file imports, wherever in it."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.partition(".")[0])
    return found


def called(tree: ast.AST) -> set[str]:
    """Functions that a file calls, as written."""
    return {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}


@pytest.mark.parametrize("name", SOURCES)
def test_no_file_unpickles_or_evaluates(name: str) -> None:
    assert not imported(SOURCES[name]) & UNSAFE_MODULES
    assert not called(SOURCES[name]) & UNSAFE_CALLS


def test_that_search_would_find_something() -> None:
    tree = ast.parse("def f():\n    import pickle\n    return torch.load(eval('x'))")
    assert imported(tree) & UNSAFE_MODULES
    assert called(tree) & UNSAFE_CALLS == {"torch.load", "eval"}


def test_yaml_is_read_by_the_safe_loader_only() -> None:
    import yaml

    from lens_attr.runs.job import _Loader

    users = [name for name, tree in SOURCES.items() if "yaml.load" in called(tree)]
    assert users == ["runs/job.py"]
    assert issubclass(_Loader, yaml.SafeLoader)


# ------------------------------------------------------------------------------------ remote code


def test_nothing_sets_trust_remote_code() -> None:
    for name, tree in SOURCES.items():
        keywords = {node.arg for node in ast.walk(tree) if isinstance(node, ast.keyword)}
        assert "trust_remote_code" not in keywords, name


def test_the_bridge_does_not_trust_by_default() -> None:
    bridge: Any = backend_class("TransformerBridge")
    parameter = inspect.signature(bridge.boot_transformers).parameters.get("trust_remote_code")
    assert parameter is None or parameter.default is False


@pytest.mark.skipif("hooked" not in tiny.BACKENDS, reason="transformer-lens 3.9 only")
@pytest.mark.parametrize("name", ["microsoft/phi-2", "phi-1", "Qwen/Qwen-7B", "santacoder"])
def test_names_that_transformer_lens_trusts_by_itself_are_refused(name: str) -> None:
    with pytest.raises(la.UnsupportedModelError, match="backend='bridge'"):
        la.load(name, backend="hooked")


def test_a_directory_with_code_of_its_own_does_not_run_it(tmp_path: Path) -> None:
    """A model whose configuration points at a Python file beside it."""
    import json

    folder = shutil.copytree(tiny.directory("gpt2"), tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "model_type": "evil",
        "auto_map": {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    for backend in tiny.BACKENDS:
        with pytest.raises(la.LensAttrError):
            la.load(folder, backend=backend)  # type: ignore[arg-type]
    assert not (tmp_path / "ran").exists()


# ----------------------------------------------------------------------------------------- markup

ATTACKS = [
    "<script>document.title='hit'</script>",
    "</script><img src=x onerror=\"document.title='hit'\">",
    "\"><svg onload=document.title='hit'>",
    "' onmouseover='document.title=1",
    "</title><script>document.title='hit'</script>",
    "</style><script>document.title='hit'</script>",
    "<!--",
    "]]>",
    "{{constructor.constructor('document.title=1')()}}",
    "<b>bold</b>",
    "%{customdata}<extra></extra>",
]


def evil(method: str = "gim") -> la.Relevance:
    """A result whose every string is an attack."""
    from dataclasses import replace

    n = len(ATTACKS)
    heads = torch.randn(1, 2, n, 2)
    return replace(
        result(method),
        tokens=torch.linspace(-1, 1, n)[None],
        token_ids=torch.zeros(1, n, dtype=torch.long),
        attention_mask=torch.ones(1, n, dtype=torch.bool),
        str_tokens=[ATTACKS],
        target=[" ".join(ATTACKS)],
        unit=ATTACKS[0],
        method=ATTACKS[1],
        head_tokens=heads,
        heads_relu_dim=heads.relu().sum(2),
        metadata={"note": ATTACKS[0]},
    )


def evil_page(folder: Path) -> Path:
    everything = " ".join(ATTACKS)
    one = evil()
    table = one.to_pandas()
    table.columns = [ATTACKS[0], *table.columns[1:]]
    content = [
        explained_text({ATTACKS[0]: one}),
        one.plot(),
        Comparison({ATTACKS[1]: one, "b": one}).plot(),
        one.plot(kind="heads"),
        table,
    ]
    section = Section(everything, everything, content)
    return write_page(Page(everything, everything, [section], everything), folder / "page.html")


def test_tokens_are_escaped() -> None:
    markup = html_tokens(ATTACKS, [0.5] * len(ATTACKS), unit=ATTACKS[0])
    assert "<script" not in markup and "<img" not in markup and "<svg" not in markup
    tags = re.findall(r"<[^>]*>", markup)
    assert {re.sub(r'"[^"]*"', '""', tag) for tag in tags} == {
        '<p class="">',
        '<span style="" title="">',
        "</span>",
        "</p>",
    }


class Elements(HTMLParser):
    """Every element of a page with its attributes, as a browser would build it."""

    def __init__(self, markup: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(markup)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def harmless(self) -> None:
        """No element and no attribute can have come from an attack."""
        for tag, attributes in self.found:
            assert tag not in ("img", "iframe", "object", "embed", "base", "form"), tag
            assert not [name for name in attributes if name.startswith("on")], (tag, attributes)
            for link in (attributes.get("href"), attributes.get("src")):
                assert link is None or link.startswith(("#", "data:")), link
        scripts = [attributes for tag, attributes in self.found if tag == "script"]
        assert [a for a in scripts if a.get("type") != "application/json"] == [{}, {}]


def test_a_page_holds_no_script_but_its_own(tmp_path: Path) -> None:
    Elements(evil_page(tmp_path).read_text()).harmless()


def test_that_search_would_find_an_attack(tmp_path: Path) -> None:
    for attack in ATTACKS[:3]:
        with pytest.raises(AssertionError):
            Elements(f"<script></script><script></script>{attack}").harmless()


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
def test_a_browser_shows_attacks_as_text(tmp_path: Path) -> None:
    page = evil_page(tmp_path)
    arguments = ["--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=4000"]
    profile = f"--user-data-dir={tmp_path / 'profile'}"
    shown = subprocess.run(
        [str(CHROMIUM), *arguments, profile, "--dump-dom", page.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
    ).stdout
    assert "js-plotly-plot" in shown, "the page's own script must have drawn its figures"
    title = re.search(r"<title>(.*?)</title>", shown, re.DOTALL)
    assert title is not None and title[1].startswith("&lt;script&gt;document.title='hit'")
    spans = re.findall(r'<p class="tokens">.*?</p>', shown, re.DOTALL)
    assert spans and all("&lt;script&gt;" in span for span in spans)
    Elements(shown).harmless()


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
def test_that_browser_would_run_a_script(tmp_path: Path) -> None:
    """The negative control: the same attack, not escaped."""
    page = tmp_path / "page.html"
    page.write_text(f"<html><head><title>safe</title></head><body>{ATTACKS[1]}</body></html>")
    arguments = ["--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=2000"]
    profile = f"--user-data-dir={tmp_path / 'profile'}"
    shown = subprocess.run(
        [str(CHROMIUM), *arguments, profile, "--dump-dom", page.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
    ).stdout
    assert "<title>hit</title>" in shown


@pytest.mark.parametrize("backend", tiny.BACKENDS)
def test_a_result_names_a_local_model_without_its_folders(backend: Any) -> None:
    found = la.attribute(la.load("demo-gpt2", backend=backend), "the keys", la.Logit(" are"))
    assert found.metadata["model"]["model_name"] == "demo-gpt2"
    assert str(Path(la.__file__).parent) not in repr(found.metadata)


def test_ashared_name_the_hub_stays_whole() -> None:
    assert shared_name("meta-llama/Llama-3.2-1B") == "meta-llama/Llama-3.2-1B"
    assert shared_name("") == ""


# ------------------------------------------------------------------------------- the out directory


@pytest.mark.parametrize(
    "planted",
    [".plan.jsonl.tmp", ".scan.tmp", "shards/.000000.parquet.0.tmp", ".lock", ".rank0.lock"],
)
@pytest.mark.parametrize("there", [True, False])
def test_a_planted_link_is_not_written_through(tmp_path: Path, planted: str, there: bool) -> None:
    job = dataset.job(tmp_path, dataset.samples(2))
    victim = tmp_path / "victim"
    if there:
        victim.write_text("precious")
    link = tmp_path / "out" / planted
    link.parent.mkdir(parents=True)
    link.symlink_to(victim)
    with pytest.raises(la.InputError, match="is a link"):
        dataset.run(job)
    assert victim.exists() == there
    assert not there or victim.read_text() == "precious"
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_nothing_is_written_under_a_name_that_can_be_foreseen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between that check and the writing somebody may still plant a link: every file is opened
    under a random name that must be new, or as a lock, which is never written and follows none."""
    job = dataset.job(tmp_path, dataset.samples(2))
    opened: list[tuple[str, str]] = []
    real = Path.open

    def watched(self: Path, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        opened.append((self.name, mode))
        return real(self, mode, *arguments, **options)

    monkeypatch.setattr(Path, "open", watched)
    dataset.run(job)
    written = [(name, mode) for name, mode in opened if set(mode) & set("wax+")]
    assert len(written) >= 5
    for name, mode in written:
        assert mode in ("x", "xb") and re.search(r"\.[0-9a-f]{16}\.tmp$", name), (name, mode)
    lock = tmp_path / "elsewhere"
    (tmp_path / ".rank0.lock").symlink_to(lock)
    with pytest.raises(la.InputError, match="cannot write"), at_work(tmp_path, rank=0):
        pass
    assert not lock.exists()
