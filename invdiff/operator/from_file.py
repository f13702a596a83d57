"""Operators of other people: a class in a file that a spec names, and what any operator class must be.

    my_op.py:MyOp(gain=2,mode=fast)      my_op.py:MyOp      my_op.py      (the last if the file defines one operator)

Naming a file runs its code, with all that it may do: use files that you trust. It is run as a module of its own, outside
sys.path, and once for each content: a file edited while Python runs gives its new class at the next lookup.
"""

from __future__ import annotations

import copyreg
import dataclasses
import hashlib
import os
import re
import sys
import threading
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from invdiff.errors import PluginError, UsageError, unknown
from invdiff.specs.parameters import join_spec, parse_values, split_links

if TYPE_CHECKING:
    from invdiff.operator.contract import Operator

_RUNNING = threading.RLock()
FORM = "PATH.py:CLASS(key=value,key=value)"
# Where a path can end. "NAME:key=..." is the spec of a registered operator, whatever its values hold.
_END = re.compile(r"\.py(?=\s*$|[:(])")
_REGISTERED = re.compile(r"\s*\w+:\w+\s*=")


def is_file_spec(text: str) -> bool:
    """Whether a spec names a class in a file rather than a registered operator."""
    return bool(_END.search(text)) and not _REGISTERED.match(text)


def split_file_spec(text: str) -> tuple[Path, str, str]:
    """(absolute path, class name or "", parameters as text) of a file spec. Raises UsageError if it cannot be read."""
    text = text.strip()
    ends = [found.end() for found in _END.finditer(text)]
    # ".py:" and ".py(" may be a part of the path: the file that exists decides.
    end = next((end for end in ends if Path(text[:end]).expanduser().is_file()), ends[0])
    path = Path(os.path.abspath(Path(text[:end]).expanduser()))
    rest = re.fullmatch(r"(?::([^\W\d]\w*))?(?:\((.*)\))?", text[end:], re.DOTALL)
    if rest is None:
        raise UsageError(f"cannot read {text[end:]!r} in {text!r}; write {FORM}")
    if "|" in str(path):
        raise UsageError(f"{path}: a path with | cannot be a part of a spec, where | joins operators; rename it")
    return path, rest[1] or "", (rest[2] or "").strip()


def absolute(spec: str) -> str:
    """The spec with its files' paths made absolute, for a record that is read in any folder."""
    parts = split_links(spec)
    for index, part in enumerate(parts):
        if is_file_spec(part):
            path, name, values = split_file_spec(part)
            parts[index] = join_spec(f"{path}:{name}" if name else str(path), [values] if values else [])
    return " | ".join(parts)


def load_class(text: str) -> tuple[type[Operator], dict[str, str]]:
    """The operator class of a file spec, and its parameters as text. Runs the file's code.

    Raises UsageError for a missing file or class, or a class that is no operator; PluginError if the code raises.
    """
    path, wanted, values = split_file_spec(text)
    module = _run(path)
    found = _operators(module)
    public = [name for name in found if not name.startswith("_")]
    if not wanted:
        if len(public) != 1:
            problem = (
                " or ".join(f"{path}:{name}" for name in public) or "a subclass of invdiff.operator.Operator in it"
            )
            raise UsageError(f"{path} defines {len(public)} operators, not one; write {problem}")
        wanted = public[0]
    if wanted not in found:
        if wanted not in vars(module):
            raise unknown("operator class", wanted, found, f"They are what {path} defines.")
        value = vars(module)[wanted]
        if isinstance(value, type) and value.__module__ != module.__name__:
            raise UsageError(
                f"{path}: {wanted} is imported from {value.__module__}; name a class that the file defines"
            )
        raise UsageError(f"{path}: {wanted} {_no_operator(value)}")
    check_declaration(found[wanted], f"{path}:{wanted}")
    return found[wanted], parse_values(values, text, FORM)


def _operators(module: ModuleType) -> dict[str, type[Operator]]:
    from invdiff.operator.contract import Operator

    own = [v for v in vars(module).values() if isinstance(v, type) and v.__module__ == module.__name__]
    return {cls.__name__: cls for cls in own if issubclass(cls, Operator)}


def _run(path: Path) -> ModuleType:
    """The module of a file; the same one as long as its content stays the same."""
    try:
        source = path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path}: {(error.strerror or 'cannot be read').lower()}; check the operator's path") from None
    digest = hashlib.sha256(source).hexdigest()
    name = f"invdiff_file_{hashlib.sha256(os.fsencode(path) + source).hexdigest()[:16]}"
    with _RUNNING:  # a second thread must not get a module of which half has run
        return sys.modules[name] if name in sys.modules else _run_source(path, source, name, digest)


def _run_source(path: Path, source: bytes, name: str, digest: str) -> ModuleType:
    module = ModuleType(name)
    module.__file__ = str(path)
    sys.modules[name] = module  # dataclasses and pickle look a class's module up there
    try:
        # Compiled from the bytes that were hashed, so that the record is of the code that ran.
        exec(compile(source, str(path), "exec", dont_inherit=True), vars(module))
    except BaseException as error:
        del sys.modules[name]
        if not isinstance(error, (Exception, SystemExit)):
            raise
        raise PluginError(f"{path} cannot be run: {type(error).__name__}: {error}; repair the file") from error
    for cls in _operators(module).values():
        cls.name = f"{path}:{cls.__name__}"
        cls.loaded_from = {"path": str(path), "sha256": digest}
        copyreg.pickle(cls, _reduce)  # type: ignore[type-var]
    return module


def _reduce(operator: Operator) -> tuple[Any, ...]:
    """Another process has no such module: it runs the file again."""
    return _restore, (type(operator).name, operator.__getstate__())


def _restore(spec: str, state: dict[str, Any]) -> Operator:
    cls, _ = load_class(spec)
    operator: Operator = object.__new__(cls)
    operator.__setstate__(state)
    return operator


def check_class(found: Any, name: str, target: str) -> None:
    """Raise UsageError unless "module:attribute" is an operator class that calls itself by its registered name."""
    from invdiff.operator.contract import Operator

    if not (isinstance(found, type) and issubclass(found, Operator)):
        raise UsageError(f"operator {name!r}: {target} {_no_operator(found)}")
    fix = f'write name: ClassVar[str] = "{name}" in the class'
    if found.name == Operator.name:
        raise UsageError(f"operator {name!r}: {target} has no name; {fix}")
    if found.name != name:
        raise UsageError(f"operator {name!r}: {target} calls itself {found.name!r}; {fix}, or register it as that")
    check_declaration(found, f"operator {name!r}: {target}")


def check_declaration(cls: type[Operator], what: str) -> None:
    """Raise UsageError for an operator class that cannot work: without A, or with parameters that nobody reads."""
    from invdiff.operator.contract import Operator

    if cls.A is Operator.A:
        raise UsageError(f"{what} has no method A; write def A(self, x): ..., which gives the measurement of images x")
    if any(isinstance(value, dataclasses.Field) for base in cls.__mro__ for value in vars(base).values()):
        raise UsageError(
            f"{what} declares parameters but is no dataclass; put @dataclass(frozen=True, eq=False) above it"
        )


def _no_operator(value: Any) -> str:
    kind = f"class {value.__name__}" if isinstance(value, type) else type(value).__name__
    return f"is no operator but a {kind}; it must be a subclass of invdiff.operator.Operator"
