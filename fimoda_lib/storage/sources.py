"""Files of one's own that a piece of code depends on by its imports, and a digest of them.

Libraries, and this one, are not followed. Nothing is executed but the packages that a module lies in.
"""

from __future__ import annotations

import ast
import contextlib
import dis
import hashlib
import importlib.util
import sysconfig
import types
from collections.abc import Iterator
from pathlib import Path

LIBRARIES = tuple({sysconfig.get_path(kind) for kind in ("stdlib", "platstdlib", "purelib", "platlib")})


def source(module: types.ModuleType) -> str:
    """The SHA-256 of the code of a module of one's own and of what it imports; nothing for a library's."""
    file = getattr(module, "__file__", None)
    if file is None or file.startswith(LIBRARIES):
        return ""
    known: dict[str, str] = {}
    _follow(module.__name__, Path(file), known)
    return _digest(known)


def imported_inside(code: types.CodeType, package: str | None) -> str:
    """The same of all that a function's body imports, with functions inside; nothing if that is of libraries only.

    Args:
        package: in which the function lies, for relative imports.
    """
    known: dict[str, str] = {}
    waiting = [code]
    for one in waiting:
        waiting += [constant for constant in one.co_consts if isinstance(constant, types.CodeType)]
        steps = list(dis.get_instructions(one))
        for level, names, step in zip(steps, steps[1:], steps[2:], strict=False):
            if step.opname == "IMPORT_NAME":
                for name, file in _found(step.argval, names.argval or (), level.argval, package):
                    _follow(name, file, known)
    return _digest(known)


def _follow(name: str, file: Path, known: dict[str, str]) -> None:
    """Adds a module, what it imports, and, of a package, all in its folder: attributes lead anywhere in it."""
    if name in known:
        return
    code = file.read_bytes()
    known[name] = hashlib.sha256(code).hexdigest()
    package = name if file.name == "__init__.py" else name.rpartition(".")[0]
    if package == name:
        for inner in sorted(file.parent.glob("*.py")):
            _follow(name if inner == file else f"{name}.{inner.stem}", inner, known)
        for inner in sorted(file.parent.glob("*/__init__.py")):
            _follow(f"{name}.{inner.parent.name}", inner, known)
    with contextlib.suppress(SyntaxError):  # a module compiled, or in another language
        for node in ast.walk(ast.parse(code)):
            wanted = []
            if isinstance(node, ast.Import):
                wanted = [(alias.name, (), 0) for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                wanted = [(node.module or "", tuple(alias.name for alias in node.names), node.level)]
            for one in wanted:
                for found, where in _found(*one, package):
                    _follow(found, where, known)


def _found(name: str, names: tuple[str, ...], level: int, package: str | None) -> Iterator[tuple[str, Path]]:
    """Names and files of the modules of one's own that `import name` or `from name import names` reads."""
    with contextlib.suppress(ImportError):
        name = importlib.util.resolve_name("." * level + name, package or None)
        for one in (name, *(f"{name}.{inner}" for inner in names)):
            with contextlib.suppress(Exception):  # packages on the way are loaded, and may raise anything
                first = importlib.util.find_spec(one.split(".")[0])
                if one.split(".")[0] == "fimoda_lib" or (first and str(first.origin).startswith(LIBRARIES)):
                    return
                spec = importlib.util.find_spec(one)
                if spec and spec.has_location and spec.origin.endswith(".py") and not spec.origin.startswith(LIBRARIES):
                    yield one, Path(spec.origin)


def _digest(known: dict[str, str]) -> str:
    parts = [f"{name} {known[name]}" for name in sorted(known)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest() if parts else ""
