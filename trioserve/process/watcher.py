"""Which files change, for ``--reload``. The only home of watchfiles, which is an extra.

What has changed is always found by comparing two readings of the watched folders. watchfiles only says when a reading
is worth while; without it they are read again and again. So both ways tell of the same changes, and it does no harm
that the system tells nothing of what is in a folder that is moved into place.
"""

from __future__ import annotations

import contextlib
import fnmatch
import os
import re
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from enum import Enum
from pathlib import Path

import trio

from ..config import Config
from ..errors import ConfigError
from ..logs import server_log

# Left out unless reload_include spells it out: what is hidden, what Python and editors write, and what others wrote.
_HIDDEN = (".*", "__pycache__", "node_modules", "site-packages", "*.pyc", "*~", "#*#")

# A file that is written all the time must not put off the report for ever: 5 s with the default delay.
_LOOKS_PER_BURST = 20

# Milliseconds that a thread waits for the system's word. A cancellation has to wait for that thread, and a folder that
# is moved away is not always told of, so this bounds both. It costs 0.2 % of a CPU.
_WAIT = 250

Stamp = tuple[int, int, int]
"""What tells two states of a file apart: time of modification in nanoseconds, size, inode."""

_DELETED = 3  # watchfiles.Change.deleted

_Watch = Callable[..., Generator[AbstractSet[tuple[int, str]], None, None]]


class Watcher:
    """Says which files changed.

    Watches reload_dir, else app_dir, else the current folder. Raises ConfigError if one of these is not a folder.
    """

    def __init__(self, config: Config) -> None:
        self._folders = _folders_of(config)
        self._delay = config.reload_delay
        self._watch = _find_watch()
        self._stamps: Mapping[str, Stamp] = {}

    @property
    def description(self) -> str:
        """What is done, such as ``watching /srv/app``."""
        return "watching " + ", ".join(str(folder.path) for folder in self._folders)

    @property
    def hint(self) -> str | None:
        """What to tell a user without watchfiles; None if there is nothing to tell."""
        if self._watch is not None:
            return None
        return (
            f"watchfiles is not installed, so files are looked at every {self._delay:g} s; "
            "pip install 'trioserve[reload]'"
        )

    async def run(
        self,
        changed: Callable[[Sequence[Path]], None],
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Watch until cancelled.

        Calls ``changed`` in the event loop, once per burst of changes, with the files in order. A burst is over when
        nothing has changed for reload_delay seconds. Nothing that changes after ``started()`` is missed.
        """
        await self._compare()
        # The system's watch is not in place yet. It need not be: what changes from here on differs from this reading,
        # and the folders are read again as soon as it is.
        task_status.started()
        if self._watch is not None:
            await self._listen(self._watch, changed)
        while True:
            await trio.sleep(self._delay)
            await self._look(changed)

    async def _listen(self, watch: _Watch, changed: Callable[[Sequence[Path]], None]) -> None:
        """Look whenever the system tells of a change; return if it cannot."""
        word = _Word.SOMETHING
        while word is not _Word.FAILED:
            with contextlib.closing(_SystemWatch(watch, self._folders, self._delay)) as system:
                while (word := await trio.to_thread.run_sync(system.wait)) in (_Word.SOMETHING, _Word.NOTHING):
                    if word is _Word.SOMETHING:
                        await self._look(changed)
            if word is _Word.LOST:
                # Until the folder is back, or at least this often, this is polling.
                await trio.sleep(self._delay)
                await self._look(changed)

    async def _look(self, changed: Callable[[Sequence[Path]], None]) -> None:
        """Report what has changed, once the burst is over."""
        paths = await self._compare()
        if not paths:
            return
        for _ in range(_LOOKS_PER_BURST):
            await trio.sleep(self._delay)
            more = await self._compare()
            if not more:
                break
            # What changed and changed back is reported too: a worker may have been started in between.
            paths |= more
        changed([Path(path) for path in sorted(paths)])

    async def _compare(self) -> set[str]:
        before = self._stamps
        self._stamps = await trio.to_thread.run_sync(take_stamps, self._folders)
        return {path for path, _ in before.items() ^ self._stamps.items()}


# --- which folders and files


class WatchedFolder:
    """A folder that is watched with all in it, and what counts there.

    Relative paths are from this folder, with forward slashes on every system. Patterns are fnmatch's, tell upper from
    lower case on every system, and their ``*`` passes over slashes.
    """

    def __init__(self, path: Path, config: Config) -> None:
        self.path = path
        includes = [form.removeprefix("./") for pattern in config.reload_include for form in _forms_of(pattern)]
        self._is_included = _matcher(["*.py", *includes])
        excludes = [form for pattern in config.reload_exclude for form in _forms_of(pattern)]
        self._is_excluded_name = _matcher([form for form in excludes if not _is_anchored(form)])
        self._is_excluded_path = _matcher([place for form in excludes for place in self._places_of(form)])
        self._is_hidden = _matcher(_HIDDEN)
        # Those that spell a hidden name out: ".env" and "*.pyc" do, "*" does not.
        self._spelt_out = [form for form in includes if any(map(self._is_hidden, form.split("/")))]

    def counts(self, relative: str) -> bool:
        """Whether a file is watched, if all folders above it are entered."""
        name = relative.rpartition("/")[2]
        if not (self._is_included(name) or self._is_included(relative)) or self._is_excluded(name, relative):
            return False
        hidden = [part for part in relative.split("/") if self._is_hidden(part)]
        return not hidden or any(
            (fnmatch.fnmatchcase(name, pattern) or fnmatch.fnmatchcase(relative, pattern))
            and all(self._spells(pattern.split("/"), part) for part in hidden)
            for pattern in self._spelt_out
        )

    def is_entered(self, relative: str) -> bool:
        """Whether a folder is read, if all folders above it are."""
        name = relative.rpartition("/")[2]
        if self._is_excluded(name, relative):
            return False
        # A virtual environment may be called .env, so the name of a file opens no folder.
        return not self._is_hidden(name) or any(
            self._spells(pattern.split("/")[:-1], name) for pattern in self._spelt_out
        )

    def reaches(self, path: Path) -> bool:
        """Whether a folder is read as a part of this one."""
        if not path.is_relative_to(self.path):
            return False
        relative = path.relative_to(self.path)
        return all(self.is_entered(one.as_posix()) for one in [relative, *relative.parents][:-1])

    def is_concerned(self, path: str) -> bool:
        """Whether it may matter here that the system tells of this path."""
        place = Path(path)
        if place == self.path:
            return True
        if self.path not in place.parents or not self.reaches(place.parent):
            return False
        relative = place.relative_to(self.path).as_posix()
        # Of a folder that comes or goes nothing is told but its own name.
        return self.counts(relative) or (self.is_entered(relative) and not place.is_file())

    def _is_excluded(self, name: str, relative: str) -> bool:
        return bool(
            self._is_excluded_name(name) or self._is_excluded_name(relative) or self._is_excluded_path(relative)
        )

    def _spells(self, patterns: Iterable[str], name: str) -> bool:
        return any(self._is_hidden(pattern) and fnmatch.fnmatchcase(name, pattern) for pattern in patterns)

    def _places_of(self, pattern: str) -> Iterable[str]:
        """A pattern that is a path, from the current folder or from the root, as one from this folder."""
        if "/" in pattern:
            # As written, which may lead through a link in this folder, and as it really lies.
            for path in (Path(os.path.abspath(pattern)), Path(os.path.realpath(pattern))):
                if self.path in path.parents:
                    yield path.relative_to(self.path).as_posix()


def _forms_of(pattern: str) -> Iterable[str]:
    """The pattern with forward slashes and without one at its end; ``**/`` also stands for no folder at all."""
    form = pattern.replace(os.sep, "/").rstrip("/")
    return {form, form.replace("**/", "")}


def _is_anchored(pattern: str) -> bool:
    return pattern.startswith(("./", "../")) or os.path.isabs(pattern)


def _matcher(patterns: Iterable[str]) -> Callable[[str], re.Match[str] | None]:
    # One expression for all: a table of patterns asked one by one was most of the cost of reading a folder.
    return re.compile("|".join(map(fnmatch.translate, patterns)) or "(?!)").match


def _folders_of(config: Config) -> Sequence[WatchedFolder]:
    option, named = "reload_dir", config.reload_dir
    if not named:
        option, named = "app_dir", (config.app_dir or ".",)
    paths = {Path(name).resolve() for name in named}
    folders: list[WatchedFolder] = []
    for path in sorted(paths):  # a folder comes before those in it
        if not path.is_dir():
            raise ConfigError(f"{option} {path} is not a folder")
        # One in a hidden or excluded part of another is there because it was asked for.
        if not any(folder.reaches(path) for folder in folders):
            folders.append(WatchedFolder(path, config))
    return folders


# --- reading them


def take_stamps(folders: Iterable[WatchedFolder]) -> Mapping[str, Stamp]:
    """The state of every file that counts, by its path.

    Each folder is read once, wherever links lead. What vanishes meanwhile or cannot be read is passed over.
    """
    stamps: dict[str, Stamp] = {}
    seen: set[tuple[int, int]] = set()
    places = [(folder, str(folder.path), "") for folder in folders]
    # After all others, so that a new link to a folder does not give the files in it other paths.
    links: list[tuple[WatchedFolder, str, str]] = []
    while places or links:
        folder, path, above = places.pop() if places else links.pop()
        for entry in _read_folder(path, seen):
            relative = f"{above}/{entry.name}" if above else entry.name
            with contextlib.suppress(OSError):  # vanished meanwhile, or a link to nowhere
                if entry.is_dir():
                    if folder.is_entered(relative):
                        (links if entry.is_symlink() else places).append((folder, entry.path, relative))
                elif folder.counts(relative):
                    status = entry.stat()
                    stamps[entry.path] = (status.st_mtime_ns, status.st_size, status.st_ino)
    return stamps


def _read_folder(path: str, seen: set[tuple[int, int]]) -> list[os.DirEntry[str]]:
    try:
        status = os.stat(path)
        identity = (status.st_dev, status.st_ino)
        if identity in seen:
            return []
        seen.add(identity)
        with os.scandir(path) as entries:
            # The system's order may change with any new file, and it decides which of two links is followed.
            return sorted(entries, key=lambda entry: entry.name)
    except OSError:
        return []


# --- the system's word


class _Word(Enum):
    """What the system says."""

    SOMETHING = "something may have changed"
    NOTHING = "nothing has changed"
    LOST = "a watched folder is gone, or is another one than before"
    FAILED = "this system cannot watch these folders"


class _SystemWatch:
    """The system's watch of some folders, in place from the end of the first wait() on.

    watchfiles' own generator for Trio is not used: after a cancellation it lets up to five seconds pass, because Trio
    waits for its thread, and it makes the watch, which takes long in a large tree, in the event loop.
    """

    def __init__(self, watch: _Watch, folders: Sequence[WatchedFolder], delay: float) -> None:
        self._folders = folders
        self._delay = delay
        self._is_new = True
        self._identities = self._identify()
        self._events = watch(
            *(folder.path for folder in folders),
            # Its filter would be asked before it yields, and while files that do not count keep changing it never
            # would.
            watch_filter=None,
            debounce=_WAIT,
            step=min(50, int(delay * 1000)),
            rust_timeout=_WAIT,
            yield_on_timeout=True,
            poll_delay_ms=int(delay * 1000),
            # If true, every error in making the watch is passed over, such as a folder that is missing or the limit of
            # the system, and then nothing is ever told.
            ignore_permission_denied=False,
        )

    def close(self) -> None:
        self._events.close()

    def wait(self) -> _Word:
        """Block until the system tells something, for half a second at most. Runs in a thread."""
        try:
            changes = next(self._events)
        except FileNotFoundError:
            return _Word.LOST
        except (OSError, RuntimeError) as error:
            server_log.warning(
                "the system cannot watch the files, so they are looked at every %g s: %s", self._delay, error
            )
            return _Word.FAILED
        # A folder that is made anew may get the same inode, but then the system tells that the old one was deleted.
        deleted = any((_DELETED, str(folder.path)) in changes for folder in self._folders)
        if deleted or self._identities != self._identify():
            return _Word.LOST
        if self._is_new or any(folder.is_concerned(path) for folder in self._folders for _, path in changes):
            self._is_new = False
            return _Word.SOMETHING
        return _Word.NOTHING

    def _identify(self) -> list[tuple[int, int] | None]:
        return [_identity(folder.path) for folder in self._folders]


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _find_watch() -> _Watch | None:
    try:
        from watchfiles import watch  # noqa: PLC0415 - an extra
    except ImportError:
        return None
    return watch
