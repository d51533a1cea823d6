"""The package keeps its shape: floors, no cycles, one home per library, small files. Read from the source with ast."""

from __future__ import annotations

import ast
import importlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import trioserve

PACKAGE = Path(trioserve.__file__).parent

FLOORS = (
    # F0 words
    (
        *("errors", "types", "foreign_loop", "logs", "option_tables", "options", "bind", "trust", "option_texts"),
        *("option_rules", "foreign_names", "transport", "exchange", "access_format", "config"),
    ),
    # F1 tools
    (
        *("clock", "drain", "bell", "linger", "formatters", "request_ids", "access_log", "metrics", "figures"),
        *("forwarded", "calls", "waits", "slow_requests", "context", "observer", "activity"),
    ),
    # F2 the application
    ("asgi.*",),
    # F3 the client
    ("wire.*",),
    # F4 sockets
    ("net.*", "lanes", "connection"),
    # F5 one server
    ("server", "inspector", "snapshot", "outline"),
    # F6 processes
    ("process.*",),
    # F7 edges
    (
        *("foreign_flags", "switching", "cli", "cli_inspect", "screen", "testing.*", "pytest_plugin"),
        *("demo", "demo_chat", "__main__"),
    ),
    # the public names, and nothing else
    ("",),
)
"""A module imports only from its own floor and lower ones. ``a.*`` is package ``a`` with all in it, "" is the top."""

HOMES = {
    "click": "cli",
    "dotenv": "process.settings",
    "faulthandler": "process.deadline",
    "h11": "wire.codec_h11",
    "h2": "wire.http2",
    "httptools": "wire.codec_httptools",
    "prometheus_client": "process.exposition",
    "signal": "process.signals",
    "ssl": "net.tls",
    "subprocess": "process.child",
    "pytest": "pytest_plugin",
    "trio_websocket": "testing.trio_clients",
    "trustme": "testing.authority",
    "watchfiles": "process.watcher",
    "websockets": "asgi.quick_frames",  # only its C for the mask of frames
    "wsproto": "asgi.frames",
}
"""The one module that may import a library: all that are not of the standard library, and the weighty ones of it."""

SECOND_HOMES = {
    ("click", "cli_inspect"),  # the sub-command
    ("wsproto", "asgi.deflate"),  # one of its extensions, with a bound that its own lacks
    ("wsproto", "asgi.quick_frames"),  # its words for what is read without it, and its mask
    ("h11", "testing.http_client"),  # the other side of it
    ("ssl", "net.tls_handshake"),  # of OpenSSL's, what net.tls has made ready
    ("ssl", "net.tls_transport"),
    ("trio_websocket", "testing.blocking"),  # for the types
}

PUBLIC_NAMES = {
    "AppLoadError",
    "BindError",
    "CertificateError",
    "ClientDisconnected",
    "Config",
    "ConfigError",
    "LifespanError",
    "MessageError",
    "Server",
    "StartupError",
    "TrioserveError",
    "__version__",
    "run",
    "serve",
    "serve_stream",
}

LINES_PER_FILE = 400
LINES_PER_FUNCTION = 40


# --- reading the source


@dataclass(frozen=True)
class Module:
    """The source of one module. Names are relative to the package: ``wire.http11``, "" for the package itself."""

    name: str
    source: str
    is_package: bool = False

    @property
    def tree(self) -> ast.Module:
        return ast.parse(self.source)

    @property
    def package(self) -> str:
        return self.name if self.is_package else self.name.rpartition(".")[0]


@dataclass(frozen=True)
class Import:
    """One imported name: ``level`` dots, then ``module``, and what ``from`` takes of it."""

    level: int
    module: str
    name: str | None


Source = dict[str, Module]


def source_of(**texts: str) -> Source:
    """A made-up package: ``wire__http11="..."`` is wire/http11.py, ``top`` the package itself."""
    names = {key: "" if key == "top" else key.replace("__", ".") for key in texts}
    return {name: Module(name, texts[key], is_package=not name) for key, name in names.items()}


def read_package(folder: Path) -> Source:
    modules: Source = {}
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(folder).with_suffix("").parts
        is_package = parts[-1] == "__init__"
        name = ".".join(parts[:-1] if is_package else parts)
        modules[name] = Module(name, path.read_text(encoding="utf-8"), is_package)
    return modules


def imports_of(module: Module) -> Iterator[Import]:
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            yield from (Import(0, alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (Import(node.level, node.module or "", alias.name) for alias in node.names)


def modules_imported(module: Module, source: Source) -> Iterator[str]:
    """The modules of the package that a module imports."""
    for one in imports_of(module):
        if not one.level:
            continue
        parents = module.package.split(".")[: len(module.package.split(".")) - (one.level - 1)]
        base = ".".join(part for part in (*parents, one.module) if part)
        inner = f"{base}.{one.name}" if base else f"{one.name}"
        yield inner if inner in source else base


def floor_of(name: str) -> int | None:
    for number, patterns in enumerate(FLOORS):
        for pattern in patterns:
            stem = pattern.removesuffix(".*")
            if name == stem or (stem != pattern and name.startswith(f"{stem}.")):
                return number
    return None


# --- the rules: each yields what breaks it


def unknown_modules(source: Source) -> Iterator[str]:
    for name in source:
        if floor_of(name) is None:
            yield f"{name}: on no floor; give it one in FLOORS"


def upward_imports(source: Source) -> Iterator[str]:
    for name, module in source.items():
        for target in modules_imported(module, source):
            above, here = floor_of(target), floor_of(name)
            if above is None or here is None or above > here:
                yield f"{name} imports {target or 'the package'}, which is not on its floor or below"


def cycles(source: Source) -> Iterator[str]:
    graph = {name: set(modules_imported(module, source)) & set(source) for name, module in source.items()}
    # Take away what imports nothing that is left; a cycle is what remains.
    while free := [name for name, targets in graph.items() if not targets & graph.keys()]:
        for name in free:
            del graph[name]
    if graph:
        yield f"a cycle among {', '.join(sorted(graph))}"


def absolute_imports(source: Source) -> Iterator[str]:
    for name, module in source.items():
        for one in imports_of(module):
            if not one.level and one.module.partition(".")[0] == "trioserve":
                yield f"{name}: imports {one.module} by its full name"


def strays(source: Source) -> Iterator[str]:
    for name, module in source.items():
        for one in imports_of(module):
            library = one.module.partition(".")[0]
            if one.level or library in ("trio", "trioserve"):
                continue
            if library not in HOMES:
                if library not in sys.stdlib_module_names:
                    yield f"{name}: {library} has no home; give it one in HOMES"
            elif HOMES[library] != name and (library, name) not in SECOND_HOMES:
                yield f"{name}: {library} belongs to {HOMES[library]}"


def long_files(source: Source) -> Iterator[str]:
    for name, module in source.items():
        count = len(module.source.splitlines())
        if count >= LINES_PER_FILE:
            yield f"{name or '__init__'}: {count} lines"


def long_functions(source: Source) -> Iterator[str]:
    for name, module in source.items():
        lines = module.source.splitlines()
        for node in ast.walk(module.tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                count = lines_of(node, lines)
                if count >= LINES_PER_FUNCTION:
                    yield f"{name}.{node.name}: {count} lines"


def lines_of(function: ast.FunctionDef | ast.AsyncFunctionDef, lines: list[str]) -> int:
    """Lines of a function's body, without docstring, empty lines and comments."""
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    if not body:
        return 0
    written = [line.strip() for line in lines[body[0].lineno - 1 : function.end_lineno]]
    return sum(1 for line in written if line and not line.startswith("#"))


def drawers(source: Source) -> Iterator[str]:
    for name in source:
        if name.rpartition(".")[2] in ("util", "utils", "helpers", "common", "misc"):
            yield f"{name}: a module is named after what it does"


def uses_of_any(source: Source) -> Iterator[str]:
    for name, module in source.items():
        if name == "types":
            continue
        imported = any(one.module == "typing" and one.name == "Any" for one in imports_of(module))
        dotted = any(isinstance(node, ast.Attribute) and node.attr == "Any" for node in ast.walk(module.tree))
        if imported or dotted:
            yield f"{name}: Any stands only in types.py"


RULES = (
    unknown_modules,
    upward_imports,
    cycles,
    absolute_imports,
    strays,
    long_files,
    long_functions,
    drawers,
    uses_of_any,
)


# --- the tests


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_package_keeps_the_rule(rule):
    """Nothing in the package breaks the rule."""
    assert list(rule(read_package(PACKAGE))) == []


def test_public_names_are_exactly_these():
    """The top of the package offers what the design fixes, each when it is asked for, and defines only the version."""
    assert set(trioserve.__all__) == PUBLIC_NAMES
    top = read_package(PACKAGE)[""]
    assert {one.name for one in imports_of(top) if one.level} == PUBLIC_NAMES - {"__version__"}
    defined = [node.name for node in ast.walk(top.tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    assert defined == ["__getattr__", "__dir__"]
    homes = {one.name: one.module for one in imports_of(top) if one.level}
    assert homes == trioserve._HOMES
    for name, home in homes.items():
        assert getattr(trioserve, name) is getattr(importlib.import_module(f"trioserve.{home}"), name)
    assert set(dir(trioserve)) >= PUBLIC_NAMES
    with pytest.raises(AttributeError, match="module 'trioserve' has no attribute 'surf'"):
        trioserve.surf  # noqa: B018


BREACHES = {
    "a module without a floor": (unknown_modules, {"attic": ""}, "attic:"),
    "a package without a floor": (unknown_modules, {"attic__box": ""}, "attic.box:"),
    "upward, by name": (upward_imports, {"config": "from .server import serve", "server": ""}, "config imports server"),
    "upward, by module": (upward_imports, {"config": "from . import server", "server": ""}, "config imports server"),
    "upward, from a package": (
        upward_imports,
        {"wire__codec": "from ..net.tls import load", "net__tls": ""},
        "wire.codec imports net.tls",
    ),
    "upward, for types": (
        upward_imports,
        {"config": "if TYPE_CHECKING:\n    from .cli import main", "cli": ""},
        "config imports cli",
    ),
    "upward, inside a function": (
        upward_imports,
        {"config": "def late():\n    from .cli import main", "cli": ""},
        "config imports cli",
    ),
    "from the top": (upward_imports, {"cli": "from . import serve", "top": ""}, "cli imports the package"),
    "a cycle of two": (
        cycles,
        {"config": "from . import bind", "bind": "from .config import Config", "errors": ""},
        "a cycle among bind, config",
    ),
    "a cycle of three": (
        cycles,
        {"wire__a": "from . import b", "wire__b": "from .c import x", "wire__c": "from ..wire.a import y"},
        "a cycle among wire.a, wire.b, wire.c",
    ),
    "the full name": (absolute_imports, {"config": "from trioserve.errors import ConfigError"}, "config:"),
    "the full name of a module": (absolute_imports, {"config": "import trioserve.errors"}, "config:"),
    "a library away from home": (strays, {"wire__http11": "import h11"}, "h11 belongs to wire.codec_h11"),
    "a part of a library": (strays, {"server": "from wsproto.connection import X"}, "wsproto belongs to asgi"),
    "ssl away from home": (strays, {"net__listeners": "import ssl"}, "ssl belongs to net.tls"),
    "a library without a home": (strays, {"server": "import anyio.abc"}, "anyio has no home"),
    "a long file": (long_files, {"server": "\n" * 400}, "server: 400 lines"),
    "a long function": (long_functions, {"server": "def f():\n" + "    x = 1\n" * 40}, "server.f: 40 lines"),
    "a long method": (
        long_functions,
        {"server": "class C:\n    async def f(self):\n" + "        x = 1\n" * 40},
        "server.f: 40 lines",
    ),
    "utils": (drawers, {"net__utils": ""}, "net.utils:"),
    "Any": (uses_of_any, {"server": "from typing import Any"}, "server:"),
    "typing.Any": (uses_of_any, {"server": "import typing\nx: typing.Any"}, "server:"),
}


@pytest.mark.parametrize("breach", BREACHES)
def test_each_rule_can_fail(breach):
    """A made-up package that breaks a rule is found out."""
    rule, texts, expected = BREACHES[breach]
    (found,) = rule(source_of(**texts))
    assert expected in found


INNOCENT = {
    "config": "from __future__ import annotations\nimport json\nfrom .errors import ConfigError\nfrom . import bind",
    "errors": "",
    "bind": "import trio",
    "types": "from typing import Any",
    "wire__codec_h11": "import h11\nfrom ..config import Config\nfrom .codec import Codec",
    "wire__codec": "",
    "asgi__deflate": "import wsproto.extensions",
    "server": 'def f():\n    """A\n' + "\n" * 50 + '    """\n' + "    x = 1\n\n    # why\n" * 39,
    "top": "from .server import serve",
}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_no_rule_accuses_the_innocent(rule):
    """A made-up package in which all is well passes every rule."""
    assert list(rule(source_of(**INNOCENT))) == []


def test_reading_finds_packages_and_modules(tmp_path):
    """A folder's __init__.py is the folder's module, and the top one is the package itself."""
    (tmp_path / "wire").mkdir()
    for name in ("__init__.py", "cli.py", "wire/__init__.py", "wire/codec.py"):
        (tmp_path / name).write_text("from . import x")
    source = read_package(tmp_path)
    assert set(source) == {"", "cli", "wire", "wire.codec"}
    assert [source[name].package for name in ("", "cli", "wire", "wire.codec")] == ["", "", "wire", "wire"]
