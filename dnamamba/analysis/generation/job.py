"""A generation job: prompts in, FASTA out."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple, TextIO

import numpy as np

from dnamamba.alphabet import TOKEN_BITS, decode
from dnamamba.analysis.generation.settings import GenerateSettings
from dnamamba.errors import InputError
from dnamamba.genome.sequences import fasta_records, to_tokens
from dnamamba.inference.load import load_for_inference
from dnamamba.inference.sampling import Generator, Sampling
from dnamamba.model.abilities import require
from dnamamba.outputs import refuse_existing, whole_file
from dnamamba.runs.lines import print_lines
from dnamamba.runs.progress import job_bar

LINE = 80
"""Bases a line of FASTA."""
LOWEST_TEMPERATURE = 1e-6
"""Logits divided by less overflow; they are as good as at 0 before."""


class Prompt(NamedTuple):
    name: str
    tokens: np.ndarray
    """(bases,) uint8, without the soft-mask bit"""


def run_generation(settings: GenerateSettings) -> None:
    """Samples and writes; progress and speed go to stderr. Raises `InputError` for what the user can fix."""
    check_temperature(settings.temperature)
    if settings.out is not None:
        refuse_existing([settings.out], settings.overwrite)
    prompts = read_prompts(settings)
    inference = load_for_inference(settings.checkpoint, settings.accelerator, settings.precision)
    require(inference.model, "generate")
    print_lines(inference.header(), sys.stderr)
    generator = Generator(inference, Sampling(settings.temperature, settings.top_k, settings.seed))
    rows = [(number, prompt) for number, prompt in enumerate(p for p in prompts for _ in range(settings.samples))]
    began = time.perf_counter()
    with _output(settings) as file, job_bar("sampling", "b") as update:
        for first in range(0, len(rows), settings.batch):
            batch = rows[first : first + settings.batch]

            def report(done: int, _: int, count: int = len(batch), before: int = first) -> None:
                update(before * settings.length + count * done, len(rows) * settings.length)

            sampled = generator.generate(
                [prompt.tokens for _, prompt in batch], [number for number, _ in batch], settings.length, report
            )
            for (number, prompt), tokens in zip(batch, sampled, strict=True):
                whole = np.concatenate([prompt.tokens, tokens]) if settings.with_prompt else tokens
                _write(file, f"{prompt.name}_{number + 1} {_description(settings, prompt)}", decode(whole))
    seconds = time.perf_counter() - began
    bases = len(rows) * settings.length
    print(f"   sampled  {bases:,} bases in {seconds:.1f} s, {bases / seconds:,.0f} bases/s", file=sys.stderr)


def read_prompts(settings: GenerateSettings) -> list[Prompt]:
    """The prompts of the settings. Raises `InputError`."""
    if (settings.prompt is None) == (settings.prompts is None):
        raise InputError("give a prompt by --prompt BASES, or prompts by --prompts FASTA (one of the two)")
    if settings.prompt is not None:
        if not settings.prompt:
            raise InputError("--prompt: empty; a causal model needs at least one base to continue from")
        return [Prompt("sampled", to_tokens(settings.prompt, "--prompt", None))]
    assert settings.prompts is not None
    prompts: dict[str, Prompt] = {}
    for record, tokens in fasta_records(settings.prompts, allow_codes=False):
        if record.name in prompts:
            raise InputError(f"{settings.prompts}, line {record.line}: record {record.name!r} is there twice")
        prompts[record.name] = Prompt(record.name, tokens & np.uint8(TOKEN_BITS))
    return list(prompts.values())


def check_temperature(temperature: float) -> None:
    """Raises `InputError` for one that nothing can be sampled with."""
    if not (temperature == 0 or LOWEST_TEMPERATURE <= temperature < float("inf")):
        raise InputError(f"--temperature: {temperature} is neither 0 nor at least {LOWEST_TEMPERATURE:g}")


def _description(settings: GenerateSettings, prompt: Prompt) -> str:
    return (
        f"prompt={len(prompt.tokens)} length={settings.length} seed={settings.seed} "
        f"temperature={settings.temperature:g} top_k={settings.top_k} checkpoint={settings.checkpoint}"
    )


@contextmanager
def _output(settings: GenerateSettings) -> Iterator[TextIO]:
    if settings.out is None:
        yield sys.stdout
        return
    with (
        whole_file(settings.out, settings.overwrite) as partial,
        partial.open("w", encoding="utf-8", errors="replace") as file,
    ):
        yield file


def _write(file: TextIO, header: str, sequence: str) -> None:
    lines = (sequence[start : start + LINE] for start in range(0, len(sequence), LINE))
    file.write(f">{header}\n" + "\n".join(lines) + "\n")
