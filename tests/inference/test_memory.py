"""What inference remembers: start counts, results that wait for labels, spooled labels, the shadow's pairs."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modelagent.durable import LinkId
from modelagent.errors import ModelError
from modelagent.inference.counters import Histogram, Tally
from modelagent.inference.decisions import Decision
from modelagent.inference.frames import Frame
from modelagent.inference.handover import back_off
from modelagent.inference.labels import Spool
from modelagent.inference.links import Target, open_slot, read_links
from modelagent.inference.records import Records
from modelagent.inference.shadow import Shadow
from modelagent.inference.starts import Left, Starts
from modelagent.inference.watch import Watch

A, B = "a" * 64, "b" * 64
LINK = LinkId(11, 22)


def test_the_version_that_runs_is_counted_on_however_many_others_come_and_go() -> None:
    tally = Tally()
    for other in range(20):
        for digest in (A, f"{other:064d}", A):
            tally.of(digest).done += 1
    assert tally.of(A).done == 40
    assert len(tally.report()) == 8


def test_starts_survive_and_count_one_digest(tmp_path: Path) -> None:
    path = tmp_path / "starts.json"
    starts = Starts(path)
    starts.begin(A)
    starts.begin(A)
    assert Starts(path).count(A) == 2
    assert Starts(path).count(B) == 0
    starts.begin(B)
    assert (starts.count(A), starts.count(B)) == (0, 1)
    starts.progress(B)
    assert Starts(path).count(B) == 0


def test_a_start_without_a_frame_is_taken_back_and_counted_again_before_the_first(tmp_path: Path) -> None:
    starts = Starts(tmp_path / "starts.json")
    ticket = starts.begin(A)
    ticket.take_back()
    ticket.take_back()
    assert starts.count(A) == 0
    ticket.use()
    assert starts.count(A) == 1
    ticket.take_back()
    assert starts.count(A) == 1, "a frame was given: the start counts"


def test_leaving_is_of_one_link_only(tmp_path: Path) -> None:
    path = tmp_path / "starts.json"
    starts = Starts(path)
    starts.begin(A)
    starts.leave(Left(A, LINK, "crash: on frame 7", "crash"))
    again = Starts(path)
    assert again.has_left(Target(LINK, A)) == Left(A, LINK, "crash: on frame 7", "crash")
    assert again.has_left(Target(LINK, B)) is None
    assert again.has_left(Target(LinkId(11, 23), A)) is None
    assert again.count(A) == 0


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"digest": 1}', b"\xff\xfe"])
def test_a_torn_starts_file_begins_anew(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "starts.json"
    path.write_bytes(content)
    starts = Starts(path)
    assert (starts.count(A), starts.left) == (0, None)
    starts.begin(A)
    assert Starts(path).count(A) == 1


def test_a_disk_that_cannot_be_written_stops_nothing(tmp_path: Path) -> None:
    starts = Starts(tmp_path / "absent" / "starts.json")
    starts.begin(A)
    assert starts.count(A) == 1
    assert not starts.writable


def records(**more: Any) -> Records:
    return Records("m", "e", (), **{"recent": 100, "horizon": 1e9} | more)


def decided(made: Records, digest: str, prediction: int) -> str:
    return made.done(Frame("f", (), 0.0, 1e12), digest, "1", Decision(prediction, "", 0.5), 10.0)


def test_labels_count_for_the_version_that_made_the_result() -> None:
    made = records()
    old, new = decided(made, A, 3), decided(made, B, 4)
    assert made.label(old, label=3, right=None, running=B) is True
    assert made.label(new, label=3, right=None, running=B) is False
    assert made.label(new, label=None, right=True, running=B) is None, "it has had its label"
    assert made.tally.of(A).labels == {"right": 1, "wrong": 0, "unknown": 0, "late": 0, "duplicate": 0}
    assert made.tally.of(B).labels == {"right": 0, "wrong": 1, "unknown": 0, "late": 0, "duplicate": 1}


def test_labels_of_forgotten_future_and_foreign_results_are_told_apart() -> None:
    made = records(recent=2)
    for _ in range(3):
        decided(made, A, 1)
    for name in ("e-1", "earlier-9", "e-99", "nonsense", "e-", f"e-{10**30}"):
        assert made.label(name, label=1, right=None, running=B) is None
    labels = made.tally.of(B).labels
    assert (labels["late"], labels["unknown"]) == (2, 4)
    short = records(horizon=-1e13)
    assert short.label(decided(short, A, 1), label=1, right=None, running=A) is None
    assert short.tally.of(A).labels["late"] == 1


def test_every_end_of_a_frame_is_counted_once() -> None:
    made = records()
    decided(made, A, 1)
    for outcome in ("dropped", "refused", "faulted"):
        made.lost(Frame("f", (), 0.0, 5.0), A, "1", outcome)
    made.fault(A, "hang")
    report = made.tally.report()[A]
    assert (report["frames"], report["done"], report["dropped"], report["refused"], report["faulted"]) == (
        4,
        1,
        1,
        1,
        1,
    )
    assert report["faults"] == {"crash": 0, "hang": 1, "not-finite": 0, "leak": 0, "slow": 0, "recovered": 0}
    assert report["busy_s"] == 2
    assert sum(report["latency_us"]["counts"]) == sum(report["confidence"]["counts"]) == 1
    json.dumps(made.tally.report(), allow_nan=False)


def test_histograms_put_a_bound_into_its_own_bucket_and_versions_are_few() -> None:
    histogram = Histogram((1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 2.0, 3.0):
        histogram.add(value)
    assert histogram.report()["counts"] == [2, 2, 1]
    tally = Tally()
    for number in range(50):
        tally.of(str(number)).decided(number, 0.5, 1.0)
    assert len(tally.report()) == 8


def test_the_spool_gives_each_batch_once_and_passes_over_bad_ones(tmp_path: Path) -> None:
    (tmp_path / "1-1.json").write_text('{"schema": 1, "labels": [{"id": "old", "label": 1}]}')
    spool = Spool(tmp_path)
    assert list(spool.news()) == [("old", 1, None, True)], "an earlier run may have read it"
    assert list(spool.news()) == []
    (tmp_path / ".3-1.json.tmp").write_text("{")
    (tmp_path / "2-1.json").write_text(
        '{"schema": 1, "labels": [{"id": "x", "label": 7}, {"id": "y", "right": false}]}'
    )
    (tmp_path / "2-2.json").write_text("{")
    (tmp_path / "2-3.json").write_text('{"schema": 2, "labels": []}')
    (tmp_path / "2-4.json").write_text('{"schema": 1, "labels": [{"id": "z"}]}')
    assert list(spool.news()) == [("x", 7, None, False), ("y", None, False, False)]
    assert list(spool.news()) == []
    assert list(Spool(tmp_path / "absent").news()) == []


def shadow(*, share: float = 1.0, ring: int = 10) -> Shadow:
    made = Shadow(share=share, ring=ring, died=lambda _: None)
    made.arm("key", A, B)
    return made


def run(made: Shadow, old: int | None) -> str:
    """What the shadow's thread does for the next frame, without a worker; says which frame it was."""
    kept = made._next()
    assert kept is not None
    [name] = [name for name, one in made._kept.items() if one is kept]
    kept.ran, kept.old = True, old
    made._counts["frames"] += 1
    made._counts["agree"] += kept.old == kept.new
    made._settle(kept)
    return name


def test_pairs_need_both_predictions_and_the_truth() -> None:
    made = shadow()
    for name, new, old, label, right in (
        ("1", 3, 3, 3, None),
        ("2", 3, 5, 3, None),
        ("3", 3, 5, 5, None),
        ("4", 3, 5, 7, None),
        ("5", 3, 3, None, False),
        ("6", 3, 5, None, True),
        ("7", 3, 5, None, False),  # nobody knows whether the shadow was right
        ("8", 3, None, 3, None),  # the shadow gave nothing
    ):
        made.keep(name, B, (np.zeros(1),), new)
        assert run(made, old) == name
        made.label(name, label, right)
        made.label(name, label, right)
    report = made.report()
    assert report is not None
    assert {key: report[key] for key in ("both_right", "only_new", "only_old", "both_wrong")} == {
        "both_right": 1,
        "only_new": 2,
        "only_old": 1,
        "both_wrong": 2,
    }
    assert (report["digest"], report["frames"], report["agree"]) == (A, 8, 2)


def test_labelled_frames_go_first_and_the_ring_forgets_the_oldest() -> None:
    made = shadow(ring=3)
    for name in "abcd":
        made.keep(name, B, (np.zeros(1),), 1)
    made.label("d", 1, None)
    made.label("a", 1, None)
    assert [run(made, 1) for _ in range(3)] == ["d", "b", "c"]
    assert made._next() is None


def test_frames_are_thinned_and_other_versions_are_not_kept() -> None:
    made = shadow(share=0.25)
    for number in range(16):
        made.keep(str(number), B, (np.zeros(1),), 1)
        made.keep(f"x{number}", A, (np.zeros(1),), 1)
    assert list(made._kept) == ["3", "7", "11", "15"]


def test_counts_begin_anew_with_another_link_and_not_otherwise() -> None:
    made = shadow()
    made.keep("1", B, (np.zeros(1),), 1)
    run(made, 1)
    made.disarm()
    made.arm("key", A, B)
    report = made.report()
    assert report is not None
    assert report["frames"] == 1
    made.arm("other", A, B)
    assert (made.report() or {})["frames"] == 0
    made.clear()
    assert made.report() is None


def test_links_are_read_with_their_identity(tmp_path: Path) -> None:
    (tmp_path / "current").symlink_to(f"slots/{A}")
    (tmp_path / "shadow").write_text("no link")
    links = read_links(tmp_path)
    status = (tmp_path / "current").lstat()
    assert links.current == Target(LinkId(status.st_ino, status.st_mtime_ns), A)
    assert (links.fallback, links.shadow) == (None, None)


def test_a_slot_must_be_what_its_name_says(tmp_path: Path) -> None:
    with pytest.raises(ModelError) as caught:
        open_slot(tmp_path, A)
    assert caught.value.code == "missing"
    (tmp_path / "slots" / A).mkdir(parents=True)
    (tmp_path / "slots" / A / "manifest.json").write_text("{}")
    with pytest.raises(ModelError) as caught:
        open_slot(tmp_path, A)
    assert caught.value.code == "hash"


def test_back_off_starts_at_once_and_is_bounded() -> None:
    waits = [back_off(failures) for failures in range(1, 12)]
    assert waits[:4] == pytest.approx([0.0, 0.1, 0.2, 0.4])
    assert waits == sorted(waits)
    assert back_off(10_000) == 10.0


def test_a_watch_notices_a_moved_link_and_a_directory_made_anew(tmp_path: Path) -> None:
    directory = tmp_path / "m"
    watch = Watch()
    assert not watch.add(directory)
    directory.mkdir()
    assert watch.add(directory)
    (directory / ".next").symlink_to("a")
    (directory / ".next").rename(directory / "current")
    assert len(os.read(watch.fd, 4096)) > 0
    (directory / "current").unlink()
    directory.rmdir()
    watch.drain()
    directory.mkdir()
    assert watch.add(directory)
    (directory / "x").touch()
    assert len(os.read(watch.fd, 4096)) > 0
    watch.close()
