"""The newest frame of every camera, and the moment when together they make one frame set.

Choices: one place per camera, a newer frame replaces an unread one (counted "superseded"). The anchor camera gives the set its
stamp. A set is taken when every other camera's newest frame lies within the tolerance of the anchor's stamp; after one
tolerance of waiting the set is given up, and each camera that spoiled it is counted "missing:NAME" (nothing newer than
max_frame_age_ms) or "stale:NAME" (out of tolerance). Nothing is ever filled in.

Stamps are ROS time in ns (message header); waiting uses the monotonic clock, so a paused simulation clock stalls nobody.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from .drops import DropCounts

RESET_NS = 1_000_000_000  # stamps that jump back further than 1 s are a restarted source (a bag), not a late frame

MessageT = TypeVar("MessageT")


@dataclass(frozen=True)
class Frame(Generic[MessageT]):
    """One camera's message; stamp_ns: its header's stamp."""

    stamp_ns: int
    message: MessageT


@dataclass(frozen=True)
class FrameSet(Generic[MessageT]):
    """Frames by camera in the given order; anchor: the camera whose stamp counts; taken_ns: ROS time when it was taken."""

    anchor: str
    taken_ns: int
    frames: dict[str, Frame[MessageT]]

    @property
    def stamp_ns(self) -> int:
        """The anchor's stamp."""
        return self.frames[self.anchor].stamp_ns

    def ages_ms(self) -> list[float]:
        """Age of each camera's frame when the set was taken."""
        return [(self.taken_ns - frame.stamp_ns) / 1e6 for frame in self.frames.values()]


class FrameMailbox(Generic[MessageT]):
    """Newest-only mailbox of 1 to 6 cameras.

    cameras: names in the bundle's order; anchor: one of them; tolerance_ms: largest difference to the anchor's stamp;
    max_frame_age_ms: an anchor older than this is dropped, 0 switches the check off; clock_ns: ROS time now.
    """

    def __init__(
        self,
        cameras: Sequence[str],
        *,
        anchor: str,
        tolerance_ms: float,
        max_frame_age_ms: float,
        clock_ns: Callable[[], int],
        drops: DropCounts,
    ) -> None:
        if anchor not in cameras:
            raise ValueError(f"anchor '{anchor}' is none of the cameras {list(cameras)}")
        self.cameras = tuple(cameras)
        self._anchor = anchor
        self._tolerance_ns = int(tolerance_ms * 1e6)
        self._max_age_ns = int(max_frame_age_ms * 1e6)
        self._clock_ns = clock_ns
        self._drops = drops
        self._changed = threading.Condition()
        self._newest: dict[str, Frame[MessageT]] = {}
        self._unread: set[str] = set()
        self._woken = False

    def put(self, camera: str, stamp_ns: int, message: MessageT) -> None:
        """Keep the camera's newest message. Cheap: called from a subscriber callback."""
        with self._changed:
            previous = self._newest.get(camera)
            if previous is not None and 0 <= previous.stamp_ns - stamp_ns < RESET_NS:
                self._drops.add("out_of_order" if stamp_ns < previous.stamp_ns else "repeated_stamp")
                return
            if camera in self._unread:
                self._drops.add("superseded")
            self._newest[camera] = Frame(stamp_ns, message)
            self._unread.add(camera)
            self._changed.notify_all()

    def wake(self) -> None:
        """Make a waiting `take` return None now."""
        with self._changed:
            self._woken = True
            self._changed.notify_all()

    def take(self, timeout_s: float) -> FrameSet[MessageT] | None:
        """Wait for a frame set that was not taken before. None after timeout_s, after `wake`, or when a set was given up."""
        due_s = time.monotonic() + timeout_s
        give_up_s: float | None = None  # set once a call: newer anchors do not prolong the wait for the other cameras
        with self._changed:
            while not self._woken:
                now_s = time.monotonic()
                if self._anchor in self._unread:
                    stamp_ns = self._newest[self._anchor].stamp_ns
                    offenders = self._offenders(stamp_ns)
                    if give_up_s is None:
                        give_up_s = now_s + self._tolerance_ns / 1e9
                    if not offenders or now_s >= give_up_s or self._age_fault(stamp_ns):
                        return self._close(stamp_ns, offenders)
                if now_s >= (give_up_s or due_s):
                    return None
                self._changed.wait((give_up_s or due_s) - now_s)
            self._woken = False
            return None

    def peek(self) -> FrameSet[MessageT] | None:
        """The newest complete frame set, taken before or not; None when there is none within age and tolerance."""
        with self._changed:
            anchor = self._newest.get(self._anchor)
            if anchor is None or self._age_fault(anchor.stamp_ns) or self._offenders(anchor.stamp_ns):
                return None
            return self._frame_set()

    def absent(self) -> dict[str, str]:
        """Cameras that are "missing" or "stale" against the anchor's newest frame (or against now, before its first)."""
        with self._changed:
            anchor = self._newest.get(self._anchor)
            stamp_ns = self._clock_ns() if anchor is None else anchor.stamp_ns
            found = {} if anchor is not None and not self._age_fault(anchor.stamp_ns) else {self._anchor: "missing"}
            return found | self._offenders(stamp_ns)

    def _offenders(self, stamp_ns: int) -> dict[str, str]:
        """Other cameras that have no frame within the tolerance of stamp_ns, with the reason."""
        found: dict[str, str] = {}
        for camera in self.cameras:
            frame = self._newest.get(camera)
            if camera == self._anchor:
                continue
            if frame is None or self._age_fault(frame.stamp_ns):
                found[camera] = "missing"
            elif abs(frame.stamp_ns - stamp_ns) > self._tolerance_ns:
                found[camera] = "stale"
        return found

    def _age_fault(self, stamp_ns: int) -> str:
        """Why a stamp cannot be used now: "too_old", "from_future" or nothing."""
        age_ns = self._clock_ns() - stamp_ns
        if self._max_age_ns and age_ns > self._max_age_ns:
            return "too_old"
        return "from_future" if self._max_age_ns and -age_ns > self._max_age_ns else ""

    def _close(self, stamp_ns: int, offenders: dict[str, str]) -> FrameSet[MessageT] | None:
        """Hand out the set, or count why there is none. Either way its anchor frame is read."""
        fault = self._age_fault(stamp_ns)
        self._unread.clear()
        if fault:
            self._drops.add(fault)
            return None
        for camera, reason in offenders.items():
            self._drops.add(f"{reason}:{camera}")
        return None if offenders else self._frame_set()

    def _frame_set(self) -> FrameSet[MessageT]:
        return FrameSet(self._anchor, self._clock_ns(), {camera: self._newest[camera] for camera in self.cameras})
