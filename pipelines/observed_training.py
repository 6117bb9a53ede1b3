"""Trains as `python -m dnamamba.pretrain` does and writes down what each step saw: the worker of `two_gpus.py`.

    python pipelines/observed_training.py JOBS.json

JOBS.json is a list of jobs, trained one after the other in the same processes. A job has `settings` (fields of
`PretrainSettings`) and may have: `observe`, a folder for the records; `gradients`, steps whose gradients are kept;
`pause`, seconds after each step; `raise_at`, [rank, step] of an error on purpose; `trace`, [first step, steps, FILE]:
how much of that time the GPU did nothing, by torch's profiler, into the JSON FILE (rank 0, without `observe`);
`output`, a file for what the run prints.
"""

import contextlib
import gc
import json
import os
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any


def work(jobs_file: Path) -> int:
    """Trains as each job of the file says, one after the other in the same processes; the exit code of the last."""
    import torch

    from dnamamba.errors import InputError
    from dnamamba.training.run import pretrain

    environment = dict(os.environ)
    jobs = json.loads(jobs_file.read_text())
    shared = len(jobs) > 1 and "TORCHELASTIC_RUN_ID" in os.environ
    if shared:  # one process group for all: a second one would find the addresses of the first in torchrun's store
        on_gpu = jobs[0]["settings"]["accelerator"] == "gpu"
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if on_gpu else None
        torch.distributed.init_process_group("nccl" if on_gpu else "gloo", device_id=device)
    for job in jobs:
        os.environ.update(environment)  # Lightning takes variables of torchrun's away at the end of each
        try:
            with observed(job), traced(job), printed(job):
                pretrain(settings_of(job))
        except InputError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        if torch.cuda.is_available():
            gc.collect()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
    if shared:
        torch.distributed.destroy_process_group()
    return 0


@contextlib.contextmanager
def printed(job: dict[str, Any]) -> Iterator[None]:
    """While inside, what is printed goes to the job's `output`."""
    if "output" not in job:
        yield
        return
    with Path(job["output"]).open("w") as file, contextlib.redirect_stdout(file):
        yield


def settings_of(job: dict[str, Any]) -> Any:
    """`PretrainSettings`; for a job that resumes, those of its run folder with the job's on top."""
    import yaml

    from dnamamba.model.settings import ModelSettings
    from dnamamba.training.settings import PretrainSettings

    given = dict(job["settings"])
    if given.get("resume"):
        given = yaml.safe_load((Path(given["out"]) / "config.yaml").read_text()) | given
    paths: dict[str, Any] = {
        name: Path(given[name]) for name in ("out", "store", "mixture", "annotation") if given.get(name)
    }
    paths |= {name: [Path(text) for text in given[name]] for name in ("genome", "exclude") if given.get(name)}
    return replace(PretrainSettings(**given | paths), model=ModelSettings(**given["model"]))


class observed:
    """While inside, each step's loss, windows and gradients are written to files of this rank, and faults happen.

    steps-RANK.jsonl has a line a step: [step, Σ nats over all ranks, counted bases, windows]; a window is [contig,
    start, end, strand, CRC-32 of its tokens]. gradients-RANK-STEP.pt has the gradients before they are applied.
    """

    def __init__(self, job: dict[str, Any]) -> None:
        self.job = job

    def __enter__(self) -> None:
        from dnamamba.training.module import PretrainModule

        self.methods = {name: getattr(PretrainModule, name) for name in ("training_step", "_judge_gradient")}
        if "observe" in self.job:
            for name, method in self.methods.items():
                setattr(PretrainModule, name, getattr(self, name)(method))

    def __exit__(self, *exception: object) -> None:
        from dnamamba.training.module import PretrainModule

        for name, method in self.methods.items():
            setattr(PretrainModule, name, method)

    def training_step(self, step_of_module: Callable[..., None]) -> Callable[..., None]:
        folder = Path(self.job["observe"])
        fault_rank, fault_step = self.job.get("raise_at") or (-1, -1)

        def step(module: Any, batch: Any, batch_idx: int) -> None:
            rank, number = module.trainer.global_rank, module.trainer.global_step
            if (rank, number) == (fault_rank, fault_step):
                raise RuntimeError(f"raised on purpose on rank {rank} in step {number}")
            step_of_module(module, batch, batch_idx)
            windows = [
                [*window, zlib.crc32(tokens.numpy().tobytes())]
                for window, tokens in zip(
                    module.trainer.datamodule.step_dataset.windows(number), batch.tokens.cpu(), strict=True
                )
            ]
            with (folder / f"steps-{rank}.jsonl").open("a") as file:
                file.write(json.dumps([number, *module.step_sums.tolist()[:2], windows]) + "\n")
            time.sleep(self.job.get("pause", 0.0))

        return step

    def _judge_gradient(self, judge: Callable[..., Any]) -> Callable[..., Any]:
        import torch

        def judged(module: Any, step: int) -> Any:
            if step in self.job.get("gradients", ()):
                found = {name: parameter.grad for name, parameter in module.model.named_parameters()}
                gradients = {name: getattr(g, "full_tensor", lambda g=g: g)().cpu() for name, g in found.items()}
                path = Path(self.job["observe"]) / f"gradients-{module.trainer.global_rank}-{step}.pt"
                torch.save(gradients, path)
            return judge(module, step)

        return judged


HELD_UP = 0.25
"""Of the time of a trace: in its first steps the host, which the profiler's start holds up, is not yet ahead"""


class traced:
    """While inside, what the GPU does in the job's `trace` is recorded, and what `idle_time` makes of it is kept."""

    def __init__(self, job: dict[str, Any]) -> None:
        self.first, self.steps, self.file = job.get("trace") or (-1, 0, "")

    def __enter__(self) -> None:
        import torch
        from torch.profiler import ProfilerActivity, profile

        from dnamamba.training.module import PretrainModule

        self.step = PretrainModule.training_step
        profiler = profile(activities=[ProfilerActivity.CUDA])

        def step(module: Any, batch: Any, batch_idx: int) -> None:
            number = module.trainer.global_step - self.first
            if number in (0, self.steps) and module.trainer.is_global_zero:
                torch.cuda.synchronize()
                profiler.start() if number == 0 else profiler.stop()
                if number == self.steps:
                    profiler.export_chrome_trace(f"{self.file}.trace")
                    Path(self.file).write_text(json.dumps(idle_time(Path(f"{self.file}.trace"), skip=HELD_UP)))
            self.step(module, batch, batch_idx)

        PretrainModule.training_step = step  # type: ignore[method-assign]

    def __exit__(self, *exception: object) -> None:
        from dnamamba.training.module import PretrainModule

        PretrainModule.training_step = self.step  # type: ignore[method-assign]


def idle_time(trace: Path, short: float = 10.0, skip: float = 0.0) -> dict[str, Any]:
    """Of a Chrome trace without the first `skip` of its time: seconds from the first kernel to the last, the fraction
    of them in which the GPU did nothing (copies from the host and to it count as nothing), that in gaps longer than
    `short` microseconds (it waits for the host), the number of kernels, and the neighbours with most idle time between
    them: [fraction, times, before, after]."""
    events = [event for event in json.loads(trace.read_text())["traceEvents"] if _is_work(event)]
    events.sort(key=lambda event: event["ts"])
    begin, end = events[0]["ts"], events[-1]["ts"]
    events = [event for event in events if event["ts"] >= begin + skip * (end - begin)]
    gaps: list[float] = []
    between: dict[tuple[str, str], list[float]] = {}
    last, end = events[0]["name"], events[0]["ts"]
    for event in events:
        gaps.append(max(event["ts"] - end, 0.0))
        between.setdefault((last, event["name"]), []).append(gaps[-1])
        if event["ts"] + event["dur"] > end:
            last, end = event["name"], event["ts"] + event["dur"]
    length = end - events[0]["ts"]
    most = sorted(between.items(), key=lambda pair: -sum(pair[1]))[:20]
    return {
        "seconds": length / 1e6,
        "idle": sum(gaps) / length,
        "waits": sum(gap for gap in gaps if gap > short) / length,
        "kernels": sum(event["cat"] == "kernel" for event in events),
        "gaps": [[sum(times) / length, len(times), *(name[:80] for name in pair)] for pair, times in most],
    }


def _is_work(event: dict[str, Any]) -> bool:
    return event.get("cat") in ("kernel", "gpu_memset") or "Memcpy DtoD" in event.get("name", "")


def observed_steps(folder: str) -> dict[int, tuple[float, float, list[Any]]]:
    """Step → Σ nats, counted bases, and the windows of all ranks in their order, those that ranks share once; of
    steps that every rank finished."""
    ranks = [
        {line[0]: line[1:] for line in map(json.loads, path.read_text().splitlines())}
        for path in sorted(Path(folder).glob("steps-*.jsonl"))
    ]
    whole = set.intersection(*(set(rank) for rank in ranks))
    windows = {step: dict.fromkeys(tuple(w) for rank in ranks for w in rank[step][2]) for step in whole}
    return {step: (*ranks[0][step][:2], list(windows[step])) for step in sorted(whole)}


def compare_runs(two: str, one: str, gradient_steps: tuple[int, int]) -> dict[str, Any]:
    """How two devices' losses, windows and gradients differ from one's."""
    import torch

    losses = [
        {step: nats / counted for step, (nats, counted, _) in observed_steps(folder).items()} for folder in (two, one)
    ]
    windows = [{step: seen[2] for step, seen in observed_steps(folder).items()} for folder in (two, one)]
    result: dict[str, Any] = {
        "steps": len(losses[1]),
        "same_windows": windows[0] == windows[1],
        "losses_bit_equal": losses[0] == losses[1],
        "max_relative_loss_difference": max(abs(losses[0][step] / loss - 1) for step, loss in losses[1].items()),
        "last_loss_bits": losses[1][max(losses[1])] / 0.6931471805599453,
    }
    for step in gradient_steps:
        mine, other, alone = (
            torch.load(Path(folder) / f"gradients-{rank}-{step}.pt", weights_only=True)
            for folder, rank in ((two, 0), (two, 1), (one, 0))
        )
        relative = {
            name: ((mine[name] - gradient).norm() / gradient.norm().clamp_min(1e-30)).item()
            for name, gradient in alone.items()
        }
        largest = max(relative, key=lambda name: relative[name])
        result[f"gradients_step_{step + 1}"] = {
            "parameters": len(alone),
            "bit_equal_to_one_device": sum(torch.equal(mine[name], alone[name]) for name in alone),
            "bit_equal_between_ranks": sum(torch.equal(mine[name], other[name]) for name in alone),
            "max_relative_difference": relative[largest],
            "of": largest,
        }
    return result


def compare_resumed(killed: str, resumed: str, whole: str, run: Path, whole_run: Path) -> dict[str, Any]:
    """Both parts of the killed run next to the one that was left in peace."""
    parts, expected = [observed_steps(folder) for folder in (killed, resumed)], observed_steps(whole)
    seen = [(step, values) for part in parts for step, values in part.items()]
    loss_differences = [abs(values[0] / expected[step][0] - 1) for step, values in seen]
    weights = [(folder / "checkpoints" / "last" / "model.safetensors").read_bytes() for folder in (run, whole_run)]
    return {
        "steps_on_two_devices": len(parts[0]),
        "resumed_at_step": min(parts[1]),
        "steps_on_one_device": len(parts[1]),
        "all_steps_done": set(parts[0]) | set(parts[1]) == set(expected),
        "same_windows_in_same_order": all(values[2] == expected[step][2] for step, values in seen),
        "windows_compared": sum(len(values[2]) for _, values in seen),
        "max_relative_loss_difference": max(loss_differences),
        "weights_bit_equal": weights[0] == weights[1],
    }


if __name__ == "__main__":
    sys.exit(work(Path(sys.argv[1])))
