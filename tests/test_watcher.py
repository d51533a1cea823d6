"""Which files change, as the system tells it and as reading the folders again and again finds it."""

import contextlib
import errno
import logging
import math
import os
import shutil
import sys
import tempfile
import threading
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from trioserve.config import Config
from trioserve.errors import ConfigError
from trioserve.process.watcher import WatchedFolder, Watcher, take_stamps

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc, or makes names other systems refuse")


@pytest.fixture
def _without_watchfiles(monkeypatch):
    monkeypatch.setitem(sys.modules, "watchfiles", None)  # importing it fails as if it were not installed


@pytest.fixture(params=["by the system", "by polling"])
def way(request):
    """Both ways of watching; a test that names this runs with each."""
    if request.param == "by polling":
        request.getfixturevalue("_without_watchfiles")
    return request.param


@pytest.fixture
def folder(tmp_path):
    """A folder with an application in it."""
    folder = tmp_path / "site"
    write(folder / "app.py")
    return folder.resolve()


@pytest.fixture
def opened(monkeypatch):
    """The folders that are read, as they are opened: each after the one above it has been read."""
    opened = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: opened.append(path) or scandir(path))
    return opened


def write(path, text="app = 1\n"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@contextlib.asynccontextmanager
async def watching(*folders, **options):
    """What is reported of the folders, as a channel."""
    options = {"reload_delay": 0.02, **options}
    watcher = Watcher(Config(reload_dir=tuple(map(str, folders)), **options))
    send, receive = trio.open_memory_channel(math.inf)
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            await nursery.start(watcher.run, send.send_nowait)
            yield receive
            nursery.cancel_scope.cancel()


async def assert_told(reports, *paths):
    """The next report is of exactly these files."""
    assert await reports.receive() == sorted(paths)


# --- what is told


@pytest.mark.usefixtures("way")
async def test_change_right_after_the_start_is_told(folder):
    """From started() on nothing is missed, although the system's watch is made after it."""
    async with watching(folder) as reports:
        write(folder / "app.py", "app = 'other'\n")
        await assert_told(reports, folder / "app.py")


@pytest.mark.usefixtures("way")
async def test_one_change_after_another(folder):
    """A file that appears, is written, is renamed and vanishes is told of each time."""
    async with watching(folder) as reports:
        write(folder / "new.py")
        await assert_told(reports, folder / "new.py")
        write(folder / "new.py", "longer than before\n")
        await assert_told(reports, folder / "new.py")
        (folder / "new.py").rename(folder / "newer.py")
        await assert_told(reports, folder / "new.py", folder / "newer.py")
        (folder / "newer.py").unlink()
        await assert_told(reports, folder / "newer.py")


@pytest.mark.usefixtures("way")
async def test_rewriting_with_as_many_bytes(folder):
    """A file counts as changed if only its time is another."""
    async with watching(folder) as reports:
        status = (folder / "app.py").stat()
        os.utime(folder / "app.py", ns=(status.st_atime_ns, status.st_mtime_ns + 1_000_000_000))
        await assert_told(reports, folder / "app.py")


@pytest.mark.usefixtures("way")
async def test_saving_by_renaming(folder):
    """An editor that writes a new file and puts it in place of the old one has changed one file, once."""
    async with watching(folder) as reports:
        write(folder / "4913", "")  # vim tries whether it may write here
        (folder / "4913").unlink()
        write(folder / ".app.py.swp")
        (folder / "app.py").rename(folder / "app.py~")
        write(folder / "app.py", "app = 2\n")
        (folder / "app.py~").unlink()
        await assert_told(reports, folder / "app.py")
        write(folder / "app.py___jb_tmp___", "app = 3\n").replace(folder / "app.py")
        await assert_told(reports, folder / "app.py")


@pytest.mark.usefixtures("way")
async def test_burst_is_one_report(folder):
    """What changes together is told together, in order and without duplicates."""
    paths = [folder / "pkg" / f"part{number}.py" for number in range(50)]
    async with watching(folder) as reports:
        for path in reversed(paths):
            write(path)
            write(path, "longer than before\n")
        await assert_told(reports, *paths)


@pytest.mark.usefixtures("way")
async def test_change_without_end_is_told(folder):
    """A file that is written all the time puts the report off for a while, not for ever."""
    async with watching(folder, reload_delay=0.01) as reports:
        text = ""
        while not reports.statistics().current_buffer_used:
            text += "more\n"
            write(folder / "app.py", text)
            await trio.lowlevel.checkpoint()
        await assert_told(reports, folder / "app.py")


@pytest.mark.usefixtures("way")
async def test_change_that_is_undone_is_told(folder, opened):
    """A file that vanishes and comes back as it was is told of, with all of the burst: a worker may have missed it."""
    write(folder / "pkg" / "mod.py")
    async with watching(folder, reload_delay=0.5) as reports:
        (folder / "app.py").rename(folder / "away.txt")
        opened.clear()
        # What is first in the list may be of a reading that began earlier.
        while str(folder / "pkg") not in opened[opened.index(str(folder)) if str(folder) in opened else len(opened) :]:
            await trio.sleep(0.001)
        (folder / "away.txt").rename(folder / "app.py")
        write(folder / "later.py")
        await assert_told(reports, folder / "app.py", folder / "later.py")


@pytest.mark.usefixtures("way")
async def test_folder_is_moved_into_place_and_away(folder, tmp_path):
    """The files of a folder that is moved come and go with it."""
    write(tmp_path / "pkg" / "deep" / "inner.py")
    async with watching(folder) as reports:
        (tmp_path / "pkg").rename(folder / "pkg")
        await assert_told(reports, folder / "pkg" / "deep" / "inner.py")
        write(folder / "pkg" / "deep" / "inner.py", "longer than before\n")
        await assert_told(reports, folder / "pkg" / "deep" / "inner.py")
        (folder / "pkg").rename(tmp_path / "pkg")
        await assert_told(reports, folder / "pkg" / "deep" / "inner.py")


@pytest.mark.usefixtures("way")
async def test_folder_is_made_again_and_again(folder):
    """A folder that is deleted and made again under the same name is watched as before."""
    inner = folder / "pkg" / "inner.py"
    async with watching(folder) as reports:
        for _ in range(3):
            write(inner)
            await assert_told(reports, inner)
            write(inner, "longer than before\n")
            await assert_told(reports, inner)
            shutil.rmtree(folder / "pkg")
            await assert_told(reports, inner)


# --- the watched folder itself


@pytest.mark.usefixtures("way")
async def test_watched_folder_vanishes_and_comes_back(folder):
    """A watched folder that is deleted is told of by its files, and is watched again once it is there."""
    async with watching(folder) as reports:
        for _ in range(3):
            shutil.rmtree(folder)
            await assert_told(reports, folder / "app.py")
            write(folder / "app.py")
            await assert_told(reports, folder / "app.py")
            write(folder / "app.py", "longer than before\n")
            await assert_told(reports, folder / "app.py")


@pytest.mark.usefixtures("way")
async def test_watched_folder_is_replaced_at_once(folder):
    """A folder that is deleted and made again before anyone looks is watched in its new form."""
    async with watching(folder) as reports:
        for number in range(3):
            shutil.rmtree(folder)
            write(folder / "app.py", "longer than before\n" * (number + 1))
            await assert_told(reports, folder / "app.py")
        write(folder / "new.py")
        await assert_told(reports, folder / "new.py")


@pytest.mark.usefixtures("way")
async def test_watched_folder_is_moved_with_the_one_above(folder, tmp_path):
    """What takes the place of a moved folder is watched, even if the move was of a folder further up."""
    above = tmp_path / "above"
    site = above / "site"
    write(site / "app.py")
    async with watching(site.resolve()) as reports:
        for text in ("one", "three"):  # the second is told of by the system, so its watch is in place
            write(site / "app.py", text)
            await assert_told(reports, site / "app.py")
        above.rename(tmp_path / "moved")
        await assert_told(reports, site / "app.py")
        write(site / "app.py", "longer than before\n")
        await assert_told(reports, site / "app.py")
        write(tmp_path / "moved" / "site" / "app.py", "no longer of interest\n")
        write(site / "new.py")
        await assert_told(reports, site / "new.py")


@pytest.mark.usefixtures("way")
async def test_other_folder_goes_on_while_one_is_gone(folder, tmp_path):
    """While one watched folder is missing the others are watched."""
    other = write(tmp_path / "other" / "lib.py").resolve()
    async with watching(folder, other.parent) as reports:
        shutil.rmtree(folder)
        await assert_told(reports, folder / "app.py")
        write(other, "longer than before\n")
        await assert_told(reports, other)


# --- ends and failures


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("delay", [0.01, 60])
async def test_cancelling_is_prompt(folder, delay):
    """A cancellation ends the watch within a second, whatever the delay, and leaves no thread at work."""
    watcher = Watcher(Config(reload_dir=(str(folder),), reload_delay=delay))

    async def write_log():
        while True:  # files that do not count must not keep it busy either
            write(folder / "site.log")
            await trio.sleep(0.01)

    with trio.fail_after(20):
        async with trio.open_nursery() as others:
            others.start_soon(write_log)
            async with trio.open_nursery() as nursery:
                await nursery.start(watcher.run, print)
                while not threads_at_work() and sys.modules["watchfiles"]:
                    await trio.sleep(0.01)
                cancelled = trio.current_time()
                nursery.cancel_scope.cancel()
            assert trio.current_time() - cancelled < 1
            others.cancel_scope.cancel()
        while threads_at_work():
            await trio.sleep(0.01)


def threads_at_work():
    """Trio's threads, but those that wait to be used again, and the system's own that watch files."""
    working = [thread.name for thread in threading.enumerate() if " from " in thread.name]
    tasks = Path("/proc/self/task")
    if tasks.is_dir():
        working += [name for one in tasks.iterdir() if "notify" in (name := (one / "comm").read_text())]
    return working


@on_linux
async def test_system_cannot_watch(folder, caplog):
    """If the system's watch fails, one warning says so and the folders are read again and again instead."""
    async with watching(folder) as reports:
        # watchfiles cannot tell of a name that is not UTF-8.
        strange = Path(os.fsdecode(os.fsencode(folder) + b"/\xff.py"))
        write(strange)
        await assert_told(reports, strange)
        for text in ("one", "three"):
            write(folder / "app.py", text)
            await assert_told(reports, folder / "app.py")
        shutil.rmtree(folder)
        await assert_told(reports, folder / "app.py", strange)
    (record,) = [record for record in caplog.records if record.name == "trioserve"]
    assert record.levelno == logging.WARNING
    assert "the system cannot watch the files, so they are looked at every 0.02 s: " in record.getMessage()


@pytest.mark.usefixtures("way")
async def test_error_of_the_callback_ends_the_watch(folder):
    """What the callback raises is no failure of the watch: it comes out of run() as it is."""
    watcher = Watcher(Config(reload_dir=(str(folder),), reload_delay=0.01))

    def fail(_paths):
        raise FileNotFoundError(errno.ENOENT, "from the callback")

    with trio.fail_after(20), pytest.raises(BaseExceptionGroup) as caught:
        async with trio.open_nursery() as nursery:
            await nursery.start(watcher.run, fail)
            write(folder / "new.py")
    (error,) = caught.value.exceptions
    assert "from the callback" in str(error)


@pytest.mark.usefixtures("way")
async def test_what_cannot_be_read_is_passed_over(folder, tmp_path):
    """Links to nowhere, to themselves and in a circle, and folders without permission, do not stop the watch."""
    (folder / "nowhere.py").symlink_to("missing")
    (folder / "itself").symlink_to("itself")
    (folder / "circle").symlink_to(folder)
    (folder / "secret").mkdir(mode=0)
    (tmp_path / "shared").mkdir()
    (folder / "shared").symlink_to(tmp_path / "shared")
    async with watching(folder) as reports:
        write(folder / "app.py", "longer than before\n")
        await assert_told(reports, folder / "app.py")
        write(tmp_path / "shared" / "lib.py")
        await assert_told(reports, folder / "shared" / "lib.py")
    (folder / "secret").chmod(0o700)


# --- which folders


def folders_of(**options):
    return Watcher(Config(**options)).description


def test_current_folder_is_watched(tmp_path, monkeypatch):
    """Without any option the current folder is watched."""
    monkeypatch.chdir(tmp_path)
    assert folders_of() == f"watching {tmp_path.resolve()}"


def test_app_dir_is_watched(tmp_path, monkeypatch):
    """app_dir takes the place of the current folder."""
    (tmp_path / "src").mkdir()
    monkeypatch.chdir(tmp_path)
    assert folders_of(app_dir="src") == f"watching {tmp_path.resolve() / 'src'}"


def test_reload_dir_is_watched(tmp_path, monkeypatch):
    """reload_dir takes the place of all others; one inside another, or named twice, is watched once."""
    for name in ("a/inner/deep", "ab", "src"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "link").symlink_to("ab")
    monkeypatch.chdir(tmp_path)
    here = tmp_path.resolve()
    named = ("link", "a/inner/deep", "ab", "a", "./ab", "a/inner")
    assert folders_of(app_dir="src", reload_dir=named) == f"watching {here / 'a'}, {here / 'ab'}"


def test_folder_in_a_hidden_one_is_watched_if_named(tmp_path):
    """A folder that the one around it leaves out is watched if it is asked for, whatever lies above it."""
    inner = tmp_path / "node_modules" / "ours"
    inner.mkdir(parents=True)
    here = tmp_path.resolve()
    assert folders_of(reload_dir=(str(tmp_path), str(inner))) == f"watching {here}, {here / 'node_modules' / 'ours'}"


@pytest.mark.parametrize("option", ["reload_dir", "app_dir"])
def test_folder_is_missing(tmp_path, option):
    """A folder that is not there, or is a file, is an error that names the option and the path."""
    path = write(tmp_path / "file").resolve()
    with pytest.raises(ConfigError) as caught:
        Watcher(Config(**{option: (str(path),) if option == "reload_dir" else str(path)}))
    assert str(caught.value) == f"{option} {path} is not a folder"


def test_hint(folder, way):
    """Without watchfiles a hint tells how to get it; with it there is none."""
    hint = "watchfiles is not installed, so files are looked at every 0.25 s; pip install 'trioserve[reload]'"
    assert Watcher(Config(reload_dir=(str(folder),))).hint == (None if way == "by the system" else hint)


# --- which files


@pytest.mark.parametrize(
    ("path", "include", "exclude", "counts"),
    [
        ("app.py", (), (), True),
        ("pkg/deep/mod.py", (), (), True),
        ("app.PY", (), (), False),
        ("page.html", (), (), False),
        # reload_include
        ("page.html", ("*.html",), (), True),
        ("deep/page.html", ("*.html",), (), True),
        ("templates/mail.txt", ("templates/*.txt",), (), True),
        ("templates/deep/mail.txt", ("templates/*.txt",), (), True),
        ("templates/mail.txt", ("./templates/*.txt",), (), True),
        ("templates/mail.txt", ("templates/**/*.txt",), (), True),
        ("templates/deep/mail.txt", ("templates/**/*.txt",), (), True),
        ("mail.txt", ("templates/*.txt",), (), False),
        ("Page.html", ("page.*",), (), False),
        ("mod.pyi", ("*.py[io]",), (), True),
        # left out by default
        (".hidden.py", (), (), False),
        (".git/hook.py", (), (), False),
        ("pkg/.venv/lib/mod.py", (), (), False),
        ("__pycache__/mod.py", (), (), False),
        ("node_modules/tool/mod.py", (), (), False),
        ("venv/lib/site-packages/mod.py", (), (), False),
        ("mod.pyc", ("*",), (), False),
        ("notes~", ("*",), (), False),
        ("#notes#", ("*",), (), False),
        (".notes.swp", ("*",), (), False),
        ("notes", ("*",), (), True),
        # spelt out by reload_include
        (".env", (".env",), (), True),
        ("deep/.env", (".env",), (), True),
        (".env.local", (".env*",), (), True),
        ("mod.pyc", ("*.pyc",), (), True),
        (".git/.env", (".env",), (), False),
        (".env/page.html", (".env", "*.html"), (), False),
        (".config/site.toml", (".config/*.toml",), (), True),
        (".config/site.py", (".config/*.toml",), (), False),
        (".config/.env", (".config/*",), (), False),
        # reload_exclude
        ("tests/test.py", (), ("tests",), False),
        ("deep/tests/deeper/test.py", (), ("tests",), False),
        ("tests/test.py", (), ("tests/",), False),
        ("tests.py", (), ("tests",), True),
        ("test_a.py", (), ("test_*.py",), False),
        ("build/lib/mod.py", (), ("build/lib",), False),
        ("other/build/lib/mod.py", (), ("build/lib",), True),
        ("build/lib/mod.py", (), ("build/*",), False),
        ("build/lib/mod.py", (), ("**/lib",), False),
        ("lib/mod.py", (), ("**/lib",), False),
        (".env", (".env",), (".env",), False),
        ("page.html", ("page.html",), ("*.html",), False),
        # reload_exclude as a path
        ("data/mod.py", (), ("./data",), False),
        ("data/mod.py", (), ("./data/",), False),
        ("deep/data/mod.py", (), ("./data",), True),
        ("data/mod.py", (), ("./data/*",), False),
        ("data/mod.py", (), ("{root}/data",), False),
        ("deep/data/mod.py", (), ("{root}/data",), True),
        ("data/mod.py", (), ("../root/data",), False),
        ("data/mod.py", (), ("{root}/link",), True),
        ("data/mod.py", (), ("{root}",), True),
    ],
)
def test_patterns(tmp_path, monkeypatch, path, include, exclude, counts):
    """A file is watched if it matches, unless it or a folder on the way is left out."""
    root = tmp_path.resolve() / "root"
    write(root / path)
    monkeypatch.chdir(root)
    exclude = tuple(pattern.format(root=root.as_posix()) for pattern in exclude)
    folder = WatchedFolder(root, Config(reload_include=include, reload_exclude=exclude))
    assert list(take_stamps([folder])) == ([str(root / path)] if counts else [])


@pytest.mark.parametrize("exclude", ["src/data", "./src/data", "src/../src/data/", "src/d*"])
def test_excluded_path_is_from_the_current_folder(tmp_path, monkeypatch, exclude):
    """A reload_exclude with a slash is also a path from the current folder, wherever the watched folder is."""
    src = tmp_path.resolve() / "src"
    write(src / "data" / "mod.py")
    monkeypatch.chdir(tmp_path)
    assert not take_stamps([WatchedFolder(src, Config(reload_exclude=(exclude,)))])


def test_excluded_path_may_be_or_lead_through_a_link(tmp_path, monkeypatch):
    """A link is left out under its own name; a path that leads to the watched folder through one is understood."""
    site = tmp_path.resolve() / "site"
    write(tmp_path / "shared" / "lib.py")
    write(site / "data" / "mod.py")
    (site / "link").symlink_to(tmp_path / "shared")
    (tmp_path / "also").symlink_to(site)
    monkeypatch.chdir(tmp_path)
    assert not take_stamps([WatchedFolder(site, Config(reload_exclude=("site/link", "also/data")))])


NAMES = st.sampled_from(["a", "b", ".h", "a.py", "b.txt", ".env", "x~", "__pycache__"])
PATTERNS = st.sampled_from(["a", "*", "?", "*.txt", ".env", ".h/*", "a/b", "a/*", "b/*.py", ".h", "*~", "*.py", "**/a"])


def counts_by_the_rules(path, include, exclude):
    """The rules of what is watched, word by word, for patterns without a path."""
    hidden = (".*", "__pycache__", "node_modules", "site-packages", "*.pyc", "*~", "#*#")
    *folders, name = path.split("/")

    def matches(text, patterns):
        return any(fnmatchcase(text, one) or fnmatchcase(text, one.replace("**/", "")) for one in patterns)

    def spells(pattern, part):
        return any(matches(one, hidden) and fnmatchcase(part, one) for one in pattern.split("/"))

    for depth, part in enumerate((*folders, name), 1):
        if matches(part, exclude) or matches("/".join((*folders, name)[:depth]), exclude):
            return False
    left_out = [part for part in (*folders, name) if matches(part, hidden)]
    if not left_out:
        return matches(name, ("*.py", *include)) or matches(path, include)
    return any(
        (matches(name, (one,)) or matches(path, (one,)))
        and all(spells(one, part) for part in left_out)
        and all(spells(one.rpartition("/")[0], part) for part in left_out if part in folders)
        for one in include
    )


@settings(deadline=None, max_examples=150)
@given(
    tree=st.sets(st.lists(NAMES, min_size=1, max_size=3).map("/".join), max_size=6),
    include=st.lists(PATTERNS, max_size=3).map(tuple),
    exclude=st.lists(PATTERNS, max_size=2).map(tuple),
)
def test_reading_and_the_word_of_the_system_keep_the_rules(tree, include, exclude):
    """What reading finds is what the rules say, and of a file the system's word matters just if reading finds it."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name).resolve()
        for path in sorted(tree):
            with contextlib.suppress(OSError):  # one name cannot be a file and a folder
                write(root / path)
        folder = WatchedFolder(root, Config(reload_include=include, reload_exclude=exclude))
        files = [path for path in root.rglob("*") if path.is_file()]
        found = set(take_stamps([folder]))
        assert found == {
            str(path) for path in files if counts_by_the_rules(path.relative_to(root).as_posix(), include, exclude)
        }
        assert found == {str(path) for path in files if folder.is_concerned(str(path))}


@pytest.mark.usefixtures("way")
async def test_files_that_do_not_count_are_not_told(folder):
    """A report has only files that count, whatever else changes with them."""
    options = {"reload_include": ("*.html", ".env"), "reload_exclude": ("build", "*.html.py")}
    async with watching(folder, **options) as reports:
        for name in ("notes.txt", "__pycache__/app.pyc", ".git/index.py", "build/lib/app.py", "page.html.py"):
            write(folder / name)
        write(folder / "templates" / "page.html")
        write(folder / ".env")
        await assert_told(reports, folder / ".env", folder / "templates" / "page.html")


@pytest.mark.usefixtures("way")
async def test_folder_without_files_is_not_told(folder, opened):
    """A new folder is looked into, and what is found there is told of, which may be nothing."""
    async with watching(folder) as reports:
        (folder / "empty").mkdir()
        while str(folder / "empty") not in opened:
            await trio.sleep(0.001)
        write(folder / "app.py", "longer than before\n")
        await assert_told(reports, folder / "app.py")


def test_word_about_other_places_is_ignored(folder, tmp_path):
    """The system's word about a folder matters, unless it is left out; about what lies elsewhere it does not."""
    watched = WatchedFolder(folder, Config())
    (folder / "pkg").mkdir()
    concerned = {str(folder), str(folder / "pkg"), str(folder / "gone"), str(folder / "app.py")}
    ignored = {str(folder / ".git"), str(folder / ".git" / "x.py"), str(tmp_path), f"{folder}2/app.py"}
    ignored.add(str(write(folder / "site.db")))
    assert {path for path in concerned | ignored if watched.is_concerned(path)} == concerned


def test_excluded_folders_are_not_read(folder, opened):
    """A folder that is left out is not even opened."""
    for name in ("node_modules/tool/mod.py", ".git/mod.py", "build/mod.py", "pkg/mod.py"):
        write(folder / name)
    take_stamps([WatchedFolder(folder, Config(reload_exclude=("build",)))])
    assert opened == [str(folder), str(folder / "pkg")]


def test_file_has_one_path(folder):
    """Files of a folder with links to it have the path of the folder itself, also when a link is new."""
    write(folder / "pkg" / "mod.py")
    watched = WatchedFolder(folder, Config())
    before = take_stamps([watched])
    (folder / "a_link").symlink_to("pkg")
    (folder / "z_link").symlink_to("pkg")
    assert take_stamps([watched]) == before
