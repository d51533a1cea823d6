"""How an application is found by its name."""

import os
import sys
import traceback

import pytest

from trioserve.errors import AppLoadError
from trioserve.process.loader import load_app, split_target, user_traceback


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
    ],
)
def test_what_was_probably_meant(target, meant):
    """A name that is not module:attribute is refused, with what was probably meant."""
    with pytest.raises(AppLoadError) as caught:
        split_target(target)
    assert str(caught.value) == f"APP must be module:attribute, not {target!r}; did you mean {meant!r}?"


@pytest.mark.parametrize("target", ["", ":", ":app", "a..b:app", "a:b..c"])
def test_no_guess_where_there_is_none(target):
    """Where nothing can be guessed, nothing is."""
    with pytest.raises(AppLoadError) as caught:
        split_target(target)
    assert str(caught.value) == f"APP must be module:attribute, not {target!r}"


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
    assert str(failure("site_f.app:app")) == expected


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


def test_user_traceback_is_none_without_a_frame_of_the_user():
    """A trace that lies wholly in trioserve or Trio has no part that concerns the user."""
    assert user_traceback(None) is None
    with pytest.raises(AppLoadError) as caught:
        split_target("foo")
    assert user_traceback(caught.value.__traceback__).tb_frame.f_code.co_filename == os.fspath(__file__)
    assert user_traceback(caught.value.__traceback__.tb_next) is None
