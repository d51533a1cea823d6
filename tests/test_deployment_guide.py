"""README's deployment guide: its numbers fit together and to our defaults, and its options are ours.

What needs a real systemd, nginx, HAProxy or load is in tests/operations.
"""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
import yaml

from trioserve.config import Config
from trioserve.process.settings import read_settings

from .operations.guide import GUIDE, commands, exec_start, settings, unit
from .readme import block, blocks, section

DEFAULTS = Config()
MARGIN = 5
"""Seconds to spare at least, for a process to start and end."""


def longest_stop(config: Config) -> float:
    """Seconds from a signal to the end of one process: each phase may take its whole time."""
    phases = config.timeout_graceful_shutdown + config.timeout_shutdown + config.timeout_hard_shutdown
    return config.drain_delay + phases


def longest_stop_of_workers(config: Config) -> float:
    """The same for several: after this time the supervisor kills what is left."""
    return longest_stop(config) + 2 * config.timeout_hard_shutdown + 5


def parse(arguments: list[str], monkeypatch: pytest.MonkeyPatch, folder: Path) -> Config:
    """The options of a command line of the guide, which says nothing that is not ours."""
    from click.testing import CliRunner

    from trioserve.cli import main

    monkeypatch.chdir(folder)
    shown = CliRunner().invoke(main, [*arguments, "--print-config"])
    assert shown.exit_code == 0, shown.output
    (folder / "trioserve.toml").write_text(shown.output)
    config = read_settings({}).config
    (folder / "trioserve.toml").unlink()
    return config


# Kubernetes


@pytest.fixture
def manifest() -> dict[str, dict]:
    (text,) = blocks("yaml", GUIDE, "### Kubernetes")
    return {one["kind"]: one for one in yaml.safe_load_all(text)}


def container_of(manifest: dict[str, dict]) -> dict:
    (container,) = manifest["Deployment"]["spec"]["template"]["spec"]["containers"]
    return container


def test_a_pod_has_the_time_that_its_end_takes(manifest, monkeypatch, tmp_path):
    """terminationGracePeriodSeconds exceeds drain delay, graceful deadline, shutdown and hard deadline together."""
    config = parse(container_of(manifest)["args"][1:], monkeypatch, tmp_path)
    grace = manifest["Deployment"]["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    assert longest_stop(config) == 75
    assert grace >= longest_stop(config) + MARGIN
    text = " ".join(section(GUIDE, "### Kubernetes").split())
    for name in ("drain_delay", "timeout_graceful_shutdown", "timeout_shutdown", "timeout_hard_shutdown"):
        assert re.search(rf"`{name}` \({getattr(config, name):g}\b", text), name
    assert f"({config.timeout_hard_shutdown:g}): {longest_stop(config):g} s, and" in text
    workers = longest_stop_of_workers(config) - longest_stop(config)
    assert f"With `--workers` {workers:g} s more" in text


def test_readiness_is_heard_in_the_drain_delay(manifest, monkeypatch, tmp_path):
    """The probe has failed often enough, and endpoints are spread, before the pod refuses connections."""
    container = container_of(manifest)
    config = parse(container["args"][1:], monkeypatch, tmp_path)
    probe = container["readinessProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] + MARGIN <= config.drain_delay


def test_a_pod_has_the_time_that_its_start_takes(manifest):
    """The startup probe goes on for longer than timeout_startup, after which trioserve ends by itself."""
    probe = container_of(manifest)["startupProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] >= DEFAULTS.timeout_startup + MARGIN


def test_the_manifest_s_parts_name_each_other(manifest):
    """Labels and ports are the same in all three, and the probes ask where health is served."""
    labels = manifest["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert manifest["Deployment"]["spec"]["selector"]["matchLabels"] == labels
    assert manifest["Service"]["spec"]["selector"] == labels
    assert manifest["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == labels
    container = container_of(manifest)
    ports = {one["name"]: one["containerPort"] for one in container["ports"]}
    assert ports["http"] == DEFAULTS.port
    assert f"0.0.0.0:{ports['metrics']}" in container["args"]
    assert [one["targetPort"] for one in manifest["Service"]["spec"]["ports"]] == ["http"]
    asked = [container[name]["httpGet"] for name in ("startupProbe", "readinessProbe", "livenessProbe")]
    assert [(one["path"], one["port"]) for one in asked] == [
        (path, "metrics") for path in ("/readyz", "/readyz", "/livez")
    ]


def test_the_metrics_port_is_for_prometheus_only(manifest):
    """Of the pods that the Deployment makes anybody reaches the application, and one namespace the metrics."""
    policy = manifest["NetworkPolicy"]["spec"]
    assert policy["podSelector"] == manifest["Deployment"]["spec"]["selector"]
    assert policy["policyTypes"] == ["Ingress"]
    rules = {one["ports"][0]["port"]: one.get("from") for one in policy["ingress"] if len(one["ports"]) == 1}
    assert list(rules) == [one["name"] for one in container_of(manifest)["ports"]] == ["http", "metrics"]
    assert rules["http"] is None
    ((chosen,),) = rules["metrics"]
    assert chosen == "namespaceSelector"
    assert "--inspector" not in container_of(manifest)["args"]


# systemd


def test_a_service_has_the_time_that_it_takes(monkeypatch, tmp_path):
    """TimeoutStopSec= and TimeoutStartSec= exceed our own deadlines, and the text says how they are made."""
    config = parse(exec_start()[1:], monkeypatch, tmp_path)
    service = settings(unit("shop.service"), "Service")
    assert config.needs_supervisor
    assert float(service["TimeoutStopSec"]) >= longest_stop_of_workers(config) + MARGIN
    assert float(service["TimeoutStartSec"]) >= config.timeout_startup + MARGIN
    assert float(service["WatchdogSec"]) > 2 * config.timeout_worker_healthcheck
    assert f"which are {longest_stop_of_workers(config):g} s if nothing" in section(GUIDE, "### systemd").replace(
        "\n  ", " "
    )


def test_the_service_belongs_to_its_socket():
    """The socket's queue is ours, and the service does not start without it."""
    socket, service = unit("shop.socket"), unit("shop.service")
    assert settings(socket, "Socket")["Backlog"] == str(DEFAULTS.backlog)
    assert settings(service, "Unit")["Requires"] == "shop.socket"
    assert "shop.socket" in settings(service, "Unit")["After"]


def test_what_the_text_explains_is_in_the_units():
    """Each setting that the guide explains stands in one of the units, with the value that is explained."""
    found = [settings(unit("shop.service"), "Service"), settings(unit("shop.socket"), "Socket")]
    explained = re.findall(r"^- \*\*`(\w+)=([\w-]*)`\*\*", section(GUIDE, "### systemd"), re.MULTILINE)
    assert {"Type", "KillMode", "RestartPreventExitStatus"} <= {name for name, _ in explained}
    for name, value in explained:
        (set_here,) = [one[name] for one in found if name in one]
        assert value in ("", set_here), name


# The container


def test_the_container_file(monkeypatch, tmp_path):
    """The server is process 1 itself, not root, stopped by TERM, and asked for its health without curl."""
    (text,) = blocks("dockerfile", GUIDE, "### A container")
    lines = [line.split(maxsplit=1) for line in text.splitlines() if line]
    assert [name for name, _ in lines].count("FROM") == 2
    last = dict(lines)
    assert last["STOPSIGNAL"] == "SIGTERM"
    assert re.fullmatch(r"[1-9]\d+:[1-9]\d+", last["USER"])
    name, *arguments = json.loads(last["CMD"])
    assert name == "trioserve"
    config = parse(arguments, monkeypatch, tmp_path)
    assert config.host == "0.0.0.0"
    # Not the metrics' port, which `docker run --publish-all` would open to other machines.
    assert last["EXPOSE"].split() == [str(config.port)]
    assert str(config.metrics_bind) == "0.0.0.0:9100"
    options, _, check = last["HEALTHCHECK"].partition(" CMD ")
    seconds = {name: int(value) for name, value in re.findall(r"--([\w-]+)=(\d+)s", options)}
    assert seconds["start-period"] >= DEFAULTS.timeout_startup + MARGIN
    program, flag, code = json.loads(check)
    assert (program, flag) == ("python", "-c")
    compile(code, "HEALTHCHECK", "exec")
    assert "http://127.0.0.1:9100/livez" in code
    stop = re.search(r"docker stop --time (\d+)", section(GUIDE, "### A container"))
    assert stop is not None
    assert int(stop[1]) >= longest_stop_of_workers(config) + MARGIN


# The rest


def test_each_command_is_ours(monkeypatch, tmp_path):
    """Every command line of trioserve in the guide is one that it takes."""
    found = [one for one in commands() if one[0] == "trioserve"]
    assert len(found) >= 3
    for _, *arguments in found:
        parse(arguments, monkeypatch, tmp_path)


def test_haproxy_hears_of_it_in_the_drain_delay(monkeypatch, tmp_path):
    """It asks often enough to know before an instance refuses connections."""
    text = block("# /etc/haproxy/haproxy.cfg\n", "haproxy", GUIDE, "### HAProxy")
    checks = re.search(r"check inter (\d+)s fall (\d+)", text)
    assert checks is not None
    for _, *arguments in commands("### HAProxy"):
        config = parse(arguments, monkeypatch, tmp_path)
        assert config.drain_delay >= int(checks[1]) * int(checks[2]) + 2


def test_each_server_of_haproxy_has_its_command(monkeypatch, tmp_path):
    """The file's servers and their checks are the commands' addresses, none of which is there twice."""
    text = block("# /etc/haproxy/haproxy.cfg\n", "haproxy", GUIDE, "### HAProxy")
    servers = re.findall(r"^    server \w+ 127\.0\.0\.1:(\d+) .*check port (\d+)$", text, re.MULTILINE)
    configs = [parse(arguments, monkeypatch, tmp_path) for _, *arguments in commands("### HAProxy")]
    assert servers == [(str(one.port), str(one.metrics_bind).rpartition(":")[2]) for one in configs]
    ports = [port for pair in servers for port in pair]
    assert len(set(ports)) == len(ports)


def test_nginx_takes_out_no_instance_for_a_cut_request():
    """Else two POSTs that are cut at a restart leave no instance for ten seconds."""
    text = block("# /etc/nginx/conf.d/shop.conf\n", "nginx", GUIDE, "### nginx")
    servers = re.findall(r"^    server (127\.0\.0\.1:\d+)(.*);$", text, re.MULTILINE)
    assert [options for _, options in servers] == [" max_fails=0"] * 2


def test_proxies_set_the_request_id_themselves():
    """Wherever a proxy tells of its client, it also says whose request id counts: never the client's."""
    text = block("# /etc/nginx/conf.d/shop.conf\n", "nginx", GUIDE, "### nginx")
    passes = re.findall(r"location [^{]+\{.*?\n    \}", text, re.DOTALL)
    assert ["proxy_set_header X-Request-ID $request_id;" in one for one in passes] == [True, True]
    text = block("# /etc/haproxy/haproxy.cfg\n", "haproxy", GUIDE, "### HAProxy")
    assert "http-request set-header X-Request-ID " in text.partition("frontend web\n")[2].partition("\n\n")[0]


def test_proxies_close_idle_connections_first():
    """What a proxy keeps for longer than trioserve does is closed under its next request."""
    text = block("# /etc/haproxy/haproxy.cfg\n", "haproxy", GUIDE, "### HAProxy")
    kept = re.search(r"timeout http-keep-alive (\d+)s", text)
    assert kept is not None
    assert int(kept[1]) < DEFAULTS.timeout_keep_alive


def test_shell_examples_are_commands():
    """Each line of them can be taken apart."""
    for text in blocks("sh", GUIDE):
        assert shlex.split(text, comments=True)
