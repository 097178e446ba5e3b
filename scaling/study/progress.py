"""A line about work that takes long, with the time left."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from threading import Event, Thread
from types import TracebackType

from scaling.errors import UserError, note
from scaling.study.running_page import RunningPage
from scaling.study.status import RunState, clock, run_states
from scaling.study_folder import Study


class Progress:
    """While work goes on: a line about the study's progress, live on a terminal, else every 15 s,
    and its report, with what is there so far."""

    def __init__(self, study: Study, say: Callable[[str], None], *, live: bool) -> None:
        self.study, self.say, self.live = study, say, live
        self._page = RunningPage(study)
        self._stop = Event()
        self._thread = Thread(target=self._watch, daemon=True)
        self._begun: tuple[float, float] | None = None  # (time, MACs done) when work began

    def __enter__(self) -> Progress:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        if self.live:
            from rich.console import Console
            from rich.status import Status

            with Status("starting", console=Console(stderr=True)) as status:
                self._tell(status.update, 1.0)
        else:
            self._tell(self.say, 15.0)

    def _tell(self, say: Callable[[str], None], every: float) -> None:
        """A line every so many seconds, or less often where a look at all runs takes long."""
        pause = every
        while not self._stop.wait(pause):
            began = time.monotonic()
            states = run_states(self.study)
            line = self.line(states)
            say(line)
            with contextlib.suppress(UserError, OSError):  # the work goes on without its page
                self._page.write_if_due(states, line)
            pause = max(every, 20 * (time.monotonic() - began))

    def line(self, states: Sequence[RunState]) -> str:
        """`ladder: 3/7 runs, 41% of 1.2e+13 MACs, 21.3 GMAC/s, ETA 2:10`."""
        if not states:
            return "planning"
        role = "ladder" if any(s.role == "ladder" for s in states) else "lr sweep"
        ended = sum(s.state in ("finished", "diverged") for s in states)
        planned = sum(s.macs for s in states)
        done = sum(s.macs if s.state == "diverged" else s.macs_done for s in states)
        now = time.monotonic()
        if self._begun is None:
            self._begun = (now, done)
        text = f"{role}: {ended}/{len(states)} runs, {done / planned:.0%} of {planned:.2e} MACs"
        rate = (done - self._begun[1]) / max(1e-9, now - self._begun[0])
        if rate > 0 and now - self._begun[0] > 3:
            text += f", {rate / 1e9:.1f} GMAC/s, ETA {clock((planned - done) / rate)}"
        return text


def teller(say: Callable[[str], None] = note) -> Callable[[str, int, int], None]:
    """Tells `say`, every five seconds, how far work of counted parts is: (what, done, total).

    What follows a comma in `what` is not of the work's name: the time left goes on from before.
    """
    last = time.monotonic()
    begun: tuple[str, float, int] = ("", last, 0)  # the work, when it was first told of, how far

    def tell(what: str, done: int, total: int) -> None:
        nonlocal last, begun
        now = time.monotonic()
        work = what.split(",")[0]
        if work != begun[0]:
            begun = (work, now, done)
        if now - last > 5:
            left = ""
            if done > begun[2]:
                left = f", ETA {clock((total - done) * (now - begun[1]) / (done - begun[2]))}"
            say(f"{what} {done}/{total}{left}")
            last = now

    return tell
