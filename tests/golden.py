"""Golden outputs: what every verb writes for fixed inputs, recorded, and compared number by number.

    python tests/golden.py record FILE.npz [CASE ...]      run the cases, keep what they wrote
    python tests/golden.py compare FILE.npz [CASE ...]     run them again; exit code 1 where anything differs
    python tests/golden.py against REVISION [CASE ...]     run them with the code of REVISION too, and compare all bits
    python tests/golden.py show FILE.npz [CASE ...]        print a recording
    python tests/golden.py list                            the cases

CASE is a name or a shell pattern (`score*`). Cases are command lines and nothing else: modules may move and be renamed.
They run in a copy of the fixtures, whose models are trained already, in fp32 on the CPU with `--threads 1`. A verb runs
as `python -m dnamamba.VERB` does, in a process of its own, forked from one that has imported torch.

FILE holds of each array and text a digest of all of it, and `KEPT` values: `compare` always finds a difference, and
measures it on what was kept. `golden_values.py` says what is left out because it differs from run to run.
"""

import argparse
import contextlib
import fnmatch
import os
import runpy
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from golden_values import Content, Recording, contents, differences, load, machine, reduced, save, stable_lines

ROOT = Path(__file__).resolve().parent.parent
FIXTURES = Path(__file__).resolve().parent / "fixtures" / "formats-2026-11"
RECORDED_IN = "/tmp/formats-2026-11"
"""Where the fixtures were made: their files have absolute paths, which become those of the copy."""
KEPT = 256
"""Values of an array, and lines of a text, that a recording holds."""
UNEXPECTED = "unexpected exit code"
"""The only output of a case that failed."""


class Case(NamedTuple):
    """A command line; `{out}` is a new folder of its own."""

    command: str
    outputs: str = "{out}"
    """What to record: the files of this folder."""
    prints: bool = False
    """Record standard output too."""
    code: int = 0
    """Exit code; with another one standard error is recorded."""


LM, CLASSIFIER = "--checkpoint pretrain-finished --accelerator cpu", "--checkpoint finetune-finished --accelerator cpu"
GENOME = "--genome inputs/genome.fa"
TINY = "--model.preset demo --model.n_layer 1 --model.d_model 16 --model.d_state 4 --accelerator cpu"
SHORT = "--length 256 --batch_tokens 1024 --validation_tokens 4096 --markov_order 3 --log_every 1 --keep 1"
VARIANTS = "--task variants --variants inputs/labelled.tsv --genome inputs/genome.fa --length 128 --batch_size 32"
SPECIES = "--task species --species inputs/species.tsv --length 256 --examples 64 --evaluation_examples 16"
SEQUENCES = "--task sequences --data inputs/sequences --batch_size 16"
SCORE = f"score {LM} {GENOME} --vcf inputs/variants.vcf --max_mismatches 0.2 --batch_tokens 8192"

CASES = {
    # The files of November 2026: run folders that were stopped are resumed, models and stores are read.
    "formats/pretrain": Case("pretrain --resume --out pretrain-stopped", "pretrain-stopped"),
    "formats/mixture": Case("pretrain --resume --out pretrain-mixture-stopped", "pretrain-mixture-stopped"),
    "formats/sequences": Case("finetune --resume --out finetune-stopped", "finetune-stopped"),
    "formats/variants": Case("finetune --resume --out finetune-variants-stopped", "finetune-variants-stopped"),
    "formats/classifier": Case(f"predict {CLASSIFIER} --input inputs/asked.fa --out {{out}}/asked.parquet"),
    "formats/options": Case(
        f"likelihood --checkpoint checkpoint-options {GENOME} --contigs plasmid_1 --format npz --out {{out}}/plasmid"
    ),
    "formats/store": Case("doctor --store inputs/genome.fa.dnamamba", outputs=""),
    "formats/store_read": Case(
        f"likelihood {LM} --genome inputs/genome.fa.dnamamba --region chr1:9,901-10,600 --format npz --out {{out}}/n"
    ),
    "formats/store_again": Case(
        f"pretrain --dry_run {GENOME} {TINY} {SHORT} --store {{out}}/genome.dnamamba --out {{out}}/run"
    ),
    # pretrain
    "pretrain/one": Case(
        f"pretrain {GENOME} {TINY} {SHORT} --max_steps 8 --validation_every 4 --soft_mask_weight 0.3 "
        "--exclude inputs/exclude.bed --annotation inputs/genes.gff3 --micro_tokens 512 --out {out}/run"
    ),
    "pretrain/mixture": Case(
        f"pretrain --mixture inputs/mixture.yaml {TINY} --length 2048 --length_warmup 0.5 --pack --batch_tokens 4096 "
        "--max_steps 6 --validation_every 3 --validation_tokens 8192 --markov_order 2 --model.discretization zoh "
        "--model.activation_checkpointing true --keep 1 --out {out}/run"
    ),
    "pretrain/demo": Case(
        f"pretrain --store demo.dnamamba {TINY} {SHORT} --markov_order 6 --max_steps 2 --out {{out}}/run"
    ),
    "pretrain/dry_run": Case(f"pretrain --dry_run {GENOME} {TINY} {SHORT} --out {{out}}/run", prints=True),
    # finetune
    "finetune/species": Case(
        f"finetune {LM} {SPECIES} --steps 4 --batch_size 16 --kmer 3 --conjoin test --out {{out}}/run"
    ),
    "finetune/species_probe": Case(
        f"finetune {LM} {SPECIES} --mode probe --epochs 2 --batch_size 16 --kmer 0 --pooling mean --out {{out}}/run"
    ),
    "finetune/sequences": Case(
        f"finetune {LM} {SEQUENCES} --epochs 2 --learning_rate 0.003 0.001 --kmer 3 --out {{out}}/run", prints=True
    ),
    "finetune/sequences_probe": Case(
        f"finetune {LM} {SEQUENCES} --mode probe --epochs 3 --seeds 2 --conjoin no test concatenate --kmer 0 "
        "--pooling mean --out {out}/run"
    ),
    "finetune/regression": Case(
        f"finetune --checkpoint none {TINY} --task sequences --data inputs/regression --kind regression --epochs 3 "
        "--batch_size 32 --kmer 2 --conjoin always --length 96 --out {out}/run"
    ),
    "finetune/variants": Case(f"finetune {LM} {VARIANTS} --epochs 2 --out {{out}}/run"),
    "finetune/variants_probe": Case(f"finetune {LM} {VARIANTS} --mode probe --epochs 4 --out {{out}}/run"),
    "finetune/dry_run": Case(f"finetune --dry_run {LM} {SEQUENCES} --out {{out}}/run", prints=True),
    # predict
    "predict/fasta": Case(f"predict {CLASSIFIER} --input inputs/asked.fa --out {{out}}/asked.csv", prints=True),
    "predict/bed": Case(f"predict {CLASSIFIER} {GENOME} --input inputs/regions.bed --out {{out}}/regions.parquet"),
    "predict/table": Case(f"predict {CLASSIFIER} --input inputs/asked.tsv --window 100 --out {{out}}/asked.tsv"),
    # likelihood
    "likelihood/tiles": Case(
        f"likelihood {LM} {GENOME} --contigs chr2 plasmid_1 --format bigwig,npz --out {{out}}/tiles", prints=True
    ),
    "likelihood/unlimited": Case(
        f"likelihood {LM} {GENOME} --contigs chr3 plasmid_1 --context unlimited --format parquet --batch_tokens 2048 "
        "--out {out}/unlimited"
    ),
    "likelihood/regions": Case(
        f"likelihood {LM} {GENOME} --regions inputs/regions.bed --context 400 --overlap 100 --format bedgraph,parquet "
        "--tracks log_likelihood entropy --out {out}/regions"
    ),
    "likelihood/region": Case(
        f"likelihood {LM} {GENOME} --region chr1:9,901-10,600 chr2:1-300 --strands reverse mean --format npz,bedgraph "
        "--tracks p_A,p_T --out {out}/region"
    ),
    # score
    "score/vcf": Case(f"{SCORE} --state_every 1024 --out {{out}}/scored.vcf --check 8", prints=True),
    "score/exact": Case(f"{SCORE} --state_every 1024 --exact --out {{out}}/scored.vcf.gz"),
    "score/distance": Case(f"{SCORE} --state_every 1024 --embedding_distance --check 0 --out {{out}}/scored.parquet"),
    "score/table": Case(f"{SCORE} --context 512 --suffix 64 --state_every 128 --check 0 --out {{out}}/scored.tsv"),
    # mutagenesis
    "mutagenesis/files": Case(
        f"mutagenesis {LM} {GENOME} --region chr1:10,481-10,540 --format parquet,npz,tsv --check 4 --out {{out}}/map",
        prints=True,
    ),
    "mutagenesis/edge": Case(
        f"mutagenesis {LM} {GENOME} --region chr3:1-40 --context 256 --suffix 32 --state_every 16 --check 0 "
        "--format npz,png --out {out}/edge"
    ),
    # embed
    "embed/mean": Case(f"embed {LM} --input inputs/asked.fa --out {{out}}/mean.parquet", prints=True),
    "embed/last": Case(f"embed {LM} {GENOME} --input inputs/regions.bed --pool last --out {{out}}/last.npz"),
    "embed/position": Case(
        f"embed {LM} {GENOME} --input inputs/regions.bed --pool position --both_strands --out {{out}}/position.npz"
    ),
    "embed/both": Case(
        f"embed {LM} --input inputs/asked.fa --both_strands --batch_tokens 512 --out {{out}}/both.parquet"
    ),
    # generate
    "generate/prompt": Case(f"generate {LM} --prompt ACGTNACGT --length 120 --samples 3 --seed 5", prints=True),
    "generate/prompts": Case(
        f"generate {LM} --prompts inputs/prompts.fa --length 90 --samples 2 --temperature 0.8 --top_k 2 --with_prompt "
        "--out {out}/sampled.fa"
    ),
    "generate/greedy": Case(f"generate {LM} --prompt ACGT --length 60 --temperature 0 --out {{out}}/greedy.fa"),
    # info and doctor
    "info/pretrained": Case("info pretrain-finished", prints=True),
    "info/finetuned": Case("info finetune-finished", prints=True),
    "info/json": Case("info --json finetune-finished", prints=True),
    "doctor/runs": Case("doctor", outputs=""),
    # What is refused: one line, exit code 2.
    "errors/flag": Case("pretrain --lenght 5", code=2),
    "errors/resume": Case("pretrain --resume --out pretrain-stopped-2", code=2),
    "errors/region": Case(f"likelihood {LM} {GENOME} --region chr1:60,000-70,000 --out {{out}}/x", code=2),
    "errors/classifier": Case(f"predict {LM} --input inputs/asked.fa --out {{out}}/x.csv", code=2),
    "errors/mismatches": Case(f"score {LM} {GENOME} --vcf inputs/variants.vcf --out {{out}}/x.vcf", code=2),
    "errors/prompt": Case(f"generate {LM} --prompt AC!T", code=2),
    "errors/format": Case(f"mutagenesis {LM} {GENOME} --region chr3:1-9 --format gif --out {{out}}/x", code=2),
    "errors/data": Case(f"finetune {LM} --task sequences --data inputs/nothing --out {{out}}/x", code=2),
}

# --- Running -------------------------------------------------------------------------------------------------------


def chosen(patterns: Sequence[str]) -> list[str]:
    """Names of the cases; all of them without a pattern."""
    unknown = [pattern for pattern in patterns if not fnmatch.filter(CASES, pattern)]
    if unknown:
        sys.exit(f"no case is called {', '.join(unknown)}; see `python tests/golden.py list`")
    return [name for name in CASES if not patterns or any(fnmatch.fnmatch(name, pattern) for pattern in patterns)]


def copy_fixtures(work: Path) -> None:
    """The folder that cases run in: FIXTURES, with the paths in them changed to `work`."""
    shutil.copytree(FIXTURES, work, symlinks=True, ignore=shutil.ignore_patterns("*.md", "*.py", "*.sh", "*.npz"))
    for path in work.rglob("*"):
        if path.suffix in (".json", ".yaml") and not path.is_symlink():
            path.write_text(path.read_text("utf-8").replace(RECORDED_IN, str(work)), "utf-8")


def record(
    names: Sequence[str], tree: Path = ROOT, threads: int = 1, limit: int = KEPT, quiet: bool = False
) -> Recording:
    """Runs the cases with the code of `tree`. One that ends otherwise than it should has its exit code for output.

    Raises `RuntimeError` where no case could run.
    """
    with tempfile.TemporaryDirectory(prefix="golden-") as temporary:
        work = Path(temporary).resolve() / "work"
        copy_fixtures(work)
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        environment |= {"PYTHONPATH": os.pathsep.join(map(str, packages(tree))), "OMP_NUM_THREADS": str(threads)}
        environment |= {"OMP_WAIT_POLICY": "PASSIVE", "MPLBACKEND": "Agg", "CUDA_VISIBLE_DEVICES": ""}
        command = [sys.executable, __file__, "_run", str(work), *names]
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE if quiet else None, text=True)
        if done.returncode:
            raise RuntimeError(f"{done.stdout or ''}the cases did not run with {tree}")
        outputs = {}
        for name in names:
            case, out = CASES[name], out_folder(work, name)
            code = printed(work, name, "code")
            if code != [str(case.code)]:
                outputs[name] = {UNEXPECTED: reduced(code, limit)}
                continue
            found: Content = {}
            if case.outputs:
                found |= contents(work / case.outputs.format(out=out), work)
            if case.prints:
                found["standard output"] = printed(work, name, "stdout")
            if case.code:
                found["standard error"] = printed(work, name, "stderr")
            outputs[name] = {output: reduced(value, limit) for output, value in found.items()}
        return Recording(machine(threads), outputs)


def printed(work: Path, name: str, stream: str) -> list[str]:
    text = printed_file(work, name, stream).read_text()
    return [line.replace(str(work), "WORK") for line in stable_lines(text)]


def printed_file(work: Path, name: str, stream: str) -> Path:
    return work / "printed" / f"{name.replace('/', '-')}.{stream}"


def packages(tree: Path) -> list[Path]:
    """The folders of `tree` that hold the packages, wherever it keeps them."""
    found = []
    for package in ("dnamamba", "dnamamba_kernels"):
        found_in = [
            path.parent.parent for depth in ("", "*/", "*/*/") for path in tree.glob(f"{depth}{package}/__init__.py")
        ]
        if found_in:
            found.append(found_in[0])
    if not found:
        sys.exit(f"{tree}: there is no package dnamamba")
    return found


def out_folder(work: Path, name: str) -> Path:
    return Path("out", name.replace("/", "-"))


def run_cases(work: Path, names: Sequence[str]) -> int:
    """In the process of `record`, with its PYTHONPATH: forks a process for each case."""
    import lightning
    import matplotlib.figure
    import numba
    import polars
    import sklearn.linear_model
    import torch

    import dnamamba
    from dnamamba_kernels import selective_scan

    print(f"code of {Path(dnamamba.__file__).parent}", flush=True)
    assert all((lightning, matplotlib, numba, polars, sklearn, torch))
    x, A = torch.zeros(1, 4, 2, requires_grad=True), -torch.ones(2, 4)
    selective_scan(x, x, A, A, A)[0].sum().backward()  # numba starts here, for half a second, not in each process
    os.chdir(work)
    Path("printed").mkdir()
    for name in names:
        out_folder(work, name).mkdir(parents=True)
        began = time.perf_counter()
        code = run_case(name)
        print(f"{time.perf_counter() - began:6.1f} s  {name}", flush=True)
        printed_file(Path(), name, "code").write_text(f"{code}\n")
        if code != CASES[name].code:
            print(
                f"{name}: exit code {code}\n{printed_file(Path(), name, 'stderr').read_text()}",
                file=sys.stderr,
                flush=True,
            )
    return 0


def run_case(name: str) -> int:
    """The exit code."""
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    code: Any = 70
    try:
        for stream, number in (("stdout", 1), ("stderr", 2)):
            target = os.open(printed_file(Path(), name, stream), os.O_WRONLY | os.O_CREAT)
            os.dup2(target, number)
        verb, *arguments = CASES[name].command.format(out=out_folder(Path(), name)).split()
        sys.argv = sys.orig_argv = [verb, *arguments]
        runpy.run_module(f"dnamamba.{verb}", run_name="__main__", alter_sys=True)
    except SystemExit as ended:
        code = ended.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 1)


# --- Command line --------------------------------------------------------------------------------------------------


def show(recording: Recording, names: Sequence[str]) -> None:
    print(f"recorded on {recording.machine}")
    for name in names:
        for output, item in recording.outputs.get(name, {}).items():
            print(f"{name}  {output}  {item.dtype} {item.shape}  {item.digest[:32]}")
            for line in item.kept if item.dtype == "text" else []:
                print(f"    {line}")


def report(before: Recording, now: Recording) -> int:
    """Prints what differs; the exit code."""
    if before.machine != now.machine:
        print(f"another machine: recorded on {before.machine}, this is {now.machine}")
    failed = 0
    for name in now.outputs:
        found = (
            list(differences(before.outputs[name], now.outputs[name])) if name in before.outputs else ["not recorded"]
        )
        failed += bool(found)
        print(f"{name}: {'equal' if not found else f'{len(found)} of {len(now.outputs[name])} outputs differ'}")
        for line in found[:12]:
            print(f"    {line}")
        if len(found) > 12:
            print(f"    … and {len(found) - 12} more")
    print(f"{len(now.outputs) - failed} of {len(now.outputs)} cases are equal")
    return int(failed > 0)


@contextlib.contextmanager
def checked_out(revision: str) -> Iterator[Path]:
    """A git worktree of that revision, for as long as it is needed."""
    with tempfile.TemporaryDirectory(prefix="golden-") as temporary:
        tree = Path(temporary).resolve() / "tree"
        git = ["git", "-C", str(ROOT), "worktree"]
        subprocess.run([*git, "add", "--quiet", "--detach", str(tree), revision], check=True)
        try:
            yield tree
        finally:
            subprocess.run([*git, "remove", "--force", str(tree)], check=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mode", choices=["record", "compare", "against", "show", "list", "_run"])
    parser.add_argument("target", nargs="?", help="FILE.npz or REVISION")
    parser.add_argument("cases", nargs="*")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    if arguments.mode == "list":
        print("\n".join(f"{name}: {case.command}" for name, case in CASES.items()))
        return 0
    if arguments.target is None:
        parser.error("name FILE.npz or REVISION")
    if arguments.mode == "_run":
        return run_cases(Path(arguments.target), arguments.cases)
    names = chosen(arguments.cases)
    if arguments.mode == "show":
        show(load(Path(arguments.target)), names)
        return 0
    if arguments.mode == "against":
        with checked_out(arguments.target) as tree:
            before = record(names, tree, arguments.threads, limit=sys.maxsize)
        return report(before, record(names, threads=arguments.threads, limit=sys.maxsize))
    now = record(names, threads=arguments.threads)
    if arguments.mode == "record":
        if failed := [name for name, outputs in now.outputs.items() if UNEXPECTED in outputs]:
            sys.exit(f"nothing is recorded: {', '.join(failed)}")
        save(now, Path(arguments.target))
        print(f"{arguments.target}: {len(names)} cases, {sum(map(len, now.outputs.values()))} outputs")
        return 0
    return report(load(Path(arguments.target)), now)


if __name__ == "__main__":
    sys.exit(main())
