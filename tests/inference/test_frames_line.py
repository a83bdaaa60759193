"""Sources in front of a real line: the answer of a POST, two gigabytes of pictures, a video."""

import http.client
import json
import os
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from broker_rig import free_port
from line_rig import Rig

pytestmark = pytest.mark.process

PICTURES = {"preprocess": {"kind": "image", "method": "area", "fit": "crop", "scale": 1 / 16}}


def post(port: int, body: bytes) -> tuple[int, dict[str, Any]]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        connection.request("POST", "/", body)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


def listens(port: int) -> bool:
    try:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        connection.request("GET", "/healthz")
        connection.getresponse().read()
        connection.close()
    except OSError:
        return False
    return True


def test_the_answer_of_a_post_is_the_row_that_is_kept(tmp_path: Path) -> None:
    port = free_port()
    with Rig(tmp_path) as rig:
        only = rig.slot("digits-1.1.0.tflite", confirmed=True)
        rig.link("current", only)
        rig.start(source={"kind": "http", "listen": f"127.0.0.1:{port}"})
        rig.wait(lambda: rig.running() == only)
        rig.wait(lambda: listens(port))
        answers = []
        for scan in rig.scans()[:20]:
            status, answer = post(port, json.dumps({"id": "scan", "inputs": [scan.tolist()]}).encode())
            assert status == 200
            answers.append(answer)
        right = sum(answer["prediction"] == label for answer, label in zip(answers, rig.truth(), strict=False))
        assert right >= 15
        assert answers[0]["frame"] == "scan:1"
        assert post(port, b"[1, 2, 3]")[0] == 422
        assert post(port, b"nonsense")[0] == 400
        rig.wait(lambda: len(rig.lines()) == 21)
        assert [line["id"] for line in rig.lines()[:20]] == [answer["id"] for answer in answers]
        rig.wait(lambda: rig.health()["source"]["also"] == {"unreadable": 1})
        assert rig.stop() == 0


def test_a_killed_worker_costs_no_post_its_answer(tmp_path: Path) -> None:
    port = free_port()
    with Rig(tmp_path) as rig:
        only = rig.slot("digits-1.1.0.tflite", confirmed=True)
        rig.link("current", only)
        rig.start(source={"kind": "http", "listen": f"127.0.0.1:{port}"})
        rig.wait(lambda: rig.running() == only)
        rig.wait(lambda: listens(port))
        body = json.dumps(rig.scans()[0].tolist()).encode()
        statuses: list[int] = []

        def ask() -> None:
            for _ in range(150):
                statuses.extend([post(port, body)[0]])

        askers = [threading.Thread(target=ask) for _ in range(3)]
        for asker in askers:
            asker.start()
        rig.wait(lambda: len(statuses) > 50)
        os.kill(rig.worker(), 9)
        for asker in askers:
            asker.join(60.0)
        assert statuses == [200] * 450
        assert rig.stop() == 0


def resident_mb(pid: int) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096 / 2**20


def test_two_gigabytes_of_pictures_pass_through_little_memory(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    picture = tmp_path / "picture.npy"
    np.save(picture, np.full((1500, 2000, 3), 9, np.uint8))
    count = 2 * 10**9 // picture.stat().st_size
    with Rig(tmp_path) as rig:
        only = rig.slot("digits-1.1.0.tflite", confirmed=True, change=PICTURES)
        rig.link("current", only)
        rig.start(source={"kind": "directory", "path": str(folder), "overflow": "block"})
        rig.wait(lambda: rig.running() == only)
        process = rig.health()["pid"]
        before = resident_mb(process)
        for number in range(count):
            part = folder / f".{number}"
            part.hardlink_to(picture)
            part.rename(folder / f"{number:04}.npy")
        highest = before
        deadline = time.monotonic() + 120.0
        while rig.total("done") < count:
            assert time.monotonic() < deadline
            highest = max(highest, resident_mb(process))
            time.sleep(0.02)
        assert highest - before < 120.0, "ten pictures, not two hundred"
        rig.wait(lambda: not list(folder.iterdir()))
        assert rig.stop() == 0
        assert {row["outcome"] for row in rig.rows()} == {"ok"}
        assert len({row["frame"] for row in rig.rows()}) == count


def test_a_video_is_seen_by_the_model(tmp_path: Path) -> None:
    pytest.importorskip("av")
    from video_maker import make_video  # noqa: PLC0415 - needs the extra

    path = make_video(tmp_path / "line.mp4", count=30)
    with Rig(tmp_path) as rig:
        only = rig.slot("digits-1.1.0.tflite", confirmed=True, change=PICTURES)
        rig.link("current", only)
        rig.start(source={"kind": "camera", "path": str(path), "fps": 0.0, "loop": False, "overflow": "block"})
        rig.wait(lambda: rig.total("done") == 30, 30.0)
        assert rig.stop() == 0
        assert [row["frame"] for row in rig.rows()] == [f"camera:{number}" for number in range(1, 31)]
