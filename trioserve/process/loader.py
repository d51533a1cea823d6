"""Find the application that ``module:attribute`` names.

The name is imported and looked up, never evaluated.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import sysconfig
from pathlib import Path
from types import TracebackType
from typing import cast

import trio

from ..errors import AppLoadError
from ..server import find_misfit
from ..types import ASGIApp
from .missing import describe_missing_attribute, describe_missing_dependency, describe_missing_module

# Frames of these lie between the command line and the user's code, and tell the user nothing.
_NOT_THE_USERS = (
    "<frozen importlib",
    str(Path(importlib.__file__).parent) + os.sep,
    str(Path(trio.__file__).parent) + os.sep,
    str(Path(__file__).parent.parent) + os.sep,
)

# A framework's come before the user's too, where it calls the user's lifespan.
_LIBRARIES = tuple({sysconfig.get_path(name) + os.sep for name in ("stdlib", "platstdlib", "purelib", "platlib")})


def user_traceback(traceback: TracebackType | None) -> TracebackType | None:
    """The part of a trace from the user's first frame on, or a library's if it has no other; None if it has neither."""
    while traceback is not None and traceback.tb_frame.f_code.co_filename.startswith(_NOT_THE_USERS):
        traceback = traceback.tb_next
    first = traceback
    while first is not None and first.tb_frame.f_code.co_filename.startswith((*_NOT_THE_USERS, *_LIBRARIES, "<")):
        first = first.tb_next
    return first or traceback


WSGI_HINT = "wrap it, in hypercorn.middleware.TrioWSGIMiddleware for example"


def split_target(target: str) -> tuple[str, str]:
    """Take ``module:attribute`` apart; raises AppLoadError, naming what was probably meant."""
    module, _, attribute = target.partition(":")
    is_named = ":" not in attribute and _is_dotted(module) and _is_dotted(attribute)
    if is_named and not module.endswith(".py") and not _has_separator(module):
        return module, attribute
    raise AppLoadError(f"APP must be module:attribute, not {target!r}{_guess(module, attribute)}")


def _guess(module: str, attribute: str) -> str:
    """What was probably meant, as the end of a text; empty if nobody can tell."""
    if module in ("asgi", "wsgi") and ":" in attribute:  # Hypercorn's way to say which
        if module == "wsgi":
            return f"; only ASGI 3 is served: {WSGI_HINT}"
        module, _, attribute = attribute.partition(":")
    stem = module.replace("\\", "/").removesuffix(".py").strip("./").replace("/", ".")
    attribute = attribute.partition(":")[0]
    before, _, last = stem.rpartition(".")
    if not attribute and before and last in ("app", "application"):
        stem, attribute = before, last
    attribute = attribute or "app"
    return f"; did you mean '{stem}:{attribute}'?" if _is_dotted(stem) and _is_dotted(attribute) else ""


def _is_dotted(name: str) -> bool:
    return all(name.split("."))


def _has_separator(name: str) -> bool:
    return "/" in name or "\\" in name


def load_app(target: str | ASGIApp, *, app_dir: str | None, factory: bool = False) -> ASGIApp:
    """Import the application, or the ``factory`` that the server calls for it.

    ``app_dir`` (None: the current folder) is put in front of ``sys.path``. Anything but text is the application itself.
    Raises AppLoadError; its ``__cause__`` is the error that the application's code raised, its trace cut to that code.
    """
    app = _load_callable(target, app_dir) if isinstance(target, str) else target
    if not callable(app):
        raise AppLoadError(
            f"{target!r} is not an application: it is of type {type(app).__name__}, which cannot be called"
        )
    misfit = None if factory else find_misfit(app, "scope", "receive", "send")
    if misfit is not None:
        hint = ""
        if find_misfit(app) is None:
            hint = "; if it returns the application, use the option factory"
        elif find_misfit(app, "environ", "start_response") is None:
            hint = f"; if it is for WSGI, {WSGI_HINT}"
        raise AppLoadError(
            f"{target!r} is not an application: it cannot be called with (scope, receive, send): {misfit}{hint}"
        )
    return app


def add_app_dir(app_dir: str | None) -> Path:
    """Let the modules of this folder (None: the current one) be imported before others; raises AppLoadError."""
    try:
        folder = Path(app_dir or os.curdir).absolute()
    except OSError:
        raise AppLoadError("the current folder does not exist any more") from None
    if not folder.is_dir():
        raise AppLoadError(f"app_dir {folder} is not a folder")
    if sys.path[:1] != [str(folder)]:
        sys.path.insert(0, str(folder))
    return folder


def _load_callable(target: str, app_dir: str | None) -> ASGIApp:
    module_name, attribute_path = split_target(target)
    folder = add_app_dir(app_dir)
    found = _find_attribute(_import(module_name, attribute_path, folder), attribute_path, target)
    if not callable(found):
        raise AppLoadError(
            f"{target!r} is not an application: it is of type {type(found).__name__}, which cannot be called"
        )
    return cast(ASGIApp, found)


class _Progress:
    imports_application = False


def imports_application() -> bool:
    """Whether an application is being imported at present: then what it calls at its top level is part of that."""
    return _Progress.imports_application


def _import(name: str, attribute_path: str, folder: Path) -> object:
    _Progress.imports_application = True
    # A file written since the last look (tests, a generator just run) must be seen.
    importlib.invalidate_caches()
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - importing runs the user's code, which may raise anything
        # SystemExit: a script without the __main__ guard.
        traceback = user_traceback(error.__traceback__)
        if isinstance(error, ModuleNotFoundError) and traceback is None and error.name and _is_part(error.name, name):
            raise AppLoadError(describe_missing_module(error.name, name, attribute_path, folder)) from None
        cause = error.with_traceback(traceback)
        hint = describe_missing_dependency(cause, folder) if isinstance(cause, ModuleNotFoundError) else ""
        raise AppLoadError(f"module {name!r} was found, but importing it raised {_name_of(cause)}{hint}") from cause
    finally:
        _Progress.imports_application = False


def _name_of(error: BaseException) -> str:
    text = str(error).partition("\n")[0]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _is_part(missing: str, name: str) -> bool:
    return f"{name}.".startswith(f"{missing}.")


def _find_attribute(module: object, path: str, target: str) -> object:
    found = module
    reached = target.partition(":")[0]
    separator = ":"
    for name in path.split("."):
        try:
            found = getattr(found, name)
        except AttributeError:
            raise AppLoadError(describe_missing_attribute(found, name, reached)) from None
        reached += f"{separator}{name}"
        separator = "."
    return found
