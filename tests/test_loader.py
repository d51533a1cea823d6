"""How an application is found by its name."""

import json
import os
import sys
import traceback

import pytest

from trioserve.errors import AppLoadError
from trioserve.process.loader import WSGI_HINT, load_app, split_target, user_traceback


@pytest.fixture
def project(tmp_path, monkeypatch):
    """An empty current folder; what is imported from it is forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


def write(path, text="async def app(scope, receive, send): pass\n"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def failure(target, app_dir=None):
    with pytest.raises(AppLoadError) as caught:
        load_app(target, app_dir=app_dir)
    return caught.value


def test_current_folder(project):
    """The application is looked for in the current folder first."""
    write(project / "site_a.py")
    assert load_app("site_a:app", app_dir=None) is sys.modules["site_a"].app
    assert sys.path[0] == str(project)


def test_app_dir(project):
    """app_dir takes the place of the current folder, and is put on the path once."""
    write(project / "deep" / "site_b.py")
    first = load_app("site_b:app", app_dir="deep")
    assert load_app("site_b:app", app_dir="deep") is first
    assert sys.path.count(str(project / "deep")) == 1


def test_nested_names(project):
    """Both module and attribute may be dotted."""
    write(project / "pack" / "__init__.py", "")
    write(project / "pack" / "mod.py", "class Holder:\n    app = print\n")
    assert load_app("pack.mod:Holder.app", app_dir=None) is print


def test_an_object_is_used_as_it_is():
    """What is not text is the application."""
    assert load_app(print, app_dir=None) is print


@pytest.mark.parametrize(
    ("target", "meant"),
    [
        ("foo", "foo:app"),
        ("foo:", "foo:app"),
        ("foo.py", "foo:app"),
        ("foo.py:api", "foo:api"),
        ("./src/foo.py:api", "src.foo:api"),
        ("src\\foo:api", "src.foo:api"),
        ("foo.app", "foo:app"),
        ("src/foo.application", "src.foo:application"),
        ("foo:app:x", "foo:app"),
        ("asgi:foo:app", "foo:app"),
    ],
)
def test_what_was_probably_meant(target, meant):
    """A name that is not module:attribute is refused, with what was probably meant."""
    with pytest.raises(AppLoadError) as caught:
        split_target(target)
    assert str(caught.value) == f"APP must be module:attribute, not {target!r}; did you mean {meant!r}?"


@pytest.mark.parametrize("target", ["", ":", ":app", "a..b:app", "a:b..c", ":a:b"])
def test_no_guess_where_there_is_none(target):
    """Where nothing can be guessed, nothing is."""
    with pytest.raises(AppLoadError) as caught:
        split_target(target)
    assert str(caught.value) == f"APP must be module:attribute, not {target!r}"


def test_name_of_a_wsgi_application():
    """What Hypercorn takes for a WSGI application is not served."""
    with pytest.raises(AppLoadError, match="not 'wsgi:foo:app'; only ASGI 3 is served: wrap it, in hypercorn"):
        split_target("wsgi:foo:app")


def test_names_are_never_evaluated(project):
    """The name is looked up: an expression is only an attribute that is missing."""
    write(project / "site_c.py", "def app(): raise AssertionError\n")
    assert "has no attribute 'app()'" in str(failure("site_c:app()"))


def test_folder_missing(project):
    """An app_dir that is not there is said so."""
    assert str(failure("a:app", app_dir="nowhere")) == f"app_dir {project / 'nowhere'} is not a folder"


def test_module_missing(project):
    """A missing module is named, with the folder looked in."""
    error = failure("zzqx:app")
    assert str(error) == f"there is no module 'zzqx' in {project} or among the installed packages"
    assert error.__cause__ is None


def test_module_near(project):
    """A module whose name is near is proposed."""
    write(project / "website.py")
    assert str(failure("webiste:app")).endswith("; did you mean 'website:app'?")


def test_module_near_in_other_letters(project):
    """Capitals are no difference when it comes to proposing."""
    write(project / "website.py")
    assert str(failure("WebSite:app")).endswith("; did you mean 'website:app'?")


def test_no_module_near(project):
    """Where no name is near, some of those that are there are told."""
    for name in ("aaa", "bbb", "ccc"):
        write(project / f"{name}.py")
    assert str(failure("zzqx:app")).endswith("installed packages; what is there: aaa, bbb, ccc")
    for name in ("ddd", "eee", "fff", "ggg"):
        write(project / f"{name}.py")
    assert str(failure("zzqx:app")).endswith("; what is there: aaa, bbb, ccc, ddd, eee, fff, ...")


def test_package_one_folder_down(project):
    """Of a package that is in src/, say, the folder is proposed."""
    write(project / "src" / "zzqx" / "main.py")
    assert str(failure("zzqx.main:app")).endswith("; did you mean 'zzqx.main:app' --app-dir src?")


def test_module_one_folder_down(project):
    """A file of that name one folder down is proposed."""
    write(project / "inner" / "zzqx.py")
    assert str(failure("zzqx:app")).endswith("; did you mean 'inner.zzqx:app'?")


def test_submodule_missing(project):
    """Of a dotted name the part that is missing is named, with the package's folder and what is near."""
    write(project / "pack_d" / "__init__.py", "")
    write(project / "pack_d" / "routes.py")
    expected = f"there is no module 'pack_d.rotues' in {project / 'pack_d'}; did you mean 'pack_d.routes:app'?"
    assert str(failure("pack_d.rotues:app")) == expected


def test_package_missing(project):
    """Of a dotted name whose package is missing the package is named."""
    write(project / "pack_e" / "__init__.py", "")
    write(project / "pack_e" / "routes.py")
    assert str(failure("pakc_e.routes:app")).endswith("; did you mean 'pack_e.routes:app'?")


def test_module_that_is_no_package(project):
    """A module has no modules in it."""
    write(project / "site_f.py")
    expected = "there is no module 'site_f.app': 'site_f' is a module, not a package"
    assert str(failure("site_f.app:app")) == f"{expected}; did you mean 'site_f:app'?"
    assert str(failure("site_f.api:app")) == expected.replace(".app", ".api")


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("1 / 0\n", "ZeroDivisionError: division by zero"),
        ("import zzqx_missing\n", "ModuleNotFoundError: No module named 'zzqx_missing'"),
        ("raise ValueError('two\\nlines')\n", "ValueError: two"),
        ("import sys\nsys.exit()\n", "SystemExit"),
        ("import site_g\nimport site_g.part\n", "ModuleNotFoundError: No module named 'site_g.part'"),
    ],
)
def test_module_that_raises(project, source, said):
    """A module that is there and raises is not a missing one; its error is the cause, traced from its own file on."""
    write(project / "site_g.py", source)
    error = failure("site_g:app")
    assert str(error).startswith(f"module 'site_g' was found, but importing it raised {said}")
    first = traceback.extract_tb(error.__cause__.__traceback__)[0]
    assert first.filename == str(project / "site_g.py")


def test_module_with_a_syntax_error(project):
    """A syntax error has no frame in the user's file, and none of ours are shown in its place."""
    write(project / "site_h.py", "def app(:\n")
    error = failure("site_h:app")
    assert isinstance(error.__cause__, SyntaxError)
    assert error.__cause__.__traceback__ is None


def test_attribute_missing(project):
    """A missing attribute is named, with the nearest public name."""
    write(project / "site_i.py", "application = print\n_ap = print\n")
    assert str(failure("site_i:app")) == "'site_i' has no attribute 'app'; did you mean 'site_i:application'?"


def test_nested_attribute_missing(project):
    """Of a dotted attribute the part that is missing is named."""
    write(project / "site_j.py", "class Zoo:\n    pass\n")
    assert str(failure("site_j:Zoo.app")) == "'site_j:Zoo' has no attribute 'app'"


SEVERAL = """
from builtins import print as zz
from json import dump as zzz

class Odd:
    __signature__ = 1
    def __call__(self): ...

class Site:
    async def __call__(self, scope, receive, send): ...

odd = Odd()
server = Site()
"""


@pytest.mark.parametrize(
    ("source", "target", "end"),
    [
        # Where no name is near, what looks like an application is proposed.
        (SEVERAL, "site_o:qq", "'qq'; did you mean 'site_o:server'?"),
        ("def create_app(): ...\n", "site_o:app", "'app'; did you mean 'site_o:create_app' --factory?"),
        ("def make(): ...\n", "site_o:make()", "'make()'; did you mean 'site_o:make' --factory?"),
        ("async def app(scope, receive, send): ...\n", "site_o:app()", "'app()'; did you mean 'site_o:app'?"),
    ],
)
def test_attribute_that_was_probably_meant(project, source, target, end):
    """What is proposed is what would be served, with --factory where that is needed."""
    write(project / "site_o.py", source)
    assert str(failure(target)) == f"'site_o' has no attribute {end}"


def test_package_that_is_no_application(project):
    """Of a package that has no such attribute a module is proposed, or all are told."""
    write(project / "pack_p" / "__init__.py", "")
    assert str(failure("pack_p:app")) == "'pack_p' has no attribute 'app'"
    write(project / "pack_p" / "routes.py")
    assert str(failure("pack_p:app")) == "'pack_p' has no attribute 'app'; its modules are routes"
    write(project / "pack_p" / "main.py")
    assert str(failure("pack_p:app")) == "'pack_p' has no attribute 'app'; did you mean 'pack_p.main:app'?"


def test_folder_that_is_no_package(project):
    """A mere folder is told from a package."""
    write(project / "pack_q" / "asgi.py")
    expected = f"'pack_q', the folder {project / 'pack_q'} without an __init__.py, has no attribute 'app'; "
    assert str(failure("pack_q:app")) == expected + "did you mean 'pack_q.asgi:app'?"


def test_another_module_of_that_name(project):
    """Of a module from elsewhere the file is told, since another may have been meant."""
    assert str(failure("colorsys:app")).startswith(f"'colorsys' of {sys.modules['colorsys'].__file__} has no attribute")
    assert str(failure("sys:app_")).startswith("'sys' has no attribute 'app_'")


def test_dependency_missing(project):
    """A module that the application needs is not the application; who runs another Python than he thinks reads so."""
    write(project / "site_r.py", "import zzqx_missing\n")
    assert str(failure("site_r:app")).endswith(f"'zzqx_missing'; is it installed for {sys.executable}?")
    write(project / "site_s.py", "import json.zzqx\n")
    assert str(failure("site_s:app")).endswith("No module named 'json.zzqx'")
    write(project / "pack_r" / "__init__.py", "from . import inner\n")
    write(project / "pack_r" / "inner.py", "import zzqx_missing\n")
    assert str(failure("pack_r:app")).endswith(f"'zzqx_missing'; is it installed for {sys.executable}?")
    write(project / "site_t.py", "raise ModuleNotFoundError('nothing')\n")
    assert str(failure("site_t:app")).endswith("ModuleNotFoundError: nothing")


def test_module_of_the_same_package_missing(project):
    """A module in a package that is imported as if it were not is the third-commonest mistake."""
    write(project / "pack_u" / "main.py", "import routes_u\n")
    write(project / "pack_u" / "routes_u.py")
    end = f"; it is in {project / 'pack_u'}: import it with its package's name, or use --app-dir"
    assert str(failure("pack_u.main:app")).endswith(end)


def test_not_callable(project):
    """What cannot be called is no application."""
    write(project / "site_k.py", "app = 'text'\n")
    expected = "'site_k:app' is not an application: it is of type str, which cannot be called"
    assert str(failure("site_k:app")) == expected


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("def app(): ...\n", "too many positional arguments; if it returns the application, use the option factory"),
        (
            "def app(debug=False): ...\n",
            "too many positional arguments; if it returns the application, use the option factory",
        ),
        ("from json import loads as app\n", "too many positional arguments"),
        (
            "def app(environ, start_response): ...\n",
            f"too many positional arguments; if it is for WSGI, {WSGI_HINT}",
        ),
        ("def app(a, b, c, d): ...\n", "missing a required argument: 'd'"),
        ("def app(scope, receive, send, *, more): ...\n", "missing a required argument: 'more'"),
    ],
)
def test_not_an_application(project, source, why):
    """What cannot be called with (scope, receive, send) is refused; --factory is proposed where it would work."""
    write(project / "site_l.py", source)
    expected = "'site_l:app' is not an application: it cannot be called with (scope, receive, send): "
    message = str(failure("site_l:app"))
    assert message.startswith(expected)
    # Newer Pythons say "a required keyword-only argument".
    assert message.removeprefix(expected).replace("keyword-only ", "") == why


@pytest.mark.parametrize(
    "source",
    [
        "class Site:\n    async def __call__(self, scope, receive, send): ...\napp = Site()\n",
        "class Site:\n    async def run(self, scope, receive, send, more=1): ...\napp = Site().run\n",
        "async def app(*args): ...\n",
        "import functools\nasync def three(one, scope, receive, send): ...\napp = functools.partial(three, 1)\n",
        # A decorator may change what a function takes.
        "import functools\n@functools.wraps(lambda: 1)\nasync def app(scope, receive, send): ...\n",
        # Nobody can tell what it takes.
        "class Site:\n    __signature__ = 1\n    def __call__(self): ...\napp = Site()\n",
        "async def app(scope: 'Missing', receive, send): ...\n",
    ],
)
def test_applications_of_every_kind(project, source):
    """Whatever can be called with (scope, receive, send) passes, and what does not tell how it is called."""
    write(project / "site_m.py", source)
    assert load_app("site_m:app", app_dir=None) is sys.modules["site_m"].app


def test_factory_is_not_taken_for_an_application(project):
    """With factory it is left to the server, which calls the factory, to say what is wrong with it."""
    write(project / "site_n.py", "def app(): ...\n")
    assert load_app("site_n:app", app_dir=None, factory=True) is sys.modules["site_n"].app


def test_object_that_is_not_an_application():
    """An application given itself is looked at in the same way."""

    def make(): ...

    assert str(failure(make)).startswith(f"{make!r} is not an application: it cannot be called with ")


def test_user_traceback_leaves_out_what_leads_to_the_users_frame():
    """The frames of a library before the user's first one, as a framework's that calls a lifespan, are left out."""

    def fail(pairs):
        raise ValueError("no")

    with pytest.raises(ValueError, match="no") as caught:
        json.loads("{}", object_hook=fail)
    assert user_traceback(caught.value.__traceback__.tb_next).tb_frame.f_code is fail.__code__


def test_user_traceback_of_a_library():
    """Where the error comes from a library and no code of the user's is near, its frames are shown."""
    with pytest.raises(ValueError, match="Expecting") as caught:
        json.loads("{")
    in_library = caught.value.__traceback__.tb_next
    assert user_traceback(in_library) is in_library


def test_user_traceback_is_none_without_a_frame_of_the_user():
    """A trace that lies wholly in trioserve or Trio has no part that concerns the user."""
    assert user_traceback(None) is None
    with pytest.raises(AppLoadError) as caught:
        split_target("foo")
    assert user_traceback(caught.value.__traceback__).tb_frame.f_code.co_filename == os.fspath(__file__)
    assert user_traceback(caught.value.__traceback__.tb_next) is None
