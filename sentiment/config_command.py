"""Show the settings in force and where each value comes from, checked as the commands check them.

  sentiment config
  sentiment config --profile gpu-cluster train score
  sentiment config --yaml                            # a ray_config.yaml with all settings at their defaults, explained
  sentiment config --markdown                        # the reference page, docs/settings.md

Without sections it shows all. What a command would refuse (an unknown key, a misspelled variable, an invalid value) is
one line on stderr and exit code 2; what has to be given by a flag or a variable stays open.
"""

from __future__ import annotations

import json
import os
import sys
import textwrap
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic.fields import FieldInfo

from sentiment.cli import Parser, explained, inner_type, valid_values
from sentiment.commands import TRAIN_BERT, TRAIN_LSTM
from sentiment.config import CONFIG_FILE, Configuration, unknown
from sentiment.observability.log import run_command
from sentiment.settings import SECTIONS, Section, TrainBertSettings, TrainSettings
from sentiment.training.recipes import get_bert_recipe, get_recipe

_COMMENT_COLUMN = 34
_MARKDOWN_HEAD = """# Settings

<!-- Written by `sentiment config --markdown`, from sentiment/settings.py and sentiment/training/recipes.py. -->

Each key stands in its section of `ray_config.yaml`, is a flag of the section's command (`--num-workers 4`) and a
variable (`SENTIMENT_TRAIN_NUM_WORKERS=4`). Flags win over variables, variables over a profile, a profile over the rest
of the file. `null`: not given. `sentiment config` shows what is in force and where each value comes from."""
_RECIPE_FIELDS = {job.settings.section: job.recipe_fields() for job in (TRAIN_LSTM, TRAIN_BERT)}
_OPEN = "to be given"


def main(argv: Sequence[str] | None = None) -> int:
    """Print the settings; returns the exit code.

    Args:
        argv: Arguments; None: those of the process.
    """

    def work() -> int:
        parser = Parser("sentiment config", str(__doc__))
        parser.add_argument("section", nargs="*", metavar="SECTION", help=f"{', '.join(SECTIONS)}; none: all")
        parser.add_config_flags()
        parser.add_argument("--yaml", action="store_true", help=f"print a {CONFIG_FILE} with all settings instead")
        parser.add_argument("--markdown", action="store_true", help="print the reference page instead")
        given = parser.parse_args(sys.argv[1:] if argv is None else argv)
        for name in given.section:
            if name not in SECTIONS:
                raise unknown("section", name, SECTIONS, "the command line")
        if given.yaml:
            lines = yaml_lines(given.config or CONFIG_FILE)
        elif given.markdown:
            lines = markdown_lines()
        else:
            configuration = Configuration(given.config, given.profile)
            found = {name: in_force(SECTIONS[name], configuration) for name in given.section or SECTIONS}
            lines = (line for name, settings in found.items() for line in _listing(name, settings))
        try:
            print("\n".join(lines), flush=True)
        except BrokenPipeError:  # `| head` has seen enough; what Python itself still writes goes nowhere.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0

    return run_command("config", work)


def in_force(section: type[Section], configuration: Configuration) -> dict[str, tuple[Any, str]]:
    """What a section holds without flags.

    Args:
        section: Which one.
        configuration: File, profile and environment.

    Returns:
        Key → value and where it comes from; None and "to be given" where there is none.

    Raises:
        ConfigError: The command of this section would refuse it.
    """
    found: dict[str, tuple[Any, str]] = {
        name: (None, _OPEN) if field.is_required() else (field.default, "default")
        for name, field in section.keys().items()
    }
    recipe_fields = _RECIPE_FIELDS.get(section.section, {})
    for source, layer in configuration.layers(section, recipe_fields):
        found |= {name: (value, source) for name, value in layer.items()}
    # Stands for the paths that are still to be given, so that the other values can be checked.
    anything = {
        name: ["x"] if typing.get_origin(section.model_fields[name].annotation) is list else "x"
        for name, (_, source) in found.items()
        if source == _OPEN
    }
    settings = configuration.load(section, anything, recipe_fields)
    if isinstance(settings, TrainSettings):
        get = get_bert_recipe if isinstance(settings, TrainBertSettings) else get_recipe
        get(settings.recipe).with_overrides(settings.overrides)
    return found


def _listing(section: str, settings: Mapping[str, tuple[Any, str]]) -> Iterator[str]:
    yield f"{section}:"
    for name, (value, source) in settings.items():
        line = f"  {name}: {'' if source == _OPEN else _shown(value)}"
        yield f"{line:<44}  # {source}"


def yaml_lines(file: str) -> Iterator[str]:
    """Lines of a `ray_config.yaml` with every setting at its default.

    Args:
        file: Such a file, if it exists: what stands above its first empty line, and its profiles, are kept.
    """
    existing = Path(file).read_text(encoding="utf-8").splitlines() if Path(file).exists() else []
    first = next((i for i, line in enumerate(existing) if not line), -1) + 1
    profiles = next((i for i, line in enumerate(existing) if line.startswith("profiles:")), len(existing))
    yield from existing[:first]
    for name, section in SECTIONS.items():
        yield from textwrap.wrap(str(section.__doc__), 118, initial_indent="# ", subsequent_indent="# ")
        yield f"{name}:"
        for key, field in section.keys().items():
            # What must be given for each run has no place in a file.
            start = f"  # {key}:" if field.is_required() else f"  {key}: {_shown(field.default)}"
            text = explained(field, "required" if field.is_required() else "", valid_values(field))
            for line in textwrap.wrap(text, 118 - _COMMENT_COLUMN, break_on_hyphens=False):
                yield f"{start:<{_COMMENT_COLUMN}}# {line}"
                start = ""
        yield ""
    yield from existing[profiles:]


def markdown_lines() -> Iterator[str]:
    """Lines of docs/settings.md."""
    yield from _MARKDOWN_HEAD.splitlines()
    for name, section in SECTIONS.items():
        yield from ("", f"## {name}", "", str(section.__doc__), "", "| key | type | default | |", "|---|---|---|---|")
        for key, field in section.keys().items():
            default = "required" if field.is_required() else f"`{_shown(field.default)}`"
            yield f"| `{key}` | {_type_name(field)} | {default} | {explained(field, valid_values(field))} |"
        if recipe_fields := _RECIPE_FIELDS.get(name):
            yield from (
                "",
                "Fields of the recipe, whose defaults are its own:",
                "",
                "| key | type | |",
                "|---|---|---|",
            )
            for key, field in recipe_fields.items():
                yield f"| `{key}` | {_type_name(field)} | {explained(field, valid_values(field))} |"


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _type_name(field: FieldInfo) -> str:
    kind = inner_type(field.annotation)
    if typing.get_origin(kind) in (list, tuple):
        return "list"
    return {int: "integer", float: "number", bool: "true or false"}.get(kind, "text")
