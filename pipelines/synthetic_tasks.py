"""The synthetic tasks of the Mamba paper (arXiv 2312.00752, section 4.1), and copies of bases.

    python pipelines/synthetic_tasks.py TASK [--out FOLDER] [--minutes 8] [--full] [--systems NAME …] [--seeds 3]

- `induction_heads` (the paper's Table 2): 2 blocks, 64 wide, vocabulary 16, trained at length 256, batch 8, Adam at
  1e-3, of other models than Mamba at 2e-4; a special token stands once in random tokens and again at the end: which
  token followed it? Accuracy at lengths 2^6 … 2^20, attention's up to 2^14.
- `selective_copying` (Table 1): 16 tokens at random positions among 4 096, noise between; then they are recalled in
  order. Accuracy by token.
- `base_copies`: random bases whose windows repeat with a period of 16 … 128: what does a model of four letters need, to
  find an earlier copy? Loss (nats) on the second copies; ln 4 is chance.
- `hairpins`: the same for reverse complements; `hairpins_and_repeats`: where half of the sequences are such repeats.
  These are small enough for a CPU.

All systems and seeds train at once. A folder is continued by the same command, --minutes at a time; --full gives the
paper's number of steps. --length_warmup trains by a schedule of the task's own (`selective_copying`), which the paper
does not have: short sequences first, small batches, a falling rate. Half an hour of a CPU core a model then does.
Results are results.csv, results.md and results.png in the folder.
"""

import argparse
import csv
import io
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import torch
import torch.nn as nn
import torch.nn.functional as F
from captured_training import BETAS, EVERY, Training, train_together
from torch import Tensor

from dnamamba.alphabet import VOCABULARY_SIZE
from dnamamba.model.config import ModelConfig
from dnamamba.model.language_model import LanguageModel
from dnamamba.model.splitmix import shifted, splitmix64
from dnamamba.outputs import write_atomically
from dnamamba.pictures.figures import save_png

EVALUATION_SEED = 1 << 20
"""Beyond the seeds of training"""
EVALUATED_TOKENS = 1 << 24
"""At a length, in at most `MOST_SEQUENCES`"""
MOST_SEQUENCES = 256
PASS_TOKENS = 1 << 20
"""In one forward pass of an evaluation, on a GPU"""
CPU_PASS_TOKENS = 1 << 17
ATTENTION_LIMIT = 1 << 14
"""Its time is quadratic."""


class Sample(NamedTuple):
    """All (batch, length) int64."""

    inputs: Tensor
    targets: Tensor
    """−1 where nothing is asked"""


class Task(Protocol):
    """Data that is a function of (seed, step), made on the device without the host."""

    vocabulary: int

    def sample(self, batch: int, length: int, seed: int, steps: Tensor) -> Sample:
        """The sequences of steps, (steps,) int64 on the device that makes them: `batch` of each, in their order."""


def random_bits(batch: int, size: int, seed: int, steps: Tensor, purpose: int) -> Tensor:
    """(steps · batch, size) non-negative int64, 62 random bits each: SplitMix64 of a counter (see
    `dnamamba.genome.windows.hash_bits`), here in torch and thus in a captured step."""
    counter = torch.arange(batch * size, device=steps.device)
    key = splitmix64(splitmix64(steps + seed * 1_000_003) + purpose)
    return shifted(splitmix64(counter ^ key[:, None]), 2).view(-1, size)


def drawn_lengths(shortest: int, longest: int, batch: int, seed: int, steps: Tensor) -> Tensor:
    """(steps · batch, 1) int64, log-uniform from `shortest` to `longest`."""
    uniform = random_bits(batch, 1, seed, steps, 2).double() / 2.0**62
    return (shortest * ((longest + 1) / shortest) ** uniform).floor().long()


class InductionHeads:
    """Tokens 0 … vocabulary − 2; the last token of the vocabulary is the special one, at a random position and at the
    end, where the token after the first is asked for."""

    def __init__(self, vocabulary: int = 16) -> None:
        self.vocabulary = vocabulary

    def sample(self, batch: int, length: int, seed: int, steps: Tensor) -> Sample:
        special = self.vocabulary - 1
        inputs = random_bits(batch, length, seed, steps, 1) % special
        first = random_bits(batch, 1, seed, steps, 2) % (length - 2)
        wanted = inputs.gather(1, first + 1)
        position = torch.arange(length, device=steps.device)
        inputs = torch.where((position == first) | (position == length - 1), special, inputs)
        return Sample(inputs, torch.where(position == length - 1, wanted, -1))


class SelectiveCopying:
    """Token 0 is noise, the last of the vocabulary asks for the next of `copied` tokens, those between are copied."""

    def __init__(self, vocabulary: int = 16, copied: int = 16) -> None:
        self.vocabulary, self.copied = vocabulary, copied

    def sample(self, batch: int, length: int, seed: int, steps: Tensor) -> Sample:
        """`length` tokens of noise and data, followed by the questions."""
        data = 1 + random_bits(batch, self.copied, seed, steps, 1) % (self.vocabulary - 2)
        places = random_bits(batch, length, seed, steps, 2).topk(self.copied).indices.sort().values
        noise = data.new_zeros(len(data), length)
        questions = torch.full_like(data, self.vocabulary - 1)
        inputs = torch.cat((noise.scatter(1, places, data), questions), dim=1)
        return Sample(inputs, torch.cat((noise - 1, data), dim=1))


class BaseCopies:
    """Random tokens that repeat with a period drawn for each sequence, log-uniform from `shortest` to `longest`. Asked
    for is every token of the second copy and of later ones, but for the first `unknown` of the second, which no model
    can know for a copy."""

    def __init__(self, shortest: int = 16, longest: int = 128, vocabulary: int = 4, unknown: int = 16) -> None:
        self.shortest, self.longest, self.vocabulary, self.unknown = shortest, longest, vocabulary, unknown

    def sample(self, batch: int, length: int, seed: int, steps: Tensor) -> Sample:
        period = drawn_lengths(self.shortest, self.longest, batch, seed, steps)
        tokens = random_bits(batch, length + 1, seed, steps, 1) % self.vocabulary
        position = torch.arange(length + 1, device=steps.device)
        tokens = tokens.gather(1, position % period)
        known = (position >= period + self.unknown)[:, 1:]
        return Sample(tokens[:, :-1], torch.where(known, tokens[:, 1:], -1))


class Hairpins:
    """Random bases, each unit of `shortest` to `longest` followed by its reverse complement and then by the next unit,
    in a `share` of the sequences; the others repeat with the unit's period. Asked for is every base of a copy but the
    first `unknown`, which no model can know for one."""

    vocabulary = 4

    def __init__(self, shortest: int = 24, longest: int = 64, share: float = 1.0, unknown: int = 12) -> None:
        self.shortest, self.longest, self.share, self.unknown = shortest, longest, share, unknown

    def sample(self, batch: int, length: int, seed: int, steps: Tensor) -> Sample:
        unit = drawn_lengths(self.shortest, self.longest, batch, seed, steps)
        tokens = random_bits(batch, length + 1, seed, steps, 1) % self.vocabulary
        position = torch.arange(length + 1, device=steps.device)
        within = position % (2 * unit)
        reverse = within >= unit
        hairpins = tokens.gather(1, torch.where(reverse, position + 2 * unit - 1 - 2 * within, position))
        hairpins = torch.where(reverse, 3 - hairpins, hairpins)
        repeats = tokens.gather(1, position % unit)
        is_hairpin = (torch.arange(len(tokens), device=steps.device) % batch < self.share * batch)[:, None]
        tokens = torch.where(is_hairpin, hairpins, repeats)
        known = torch.where(is_hairpin, within, position) >= unit + self.unknown
        return Sample(tokens[:, :-1], torch.where(known[:, 1:], tokens[:, 1:], -1))


class TaskModel(nn.Module):
    """The backbone of `LanguageModel` with a head over the task's own vocabulary."""

    def __init__(self, config: ModelConfig, vocabulary: int) -> None:
        super().__init__()
        self.backbone = LanguageModel(config).backbone
        self.head = nn.Linear(config.d_model, vocabulary, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """(batch, length) int64 → logits (batch, length, vocabulary)."""
        return self.head(self.backbone(tokens)[0])


class Evaluation(NamedTuple):
    """A point of the table."""

    value: int
    """On the picture's axis"""
    task: Task
    length: int


class Stage(NamedTuple):
    """A part of a training, the first or one that follows the one before."""

    until: int
    """The number of steps at which it ends"""
    length: int
    batch: int
    learning_rate: float


class Experiment(NamedTuple):
    """What a task is trained and evaluated with."""

    task: Task
    length: int
    batch: int
    learning_rate: float
    steps: int
    full_steps: int
    """The paper's, where it has them"""
    systems: Mapping[str, Mapping[str, Any]]
    """Name → fields of `ModelConfig`"""
    evaluations: Sequence[Evaluation]
    axis: str
    """What an evaluation's value is"""
    measure: Literal["accuracy", "nats"]
    """Drawn"""
    warmup: int = 1
    beta2: float = BETAS[1]
    """Of Adam's second moments"""
    schedule: Sequence[Stage] = ()
    """What --length_warmup trains with, in place of `length`, `batch`, `learning_rate` and `steps`"""
    own: Mapping[str, Mapping[str, Any]] = {}
    """Name of a system → fields of this record in which its training differs"""

    def of(self, system: str) -> "Experiment":
        """As this system is trained."""
        return self._replace(**self.own.get(system, {}))


PAPER = {"n_layer": 2, "d_model": 64}
MIXERS: dict[str, dict[str, Any]] = {
    "mamba": PAPER,
    "s4d": PAPER | {"mixer": "s4d"},
    "h3": PAPER | {"mixer": "h3"},
    "hyena": PAPER | {"mixer": "hyena"},
    "transformer": PAPER | {"mixer": "transformer", "n_layer": 4},
}
SMALL = {"n_layer": 4, "d_model": 64}
BASE_MODELS: dict[str, dict[str, Any]] = {
    "mamba": SMALL,
    "mamba, k-mers of 8": SMALL | {"kmer": 8},
    "mamba, 64 states": SMALL | {"d_state": 64},
    "mamba, 64 states, k-mers of 8": SMALL | {"d_state": 64, "kmer": 8},
    "mamba2, 128 states": SMALL | {"mixer": "mamba2", "d_state": 128},
    "mamba2, 128 states, k-mers of 8": SMALL | {"mixer": "mamba2", "d_state": 128, "kmer": 8},
    "mamba:3,attention": SMALL | {"pattern": "mamba:3,attention"},
    "mamba:3,attention, k-mers of 16": SMALL | {"pattern": "mamba:3,attention", "kmer": 16},
    "transformer": SMALL | {"mixer": "transformer"},
    "transformer, k-mers of 16": SMALL | {"mixer": "transformer", "kmer": 16},
}
CONTENT = {"pattern": "mamba,attention", "rope": False, "head_dim": 32, "kmer": 16}
HYBRIDS: dict[str, dict[str, Any]] = {
    "mamba,attention, k-mers of 16, no positions": PAPER | CONTENT,
    "mamba, k-mers of 16": PAPER | {"kmer": 16},
}
INDUCTION, SELECTIVE = InductionHeads(), SelectiveCopying()
SHORT_MOMENTS = "mamba, second moments of 0.95"
EXPERIMENTS = {
    "induction_heads": Experiment(
        task=INDUCTION,
        length=256,
        batch=8,
        learning_rate=1e-3,
        steps=40_000,
        full_steps=25 * 8192,
        systems=MIXERS | {SHORT_MOMENTS: PAPER},
        evaluations=[Evaluation(2**power, INDUCTION, 2**power) for power in range(6, 21)],
        axis="length",
        measure="accuracy",
        beta2=0.999,
        own={name: {"learning_rate": 2e-4} for name in MIXERS if name != "mamba"} | {SHORT_MOMENTS: {"beta2": 0.95}},
    ),
    "selective_copying": Experiment(
        task=SELECTIVE,
        length=4096,
        batch=64,
        learning_rate=1e-3,
        steps=10_000,
        full_steps=400_000,
        systems=MIXERS | {"mamba, nothing selective": PAPER | {"selective": "none"}},
        evaluations=[Evaluation(2**power, SELECTIVE, 2**power) for power in range(8, 15)],
        axis="length",
        measure="accuracy",
        warmup=100,
        schedule=(
            Stage(2500, 112, 16, 4e-3),
            Stage(3300, 512, 8, 4e-3),
            Stage(3800, 2048, 4, 4e-3),
            Stage(4100, 2048, 4, 1e-3),
            Stage(4300, 4096, 4, 1e-3),
            Stage(4700, 4096, 4, 3e-4),
        ),
    ),
    "base_copies": Experiment(
        task=BaseCopies(),
        length=512,
        batch=16,
        learning_rate=2e-3,
        steps=20_000,
        full_steps=100_000,
        systems=BASE_MODELS,
        evaluations=[Evaluation(p, BaseCopies(p, p), max(512, 4 * p)) for p in (16, 32, 64, 128, 256, 512, 1024)],
        axis="period",
        measure="nats",
        warmup=200,
    ),
}
for name, share in (("hairpins", 1.0), ("hairpins_and_repeats", 0.5)):
    EXPERIMENTS[name] = Experiment(
        task=Hairpins(share=share),
        length=256,
        batch=8,
        learning_rate=3e-3,
        steps=1000,
        full_steps=100_000,
        systems=HYBRIDS,
        evaluations=[Evaluation(unit, Hairpins(unit, unit), 256) for unit in (24, 32, 48, 64)],
        axis="unit",
        measure="nats",
    )


class Wanted(NamedTuple):
    """A run: a system with a seed."""

    system: str
    seed: int

    @property
    def name(self) -> str:
        """Of its file."""
        return f"{self.system.replace(' ', '-')}-{self.seed}"


def training_of(
    experiment: Experiment, wanted: Wanted, steps: int, device: str, stage: Stage | None = None
) -> Training:
    """A system as its experiment trains it; in a stage with that one's sequences, and until it ends."""
    torch.manual_seed(wanted.seed)
    experiment = experiment.of(wanted.system)
    fields = {"vocabulary_size": VOCABULARY_SIZE} | dict(experiment.systems[wanted.system])
    if fields.get("mixer") == "hyena":
        fields["filter_length"] = experiment.length
    model = TaskModel(ModelConfig(**fields), experiment.task.vocabulary).to(device)
    if stage is not None:
        steps = stage.until
        experiment = experiment._replace(length=stage.length, batch=stage.batch, learning_rate=stage.learning_rate)

    def losses(model: nn.Module, numbers: Tensor) -> Iterator[Tensor]:
        sample = experiment.task.sample(experiment.batch, experiment.length, wanted.seed, numbers)
        for inputs, targets in zip(*(each.chunk(len(numbers)) for each in sample), strict=True):
            yield F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten(), ignore_index=-1)

    rate, warmup, betas = experiment.learning_rate, experiment.warmup, (BETAS[0], experiment.beta2)
    return Training(wanted.name, model, losses, steps=steps, learning_rate=rate, warmup=warmup, betas=betas)


def train(
    experiment: Experiment, wanted: Sequence[Wanted], steps: int, folder: Path, minutes: float, device: str
) -> tuple[list[Training], bool]:
    """The trainings, stage after stage, until all are finished or the time is over; and whether they are finished."""
    ends = time.monotonic() + 60 * minutes
    for stage in experiment.schedule or (None,):
        trainings = [training_of(experiment, each, steps, device, stage) for each in wanted]
        finished = train_together(trainings, folder, (ends - time.monotonic()) / 60)
        if not finished:
            break
    return trainings, finished


@torch.inference_mode()
def evaluate(model: TaskModel, evaluation: Evaluation, device: str, most: int | None = None) -> dict[str, float | int]:
    """Accuracy and mean negative log-likelihood (nats) of what is asked for, in `most` sequences at most."""
    length = evaluation.length
    sequences = min(most or MOST_SEQUENCES, max(EVALUATED_TOKENS // length, 1))
    at_once = max(min(sequences, (PASS_TOKENS if device == "cuda" else CPU_PASS_TOKENS) // length), 1)
    sums = torch.zeros(3, device=device, dtype=torch.float64)
    for number in range(sequences // at_once):
        sample = evaluation.task.sample(at_once, length, EVALUATION_SEED, torch.tensor([number], device=device))
        asked = sample.targets >= 0
        logits, targets = model(sample.inputs)[asked], sample.targets[asked]
        found = (logits.argmax(-1) == targets).sum(), F.cross_entropy(logits, targets, reduction="sum"), asked.sum()
        sums += torch.stack([each.double() for each in found])
    right, nats, asked_for = sums.tolist()
    return {"accuracy": right / asked_for, "nats": nats / asked_for, "sequences": sequences // at_once * at_once}


def evaluate_all(
    experiment: Experiment,
    wanted: Sequence[Wanted],
    trainings: Sequence[Training],
    device: str,
    most: int | None = None,
) -> list[dict[str, Any]]:
    """A row a system, seed and evaluation; attention beyond `ATTENTION_LIMIT` is left out."""
    rows = []
    for (system, seed), training in zip(wanted, trainings, strict=True):
        quadratic = any(name in str(experiment.systems[system]) for name in ("attention", "transformer"))
        parameters = sum(parameter.numel() for parameter in training.model.parameters())
        for evaluation in experiment.evaluations:
            if quadratic and evaluation.length > ATTENTION_LIMIT:
                continue
            assert isinstance(training.model, TaskModel)
            found = evaluate(training.model, evaluation, device, most)
            facts = {"system": system, "seed": seed, "parameters": parameters, "steps": training.done}
            rows.append({**facts, experiment.axis: evaluation.value, **found})
        print(training.name, rows[-1], flush=True)
    return rows


def table(experiment: Experiment, rows: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: a row a system, a column an evaluation; the mean over seeds, and least and most where they differ."""
    values = [evaluation.value for evaluation in experiment.evaluations]
    lines = [f"| {experiment.measure} at {experiment.axis} | " + " | ".join(f"{value:,}" for value in values) + " |"]
    lines.append("|---" * (len(values) + 1) + "|")
    for system in experiment.systems:
        cells = []
        for value in values:
            found = [r[experiment.measure] for r in rows if (r["system"], r[experiment.axis]) == (system, value)]
            cells.append(_cell(experiment, found))
        lines.append(f"| {system} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _cell(experiment: Experiment, found: Sequence[float]) -> str:
    if not found:
        return ""
    shown = [f"{100 * each:.1f}" if experiment.measure == "accuracy" else f"{each:.3f}" for each in sorted(found)]
    mean = sum(found) / len(found)
    text = f"{100 * mean:.1f}" if experiment.measure == "accuracy" else f"{mean:.3f}"
    return text if shown[0] == shown[-1] else f"{text} ({shown[0]}–{shown[-1]})"


def draw(
    experiment: Experiment, rows: Sequence[Mapping[str, Any]], curves: Mapping[Wanted, Tensor], path: Path
) -> None:
    """Left the losses of training, right the measure at each evaluation; a line a seed."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.5), layout="constrained")
    for number, system in enumerate(experiment.systems):
        colour = f"C{number % 10}"
        for (name, seed), curve in curves.items():
            if name == system:
                left.plot([EVERY * (k + 1) for k in range(len(curve))], curve.tolist(), color=colour, linewidth=0.8)
                own = [row for row in rows if (row["system"], row["seed"]) == (system, seed)]
                label = system if seed == 0 else None
                points = [row[experiment.axis] for row in own], [row[experiment.measure] for row in own]
                right.plot(*points, color=colour, marker="o", markersize=3, label=label)
    left.set(xlabel="step", ylabel="training loss (nats)", xscale="log")
    right.set(xlabel=experiment.axis, ylabel=experiment.measure)
    right.set_xscale("log", base=2)
    right.axvline(experiment.length, color="0.7", linestyle=":")
    right.legend(fontsize=8)
    save_png(figure, path)
    plt.close(figure)


def write_results(
    experiment: Experiment, rows: list[dict[str, Any]], curves: Mapping[Wanted, Tensor], folder: Path
) -> None:
    """results.csv, results.md, curves.csv and results.png."""
    _write_csv(folder / "results.csv", rows)
    points = [
        {"system": system, "seed": seed, "step": EVERY * (number + 1), "loss": round(value, 4)}
        for (system, seed), curve in curves.items()
        for number, value in enumerate(curve.tolist())
    ]
    if points:
        _write_csv(folder / "curves.csv", points)
    write_atomically(folder / "results.md", table(experiment, rows))
    draw(experiment, rows, curves, folder / "results.png")


def _write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, text.getvalue())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=EXPERIMENTS)
    parser.add_argument("--out", type=Path, help="folder; default: runs/TASK")
    parser.add_argument("--minutes", type=float, default=8.0, help="of training, then the folder can be continued")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--systems", nargs="+", help="some of the task's, by name; default: all")
    parser.add_argument("--steps", type=int, help="in place of the task's own number")
    parser.add_argument("--full", action="store_true", help="as many steps as in the paper")
    parser.add_argument("--learning_rate", type=float, help="of all systems, in place of the task's own")
    parser.add_argument("--batch", type=int, help="in place of the task's own")
    parser.add_argument("--length_warmup", action="store_true", help="the task's schedule, which sets all of these")
    parser.add_argument("--sequences", type=int, help=f"of an evaluation, at most; default: {MOST_SEQUENCES}")
    arguments = parser.parse_args()
    experiment = EXPERIMENTS[arguments.task]
    if arguments.length_warmup:
        if not experiment.schedule:
            parser.error(f"--length_warmup: {arguments.task} has no schedule")
        if arguments.steps or arguments.full or arguments.learning_rate or arguments.batch:
            parser.error("--length_warmup sets --steps, --learning_rate and --batch itself; leave them out")
    changed = {name: getattr(arguments, name) for name in ("learning_rate", "batch") if getattr(arguments, name)}
    names = arguments.systems or list(experiment.systems)
    own = {name: {**experiment.own.get(name, {}), **changed} for name in names}
    experiment = experiment._replace(
        systems={name: experiment.systems[name] for name in names},
        own=own,
        schedule=experiment.schedule if arguments.length_warmup else (),
    )
    steps = arguments.steps or (experiment.full_steps if arguments.full else experiment.steps)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    folder = arguments.out or Path("runs", arguments.task)

    began = time.monotonic()
    wanted = [Wanted(system, seed) for system in names for seed in range(arguments.seeds)]
    trainings, finished = train(experiment, wanted, steps, folder / "trainings", arguments.minutes, device)
    seconds = time.monotonic() - began
    print(f"{len(trainings)} trainings in {seconds:.0f} s" + ("" if finished else "; continue with the same command"))
    rows = evaluate_all(experiment, wanted, trainings, device, arguments.sequences)
    curves = {each: training.curve[: training.done // EVERY] for each, training in zip(wanted, trainings, strict=True)}
    write_results(experiment, rows, curves, folder)
    print((folder / "results.md").read_text())


if __name__ == "__main__":
    main()
