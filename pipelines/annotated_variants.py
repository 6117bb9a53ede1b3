"""How well an annotation of genes tells pathogenic from benign variants of ClinVar, without any language model.

    python pipelines/annotated_variants.py --data DNAMAMBA_TEST_DATA --out FOLDER [--length 512]

Writes FOLDER/genes.gtf from the exons of the data folder (LRG records in their own coordinates, and coding sequences of
chr20), builds the task exactly as `dnamamba finetune --task variants` does (the same held-out genes), fits boosted
trees on the annotation's features, and leaves annotation.npz, results.json and calibration.png. Test is read once. A
fine-tuning of a language model takes the same file: `dnamamba finetune --task variants --annotation FOLDER/genes.gtf`.
"""

import argparse
import csv
import gzip
import json
from pathlib import Path
from typing import Any

from dnamamba.finetuning.resolve import resolve
from dnamamba.finetuning.settings import FinetuneSettings
from dnamamba.finetuning.tasks import variants
from dnamamba.genome.store import open_genome
from dnamamba.outputs import write_atomically
from dnamamba.pictures.calibration import calibrations, plot_calibration


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--length", type=int, default=512, help="windows of two splits this long never overlap")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    annotation = write_gtf(arguments.data, arguments.out / "genes.gtf")
    table = arguments.data / "clinvar_2017" / "clinvar_labelled_snv.tsv.gz"
    found = measure(table, genomes(arguments.data), annotation, arguments.length, arguments.out)
    write_atomically(arguments.out / "results.json", json.dumps(found, indent=1) + "\n")
    predictors = calibrations(found["variants"])
    title = "ClinVar's held-out genes, by the annotation alone"
    plot_calibration(predictors, arguments.out / "calibration.png", title=title, positive="pathogenic")
    print_table(found)


def genomes(data: Path) -> list[Path]:
    """In whose coordinates the labelled variants are."""
    names = "human_LRG_disease_genes_GRCh37.fa.gz", "human_chr20_GRCh37.fa.gz"
    return [data / "genomes" / name for name in names]


def write_gtf(data: Path, out: Path) -> Path:
    """The transcripts of LRG records and the coding sequences of chr20 as GTF."""
    offset, lines = {}, []
    for contig in open_genome(genomes(data)[:1]).contigs:
        record, *_, place, _ = contig.name.split("|")
        offset[record] = int(place.split(":")[2].split("-")[0]) - 1
    transcripts: dict[tuple[str, str], list[dict[str, str]]] = {}
    with (data / "genomes" / "human_LRG_exons_GRCh37.tsv").open() as file:
        for row in csv.DictReader(file, delimiter="\t"):
            if row["lrg"] in offset:
                transcripts.setdefault((row["lrg"], row["transcript"]), []).append(row)
    for (record, transcript), rows in transcripts.items():
        span = [_interval(row, offset[record]) for row in rows if row["feature"] == "coding_span"]
        for row in (row for row in rows if row["feature"] == "exon"):
            first, last = _interval(row, offset[record])
            parts = [("exon", first, last)]
            parts += [("CDS", max(first, a), min(last, b)) for a, b in span if max(first, a) <= min(last, b)]
            for kind, start, end in parts:
                lines.append(
                    _line(record, kind, start, end, row["GRCh37_strand"], row["gene"], f"{record}{transcript}")
                )
    with gzip.open(data / "annotation" / "chr20_GRCh37_cds_from_spliceai_orf.bed.gz", "rt") as file:
        for chrom, first_base, end_base, gene, _, strand, *_ in csv.reader(file, delimiter="\t"):
            if not chrom.startswith("#"):
                lines.append(_line(chrom, "CDS", int(first_base) + 1, int(end_base), strand, gene, gene))
    write_atomically(out, "".join(lines))
    return out


def _interval(row: dict[str, str], offset: int) -> tuple[int, int]:
    """1-based, end included, in the LRG record's sequence as the FASTA has it: along the chromosome."""
    return int(row["GRCh37_start"]) - offset, int(row["GRCh37_end"]) - offset


def _line(contig: str, kind: str, first: int, last: int, strand: str, gene: str, transcript: str) -> str:
    names = f'gene_id "{gene}"; transcript_id "{transcript}";'
    return f"{contig}\tdnamamba\t{kind}\t{first}\t{last}\t.\t{strand}\t.\t{names}\n"


def measure(table: Path, genome: list[Path], annotation: Path, length: int, out: Path) -> dict[str, Any]:
    """The task's facts and its report without a model; leaves the trees in `out`."""
    settings = FinetuneSettings(
        task="variants",
        variants=table,
        genome=genome,
        annotation=annotation,
        label_columns=["binary"],
        split_by="gene_filled",
        length=length,
        checkpoint="none",
        accelerator="cpu",
    )
    task = variants.build(resolve(settings))
    assert task.keep is not None and task.measure is not None
    task.keep(out)
    test = task.test.read({"by": "dev log loss"})
    return {"splits": task.facts["splits"], "features": task.facts["annotation"], **task.measure(test, [], [])}


def print_table(found: dict[str, Any]) -> None:
    print("| variants | pathogenic | benign | AUROC [95 %, by gene] | AUPRC | mean AUROC by gene |")
    print("|---|---|---|---|---|---|")
    found, shortcuts = found["variants"]["annotation"], found["variants"]["shortcuts"]
    for name in ("all", "missense"):
        row = found[name]
        auroc, auprc, own = row["auroc"], row["auprc"], row["mean_auroc_by_group"]
        print(
            f"| {name} | {row['positives']:,} | {row['negatives']:,} | "
            f"{auroc['value']:.4f} [{auroc['low']:.4f}, {auroc['high']:.4f}] | "
            f"{auprc['value']:.4f} [{auprc['low']:.4f}, {auprc['high']:.4f}] | {own['value']:.4f} ({own['groups']}) |"
        )
    print(f"Brier {found['calibration']['brier']:.4f}; {found['trees']}; shortcuts (AUROC): {shortcuts}")


if __name__ == "__main__":
    main()
