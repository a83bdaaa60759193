"""The bounded queue between a source and the loop.

This file knows how many frames wait and which one goes when there are too many. It does not know where they come
from or what is done with them.

    buffer = FrameBuffer(64, "drop-oldest", on_drop=record_as_dropped)
    buffer.put(frame)                 # the source's thread
    buffer.take(want=True)            # the serving thread: a frame, or None after `ring`

`drop-oldest`: the newest wins, the oldest waiting frame is handed to `on_drop`, so that every frame ends somewhere.
`block`: the source waits, until half of the queue is free again.
"""

import threading
from collections import deque
from collections.abc import Callable, Sequence

from modelagent.inference.frames import Frame


class FrameBuffer:
    """A bounded queue with one producer and one consumer, and a bell for the consumer.

    Args:
        capacity: frames that may wait.
        overflow: `drop-oldest` or `block`.
        on_drop: takes each dropped frame, in the source's thread.
    """

    def __init__(self, capacity: int, overflow: str, on_drop: Callable[[Frame], None]) -> None:
        self.capacity = capacity
        self.received = 0
        self.dropped = 0
        self._block = overflow == "block"
        self._on_drop = on_drop
        self._frames: deque[Frame] = deque()
        lock = threading.Lock()
        self._changed = threading.Condition(lock)
        self._space = threading.Condition(lock)
        self._rung = False
        self._closed = False

    def __len__(self) -> int:
        """Frames that wait."""
        return len(self._frames)

    def put(self, frame: Frame) -> None:
        """Add a frame; never fails. After `close` it is dropped."""
        lost: Frame | None = None
        with self._changed:
            self.received += 1
            if self._block:
                while len(self._frames) >= self.capacity and not self._closed:
                    self._space.wait()
            if self._closed:
                lost = frame
            else:
                if len(self._frames) >= self.capacity:
                    lost = self._frames.popleft()
                self._frames.append(frame)
                self._changed.notify()
            if lost is not None:
                self.dropped += 1
        if lost is not None:
            self._on_drop(lost)

    def take(self, *, want: bool, timeout: float | None = None) -> Frame | None:
        """Wait for a frame, the bell or the end.

        Args:
            want: take a frame if there is one; False waits for the bell alone and leaves the frames waiting.
            timeout: seconds to wait at most; None: for ever.

        Returns:
            A frame, or None when rung, closed or timed out. The bell comes before frames.
        """
        with self._changed:
            if not (self._rung or self._closed or (want and self._frames)):
                self._changed.wait_for(
                    lambda: self._rung or self._closed or bool(want and self._frames), timeout=timeout
                )
            if self._rung or self._closed or not (want and self._frames):
                self._rung = False
                return None
            frame = self._frames.popleft()
            # Not for every frame: waking the source costs a switch of threads, which costs more than a small model.
            if self._block and len(self._frames) <= self.capacity // 2:
                self._space.notify()
            return frame

    def more(self, most: int) -> list[Frame]:
        """Frames that wait now, at most so many, oldest first; none while the bell wants attention."""
        if not self._frames or self._rung:
            return []
        with self._changed:
            if self._closed:
                return []
            taken = [self._frames.popleft() for _ in range(min(most, len(self._frames)))]
            if self._block and len(self._frames) <= self.capacity // 2:
                self._space.notify()
            return taken

    def give_back(self, frames: Sequence[Frame]) -> None:
        """Frames that were taken and not run come first again; after `close` they are dropped."""
        with self._changed:
            closed = self._closed
            if not closed:
                self._frames.extendleft(reversed(frames))
            else:
                self.dropped += len(frames)
        if closed:
            for frame in frames:
                self._on_drop(frame)

    def lose(self, frame: Frame) -> None:
        """A frame that the source itself had to give up: counted as received and dropped."""
        with self._changed:
            self.received += 1
            self.dropped += 1
        self._on_drop(frame)

    def ring(self) -> None:
        """Wake the consumer: something other than a frame wants its attention."""
        with self._changed:
            self._rung = True
            self._changed.notify()

    def close(self) -> list[Frame]:
        """Let nobody wait any more: frames that still wait are returned and count as dropped."""
        with self._changed:
            self._closed = True
            rest = list(self._frames)
            self._frames.clear()
            self.dropped += len(rest)
            self._changed.notify_all()
            self._space.notify_all()
            return rest
