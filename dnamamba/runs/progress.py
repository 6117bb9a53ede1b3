"""How a long job shows how far it is."""

import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm import tqdm

LINE_EVERY = 10.0
"""Seconds between progress lines where there is no terminal to draw a bar on."""


class TrainingProgress:
    """A bar on a terminal, a line every few seconds elsewhere; silent on all ranks but the first."""

    def __init__(self, steps: int, first: int, shown: bool) -> None:
        self.steps, self.first, self.shown = steps, first, shown
        self.bar = None
        if shown and sys.stderr.isatty():
            self.bar = tqdm(total=steps, initial=first, unit="step", dynamic_ncols=True, smoothing=0.1)
        self.began = self.line = time.perf_counter()
        self.step = first

    def update(self, step: int, row: dict[str, float | int | None], validation: float) -> None:
        if not self.shown:
            return
        parts = [f"{row['train_bits_per_base']:.4f} bits/base"]
        if not math.isnan(validation):
            parts.append(f"validation {validation:.4f}")
        if row["tokens_per_second"] is not None:
            parts.append(f"{si(row['tokens_per_second'])}bases/s")
        if self.bar is not None:
            self.bar.update(step - self.step)
            self.bar.set_postfix_str(", ".join(parts))
        self.step = step
        now = time.perf_counter()
        validated = row.get("validation_bits_per_base") is not None
        if self.bar is None and (validated or now - self.line > LINE_EVERY):
            left = (now - self.began) / max(step - self.first, 1) * (self.steps - step)
            print(f"step {step}/{self.steps}  {'  '.join(parts)}  ETA {clock(left)}", flush=True)
            self.line = now

    def say(self, message: str) -> None:
        if self.shown:
            (self.bar.write if self.bar is not None else print)(message)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()


def si(number: float) -> str:
    """1234567 → '1.23 M', for people."""
    for limit, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= limit:
            return f"{number / limit:.2f} {letter}"
    return f"{number:.0f} "


def clock(seconds: float) -> str:
    """3725 → '1:02:05'."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"


@contextmanager
def job_bar(what: str, unit: str) -> Iterator[Callable[[int, int], None]]:
    """Gives a function of (done, total) to call now and then: a bar on a terminal, elsewhere a line every few seconds.

    Both go to stderr. A job of a few seconds leaves no line; `total` is 0 where it is not known.
    """
    on_terminal = sys.stderr.isatty()
    began = line = time.perf_counter()
    with tqdm(desc=what, unit=unit, unit_scale=True, leave=False, disable=not on_terminal) as bar:

        def report(done: int, total: int) -> None:
            nonlocal line
            bar.total = total
            bar.update(done - bar.n)
            now = time.perf_counter()
            if not on_terminal and now - line > LINE_EVERY:
                line = now
                left = clock((now - began) / done * (total - done)) if done and total else "?"
                share = f"{si(done).strip()} of {si(total).strip() if total else '?'} {unit}"
                print(f"{what} {share}  ETA {left}", file=sys.stderr, flush=True)

        yield report


def by_count(report: Callable[[int, int], None], total: int) -> Callable[[int], None]:
    """The function of `job_bar` for a job that knows how much it has just done, not how much in all."""
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        report(done, total)

    return advance
