"""Jobs whose writing fails at every point in turn; run by `test_outputs_faults.py` with `faults.c` preloaded.

    python tests/faults_jobs.py FOLDER [JOB ...]

For each job and each kind of call the first call that concerns the output folder fails, then the second, and so on
until none is left to fail; writes also fail from the n-th on, as on a full disk. Prints a JSON line of how many points
failed, and one for every point at which the outputs were neither whole nor absent, or the error was not one line. A run
has to resume after its fault and end with the same files.
"""

import contextlib
import ctypes
import io
import json
import os
import shutil
import sys
import types
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from tiny_models import random_bases, tiny_model

from dnamamba import cli, verbs
from dnamamba.formats.checkpoint import save_checkpoint, save_classifier
from dnamamba.model.classifier import HeadConfig, SequenceClassifier
from dnamamba.parallel.weights import WholeWeights
from dnamamba.pictures.learning_curve import plot_learning_curve
from dnamamba.runs.folder import RunFolder
from dnamamba.training.checkpoints import TRAINER_STATE, CheckpointKeeper, TrainerStateIO

KINDS = {"open": (1, 0), "write": (2, 0), "full": (2, 1), "fsync": (3, 0), "rename": (4, 0)}
"""Kind of fault → its number in faults.c, and whether all later calls fail too"""

ROW = {"step": "1", "tokens": "128", "train_bits_per_base": "1.9", "validation_bits_per_base": "1.8"}


def inputs(folder: Path) -> None:
    """A genome, variants of it, intervals, a language model and a classifier."""
    folder.mkdir()
    bases = random_bases(600, seed=1)
    (folder / "g.fa").write_text(f">chr1\n{bases}\n")
    (folder / "long.fa").write_text(f">chr1\n{random_bases(20_000, seed=2)}\n")
    (folder / "data").mkdir()
    for split in ("train", "dev", "test"):
        rows = "".join(f"{random_bases(30, seed=n)},{'xy'[n % 2]}\n" for n in range(8))
        (folder / "data" / f"{split}.csv").write_text(f"sequence,label\n{rows}")
    variants = "".join(
        f"chr1\t{at + 1}\t.\t{bases[at]}\t{'ACGT'[('ACGT'.index(bases[at]) + 1) % 4]}\t.\t.\t.\n" for at in (200, 300)
    )
    (folder / "v.vcf").write_text(f"##fileformat=VCFv4.2\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n{variants}")
    (folder / "r.bed").write_text("chr1\t10\t60\nchr1\t100\t160\n")
    model = tiny_model()
    save_checkpoint(model, folder / "lm", {"settings": {"length": 128}})
    head = SequenceClassifier(model.config, HeadConfig("multiclass", ("x", "y")))
    save_classifier(head, folder / "head", {"task": "sequences", "length": 128})


def verb(line: str) -> Callable[[Path], None]:
    def job(out: Path) -> None:
        verbs.main(line.split()[0])(f"{line} --accelerator cpu".replace("OUT", str(out)).split()[1:])

    return job


def run_folder(out: Path) -> None:
    folder = RunFolder(out / "run")
    with folder.lock:
        folder.create("a: 1\n")
        folder.write_json("data.json", {"splits": "x"})


def checkpoint(out: Path) -> None:
    save_checkpoint(tiny_model(), out / "model", {"step": 1})


def kept_checkpoint(out: Path) -> None:
    """As a run saves it."""
    state = {"state_dict": tiny_model().state_dict()}
    trainer = types.SimpleNamespace(
        is_global_zero=True, save_checkpoint=lambda path: TrainerStateIO().save_checkpoint(state, path)
    )
    keeper = CheckpointKeeper(out, keep=1, provenance={})
    module = types.SimpleNamespace(model=tiny_model(), weights=WholeWeights())
    for step in (1, 2):
        keeper.save(trainer, module, step, 0, {}, best=True)  # type: ignore[arg-type]
        assert (out / "last" / TRAINER_STATE).is_file()


def picture(out: Path) -> None:
    plot_learning_curve([ROW, {**ROW, "step": "2"}], out / "curve.png", title="x")


LM, HEAD = "--checkpoint lm --genome g.fa", "--checkpoint head --genome g.fa"
JOBS: dict[str, Callable[[Path], None]] = {
    "tracks": verb(
        f"likelihood {LM} --region chr1:101-400 --context 100 --strands forward --tracks log_likelihood "
        "--format bigwig,bedgraph,parquet,npz --out OUT/x"
    ),
    "embed npz": verb(f"embed {LM} --input r.bed --pool mean --out OUT/x.npz"),
    "embed parquet": verb(f"embed {LM} --input r.bed --pool position --out OUT/x.parquet"),
    "score vcf.gz": verb(f"score {LM} --vcf v.vcf --context 64 --out OUT/x.vcf.gz"),
    "score parquet": verb(f"score {LM} --vcf v.vcf --context 64 --out OUT/x.parquet"),
    "predict tsv": verb(f"predict {HEAD} --input r.bed --out OUT/x.tsv"),
    "mutagenesis": verb(f"mutagenesis {LM} --region chr1:201-204 --context 64 --format npz,tsv --out OUT/x"),
    "generate": verb("generate --checkpoint lm --prompt ACGT --length 20 --out OUT/x.fa"),
    "picture": picture,
    "run folder": run_folder,
    "checkpoint": checkpoint,
    "kept checkpoint": kept_checkpoint,
}


QUICK = "--model.n_layer 1 --model.d_model 16 --model.d_state 4 --model.preset demo --out OUT/run"
RUNS = {
    "pretrain": "pretrain --genome long.fa --length 128 --batch_tokens 256 --max_steps 2 --validation_every 1 "
    f"--markov_order 0 --validation_tokens 512 {QUICK}",
    "finetune": f"finetune --checkpoint none --task sequences --data data --epochs 1 --kmer 0 {QUICK}",
}


def found(out: Path) -> dict[str, int]:
    """Name → size of all that lies in the folder; of a run folder or checkpoint also what is in it."""
    return {str(path.relative_to(out)): path.stat().st_size for path in sorted(out.rglob("*")) if path.is_file()}


def attempt(job: Callable[[Path], None], out: Path) -> tuple[int | str, str]:
    """The exit code, or the traceback's last line; and what was said on stderr."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        try:
            code: int | str = cli.run(lambda _: job(out), [])
        except Exception as error:
            code = f"{type(error).__name__}: {error}"
    return code, said.getvalue()


def misspoken(code: int | str, said: str, out: Path) -> str:
    """A problem unless the job ended by one line that names a file of the output."""
    if code != 2:
        return f"exit code {code}"
    errors = [line for line in said.splitlines() if line.startswith(("error", "Traceback", "Exception"))]
    is_one = len(errors) == 1 and errors[0].startswith(f"error: {out}") and ".partial" not in errors[0]
    return "" if is_one else f"said {said!r}"


def problem(code: int | str, said: str, now: dict[str, int], whole: dict[str, int], out: Path, name: str) -> str:
    if code == 0:
        if name != "run folder":  # where removing what was needed on the way failed, the next job does that
            now = {name: size for name, size in now.items() if ".partial" not in name}
        return "" if now == whole else f"exit code 0, but {sorted(set(whole.items()) ^ set(now.items()))}"
    if wrong := misspoken(code, said, out):
        return wrong
    if name == "kept checkpoint":  # the one before is intact, or there is none
        steps = {name.split("/")[0] for name in now}
        return "" if steps <= {"step-00000001", "step-00000002", "last", "best"} and not _half(now, whole) else f"{now}"
    if name == "run folder" and "run/config.yaml" in now:  # it was made, and can be resumed
        return "" if set(now) <= set(whole) else f"left {sorted(now)}"
    return "" if now in ({}, whole) else f"left {sorted(now)}"


def run_problem(code: int | str, said: str, whole: dict[str, int], out: Path, name: str) -> str:
    """A problem unless the run that had a fault ends as one without."""
    if code != 0 and (wrong := misspoken(code, said, out)):
        return wrong
    if code != 0 and not (out / "run").exists():
        return f"left {sorted(found(out))}" if found(out) else ""
    if code != 0:
        code, said = attempt(verb(f"{RUNS[name]} --resume"), out)
        if code != 0 and "this run is finished" not in said:
            return f"does not resume: {code}, {said!r}"
    changed = files(found(out)) ^ files(whole)
    return f"{sorted(changed)} after resuming" if changed else ""


def files(there: dict[str, int]) -> set[str]:
    """Those that every run has: not what resuming adds, nor what is named by the time."""
    return {name for name in there if "environment-resumed" not in name and "tfevents" not in name}


def _half(now: dict[str, int], whole: dict[str, int]) -> bool:
    """Whether a checkpoint folder lacks a file that complete ones have."""
    files = {name.split("/")[-1] for name in whole}
    folders: dict[str, set[str]] = {}
    for name in now:
        folder, _, file = name.partition("/")
        folders.setdefault(folder, set()).add(file)
    return any(has != files for has in folders.values())


def main(folder: Path, names: list[str]) -> None:
    shim = ctypes.CDLL(None)
    folder = folder.absolute()
    inputs(folder / "inputs")
    os.chdir(folder / "inputs")
    torch.set_num_threads(1)
    np.seterr(all="ignore")
    out = folder / "out"
    for name in names or JOBS:
        job = verb(RUNS[name]) if name in RUNS else JOBS[name]
        out.mkdir()
        code, said = attempt(job, out)
        assert code == 0, (name, code, said)
        whole = found(out)
        for kind, (number, lasting) in KINDS.items():
            n = 0
            while True:
                n += 1
                shutil.rmtree(out)
                out.mkdir()
                shim.faults_arm(os.fsencode(out), number, ctypes.c_long(n), lasting)
                code, said = attempt(job, out)
                if not shim.faults_disarm():
                    break
                if name in RUNS:
                    wrong = run_problem(code, said, whole, out, name)
                else:
                    wrong = problem(code, said, found(out), whole, out, name)
                if wrong:
                    print(json.dumps({"job": name, "kind": kind, "n": n, "problem": wrong}), flush=True)
            print(json.dumps({"job": name, "kind": kind, "points": n - 1}), flush=True)
        shutil.rmtree(out)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
