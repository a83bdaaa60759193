"""Going back, in each of its ways, with real processes, real models and a signed repository."""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from rollback_rig import MODEL, Box, provision, slow_when_dazzled

pytestmark = pytest.mark.process


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1.1.0 runs, 1.0.0 is behind it."""
    return provision(tmp_path_factory.mktemp("provisioned"))


@pytest.fixture
def box(tmp_path: Path, base: Path) -> Iterator[Box]:
    with Box(tmp_path, base) as made:
        made.start("updater", "inference")
        made.serves("1.1.0")
        made.until("the updater answers", made.status)
        yield made


@pytest.fixture
def patient(tmp_path: Path, base: Path) -> Iterator[Box]:
    """A device whose probation is long enough for anything to go wrong in it."""
    with Box(tmp_path, base, frames=4000) as made:
        made.start("updater", "inference")
        made.serves("1.1.0")
        made.until("the updater answers", made.status)
        yield made


def never_confirmed(box: Box, version: str) -> None:
    """It was left, is blocked, and came no further."""
    assert box.history("confirmed", version) == []
    assert box.blocks()[version] == "failed"
    assert len(box.history("activated", version)) <= 1


def test_the_canary_refuses_and_nothing_that_runs_is_touched(box: Box) -> None:
    box.publish("1.2.0", "digits-1.2.0.tflite")
    assert "83.5 % against 97.2 % on the same 400 samples" in box.told("blocked", "1.2.0")["text"]
    box.publish("1.4.0", "digits-1.4.0.tflite")
    assert "killed by SIGSEGV" in box.told("blocked", "1.4.0")["text"]
    assert box.runs() == "1.1.0"
    never_confirmed(box, "1.2.0")
    assert box.history("activated") == [line for line in box.history("activated") if line["version"] < "1.2"]
    assert box.lost() == []


def test_flapping_releases_do_not_oscillate(box: Box) -> None:
    box.publish("1.2.0", "digits-1.2.0.tflite")
    box.told("blocked", "1.2.0")
    box.publish("1.2.1", "digits-1.2.0.tflite")
    box.told("blocked", "1.2.1")
    before = len(box.history())
    for _ in range(3):
        for version in ("1.2.0", "1.2.1"):
            box.name(version)
            wanted = f"{version} is blocked"
            box.until(wanted, lambda wanted=wanted: wanted in box.status().get("waiting", ""))  # type: ignore[misc]
    assert [line for line in box.history()[before:] if line["kind"] in ("acquiring", "canary", "activated")] == []
    assert box.runs() == "1.1.0"
    assert box.lost() == []


@pytest.mark.parametrize("trouble", ["none", "updater killed", "network down"])
def test_labels_on_live_frames_lead_back_whatever_else_happens(patient: Box, trouble: str) -> None:
    patient.check()
    digest = patient.publish("1.3.0", "digits-1.3.0.tflite")
    patient.told("probation", "1.3.0", "is on probation")
    patient.until("200 results", lambda: patient.health().get("counters", {}).get(digest, {}).get("done", 0) >= 200)
    if trouble == "network down":
        patient.cut_the_link()
    if trouble == "updater killed":
        patient.kill("updater")
    patient.see("a")  # the camera slips by a pixel, for which 1.1.0 was trained and 1.3.0 was not
    if trouble == "updater killed":
        time.sleep(1.0)
        patient.start("updater")
    line = patient.told("blocked", "1.3.0")
    assert "the previous model is better on the same" in line["text"]
    patient.told("reverted")
    assert patient.runs() == "1.1.0"
    never_confirmed(patient, "1.3.0")
    assert patient.lost() == []


@pytest.mark.parametrize(
    "between",
    [
        "nothing",
        pytest.param("inference killed", marks=pytest.mark.long),
        pytest.param("mains", marks=pytest.mark.long),
    ],
)
def test_labels_that_come_after_the_confirmation_still_lead_back(box: Box, between: str) -> None:
    box.see("a")
    box.until("the camera has slipped", lambda: (box.rows() or [{"frame": "."}])[-1]["frame"].startswith("camera.2"))
    box.publish("1.3.0", "digits-1.3.0.tflite")
    box.told("confirmed", "1.3.0")  # without labels nothing speaks against it
    if between != "nothing":
        time.sleep(2.0)  # both write what they know within a second
        box.kill("inference")
        if between == "mains":
            box.kill("updater")
            box.start("updater")
        box.start("inference")
    box.check()
    box.told("probation", "1.3.0", "labels came late")
    assert "the previous model is better" in box.told("blocked", "1.3.0")["text"]
    box.told("reverted")
    assert box.runs() == "1.1.0"
    if between == "nothing":
        assert box.lost() == []
    else:  # a replay that begins anew names its frames as before
        assert {row["outcome"] for row in box.rows()} == {"ok"}


@pytest.mark.long
def test_drift_of_a_confirmed_version_is_told_compared_and_followed_where_the_settings_say_so(box: Box) -> None:
    box.check()
    digest = box.publish("1.3.0", "digits-1.3.0.tflite")
    box.told("confirmed", "1.3.0")
    labelled = box.health()["counters"][digest]["labels"]["right"]
    box.until("a baseline", lambda: box.health()["counters"][digest]["labels"]["right"] > labelled + 150)
    box.see("a")
    assert "labelled results are wrong" in box.told("drift", "1.3.0", "retraining wanted")["text"]
    box.told("reverted")
    assert box.runs() == "1.1.0"
    assert box.blocks() == {}, "it had proved itself; its input moved"
    assert [late["version"] for late in box.status()["postponed"]] == ["1.3.0"]
    assert box.lost() == []


def test_an_input_that_hurts_both_never_rolls_back(box: Box) -> None:
    box.check()
    box.see("b")
    box.publish("1.3.1", "digits-1.3.1.tflite")
    box.told("drift", "1.3.1")
    box.told("confirmed", "1.3.1")
    assert box.history("reverting") == []
    assert box.blocks() == {}
    assert box.lost() == []


@pytest.mark.parametrize(
    ("model", "code"),
    [("crash_on_input", "crash"), ("hang_on_input", "hang"), ("nan_on_input", "not-finite")],
)
def test_right_for_two_hundred_calls_and_then_deadly(patient: Box, model: str, code: str) -> None:
    digest = patient.publish("1.5.0", f"hostile/{model}.tflite", {"version": "1.5.0"})
    patient.told("probation", "1.5.0", "is on probation")
    patient.until("200 results", lambda: patient.health().get("counters", {}).get(digest, {}).get("done", 0) >= 200)
    patient.see("trigger")
    line = patient.told("blocked", "1.5.0")
    assert f"{code}: " in line["text"]
    patient.told("reverted")
    assert patient.runs() == "1.1.0"
    never_confirmed(patient, "1.5.0")
    assert patient.lost() == []
    # The model file is blocked as well: the same bytes under another name are not tried.
    patient.publish("1.5.1", f"hostile/{model}.tflite")
    patient.until("refused", lambda: "the same model file as 1.5.0" in patient.status().get("waiting", ""))


@pytest.mark.long
def test_right_for_two_hundred_calls_and_then_slow(patient: Box) -> None:
    model = slow_when_dazzled(patient.root / "slow.tflite")
    digest = patient.publish("1.5.0", model, {"limits.latency_ms": 8.0, "limits.latency_ratio": 1000.0})
    patient.told("probation", "1.5.0", "is on probation")
    patient.until("200 results", lambda: patient.health().get("counters", {}).get(digest, {}).get("done", 0) >= 200)
    patient.see("dazzled")
    assert "too slow: on " in patient.told("blocked", "1.5.0")["text"]
    patient.told("reverted")
    assert patient.runs() == "1.1.0"
    never_confirmed(patient, "1.5.0")
    assert patient.lost() == []


def test_an_operator_goes_back_with_a_command_and_without_the_daemon(box: Box) -> None:
    assert box.ask("rollback", "looks odd")["status"] == "accepted"
    box.told("reverted")
    box.serves("1.0.0")
    assert box.blocks() == {"1.1.0": "operator"}
    assert box.ask("lift", "1.1.0")["status"] == "done"
    box.told("activated", "1.1.0", after=len(box.history("confirmed")))
    box.serves("1.1.0")
    box.until("at rest", lambda: box.status().get("phase") == "Idle")
    box.kill("updater")
    box.cut_the_link()
    source = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2] / "src")}
    done = subprocess.run(
        [sys.executable, "-m", "modelagent", "--config", str(box.config), "rollback", "-m", MODEL, "--offline"],
        capture_output=True,
        text=True,
        env=source,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    box.serves("1.0.0")
    assert box.lost() == []


def test_a_withdrawal_is_followed_within_one_check_without_a_download(box: Box) -> None:
    before = len(box.history())
    box.repository().withdraw(MODEL, "1.1.0", "wrong labels in training")
    box.told("withdrawn", "1.1.0")
    box.serves("1.0.0")
    box.told("reverted", after=before)
    assert "acquiring" not in [line["kind"] for line in box.history()[before:]]
    assert "withdrawn: wrong labels in training" in box.told("reverting", "1.1.0")["text"]
    assert box.lost() == []


def test_expired_metadata_stops_nothing_but_new_releases(patient: Box) -> None:
    patient.publish("1.5.0", "digits-1.5.0.tflite")
    patient.told("probation", "1.5.0", "is on probation")
    patient.repository(late=7.0).refresh()  # signed for seven days, seven days ago
    patient.told("check-failed", text="expired")
    patient.see("trigger")
    patient.told("reverted")
    assert patient.runs() == "1.1.0"
    never_confirmed(patient, "1.5.0")
    assert patient.ask("rollback")["status"] == "accepted"
    patient.serves("1.0.0")
    assert patient.lost() == []


def test_a_version_that_never_gets_anything_done_is_left(box: Box) -> None:
    """The crash loop: inference dies again and again before the candidate has given one result."""
    starts = box.paths["inference_dir"] / MODEL / "starts.json"
    digest = box.publish("1.6.0", "digits-1.6.0.tflite")
    box.told("activating", "1.6.0")
    for _ in range(8):
        box.until("a start", lambda: starts.exists() and json.loads(starts.read_bytes())["digest"] == digest)
        if json.loads(starts.read_bytes())["left"] is not None:
            break
        known = starts.read_bytes()
        box.kill("inference")
        box.start("inference")
        box.until("the next start", lambda known=known: starts.read_bytes() != known)  # type: ignore[misc]
    line = box.told("blocked", "1.6.0")
    assert "starts without one result" in line["text"]
    box.told("reverted")
    never_confirmed(box, "1.6.0")


@pytest.mark.long
def test_a_deliberate_downgrade_is_never_compared_and_never_blocked(box: Box) -> None:
    box.publish("1.2.0", "digits-1.2.0.tflite", {"canary.margin": 0.5})  # worse, but its margin lets it through
    box.told("confirmed", "1.2.0")
    box.publish("1.2.5", "digits-1.1.0.tflite")
    box.told("confirmed", "1.2.5")
    before = len(box.history())
    assert box.ask("pin", "1.2.0")["status"] == "accepted"
    box.told("running", "1.2.0", "confirmed here before", after=before)
    box.serves("1.2.0")
    assert [line["kind"] for line in box.history()[before:] if line["kind"] in ("canary", "probation", "blocked")] == []
    assert box.lost() == []


@pytest.mark.long
def test_an_older_version_from_the_repository_meets_absolute_gates_alone(box: Box) -> None:
    box.publish("1.2.0", "digits-1.2.0.tflite", name=False)  # 83.5 %, which no comparison would let through
    box.publish("1.6.0", "digits-1.6.0.tflite")
    box.told("confirmed", "1.6.0")
    assert box.ask("pin", "1.2.0")["status"] == "accepted"
    line = box.told("canary", "1.2.0")
    assert "1.2.0: pass: " in line["text"]
    assert "compared with nothing" in line["text"]
    box.told("confirmed", "1.2.0")
    assert box.blocks() == {}


def test_a_new_name_for_a_confirmed_file_does_not_take_the_file_down_with_it(box: Box) -> None:
    box.publish("1.1.1", "digits-1.1.0.tflite")  # the file that 1.1.0 is confirmed with
    box.told("probation", "1.1.1", "is on probation")
    box.kill_worker()  # no frame in its hands: the slot is left
    box.told("blocked", "1.1.1")
    box.told("reverted")
    box.serves("1.1.0")
    box.publish("1.1.2", "digits-1.1.0.tflite")
    box.told("confirmed", "1.1.2")
    assert box.blocks() == {"1.1.1": "failed"}


@pytest.mark.long
def test_a_frame_that_kills_every_model_blames_none(box: Box) -> None:
    box.publish("1.5.0", "digits-1.5.0.tflite")
    box.told("confirmed", "1.5.0")
    box.publish("1.5.1", "digits-1.5.0.tflite")
    box.told("probation", "1.5.1", "is on probation")
    box.see("trigger")
    box.until("frames that blame nobody", lambda: any(row["outcome"] == "faulted" for row in box.rows()))
    box.see("clean")
    box.told("confirmed", "1.5.1")
    assert box.blocks() == {}
    assert box.history("reverting") == []
    faulted = [row["frame"] for row in box.rows() if row["outcome"] == "faulted"]
    assert {int(frame.split(":")[1]) % 50 for frame in faulted} == {49}, "the frames of glare, and no other"


@pytest.mark.skipif(os.geteuid() != 0, reason="a full disk is made by mounting one, which needs root")
def test_a_full_disk_without_inodes_stops_no_way_back(tmp_path: Path, base: Path) -> None:
    with Box(tmp_path, base, frames=4000) as box, small_disk(box.paths["state_dir"]):
        box.start("updater", "inference")
        box.publish("1.5.0", "digits-1.5.0.tflite")
        box.told("probation", "1.5.0", "is on probation")
        fill(box.paths["state_dir"])
        box.see("trigger")
        box.serves("1.1.0")
        box.until("the link is back", lambda: "1.1.0" in str((box.status().get("current") or {}).get("version", "")))
        (box.paths["state_dir"] / "filler").unlink()
        for path in (box.paths["state_dir"] / "fillers").iterdir():
            path.unlink()
        box.until("at rest", lambda: box.status().get("phase") == "Idle")
        assert box.history("confirmed", "1.5.0") == []
        assert box.runs() == "1.1.0"
        assert box.lost() == []


def test_an_operator_who_goes_back_where_nothing_can_be_written_down_is_not_told_that_it_failed(box: Box) -> None:
    box.until("at rest", lambda: box.status().get("phase") == "Idle")
    history = box.paths["state_dir"] / "history.jsonl"
    history.rename(history.with_name("aside"))
    history.mkdir()
    said = box.ask("rollback", "looks odd")
    assert said["status"] == "accepted"
    assert "not written down yet" in said["reason"]
    box.serves("1.0.0")
    assert "state cannot be kept" in str(box.status()["alarms"])
    history.rmdir()
    history.with_name("aside").rename(history)
    box.until("kept", lambda: "state cannot be kept" not in str(box.status()["alarms"]))
    box.until("at rest", lambda: box.status().get("phase") == "Idle")
    assert box.lost() == []


@contextlib.contextmanager
def small_disk(place: Path) -> Iterator[None]:
    """What is at `place`, on a file system of 24 MB and 600 inodes of its own."""
    aside = place.with_name("aside")
    place.rename(aside)
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=24m,nr_inodes=600,mode=0755", "none", str(place)],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip(f"no small disk could be mounted: {mounted.stderr.strip()}")
    try:
        subprocess.run(["cp", "-a", f"{aside}/.", str(place)], check=True)
        yield
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def fill(place: Path) -> None:
    """Use up every inode and every byte."""
    (place / "fillers").mkdir()
    (place / "filler").touch()
    with contextlib.suppress(OSError):
        for number in range(10_000):
            (place / "fillers" / str(number)).touch()
    with (place / "filler").open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
