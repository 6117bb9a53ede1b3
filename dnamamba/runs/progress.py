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

    def __init__(
        self, steps: int, first: int, shown: bool, *, validation_every: int = 0, validation_steps: float = 0.0
    ) -> None:
        """`validation_steps`: how many steps a validation takes the time of, as far as one knows before the first."""
        self.steps, self.first, self.shown = steps, first, shown
        self.validation_every, self.validation_steps = validation_every, validation_steps
        self.validations, self.validating = 0, 0.0
        self.bar = None
        if shown and sys.stderr.isatty():
            # tqdm's own time left would know nothing of validations.
            look = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}, {rate_fmt}{postfix}]"
            self.bar = tqdm(total=steps, initial=first, unit="step", dynamic_ncols=True, smoothing=0.1, bar_format=look)
        self.began = self.line = time.perf_counter()
        self.step = first

    def update(
        self, step: int, row: dict[str, float | int | None], validation: float, validated_in: float | None = None
    ) -> None:
        """After `step`: its row of metrics.csv, the last validation (bits per base), the seconds of one just now."""
        if validated_in is not None:
            self.validations, self.validating = self.validations + 1, self.validating + validated_in
        if not self.shown:
            return
        parts = [f"{row['train_bits_per_base']:.4f} bits/base"]
        if not math.isnan(validation):
            parts.append(f"validation {validation:.4f}")
        if row["tokens_per_second"] is not None:
            parts.append(f"{si(row['tokens_per_second'])}bases/s")
        now = time.perf_counter()
        parts.append(f"ETA {clock(self._left(step, now))}")
        if self.bar is not None:
            self.bar.update(step - self.step)
            self.bar.set_postfix_str(", ".join(parts))
        self.step = step
        if self.bar is None and (validated_in is not None or now - self.line > LINE_EVERY):
            print(f"step {step}/{self.steps}  {'  '.join(parts)}", flush=True)
            self.line = now

    def _left(self, step: int, now: float) -> float:
        """Seconds: the steps that are left, and their validations."""
        a_step = (now - self.began - self.validating) / max(step - self.first, 1)
        a_validation = self.validating / self.validations if self.validations else self.validation_steps * a_step
        every = self.validation_every or self.steps
        validations = math.ceil(self.steps / every) - step // every if step < self.steps else 0
        return a_step * (self.steps - step) + a_validation * validations

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


def compared(count: float, other: float, unit: str) -> str:
    """How many a count is against another: '3.2 times fewer than UNIT', '1.4 times as many as UNIT'."""
    if count <= 0.95 * other:
        return f"{other / count:.1f} times fewer than {unit}"
    return f"about as many as {unit}" if count <= 1.05 * other else f"{count / other:.1f} times as many as {unit}"


def clock(seconds: float) -> str:
    """3725 → '1:02:05'."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"


@contextmanager
def job_bar(what: str, unit: str, shown: bool = True) -> Iterator[Callable[[int, int], None]]:
    """Gives a function of (done, total) to call now and then: a bar on a terminal, elsewhere a line every few seconds;
    nothing unless `shown`.

    Both go to stderr. A job of a few seconds leaves no line; `total` is 0 where it is not known.
    """
    on_terminal = sys.stderr.isatty()
    began = line = time.perf_counter()
    with tqdm(desc=what, unit=unit, unit_scale=True, leave=False, disable=not (shown and on_terminal)) as bar:

        def report(done: int, total: int) -> None:
            nonlocal line
            bar.total = total
            bar.update(done - bar.n)
            now = time.perf_counter()
            if shown and not on_terminal and now - line > LINE_EVERY:
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
