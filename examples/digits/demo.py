"""The main job, end to end, on real handwritten digits: seven acts with real processes and a real signed repository.

This file plays a publisher, a camera, a clerk who checks readings, an attacker and somebody who kills processes; the
device is the product as it is installed. Nothing is pretended: each act waits for what the device itself reports, and
fails loudly when that does not come.

    python examples/digits/demo.py              # from the root of the source tree; script/demo sets everything up
    python examples/digits/demo.py --keep DIR   # leaves all files in DIR

Everything lives in one directory that is removed at the end; Ctrl-C at any time ends every process.
"""

import argparse
import contextlib
import json
import os
import secrets
import shutil
import signal
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # `examples.digits` is imported from the source tree

from examples.digits import frames
from examples.digits.stage import (
    DEVICE,
    FPS,
    MODEL,
    Demo,
    DemoError,
    Screen,
    free_port,
    kind,
    start_broker,
    wait_for_port,
)

from modelagent.errors import AgentError


def set_the_stage(demo: Demo) -> None:
    """Frames, repository, broker, device: all by the product's own commands."""
    screen = demo.screen
    frames.write(demo.dir / "frames")
    demo.see("clean")
    where = ("--repo", str(demo.repo), "--keys", str(demo.keys))
    demo.cli("repo", "init", *where, "--model", MODEL)
    demo.publish("1.0.0")
    port, demo.broker_port = free_port(), free_port()
    demo.start("repository", sys.executable, "-m", "modelagent", "repo", "serve", "--repo", str(demo.repo),
               "--port", str(port))  # fmt: skip
    start_broker(demo)
    wait_for_port(port)
    wait_for_port(demo.broker_port)
    told = demo.cli(
        "setup", "--repo", f"http://127.0.0.1:{port}/", "--root", str(demo.keys / "root.json"), "--model", MODEL,
        "--device", DEVICE, "--frames", str(demo.camera), "--fps", str(FPS), "--prefix", str(demo.box),
        ok=(0, 1),
    )  # fmt: skip
    if not demo.config.exists():  # exit code 1 is also doctor's, whose warnings about this machine stop nothing
        raise DemoError(f"setup made no settings:\n{told}")
    (demo.box / "etc" / "conf.d").mkdir(exist_ok=True)
    (demo.box / "etc" / "conf.d" / "demo.toml").write_text(
        f"""# A demo has no patience: a real device checks every few hours and watches a new model for longer.
[policy]
check_interval = "500ms"
[limits]
back_off = "1s"
[mqtt]
host = "127.0.0.1"
port = {demo.broker_port}
[models.{MODEL}.source]
queue = 1000
[models.{MODEL}.results]
jsonl = true
[models.{MODEL}.shadow]
rate = 1.0
[models.{MODEL}.probation]
frames = 300
seconds = "4s"
thin = 0
error_p0 = 0.10
error_p1 = 0.25
""",
        encoding="utf-8",
    )
    screen.say(
        f"a repository on 127.0.0.1:{port}, a broker on 127.0.0.1:{demo.broker_port}, a device in its own directory"
    )
    demo.start("device", sys.executable, "-m", "modelagent", "--config", str(demo.config), "run")
    demo.until("the updater answers", demo.control.exists)
    demo.clerk.start()


def act_1(demo: Demo) -> None:
    """A first version runs."""
    demo.screen.act("Act 1", "1.0.0 runs, and the meter is read")
    demo.follow("1.0.0 is confirmed", kind("confirmed", "1.0.0"))
    demo.show_line()


def act_2(demo: Demo) -> None:
    """A better version is taken."""
    demo.screen.act("Act 2", "1.1.0 is better: found, fetched, verified, canaried, activated, watched, confirmed")
    demo.publish("1.1.0")
    demo.follow("1.1.0 is confirmed", kind("confirmed", "1.1.0"))
    demo.show_line()
    lost = {key: n for key, n in demo.clerk.outcomes.items() if key != "ok"}
    demo.screen.say(f"frames without a reading so far: {lost or 'none'}")
    if lost:
        raise DemoError(f"frames were lost at the switch: {lost}")


def act_3(demo: Demo) -> None:
    """A worse version is refused."""
    demo.screen.act("Act 3", "1.2.0 is worse: refused by the canary, on this device, with the numbers")
    demo.publish("1.2.0")
    demo.follow("1.2.0 is blocked", kind("blocked", "1.2.0"))


def act_4(demo: Demo) -> None:
    """Worse only on what the camera sees now; and an input change that is nobody's fault."""
    demo.screen.act("Act 4", "1.3.0 passes the canary, but not the camera that slips while it is on probation")
    demo.publish("1.3.0")
    demo.follow("1.3.0 is on probation", kind("probation", "1.3.0", "is on probation"))
    demo.see("a")
    demo.screen.say("the camera slips by one pixel: 1.1.0 was trained for that, 1.3.0 was not")
    demo.follow("1.1.0 runs again", kind("reverted"))
    demo.show_line()
    demo.screen.say("for contrast, 1.3.1, and dirt on the glass that hurts both versions alike")
    demo.see("clean")
    demo.publish("1.3.1")
    demo.follow("1.3.1 is on probation", kind("probation", "1.3.1", "is on probation"))
    demo.see("b")
    demo.follow("a drift alarm", kind("drift"))
    demo.show_line()
    demo.see("clean")
    demo.screen.say("the glass is wiped")
    demo.follow("1.3.1 is confirmed, not rolled back", kind("confirmed", "1.3.1"))


def act_5(demo: Demo) -> None:
    """Signed, and deadly."""
    demo.screen.act("Act 5", "1.4.0 and 1.5.0 are validly signed and kill the process that runs them")
    demo.publish("1.4.0")
    demo.follow("1.4.0 is blocked", kind("blocked", "1.4.0"))
    demo.publish("1.5.0")
    demo.follow("1.5.0 is on probation", kind("probation", "1.5.0", "is on probation"))
    before = dict(demo.clerk.outcomes)
    demo.see("trigger")
    demo.screen.say("sunlight on the dial: a saturated frame, on which 1.5.0 divides by zero")
    demo.follow("1.5.0 is blocked", kind("blocked", "1.5.0"))
    demo.follow("1.3.1 runs again", kind("reverted"))
    demo.show_line()
    lost = {key: n - before.get(key, 0) for key, n in demo.clerk.outcomes.items() if key != "ok"}
    if any(lost.values()):
        raise DemoError(f"frames were lost: {lost}")
    demo.screen.say("the frame that killed the worker was read by 1.3.1; no frame was lost")
    demo.see("clean")


def act_6(demo: Demo) -> None:
    """The repository turns against the device."""
    demo.screen.act("Act 6", "the repository is broken into: a tampered model, then old metadata played again")
    old = demo.dir / "metadata-of-yesterday"
    shutil.copytree(demo.repo / "metadata", old)
    good: dict[Path, bytes] = {}

    def tamper(files: list[Path]) -> None:
        for file in files:
            good[file] = file.read_bytes()
            file.write_bytes(good[file][:-100] + bytes(100))

    demo.publish("1.6.0", tamper)
    demo.screen.say("somebody changed 100 bytes of the model, and of the deltas to it, on the server")
    demo.follow("the tampered model is refused", demo.refused("tampered-file"))
    new = demo.dir / "metadata-of-today"
    (demo.repo / "metadata").rename(new)
    shutil.copytree(old, demo.repo / "metadata")
    demo.screen.say("yesterday's signed metadata is served again")
    demo.follow("the replay is refused", demo.refused("rollback-attack"))
    shutil.rmtree(demo.repo / "metadata")
    for file, data in good.items():
        file.write_bytes(data)
    new.rename(demo.repo / "metadata")
    demo.screen.say("the server is put right; 1.6.0 is what it was signed to be")


def act_7(demo: Demo) -> None:
    """Killed in the middle; the last word by MQTT."""
    demo.screen.act("Act 7", "the updater is killed in the middle of the update, and finishes it")
    victims = 0
    for phase in ("Canary", "Probation"):
        pid = kill_in(demo, phase)
        victims += pid is not None
    demo.follow("1.6.0 is confirmed", kind("confirmed", "1.6.0"))
    if not victims:
        raise DemoError("the updater was not caught in the middle of anything")
    demo.show_line()
    command = {"id": f"demo-{secrets.token_hex(4)}", "verb": "rollback", "model": MODEL, "argument": "by the operator"}
    demo.screen.command(f"mosquitto_pub -t modelagent/{DEVICE}/cmd -m '{json.dumps(command)}'")
    # A broker that knows only the older protocol is found out after ten seconds, at each start of the updater.
    demo.until("the device is connected to the broker", lambda: bool(demo.status()["broker"]))
    reply = over_mqtt(demo.broker_port, command)
    demo.screen.device(f"reply over MQTT: {reply['status']}: {reply['reason']}")
    demo.follow("1.3.1 runs again", kind("reverted"))


def kill_in(demo: Demo, phase: str) -> int | None:
    """SIGKILL the updater when it is in that phase; None when the update was over before it could be caught."""

    def where() -> str:
        with contextlib.suppress(AgentError, KeyError):
            told = demo.status()
            return "Over" if told["phase"] == "Idle" and told["runs"] == "1.6.0" else str(told["phase"])
        return ""

    found = ""

    def caught() -> bool:
        nonlocal found
        found = where()
        return found in {phase, "Over"}

    demo.until(f"the updater is in {phase}", caught)
    if found == "Over":
        return None
    pid = int((demo.box / "run" / "updater.lock").read_text())
    os.kill(pid, signal.SIGKILL)
    demo.screen.say(f"SIGKILL to the updater (pid {pid}) in phase {phase}")
    demo.until("the updater is up again", lambda: bool(where()))
    return pid


def over_mqtt(port: int, command: dict[str, Any]) -> dict[str, Any]:
    """Send one command as a fleet tool does, and wait for its answer."""
    import paho.mqtt.client as mqtt  # noqa: PLC0415 - only here
    from paho.mqtt.enums import CallbackAPIVersion  # noqa: PLC0415 - only here

    answers: list[dict[str, Any]] = []
    arrived, subscribed = threading.Event(), threading.Event()
    client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id=f"demo-{secrets.token_hex(4)}")

    def take(_client: object, _data: object, message: mqtt.MQTTMessage) -> None:
        document = json.loads(message.payload)
        if document.get("id") == command["id"]:
            answers.append(document)
            arrived.set()

    client.on_message = take
    client.on_subscribe = lambda *_: subscribed.set()
    client.connect("127.0.0.1", port)
    client.loop_start()
    try:
        client.subscribe(f"modelagent/{DEVICE}/reply", qos=1)
        if not subscribed.wait(10):
            raise DemoError("the broker does not answer")
        client.publish(f"modelagent/{DEVICE}/cmd", json.dumps(command), qos=1)
        if not arrived.wait(20):
            raise DemoError("no reply over MQTT within 20 s")
    finally:
        client.disconnect()
        client.loop_stop()
    return answers[0]


def curtain(demo: Demo) -> None:
    """What runs, and why."""
    demo.screen.act("Last", "what runs, and why")
    demo.screen.command("modelagent status")
    demo.screen.raw(demo.cli("status", show=False, ok=(0, 1)))
    demo.screen.command("modelagent history --lines 12")
    demo.screen.raw(demo.cli("history", "--lines", "12", show=False))
    demo.clerk.end()
    twice = [frame for frame, count in demo.clerk.ids.items() if count != 1]
    total = len(demo.clerk.ids)
    if twice:
        raise DemoError(f"{len(twice)} frames have more than one result, for instance {twice[:3]}")
    lost = sum(n for key, n in demo.clerk.outcomes.items() if key != "ok")
    demo.screen.say(f"{total} frames in all acts, each with exactly one result; {lost} of them without a reading")


def play(directory: Path, screen: Screen) -> int:
    """All acts; 0 when each went as it should."""
    demo = Demo(directory, screen)
    try:
        set_the_stage(demo)
        for act in (act_1, act_2, act_3, act_4, act_5, act_6, act_7, curtain):
            act(demo)
    except DemoError as error:
        print(f"\nThe demo did not go as it should: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nended by Ctrl-C", file=sys.stderr)
        return 130
    finally:
        demo.end()
    screen.say("all acts went as they should; every process has ended")
    return 0


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description="Play the main job on real handwritten digits.")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="use DIR (must not exist) and leave it there")
    keep: Path | None = parser.parse_args().keep
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    screen = Screen()
    if keep is not None:
        keep.mkdir(parents=True)
        return play(keep.resolve(), screen)
    with tempfile.TemporaryDirectory(prefix="modelagent-demo-") as directory:
        return play(Path(directory).resolve(), screen)


if __name__ == "__main__":
    sys.exit(main())
