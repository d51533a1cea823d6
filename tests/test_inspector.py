"""The text that describes tasks and threads."""

import _thread
import re
import threading
from contextlib import aclosing
from functools import partial
from types import SimpleNamespace

import pytest
import trio
import trio.testing

from trioserve import inspector
from trioserve.inspector import FRAME_LIMIT, describe_running, format_task_tree, format_thread_stacks

PATIENCE = 30  # seconds; every wait in here ends by then


async def wait_here(*, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
    task_status.started()
    await trio.sleep_forever()


async def wait_deep(depth: int) -> None:
    await (wait_deep(depth - 1) if depth else trio.sleep_forever())


async def keep_nursery() -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait_here, name="grandchild")


def line_of(function, text):
    """A pattern for a frame at the function's line that holds a text."""
    code = function.__code__
    with open(code.co_filename) as file:
        lines = file.read().splitlines()
    number = next(n for n, line in enumerate(lines, 1) if n > code.co_firstlineno and text in line)
    return rf"{re.escape(code.co_filename)}:{number} in {re.escape(code.co_qualname)}"


def current_tree() -> str:
    root = trio.lowlevel.current_root_task()
    assert root is not None
    return format_task_tree(root)


def part_of(tree: str, name: str) -> list[str]:
    """The lines of a task and of all below it, as if it were the outermost."""
    lines = tree.splitlines()
    start = next(number for number, line in enumerate(lines) if line.lstrip().startswith(f"- {name}"))
    margin = len(lines[start]) - len(lines[start].lstrip())
    end = next(n for n in range(start + 1, len(lines)) if not lines[n].startswith(" " * (margin + 1)))
    return [line[margin:] for line in lines[start:end]]


@pytest.fixture
async def children():
    """The only nursery of a task; its tasks are cancelled at the end."""

    async def hold(task_status):
        async with trio.open_nursery() as only:
            task_status.started(only)
            await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        yield await nursery.start(hold)
        nursery.cancel_scope.cancel()


async def test_task_shows_its_name_and_where_it_waits(children):
    """A task is a line with its name, and below it the lines it waits in, the innermost last."""
    children.start_soon(wait_here, name="the waiting one")
    await trio.testing.wait_all_tasks_blocked()
    first, *frames = part_of(current_tree(), "the waiting one")
    assert first == "- the waiting one"
    assert re.fullmatch(rf"    {line_of(wait_here, 'sleep_forever')}", frames[0])
    assert re.search(r"in sleep_forever$", frames[1])
    assert all(re.fullmatch(r"    \S.*:\d+ in \S+", line) for line in frames)


async def test_children_are_indented_below_their_parent(children):
    """A nursery's tasks are below the task that opened it, one step further in, and that one waits for its nursery."""
    children.start_soon(keep_nursery, name="parent")
    await trio.testing.wait_all_tasks_blocked()
    lines = part_of(current_tree(), "parent")
    assert lines[0] == "- parent"
    assert re.fullmatch(rf"    {line_of(keep_nursery, 'open_nursery')}", lines[1])
    child = lines.index("  - grandchild")
    assert re.fullmatch(rf"      {line_of(wait_here, 'sleep_forever')}", lines[child + 1])


async def test_several_nurseries_of_a_task_are_told_apart(children):
    """Where a task has more than one nursery open, its children say in which they are, the outermost being 1."""

    async def parent():
        async with trio.open_nursery() as outer, trio.open_nursery() as inner:
            inner.start_soon(wait_here, name="in the inner")
            outer.start_soon(wait_here, name="in the outer")

    children.start_soon(parent, name="parent")
    await trio.testing.wait_all_tasks_blocked()
    names = [line for line in part_of(current_tree(), "parent") if line.startswith("  - ")]
    assert names == ["  - in the outer (nursery 1 of 2)", "  - in the inner (nursery 2 of 2)"]


async def test_siblings_are_sorted(children):
    """The tasks of one nursery are in the order of their names."""
    for name in ("sibling 2", "sibling 3", "sibling 1"):
        children.start_soon(wait_here, name=name)
    found = re.findall(r"- (sibling \d)", current_tree())
    assert found == ["sibling 1", "sibling 2", "sibling 3"]


async def test_running_task():
    """A running task waits nowhere, and says that it runs."""
    name = trio.lowlevel.current_task().name
    assert part_of(current_tree(), name)[:2] == [f"- {name}", "    running"]


async def test_task_that_has_not_begun(children):
    """A task that has not begun is at its function's first line."""
    children.start_soon(wait_here, name="fresh")
    code = wait_here.__code__
    place = f"{code.co_filename}:{code.co_firstlineno} in wait_here"
    assert part_of(current_tree(), "fresh") == ["- fresh", f"    {place}"]


async def test_deep_waits_are_cut_at_the_outer_end(children):
    """Of a deep wait the innermost frames are shown, and that there are more."""
    children.start_soon(wait_deep, 3 * FRAME_LIMIT, name="deep")
    await trio.testing.wait_all_tasks_blocked()
    lines = part_of(current_tree(), "deep")
    assert lines[1] == "    ..."
    assert len(lines) == 2 + FRAME_LIMIT
    assert re.search(line_of(wait_deep, "sleep_forever"), lines[2])
    assert "in sleep_forever" in "".join(lines[-4:])


async def test_name_of_several_lines(children):
    """Whatever a task is called, it is one line."""
    children.start_soon(wait_here, name="first\nsecond\x1b[31m")
    await trio.testing.wait_all_tasks_blocked()
    assert part_of(current_tree(), "first")[0] == r"- first\nsecond\x1b[31m"


async def test_tasks_without_end(children, monkeypatch):
    """Beyond the limit tasks are only counted, but the one that runs is named, and so is what is noted."""
    monkeypatch.setattr(inspector, "TASK_LIMIT", 3)
    trees = []

    async def look():
        trees.append(format_task_tree(trio.lowlevel.current_root_task(), notes))

    notes = {}
    for number in range(5):
        children.start_soon(wait_here, name=f"waiting {number}")
    await trio.testing.wait_all_tasks_blocked()
    notes.update((task, "what it does") for task in children.child_tasks)
    children.start_soon(look, name="zealous")
    await trio.testing.wait_all_tasks_blocked()
    (tree,) = trees
    assert [f"waiting {number}: what it does" in tree for number in range(5)] == [True] * 5
    tree = re.sub("^- waiting . *: what it does\n", "", tree, flags=re.MULTILINE)  # those beyond the limit
    count = len(re.findall("^ *- ", tree, re.MULTILINE))
    assert count == 3
    total = trio.lowlevel.current_statistics().tasks_living + 1  # `look` has ended since
    system = 2  # the root task, and the one of TrioToken.run_sync_soon
    assert tree.splitlines()[-3:-1] == [f"... and {total - system - count} more", "running: zealous"]


async def test_system_tasks_are_only_listed(monkeypatch):
    """System tasks are one line of names at the end, of which there are not too many."""
    leave = trio.Event()
    for number in range(2):
        trio.lowlevel.spawn_system_task(leave.wait, name=f"system {number}")
    await trio.testing.wait_all_tasks_blocked()
    names = "<TrioToken.run_sync_soon task>, system 0, system 1"
    assert current_tree().splitlines()[-1] == f"System tasks: {names}"
    monkeypatch.setattr(inspector, "_SYSTEM_TASK_LIMIT", 1)
    assert current_tree().splitlines()[-1] == "System tasks: <TrioToken.run_sync_soon task>, and 2 more"
    leave.set()


def test_root_without_main():
    """A loop that has not begun or has ended has no tasks, and that is what is said."""
    tree = format_task_tree(trio.run(get_root))
    assert tree.splitlines()[1:] == ["System tasks: "]


async def test_notes(children):
    """What is noted of a task stands behind its name."""
    children.start_soon(wait_here, name="noted")
    children.start_soon(wait_here, name="unnoted")
    noted = next(task for task in children.child_tasks if task.name == "noted")
    root = trio.lowlevel.current_root_task()
    tree = format_task_tree(root, {noted: "what it does"})
    assert "- noted: what it does" in part_of(tree, "noted")[0]
    assert part_of(tree, "unnoted")[0] == "- unnoted"


async def test_the_task_that_runs_is_described():
    """The running task is told by its note, by that of the nearest task above it that has one, else by its name."""
    root, outer = trio.lowlevel.current_root_task(), trio.lowlevel.current_task()
    outermost = outer.parent_nursery.parent_task
    said = []

    async def inner():
        own = trio.lowlevel.current_task()
        noted = ({own: "inner", outer: "outer"}, {outer: "outer", outermost: "outermost"}, {})
        said.extend(describe_running(root, notes) for notes in noted)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(inner, name="the\nname")
    assert said == ["inner", "outer", r"the task the\nname"]


def test_no_running_task():
    """Where no task runs there is none to tell of."""
    assert describe_running(trio.run(get_root), {}) is None


async def get_root():
    return trio.lowlevel.current_root_task()


def test_frame_that_vanishes():
    """A task that goes on while it is looked at shows the frames that were found."""

    def lose_a_frame():
        yield SimpleNamespace(f_code=wait_here.__code__, f_globals={}), None
        raise AttributeError("'NoneType' object has no attribute 'f_lineno'")

    class Task(SimpleNamespace):
        __hash__ = object.__hash__

    task = Task(
        name="moving", coro=SimpleNamespace(cr_running=False), child_nurseries=[], iter_await_frames=lose_a_frame
    )
    nurseries = [SimpleNamespace(child_tasks=tasks) for tasks in ([], [], [task])]
    lines = format_task_tree(SimpleNamespace(child_nurseries=nurseries)).splitlines()
    assert lines[1:-1] == ["- moving", f"    {__file__}:? in wait_here"]


async def test_tree_of_a_running_loop():
    """Another thread may ask at any time while tasks come and go."""
    root = trio.lowlevel.current_root_task()
    trees = []

    def look():
        while len(trees) < 200:
            trees.append(format_task_tree(root))

    async def come_and_go():
        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(trio.lowlevel.checkpoint)
                await nursery.start(partial(give_way, nursery.cancel_scope))
            nursery.cancel_scope.cancel()

    thread = threading.Thread(target=look)
    thread.start()
    with trio.fail_after(PATIENCE):
        while thread.is_alive():
            await come_and_go()
    thread.join(PATIENCE)
    assert len(trees) == 200
    assert all("come_and_go" in tree or "running" in tree for tree in trees)


async def give_way(scope, *, task_status):
    async def numbers():
        for number in range(3):
            await trio.lowlevel.checkpoint()
            yield number

    task_status.started()
    async with aclosing(numbers()) as generator:
        async for _ in generator:
            await trio.lowlevel.checkpoint()


@pytest.fixture
def resting():
    """A thread that waits."""
    begun, leave = threading.Event(), threading.Event()

    def rest():
        begun.set()
        leave.wait(PATIENCE)

    thread = threading.Thread(target=rest, name="the resting thread")
    thread.start()
    assert begun.wait(PATIENCE)
    yield rest
    leave.set()
    thread.join(PATIENCE)


def test_thread_stacks(resting):
    """Each thread shows its name and its whole stack with the source, the innermost call last."""
    stacks = format_thread_stacks()
    (stack,) = re.findall(r"^- the resting thread\n((?:    .*\n?)*)", stacks, re.MULTILINE)
    lines = stack.splitlines()
    assert re.search(r"threading\.py:\d+ in Thread\._bootstrap: self\._bootstrap_inner\(\)$", lines[0])
    (place,) = [line for line in lines if "in resting.<locals>.rest" in line]
    assert re.fullmatch(rf"    {line_of(resting, 'leave.wait')}: leave\.wait\(PATIENCE\)", place)
    assert "threading.py" in lines[-1]


def test_the_thread_that_asks_is_left_out():
    """The stack of the thread that asks, which says nothing new, is not shown."""
    assert "MainThread" not in format_thread_stacks()


def test_main_thread_is_first(resting):
    """Seen from another thread the main thread is the first, and the asking one is not there."""
    found = []

    def ask():
        found.append(format_thread_stacks())

    thread = threading.Thread(target=ask, name="the asking thread")
    thread.start()
    thread.join(PATIENCE)
    (stacks,) = found
    names = re.findall(r"^- (.*)", stacks, re.MULTILINE)
    assert names[0] == "MainThread"
    assert "the resting thread" in names
    assert "the asking thread" not in names
    assert stacks.index("in test_main_thread_is_first: ") < stacks.index("- the resting thread")


def test_code_without_a_source():
    """Code that has no source shows where it is all the same."""
    variables = {"begun": threading.Event(), "leave": threading.Event(), "patience": PATIENCE}
    exec(compile("def rest():\n    begun.set()\n    leave.wait(patience)\n", "made up", "exec"), variables)
    thread = threading.Thread(target=variables["rest"])
    thread.start()
    assert variables["begun"].wait(PATIENCE)
    stacks = format_thread_stacks()
    variables["leave"].set()
    thread.join(PATIENCE)
    assert re.search(r"^    made up:[23] in rest$", stacks, re.MULTILINE)


def test_thread_without_a_name():
    """A thread that the threading module did not start, and has no name for, is told by its number."""
    begun, leave, ended = threading.Event(), threading.Event(), threading.Event()

    def rest():
        begun.set()
        leave.wait(PATIENCE)
        ended.set()

    number = _thread.start_new_thread(rest, ())
    assert begun.wait(PATIENCE)
    stacks = format_thread_stacks()
    leave.set()
    assert ended.wait(PATIENCE)
    assert re.search(rf"^- {number}$", stacks, re.MULTILINE)
