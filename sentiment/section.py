"""What all sections of `ray_config.yaml` are: frozen, strict, and with paths that can begin at a common root."""

from __future__ import annotations

from typing import Any, ClassVar, Self

from pydantic import PrivateAttr
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from sentiment.uris import is_uri, join

# In a field's `json_schema_extra`: what its flag means when no value follows.
FLAG_ALONE = "flag_alone"


class Section(BaseSettings):
    """One section of `ray_config.yaml`.

    Attributes:
        section: Its name.
        paths: Fields that hold paths or URIs of data, models and results.
    """

    model_config = SettingsConfigDict(frozen=True, extra="forbid")
    section: ClassVar[str]
    paths: ClassVar[tuple[str, ...]] = ()
    _root: str | None = PrivateAttr(None)

    @classmethod
    def settings_customise_sources(
        cls, settings_cls: type[BaseSettings], init_settings: PydanticBaseSettingsSource, *_: Any, **__: Any
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """What it is given alone: sentiment.config says what counts beside that, and in which order."""
        return (init_settings,)

    def rooted(self, root: str | None) -> Self:
        """The same with relative paths beginning at a folder or URI; none: they stay."""
        values = {name: getattr(self, name) for name in self.paths}
        settings = self.model_copy(
            update={
                name: [_join(root, path) for path in value] if isinstance(value, list) else _join(root, value)
                for name, value in values.items()
                if value is not None
            }
        )
        settings._root = root
        return settings

    @property
    def is_rooted(self) -> bool:
        """Whether relative paths begin elsewhere than in the working directory."""
        return bool(self._root)

    def at_root(self, path: str) -> str:
        """A path that no field holds, such as a recipe's usual data, seen from the same root."""
        return _join(self._root, path)


def _join(root: str | None, path: str) -> str:
    return path if not root or is_uri(path) or path.startswith(("/", "~")) else join(root, path)
