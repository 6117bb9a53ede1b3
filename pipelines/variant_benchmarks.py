"""How good and how fast zero-shot variant scores are, on real variants with known answers.

    python pipelines/variant_benchmarks.py quality --checkpoint DIR --data DNAMAMBA_TEST_DATA --out FOLDER
        [--sets brca1 clinvar bard1 kg1000] [--probe 512] [--limit N] [--context N] [--suffix N]
    python pipelines/variant_benchmarks.py quality --checkpoint DIR --labelled clinvar.vcf.gz --genome hg38.fa \\
        --label CLNSIG --positive Pathogenic --effect MC --genes GENE --probe 512 --out FOLDER
    python pipelines/variant_benchmarks.py speed [--checkpoint DIR] [--context 131072] [--variants 1000]
    python pipelines/variant_benchmarks.py rates [--checkpoint DIR] [--contexts 512 16384] [--every 1000 100]

`quality`: the sets of `variant_sets.py`: BRCA1 and BARD1 saturation editing, ClinVar 2017 (by gene), 1000 Genomes and
changes of yeast's reading frames, each over all, within each consequence, and between consequences. AUROC and AUPRC of
−llr with 95 % intervals from resampling whole positions, genes or 10-kb blocks. Nothing is fitted: the direction is
given beforehand (a less likely allele is the more harmful one) and no threshold is chosen. --probe adds a linear probe
(`variant_probe.py`), fitted on other genes. Leaves scores-SET.npz, results.csv and deciles.csv (share of positives by
tenth of the score: its calibration). Each set's scores are kept when they are there, and not computed again; `scores`
computes them and nothing else, as on a machine without scikit-learn. --limit takes every so-manyth variant; --without
leaves out contigs that a model was trained on, --inside what is not in a BED file.

--labelled takes variants of your own in place of --sets: VCF, TSV or CSV. Of each set leaderboard.csv and
leaderboard.md have a row a consequence and one of their mean: AUPRC zero shot and of the probe, and what chance gives.

`speed`: a random genome with random variants (weights are random too without --checkpoint): bases that go through the
model and seconds for all alleles by kept states, against four whole windows an allele (timed on a few alleles), with
the scores to each tile's end to compare with. Everything in fp32 unless --precision says otherwise. `rates` is the
same without a comparison: variants an hour at several contexts and densities of variants, and the processor's seconds.

Needs numpy, torch and scikit-learn (`scores` does not); a GPU is used if there is one.
"""

import argparse
import csv
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from measured import markdown
from variant_probe import features, fitted_on, probe_scores
from variant_sets import OWN, SETS, Contrast, VariantSet, chosen, own, records_of

from dnamamba.alphabet import decode
from dnamamba.analysis.variants.plan import Plan, plan_for
from dnamamba.analysis.variants.score_job import describe_truncation
from dnamamba.analysis.variants.score_output import combine
from dnamamba.analysis.variants.scores import ScorePlan, Tokens, score_alleles
from dnamamba.finetuning.tasks.variant_report import ranking
from dnamamba.formats.checkpoint import save_checkpoint
from dnamamba.genome.alleles import Alleles, check
from dnamamba.genome.store import TokenStore, open_genome
from dnamamba.inference.load import Inference, load_for_inference
from dnamamba.model.abilities import Ability
from dnamamba.model.config import preset
from dnamamba.model.language_model import LanguageModel
from dnamamba.outputs import whole_file, write_atomically

PROBED_AT_ONCE = 512
SHOWN = {"-llr": "AUPRC zero shot", "probe": "AUPRC probe"}
"""Score → column of the leaderboard"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["quality", "scores", "speed", "rates"])
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--sets", nargs="+", default=["brca1", "clinvar", "kg1000"], choices=list(SETS))
    parser.add_argument("--labelled", type=Path, metavar="FILE", help="quality: variants with known answers")
    parser.add_argument("--genome", type=Path, nargs="+", help="--labelled: FASTA of their assembly")
    parser.add_argument("--label", default="label", help="--labelled: INFO field or column of the label")
    parser.add_argument("--positive", nargs="+", default=["1"], help="--labelled: its values of the harmful ones")
    parser.add_argument("--effect", help="--labelled: INFO field or column of the consequence")
    parser.add_argument("--genes", help="--labelled: INFO field or column of genes, which are resampled whole")
    parser.add_argument("--limit", type=int, help="variants of each set, spread evenly")
    parser.add_argument("--probe", type=int, metavar="BASES", help="also a linear probe, of windows so long")
    parser.add_argument("--without", nargs="+", default=[], metavar="CONTIG", help="leave its variants out")
    parser.add_argument("--inside", type=Path, metavar="BED", help="leave variants outside of these intervals out")
    parser.add_argument("--context", type=int)
    parser.add_argument("--suffix", type=int)
    parser.add_argument("--state_every", type=int)
    parser.add_argument("--batch_tokens", type=int)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--preset", default="7m", help="speed without a checkpoint: size of the random model")
    parser.add_argument("--variants", type=int, default=1000)
    parser.add_argument("--bases", type=int, default=1_000_000)
    parser.add_argument("--contexts", type=int, nargs="+", default=[512, 2048, 16384, 131_072], help="rates: contexts")
    parser.add_argument("--every", type=int, nargs="+", default=[1000], help="rates: bases a variant, of each genome")
    parser.add_argument("--full", type=int, default=8, help="speed: alleles timed by whole windows")
    arguments = parser.parse_args()
    if arguments.what == "speed":
        speed(arguments)
    elif arguments.what == "rates":
        rates(arguments)
    elif (arguments.data or arguments.labelled) is None or arguments.out is None:
        parser.error(f"{arguments.what} needs --out, and --data or --labelled")
    elif arguments.labelled is not None and arguments.genome is None:
        parser.error("--labelled needs --genome")
    else:
        quality(arguments)


# Quality.


def quality(arguments: argparse.Namespace) -> None:
    """Scores the sets that --out has no scores of, then writes the tables."""
    arguments.out.mkdir(parents=True, exist_ok=True)
    sets = {
        name: chosen(variants, arguments.limit, arguments.without, arguments.inside)
        for name, variants in wanted_sets(arguments)
    }
    arguments.sets = list(sets)
    missing = [name for name in sets if not is_scored(arguments, name)]
    if missing:
        if arguments.checkpoint is None:
            raise SystemExit(f"{arguments.out}: no scores yet of {', '.join(missing)}; give --checkpoint")
        score_sets(arguments, sets)
    if arguments.what == "scores":
        return
    results: list[dict[str, object]] = []
    deciles: list[dict[str, object]] = []
    for name, variants in sets.items():
        with np.load(scores_of(arguments.out, name)) as saved:
            values = {key: saved[key] for key in saved.files if key != "group"}
        ours = {f"-{part}": -values[part] for part in ("llr", "llr_forward", "at", "after")}
        everyones = ours | {"|llr|": np.abs(values["llr"])} | variants.others
        everyones |= {"probe": values["probe"]} if "probe" in values else {}
        print(f"\n{name}: {len(variants.records):,} variants")
        for contrast in variants.contrasts:
            for score_name, score in everyones.items():
                row = {"set": name, "contrast": contrast.name, "consequence": contrast.consequence, "score": score_name}
                results.append(row | measure(contrast, score, variants))
                if "auroc" in results[-1]:
                    print("  " + summary_line(results[-1]))
            deciles += [{"set": name, "contrast": contrast.name} | row for row in by_tenth(contrast, ours["-llr"])]
    write_csv(arguments.out / "results.csv", results)
    write_csv(arguments.out / "deciles.csv", deciles)
    leaderboard(arguments.out, results)


def leaderboard(folder: Path, results: list[dict[str, object]]) -> None:
    """AUPRC of each consequence within a set and their mean, by score; what chance gives is the share of positives."""
    rows: list[dict[str, object]] = []
    for name in dict.fromkeys(row["set"] for row in results):
        own = [row for row in results if row["set"] == name and row["consequence"] and "auprc" in row]
        of_set: list[dict[str, object]] = []
        for kind in dict.fromkeys(row["consequence"] for row in own):
            scored = {str(row["score"]): row for row in own if row["consequence"] == kind}
            counts = [int(str(scored["-llr"][each])) for each in ("positives", "negatives")]
            row = {"set": name, "consequence": kind, "positives": counts[0], "negatives": counts[1]}
            row |= {"chance": counts[0] / sum(counts)}
            of_set.append(row | {label: scored[key]["auprc"] for key, label in SHOWN.items() if key in scored})
        if of_set:
            numbers = [key for key in of_set[0] if key == "chance" or key in SHOWN.values()]
            means = {key: float(np.mean([float(str(row[key])) for row in of_set])) for key in numbers}
            rows += [*of_set, {"set": name, "consequence": "mean of consequences", **means}]
    if not rows:
        return
    write_csv(folder / "leaderboard.csv", rows)
    names = list(dict.fromkeys(key for row in rows for key in row))
    cells = [[f"{v:.3f}" if isinstance(v := row.get(key, ""), float) else str(v) for key in names] for row in rows]
    write_atomically(folder / "leaderboard.md", markdown(names, cells))


def wanted_sets(arguments: argparse.Namespace) -> Iterator[tuple[str, VariantSet]]:
    if arguments.labelled is None:
        yield from ((name, SETS[name](arguments.data)) for name in arguments.sets)
    else:
        columns = arguments.label, arguments.positive, arguments.effect, arguments.genes
        yield OWN, own(arguments.labelled, arguments.genome, *columns)


def scores_of(folder: Path, name: str) -> Path:
    return folder / f"scores-{name}.npz"


def is_scored(arguments: argparse.Namespace, name: str, *, probe: bool = True) -> bool:
    """With `probe`, also by the probe that --probe asks for, if the sets can be probed."""
    path = scores_of(arguments.out, name)
    if not path.exists():
        return False
    wanted = probe and arguments.probe is not None and fitted_on(arguments.sets) is not None
    with np.load(path) as saved:
        return not wanted or "probe" in saved.files


def score_sets(arguments: argparse.Namespace, sets: dict[str, VariantSet]) -> None:
    """Zero-shot scores of each set, and with --probe those of a linear probe, kept in scores-SET.npz: a set's own as
    soon as they are there, so that a run that is stopped goes on with the next set."""
    inference = load_for_inference(arguments.checkpoint, "auto", arguments.precision)
    plan = plan_of(arguments, inference)
    print("\n".join(f"{label:>10}  {text}" for label, text in (*inference.header(), *plan.lines())), flush=True)
    checked = {name: check_set(arguments, name, variants, plan) for name, variants in sets.items()}
    for name, variants in sets.items():
        if is_scored(arguments, name, probe=False):
            continue
        store, alleles = checked[name]
        began = time.perf_counter()
        scores = plan.score(inference, store, alleles, progress_line(name))
        took = time.perf_counter() - began
        print(f"{name}: {len(alleles):,} alleles in {took:.1f} s, {plan.describe_run(scores.tokens)}", flush=True)
        if text := describe_truncation(scores.truncation):
            print(f"  suffix: {text}")
        save_scores(arguments.out, name, variants, combine(alleles, scores).values)
    if all(is_scored(arguments, name) for name in sets):
        return
    length = min(arguments.probe, plan.context)
    described = {name: features(inference, *checked[name], length, PROBED_AT_ONCE) for name in sets}
    for name, probed in probe_scores(sets, described, inference.device).items():
        with np.load(scores_of(arguments.out, name)) as saved:
            kept = {key: saved[key] for key in saved.files if key != "group" and key not in sets[name].others}
        save_scores(arguments.out, name, sets[name], kept | {"probe": probed})


def check_set(arguments: argparse.Namespace, name: str, variants: VariantSet, plan: Plan) -> tuple[TokenStore, Alleles]:
    """The genome of a set, and its alleles there."""
    store = open_genomes(variants.genomes, arguments.out)
    checked = check(variants.records, store, plan.context // 2)
    if len(checked.mismatches):
        what = f"{name}: {len(checked.mismatches)} records differ from the genome"
        assert name == OWN, what
        print(f"{what}; they have no score")
    return store, checked.alleles


def save_scores(folder: Path, name: str, variants: VariantSet, values: dict[str, np.ndarray]) -> None:
    values = {key: column.astype(np.float32) for key, column in values.items()}
    with whole_file(scores_of(folder, name), overwrite=True) as partial, partial.open("wb") as file:
        np.savez_compressed(file, **values, group=variants.group, **variants.others)


def plan_of(arguments: argparse.Namespace, inference: Inference) -> Plan:
    if Ability.PREDICTS_MASKED_BASE in inference.model.abilities:
        return plan_for(inference, context=arguments.context, batch_tokens=arguments.batch_tokens)
    return plan_for(
        inference,
        context=arguments.context,
        suffix=arguments.suffix,
        state_every=arguments.state_every,
        batch_tokens=arguments.batch_tokens,
        check=16,
    )


def open_genomes(paths: list[Path], folder: Path) -> TokenStore:
    """The token store next to the file, or where that is read-only in the results' folder's `stores`."""
    stores = folder / "stores"
    stores.mkdir(exist_ok=True)
    return open_genome(paths, stores / f"{paths[0].name}-{len(paths)}.dnamamba")


def measure(contrast: Contrast, score: np.ndarray, variants: VariantSet) -> dict[str, object]:
    """A row of results.csv."""
    used = contrast.used & np.isfinite(score)
    found = ranking(contrast.positive[used], score[used], variants.group[used])
    row: dict[str, object] = {name: found[name] for name in ("positives", "negatives")}
    for name in ("auroc", "auprc"):
        if name in found:
            row |= {name: found[name]["value"], f"{name}_low": found[name]["low"], f"{name}_high": found[name]["high"]}
    if variants.by_group and "auroc" in found:
        own = found["mean_auroc_by_group"]
        row |= {"mean_auroc_by_group": own["value"], "groups_by_group": own["groups"]}
    return row


def by_tenth(contrast: Contrast, score: np.ndarray) -> list[dict[str, object]]:
    used = contrast.used & np.isfinite(score)
    order = np.argsort(score[used], kind="stable")
    truth, values = contrast.positive[used][order], score[used][order]
    return [
        {
            "tenth": tenth + 1,
            "variants": part.size,
            "mean_score": values[part].mean(),
            "share_positive": truth[part].mean(),
        }
        for tenth, part in enumerate(np.array_split(np.arange(truth.size), 10))
        if part.size
    ]


def summary_line(row: dict[str, object]) -> str:
    interval = f" [{row['auroc_low']:.3f}, {row['auroc_high']:.3f}]"
    within = (
        f", by gene {row['mean_auroc_by_group']:.3f} ({row['groups_by_group']})" if row.get("groups_by_group") else ""
    )
    counts = f"{row['positives']}/{row['negatives']}"
    figures = f"AUROC {row['auroc']:.3f}{interval}, AUPRC {row['auprc']:.3f}{within}"
    return f"{row['contrast']} ({counts}): {row['score']} {figures}"


def progress_line(name: str):
    last = time.perf_counter()

    def report(done: int, total: int) -> None:
        nonlocal last
        if time.perf_counter() - last > 20:
            print(f"  {name}: {done:,} of {total:,}", flush=True)
            last = time.perf_counter()

    return report


def write_csv(path: Path, rows: list[dict[str, object]]) -> None:
    names = list(dict.fromkeys(key for row in rows for key in row))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows)


# Speed.


def timed_model(arguments: argparse.Namespace, folder: Path) -> Inference:
    """The checkpoint; without one a random model, kept in the folder."""
    if arguments.checkpoint is None:
        torch.manual_seed(0)
        save_checkpoint(LanguageModel(preset(arguments.preset)), folder / "model", {})
    return load_for_inference(arguments.checkpoint or folder / "model", "auto", arguments.precision)


def speed(arguments: argparse.Namespace) -> None:
    arguments.context = arguments.context or 131_072
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        inference = timed_model(arguments, folder)
        plan = plan_of(arguments, inference)
        assert isinstance(plan, ScorePlan), "speed is that of models that predict the next base"
        plan = replace(plan, check=0)
        store, alleles = random_variants(folder, arguments.bases, arguments.variants)
        print("\n".join(f"{label:>10}  {text}" for label, text in inference.header()))
        score_alleles(inference, store, some(alleles, np.arange(min(4, len(alleles)))), plan)  # kernels get compiled
        scores, seconds = timed(inference, store, alleles, plan)
        exact, exact_seconds = timed(inference, store, alleles, replace(plan, exact=True))
        sample = some(alleles, np.linspace(0, len(alleles) - 1, arguments.full).round().astype(np.int64))
        whole_windows(inference, store, some(sample, np.arange(1)), plan)
        windows, window_seconds = whole_windows(inference, store, sample, plan)
        report(plan, alleles, scores.tokens, seconds, exact.tokens, exact_seconds, window_seconds / len(sample))
        ours, theirs = (combine(alleles, s).values["llr"] for s in (scores, exact))
        compare("--suffix against --exact", ours, theirs)
        picked = np.linspace(0, len(alleles) - 1, arguments.full).round().astype(np.int64)
        compare("--exact against whole windows", theirs[picked], windows)
        if inference.device.type == "cuda":
            print(f"{'memory':>10}  {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB at most")


def rates(arguments: argparse.Namespace) -> None:
    """A row a context and density."""
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        inference = timed_model(arguments, folder)
        print("\n".join(f"{label:>10}  {text}" for label, text in inference.header()))
        for every in arguments.every:
            (folder / f"{every}").mkdir()
            store, alleles = random_variants(folder / f"{every}", arguments.variants * every, arguments.variants)
            for context in arguments.contexts:
                arguments.context = context
                plan = plan_of(arguments, inference)
                assert isinstance(plan, ScorePlan), "rates are those of models that predict the next base"
                plan = replace(plan, check=0)
                few = some(alleles, np.arange(min(arguments.full, len(alleles))))
                score_alleles(inference, store, few, plan)  # kernels get compiled
                began = time.process_time()
                scores, seconds = timed(inference, store, alleles, plan)
                run = scores.tokens.tiles + scores.tokens.alleles
                row: dict[str, object] = {"context": context, "bases_a_variant": every, "suffix": plan.tiling.suffix}
                row |= {"state_every": plan.state_every, "precision": inference.precision, "variants": len(alleles)}
                row |= {
                    "variants_an_hour": round(len(alleles) / seconds * 3600),
                    "bases_a_second": round(run / seconds),
                }
                row |= {"bases_run_a_variant": round(run / len(alleles)), "seconds": round(seconds, 3)}
                rows.append(row | {"processor_seconds": round(time.process_time() - began, 3)})
                print(", ".join(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
    if arguments.out is not None:
        write_csv(arguments.out, rows)


def random_variants(folder: Path, bases: int, count: int) -> tuple[TokenStore, Alleles]:
    """SNVs, and one in ten an insertion or deletion of up to 10 bases."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(4, size=bases).astype(np.uint8)
    sequence = decode(tokens)
    (folder / "genome.fa").write_text(f">random\n{sequence}\n")
    start = np.sort(rng.choice(np.arange(1, bases - 20), count, replace=False))
    ref, alt = [], []
    for number, position in enumerate(start.tolist()):
        base = sequence[position]
        length = int(rng.integers(1, 11))
        if number % 20 == 0:
            ref.append(sequence[position : position + 1 + length])
            alt.append(base)
        elif number % 20 == 10:
            ref.append(base)
            alt.append(base + decode(rng.integers(4, size=length).astype(np.uint8)))
        else:
            ref.append(base)
            alt.append("ACGT"[(tokens[position] + int(rng.integers(1, 4))) % 4])
    store = open_genome(folder / "genome.fa")
    return store, check(records_of(["random"] * count, start.tolist(), ref, alt), store, bases).alleles


def some(alleles: Alleles, index: np.ndarray) -> Alleles:
    return Alleles(
        np.arange(len(index) + 1),
        alleles.contig[index],
        alleles.start[index],
        alleles.ref_length[index],
        [alleles.alt[i] for i in index.tolist()],
        alleles.reason[index],
    )


def timed(inference: Inference, store: TokenStore, alleles: Alleles, plan: ScorePlan):
    synchronise(inference)
    began = time.perf_counter()
    scores = score_alleles(inference, store, alleles, plan)
    synchronise(inference)
    return scores, time.perf_counter() - began


def synchronise(inference: Inference) -> None:
    if inference.device.type == "cuda":
        torch.cuda.synchronize()


@torch.inference_mode()
def whole_windows(
    inference: Inference, store: TokenStore, alleles: Alleles, plan: ScorePlan
) -> tuple[np.ndarray, float]:
    """llr (mean of both strands) and seconds of the plain way: two windows a strand, from its start to its end."""
    from dnamamba.alphabet import encode, reverse_complement
    from dnamamba.model.loss import next_base_log_likelihood

    contig = store.contigs[0]
    whole = store.read(contig.name, 0, contig.length)
    synchronise(inference)
    began = time.perf_counter()
    llr = np.zeros(len(alleles))
    for reverse in (False, True):
        sequence = reverse_complement(whole) if reverse else whole
        start = contig.length - alleles.start - alleles.ref_length if reverse else alleles.start
        tiled = plan.tiling.locate(start, alleles.ref_length, np.full(len(alleles), contig.length))
        for number in range(len(alleles)):
            alt = encode(alleles.alt[number])
            alt = reverse_complement(alt) if reverse else alt
            first, cut = int(tiled.tile_start[number]), int(start[number])
            end = first + int(tiled.exact_end[number])
            reference = sequence[first:end]
            changed = np.concatenate((sequence[first:cut], alt, sequence[cut + int(alleles.ref_length[number]) : end]))
            for tokens, sign in ((changed, 1), (reference, -1)):
                row = torch.from_numpy(tokens.copy())[None].to(inference.device)
                with inference.autocast():
                    logits = inference.model(row).logits
                log_likelihood = next_base_log_likelihood(logits[:, :-1], row[:, 1:])[:, cut - first - 1 :]
                llr[number] += sign * float(log_likelihood.double().nansum()) / 2
    synchronise(inference)
    return llr, time.perf_counter() - began


def report(
    plan: ScorePlan,
    alleles: Alleles,
    tokens: Tokens,
    seconds: float,
    exact: Tokens,
    exact_seconds: float,
    window_seconds: float,
) -> None:
    run = tokens.tiles + tokens.alleles
    full_seconds = window_seconds * len(alleles)
    print(f"{'alleles':>10}  {len(alleles):,}; context {plan.tiling.context:,}, suffix {plan.tiling.suffix:,}")
    print(
        f"{'states':>10}  {seconds:.2f} s, {run / 1e6:.2f} Mbases ({tokens.tiles / 1e6:.2f} in tiles), "
        f"{run / seconds / 1e6:.2f} Mbases/s, {len(alleles) / seconds:.0f} alleles/s"
    )
    print(
        f"{'exact':>10}  {exact_seconds:.2f} s, {(exact.tiles + exact.alleles) / 1e6:.2f} Mbases: "
        f"{full_seconds / exact_seconds:.1f} times faster than windows"
    )
    print(
        f"{'windows':>10}  {full_seconds:.2f} s for all ({window_seconds:.3f} s an allele timed), "
        f"{tokens.full / 1e6:.0f} Mbases, {tokens.full / full_seconds / 1e6:.2f} Mbases/s"
    )
    print(f"{'ratio':>10}  {tokens.full / run:.1f} times fewer bases, {full_seconds / seconds:.1f} times faster")


def compare(name: str, ours: np.ndarray, theirs: np.ndarray) -> None:
    from scipy.stats import spearmanr

    error = np.abs(ours - theirs)
    correlation = spearmanr(ours, theirs).statistic if len(ours) > 2 else float("nan")
    print(
        f"{'compare':>10}  {name}, {len(ours)} alleles: Spearman {correlation:.6f}, |error| mean {error.mean():.2g}, "
        f"max {error.max():.2g} nats; scores deviate by {theirs.std():.2g}"
    )


if __name__ == "__main__":
    main()
