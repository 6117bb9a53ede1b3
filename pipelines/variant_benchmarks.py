"""How good and how fast zero-shot variant scores are, on real variants with known answers.

    python pipelines/variant_benchmarks.py quality --checkpoint DIR --data DNAMAMBA_TEST_DATA --out FOLDER
        [--sets brca1 clinvar kg1000] [--limit N] [--context N] [--suffix N]
    python pipelines/variant_benchmarks.py speed [--checkpoint DIR] [--context 131072] [--variants 1000]

`quality`: BRCA1 saturation editing (loss of function against the rest and against functional, next to CADD and phyloP),
ClinVar 2017 (by gene, missense apart) and 1000 Genomes (common against singletons). AUROC and AUPRC of −llr with 95 %
intervals from resampling whole positions, genes or 10-kb blocks. Nothing is fitted: the direction is given beforehand
(a less likely allele is the more harmful one) and no threshold is chosen. Leaves results.csv, deciles.csv (share of
positives by tenth of the score: its calibration) and scores-SET.npz. --limit takes every so-manyth variant.

`speed`: a random genome with random variants (weights are random too without --checkpoint): bases that go through the
model and seconds for all alleles by kept states, against four whole windows an allele (timed on a few alleles), with
the scores to each tile's end to compare with. Everything in fp32 unless --precision says otherwise.

Needs numpy, torch and scikit-learn; a GPU is used if there is one.
"""

import argparse
import csv
import gzip
import tempfile
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from dnamamba.alphabet import decode
from dnamamba.analysis.variants.plan import default_suffix
from dnamamba.analysis.variants.score_job import describe_truncation
from dnamamba.analysis.variants.score_output import combine
from dnamamba.analysis.variants.scores import ScorePlan, Tokens, score_alleles
from dnamamba.analysis.variants.tiles import Tiling
from dnamamba.finetuning.tasks.variant_report import ranking
from dnamamba.formats.checkpoint import save_checkpoint
from dnamamba.genome.alleles import Alleles, check
from dnamamba.genome.store import TokenStore, open_genome
from dnamamba.genome.vcf import Records
from dnamamba.inference.load import Inference, load_for_inference
from dnamamba.model.config import preset
from dnamamba.model.language_model import LanguageModel


@dataclass(frozen=True)
class Contrast:
    """One comparison: are the positives distinguished from the negatives?"""

    name: str
    used: np.ndarray
    """(variants,) bool"""
    positive: np.ndarray
    """(variants,) bool"""


@dataclass(frozen=True)
class VariantSet:
    """Variants with known answers."""

    name: str
    genomes: list[Path]
    records: Records
    contrasts: list[Contrast]
    group: np.ndarray
    """(variants,) what is resampled as a whole"""
    by_group: bool = False
    """Report the mean AUROC within groups too"""
    others: dict[str, np.ndarray] = field(default_factory=dict)
    """(variants,) scores of others, higher is more harmful"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["quality", "speed"])
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--sets", nargs="+", default=["brca1", "clinvar", "kg1000"], choices=list(SETS))
    parser.add_argument("--limit", type=int, help="variants of each set, spread evenly")
    parser.add_argument("--context", type=int)
    parser.add_argument("--suffix", type=int)
    parser.add_argument("--state_every", type=int, default=1024)
    parser.add_argument("--batch_tokens", type=int)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--preset", default="7m", help="speed without a checkpoint: size of the random model")
    parser.add_argument("--variants", type=int, default=1000)
    parser.add_argument("--bases", type=int, default=1_000_000)
    parser.add_argument("--full", type=int, default=8, help="speed: alleles timed by whole windows")
    arguments = parser.parse_args()
    if arguments.what == "speed":
        speed(arguments)
    elif arguments.checkpoint is None or arguments.data is None or arguments.out is None:
        parser.error("quality needs --checkpoint, --data and --out")
    else:
        quality(arguments)


# What is known of which variants.


def rows_of(path: Path) -> list[dict[str, str]]:
    with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as file:
        return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))


def records_of(contigs: list[str], start: list[int], ref: list[str], alt: list[str]) -> Records:
    names = list(dict.fromkeys(contigs))
    index = {name: number for number, name in enumerate(names)}
    return Records(
        tuple(names), np.array([index[c] for c in contigs], np.int32), np.array(start, np.int64), list(ref), list(alt)
    )


def column(rows: list[dict[str, str]], name: str) -> np.ndarray:
    return np.array([row[name] for row in rows])


def numbers(rows: list[dict[str, str]], name: str) -> np.ndarray:
    return np.array([float(row[name]) if row[name] not in ("", "NA", "nan") else np.nan for row in rows])


def brca1(data: Path) -> VariantSet:
    folder = data / "brca1_sge"
    rows = rows_of(folder / "brca1_sge.tsv")
    start = [int(row["region_offset0"]) for row in rows]
    records = records_of(["BRCA1_region"] * len(rows), start, [r["ref"] for r in rows], [r["alt"] for r in rows])
    kind = column(rows, "class")
    everything = np.ones(len(rows), bool)
    return VariantSet(
        "brca1",
        [folder / "brca1_region_GRCh37.fa.gz"],
        records,
        [
            Contrast("LOF against the rest", everything, kind == "LOF"),
            Contrast("LOF against FUNC", kind != "INT", kind == "LOF"),
            *(
                Contrast(f"LOF against the rest, {what}", column(rows, "consequence") == what, kind == "LOF")
                for what in ("Missense", "Intronic", "Splice region", "Synonymous")
            ),
        ],
        np.array(start).astype(str),
        others={name: numbers(rows, name) for name in ("CADD", "phyloP")},
    )


def clinvar(data: Path) -> VariantSet:
    rows = rows_of(data / "clinvar_2017" / "clinvar_labelled_snv.tsv.gz")
    records = records_of(
        [row["seq_source"] for row in rows],
        [int(row["seq_offset0"]) for row in rows],
        [row["ref"] for row in rows],
        [row["alt"] for row in rows],
    )
    positive, effect = column(rows, "binary") == "1", column(rows, "effect")
    everything = np.ones(len(rows), bool)
    genomes = [data / "genomes" / name for name in CLINVAR_GENOMES]
    return VariantSet(
        "clinvar",
        genomes,
        records,
        [
            Contrast("pathogenic against benign", everything, positive),
            *(
                Contrast(f"pathogenic against benign, {what}", effect == what, positive)
                for what in sorted(set(effect.tolist()))
                if 0 < positive[effect == what].sum() < (effect == what).sum()
            ),
        ],
        column(rows, "gene_filled"),
        by_group=True,
    )


CLINVAR_GENOMES = ("human_LRG_disease_genes_GRCh37.fa.gz", "human_chr20_GRCh37.fa.gz")


def kg1000(data: Path) -> VariantSet:
    rows = rows_of(data / "kg1000_chr20" / "kg_chr20_1-2Mb_snv.tsv.gz")
    start = np.array([int(row["pos_hg19"]) - 1 for row in rows])
    frequency, count = numbers(rows, "AF"), numbers(rows, "AC")
    singleton, common = count == 1, (frequency >= 0.05) & (frequency <= 0.95)
    ancestral = column(rows, "ancestral")
    known = np.char.upper(ancestral) == column(rows, "ref")
    return VariantSet(
        "kg1000",
        [data / "genomes" / "human_chr20_GRCh37.fa.gz"],
        records_of(["20"] * len(rows), start.tolist(), [r["ref"] for r in rows], [r["alt"] for r in rows]),
        [
            Contrast("singleton against common", singleton | common, singleton),
            Contrast("singleton against common, REF ancestral", (singleton | common) & known, singleton),
        ],
        (start // 10_000).astype(str),
    )


SETS = {"brca1": brca1, "clinvar": clinvar, "kg1000": kg1000}


# Quality.


def quality(arguments: argparse.Namespace) -> None:
    inference = load_for_inference(arguments.checkpoint, "auto", arguments.precision)
    plan = plan_of(arguments, inference)
    arguments.out.mkdir(parents=True, exist_ok=True)
    print("\n".join(f"{label:>10}  {text}" for label, text in inference.header()))
    print(f"{'tiles':>10}  {plan.tiling.context:,} bases, {plan.tiling.suffix:,} bases after each allele")
    results: list[dict[str, object]] = []
    deciles: list[dict[str, object]] = []
    for name in arguments.sets:
        variants = limited(SETS[name](arguments.data), arguments.limit)
        store = open_genomes(variants.genomes, arguments.out)
        checked = check(variants.records, store, plan.tiling.context // 2)
        assert len(checked.mismatches) == 0, f"{name}: {len(checked.mismatches)} records differ from the genome"
        began = time.perf_counter()
        scores = score_alleles(inference, store, checked.alleles, plan, progress_line(name))
        columns = combine(checked.alleles, scores)
        took = time.perf_counter() - began
        fewer = scores.tokens.full / (scores.tokens.tiles + scores.tokens.alleles)
        print(f"\n{name}: {len(checked.alleles):,} alleles in {took:.1f} s, {fewer:.1f} times fewer bases than windows")
        print(f"  suffix: {describe_truncation(scores.truncation)}")
        ours = {f"-{part}": -columns.values[part] for part in ("llr", "llr_forward", "at", "after")}
        everyones = ours | {"|llr|": np.abs(columns.values["llr"])} | variants.others
        with (arguments.out / f"scores-{name}.npz").open("wb") as file:
            np.savez_compressed(file, **columns.values, group=variants.group, **variants.others)
        for contrast in variants.contrasts:
            for score_name, score in everyones.items():
                row = {"set": name, "contrast": contrast.name, "score": score_name}
                results.append(row | measure(contrast, score, variants))
                if "auroc" in results[-1]:
                    print("  " + summary_line(results[-1]))
            deciles += [{"set": name, "contrast": contrast.name} | row for row in by_tenth(contrast, ours["-llr"])]
    write_csv(arguments.out / "results.csv", results)
    write_csv(arguments.out / "deciles.csv", deciles)


def plan_of(arguments: argparse.Namespace, inference: Inference) -> ScorePlan:
    context = arguments.context or inference.trained_length
    assert context, "the checkpoint does not say its length: give --context"
    suffix = default_suffix(context) if arguments.suffix is None else arguments.suffix
    batch = arguments.batch_tokens or inference.compute.micro_tokens
    return ScorePlan(Tiling(context, suffix), min(arguments.state_every, context), batch, check=16)


def limited(variants: VariantSet, limit: int | None) -> VariantSet:
    total = len(variants.records)
    if limit is None or limit >= total:
        return variants
    rows = np.linspace(0, total - 1, limit).round().astype(np.int64)
    old = variants.records
    return replace(
        variants,
        records=Records(
            old.contigs,
            old.contig[rows],
            old.start[rows],
            [old.ref[r] for r in rows.tolist()],
            [old.alt[r] for r in rows.tolist()],
        ),
        contrasts=[Contrast(c.name, c.used[rows], c.positive[rows]) for c in variants.contrasts],
        group=variants.group[rows],
        others={name: values[rows] for name, values in variants.others.items()},
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


def speed(arguments: argparse.Namespace) -> None:
    arguments.context = arguments.context or 131_072
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if arguments.checkpoint is None:
            torch.manual_seed(0)
            save_checkpoint(LanguageModel(preset(arguments.preset)), folder / "model", {})
        inference = load_for_inference(arguments.checkpoint or folder / "model", "auto", arguments.precision)
        plan = replace(plan_of(arguments, inference), check=0)
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
