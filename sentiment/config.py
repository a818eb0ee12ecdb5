"""Where settings come from: `ray_config.yaml`, a profile in it, the environment, flags; the last one wins.

A command reads its section of `sentiment.settings`, `storage` and `ray`, from one parse of the file. A profile holds
values of several sections for another kind of machine: `profiles: {NAME: {SECTION: {KEY: VALUE}}}` in the file, chosen
by `--profile` or SENTIMENT_PROFILE. An unknown name, wherever it stands, is refused with the near ones.

The environment is read by pydantic-settings. Its YAML source isn't used, as it passes over a missing file and reads the
file again for each section; nor is its command line, which takes no `--input a b` and splits paths at their commas.
"""

from __future__ import annotations

import difflib
import logging
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError
from pydantic_settings import EnvSettingsSource, SettingsError

from sentiment.errors import ConfigError, describe, flag_of, unknown
from sentiment.settings import SECTIONS, DemoSettings, Section, StorageSettings

CONFIG_FILE = "ray_config.yaml"
PROFILE_VARIABLE = "SENTIMENT_PROFILE"
# Our variables that are no section's.
_OTHER_VARIABLES = (PROFILE_VARIABLE, "SENTIMENT_API_KEYS", "SENTIMENT_MODEL", "SENTIMENT_GLOVE", "SENTIMENT_LOG")
# Variables that Kubernetes sets in all pods for a Service called `sentiment-…`.
_SERVICE_LINK = re.compile(r"\w+_(SERVICE_(HOST|PORT)(_\w+)?=.*|PORT_\d+_(TCP|UDP|SCTP)(_\w+)?=.*|PORT=\w+://.*)")
_URI_WITH_SECRET = re.compile(r"[A-Za-z][\w+.-]*://[^/?#]*:[^/?#]*@")
_log = logging.getLogger(__name__)
S = TypeVar("S", bound=Section)


class Configuration:
    """A file, one of its profiles and the environment, read and checked once for all sections.

    Args:
        file: YAML file; None: `ray_config.yaml` in the working directory, if it exists.
        profile: Name of a profile; None: SENTIMENT_PROFILE, if it is set.

    Raises:
        ConfigError: The file can't be read, or a section, key, profile or variable is unknown.
    """

    def __init__(self, file: str | None = None, profile: str | None = None) -> None:
        _check_environment()
        self._warned: set[tuple[type[Section], str]] = set()
        self._flags = (*(("--config", file) if file else ()), *(("--profile", profile) if profile else ()))
        path = Path(file or CONFIG_FILE)
        content = _read(path, must_exist=file is not None)
        profiles = content.pop("profiles", None) or {}
        if not isinstance(profiles, dict):
            raise ConfigError(f"profiles of {path} must hold `name: sections`")
        # All profiles and sections: another command would find mistakes in its own, maybe at night.
        for name, sections in profiles.items():
            _check_sections(sections or {}, f"profile {name} of {path}")
        _check_sections(content, str(path))
        self._layers = [(str(path), content)]
        if chosen := profile or os.environ.get(PROFILE_VARIABLE):
            if chosen not in profiles:
                raise unknown("profile", chosen, profiles, str(path))
            self._layers.append((f"profile {chosen}", profiles[chosen] or {}))

    def layers(self, section: type[Section]) -> list[tuple[str, dict[str, Any]]]:
        """What each source says of a section, with today's names of renamed keys; later sources win.

        Raises:
            ConfigError: A variable is unknown.
        """
        found = [(source, content.get(section.section) or {}) for source, content in self._layers]
        found += [(_variable(section, name), {name: value}) for name, value in _environment(section).items()]
        return [(source, self._with_new_names(section, values)) for source, values in found]

    def _with_new_names(self, section: type[Section], values: Mapping[str, Any]) -> dict[str, Any]:
        """Accept the old names of renamed keys, with one warning each."""
        values = dict(values)
        for old, name in section.renamed:
            if old not in values:
                continue
            values = {name: values.pop(old), **values}
            if (section, old) not in self._warned:
                self._warned.add((section, old))
                _log.warning("%s of section %s is called %s now; the old name still works", old, section.section, name)
        return values

    def load(self, section: type[S], flags: Mapping[str, Any]) -> S:
        """Put one section together and check it; flags win over all layers.

        A recipe's values are collected, unchecked, in the section's field `overrides`.

        Raises:
            ConfigError: A variable is unknown, a value is invalid or missing; says where it came from.
        """
        layers = [*self.layers(section), ("", self._with_new_names(section, flags))]
        values = {name: value for _, layer in layers for name, value in layer.items()}
        sources = {name: source for source, layer in layers for name in layer}
        overrides = {name: values.pop(name) for name in section.recipe_fields() if name in values}
        try:
            settings = section.model_validate({**values, **({"overrides": overrides} if overrides else {})})
        except ValidationError as error:
            raise ConfigError(describe(error, sources)) from error
        if isinstance(settings, StorageSettings):
            _refuse_secrets("storage.root", settings.root)
            return settings
        for name in settings.paths:
            _refuse_secrets(flag_of(name), getattr(settings, name))
        settings = settings.rooted(self.load(StorageSettings, {}).root)
        if isinstance(settings, DemoSettings):
            settings._config_flags = self._flags
        return settings


def load(section: type[S], flags: Mapping[str, Any], file: str | None = None, profile: str | None = None) -> S:
    """Read the configuration for one section; arguments and errors are those of `Configuration` and its `load`."""
    return Configuration(file, profile).load(section, flags)


def _variable(section: type[Section], name: str) -> str:
    return f"{section.model_config['env_prefix']}{name.upper()}"


def _refuse_secrets(name: str, given: str | list[str] | None) -> None:
    """Refuse URIs that carry a store's keys: they would stand in logs, manifests and on the dashboard."""
    if any(_URI_WITH_SECRET.match(uri) for uri in (given if isinstance(given, list) else [given or ""])):
        raise ConfigError(
            f"{name}: keys don't belong in a URI, logs and dashboards show it; set "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or what else the store reads, or give the machine a role"
        )


def _read(path: Path, *, must_exist: bool) -> dict[str, Any]:
    if not path.exists():
        if must_exist:
            raise ConfigError(f"no configuration file at {path}")
        return {}
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} can't be read as YAML: {' '.join(str(error).split())}") from error
    return _mapping_of_sections(content, str(path))


def _mapping_of_sections(content: Any, where: str) -> dict[str, Any]:
    if not isinstance(content, dict):
        raise ConfigError(f"{where} must hold sections ({', '.join(SECTIONS)}), not a {type(content).__name__}")
    return content


def _check_sections(content: Any, where: str) -> None:
    for name, values in _mapping_of_sections(content, where).items():
        if name not in SECTIONS:
            raise unknown("section", str(name), SECTIONS, where)
        if not isinstance(values, dict | None):
            raise ConfigError(f"section {name} of {where} must hold `key: value` lines")
        section = SECTIONS[name]
        known = {*section.keys(), *section.recipe_fields()}
        for key in values or ():
            if key not in {*known, *dict(section.renamed)}:
                raise unknown("key", str(key), known, f"section {name} of {where}")


def _is_service_link(variable: str) -> bool:
    return _SERVICE_LINK.fullmatch(f"{variable}={os.environ.get(variable, '')}") is not None


def _check_environment() -> None:
    """Refuse a variable that was meant for a section and names none: SENTIMENT_TRIAN_SEED."""
    prefixes = tuple(_variable(section, "") for section in SECTIONS.values())
    known = [_variable(section, name) for section in SECTIONS.values() for name in section.model_fields]
    ends = [name.removeprefix("SENTIMENT_") for name in known]
    for name in os.environ:
        if (
            not name.startswith("SENTIMENT_")
            or name.startswith((*prefixes, *_OTHER_VARIABLES))
            or _is_service_link(name)
        ):
            continue
        # Another program may have variables that begin so.
        if difflib.get_close_matches(name.removeprefix("SENTIMENT_"), ends, cutoff=0.8):
            raise unknown("setting", name, known, "the environment")


def _environment(section: type[Section]) -> dict[str, Any]:
    """Values of a section's variables; those that aren't its fields stay text."""
    known = {*section.keys(), *section.recipe_fields()}
    prefix = _variable(section, "")
    # SENTIMENT_TRAIN_BERT_SEED is no setting BERT_SEED of section train.
    others = tuple(other for other in (_variable(one, "") for one in SECTIONS.values()) if len(other) > len(prefix))
    names = {
        variable.removeprefix(prefix).lower(): variable
        for variable in os.environ
        if variable.startswith(prefix) and not variable.startswith(others) and not _is_service_link(variable)
    }
    for name, variable in names.items():
        if name not in {*known, *dict(section.renamed)}:
            raise unknown("setting", variable, (_variable(section, one) for one in known), "the environment")
    try:
        parsed = EnvSettingsSource(section)()
    except SettingsError as error:
        raise ConfigError(f'{error}: a list is written as JSON, {prefix}…=\'["a.csv", "b.csv"]\'') from error
    unparsed = {name: os.environ[variable] for name, variable in names.items() if name not in section.model_fields}
    return unparsed | {name: value for name, value in parsed.items() if not _is_service_link(_variable(section, name))}


if __name__ == "__main__":
    from sentiment.cli import show_config

    sys.exit(show_config())
