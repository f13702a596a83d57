"""A registry as data: name -> "module:attribute", imported when first asked for."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from typing import Any

from invdiff.errors import UsageError, unknown


class Registry(Mapping[str, Any]):
    """Names of one kind of thing ("operator", "solver"). Iterates sorted; looking up imports the module."""

    def __init__(self, kind: str, entries: Mapping[str, str], group: str | None = None) -> None:
        self.kind = kind
        self._entries: dict[str, str] = {}
        for name, target in entries.items():
            self.add(name, target)
        self._group = group  # entry-point group of installed plug-ins, read at the first lookup

    def add(self, name: str, target: str) -> None:
        """Register "module:attribute" under a name. Raises UsageError if the name is taken by another target."""
        if self._entries.get(name, target) != target:
            raise UsageError(f"two {self.kind}s are called {name!r}: {self._entries[name]} and {target}; rename one")
        self._entries[name] = target

    def _load_plugins(self) -> None:
        if self._group:
            from importlib.metadata import entry_points

            group, self._group = self._group, None
            for point in entry_points(group=group):
                self.add(point.name, point.value)

    def __getitem__(self, name: str) -> Any:
        self._load_plugins()
        if name not in self._entries:
            raise unknown(self.kind, name, self._entries)
        module, _, attribute = self._entries[name].partition(":")
        return getattr(importlib.import_module(module), attribute)

    def __iter__(self) -> Iterator[str]:
        self._load_plugins()
        return iter(sorted(self._entries))

    def __len__(self) -> int:
        self._load_plugins()
        return len(self._entries)

    def __contains__(self, name: object) -> bool:
        self._load_plugins()
        return name in self._entries
