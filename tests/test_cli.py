"""The command line, end to end on the demo models."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import run_dir
import typer
from test_report import result
from typer.testing import CliRunner, Result

import lens_attr as la
from lens_attr.attribution.comparison import Comparison
from lens_attr.cli import app, attribute, console
from lens_attr.cli.prune import _read, _split
from lens_attr.demo import DEMO_MODELS, generate
from lens_attr.errors import InputError
from lens_attr.types import Sample


def leaves(group: Any, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    """Every command that does something, by the words that call it."""
    found: dict[tuple[str, ...], Any] = {}
    for name, command in group.commands.items():
        below = getattr(command, "commands", None)
        found |= {(*path, name): command} if below is None else leaves(command, (*path, name))
    return found


COMMANDS = leaves(typer.main.get_command(app))
LOADS_NO_MODEL = {("methods",), ("report",), ("run",)}
LOADS_SEVERAL = {("demo",)}
TEXT = "the keys near the old cabinet"
PAIR = ["--target", " are", "--foil", " is"]
ESCAPE = "\x1b["


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def good(*arguments: str | Path) -> str:
    ran = run(*arguments)
    assert ran.exit_code == 0, ran.output
    return ran.stdout


def shell(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | environment,
    )


@pytest.fixture
def fast_load(monkeypatch: pytest.MonkeyPatch, models: dict[str, Any]) -> None:
    """Load each demo model once for the whole file."""
    load = la.load

    def cached(name: str, **options: Any) -> Any:
        key = f"{name} {sorted(options.items())}"
        if key not in models:
            models[key] = load(name, **options)
        return models[key]

    monkeypatch.setattr(la, "load", cached, raising=False)


@pytest.fixture(scope="module")
def models() -> dict[str, Any]:
    return {}


# --- starting up


@pytest.mark.parametrize("arguments", [["--help"], *([*words, "--help"] for words in COMMANDS)])
def test_help_loads_no_heavy_library(arguments: list[str]) -> None:
    code = (
        "import sys; from typer.testing import CliRunner; from lens_attr.cli import app\n"
        f"result = CliRunner().invoke(app, {arguments!r})\n"
        "assert result.exit_code == 0, result.output\n"
        "heavy = {'torch', 'transformers', 'transformer_lens', 'pandas', 'plotly', 'numpy'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    ran = shell("-c", code)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip() == "[]"


def test_help_lists_every_command() -> None:
    shown = good("--help")
    assert all(words[0] in shown for words in COMMANDS)


def options_of(command: Any) -> dict[str, Any]:
    return {name: p for p in command.params for name in p.opts if name.startswith("--")}


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_command_keeps_the_contract(words: tuple[str, ...]) -> None:
    """What works in one command works in all."""
    command = COMMANDS[words]
    for parameter in command.params:
        assert getattr(parameter, "help", None), f"{parameter.name} has no help"
    assert {"--json", "--quiet"} <= options_of(command).keys()
    assert "-q" in options_of(command)["--quiet"].opts
    call = " ".join(("lens-attr", *words))
    assert f"Example: {call}" in command.help, "no example"
    if words not in LOADS_NO_MODEL | LOADS_SEVERAL:
        takes_model = {"--model", "--backend", "--dtype", "--device"}
        assert takes_model <= options_of(command).keys()
    if words in LOADS_NO_MODEL:
        assert "--backend" not in options_of(command)


LETTERS = {"-h": "--help", "-f": "--foil", "-m": "--model", "-n": "--max-new-tokens",
           "-q": "--quiet", "-t": "--target"}  # fmt: skip


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_a_letter_and_a_method_mean_the_same_everywhere(words: tuple[str, ...]) -> None:
    for parameter in COMMANDS[words].params:
        for letter in (name for name in parameter.opts if re.fullmatch("-[a-z]", name)):
            assert LETTERS[letter] in parameter.opts
        assert ("--method" in parameter.opts) == ("--methods" in parameter.opts)


@pytest.mark.parametrize("words", [w for w in COMMANDS if "--html" in options_of(COMMANDS[w])])
@pytest.mark.parametrize("name", ["page.pdf", "page.png", "page"])
def test_a_page_is_written_into_no_file_that_promises_something_else(
    words: tuple[str, ...], name: str
) -> None:
    ran = run(*words, "--html", f"out/{name}")
    assert ran.exit_code == 2
    assert f"'--html': '{name}' is to hold a page: let it end in .html." in ran.stderr


SHARED = ("--model", "--backend", "--dtype", "--device", "--target", "--foil", "--json", "--quiet",
          "--html", "--save", "--csv", "--top", "--position", "--pool")  # fmt: skip


@pytest.mark.parametrize("option", SHARED)
def test_an_option_means_the_same_in_every_command(option: str) -> None:
    """The same letters and the same default."""
    found = {w: options_of(c)[option] for w, c in COMMANDS.items() if option in options_of(c)}
    assert len(found) > 1
    first = next(iter(found.values()))
    for words, parameter in found.items():
        assert (parameter.opts, parameter.default) == (first.opts, first.default), words


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_a_mistyped_option_is_one_line_with_what_was_meant(words: tuple[str, ...]) -> None:
    ran = run(*words, "--jsn")
    assert ran.exit_code == 2
    assert ran.stdout == ""
    (line,) = ran.stderr.splitlines()
    assert line.startswith("error: ") and "did you mean --json" in line
    assert line.endswith(f"See: lens-attr {' '.join(words)} --help")


def test_a_mistyped_command_is_one_line_with_what_was_meant() -> None:
    for words, meant in ((["atribute"], "attribute"), (["circuit", "evalute", "x"], "evaluate")):
        ran = run(*words)
        assert ran.exit_code == 2 and ran.stdout == ""
        (line,) = ran.stderr.splitlines()
        assert f"Did you mean '{meant}'?" in line


def test_version() -> None:
    assert good("--version").strip() == f"lens-attr {la.__version__}"


def test_it_runs_as_a_module() -> None:
    ran = shell("-m", "lens_attr.cli", "--version")
    assert ran.stdout.strip() == f"lens-attr {la.__version__}"


# --- errors


def test_no_command_shows_the_help() -> None:
    assert "Usage" in run().output


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["attribute"],
        ["attribute", TEXT, "--top", "0"],
        ["attribute", TEXT, "--embeddings", "half"],
        ["attribute", TEXT, "--foil", " is"],
        ["prune"],
        ["prune", "--task", "sva", "--data", __file__],
        ["prune", "--task", "sva", "--methods", " , "],
        ["attribute", TEXT, "--method", ","],
        ["heads", TEXT, "--method", "lrp,gim"],
        ["check", "demo-llama", "--model", "demo-bert"],
        ["check", "demo-llama", "--model", "demo-gpt2"],
        ["prune", "--data", "there/is/no/such.jsonl"],
        ["prune", "--task", "sva", "--methods", "attnlrp,lrp,attnlrp"],
        ["attribute", TEXT, "--method", "gim", "--method", "gim"],
    ],
)
def test_wrong_usage_exits_with_2(arguments: list[str]) -> None:
    ran = run(*arguments)
    assert ran.exit_code == 2
    (line,) = ran.stderr.splitlines()
    assert line.startswith("error: ") and " --help" in line


@pytest.mark.parametrize(
    ("arguments", "meant"),
    [
        (["edges", "--task", "sva", "--method", "attnlpr"], "attnlrp"),
        (["bench", "--ties", "expcted"], "expected"),
        (["patch", "--unit", "haed"], "head"),
        (["attribute", TEXT, "--backend", "brigde"], "bridge"),
        (["prune", "--task", "sva", "--order", "lest"], "least"),
        (["generate", TEXT, "--explain", "logprob"], "log_prob"),
    ],
)
def test_a_mistyped_choice_is_one_line_with_what_was_meant(
    arguments: list[str], meant: str
) -> None:
    ran = run(*arguments)
    assert ran.exit_code == 2
    (line,) = ran.stderr.splitlines()
    assert f"'{arguments[-1]}' is not one of " in line and "Value error" not in line
    assert f"; did you mean '{meant}'" in line


def test_a_choice_that_is_like_none_is_followed_by_all() -> None:
    (line,) = run("patch", "--unit", "xyz").stderr.splitlines()
    assert "did you mean" not in line and "'mlp_out'" in line


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["attribute", TEXT, "--method", "gimm"], "did you mean 'gim'?"),
        (["heads", TEXT, "--method", "atnlrp"], "did you mean 'attnlrp'"),
        (["prune", "--task", "sva", "--methods", "lrp,gimm"], "did you mean 'gim'?"),
        (["check", "demo-gpt2", "--rules", "gimm"], "did you mean 'gim'?"),
        (["attribute", TEXT, "--methods", "attnlrp,gimm"], "did you mean 'gim'?"),
        (["attribute", TEXT, "--model", "./demo-gpt3"], "demo-gpt2"),
    ],
)
def test_a_refusal_is_one_line_on_stderr_and_exit_code_1(arguments: list[str], hint: str) -> None:
    ran = run(*arguments)
    assert ran.exit_code == 1
    assert ran.stdout == ""
    (line,) = ran.stderr.splitlines()
    assert line.startswith("error: ")
    assert hint in line


def test_an_unwritable_file_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str, **options: Any) -> None:
        raise PermissionError(13, "Permission denied", "out")

    monkeypatch.setattr(la, "load", refuse, raising=False)
    ran = run("attribute", TEXT)
    assert ran.exit_code == 1
    assert ran.stderr == "error: [Errno 13] Permission denied: 'out'\n"


def test_an_interrupt_exits_with_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(name: str, **options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(la, "load", interrupt, raising=False)
    ran = run("attribute", TEXT)
    assert ran.exit_code == 130
    assert ran.stderr == "error: interrupted\n"


def test_error_lines_stay_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    console.error(ValueError("first\n  second [bold]third[/bold]"))
    assert capsys.readouterr().err == "error: first second [bold]third[/bold]\n"


# --- printing


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.0, "0.000"), (1.23456, "1.235"), (-0.00012, "-1.20e-04"), (123456.0, "1.23e+05")],
)
def test_numbers(value: float, shown: str) -> None:
    assert console.number(value) == shown


def test_tables_show_missing_values_and_do_not_read_markup(
    capsys: pytest.CaptureFixture[str],
) -> None:
    layers = pd.array([None, 3], dtype="Int64")
    frame = pd.DataFrame({"layer": layers, "ok": [True, False], "token": ["[MASK]", ":smile:"]})
    console.print_table(frame)
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert rows == [["layer", "ok", "token"], ["-", "yes", "[MASK]"], ["3", "no", ":smile:"]]


def test_wide_tables_are_not_cut_when_piped(capsys: pytest.CaptureFixture[str]) -> None:
    console.print_table(pd.DataFrame({"a": ["x" * 90], "b": ["y" * 90]}))
    assert "x" * 90 + "  " + "y" * 90 in capsys.readouterr().out


def test_tokens_are_coloured_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("NO_COLOR", "COLORTERM"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    console.print_coloured([" keys", "\n"], [1.0, -1.0])
    out = capsys.readouterr().out
    assert ESCAPE in out and " keys" in out and "↵" in out


# --- methods and check


def test_methods_lists_the_registry() -> None:
    shown = good("methods")
    listed = json.loads(good("methods", "--json"))
    assert {row["name"] for row in listed} == {method.name for method in la.methods()}
    assert all(row["name"] in shown and row["summary"] in shown for row in listed)
    assert good("methods", "-q").splitlines() == [row["name"] for row in listed]


@pytest.mark.usefixtures("fast_load")
def test_check_shows_where_rules_act() -> None:
    shown = good("check", "demo-gpt2", "--rules", "gim")
    assert "blocks.0.attn.hook_pattern" in shown
    assert shown.rstrip().endswith("gim on demo-gpt2: accepted")
    document = json.loads(good("check", "-m", "demo-gpt2", "--rules", "gim", "--json"))
    assert document["accepted"] and document["reasons"] == [] and document["coverage"]


@pytest.mark.usefixtures("fast_load")
def test_check_exits_with_1_when_refused() -> None:
    ran = run("check", "demo-bert", "--rules", "gim", "--backend", "bridge")
    assert ran.exit_code == 1
    assert ran.stderr.startswith("error: gim refuses demo-bert: ")
    ran = run("check", "demo-bert", "--rules", "gim", "--backend", "bridge", "--json")
    assert ran.exit_code == 1
    assert not json.loads(ran.stdout)["accepted"]


# --- attribute and heads


@pytest.mark.usefixtures("fast_load")
def test_attribute_prints_the_target_the_text_and_the_top_tokens() -> None:
    shown = good("attribute", TEXT, *PAIR, "--method", "gim", "--method", "lrp", "--top", "3")
    lines = shown.splitlines()
    assert lines[0].startswith("logit of ' are' - logit of ' is': ")
    assert sum(line.endswith(TEXT) for line in lines) == 2
    header = next(i for i, line in enumerate(lines) if line.startswith("position"))
    assert lines[header].split() == ["position", "token", "gim", "lrp"]
    assert len(lines) == header + 1 + 3
    assert ESCAPE not in shown


@pytest.mark.usefixtures("fast_load")
def test_attribute_json_equals_the_python_api() -> None:
    document = json.loads(good("attribute", TEXT, *PAIR, "--method", "gim", "--json"))
    expected = la.attribute(
        la.load("demo-gpt2", backend="auto", dtype="float32", device=None),
        TEXT,
        la.LogitDiff(" are", " is"),
        method="gim",
    )
    assert document["tokens"] == expected.real_str_tokens()
    assert document["relevance"]["gim"] == expected.real_tokens().double().tolist()
    assert document["value"] == float(expected.target_value[0])
    assert document["unit"] == {"gim": "logit"}
    assert document["metadata"]["gim"]["embeddings"] == "full"


@pytest.mark.usefixtures("fast_load")
def test_attribute_explains_the_top_logit_without_a_target() -> None:
    assert "top logit" in json.loads(good("attribute", TEXT, "--json"))["target"]


@pytest.mark.usefixtures("fast_load")
def test_attribute_passes_position_and_embeddings_on() -> None:
    options = ["--position", "2", "--embeddings", "token"]
    document = json.loads(good("attribute", TEXT, *PAIR, *options, "--json"))
    assert document["position"] == 2
    assert set(document["relevance"]["attnlrp"][3:]) == {0.0}
    assert document["metadata"]["attnlrp"]["embeddings"] == "token"


@pytest.mark.usefixtures("fast_load")
def test_attribute_explains_the_mask_of_a_masked_model() -> None:
    text = "the keys near the old cabinet [MASK] here ."
    options = ["--model", "demo-bert", "--json"]
    document = json.loads(good("attribute", text, *PAIR, *options))
    assert document["tokens"][document["position"]] == "[MASK]"


@pytest.mark.usefixtures("fast_load")
def test_attribute_saves_and_writes_a_page(tmp_path: Path) -> None:
    page, one, two = tmp_path / "a" / "page.html", tmp_path / "one", tmp_path / "two"
    good("attribute", TEXT, *PAIR, "--html", page, "--save", one)
    assert la.Relevance.load(one).target == ["logit of ' are' - logit of ' is'"]
    markup = page.read_text(encoding="utf-8")
    assert "cabinet" in markup or "cabin" in markup
    good("attribute", TEXT, *PAIR, "--methods", "gim,", "--method", "lrp", "--save", two)
    assert la.Relevance.load(two / "gim").method == "gim"
    assert la.Relevance.load(two / "lrp").method == "lrp"


@pytest.mark.usefixtures("fast_load")
def test_heads_ranks_most_relevant_first(tmp_path: Path) -> None:
    shown = good("heads", TEXT, *PAIR, "--top", "3", "--html", tmp_path / "heads.html")
    assert "layer  head  score" in shown
    document = json.loads(good("heads", TEXT, *PAIR, "--pool", "sum", "--json"))
    scores = [head["score"] for head in document["heads"]]
    assert scores == sorted(scores, reverse=True) and len(scores) > 3
    assert document["pool"] == "sum" and document["method"] == "attnlrp"
    assert "Attention heads" in (tmp_path / "heads.html").read_text(encoding="utf-8")


# --- prune


@pytest.mark.usefixtures("fast_load")
def test_prune_writes_curves_and_prints_the_summary(tmp_path: Path) -> None:
    sizes = ["--n", "12", "--n-rank", "8", "--seeds", "2"]
    shown = good("prune", "--task", "sva", "--methods", "gim, lrp", *sizes, "--out", tmp_path)
    assert shown.splitlines()[0].split()[:3] == ["method", "area", "n"]
    curves = pd.read_csv(tmp_path / "curve.csv")
    assert set(curves["method"]) == {"gim", "lrp", "random seed 0", "random seed 1"}
    markup = (tmp_path / "pruning.html").read_text(encoding="utf-8")
    assert "Ranked on 8 samples of sva, measured on 12 others." in markup


@pytest.mark.usefixtures("fast_load")
def test_prune_reads_data_and_prints_json(tmp_path: Path) -> None:
    data = tmp_path / "mine.jsonl"
    samples = {sample.text: sample for sample in generate("sva", 60)}
    rows = [{"text": s.text, "answer": s.answer, "foil": s.foil} for s in samples.values()]
    data.write_text("\n".join(map(json.dumps, rows)) + "\n\n", encoding="utf-8")
    sizes = ["--n", "6", "--n-rank", "5", "--seeds", "0", "--methods", "lrp"]
    options = ["--order", "most", "--ablation", "mean", "--out", tmp_path, "--json"]
    document = json.loads(good("prune", "--data", data, *sizes, *options))
    curve = document["curves"]["lrp"]
    assert len(curve["accuracy"]) == len(curve["pruned"]) + 1
    assert document["summary"][0]["n"] == 6


def _write(path: Path, *rows: object) -> Path:
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


def test_a_target_may_be_a_token_id() -> None:
    by_word = json.loads(good("attribute", TEXT, "-t", " are", "-f", " is", "--json"))
    model = la.load("demo-gpt2")
    are, is_ = (model.to_single_token(word) for word in (" are", " is"))
    by_id = json.loads(good("attribute", TEXT, "-t", f"id:{are}", "-f", f"id:{is_}", "--json"))
    assert by_id["relevance"] == by_word["relevance"]
    assert by_id["target"] == by_word["target"]


def test_the_advice_for_a_target_of_several_tokens_can_be_followed() -> None:
    ran = run("attribute", TEXT, "-t", " are is")
    assert ran.exit_code == 1
    advice = re.search(r"in a shell as (id:\d+)", ran.stderr)
    assert advice is not None
    assert "logit of ' are'" in good("attribute", TEXT, "-t", advice[1])


def test_data_files_name_target_or_answer(tmp_path: Path) -> None:
    rows = [
        {"text": "a", "target": " b", "foil": " c"},
        {"text": "d", "answer": " e", "foil": " f", "suffix": " ."},
    ]
    first, second = _read(_write(tmp_path / "d.jsonl", *rows))
    assert (first.text, first.answer, first.foil, first.suffix) == ("a", " b", " c", "")
    assert (second.answer, second.suffix) == (" e", " .")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "a", "foil": "b"}, "line 1 has no 'target'"),
        ({"text": 3, "target": "a", "foil": "b"}, "line 1 has no 'text'"),
        (["text"], "line 1 is not a JSON object"),
    ],
)
def test_bad_data_files_are_refused_with_the_line(
    tmp_path: Path, row: object, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        _read(_write(tmp_path / "d.jsonl", row))


def test_broken_json_is_refused_with_the_line(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text('{"text": "a", "target": "b", "foil": "c"}\n{oops', encoding="utf-8")
    with pytest.raises(InputError, match="line 2 is not JSON"):
        _read(path)


def test_data_that_is_not_utf8_is_refused_with_the_line(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_bytes(
        '{"text": "a", "target": "b", "foil": "c"}\n{"text": "\xe9"}'.encode("latin-1")
    )
    with pytest.raises(InputError, match=r"^d\.jsonl line 2 is not UTF-8: save the file as UTF-8"):
        _read(path)


def test_ranking_and_pruning_share_no_text() -> None:
    texts = ["a", "b", "a", "c", "b", "d"]
    ranking, pruning = _split([Sample(text, " x", " y") for text in texts], 2, 2)
    assert [sample.text for sample in ranking] == ["a", "b"]
    assert [sample.text for sample in pruning] == ["c", "d"]
    with pytest.raises(InputError, match="too few"):
        _split([Sample(text, " x", " y") for text in texts], 2, 3)


# --- report


def test_report_reads_what_the_commands_saved(tmp_path: Path) -> None:
    run_dir.write(tmp_path)
    shown = good("report", tmp_path)
    assert shown.splitlines()[-1] == f"page: {tmp_path / 'index.html'}"
    (tmp_path / "m" / "pruning.json").write_text("{")
    ran = run("report", tmp_path, "--html", tmp_path / "other.html")
    assert ran.exit_code == 0 and (tmp_path / "other.html").exists()
    assert ran.stderr.startswith("note: m/pruning.json could not be read: ")
    assert list(json.loads(good("report", tmp_path, "--json"))["problems"]) == ["m/pruning.json"]


def test_report_refuses_a_folder_without_results(tmp_path: Path) -> None:
    ran = run("report", tmp_path)
    assert ran.exit_code == 1
    assert "holds no result that can be shown" in ran.stderr


@pytest.mark.usefixtures("fast_load")
def test_what_commands_save_can_be_reported(tmp_path: Path) -> None:
    """One folder, filled by every command with --save, and by prune."""
    sizes = ["--n", "4", "--n-rank", "4", "--seeds", "1", "--methods", "lrp"]
    for words in (
        ["attribute", TEXT, *PAIR, "--method", "lrp", "--method", "gim", "--save"],
        ["heads", TEXT, *PAIR, "--save"],
        ["generate", TEXT, "-n", "2", "--save"],
        ["check", "demo-gpt2", "--rules", "gim", "--save"],
        ["patch", "--task", "sva", "--n", "6", "--save"],
        ["edges", "--task", "sva", "--n", "6", "--method", "eap", "--save"],
        ["prune", "--task", "sva", *sizes, "--out"],
    ):
        good(*words, tmp_path / "all")
    good(
        "circuit",
        "evaluate",
        tmp_path / "all",
        "--task",
        "sva",
        "--n",
        "6",
        "--save",
        tmp_path / "all",
    )
    noted = json.loads((tmp_path / "all" / "about.json").read_text("utf-8"))["commands"]
    assert set(noted) >= {"relevance", "generation", "coverage", "patching", "edges", "pruning"}
    files = json.loads(good("report", tmp_path, "--json"))["files"]
    assert {Path(file).name for file in files} == {
        "relevance.json", "generation.json", "coverage.json", "patching.json", "edges.json",
        "circuit.json", "pruning.json", "ranking.json", "evaluation.json",
    }  # fmt: skip


# --- demo


@pytest.mark.usefixtures("fast_load")
@pytest.mark.slow
def test_demo_writes_one_page_about_every_model(tmp_path: Path) -> None:
    shown = good("demo", "--quick", "--n", "10", "--out", tmp_path)
    markup = (tmp_path / "index.html").read_text(encoding="utf-8")
    for name in DEMO_MODELS:
        assert name in shown
        assert f"<h2>{name}</h2>" in markup
    curves = json.loads((tmp_path / "demo-gpt2" / "pruning.json").read_text("utf-8"))
    curves["curves"][0]["accuracy"] = [0.03125] * len(curves["curves"][0]["accuracy"])
    (tmp_path / "demo-gpt2" / "pruning.json").write_text(json.dumps(curves), "utf-8")
    document = json.loads(good("report", tmp_path, "--json"))
    assert document["page"] == str(tmp_path / "index.html") and not document["problems"]
    again = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert again.count(">0.031<") > markup.count(">0.031<")
    assert shown.rstrip().endswith(f"page: {tmp_path / 'index.html'}")
    assert "http-equiv" in markup and 'src="http' not in markup


@pytest.mark.usefixtures("fast_load")
def test_demo_says_why_a_method_is_refused(tmp_path: Path) -> None:
    from lens_attr.circuits import PruningComparison
    from lens_attr.cli.demo_data import explore
    from lens_attr.report import run_page

    found = explore("demo-bert", "bridge", n=4, n_rank=6, seeds=2, folder=tmp_path / "demo-bert")
    assert set(found.refused) == {"gim", "circuit"}
    assert "gim" not in found.agreement.scores
    saved = PruningComparison.load(tmp_path / "demo-bert")
    assert {curve.method for curve in saved.curves} == set(found.agreement.scores)
    prose = [section.prose for section in run_page(tmp_path).sections]
    assert any(found.refused["gim"] in text for text in prose)
    assert any(found.refused["circuit"] in text for text in prose)


def test_demo_empties_no_folder_that_is_not_its_own(tmp_path: Path) -> None:
    from lens_attr.cli.demo_data import explore

    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(InputError, match="holds other things"):
        explore("demo-gpt2", "auto", n=1, n_rank=1, seeds=0, folder=tmp_path)
    assert (tmp_path / "mine.txt").read_text() == "keep"


def test_top_tokens_weigh_methods_alike() -> None:
    small, large = result("gim"), result("lrp")
    large.tokens.mul_(1000).copy_(large.tokens.flip(1))
    table = attribute._top_tokens(Comparison({"gim": small, "lrp": large}), 2)
    assert sorted(table["position"]) == [0, 2]
