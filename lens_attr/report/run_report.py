"""The page of a run: the result files of a directory in, one HTML file out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lens_attr._version import __version__
from lens_attr.report.page import Page, Section, facts_list
from lens_attr.report.run_files import Chapter, Found, RunFiles, read_run
from lens_attr.report.run_sections import KINDS, metadata_of, setting

TITLE = "lens_attr: what made the prediction?"
REPRODUCE = (
    "Every number on this page was read from the files named under its section. These commands, "
    "with the versions below, make those files."
)
NO_COMMAND = "No command is on record: the results were saved from Python."


def run_page(run: RunFiles | str | Path) -> Page:
    """A chapter per folder with results, and how to repeat them.

    Args:
        run: from `read_run`, or the directory to read.

    Raises:
        InputError: not a directory, or no result file in it.
    """
    run = run if isinstance(run, RunFiles) else read_run(run)
    titles = [chapter.title for chapter in run.chapters]
    sections = [
        section
        for chapter in run.chapters
        for section in _chapter(chapter, unique=titles.count(chapter.title) == 1)
    ]
    return Page(
        title=str(run.about.get("title") or TITLE),
        prose=str(run.about.get("prose") or ""),
        sections=[*sections, *_problems(run.problems), _reproduce(run)],
        footer=f"Written by lens_attr {__version__}.",
    )


def _chapter(chapter: Chapter, unique: bool) -> list[Section]:
    title = chapter.title if unique else f"{chapter.title}, {chapter.folder}"
    opening = Section(title, "", setting(chapter))
    return [opening, *(section for kind in KINDS for section in kind(chapter))]


def _problems(problems: Mapping[str, str]) -> list[Section]:
    if not problems:
        return []
    prose = "These files are in the folder, and what they hold is missing above."
    return [Section("Could not be read", prose, [facts_list(problems)])]


def _reproduce(run: RunFiles) -> Section:
    everything = [found for chapter in run.chapters for found in chapter.found]
    commands = dict.fromkeys(
        [
            *_commands(run.about),
            *(c for chapter in run.chapters for c in _commands(chapter.about)),
            *filter(None, (metadata_of(found.result).get("command") for found in everything)),
        ]
    )
    facts: dict[str, Any] = {"command": "\n".join(map(str, commands)) or NO_COMMAND}
    facts |= _versions(everything)
    return Section("How to reproduce", REPRODUCE if commands else "", [facts_list(facts)])


def _commands(about: Mapping[str, Any]) -> Sequence[str]:
    commands = about.get("commands", {})
    return list(commands.values()) if isinstance(commands, dict) else []


def _versions(everything: Sequence[Found]) -> dict[str, str]:
    """Of every library; where files disagree, all of them."""
    known: dict[str, dict[str, None]] = {}
    for found in everything:
        versions = metadata_of(found.result).get("versions", {})
        for library, version in versions.items() if isinstance(versions, Mapping) else ():
            known.setdefault(str(library), {})[str(version)] = None
    return {library: ", ".join(versions) for library, versions in known.items()}
