"""What to say of a server that does not end, and how to end it nevertheless."""

from __future__ import annotations

import contextlib

import trio

from ..errors import TrioserveError
from ..inspector import format_task_tree, format_thread_stacks


class ServerStuckError(TrioserveError):
    """A server under test did not start, answer or end in time; the text shows its tasks and its thread's stack."""

    @classmethod
    def of(cls, what: str, root: trio.lowlevel.Task | None, *, with_threads: bool) -> ServerStuckError:
        """Describe what the event loop with this root task is doing, and the other threads."""
        parts = [what]
        if root is not None:
            parts.append(format_task_tree(root))
        if with_threads:
            parts.append(format_thread_stacks())
        return cls("\n\n".join(parts))


def break_shields(task: trio.lowlevel.Task, outermost: trio.CancelScope) -> None:
    """Let the cancellation of a scope reach this task and its children, whatever shields them from it.

    A task that shields itself for ever could otherwise keep a test from ending, and Trio has no means against that.
    """
    tasks = [task]
    while tasks:
        one = tasks.pop()
        tasks += [child for nursery in one.child_nurseries for child in nursery.child_tasks]
        # Private, but as old as Trio's cancel scopes; anyio's tests look at the same.
        with contextlib.suppress(AttributeError):
            status: trio._core._run.CancelStatus | None = one._cancel_status
            while status is not None and status._scope is not outermost:
                status._scope.shield = False
                status = status._parent
