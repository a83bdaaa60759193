"""The shipped broker configuration with a real mosquitto: who gets in, and what each name may do."""

import json
import re
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from broker_rig import BASE, PATIENCE, SHIPPED, FleetBroker, Operator, reissue, wait_until
from modelagent.inputs import Reply
from modelagent.inputs.commands import Desk, Request, answer
from modelagent.inputs.config import Mqtt, Tls
from modelagent.inputs.mqtt import Session

pytestmark = [
    pytest.mark.broker,
    # paho leaves the socket of a failed handshake to the garbage collector.
    pytest.mark.filterwarnings("ignore:.*SSLSocket:pytest.PytestUnraisableExceptionWarning"),
]
HEARD = ("modelagent/+/status", "modelagent/+/event", "modelagent/+/reply")
Make = Callable[..., Session]


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[FleetBroker]:
    broker = FleetBroker(tmp_path, "box-17", "box-18", "operator", "viewer")
    broker.start()
    yield broker
    broker.kill()


@pytest.fixture
def done() -> list[str]:
    """The ids of the commands that were carried out."""
    return []


@pytest.fixture
def make(broker: FleetBroker, done: list[str]) -> Iterator[Make]:
    """Starts a session of `device` with the certificate of `name`."""
    sessions: list[Session] = []

    def submit(request: Request, reply: Reply) -> None:
        done.append(request.id)
        reply(answer(request.id, "done"))

    def view(_: Request) -> Mapping[str, Any]:
        return {"phase": "Idle"}

    def make(device: str = "box-17", *, tls: Mapping[str, Any] | None = None, **settings: Any) -> Session:
        session = Session(
            Mqtt(host="127.0.0.1", port=broker.port, tls=Tls(**(tls or broker.tls(device))), **settings),
            device=device,
            groups=("lab",),
            desk=Desk(submit=submit, view=view, now=lambda: 0.0),
            draw=lambda: 0.0,
        )
        sessions.append(session)
        session.start()
        return session

    yield make
    for session in sessions:
        session.stop()


@pytest.fixture
def operator(broker: FleetBroker) -> Iterator[Operator]:
    operator = Operator(broker.port, tls=broker.tls("operator"), topics=HEARD)
    yield operator
    operator.close()


def stays_out(session: Session) -> str:
    """Wait until it says what is wrong; it must not have been let in."""
    wait_until(lambda: session.state.problem != "not connected yet")
    assert not session.state.connected
    return session.state.problem


# ---- who gets in -------------------------------------------------------------------------------------------------


def test_a_device_with_its_certificate_is_commanded_and_answers(
    make: Make, operator: Operator, done: list[str]
) -> None:
    session = make()
    wait_until(lambda: session.state.connected)
    for topic in (f"{BASE}/cmd", "modelagent/group/lab/cmd", "modelagent/all/cmd"):
        operator.order(json.dumps({"id": topic, "verb": "hold"}).encode(), topic)
        assert operator.hear_json("/reply")["status"] == "done"
    assert len(done) == 3
    assert session.state.problem == ""


def test_mosquittos_own_tools_get_an_answer_through_tls(make: Make, broker: FleetBroker) -> None:
    session = make()
    wait_until(lambda: session.state.connected)
    said = subprocess.run(
        ["mosquitto_rr", "-V", "5", "-h", "127.0.0.1", "-p", str(broker.port), "-W", "10",
         "--cafile", "ca.pem", "--cert", "operator.pem", "--key", "operator.key",
         "-t", f"{BASE}/cmd", "-e", "modelagent/answers/operator/box-17", "-m", '{"id":"1","verb":"status"}'],
        cwd=broker.pki, check=True, capture_output=True, timeout=PATIENCE,
    )  # fmt: skip
    assert json.loads(said.stdout)["result"] == {"phase": "Idle"}


def test_a_broker_of_another_authority_is_not_believed(make: Make, broker: FleetBroker, tmp_path: Path) -> None:
    subprocess.run([SHIPPED / "make-certificates", tmp_path / "other", "x", "y"], check=True, capture_output=True)
    problem = stays_out(make(tls={**broker.tls("box-17"), "ca": tmp_path / "other" / "ca.pem"}))
    assert "certificate verify failed" in problem


def test_a_broker_of_another_name_is_not_believed(make: Make, broker: FleetBroker, tmp_path: Path) -> None:
    for name in ("broker.pem", "broker.key"):
        (broker.pki / name).unlink()
    subprocess.run(
        [SHIPPED / "make-certificates", broker.pki, "elsewhere.example", "box-17"], check=True, capture_output=True
    )
    broker.stop()
    broker.start()
    assert "not valid for '127.0.0.1'" in stays_out(make())


def test_a_broker_whose_certificate_has_expired_is_not_believed(make: Make, broker: FleetBroker) -> None:
    reissue(broker.pki, "broker", days=(-3, -1))
    broker.stop()
    broker.start()
    assert "certificate has expired" in stays_out(make())


@pytest.mark.parametrize("days", [(-3, -1), (1, 3)], ids=["expired", "not-yet-valid"])
def test_a_device_out_of_its_time_is_not_let_in_and_the_renewed_one_is(
    make: Make, broker: FleetBroker, days: tuple[int, int]
) -> None:
    reissue(broker.pki, "box-17", days=days)
    session = make()
    assert "certificate" in stays_out(session)
    reissue(broker.pki, "box-17", days=(-1, 30))
    wait_until(lambda: session.state.connected)  # read anew for each connection


def test_a_device_without_certificate_is_not_let_in(make: Make, broker: FleetBroker) -> None:
    assert "certificate" in stays_out(make(tls={"ca": broker.pki / "ca.pem"}))


def test_a_missing_file_is_named(make: Make, broker: FleetBroker) -> None:
    (broker.pki / "box-17.key").unlink()
    assert "No such file" in stays_out(make())


def test_nobody_gets_in_without_encryption(broker: FleetBroker) -> None:
    said = subprocess.run(
        ["mosquitto_pub", "-h", "127.0.0.1", "-p", str(broker.port), "-t", f"{BASE}/cmd", "-m", "x"],
        check=False,
        capture_output=True,
        timeout=PATIENCE,
    )
    assert said.returncode != 0


# ---- what each name may do ---------------------------------------------------------------------------------------

REFUSED = 135  # not authorised
MAY = {
    "box-18": ["modelagent/box-18/status", "modelagent/box-18/event", "modelagent/box-18/reply",
               "modelagent/box-18/result/digits", "modelagent/answers/operator/box-18"],
    "operator": ["modelagent/box-17/cmd", "modelagent/group/lab/cmd", "modelagent/all/cmd",
                 "modelagent/box-99/status"],
    "viewer": [],
}  # fmt: skip
MAY_NOT = {
    "box-18": ["modelagent/box-17/status", "modelagent/box-17/event", "modelagent/box-17/reply",
               "modelagent/box-17/result/digits",
               "modelagent/box-17/cmd", "modelagent/box-18/cmd", "modelagent/group/lab/cmd", "modelagent/all/cmd",
               "modelagent/answers/operator/box-17", "anything"],
    "operator": ["modelagent/box-17/event", "modelagent/box-17/reply", "modelagent/group/lab/deep/cmd"],
    "viewer": ["modelagent/box-17/cmd", "modelagent/all/cmd", "modelagent/viewer/cmd"],
}  # fmt: skip


@pytest.mark.parametrize("name", MAY)
def test_each_name_writes_only_where_it_may(broker: FleetBroker, name: str) -> None:
    somebody = Operator(broker.port, tls=broker.tls(name), topics=["nothing"])
    try:
        # 16: taken, and nobody is subscribed.
        assert {topic: somebody.try_to(topic) for topic in MAY[name]} == dict.fromkeys(MAY[name], 16)
        assert {topic: somebody.try_to(topic) for topic in MAY_NOT[name]} == dict.fromkeys(MAY_NOT[name], REFUSED)
    finally:
        somebody.close()


def test_each_name_reads_only_what_it_may(make: Make, broker: FleetBroker, operator: Operator) -> None:
    """They all ask for everything; what arrives is what the rules let through: of commands, those for all alone."""
    session = make()
    names = ("box-18", "viewer")
    readers = {name: Operator(broker.port, tls=broker.tls(name), topics=["modelagent/#"]) for name in names}
    wait_until(lambda: session.state.connected)
    session.report("event", {"id": "e-1"})
    operator.order(b'{"id":"1","verb":"hold"}')
    operator.order(b'{"id":"2","verb":"hold"}', "modelagent/group/lab/cmd")
    operator.order(b'{"id":"3","verb":"hold"}', "modelagent/box-18/cmd")
    operator.order(b'{"id":"4","verb":"hold"}', "modelagent/all/cmd")
    readers["box-18"].hear("all/cmd")  # the last one; what came before it has come
    readers["viewer"].hear("box-17/event")
    operator.hear_json("/event")
    for reader in readers.values():
        reader.close()
    heard = {name: {m.topic for m in list(readers[name].heard.queue)} for name in names}
    assert not {topic for topic in heard["box-18"] if topic.startswith("modelagent/box-17/")}
    assert not {topic for topic in heard["viewer"] if topic.endswith(("/reply", "box-17/cmd", "box-18/cmd"))}


def test_a_device_under_a_wrong_name_is_told_and_harms_nobody(
    make: Make, broker: FleetBroker, operator: Operator
) -> None:
    """box-18's certificate in a device that calls itself box-17."""
    session = make(tls=broker.tls("box-18"))
    session.report("event", {"id": "e-1"})
    wait_until(lambda: session.state.refused >= 2)
    assert re.fullmatch(
        r"the broker refused a message on modelagent/box-17/(status|event): Not authorized", session.state.problem
    )
    assert session.state.connected
    assert session.state.queued == 0
    assert operator.heard.empty()


def test_two_of_the_same_name_throw_each_other_out_ever_more_slowly(
    make: Make, broker: FleetBroker, tmp_path: Path
) -> None:
    first, second = make(), make()

    def connections() -> int:
        return len(re.findall(r"New client connected .* as modelagent-box-17", broker.log.read_text()))

    wait_until(lambda: "is another device called box-17?" in first.state.problem + second.state.problem)
    assert connections() <= 12
    first.stop()
    wait_until(lambda: second.state.connected)
    calm = connections()
    second.report("event", {"id": "calm"})
    wait_until(lambda: second.state.queued == 0)
    assert connections() == calm


# ---- a broker that dies ------------------------------------------------------------------------------------------


def test_events_wait_for_a_killed_broker_and_the_status_comes_back(
    make: Make, broker: FleetBroker, operator: Operator
) -> None:
    session = make(queue=500)
    session.set_status({"phase": "Idle"})
    wait_until(lambda: session.state.connected and session.state.queued == 0)
    broker.kill()
    wait_until(lambda: not session.state.connected)
    for n in range(200):
        session.report("event", {"id": str(n)})
    session.set_status({"phase": "Deferred"})
    broker.start()
    again = Operator(broker.port, tls=broker.tls("operator"), topics=HEARD)
    try:
        ids = [again.hear_json("/event")["id"] for _ in range(200)]
        assert ids == [str(n) for n in range(200)]
        late = Operator(broker.port, tls=broker.tls("viewer"), topics=HEARD)
        assert late.hear_json("/status")["phase"] == "Deferred"
        late.close()
    finally:
        again.close()


def test_commands_for_a_device_that_is_away_wait_and_a_killed_broker_keeps_what_it_wrote(
    make: Make, broker: FleetBroker, operator: Operator, done: list[str]
) -> None:
    session = make()
    wait_until(lambda: session.state.connected)
    session.stop()
    for n in range(30):
        operator.order(json.dumps({"id": str(n), "verb": "hold"}).encode())
    broker.stop()  # it writes its memory, as every autosave_interval
    broker.start()
    assert done == []
    make()
    wait_until(lambda: done == [str(n) for n in range(30)])
