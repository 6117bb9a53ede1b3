"""How a long job shows how far it is."""

import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm import tqdm

LINE_EVERY = 10.0
"""Seconds between progress lines where there is no terminal to draw a bar on."""


class Progress:
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
def byte_bar(what: str, unit: str) -> Iterator[Callable[[int, int], None]]:
    """Gives a function to be told (done, total) now and then; on a terminal that is a bar, elsewhere nothing."""
    with tqdm(desc=what, unit=unit, unit_scale=True, leave=False, disable=not sys.stderr.isatty()) as bar:

        def update(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield update


@contextmanager
def job_bar(what: str, unit: str) -> Iterator[Callable[[int, int], None]]:
    """As `byte_bar`; where there is no terminal, a line every few seconds with the time that is left."""
    if sys.stderr.isatty():
        with byte_bar(what, unit) as update:
            yield update
        return
    began = line = time.perf_counter()

    def tell(done: int, total: int) -> None:
        nonlocal line
        now = time.perf_counter()
        if done and now - line > LINE_EVERY:
            left = (now - began) / done * (total - done)
            print(f"{what} {si(done).strip()} of {si(total).strip()} {unit}  ETA {clock(left)}", flush=True)
            line = now

    yield tell


@contextmanager
def long_job(what: str, unit: str, total: int) -> Iterator[Callable[[int], None]]:
    """Gives a function to be told how much has just been done; a bar on a terminal, a line now and then elsewhere."""
    on_terminal = sys.stderr.isatty()
    began = last = time.perf_counter()
    done = 0
    with tqdm(desc=what, unit=unit, unit_scale=True, total=total, leave=False, disable=not on_terminal) as bar:

        def advance(count: int) -> None:
            nonlocal done, last
            done += count
            bar.update(count)
            now = time.perf_counter()
            if not on_terminal and now - last > LINE_EVERY:
                speed = done / (now - began)
                left = clock((total - done) / speed) if speed else "?"
                print(f"{what} {done / max(total, 1):.0%}  {si(speed)}{unit}/s  ETA {left}", flush=True)
                last = now

        yield advance
