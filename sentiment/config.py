"""Typed settings: `ray_config.yaml`, then `SENTIMENT_<SECTION>_<FIELD>` in the environment, then flags; the last wins.

Each job reads one section of `sentiment.settings` and `ray`. Sections are frozen and checked once; an unknown key names
the near ones.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_settings import EnvSettingsSource, SettingsError

from sentiment.errors import ConfigError
from sentiment.settings import SECTIONS, Section

CONFIG_FILE = "ray_config.yaml"
S = TypeVar("S", bound=Section)


def load(section: type[S], flags: Mapping[str, Any], file: str | None = None, overridable: Iterable[str] = ()) -> S:
    """Put one section together and check it.

    Args:
        section: Which one.
        flags: Values from the command line; they win.
        file: YAML file; `ray_config.yaml` in the working directory, if there is one, when not given.
        overridable: Names that aren't the section's own but may stand in it (a recipe's fields); they are collected,
            unchecked, in its field `overrides`.

    Raises:
        ConfigError: A key is unknown, a value doesn't fit or is missing; says where it came from.
    """
    own, extra = set(section.model_fields) - {"overrides"}, set(overridable)
    values = {
        **_from_file(section.section, own | extra, file),
        **_from_environment(section, own | extra),
        **flags,
    }
    overrides = {name: values.pop(name) for name in list(values) if name not in own}
    try:
        # model_validate reads no sources of its own: the order above is the whole truth.
        return section.model_validate({**values, **({"overrides": overrides} if extra else {})})
    except ValidationError as error:
        raise ConfigError(describe(error)) from error


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
            problems.append(f"{flag}: {problem['msg']}, got {problem['input']!r}")
    return "; ".join(problems)


def unknown(what: str, name: str, known: Iterable[str], where: str) -> ConfigError:
    """The error for a name that nobody knows, with the near ones."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"there are: {', '.join(names)}"
    return ConfigError(f"unknown {what} {name!r} in {where}: {hint}")


def _from_file(section: str, known: set[str], file: str | None) -> dict[str, Any]:
    path = Path(file or CONFIG_FILE)
    if not path.exists():
        if file is not None:
            raise ConfigError(f"no configuration file at {path}")
        return {}
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} can't be read as YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path} must hold sections ({', '.join(SECTIONS)}), not a {type(content).__name__}")
    for name in content:
        if name not in SECTIONS:
            raise unknown("section", str(name), SECTIONS, str(path))
    values = content.get(section) or {}
    if not isinstance(values, dict):
        raise ConfigError(f"section {section} of {path} must hold `key: value` lines")
    for name in values:
        if name not in known:
            raise unknown("key", str(name), known, f"section {section} of {path}")
    return values


def _from_environment(section: type[Section], known: set[str]) -> dict[str, Any]:
    prefix = _prefix(section)
    extra: dict[str, Any] = {}
    others = [other for other in map(_prefix, SECTIONS.values()) if len(other) > len(prefix)]
    for variable, value in os.environ.items():
        # SENTIMENT_TRAIN_BERT_SEED is no setting BERT_SEED of section train.
        if variable.startswith(prefix) and not variable.startswith(tuple(others)):
            name = variable.removeprefix(prefix).lower()
            if name not in known:
                raise unknown(
                    "setting", variable, (prefix + known_name.upper() for known_name in known), "the environment"
                )
            if name not in section.model_fields:
                extra[name] = value
    try:
        return {**extra, **EnvSettingsSource(section)()}
    except SettingsError as error:
        raise ConfigError(f'{error}: a list is written as JSON, {prefix}…=\'["a.csv", "b.csv"]\'') from error


def _prefix(section: type[Section]) -> str:
    return str(section.model_config["env_prefix"])


def fields_of(model: type[BaseModel], leave_out: Iterable[str] = ()) -> list[str]:
    """Names of a model's fields, in their order."""
    return [name for name in model.model_fields if name not in set(leave_out)]
