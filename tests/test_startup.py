"""What a start costs, in imported modules (`python -m benchmarks --only startup` times it)."""

from __future__ import annotations

import subprocess
import sys


def imported(statement: str) -> set[str]:
    """Modules that a statement imports, in a process of its own."""
    code = (
        "import sys, importlib, typing; before = set(sys.modules)\n"
        f"{statement}\n"
        "print(*sorted(set(sys.modules) - before))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return {name for name in done.stdout.split() if name not in sys.stdlib_module_names}


def test_the_package_imports_nothing_but_its_version() -> None:
    assert imported("import lens_attr") == {"lens_attr", "lens_attr._version"}


def test_a_name_imports_what_it_needs() -> None:
    """Else the test above would hold for a package that cannot do anything."""
    assert "lens_attr.errors" in imported("import lens_attr; lens_attr.InputError")


def test_help_imports_the_command_line_and_no_part_of_the_toolkit() -> None:
    found = imported(
        "from lens_attr.cli import main\n"
        "sys.argv = ['lens-attr', '--help']; sys.stdout = open('/dev/null', 'w')\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "sys.stdout = sys.__stdout__"
    )
    ours = {name.split(".")[1] for name in found if name.startswith("lens_attr.")}
    assert ours <= {"_version", "cli", "display", "errors", "types"}
    assert not {"torch", "numpy", "pandas", "plotly", "transformers", "transformer_lens"} & found
