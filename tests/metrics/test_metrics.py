"""Metrics: a whole page from real records, what is missing left out, and a real Prometheus at the end."""

import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from broker_rig import free_port
from modelagent.core.state import Phase
from modelagent.errors import DeviceError, SourceError, UsageError
from modelagent.inference.counters import Counts
from modelagent.inputs.config import parse
from modelagent.metrics.collector import expose
from modelagent.metrics.reading import Reader
from modelagent.metrics.server import MetricsServer

ROOT = Path(__file__).parents[2]
DIGEST = "ab" * 32


def settings(root: Path, port: int = 0) -> Any:
    paths = {name: str(root / name) for name in ("state_dir", "inference_dir", "run_dir", "inference_run_dir")}
    document = {
        "device": {"id": "box-17"},
        "paths": paths,
        "models": {"digits": {}},
        "metrics": {"listen": f"127.0.0.1:{port}"},
    }
    return parse(document, Path("x.toml"))


def health(**more: Any) -> dict[str, Any]:
    counts = Counts()
    for number in range(10):
        counts.decided(number % 3, 0.9, 120.0)
    counts.dropped = 4
    counts.faults["crash"] = 1
    counts.labels["right"] = 2
    return {
        "schema": 1,
        "model": "digits",
        "epoch": "e",
        "seq": 5,
        "mono": time.monotonic(),
        "pid": os.getpid(),
        "running": {"digest": DIGEST, "version": "1.1.0", "worker_pid": os.getpid(), "since_mono": 1.0},
        "versions": {DIGEST: "1.1.0"},
        "idle": "",
        "counters": {DIGEST: counts.report()},
        "shadow": {"digest": "cd" * 32, "frames": 5, "both_right": 1, "only_new": 1, "only_old": 0, "both_wrong": 0},
        "source": {"kind": "http", "queue": 3, "capacity": 64, "received": 14, "dropped": 4, "also": {"unreadable": 2}},
        "results": {"written": 14, "lost": 1},
        "broker": {"connected": True, "waiting": 7, "lost": 0, "problem": ""},
        "samples": {"sent": 4, "lost": 1, "refused": 0, "over_budget": 0, "waiting": 2, "problem": ""},
        "rules": {"scrap": {"met": True, "fired": 3, "webhook": {"done": 2, "failed": 1, "lost": 0}}},
        "swaps": {"count": 2, "last": {"gap_s": 0.03, "overlap": True, "peak_kb": 90_000}},
        "worker": {"rss_kb": 50_000},
        **more,
    }


STATUS = {
    "repository": {"budget_left": 5e6, "clock": {"believed": True}},
    "broker": {"connected": True, "queued": 1},
    "models": {
        "digits": {
            "phase": Phase.PROBATION.value,
            "blocks": [{}],
            "alarms": [],
            "slots": [{}, {}],
            "evidence": {"frames": 100, "faults": 0},
            "check": {"last_ok": 1.7e9},
            "waiting": "",
        }
    },
}
GATES = {gate: {"answer": "allow", "reason": "", "gate": gate} for gate in ("check", "download", "canary", "activate")}
EXPLAINED = {"models": {"digits": GATES}}  # as the updater answers


def answering(_path: Path, question: Mapping[str, Any], _timeout: float) -> Mapping[str, Any]:
    return {"id": question["id"], "status": "done", "result": STATUS if question["verb"] == "status" else EXPLAINED}


def silent(_path: Path, _question: Mapping[str, Any], _timeout: float) -> Mapping[str, Any]:
    raise SourceError("the updater does not answer")


def write(root: Path, document: object) -> None:
    path = root / "inference_run_dir" / "digits" / "health.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(document if isinstance(document, str) else json.dumps(document))


def samples(page: bytes) -> list[Sample]:
    return [sample for family in text_string_to_metric_families(page.decode()) for sample in family.samples]


def value(page: bytes, name: str, **labels: str) -> float | None:
    for sample in samples(page):
        if sample.name == name and labels.items() <= sample.labels.items():
            return sample.value
    return None


def test_a_whole_page(tmp_path: Path) -> None:
    write(tmp_path, health())
    page = expose(Reader(settings(tmp_path), question=answering).read())
    own = {"model": "digits", "version": "1.1.0", "digest": DIGEST[:12]}
    assert value(page, "modelagent_info", device="box-17") == 1
    assert value(page, "modelagent_ready") == 1
    assert value(page, "modelagent_frames_total", **own, outcome="done") == 10
    assert value(page, "modelagent_frames_total", **own, outcome="dropped") == 4
    assert value(page, "modelagent_class_total", **own, **{"class": "0"}) == 4
    assert value(page, "modelagent_faults_total", **own, code="crash") == 1
    assert value(page, "modelagent_latency_seconds_count", **own) == 10
    assert value(page, "modelagent_latency_seconds_sum", **own) == pytest.approx(0.0012)
    assert value(page, "modelagent_latency_seconds_bucket", **own, le="0.0001") == 0
    assert value(page, "modelagent_latency_seconds_bucket", **own, le="0.0002") == 10
    assert value(page, "modelagent_source_events_total", event="unreadable") == 2
    assert value(page, "modelagent_samples_total", model="digits", outcome="sent") == 4
    assert value(page, "modelagent_rule_actions_total", rule="scrap", action="webhook", outcome="failed") == 1
    assert value(page, "modelagent_swap_peak_bytes", model="digits") == 90_000 * 1024
    assert value(page, "modelagent_gate", gate="canary", answer="allow") == 1
    assert value(page, "modelagent_phase", phase=Phase.PROBATION.value) == 1
    assert (value(page, "modelagent_process_resident_bytes", process="inference") or 0) > 1e6
    assert value(page, "modelagent_download_budget_left_bytes") == 5e6


@pytest.mark.parametrize(
    "document",
    [
        "",
        "nonsense",
        "[]",
        "{}",
        '{"mono": "x"}',
        json.dumps(health(counters=5, source=[], results=None, rules="x", swaps=[1], shadow=3)),
        json.dumps(health(counters={DIGEST: {"latency_us": {"bounds": [1], "counts": ["x", 1]}, "faults": 7}})),
        json.dumps(health(running=None)),
        json.dumps(health(pid=True)),
    ],
)
def test_what_is_damaged_is_left_out_and_the_page_is_whole(tmp_path: Path, document: str) -> None:
    write(tmp_path, document)
    page = expose(Reader(settings(tmp_path), question=silent).read())
    assert value(page, "modelagent_updater_up") == 0
    assert value(page, "modelagent_ready") == 0
    assert value(page, "modelagent_inference_up", model="digits") in {0, 1}


def test_silence_is_told_apart(tmp_path: Path) -> None:
    reader = Reader(settings(tmp_path), question=answering)
    assert reader.read().ready == "digits: inference has written no health file"
    for more, why in (
        ({"mono": time.monotonic() - 60}, "no sign of life for 60 s"),
        ({"mono": time.monotonic() + 60}, "earlier boot"),
        ({"running": None, "idle": "no model yet"}, "no model yet"),
    ):
        write(tmp_path, health(**more))
        assert why in Reader(settings(tmp_path), question=answering).read().ready
    write(tmp_path, health())
    assert "updater: " in Reader(settings(tmp_path), question=silent).read().ready


def test_many_askers_cost_one_look_a_second(tmp_path: Path) -> None:
    write(tmp_path, health())
    asked: list[str] = []
    now = [100.0]

    def counting(path: Path, question: Mapping[str, Any], timeout: float) -> Mapping[str, Any]:
        asked.append(str(question["verb"]))
        return answering(path, question, timeout)

    reader = Reader(settings(tmp_path), question=counting, clock=lambda: now[0])
    for _ in range(10):
        reader.read()
    assert asked == ["status", "explain"]
    now[0] += 1.5
    reader.read()
    assert asked == ["status", "explain"] * 2


@pytest.fixture
def server(tmp_path: Path) -> Iterator[MetricsServer]:
    one = MetricsServer("127.0.0.1:0", Reader(settings(tmp_path), question=answering))
    one.start()
    yield one
    one.close()


def get(url: str) -> tuple[int, bytes]:
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:  # noqa: S310 - our own loopback server
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


def test_the_three_pages(tmp_path: Path, server: MetricsServer) -> None:
    base = f"http://{server.address}"
    assert get(f"{base}/healthz")[0] == 200
    status, body = get(f"{base}/readyz")
    assert (status, json.loads(body)["reason"]) == (503, "digits: inference has written no health file")
    write(tmp_path, health())
    deadline = time.monotonic() + 10
    while get(f"{base}/readyz")[0] != 200:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert b"modelagent_frames_total" in get(f"{base}/metrics?x=1")[1]
    assert get(f"{base}/etc/passwd")[0] == 404


def test_a_port_in_use_and_a_bad_address_are_named(tmp_path: Path, server: MetricsServer) -> None:
    with pytest.raises(DeviceError, match="cannot listen"):
        MetricsServer(server.address, Reader(settings(tmp_path)))
    with pytest.raises(UsageError, match="address:port"):
        MetricsServer("nowhere", Reader(settings(tmp_path)))


def test_every_number_that_alerts_and_dashboard_ask_for_is_on_the_page(tmp_path: Path) -> None:
    write(tmp_path, health())
    page = expose(Reader(settings(tmp_path), question=answering).read())
    known = {sample.name for sample in samples(page)}
    for file in ("prometheus/modelagent.rules.yml", "grafana/modelagent.json"):
        text = (ROOT / "deploy" / file).read_text()
        for name in set(re.findall(r"\bmodelagent_[a-z_]+", text)):
            assert name in known, f"{file} asks for {name}"
    json.loads((ROOT / "deploy" / "grafana" / "modelagent.json").read_text())


def test_the_phases_that_alerts_and_dashboard_ask_for_are_those_of_the_machine() -> None:
    for file in ("prometheus/modelagent.rules.yml", "grafana/modelagent.json"):
        asked = re.findall(r'phase=\\*"(\w+)', (ROOT / "deploy" / file).read_text())
        assert set(asked) <= {phase.value for phase in Phase}, file


@pytest.mark.process
def test_promtool_accepts_the_alerts() -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed (Debian's package prometheus)")
    folder = ROOT / "deploy" / "prometheus"
    for arguments in (
        ["check", "rules", "modelagent.rules.yml"],
        ["test", "rules", "modelagent.test.yml"],
        ["check", "config", "prometheus.yml"],
    ):
        done = subprocess.run([promtool, *arguments], cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.process
def test_a_real_prometheus_scrapes_the_real_process(tmp_path: Path) -> None:
    prometheus = shutil.which("prometheus")
    if prometheus is None:
        pytest.skip("prometheus is not installed (Debian's package prometheus)")
    port, other = free_port(), free_port()
    write(tmp_path, health())
    lines = ['[device]\nid = "box-17"', "[paths]"]
    lines += [
        f'{name} = "{tmp_path / name}"' for name in ("state_dir", "inference_dir", "run_dir", "inference_run_dir")
    ]
    lines += ["[models.digits]", "[metrics]", f'listen = "127.0.0.1:{port}"']
    (tmp_path / "modelagent.toml").write_text("\n".join(lines) + "\n")
    config = (ROOT / "deploy" / "prometheus" / "prometheus.yml").read_text()
    config = config.replace("15s", "1s").replace("9470", str(port))
    config = config.replace("modelagent.rules.yml", str(ROOT / "deploy" / "prometheus" / "modelagent.rules.yml"))
    (tmp_path / "prometheus.yml").write_text(config)
    stop = threading.Event()

    def live() -> None:
        while not stop.wait(0.5):
            write(tmp_path, health())

    writer = threading.Thread(target=live)
    writer.start()
    agent = subprocess.Popen(
        [sys.executable, "-m", "modelagent", "--config", str(tmp_path / "modelagent.toml"), "run", "metrics"],
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
    )
    scraper = subprocess.Popen(
        [
            prometheus,
            f"--config.file={tmp_path / 'prometheus.yml'}",
            f"--storage.tsdb.path={tmp_path / 'tsdb'}",
            f"--web.listen-address=127.0.0.1:{other}",
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        query = f"http://127.0.0.1:{other}/api/v1/query?query=modelagent_frames_total%7Boutcome%3D%22done%22%7D"
        deadline = time.monotonic() + 40
        found: list[Any] = []
        while not found and time.monotonic() < deadline:
            time.sleep(0.3)
            try:
                found = json.loads(get(query)[1])["data"]["result"]
            except (OSError, ValueError, KeyError):
                continue
        assert found, "nothing was scraped"
        assert found[0]["metric"]["model"] == "digits"
        assert found[0]["value"][1] == "10"
        agent.terminate()
        assert agent.wait(10) == 0
    finally:
        stop.set()
        writer.join()
        for process in (agent, scraper):
            process.kill()
            process.wait()
