"""What is on the shelves, in SQLite. Each call takes microseconds, so none needs a thread."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import trio


class SoldOutError(Exception):
    """There is no more of an item."""


class Database:
    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self.changed = trio.Event()
        """Set at the next change; then there is a new one."""
        self.is_open = True

    @classmethod
    @contextmanager
    def open(cls, path: Path) -> Iterator["Database"]:
        # Tests look into the same database, from another thread.
        with closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as connection:
            connection.execute("CREATE TABLE IF NOT EXISTS stock (item TEXT PRIMARY KEY, count INTEGER NOT NULL)")
            connection.execute("CREATE TABLE IF NOT EXISTS orders (item TEXT NOT NULL)")
            database = cls(connection)
            yield database
            database.is_open = False

    def stock(self) -> dict[str, int]:
        return dict(self._connection.execute("SELECT item, count FROM stock ORDER BY item"))

    def orders(self) -> list[str]:
        return [item for (item,) in self._connection.execute("SELECT item FROM orders")]

    def deliver(self, item: str, count: int) -> None:
        """Put so many of an item on its shelf, which is empty or new."""
        self._change("INSERT OR REPLACE INTO stock VALUES (?, ?)", item, count)

    @contextmanager
    def reserved(self, item: str) -> Iterator[None]:
        """Take one from the shelf; it goes back if the block does not end well."""
        if not self._change("UPDATE stock SET count = count - 1 WHERE item = ? AND count > 0", item):
            raise SoldOutError(item)
        try:
            yield
        except BaseException:
            self._change("UPDATE stock SET count = count + 1 WHERE item = ?", item)
            raise
        self._change("INSERT INTO orders VALUES (?)", item)

    def _change(self, statement: str, *values: str | int) -> int:
        """Returns how many rows have changed."""
        count = self._connection.execute(statement, values).rowcount
        before, self.changed = self.changed, trio.Event()
        before.set()
        return count
