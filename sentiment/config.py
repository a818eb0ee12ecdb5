"""Typed settings: `ray_config.yaml`, a profile in it, the environment, flags; the last wins.

  python -m sentiment.config                                  # what is in force here, and where each value comes from
  python -m sentiment.config --profile gpu-cluster train score

Each job reads one section of `sentiment.settings`, `storage` and `ray`. Sections are frozen and checked once; an
unknown key names the near ones. A profile is a set of values for several sections, for another kind of machine:
`profiles: {NAME: {SECTION: {KEY: VALUE}}}` in the file, chosen by `--profile` or SENTIMENT_PROFILE.
"""

from __future__ import annotations

import argparse
import difflib
import json
import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import PydanticUndefined
from pydantic_settings import EnvSettingsSource, SettingsError

from sentiment.errors import ConfigError
from sentiment.section import Section
from sentiment.settings import SECTIONS, StorageSettings

CONFIG_FILE = "ray_config.yaml"
PROFILES, PROFILE_VARIABLE = "profiles", "SENTIMENT_PROFILE"
# Variables of ours that are no section's, and those that Kubernetes sets for each of its services.
_OURS = "SENTIMENT_"
_NO_SETTINGS = (PROFILE_VARIABLE, "SENTIMENT_API_KEYS", "SENTIMENT_MODEL", "SENTIMENT_GLOVE")
_SERVICE_LINK = re.compile(r"\w+_(SERVICE_(HOST|PORT)(_\w+)?=.*|PORT_\d+_(TCP|UDP|SCTP)(_\w+)?=.*|PORT=\w+://.*)")
_WITH_KEYS = re.compile(r"[A-Za-z][\w+.-]*://[^/?#]*:[^/?#]*@")
S = TypeVar("S", bound=Section)


def load(
    section: type[S],
    flags: Mapping[str, Any],
    file: str | None = None,
    overridable: Iterable[str] = (),
    profile: str | None = None,
) -> S:
    """Put one section together and check it.

    Args:
        section: Which one.
        flags: Values from the command line; they win.
        file: YAML file; `ray_config.yaml` in the working directory, if there is one, when not given.
        overridable: Names that aren't the section's own but may stand in it (a recipe's fields); they are collected,
            unchecked, in its field `overrides`.
        profile: Name of a profile; SENTIMENT_PROFILE, if it is set, when not given.

    Raises:
        ConfigError: A key is unknown, a value doesn't fit or is missing; says where it came from.
    """
    own, extra = set(section.model_fields) - {"overrides"}, set(overridable)
    values: dict[str, Any] = {}
    for _, layer in _layers(section, own | extra, file, profile):
        values |= layer
    values |= flags
    overrides = {name: values.pop(name) for name in list(values) if name not in own}
    try:
        settings = section.model_validate({**values, **({"overrides": overrides} if extra else {})})
    except ValidationError as error:
        raise ConfigError(describe(error)) from error
    if isinstance(settings, StorageSettings):
        _refuse_keys("storage.root", settings.root)
        return settings
    for name in settings.paths:
        _refuse_keys(f"--{name.replace('_', '-')}", getattr(settings, name))
    return settings.rooted(load(StorageSettings, {}, file, profile=profile).root)


def _refuse_keys(name: str, given: str | list[str] | None) -> None:
    """Refuse URIs that carry a store's keys: they would stand in logs, records and on the dashboard."""
    if any(_WITH_KEYS.match(uri) for uri in (given if isinstance(given, list) else [given or ""])):
        raise ConfigError(
            f"{name}: keys don't belong in a URI, logs and dashboards show it; set "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or what else the store reads, or give the machine a role"
        )


def in_force(section: type[Section], file: str | None = None, profile: str | None = None) -> dict[str, tuple[Any, str]]:
    """What a section holds without flags. Fields of a recipe among them aren't checked: recipes are chosen later.

    Args:
        section: Which one.
        file: As for `load`, like the other.
        profile: Name of a profile.

    Returns:
        Key → value and where it comes from; None and "to be given" where there is none.

    Raises:
        ConfigError: A key is unknown.
    """
    found: dict[str, tuple[Any, str]] = {}
    for name, field in section.model_fields.items():
        if name != "overrides":
            is_required = field.default is PydanticUndefined
            found[name] = (None, "to be given") if is_required else (field.default, "default")
    known = None if "overrides" in section.model_fields else set(found)
    for where, layer in _layers(section, known, file, profile):
        found |= {name: (value, where) for name, value in layer.items()}
    return found


def describe(error: ValidationError) -> str:
    """Say what is wrong with the first few settings, as flags."""
    problems = []
    for problem in error.errors(include_url=False)[:5]:
        if not problem["loc"]:
            problems.append(problem["msg"].removeprefix("Value error, "))
            continue
        flag = "--" + str(problem["loc"][0]).replace("_", "-")
        if problem["type"] == "missing":
            problems.append(f"{flag} is required")
        else:
            problems.append(f"{flag}: {problem['msg'].removeprefix('Value error, ')}, got {problem['input']!r}")
    return "; ".join(problems)


def unknown(what: str, name: str, known: Iterable[str], where: str) -> ConfigError:
    """The error for a name that nobody knows, with the near ones."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"there are: {', '.join(names)}"
    return ConfigError(f"unknown {what} {name!r} in {where}: {hint}")


def _layers(
    section: type[Section], known: set[str] | None, file: str | None, profile: str | None
) -> list[tuple[str, dict[str, Any]]]:
    """What each source says of a section, the weakest first, with its name."""
    _check_environment()
    path, content = _read(file)
    profiles = content.pop(PROFILES, None) or {}
    for name, sections in profiles.items():
        _check_keys(sections or {}, f"profile {name} of {path}")
    _check_keys(content, str(path))
    layers = [(str(path), _section(section.section, known, content, str(path)))]
    if chosen := profile or os.environ.get(PROFILE_VARIABLE):
        if chosen not in profiles:
            raise unknown("profile", chosen, profiles, str(path))
        where = f"profile {chosen}"
        layers.append((where, _section(section.section, known, profiles[chosen] or {}, f"{where} of {path}")))
    environment = _from_environment(section, known)
    prefix = _prefix(section)
    layers += [(f"{prefix}{name.upper()}", {name: value}) for name, value in environment.items()]
    return layers


def _read(file: str | None) -> tuple[Path, dict[str, Any]]:
    path = Path(file or CONFIG_FILE)
    if not path.exists():
        if file is not None:
            raise ConfigError(f"no configuration file at {path}")
        return path, {}
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} can't be read as YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path} must hold sections ({', '.join(SECTIONS)}), not a {type(content).__name__}")
    if not isinstance(content.get(PROFILES) or {}, dict):
        raise ConfigError(f"{PROFILES} of {path} must hold `name: sections`")
    return path, content


def _check_keys(content: Any, where: str) -> None:
    """Refuse keys that no section has, also in sections that this command doesn't read.

    Those that take a recipe's settings too are checked when it is known which recipe.
    """
    for name, section in SECTIONS.items():
        fields = set(section.model_fields)
        _section(name, None if "overrides" in fields else fields, content, where)


def _check_environment() -> None:
    """Refuse a variable that was meant for a section and names none: SENTIMENT_TRIAN_SEED."""
    prefixes = tuple(map(_prefix, SECTIONS.values()))
    strangers = [
        name
        for name in os.environ
        if name.startswith(_OURS) and not name.startswith((*prefixes, *_NO_SETTINGS)) and not _is_service_link(name)
    ]
    if strangers:
        settings = [_prefix(one) + name.upper() for one in SECTIONS.values() for name in one.model_fields]
        ends = [name.removeprefix(_OURS) for name in settings]
        for variable in strangers:
            # Another program may have variables that begin so.
            if difflib.get_close_matches(variable.removeprefix(_OURS), ends, cutoff=0.8):
                raise unknown("setting", variable, settings, "the environment")


def _section(section: str, known: set[str] | None, content: Any, where: str) -> dict[str, Any]:
    if not isinstance(content, dict):
        raise ConfigError(f"{where} must hold sections ({', '.join(SECTIONS)}), not a {type(content).__name__}")
    for name in content:
        if name not in SECTIONS:
            raise unknown("section", str(name), SECTIONS, where)
    values = content.get(section) or {}
    if not isinstance(values, dict):
        raise ConfigError(f"section {section} of {where} must hold `key: value` lines")
    for name in values:
        if known is not None and name not in known:
            raise unknown("key", str(name), known, f"section {section} of {where}")
    return values


def _from_environment(section: type[Section], known: set[str] | None) -> dict[str, Any]:
    prefix = _prefix(section)
    extra: dict[str, Any] = {}
    others = [other for other in map(_prefix, SECTIONS.values()) if len(other) > len(prefix)]
    for variable, value in os.environ.items():
        # SENTIMENT_TRAIN_BERT_SEED is no setting BERT_SEED of section train.
        is_own = variable.startswith(prefix) and not variable.startswith(tuple(others))
        if is_own and not _is_service_link(variable):
            name = variable.removeprefix(prefix).lower()
            if known is not None and name not in known:
                raise unknown(
                    "setting", variable, (prefix + known_name.upper() for known_name in known), "the environment"
                )
            if name not in section.model_fields:
                extra[name] = value
    try:
        found = EnvSettingsSource(section)()
        return extra | {name: value for name, value in found.items() if not _is_service_link(prefix + name.upper())}
    except SettingsError as error:
        raise ConfigError(f'{error}: a list is written as JSON, {prefix}…=\'["a.csv", "b.csv"]\'') from error


def _is_service_link(variable: str) -> bool:
    """Whether it is one of those that Kubernetes gives to all pods for a Service called `sentiment-…`."""
    return _SERVICE_LINK.fullmatch(f"{variable}={os.environ.get(variable, '')}") is not None


def _prefix(section: type[Section]) -> str:
    return str(section.model_config["env_prefix"])


def fields_of(model: type[BaseModel], leave_out: Iterable[str] = ()) -> list[str]:
    """Names of a model's fields, in their order."""
    return [name for name in model.model_fields if name not in set(leave_out)]


def main(argv: Sequence[str] | None = None) -> int:
    """Print what is in force; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m sentiment.config", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("section", nargs="*", metavar="SECTION", help=f"{', '.join(SECTIONS)}; all by default")
    parser.add_argument("--config", metavar="FILE", help=f"configuration file (default: {CONFIG_FILE} if there)")
    parser.add_argument("--profile", metavar="NAME", help=f"profile in it (also {PROFILE_VARIABLE})")
    args = parser.parse_args(argv)
    try:
        for name in args.section or SECTIONS:
            if name not in SECTIONS:
                raise unknown("section", name, SECTIONS, "the command line")
            _show(name, in_force(SECTIONS[name], args.config, args.profile))
        sys.stdout.flush()
    except ConfigError as error:
        print(f"config: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # `| head` has seen enough; what Python itself still writes goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _show(section: str, settings: Mapping[str, tuple[Any, str]]) -> None:
    print(f"{section}:")
    for name, (value, where) in settings.items():
        said = "" if where == "to be given" else value if isinstance(value, str) else json.dumps(value)
        line = f"  {name}: {said}"
        print(f"{line:<44}  # {where}")


if __name__ == "__main__":
    sys.exit(main())
