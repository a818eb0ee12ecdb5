"""The errors a user can meet.

Every message says what was given, where, what is accepted, and the fix. Jobs print it as one line and exit 2, so it
never carries a user's text. Mistakes of a programmer are asserts, not these.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError


class SentimentError(Exception):
    """Base of every error that the user can fix."""


class ConfigError(SentimentError):
    """A setting, flag, environment variable or recipe that can't be used."""


class DataError(SentimentError):
    """An input that can't be found, opened or understood as a whole; single bad rows go to `rejected/` instead."""


class BundleError(SentimentError):
    """A model folder that is incomplete, altered since it was written, or not ours."""


class ResourceError(SentimentError):
    """More CPUs, GPUs, memory or disk asked for than there are."""


def brief(error: BaseException) -> str:
    """What another library's error says, in one line of at most 160 characters; its type if it says nothing."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 160 else text[:159] + "…"


def describe(error: ValidationError, sources: Mapping[str, str] | None = None) -> str:
    """Say what is wrong with the first five settings, as flags, and which file, profile or variable each is from."""
    problems = []
    for problem in error.errors(include_url=False)[:5]:
        message = problem["msg"].removeprefix("Value error, ")
        if not problem["loc"]:
            problems.append(message)
        elif problem["type"] == "missing":
            problems.append(f"{flag_of(str(problem['loc'][0]))} is required")
        else:
            name = str(problem["loc"][0])
            source = (sources or {}).get(name)
            problems.append(
                f"{flag_of(name)}: {message}, got {problem['input']!r}" + (f" from {source}" if source else "")
            )
    return "; ".join(problems)


def unknown(what: str, name: str, known: Iterable[str], where: str) -> ConfigError:
    """The error for an unknown name, with the near ones, or else all that are known."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"there are: {', '.join(names)}"
    return ConfigError(f"unknown {what} {name!r} in {where}: {hint}")


def flag_of(name: str) -> str:
    """The flag of a setting: `num_workers` → `--num-workers`."""
    return "--" + name.replace("_", "-")
