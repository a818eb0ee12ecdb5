"""What all commands have alike: flags made of settings, one JSON object as the last line of stdout, exit codes.

Everything for people goes to stderr. A user's mistake is one line there and exit code 2; anything else is a traceback
and 1.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import sys
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, NoReturn, TypeVar

from pydantic.fields import FieldInfo

from sentiment.config import CONFIG_FILE, PROFILE_VARIABLE, Configuration, unknown
from sentiment.errors import ConfigError
from sentiment.observability import log
from sentiment.settings import FLAG_ALONE, RaySettings, Section
from sentiment.training.recipes import Recipe

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


@dataclass(frozen=True)
class Job(Generic[S]):
    """A command whose flags are a section of `ray_config.yaml`.

    Attributes:
        name: Its name, before messages; that of its file in `jobs/`.
        about: What it does, with examples; the text of `--help`.
        settings: Its section.
        run: Does the work; its result is printed as JSON.
        overrides: Kinds of recipes whose fields are flags too.
        program: How it is called, for `--help`; `sentiment NAME` if not given.
    """

    name: str
    about: str
    settings: type[S]
    run: Callable[[S, RaySettings], dict[str, Any]]
    overrides: Sequence[type[Recipe]] = ()
    program: str | None = None

    def main(self, argv: Sequence[str] | None = None) -> int:
        """Parse, run, report.

        Args:
            argv: Arguments; None: those of the process.

        Returns:
            The exit code.
        """

        def work() -> int:
            flags = self._flags(sys.argv[1:] if argv is None else argv)
            form = {"quiet": flags.get("quiet", False), "as_json": flags.get("log_json", False)}
            log.configure(self.name, **form)
            settings, ray_settings = self.load(flags)
            log.configure(self.name, verbose=ray_settings.verbose, **form)
            # Ray prints warnings of its raylet on stdout, which is for our JSON alone.
            with contextlib.redirect_stdout(sys.stderr):
                result = self.run(settings, ray_settings)
            print(json.dumps(result), flush=True)
            return 0

        return log.run_command(self.name, work)

    def parse(self, argv: Sequence[str]) -> tuple[S, RaySettings]:
        """Turn a command line into settings.

        Raises:
            ConfigError: A flag is unknown or missing, or its value invalid.
        """
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
        recipe_fields = self.recipe_fields()
        known = {*self.settings.keys(), *dict(self.settings.renamed), *recipe_fields}
        for name in flags.keys() - known:
            raise unknown("setting", name, known, f"{self.name}(…)")
        settings = configuration.load(self.settings, flags, recipe_fields)
        return settings, configuration.load(RaySettings, ray_flags)

    def recipe_fields(self) -> dict[str, FieldInfo]:
        """Fields of the recipes that the section itself doesn't have, by name."""
        fields: dict[str, FieldInfo] = {}
        for kind in self.overrides:
            known = (*kind.WORDS, *self.settings.model_fields, *fields)
            fields |= {name: field for name, field in kind.model_fields.items() if name not in known}
        return fields

    def _flags(self, argv: Sequence[str]) -> dict[str, Any]:
        """Values by name; they stay text, the settings check and convert them."""
        parser = Parser(
            self.program or f"sentiment {self.name.replace('_', ' ')}",
            self.about,
            epilog='"null" in a description: the flag isn\'t given.',
            argument_default=argparse.SUPPRESS,
        )
        group = parser.add_argument_group(f"main settings (section {self.settings.section} of {CONFIG_FILE})")
        for name, field in self.settings.keys().items():
            if name in dict(self.settings.groups):
                group = parser.add_argument_group(dict(self.settings.groups)[name])
            _add_flag(group, name, field)
        if self.overrides:
            group = parser.add_argument_group("recipe (replace the recipe's own values)")
            for name, field in self.recipe_fields().items():
                _add_flag(group, name, field, with_default=False)
        group = parser.add_argument_group(f"Ray (section ray of {CONFIG_FILE})")
        for name, field in RaySettings.keys().items():
            _add_flag(group, name, field)
        common = parser.add_config_flags()
        common.add_argument("--quiet", action="store_true", help="show warnings and errors only")
        common.add_argument("--log-json", action="store_true", help=f"log JSON objects (also {log.VARIABLE}=json)")
        for old, _ in self.settings.renamed:
            common.add_argument("--" + old.replace("_", "-"), help=argparse.SUPPRESS)
        given, rest = parser.parse_known_args(list(argv))
        parser.refuse_rest(rest)
        return vars(given)


def explained(field: FieldInfo, *notes: str) -> str:
    """A field's description in one line, with notes in brackets behind it; empty ones are left out."""
    brackets = "; ".join(filter(None, notes))
    return " ".join((field.description or "").split()) + (f" ({brackets})" if brackets else "")


def valid_values(field: FieldInfo) -> str:
    """The values that a field takes, beyond its type: its choices or its limits; empty if there are none to name."""
    kind = inner_type(field.annotation)
    if typing.get_origin(kind) is Literal:
        *others, last = map(str, typing.get_args(kind))
        return f"{', '.join(others)} or {last}"
    signs = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
    limits = [(sign, getattr(limit, name, None)) for limit in field.metadata for name, sign in signs.items()]
    return ", ".join(f"{sign}{bound if bound < 2**53 else '2**63'}" for sign, bound in limits if bound is not None)


def inner_type(annotation: Any) -> Any:
    """`int | None` → `int`."""
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union:
        return next(kind for kind in typing.get_args(annotation) if kind is not type(None))
    return annotation


def _add_flag(group: argparse._ArgumentGroup, name: str, field: FieldInfo, *, with_default: bool = True) -> None:
    kind = inner_type(field.annotation)
    is_choice = typing.get_origin(kind) is Literal
    default = ""
    if with_default and (field.is_required() or field.default not in (None, False, [])):
        default = "required" if field.is_required() else f"default: {field.default}"
    about = explained(field, default, "" if is_choice else valid_values(field))
    options: dict[str, Any] = {"dest": name, "help": about.replace("%", "%%")}
    if kind is bool:
        options["action"] = argparse.BooleanOptionalAction
    elif is_choice:
        options["metavar"] = "{" + ",".join(map(str, typing.get_args(kind))) + "}"
    elif typing.get_origin(kind) in (list, tuple):
        metavar = {int: "N"}.get(typing.get_args(kind)[0], "VALUE")
        options |= {"nargs": "+", "action": "extend", "metavar": metavar}
    else:
        options["metavar"] = {int: "N", float: "X"}.get(kind, "VALUE")
        if isinstance(field.json_schema_extra, dict) and FLAG_ALONE in field.json_schema_extra:
            options |= {"nargs": "?", "const": field.json_schema_extra[FLAG_ALONE]}
    group.add_argument("--" + name.replace("_", "-"), **options)
