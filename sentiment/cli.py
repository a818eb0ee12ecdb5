"""What is made of the settings: flags, `--help`, `sentiment config`, comments of ray_config.yaml, docs/settings.md.

A command prints one JSON object as the last line of stdout; everything for people goes to stderr. A user's mistake is
one line there and exit code 2; anything else is a traceback and 1.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import sys
import textwrap
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, NoReturn, TypeVar

from pydantic.fields import FieldInfo

from sentiment.config import CONFIG_FILE, PROFILE_VARIABLE, Configuration
from sentiment.errors import ConfigError, ResourceError, flag_of, unknown
from sentiment.observability import log
from sentiment.settings import FLAG_ALONE, SECTIONS, RaySettings, Section, TrainBertSettings, TrainSettings
from sentiment.training.recipes import get_bert_recipe, get_recipe

S = TypeVar("S", bound=Section)


class Parser(argparse.ArgumentParser):
    """Parser of a command: a mistake is a `ConfigError`, flags can't be abbreviated, its description stays as it is."""

    def __init__(self, program: str, about: str, **options: Any) -> None:
        raw = functools.partial(argparse.RawDescriptionHelpFormatter, max_help_position=32)
        super().__init__(prog=program, description=about, formatter_class=raw, allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        """Refuse a command line."""
        raise ConfigError(f"{message}; --help lists the flags")

    def add_config_flags(self) -> argparse._ArgumentGroup:
        """Add the flags that say where settings are read, in a group of their own, which is returned."""
        group = self.add_argument_group("configuration and messages")
        about = f"configuration file (default: {CONFIG_FILE} in the working directory, if it exists)"
        group.add_argument("--config", metavar="FILE", help=about)
        group.add_argument("--profile", metavar="NAME", help=f"profile in that file (also {PROFILE_VARIABLE})")
        return group

    def refuse_rest(self, rest: Sequence[str]) -> None:
        """Refuse what `parse_known_args` left over, with the near flags."""
        flag = next((word for word in rest if word.startswith("-")), None)
        if flag is not None:
            flags = [name for action in self._actions for name in action.option_strings if name.startswith("--")]
            raise unknown("flag", flag.split("=")[0], flags, self.prog)
        if rest:
            raise ConfigError(f"unexpected argument {rest[0]!r}; --help lists the flags")


def print_lines(lines: Iterable[str]) -> None:
    """Print lines on stdout and flush them; BrokenPipeError if nobody reads them any more."""
    try:
        print("\n".join(lines), flush=True)
    except OSError as error:
        # As Python's documentation has it: else the interpreter would flush what is left, and fail, on its way out.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
        if isinstance(error, BrokenPipeError):
            raise
        raise ResourceError(f"standard output can't be written: {error.strerror}") from error


@dataclass(frozen=True)
class Job(Generic[S]):
    """A command whose flags are a section of `ray_config.yaml`.

    Attributes:
        name: Its name, before messages; that of its file in `jobs/`.
        about: What it does, with examples; the text of `--help`.
        settings: Its section.
        run: Does the work; its result is printed as JSON.
        program: How it is called, for `--help`; `sentiment NAME` if not given.
    """

    name: str
    about: str
    settings: type[S]
    run: Callable[[S, RaySettings], dict[str, Any]]
    program: str | None = None

    def main(self, argv: Sequence[str] | None = None) -> int:
        """Parse, run, report; returns the exit code. `argv` is the process's if not given."""
        words = sys.argv[1:] if argv is None else argv
        as_json = "--log-json" in words

        def work() -> int:
            flags = self._flags(words)
            quiet = flags.get("quiet", False)
            log.configure(self.name, quiet=quiet, as_json=as_json)
            settings, ray_settings = self.load(flags)
            log.configure(self.name, verbose=ray_settings.verbose, quiet=quiet, as_json=as_json)
            # Ray prints warnings of its raylet on stdout, which is for our JSON alone.
            with contextlib.redirect_stdout(sys.stderr):
                result = self.run(settings, ray_settings)
            print(json.dumps(result), flush=True)
            return 0

        return log.run_command(self.name, work, as_json=as_json)

    def parse(self, argv: Sequence[str]) -> tuple[S, RaySettings]:
        """Turn a command line into settings; ConfigError if a flag is unknown or missing, or its value invalid."""
        return self.load(self._flags(argv))

    def load(self, given: Mapping[str, Any]) -> tuple[S, RaySettings]:
        """Complete settings by file, profile and environment.

        Args:
            given: Values by name: of the section, the recipe, section `ray`, and the flags that all commands have.

        Raises:
            ConfigError: A name is unknown or a value is missing or invalid.
        """
        flags = {name: value for name, value in given.items() if name not in ("quiet", "log_json")}
        configuration = Configuration(flags.pop("config", None), flags.pop("profile", None))
        ray_flags = {name: flags.pop(name) for name in RaySettings.model_fields if name in flags}
        known = {*self.settings.keys(), *dict(self.settings.renamed), *self.settings.recipe_fields()}
        for name in flags.keys() - known:  # Command lines have none: this is a call of the function of that name.
            raise unknown("setting", name, known, f"{self.name.partition('_')[0]}(…)")
        return configuration.load(self.settings, flags), configuration.load(RaySettings, ray_flags)

    def _flags(self, argv: Sequence[str]) -> dict[str, Any]:
        """Values by name; they stay text, the settings check and convert them."""
        parser = Parser(
            self.program or f"sentiment {self.name.replace('_', ' ')}",
            self.about,
            epilog='In a description "null" means that the flag isn\'t given.',
            argument_default=argparse.SUPPRESS,
        )
        group = parser.add_argument_group(f"main settings (section {self.settings.section} of {CONFIG_FILE})")
        for name, field in self.settings.keys().items():
            if name in dict(self.settings.groups):
                group = parser.add_argument_group(dict(self.settings.groups)[name])
            _add_flag(group, name, field)
        if fields := self.settings.recipe_fields():
            group = parser.add_argument_group("recipe (replace the recipe's own values)")
            for name, field in fields.items():
                _add_flag(group, name, field, with_default=False)
        group = parser.add_argument_group(f"Ray (section ray of {CONFIG_FILE})")
        for name, field in RaySettings.keys().items():
            _add_flag(group, name, field)
        common = parser.add_config_flags()
        common.add_argument("--quiet", action="store_true", help="show warnings and errors only")
        common.add_argument(
            "--log-json", action="store_true", help=f"log one JSON object a line (also {log.VARIABLE}=json)"
        )
        for old, _ in self.settings.renamed:
            common.add_argument(flag_of(old), help=argparse.SUPPRESS)
        given, rest = parser.parse_known_args(list(argv))
        parser.refuse_rest(rest)
        return vars(given)


def _add_flag(group: argparse._ArgumentGroup, name: str, field: FieldInfo, *, with_default: bool = True) -> None:
    kind = _inner_type(field.annotation)
    is_choice = typing.get_origin(kind) is Literal
    default = ""
    if with_default and (field.is_required() or field.default not in (None, False, [])):
        default = "required" if field.is_required() else f"default: {field.default}"
    about = _explained(field, default, "" if is_choice else _valid_values(field))
    options: dict[str, Any] = {"dest": name, "help": about.replace("%", "%%")}
    if kind is bool:
        options["action"] = argparse.BooleanOptionalAction
    elif is_choice:
        options["metavar"] = "{" + ",".join(map(str, typing.get_args(kind))) + "}"
    else:
        is_list = typing.get_origin(kind) in (list, tuple)
        item = _inner_type(typing.get_args(kind)[0]) if is_list else kind
        options["metavar"] = {int: "N", float: "X"}.get(item, "VALUE")
        if is_list:
            options |= {"nargs": "+", "action": "extend"}
        elif isinstance(field.json_schema_extra, dict) and FLAG_ALONE in field.json_schema_extra:
            options |= {"nargs": "?", "const": field.json_schema_extra[FLAG_ALONE]}
    group.add_argument(flag_of(name), **options)


def _explained(field: FieldInfo, *notes: str) -> str:
    """A field's description in one line, with notes in brackets behind it; empty ones are left out."""
    brackets = "; ".join(filter(None, notes))
    return " ".join((field.description or "").split()) + (f" ({brackets})" if brackets else "")


def _valid_values(field: FieldInfo) -> str:
    """The values that a field takes, beyond its type: its choices or its limits; empty if there are none to name."""
    kind = _inner_type(field.annotation)
    if typing.get_origin(kind) is Literal:
        *others, last = map(str, typing.get_args(kind))
        return f"{', '.join(others)} or {last}"
    signs = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
    limits = [(sign, getattr(limit, name, None)) for limit in field.metadata for name, sign in signs.items()]
    return ", ".join(f"{sign}{bound if bound < 2**53 else '2**63'}" for sign, bound in limits if bound is not None)


def _inner_type(annotation: Any) -> Any:
    """`int | None` → `int`; `Annotated[int, …]` → `int`."""
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union:
        return next(kind for kind in typing.get_args(annotation) if kind is not type(None))
    return typing.get_args(annotation)[0] if typing.get_origin(annotation) is Annotated else annotation


_OPEN = "to be given"
_COMMENT_COLUMN = 34
_ABOUT_CONFIG = """Show the settings in force and where each value comes from, checked as the commands check them.

  sentiment config
  sentiment config --profile gpu-cluster train score
  sentiment config --yaml                            # a ray_config.yaml with all settings at their defaults, explained
  sentiment config --markdown                        # the reference page, docs/settings.md

Without sections it shows all. What a command would refuse (an unknown key, a misspelled variable, an invalid value) is
one line on stderr and exit code 2. Settings that each run must give are shown as "to be given".
"""
_MARKDOWN_HEAD = """# Settings

<!-- Written by `sentiment config --markdown`, from sentiment/settings.py and sentiment/training/recipes.py. -->

Each key stands in its section of `ray_config.yaml`, is a flag of the section's command (`--num-workers 4`) and a
variable (`SENTIMENT_TRAIN_NUM_WORKERS=4`). Flags win over variables, variables over a profile, a profile over the rest
of the file. `null`: not given. `sentiment config` shows what is in force and where each value comes from."""


def show_config(argv: Sequence[str] | None = None) -> int:
    """Answer `sentiment config`; returns the exit code. `argv` is the process's if not given."""

    def work() -> int:
        parser = Parser("sentiment config", _ABOUT_CONFIG)
        parser.add_argument("section", nargs="*", metavar="SECTION", help=f"{', '.join(SECTIONS)}; none: all")
        parser.add_config_flags()
        parser.add_argument("--yaml", action="store_true", help=f"print a {CONFIG_FILE} with all settings instead")
        parser.add_argument("--markdown", action="store_true", help="print the reference page instead")
        given = parser.parse_args(argv)
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
        with contextlib.suppress(BrokenPipeError):  # `| head` has seen enough.
            print_lines(lines)
        return 0

    return log.run_command("config", work)


def in_force(section: type[Section], configuration: Configuration) -> dict[str, tuple[Any, str]]:
    """What a section holds without flags: key → value and where it comes from, or None and "to be given".

    Raises:
        ConfigError: The command of this section would refuse it.
    """
    found: dict[str, tuple[Any, str]] = {
        name: (None, _OPEN) if field.is_required() else (field.default, "default")
        for name, field in section.keys().items()
    }
    for source, layer in configuration.layers(section):
        found |= {name: (value, source) for name, value in layer.items()}
    # Stands for the paths that are still to be given, so that the other values can be checked.
    anything = {
        name: ["x"] if typing.get_origin(section.model_fields[name].annotation) is list else "x"
        for name, (_, source) in found.items()
        if source == _OPEN
    }
    settings = configuration.load(section, anything)
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
            text = _explained(field, "required" if field.is_required() else "", _valid_values(field))
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
            yield f"| `{key}` | {_type_name(field)} | {default} | {_explained(field, _valid_values(field))} |"
        if fields := section.recipe_fields():
            yield from ("", "Fields of the recipe, whose defaults are its own:", "")
            yield from ("| key | type | |", "|---|---|---|")
            for key, field in fields.items():
                yield f"| `{key}` | {_type_name(field)} | {_explained(field, _valid_values(field))} |"


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _type_name(field: FieldInfo) -> str:
    kind = _inner_type(field.annotation)
    if typing.get_origin(kind) in (list, tuple):
        return "list"
    return {int: "integer", float: "number", bool: "true or false"}.get(kind, "text")
