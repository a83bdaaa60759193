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
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent.parent))  # `examples.digits` is imported from the source tree

from examples.digits import frames  # noqa: E402 - the path comes first

from modelagent.errors import AgentError  # noqa: E402
from modelagent.inputs.control import ask  # noqa: E402

MODEL, DEVICE, FPS = "digits", "meter-17", 100
RELEASES = json.loads((HERE / "releases.json").read_text(encoding="utf-8"))
STEP_S = 45.0  # the longest that one expected thing may take on a slow, busy machine


class DemoError(Exception):
    """Something that should have happened did not."""


class Screen:
    """What the spectator sees: acts, what the device says, and how the line runs."""

    def __init__(self) -> None:
        self.began = time.monotonic()
        self.colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ

    def act(self, number: str, title: str) -> None:
        """A heading."""
        self._out(f"\n== {number}: {title}", "1;36")

    def say(self, text: str) -> None:
        """What the demo does."""
        self._out(f"{self._time()}  {text}")

    def device(self, text: str) -> None:
        """What the device reports."""
        self._out(f"{self._time()}    device: {text}", "32")

    def command(self, text: str) -> None:
        """A command line, as a user types it."""
        self._out(f"{self._time()}  $ {text}", "33")

    def raw(self, text: str) -> None:
        """A command's output."""
        self._out("\n".join(f"        {line}" for line in text.splitlines()))

    def _time(self) -> str:
        return f"{time.monotonic() - self.began:5.1f}s"

    def _out(self, text: str, colour: str = "") -> None:
        print(f"\033[{colour}m{text}\033[0m" if colour and self.colour else text, flush=True)


class Clerk(threading.Thread):
    """Checks every second reading against the real dial, half a second late, and sends the truth to the device.

    Reads the results file as any program on the device could, and keeps the tally that the acts print.
    """

    def __init__(self, results: Path, control: Path) -> None:
        super().__init__(name="clerk", daemon=True)
        self._results = results
        self._control = control
        _, self._truth = frames.frames("clean")  # the same digits in the same order in every set
        self._ended = threading.Event()
        self.rows: list[tuple[float, str, bool | None]] = []  # arrival, version, right
        self.ids: dict[str, int] = {}  # frame -> how often it has a result
        self.outcomes: dict[str, int] = {}

    def run(self) -> None:
        """Follow the file until `end`."""
        position, rest = 0, b""
        while not self._ended.wait(0.25):
            try:
                with self._results.open("rb") as file:
                    file.seek(position)
                    data = file.read()
            except FileNotFoundError:
                continue
            position += len(data)
            *lines, rest = (rest + data).split(b"\n")
            self._check([json.loads(line) for line in lines])

    def end(self) -> None:
        """Stop checking."""
        self._ended.set()
        self.join()

    def _check(self, rows: list[dict[str, Any]]) -> None:
        labels = []
        for row in rows:
            index = int(row["frame"].split(":")[1])
            right = row["prediction"] == int(self._truth[index]) if row["outcome"] == "ok" else None
            self.rows.append((time.monotonic(), row["version"] or "", right))
            self.ids[row["frame"]] = self.ids.get(row["frame"], 0) + 1
            self.outcomes[row["outcome"]] = self.outcomes.get(row["outcome"], 0) + 1
            if right is not None and len(self.rows) % 2 == 0:
                labels.append({"id": row["id"], "label": int(self._truth[index])})
        if labels:
            with contextlib.suppress(AgentError):  # the updater is down in one act: these truths are lost, nothing else
                request = {"id": f"clerk-{secrets.token_hex(8)}", "verb": "label", "model": MODEL, "labels": labels}
                ask(self._control, request, timeout=5)

    def line(self, seconds: float) -> str:
        """The last seconds in words."""
        since = time.monotonic() - seconds
        recent = [row for row in self.rows if row[0] >= since]
        judged = [row[2] for row in recent if row[2] is not None]
        right = f"{100 * sum(judged) / len(judged):.1f} % read right" if judged else "nothing read"
        versions = ", ".join(dict.fromkeys(row[1] for row in recent))
        return f"{len(recent) / seconds:.0f} readings/s by {versions or 'nobody'}, {right}"


class Demo:
    """One performance."""

    def __init__(self, directory: Path, screen: Screen) -> None:
        self.dir = directory
        self.screen = screen
        self.box = directory / "box"
        self.repo = directory / "repo"
        self.keys = directory / "keys"
        self.camera = directory / "camera.npz"
        self.config = self.box / "etc" / "modelagent.toml"
        self.control = self.box / "run" / "control.sock"
        self.processes: list[subprocess.Popen[bytes]] = []
        self.broker_port = 0
        self.seen = 0
        self.clerk = Clerk(self.box / "inference" / MODEL / "results.jsonl", self.control)

    # -- the stage ---------------------------------------------------------------------------------------------

    def cli(self, *words: str, show: bool = True, ok: tuple[int, ...] = (0,)) -> str:
        """Run one command as a user would; returns what it printed."""
        if show:
            shown = [word.replace(str(self.dir), "DEMO") for word in words]
            self.screen.command(f"modelagent {' '.join(shown)}")
        done = subprocess.run(
            [sys.executable, "-m", "modelagent", *words],
            env={**os.environ, "MODELAGENT_CONFIG": str(self.config), "COLUMNS": "118"},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode not in ok:
            raise DemoError(f"modelagent {' '.join(words)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
        return done.stdout

    def start(self, name: str, *argv: str) -> subprocess.Popen[bytes]:
        """Start a process whose output goes to DIR/<name>.log."""
        with (self.dir / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "MODELAGENT_PARENT": str(os.getpid())} if name == "device" else None,
                start_new_session=True,
            )
        self.processes.append(process)
        return process

    def end(self) -> None:
        """End every process, whatever state it is in."""
        if self.clerk.is_alive():
            self.clerk.end()
        for process in reversed(self.processes):
            if process.poll() is None:
                process.terminate()
        for process in reversed(self.processes):
            try:
                process.wait(timeout=6)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    def status(self) -> dict[str, Any]:
        """What the updater says of the model, with what inference's own record says runs."""
        request = {"id": secrets.token_hex(8), "verb": "status", "model": MODEL}
        answer = ask(self.control, request, timeout=5)
        told: dict[str, Any] = answer["result"]["models"][MODEL]
        told["broker"] = (answer["result"]["broker"] or {}).get("connected", False)
        try:
            health = json.loads((self.box / "inference-run" / MODEL / "health.json").read_bytes())
        except (OSError, ValueError):
            health = {}
        told["runs"] = (health.get("running") or {}).get("version", "nothing")
        told["health"] = health
        return told

    def news(self) -> Iterator[dict[str, Any]]:
        """History lines that have not been shown yet."""
        try:
            lines = (self.box / "state" / "history.jsonl").read_bytes().split(b"\n")[:-1]
        except FileNotFoundError:
            return
        for line in lines[self.seen :]:
            self.seen += 1
            yield json.loads(line)

    def follow(self, what: str, wanted: Callable[[dict[str, Any]], bool], limit: float = STEP_S) -> dict[str, Any]:
        """Show the device's history until a line is what was wanted."""
        end = time.monotonic() + limit
        while time.monotonic() < end:
            for line in self.news():
                if line["kind"] not in {
                    "offered",
                    "acquiring",
                    "acquired",
                    "staged",
                    "settings",
                    "activated",
                    "reverting",
                }:
                    text = (
                        line["text"] if line["text"].startswith("1.") else f"{line['version']} {line['text']}".strip()
                    )
                    self.screen.device(f"{line['kind']}: {text}")
                if wanted(line):
                    return line
            self.check_processes()
            time.sleep(0.05)
        raise DemoError(f"waited {limit:.0f} s for: {what}\n{self.tail('device')}")

    def until(self, what: str, wanted: Callable[[], bool], limit: float = STEP_S) -> None:
        """Wait for something that is not in the history."""
        end = time.monotonic() + limit
        while not wanted():
            if time.monotonic() > end:
                raise DemoError(f"waited {limit:.0f} s for: {what}\n{self.tail('device')}")
            self.check_processes()
            time.sleep(0.05)

    def check_processes(self) -> None:
        """A process of the stage that has ended ends the demo."""
        for process in self.processes:
            if process.poll() is not None:
                raise DemoError(f"{process.args!r} ended with {process.returncode}\n{self.tail('device')}")

    def tail(self, name: str) -> str:
        """The end of a log."""
        with contextlib.suppress(OSError):
            return "\n".join((self.dir / f"{name}.log").read_text(errors="replace").splitlines()[-25:])
        return ""

    # -- parts -------------------------------------------------------------------------------------------------

    def see(self, name: str) -> None:
        """Change what the camera sees: one of the frame sets, in one rename."""
        prepared = self.camera.with_name(".camera.npz")
        shutil.copyfile(self.dir / "frames" / f"frames_{name}.npz", prepared)
        prepared.replace(self.camera)

    def publish(self, version: str, meddle: Callable[[list[Path]], None] = lambda _: None) -> None:
        """Publish a release of releases.json on the stable channel.

        `meddle` gets the release's files in the repository (the model and the deltas to it) before any device hears.
        """
        release = next(r for r in RELEASES["releases"] if r["version"] == version)
        before = {*(self.repo / "files").iterdir()}
        contract = self.dir / "contract.json"
        keys = ("inputs", "outputs", "preprocess", "postprocess", "limits", "labels")
        contract.write_text(json.dumps({key: RELEASES[key] for key in keys}), encoding="utf-8")
        where = ("--repo", str(self.repo), "--keys", str(self.keys))
        self.cli(
            "repo", "add", *where, "--model", MODEL, "--version", version,
            "--canary", str(HERE / "canary.npz"), "--warmup", str(HERE / "warmup.npz"),
            "--margin", "0.05", "--floor-accuracy", "0.7", "--manifest", str(contract),
            str(HERE / release["file"]),
            show=False,
        )  # fmt: skip
        meddle(sorted({*(self.repo / "files").iterdir()} - before))
        self.cli("repo", "channel", *where, MODEL, "stable", version, show=False)
        self.screen.say(f"published {version}: {release['description']}")

    def refused(self, digest_or_code: str) -> Callable[[dict[str, Any]], bool]:
        """A line that names the attack."""
        return lambda line: (line.get("evidence") or {}).get("code") == digest_or_code

    def show_line(self, seconds: float = 2.0) -> None:
        """Let the line run, and say how."""
        time.sleep(seconds)
        self.screen.say(self.clerk.line(seconds))


def kind(word: str, version: str = "", text: str = "") -> Callable[[Mapping[str, Any]], bool]:
    """Matches a history line."""
    return lambda line: line["kind"] == word and (not version or line["version"] == version) and text in line["text"]


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


def free_port() -> int:
    """A port on loopback that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for_port(port: int, limit: float = 20.0) -> None:
    """Wait until somebody listens."""
    end = time.monotonic() + limit
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError as error:
            if time.monotonic() > end:
                raise DemoError(f"nobody listens on 127.0.0.1:{port}") from error
            time.sleep(0.05)


def start_broker(demo: Demo) -> None:
    """Mosquitto where there is one, else a broker from PyPI."""
    found = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin")
    if found:
        settings = demo.dir / "mosquitto.conf"
        settings.write_text(f"listener {demo.broker_port} 127.0.0.1\nallow_anonymous true\nset_tcp_nodelay true\n")
        demo.start("broker", found, "-c", str(settings))
        return
    settings = demo.dir / "amqtt.yaml"
    settings.write_text(
        f"listeners:\n  default:\n    type: tcp\n    bind: 127.0.0.1:{demo.broker_port}\n"
        "plugins:\n  amqtt.plugins.authentication.AnonymousAuthPlugin:\n    allow_anonymous: true\n"
    )
    demo.start("broker", sys.executable, "-m", "amqtt.scripts.broker_script", "-c", str(settings))


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
