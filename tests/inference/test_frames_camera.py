"""The camera source on real video: files, HTTP, a stream that stands still, a decoder that dies."""

import sys
import threading
import time
from pathlib import Path

import pytest

from modelagent.errors import SourceError, UsageError
from modelagent.inference.frames import Frame, SourceOptions
from modelagent.inference.frames import camera as module
from modelagent.inference.frames.camera import CameraSource

pytest.importorskip("av")
from video_maker import VideoServer, make_video

pytestmark = pytest.mark.process


def collect(source: CameraSource, count: int = 10**6) -> list[Frame]:
    frames: list[Frame] = []
    stop = threading.Event()

    def put(frame: Frame) -> None:
        frames.append(frame)
        if len(frames) == count:
            stop.set()

    source.run(put, stop)
    return frames


def test_a_file_is_played_once_in_order_and_in_colour(tmp_path: Path) -> None:
    path = make_video(tmp_path / "line.mp4", count=20)
    frames = collect(CameraSource(SourceOptions(kind="camera", path=path, fps=0.0, loop=False)))
    assert len(frames) == 20
    assert frames[0].arrays[0].shape == (48, 64, 3)
    means = [float(frame.arrays[0].mean()) for frame in frames]
    assert all(abs(mean - 8 * number) < 6 for number, mean in enumerate(means)), means
    assert [frame.id for frame in frames[:2]] == ["camera:1", "camera:2"]


def test_a_file_is_paced_and_played_again(tmp_path: Path) -> None:
    path = make_video(tmp_path / "line.mp4", count=5)
    frames = collect(CameraSource(SourceOptions(kind="camera", path=path, fps=50.0, loop=True)), 21)
    assert frames[-1].mono - frames[0].mono > 0.3


def test_a_stream_over_http_that_stands_still_is_noticed_and_started_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_START", 3.0)
    data = make_video(tmp_path / "line.ts", count=60, size=(240, 320), step=4).read_bytes()
    with VideoServer(data, stall_after=len(data) * 2 // 3) as server:
        source = CameraSource(SourceOptions(kind="camera", url=server.url, fps=0.0, stall_s=1.0))
        frames: list[Frame] = []
        for turn in (1, 2):
            begun = time.monotonic()
            with pytest.raises(SourceError, match=r"no frame for|the decoder ended"):
                source.run(frames.append, threading.Event())
            assert time.monotonic() - begun < 12.0
            assert server.asked >= turn
        assert len(frames) > 20
        assert source.counts["restarts"] == 1


def test_what_is_no_video_says_why(tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("no video")
    for place in (tmp_path / "text.mp4", tmp_path / "absent.mp4", Path("/dev/video99")):
        with pytest.raises(SourceError, match=r"the decoder ended \(ended with status 1\): "):
            collect(CameraSource(SourceOptions(kind="camera", path=place)))
    with pytest.raises(UsageError, match="needs url or path"):
        CameraSource(SourceOptions(kind="camera"))


@pytest.mark.parametrize(
    ("program", "why"),
    [
        ("import os; os.abort()", "SIGABRT"),
        ("raise SystemExit(4)", "PyAV is not installed"),
        ("import sys,os,json; os.write(json.loads(sys.argv[1])['out'], b'x' * 16)", "no picture"),
        ("import time; time.sleep(60)", "no frame for 0.5 s"),
    ],
)
def test_a_decoder_that_dies_lies_or_hangs_is_only_its_own_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str, why: str
) -> None:
    monkeypatch.setattr(module, "_START", 0.5)
    argv = (sys.executable, "-c", program)
    source = CameraSource(SourceOptions(kind="camera", path=tmp_path / "x", stall_s=0.5), argv)
    with pytest.raises(SourceError, match=why):
        collect(source)


def test_a_password_is_neither_said_nor_an_argument(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(module, "_START", 0.5)
    place = "rtsp://admin:s3cret@127.0.0.1:1/main"
    seen = tmp_path / "seen"
    program = f"import os, sys; open({str(seen)!r}, 'w').write(str(sys.argv)); print(os.environ['MODELAGENT_PLACE'])"
    for argv in ((sys.executable, "-c", program), module.DECODER):
        with pytest.raises(SourceError, match=r"127\.0\.0\.1:1/main") as caught:
            collect(CameraSource(SourceOptions(kind="camera", url=place, stall_s=0.5), argv))
        assert "s3cret" not in caught.value.message
        monkeypatch.setattr(module, "_START", 20.0)
    assert "s3cret" not in seen.read_text()


def test_stopping_ends_the_decoder_at_once(tmp_path: Path) -> None:
    path = make_video(tmp_path / "line.mp4", count=5)
    source = CameraSource(SourceOptions(kind="camera", path=path, fps=1.0, loop=True))
    stop, some = threading.Event(), threading.Event()
    thread = threading.Thread(target=source.run, args=(lambda _: some.set(), stop))
    thread.start()
    assert some.wait(20.0)
    begun = time.monotonic()
    stop.set()
    thread.join(10.0)
    assert time.monotonic() - begun < 2.0
