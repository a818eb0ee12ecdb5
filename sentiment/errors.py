"""The errors a user can meet.

Every message says what was given, where, what is accepted, and the fix. Jobs print it as one line and exit 2, so it
never carries a user's text. Mistakes of a programmer are asserts, not these.
"""


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
