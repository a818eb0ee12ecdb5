"""What jobs and the server do alike: flags from its settings, one JSON object as the last line of stdout, exit codes.

People's words go to stderr. A user's mistake is one line there and exit code 2; anything else is a traceback and 1.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import types
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, NoReturn, TypeVar

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from sentiment.config import PROFILE_VARIABLE, fields_of, load, unknown
from sentiment.errors import ConfigError, SentimentError
from sentiment.recipe import Recipe
from sentiment.section import FLAG_ALONE, Section
from sentiment.settings import RaySettings

S = TypeVar("S", bound=Section)
# Of jobs that run other jobs; every command has these flags.
_ABOUT_CONFIG = ("config", "profile")


@dataclass(frozen=True)
class Job(Generic[S]):
    """One runnable command.

    Attributes:
        name: Its own, before messages; as in `jobs/NAME.py`.
        about: What it does and an example; the text of `--help`.
        settings: Its section of `ray_config.yaml`.
        run: Does the work; its result is printed as JSON.
        overrides: Kinds of recipes; their settings are flags too.
        program: How it is called; `jobs/NAME.py` if not given.
    """

    name: str
    about: str
    settings: type[S]
    run: Callable[[S, RaySettings], dict[str, Any]]
    overrides: Sequence[type[Recipe]] = ()
    program: str | None = None

    def main(self, argv: Sequence[str] | None = None) -> int:
        """Parse, run, report; returns the exit code."""
        try:
            settings, ray_settings = self.parse(sys.argv[1:] if argv is None else argv)
            # Ray prints warnings of its raylet on stdout, which is for our JSON alone.
            with contextlib.redirect_stdout(sys.stderr):
                result = self.run(settings, ray_settings)
        except SentimentError as error:
            print(f"{self.name}: {error}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            print(f"{self.name}: interrupted", file=sys.stderr)
            return 130
        print(json.dumps(result), flush=True)
        return 0

    @property
    def _program(self) -> str:
        return self.program or f"jobs/{self.name}.py"

    def parse(self, argv: Sequence[str]) -> tuple[S, RaySettings]:
        """Turn a command line into settings.

        Raises:
            ConfigError: A flag is unknown, missing or doesn't fit.
        """
        parser = _Parser(
            prog=self._program,
            description=self.about,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            argument_default=argparse.SUPPRESS,
            allow_abbrev=False,
        )
        own = parser.add_argument_group(f"settings (section {self.settings.section} of ray_config.yaml)")
        names = fields_of(self.settings, ["overrides", *_ABOUT_CONFIG])
        _add_flags(own, self.settings, names)
        override_names: list[str] = []
        if self.overrides:
            group = parser.add_argument_group("settings of the recipe (without the flag: the recipe's own)")
        for kind in self.overrides:
            fresh = fields_of(kind, [*kind.WORDS, *names, *override_names])
            _add_flags(group, kind, fresh, with_default=False)
            override_names += fresh
        _add_flags(parser.add_argument_group("Ray (section ray)"), RaySettings, fields_of(RaySettings))
        parser.add_argument("--config", metavar="FILE", help="configuration file (default: ray_config.yaml if there)")
        parser.add_argument("--profile", metavar="NAME", help=f"profile in that file (also {PROFILE_VARIABLE})")
        given, rest = parser.parse_known_args(list(argv))
        flags = vars(given)
        if rest:
            flag = next((word for word in rest if word.startswith("-")), None)
            if flag is None:
                raise ConfigError(f"unexpected argument {rest[0]!r}; --help lists the flags")
            raise unknown("flag", flag.split("=")[0], parser.flags(), self._program)
        file, profile = flags.pop("config", None), flags.pop("profile", None)
        # A job that runs other jobs hands them on.
        handed_on = {"config": file, "profile": profile}
        flags |= {name: value for name, value in handed_on.items() if value and name in self.settings.model_fields}
        ray_flags = {name: flags.pop(name) for name in fields_of(RaySettings) if name in flags}
        settings = load(self.settings, flags, file, override_names, profile)
        return settings, load(RaySettings, ray_flags, file, profile=profile)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; --help lists the flags")

    def flags(self) -> list[str]:
        return [option for action in self._actions for option in action.option_strings if option.startswith("--")]


def _add_flags(
    group: argparse._ArgumentGroup, model: type[BaseModel], names: Sequence[str], *, with_default: bool = True
) -> None:
    """One flag for each field; values stay strings, the model checks and converts them."""
    for name in names:
        field = model.model_fields[name]
        flag = "--" + name.replace("_", "-")
        help_text = (field.description or "").replace("%", "%%") + (_note(field) if with_default else "")
        kind = _inner_type(field.annotation)
        if kind is bool:
            group.add_argument(flag, dest=name, action=argparse.BooleanOptionalAction, help=help_text)
        elif typing.get_origin(kind) in (list, tuple):
            metavar = _metavar(typing.get_args(kind)[0])
            group.add_argument(flag, dest=name, nargs="+", action="extend", metavar=metavar, help=help_text)
        else:
            alone = field.json_schema_extra.get(FLAG_ALONE) if isinstance(field.json_schema_extra, dict) else None
            optional: dict[str, Any] = {"nargs": "?", "const": alone} if alone else {}
            group.add_argument(flag, dest=name, metavar=_metavar(kind), help=help_text, **optional)


def _inner_type(annotation: Any) -> Any:
    """`int | None` → `int`."""
    if isinstance(annotation, types.UnionType):
        return next(kind for kind in typing.get_args(annotation) if kind is not type(None))
    return annotation


def _metavar(kind: Any) -> str:
    if typing.get_origin(kind) is Literal:
        return "{" + ",".join(str(value) for value in typing.get_args(kind)) + "}"
    return {int: "N", float: "X"}.get(kind, "VALUE")


def _note(field: FieldInfo) -> str:
    """What stands behind a flag's description: required, or the default."""
    default = field.default
    if default is PydanticUndefined:
        return " (required)"
    return "" if default is None or default is False or default == [] else f" (default: {default})"
