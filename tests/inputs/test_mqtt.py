"""The broker session against a real mosquitto, started here on a free loopback port, and its own command line tools."""

import json
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion

from broker_rig import PATIENCE, Broker, Operator, wait_until
from modelagent.core.effects import Note
from modelagent.core.events import Instant
from modelagent.inputs import Reply, mqtt
from modelagent.inputs.commands import Desk, Request, answer
from modelagent.inputs.config import Mqtt
from modelagent.inputs.mqtt import MAX_COMMAND, Session
from modelagent.sinks.mqtt import BrokerSink

NOW = 1_700_000_000.0
BASE = "modelagent/box-17"


class Driver:
    """Answers as the updater would: an id is executed once, a repeat gets the recorded answer."""

    def __init__(self) -> None:
        self.done: list[Request] = []
        self.answers: dict[str, dict[str, Any]] = {}
        self.silent: list[tuple[Request, Reply]] | None = None

    def submit(self, request: Request, reply: Reply) -> None:
        if self.silent is not None:
            self.silent.append((request, reply))
            return
        if request.id in self.answers:
            reply({**self.answers[request.id], "duplicate": True})
            return
        self.done.append(request)
        self.answers[request.id] = answer(request.id, "done")
        reply(self.answers[request.id])

    def view(self, request: Request) -> Mapping[str, Any]:
        return {"size": "x" * 300_000} if request.argument == "all" else {"phase": "Idle"}


def make(broker_port: int, driver: Driver, **settings: Any) -> Session:
    desk = Desk(submit=driver.submit, view=driver.view, now=lambda: NOW)
    return Session(
        Mqtt(host="127.0.0.1", port=broker_port, **settings),
        device="box-17",
        groups=("lab",),
        desk=desk,
        draw=lambda: 0.0,
    )


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    if shutil.which("mosquitto") is None:
        pytest.skip("mosquitto is not installed (apt-get install mosquitto)")
    broker = Broker(tmp_path)
    broker.start()
    yield broker
    broker.kill()


@pytest.fixture
def driver() -> Driver:
    return Driver()


@pytest.fixture
def session(broker: Broker, driver: Driver) -> Iterator[Session]:
    session = make(broker.port, driver)
    session.start()
    wait_until(lambda: session.state.connected)
    yield session
    session.stop()


@pytest.fixture
def operator(broker: Broker) -> Iterator[Operator]:
    operator = Operator(broker.port)
    yield operator
    operator.close()


pytestmark = pytest.mark.broker


def test_a_command_is_answered_on_the_reply_topic(session: Session, driver: Driver, operator: Operator) -> None:
    operator.order(b'{"id":"1","verb":"pin","argument":"1.2.0"}')
    assert operator.hear_json("/reply") == {"id": "1", "status": "done", "reason": "", "device": "box-17"}
    assert driver.done == [Request("1", "pin", "mqtt", argument="1.2.0")]


def test_a_question_is_answered_on_the_response_topic_with_correlation(session: Session, operator: Operator) -> None:
    operator.order(b'{"id":"1","verb":"status"}', ResponseTopic="desk/7/in", CorrelationData=b"\x00\x01")
    message = operator.hear("desk/7/in")
    assert json.loads(message.payload)["result"] == {"phase": "Idle"}
    assert getattr(message.properties, "CorrelationData", None) == b"\x00\x01"


@pytest.mark.parametrize("topic", ["modelagent/box-18/cmd", "modelagent/box-18/status", "$SYS/x"])
def test_answers_never_go_where_they_could_command(session: Session, operator: Operator, topic: str) -> None:
    operator.order(b'{"id":"1","verb":"status"}', ResponseTopic=topic)
    assert operator.hear_json("/reply")["id"] == "1"


def test_group_and_all_topics_reach_the_device(session: Session, operator: Operator) -> None:
    operator.order(b'{"id":"1","verb":"hold"}', "modelagent/group/lab/cmd")
    operator.order(b'{"id":"2","verb":"hold"}', "modelagent/all/cmd")
    operator.order(b'{"id":"3","verb":"hold"}', "modelagent/group/other/cmd")
    operator.order(b'{"id":"4","verb":"hold"}')
    assert [operator.hear_json("/reply")["id"] for _ in range(3)] == ["1", "2", "4"]


@pytest.mark.parametrize(
    ("payload", "code"),
    [
        (b"", "malformed"),
        (b"hold!", "malformed"),
        (b'{"id":"1","verb":"format"}', "unknown-verb"),
        (b'{"id":"1","verb":"hold","expires":1}', "expired"),
        (b'{"id":"1","verb":"hold","argument":"' + b"x" * MAX_COMMAND + b'"}', "oversized"),
    ],
)
def test_what_is_no_command_is_refused_and_has_no_effect(
    session: Session, driver: Driver, operator: Operator, payload: bytes, code: str
) -> None:
    operator.order(payload)
    reply = operator.hear_json("/reply")
    assert (reply["status"], reply["code"]) == ("refused", code)
    assert driver.done == []


def test_every_delivery_is_answered_and_each_id_done_once(session: Session, driver: Driver, operator: Operator) -> None:
    for n in range(200):
        operator.client.publish(f"{BASE}/cmd", json.dumps({"id": str(n % 100), "verb": "hold"}), 1)
    replies = [operator.hear_json("/reply") for _ in range(200)]
    assert [request.id for request in driver.done] == [str(n) for n in range(100)]
    assert sum(reply.get("duplicate", False) for reply in replies) == 100


def test_a_command_without_answer_comes_again(
    broker: Broker, session: Session, driver: Driver, operator: Operator
) -> None:
    """The process dies between receiving and recording: the broker still has the command."""
    driver.silent = []
    operator.order(b'{"id":"1","verb":"hold"}')
    wait_until(lambda: bool(driver.silent))
    session.stop()
    successor = Driver()
    second = make(broker.port, successor)
    second.start()
    assert operator.hear_json("/reply")["id"] == "1"
    assert [request.id for request in successor.done] == ["1"]
    second.stop()


def test_a_retained_command_is_refused(broker: Broker, driver: Driver, operator: Operator) -> None:
    operator.client.publish(f"{BASE}/cmd", b'{"id":"1","verb":"hold"}', 1, retain=True).wait_for_publish(PATIENCE)
    session = make(broker.port, driver)
    session.start()
    assert operator.hear_json("/reply")["code"] == "retained"
    assert driver.done == []
    session.stop()


def test_a_huge_result_is_not_sent(session: Session, operator: Operator) -> None:
    operator.order(b'{"id":"1","verb":"status","argument":"all"}')
    assert operator.hear_json("/reply")["code"] == "oversized"


def test_status_is_retained_and_the_will_says_offline(broker: Broker, session: Session, operator: Operator) -> None:
    session.set_status({"phase": "Idle"})
    while operator.hear_json("/status").get("phase") != "Idle":
        pass
    late = Operator(broker.port)
    message = late.hear("/status")
    assert message.retain
    assert json.loads(message.payload)["phase"] == "Idle"
    late.close()
    # The connection ends without goodbye, as when the device loses power.
    client = paho.Client(CallbackAPIVersion.VERSION2, client_id="modelagent-box-17", protocol=paho.MQTTv5)
    client.connect("127.0.0.1", broker.port)  # the broker throws the older one out and sends its will
    client.loop_start()
    will = operator.hear_json("/status")
    assert (will["schema"], will["device"], will["groups"], will["online"]) == (1, "box-17", ["lab"], False)
    client.disconnect()
    client.loop_stop()
    assert operator.hear_json("/status")["online"] is True, "the session came back by itself"


def test_stopping_says_offline(session: Session, operator: Operator) -> None:
    assert operator.hear_json("/status")["online"] is True
    session.stop()
    assert operator.hear_json("/status")["online"] is False
    assert not session.state.connected


def test_events_reach_the_broker(session: Session, operator: Operator) -> None:
    BrokerSink(session, "e1").send("digits", Instant(NOW, 1.0, "boot"), [Note("activated", "1.1.0 runs")])
    assert operator.hear_json("/event")["id"] == "e1-1"


def test_a_broker_that_is_down_at_the_start_is_waited_for(tmp_path: Path, broker: Broker, driver: Driver) -> None:
    broker.kill()
    session = make(broker.port, driver)
    session.start()
    session.report("event", {"id": "early"})
    wait_until(lambda: "refused" in session.state.problem)
    broker.start()
    operator = Operator(broker.port)
    assert operator.hear_json("/event")["id"] == "early"
    assert session.state.problem == ""
    operator.close()
    session.stop()


def test_a_killed_broker_costs_no_report(broker: Broker, session: Session) -> None:
    broker.kill()
    wait_until(lambda: not session.state.connected)
    for n in range(50):
        session.report("event", {"id": str(n)})
    session.set_status({"phase": "Idle"})
    broker.start()
    operator = Operator(broker.port)
    ids = [operator.hear_json("/event")["id"] for _ in range(50)]
    assert ids == [str(n) for n in range(50)]
    wait_until(lambda: session.state.queued == 0)  # the broker's thanks come after the operator's copies
    operator.close()


def test_the_queue_is_bounded_and_the_oldest_event_goes(broker: Broker, driver: Driver) -> None:
    broker.kill()
    session = make(broker.port, driver, queue=10)
    session.start()
    for n in range(25):
        session.report("event", {"id": str(n)})
    assert (session.state.queued, session.state.dropped) == (10, 15)
    broker.start()
    operator = Operator(broker.port)
    assert operator.hear_json("/event")["id"] == "15"
    operator.close()
    session.stop()


def test_a_password_is_read_anew_and_a_wrong_one_is_said(tmp_path: Path, driver: Driver) -> None:
    passwords = tmp_path / "passwords"
    passwords.touch(mode=0o600)
    subprocess.run(["mosquitto_passwd", "-b", str(passwords), "box", "right"], check=True, capture_output=True)
    secret = tmp_path / "secret"
    secret.write_text("wrong\n")
    broker = Broker(tmp_path, "allow_anonymous false", f"password_file {passwords}")
    broker.start()
    session = make(broker.port, driver, username="box", password_file=secret)
    session.start()
    try:
        wait_until(lambda: "Not authorized" in session.state.problem)
        secret.write_text("right\n")
        wait_until(lambda: session.state.connected)
    finally:
        session.stop()
        broker.kill()


def old_broker(answer_to_five: bytes) -> tuple[socket.socket, threading.Thread, list[int]]:
    """A broker of before MQTT 5: `answer_to_five` to a CONNECT of level 5, a session for one of level 4."""
    listener = socket.create_server(("127.0.0.1", 0))
    levels: list[int] = []

    def serve() -> None:
        while 4 not in levels:
            sock, _ = listener.accept()
            with sock:
                packet = sock.recv(4096)
                levels.append(packet[packet.index(b"MQTT") + 4])
                sock.sendall(b"\x20\x02\x00\x00" if levels[-1] == 4 else answer_to_five)
                if levels[-1] == 4:
                    packet = sock.recv(4096)  # SUBSCRIBE with three topics
                    sock.sendall(b"\x90\x05" + packet[2:4] + b"\x01\x01\x01")
                    while sock.recv(4096):
                        pass

    thread = threading.Thread(target=serve)
    thread.start()
    return listener, thread, levels


OLD = {"speaks-3": b"\x20\x02\x00\x01", "speaks-5": b"\x20\x03\x00\x84\x00", "hangs-up": b""}


@pytest.mark.parametrize("reply", OLD.values(), ids=OLD)
def test_an_old_broker_is_spoken_to_in_3_1_1(driver: Driver, reply: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mqtt, "GOODBYE_S", 0.1)
    listener, thread, levels = old_broker(reply)
    with listener:
        session = make(listener.getsockname()[1], driver)
        session.start()
        wait_until(lambda: session.state.connected)
        session.stop()
        thread.join()
    assert levels == [5, 4]


NOISE = {"http": b"HTTP/1.1 400 Bad\r\n\r\n", "garbage": b"\x20\x7f" + b"\xff" * 127, "code": b"\x20\x02\x00\x99"}


@pytest.mark.parametrize("noise", NOISE.values(), ids=NOISE)
def test_what_is_no_broker_is_said_and_outlived(driver: Driver, noise: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mqtt, "CONNACK_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        session = make(listener.getsockname()[1], driver)
        session.start()
        for _ in range(2):
            sock, _ = listener.accept()
            sock.sendall(noise)
            wait_until(lambda: session.state.problem != "not connected yet")
            sock.close()
        assert not session.state.connected
        session.stop()


def test_mosquittos_own_tools_work_as_the_manual_shows(session: Session, broker: Broker) -> None:
    command = '{"id":"m1","verb":"status"}'
    where = ["-h", "127.0.0.1", "-p", str(broker.port)]
    done = subprocess.run(
        ["mosquitto_rr", *where, "-V", "5", "-t", f"{BASE}/cmd", "-e", "desk/in", "-m", command, "-W", "10"],
        check=True,
        capture_output=True,
        timeout=PATIENCE,
    )
    assert json.loads(done.stdout)["result"] == {"phase": "Idle"}


def test_a_round_trip_does_not_wait_for_delayed_acknowledgements(session: Session, operator: Operator) -> None:
    times = []
    for n in range(41):
        began = time.perf_counter()
        operator.client.publish(f"{BASE}/cmd", json.dumps({"id": str(n), "verb": "status"}), 1)
        assert operator.hear_json("/reply")["id"] == str(n)
        times.append(time.perf_counter() - began)
    assert sorted(times)[20] < 0.02, "Nagle against delayed acknowledgements costs 40 or 80 ms a round trip"


def test_a_rule_of_the_broker_is_said_and_does_not_block(tmp_path: Path, driver: Driver) -> None:
    rules = tmp_path / "acl"
    rules.write_text("topic read #\ntopic write modelagent/+/status\ntopic write modelagent/+/cmd\n")
    broker = Broker(tmp_path, "allow_anonymous true", f"acl_file {rules}")
    broker.start()
    session = make(broker.port, driver)
    session.start()
    session.report("event", {"id": "1"})
    session.report("event", {"id": "2"})
    try:
        wait_until(lambda: session.state.refused == 2)
        assert session.state.problem == f"the broker refused a message on {BASE}/event: Not authorized"
        assert session.state.connected
        assert session.state.queued == 0
    finally:
        session.stop()
        broker.kill()


def certificates(directory: Path) -> None:
    """An authority (ca), a broker (server) and a device (client) signed by it, and a stranger's authority (other)."""
    for name in ("ca", "other"):
        openssl(directory, "req", "-x509", "-days", "2", "-subj", f"/CN={name}", *new_key(name), "-out", f"{name}.pem")
    for name, subject in (("server", "127.0.0.1"), ("client", "box-17")):
        openssl(directory, "req", "-subj", f"/CN={subject}", *new_key(name), "-out", f"{name}.csr")
        (directory / "ext").write_text("subjectAltName=IP:127.0.0.1\n")
        openssl(
            directory, "x509", "-req", "-days", "2", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key",
            "-CAcreateserial", "-extfile", "ext", "-out", f"{name}.pem",
        )  # fmt: skip


def new_key(name: str) -> list[str]:
    return ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", f"{name}.key"]


def openssl(directory: Path, *arguments: str) -> None:
    subprocess.run(["openssl", *arguments], cwd=directory, check=True, capture_output=True)


# paho leaves the socket of a failed handshake to the garbage collector.
@pytest.mark.filterwarnings("ignore:.*SSLSocket:pytest.PytestUnraisableExceptionWarning")
def test_tls_with_certificates_on_both_sides(tmp_path: Path, driver: Driver) -> None:
    certificates(tmp_path)
    broker = Broker(
        tmp_path,
        f"cafile {tmp_path}/ca.pem",
        f"certfile {tmp_path}/server.pem",
        f"keyfile {tmp_path}/server.key",
        "require_certificate true",
        "use_identity_as_username true",
    )
    broker.start()
    pair = {"cert": tmp_path / "client.pem", "key": tmp_path / "client.key"}
    wrong: list[tuple[dict[str, Path], str]] = [
        ({"ca": tmp_path / "other.pem", **pair}, "certificate verify failed"),
        ({"ca": tmp_path / "missing.pem", **pair}, "No such file"),
        ({"ca": tmp_path / "ca.pem"}, ""),  # no certificate of ours: the broker hangs up, in words of its own
    ]
    try:
        for tls, words in wrong:
            session = make(broker.port, driver, tls=tls)
            session.start()
            wait_until(lambda: session.state.problem != "not connected yet")  # noqa: B023 - waited for in this turn
            assert words in session.state.problem
            assert not session.state.connected
            session.stop()
        session = make(broker.port, driver, tls={"ca": tmp_path / "ca.pem", **pair})
        session.start()
        wait_until(lambda: session.state.connected)
        session.stop()
    finally:
        broker.kill()


def test_a_broker_that_stands_still_holds_nobody_up(
    broker: Broker, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mqtt, "GOODBYE_S", 0.2)
    assert broker.process is not None
    broker.process.send_signal(signal.SIGSTOP)
    try:
        began = time.monotonic()
        for n in range(200):
            session.report("event", {"id": str(n)})
            session.set_status({"n": n})
        assert session.state.queued == 200
        session.stop()
        assert time.monotonic() - began < 5.0
    finally:
        broker.process.send_signal(signal.SIGCONT)


def test_the_connection_is_made_anew_when_the_will_would_tell_what_no_longer_runs(
    broker: Broker, session: Session, operator: Operator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mqtt, "RENEW_S", 0.0)
    session.set_status({"models": {"digits": {"running": {"version": "1.1.0", "digest": "a"}}}})
    wait_until(lambda: broker.log.read_text().count("as modelagent-box-17") == 2)
    wait_until(lambda: session.state.connected)
    session.set_status({"models": {"digits": {"running": {"version": "1.1.0", "digest": "a"}, "reason": "other"}}})
    wait_until(lambda: session.state.queued == 0)
    # A client of the same name throws it out: the broker publishes the will.
    subprocess.run(
        ["mosquitto_pub", "-V", "5", "-i", "modelagent-box-17", "-h", "127.0.0.1", "-p", str(broker.port),
         "-t", "x", "-m", "x"],
        check=True, capture_output=True, timeout=PATIENCE,
    )  # fmt: skip
    while (will := operator.hear_json("/status"))["online"]:
        pass
    assert will["models"]["digits"]["running"]["version"] == "1.1.0"
    assert broker.log.read_text().count("New client connected from 127.0.0.1") < 10


def test_a_full_disk_under_the_outbox_is_said_and_reports_still_arrive(
    tmp_path: Path, broker: Broker, driver: Driver, operator: Operator
) -> None:
    (tmp_path / "outbox").write_text("a file where the directory should be")
    desk = Desk(submit=driver.submit, view=driver.view, now=lambda: NOW)
    settings = Mqtt(host="127.0.0.1", port=broker.port)
    session = Session(settings, device="box-17", groups=(), desk=desk, draw=lambda: 0.0, keep=tmp_path / "outbox")
    session.start()
    session.report("event", {"id": "kept"})
    assert operator.hear_json("/event")["id"] == "kept"
    wait_until(lambda: "memory only" in session.state.problem)
    session.stop()


def test_events_of_an_earlier_process_are_sent_and_not_again(
    tmp_path: Path, broker: Broker, driver: Driver, operator: Operator
) -> None:
    desk = Desk(submit=driver.submit, view=driver.view, now=lambda: NOW)

    def life() -> Session:
        settings = Mqtt(host="127.0.0.1", port=broker.port)
        return Session(settings, device="box-17", groups=(), desk=desk, draw=lambda: 0.0, keep=tmp_path / "outbox")

    for n in range(5):
        life().report("event", {"id": str(n)})  # it never connects; a new object is all that a restart leaves
    second = life()
    second.start()
    assert [operator.hear_json("/event")["id"] for _ in range(5)] == ["0", "1", "2", "3", "4"]
    wait_until(lambda: second.state.queued == 0)
    second.stop()
    third = life()
    third.start()
    third.report("event", {"id": "new"})
    assert operator.hear_json("/event")["id"] == "new"
    third.stop()
