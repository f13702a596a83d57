"""A registry as data: name -> "module:attribute", imported when first asked for.

What is built in and what installed packages add (through an entry-point group) are entries of one table, found, imported
and checked in the same way. A plug-in that cannot be used raises an error only where it is asked for.
"""

from __future__ import annotations

import functools
import importlib
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from invdiff.errors import InvdiffError, PluginError, UsageError, unknown


class Registry(Mapping[str, Any]):
    """The names of one kind of thing ("operator", "solver"), sorted; looking a name up imports its module.

    group: the entry-point group of installed plug-ins, read at the first lookup. check: called with the imported object, its
    name and its target; raises UsageError if the object is not of this kind.
    """

    def __init__(
        self,
        kind: str,
        entries: Mapping[str, str],
        group: str | None = None,
        check: Callable[[Any, str, str], None] | None = None,
    ) -> None:
        self.kind = kind
        self._entries: dict[str, str] = {}
        self._packages: dict[str, str] = {}  # name -> the installed package that adds it
        self._clashes: dict[str, UsageError] = {}
        for name, target in entries.items():
            self.add(name, target)
        self._group, self._check, self._lock = group, check, threading.RLock()

    def add(self, name: str, target: str) -> None:
        """Register "module:attribute" under a name. Raises UsageError if the name is taken by another target."""
        if self._entries.get(name, target) != target:
            raise UsageError(f"two {self.kind}s are called {name!r}: {self._entries[name]} and {target}; rename one")
        self._entries[name] = target

    def _load_plugins(self) -> None:
        with self._lock:  # a second thread waits until all plug-ins are registered
            if not self._group:
                return
            from importlib.metadata import entry_points

            group, self._group = self._group, None
            for point in entry_points(group=group):
                package = point.dist.name if point.dist else point.value.partition(":")[0]
                try:
                    self.add(point.name, point.value)
                    self._packages.setdefault(point.name, package)
                except UsageError as error:
                    # The name is ambiguous and cannot be used; every other name still works.
                    self._clashes[point.name] = UsageError(f"{error}, or remove it: pip uninstall {package}")

    def __getitem__(self, name: str) -> Any:
        self._load_plugins()
        if name not in self._entries:
            raise unknown(self.kind, name, self._entries)
        if name in self._clashes:
            raise self._clashes[name]
        target = self._entries[name]
        found = self._import_plugin(name, target) if name in self._packages else import_target(target)
        if self._check:
            self._check(found, name, target)
        return found

    def _import_plugin(self, name: str, target: str) -> Any:
        try:
            return import_target(target)
        except (Exception, SystemExit) as error:
            package = self._packages[name]
            raise PluginError(
                f"{self.kind} {name!r} cannot be imported from {target}: {type(error).__name__}: {error}; repair the "
                f"package {package}, or remove it: pip uninstall {package}"
            ) from error

    def usable(self) -> tuple[dict[str, Any], dict[str, InvdiffError]]:
        """(name -> object, for all that can be imported; name -> the error, for the others)."""
        found: dict[str, Any] = {}
        failed: dict[str, InvdiffError] = {}
        for name in self:
            try:
                found[name] = self[name]
            except InvdiffError as error:
                failed[name] = error
        return found, failed

    def __iter__(self) -> Iterator[str]:
        self._load_plugins()
        return iter(sorted(self._entries))

    def __len__(self) -> int:
        self._load_plugins()
        return len(self._entries)

    def __contains__(self, name: object) -> bool:
        self._load_plugins()
        return name in self._entries


def import_target(target: str) -> Any:
    """The object that "module:attribute" names. An entry point's value may end in extras, "module:attribute [extra]"."""
    module, _, attribute = target.partition("[")[0].strip().partition(":")
    return functools.reduce(getattr, attribute.split("."), importlib.import_module(module.strip()))
