"""The benchmarks: what can be told without measuring, and one short measurement."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import charts, results, rounds, table, wrk
from benchmarks.__main__ import QUICK_LIMIT, parse_arguments
from benchmarks.launch import signals_held_back
from benchmarks.loads import check_files
from benchmarks.results import Record, Run, Sample, cpu
from benchmarks.servers import APP, DEFAULTS, SERVERS, Server, Variant
from benchmarks.targets import TARGETS, Target
from benchmarks.workloads import GROWTH, WORKLOADS

ROOT = Path(__file__).parent.parent
PRINTED = """Running 2s test @ http://127.0.0.1:18000/
  1 threads and 64 connections
COUNTED {"requests": 1000, "bytes": 130000, "microseconds": 2000000, "p50": 1500, "p99": 20000, "connect": 1, \
"read": 2, "write": 3, "timeout": 4, "status": 5}
"""


def sample(used: float, **more: float) -> Sample:
    return Sample(cpu=used, rate=1000.0, p50=1.5, p99=20.0, errors=0, more=more)


def make_run(*records: Record, complete: bool = True) -> Run:
    return Run({"Python": "CPython 3.13.0", "kernel": "Linux"}, {"trio": "0.35.0"}, 3, 2, complete, records)


def three_rounds(workload: str, server: str, *used: float) -> list[Record]:
    return [Record(workload, server, number, sample(value)) for number, value in enumerate(used, 1)]


FIXED = make_run(
    *three_rounds("hello-64", "trioserve", 10.0, 12.0, 11.0),
    *three_rounds("hello-64", "uvicorn[standard]", 20.0, 16.0, 22.0),
    *three_rounds("hello-64", "Hypercorn trio", 100.0, 120.0, 110.0),
    Record("hello-64", "Granian", 1, None, "not installed: granian"),
    *(
        Record(f"growth-{number}", server, 1, sample(used + number))
        for number in GROWTH
        for server, used in (("trioserve", 5.0), ("Hypercorn trio", 50.0))
    ),
    Record("idle", "trioserve", 1, sample(11.0, memory=9.5, busy=1.1, alone=10.0, idle=3.0)),
)


# wrk


def test_what_wrk_counted_is_read_from_its_output():
    """Our script has wrk print one line, wherever it stands among wrk's own."""
    counts = wrk.parse(PRINTED)
    assert (counts.requests, counts.p99, counts.errors) == (1000, 20000, 15)


def test_output_without_counts_is_an_error():
    """wrk that ends without its line has not measured."""
    with pytest.raises(RuntimeError, match="did not say what it counted"):
        wrk.parse("unable to connect")


def test_only_good_answers_are_counted():
    """CPU and rate are per answer below 400, and all that went wrong is told."""
    taken = wrk.take_sample(wrk.parse(PRINTED), used=99_500.0, body=13)
    assert taken == Sample(cpu=100.0, rate=497.5, p50=1.5, p99=20.0, errors=15)


def test_a_shorter_run_is_taken_off():
    """What both runs spent on opening connections is gone; the latencies are the longer run's."""
    shorter = replace(wrk.parse(PRINTED), requests=400, bytes=52000, microseconds=1_000_000, p50=7, status=0)
    left = wrk.parse(PRINTED).without(shorter)
    assert (left.requests, left.bytes, left.microseconds, left.p50) == (600, 78000, 1_000_000, 1500)


def test_missing_bytes_are_errors():
    """Answers that bring less than their bodies should count as if so many whole ones were missing."""
    taken = wrk.take_sample(wrk.parse(PRINTED), used=1000.0, body=1000)
    assert taken.errors == 15 + 1000 - 130


def test_a_server_that_answers_nothing_well_has_no_sample():
    """A division by zero would hide it."""
    with pytest.raises(RuntimeError, match="nothing was answered well"):
        wrk.take_sample(wrk.parse(PRINTED), used=1000.0, body=1 << 20)


def test_without_wrk_it_is_said_how_to_get_it(tmp_path: Path):
    """The benchmark ends before it starts a server, and writes nothing."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", f"--results={tmp_path / 'results'}"],
        cwd=ROOT,
        env={**os.environ, "PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == 1
    assert "apt-get install wrk" in done.stderr
    assert "brew install wrk" in done.stderr
    assert not (tmp_path / "results").exists()


# Figures


def test_a_figure_is_the_median_of_its_rounds():
    """One round with a neighbour at work does not move it."""
    assert FIXED.value("hello-64", "uvicorn[standard]", cpu) == 20.0
    assert FIXED.value("hello-64", "Granian", cpu) is None


def test_ratios_are_taken_within_a_round():
    """Only rounds that have both servers count."""
    assert FIXED.ratios("hello-64", "trioserve", "uvicorn[standard]", cpu) == [0.5, 0.75, 0.5]
    assert FIXED.ratios("hello-64", "trioserve", "Granian", cpu) == []


@pytest.mark.parametrize(
    ("target", "verdict"),
    [
        pytest.param(Target("", "hello-64", 0.55, "uvicorn[standard]"), "yes", id="met exactly"),
        pytest.param(Target("", "hello-64", 0.54, "uvicorn[standard]"), "**no**", id="missed"),
        pytest.param(Target("", "hello-64", None, "uvicorn[standard]"), "—", id="nothing asked"),
        pytest.param(Target("", "hello-64", 1.0, "Granian"), "not measured", id="no peer"),
        pytest.param(Target("", "idle", 10.0, figure=results.extra("memory")), "yes", id="a figure itself"),
        pytest.param(Target("", "close", 10.0, figure=results.extra("memory")), "not measured", id="no figure"),
    ],
)
def test_verdicts(target: Target, verdict: str):
    """A target is met by the median; what was not measured is not met."""
    assert target.verdict(FIXED) == verdict


def test_a_target_shows_the_ratio_of_medians_and_the_spread_of_rounds():
    """11 to 20, and in the rounds from 0.50 to 0.75."""
    assert Target("", "hello-64", 1.0, "uvicorn[standard]").measured(FIXED) == (0.55, 0.5, 0.75)


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: f"{target.what} {target.ours} {target.peer}")
def test_every_target_can_be_measured(target: Target):
    """Its workload has both its servers."""
    assert {target.ours, target.peer or target.ours} <= set(WORKLOADS[target.workload].servers)


def test_a_run_is_read_as_it_was_written(tmp_path: Path):
    """The report can be made anew from what is kept."""
    results.write(FIXED, tmp_path / "latest.json")
    assert results.read(tmp_path / "latest.json") == FIXED


# Report and charts


def test_the_report_shows_each_server_with_its_spread():
    """The best is first, a peer that is not installed is a row, and the ratio is to ours."""
    rows = [line for line in table.report(FIXED).splitlines() if line.startswith("|")]
    first = rows.index(next(row for row in rows if row.startswith("| server | CPU µs per request")))
    rest = "1000 (1000-1000) | 1.50 (1.50-1.50) | 20.00 (20.00-20.00)"
    assert rows[first + 2 : first + 6] == [
        f"| **trioserve** | 11.0 (10.0-12.0) | {rest} | 1.00 | 0 |",
        f"| uvicorn[standard] | 20.0 (16.0-22.0) | {rest} | 1.82 | 0 |",
        f"| Hypercorn trio | 110.0 (100.0-120.0) | {rest} | 10.00 | 0 |",
        "| Granian | — | — | — | — | — | not installed: granian |",
    ]


def test_the_report_shows_what_is_asked_and_missed():
    """The rows that are lost are there."""
    text = table.report(FIXED)
    assert "| Hello, world! | uvicorn[standard] | 0.95 | 0.55 (0.50-0.75) | yes |" in text
    assert "| Hello, world! | Hypercorn trio | 0.06 | 0.10 (0.10-0.10) | **no** |" in text
    assert "| Hello, world! | Granian | 1.00 | — | not measured |" in text


def test_the_report_shows_growth_in_one_table():
    """One column for each number of connections."""
    assert "| **trioserve** | 6.0 (6.0-6.0) | 13.0 (13.0-13.0) | 69.0 (69.0-69.0) |" in table.report(FIXED)


def test_errors_are_told():
    """A run with errors says so in its row, as does one that lacks rounds."""
    wrong = Sample(cpu=1.0, rate=1.0, p50=1.0, p99=1.0, errors=3)
    run = make_run(
        Record("close", "trioserve", 1, wrong), Record("close", "trioserve", 2, None, "does not start"), complete=False
    )
    assert "**3**; does not start |" in table.report(run)
    assert "cut short" in table.report(run)


def test_the_report_of_nothing_is_no_failure():
    """Ctrl-C may come at once."""
    assert "cut short" in table.report(make_run(complete=False))


def test_charts_show_what_was_measured_the_least_first():
    """A server without a figure has no bar, a workload without figures has no panel."""
    (panel,) = charts.panels(FIXED, {"hello-64": "Hello", "close": "Close"})
    assert [bar.server for bar in panel.bars] == ["trioserve", "uvicorn[standard]", "Hypercorn trio"]
    assert panel.bars[1] == charts.Bar("uvicorn[standard]", 20.0, 16.0, 22.0)
    assert [panel.bars[0].middle for panel in charts.memory_panels(FIXED)] == [9.5, 1.1]


def test_the_chart_of_growth_has_a_line_for_each_server():
    """A server with fewer than two points has none."""
    lines = {line.server: line.points for line in charts.lines(FIXED)}
    assert lines == {
        "trioserve": tuple((number, 5.0 + number) for number in GROWTH),
        "Hypercorn trio": tuple((number, 50.0 + number) for number in GROWTH),
    }


def test_charts_name_workloads_that_there_are():
    """A name that is misspelled would only leave a panel out."""
    assert {key for _, _, titles in charts.CHARTS for key in titles} <= set(WORKLOADS)


# Servers and the plan


@pytest.mark.parametrize(
    ("name", "variant", "arguments"),
    [
        ("trioserve", DEFAULTS, "trioserve benchmarks.app:app --port PORT --http httptools --no-access-log"),
        ("trioserve h11", Variant(access_log=True), "trioserve benchmarks.app:app --port PORT --http h11"),
        (
            "uvicorn[standard]",
            Variant(tls=True),
            f"uvicorn {APP} --port PORT --no-access-log --log-level warning --ssl-certfile CERT --ssl-keyfile KEY",
        ),
        (
            "Hypercorn trio",
            Variant(app="some:app", access_log=True, keep=True),
            "hypercorn some:app --bind 127.0.0.1:PORT --worker-class trio --access-logfile - --keep-alive 75",
        ),
    ],
)
def test_command_lines(name: str, variant: Variant, arguments: str):
    """Options are added by purpose, and the access log is off unless it is what is measured."""
    assert SERVERS[name].arguments(variant) == arguments


def test_a_command_has_its_values():
    """Also where a path has a space."""
    command = SERVERS["trioserve h11"].command(Variant(tls=True), PORT="18000", CERT="a folder/cert.pem", KEY="key.pem")
    assert command[:2] == [sys.executable, "-m"]
    assert command[-4:] == ["--ssl-certfile", "a folder/cert.pem", "--ssl-keyfile", "key.pem"]
    assert "18000" in command


def test_each_round_begins_with_another_server():
    """So that none always follows the same."""
    planned = rounds.plan(["hello-64"], ["trioserve", "Granian"], rounds=3)
    assert [(one.round, one.server) for one in planned] == [
        (1, "trioserve"),
        (1, "Granian"),
        (2, "Granian"),
        (2, "trioserve"),
        (3, "trioserve"),
        (3, "Granian"),
    ]


def test_a_workload_that_no_chosen_server_has_is_left_out():
    """Workers are trioserve's alone."""
    assert rounds.plan(["workers"], ["Granian"], rounds=2) == []


def test_a_peer_that_is_missing_is_a_row(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """It is not started, takes no time, and the run is complete."""
    monkeypatch.setitem(SERVERS, "Granian", Server("Granian", ("no-such-server",), "no_such_server"))
    planned = rounds.plan(["hello-64"], ["Granian"], rounds=1)
    assert rounds.expected_seconds(planned, seconds=2) == 0
    run = rounds.carry_out(planned, rounds=1, seconds=1, limit=60, folder=tmp_path)
    assert run.complete
    assert run.problems("hello-64", "Granian") == ["not installed: no-such-server"]


def test_a_server_that_ends_is_a_row(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    """What it said is shown, but not kept: it may name folders of this machine."""
    monkeypatch.setitem(SERVERS, "Granian", Server("Granian", ("trio",), "this_module_is_not_there"))
    run = rounds.carry_out(rounds.plan(["hello-64"], ["Granian"], 1), rounds=1, seconds=1, limit=60, folder=tmp_path)
    assert run.problems("hello-64", "Granian") == ["does not start"]
    assert "No module named this_module_is_not_there" in capfd.readouterr().err


def test_what_would_end_after_the_limit_is_not_begun(tmp_path: Path):
    """--quick keeps its promise on a slow machine too."""
    planned = rounds.plan(["hello-64"], ["trioserve h11"], 1)
    run = rounds.carry_out(planned, rounds=1, seconds=1, limit=0, folder=tmp_path)
    assert not run.complete
    assert run.records == ()


def test_quick_is_planned_for_less_than_its_limit():
    """Under two minutes, with the plot and the report."""
    options = parse_arguments(["--quick"])
    planned = rounds.plan(options.only, options.servers, options.rounds)
    assert sum(1.5 + one.workload.load.expected_seconds(options.seconds) for one in planned) < QUICK_LIMIT < 120


def test_names_may_be_patterns():
    """In the order in which they are measured; brackets of a name are no pattern."""
    options = parse_arguments(["--only", "ws-16B,hello-*", "--servers", "Granian,uvicorn[standard]"])
    assert options.only == ["hello-1", "hello-64", "hello-512", "hello-logged", "ws-16B"]
    assert options.servers == ["uvicorn[standard]", "Granian"]
    assert options.results.name == "partial"


def test_a_whole_run_is_the_one_that_is_published():
    """A part never replaces it."""
    assert parse_arguments([]).results == ROOT / "benchmarks" / "results"


def test_unknown_names_are_refused(capsys: pytest.CaptureFixture[str]):
    """With those that there are."""
    with pytest.raises(SystemExit):
        parse_arguments(["--only", "helo"])
    assert "'hello-64'" in capsys.readouterr().err


def test_too_many_connections_for_this_machine_are_said_so():
    """Instead of a server that fails for want of files."""
    with pytest.raises(RuntimeError, match="ulimit"):
        check_files(1 << 40)


def test_a_signal_while_a_server_is_started_is_heard_after_it():
    """Else there would be a process that nobody stops."""
    steps = []
    with pytest.raises(KeyboardInterrupt), signals_held_back():
        signal.raise_signal(signal.SIGINT)
        steps.append("the block goes on")
    assert steps == ["the block goes on"]
