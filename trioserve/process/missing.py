"""What is said of an application that is not where its name says: where it was looked for, and what was meant."""

from __future__ import annotations

import difflib
import inspect
import pkgutil
import sys
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

from ..server import find_misfit
from ..types import AnyValue

_SHOWN = 6  # of the modules of a folder, if none is near

_USUAL = ("main", "app", "asgi")
"""Names of the module of a package that most often holds the application."""


def describe_missing_module(missing: str, name: str, attribute_path: str, folder: Path) -> str:
    """Say which module is missing and where it was looked for; ``missing`` is ``name`` or a parent of it."""
    parent, _, last = missing.rpartition(".")
    rest = name.removeprefix(missing)
    if not parent:
        looked_in, where = [str(folder)], f"{folder} or among the installed packages"
    else:
        looked_in = list(getattr(sys.modules.get(parent), "__path__", ()))
        if not looked_in:
            is_attribute = f"; did you mean '{parent}:{last}'?" if hasattr(sys.modules.get(parent), last) else ""
            return f"there is no module {missing!r}: {parent!r} is a module, not a package{is_attribute}"
        where = ", ".join(looked_in)
    known = sorted({module.name for module in pkgutil.iter_modules(looked_in)})
    near = nearest(last, known)
    if near is None and not parent:
        found = _look_one_folder_down(last, folder, is_package=bool(rest))
        if found is not None:
            return f"there is no module {missing!r} in {where}; did you mean {_quote(found, rest, attribute_path)}?"
    if near is None:
        shown = ", ".join(known[:_SHOWN]) + (", ..." if len(known) > _SHOWN else "")
        hint = f"; what is there: {shown}" if known else ""
    else:
        prefix = f"{parent}." if parent else ""
        hint = f"; did you mean '{prefix}{near}{rest}:{attribute_path}'?"
    return f"there is no module {missing!r} in {where}{hint}"


def _look_one_folder_down(name: str, folder: Path, *, is_package: bool) -> tuple[str, str] | None:
    """Where main.py, or the package, is in a folder below, as it often is in the package or in src/: (folder, name)."""
    found = sorted(folder.glob(f"*/{name}" if is_package else f"*/{name}.py"))
    return (found[0].parent.name, name) if found else None


def _quote(found: tuple[str, str], rest: str, attribute_path: str) -> str:
    folder, name = found
    # A package is imported by its own name, from the folder that it is in.
    return f"'{name}{rest}:{attribute_path}' --app-dir {folder}" if rest else f"'{folder}.{name}:{attribute_path}'"


def describe_missing_attribute(found: AnyValue, name: str, reached: str) -> str:
    """Say that what ``reached`` names has no such attribute, which it is, and which was probably meant."""
    known = [each for each in dir(found) if not each.startswith("_")]
    text = f"{reached!r}{_describe_place(found)} has no attribute {name!r}"
    prefix = f"{reached}{'.' if ':' in reached else ':'}"
    applications = [each for each in known if _is_application(getattr(found, each, None))]
    near = nearest(name.removesuffix("()"), known) or next(iter(applications), None)
    if near is not None:
        factory = " --factory" if _is_factory(getattr(found, near, None)) else ""
        return f"{text}; did you mean '{prefix}{near}'{factory}?"
    modules = sorted(module.name for module in pkgutil.iter_modules(getattr(found, "__path__", ())))
    usual = next((each for each in _USUAL if each in modules), None)
    if usual is not None:
        return f"{text}; did you mean '{reached}.{usual}:{name}'?"
    return text + (f"; its modules are {', '.join(modules[:_SHOWN])}" if modules else "")


def _describe_place(found: object) -> str:
    """Which module it is, where there may be a doubt: another of the same name, or a mere folder."""
    if not isinstance(found, ModuleType):
        return ""
    file = getattr(found, "__file__", None)
    if file is None:
        folders = ", ".join(getattr(found, "__path__", ()))
        return f", the folder {folders} without an __init__.py," if folders else ""
    return "" if Path(file).is_relative_to(sys.path[0]) else f" of {file}"


def _is_application(value: AnyValue) -> bool:
    if isinstance(value, type) or not callable(value) or find_misfit(value, "scope", "receive", "send") is not None:
        return False
    try:
        return next(iter(inspect.signature(value).parameters), "") == "scope"
    except (TypeError, ValueError):
        return False


def _is_factory(value: AnyValue) -> bool:
    is_app = find_misfit(value, "scope", "receive", "send") is None
    return inspect.isfunction(value) and not is_app and find_misfit(value) is None


def describe_missing_dependency(error: ModuleNotFoundError, folder: Path) -> str:
    """Say what may be done about a module that the application imports and that is not there."""
    if not error.name:
        return ""
    traceback = error.__traceback__
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    beside = Path(traceback.tb_frame.f_code.co_filename).parent if traceback is not None else folder
    if beside != folder and any((beside / each).exists() for each in (f"{error.name}.py", error.name)):
        return f"; it is in {beside}: import it with its package's name, or use --app-dir"
    return "" if "." in error.name else f"; is it installed for {sys.executable}?"


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The name that was probably meant; None if there is none near."""
    by_lower = {each.lower(): each for each in known}
    # 0.4 lets "app" find "application".
    return next((by_lower[each] for each in difflib.get_close_matches(name.lower(), list(by_lower), 1, 0.4)), None)
