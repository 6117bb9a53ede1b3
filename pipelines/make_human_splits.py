"""Human and ape sequence to pretrain on, with disease genes held out: what the variant benchmarks are measured with.

    python pipelines/make_human_splits.py --data DATA [--apes APES | --everything] --out splits

DATA holds `genomes/human_chr20_GRCh37.fa.gz`, the LRG disease-gene regions and their intervals on GRCh37, and segments
of chr22; APES is a folder that `make_species_splits.py --homologous` wrote: without it there is human alone. Written
into --out, with paths relative to it: `mixture.yaml` for `python -m dnamamba.pretrain --mixture`, and BED files of the
LRG records of each split.

- chr20: 0-10 Mb validation (and the 1000 Genomes variants lie there), the rest training.
- LRG: records that lie on chr20 or chr22 (the apes' loci) and those near BRCA1 are in no split. Of the others, those
  closer than --margin bases on GRCh37 go to one split together, drawn by a hash of the group's first record.
- apes: their own splits. Without them, human chr22: segments that begin beyond 42 Mb are validation, the rest training.

--everything is what the bundled `human-7m` was trained on, all human sequence in DATA: chr22's segments joined, an N
between two of them, so that windows longer than a segment fit; three pieces of 2 Mb of chr3, chr4 and chr5; the blocks
of chr4 that are aligned to chicken, joined too, without those near a held-out LRG record. Of chr20 the locus that comes
with the package is left out, and validation is reported by region class.
"""

import argparse
import gzip
import hashlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import yaml
from chr20_regions import CHROMOSOME, VALIDATION, chr20_regions

from dnamamba import cli
from dnamamba.errors import InputError
from dnamamba.genome.store import Contig, open_genome
from dnamamba.outputs import write_atomically

ELSEWHERE = ("20", "22")
"""Contigs of GRCh37 that other genomes of the mixture cover."""
EXCLUDED_GENE = "BRCA1"
CHR22_VALIDATION = 42_000_000
PIECES = "human_chr3_chr4_chr5_2Mb_pieces_augustus.fa.gz"
CHR4 = "hg19_chr4_aligned_to_chicken.fa.gz"
BUNDLED_LOCUS = 34_100_000, 34_350_000
"""Of chr20: what `data/make_human_locus.py` takes for the package, and 90 kb on both sides"""


class Record(NamedTuple):
    """An LRG record's interval on GRCh37, 0-based half-open."""

    contig: str
    start: int
    end: int
    name: str
    gene: str


def main(arguments: list[str] | None = None) -> None:
    options = _options(arguments)
    genomes = options.data / "genomes"
    fasta = genomes / "human_LRG_disease_genes_GRCh37.fa.gz"
    records = read_records(genomes / "human_LRG_intervals_GRCh37.bed")
    store = open_genome([fasta])
    contig_of = {contig.name.partition("|")[0]: contig for contig in store.contigs}
    split_of = split_groups(group(records, options.margin), options.validation_fraction, options.test_fraction)
    options.out.mkdir(parents=True, exist_ok=True)
    if (options.out / "mixture.yaml").exists() and not options.overwrite:
        raise InputError(f"{options.out / 'mixture.yaml'}: exists already; choose another --out, or give --overwrite")

    def relative(path: Path) -> str:
        return os.path.relpath(path.absolute(), options.out.absolute())

    for split in ("train", "validation", "test"):
        chosen = [contig_of[name] for name, its in split_of.items() if its == split]
        lines = "".join(f"{contig.name}\t0\t{contig.length}\n" for contig in chosen)
        (options.out / f"lrg.{split}.bed").write_text(lines, encoding="utf-8")
        print(f"{split:>10}  {len(chosen)} LRG records, {sum(contig.length for contig in chosen):,} bases")
    (options.out / "chr20.validation.bed").write_text(f"{CHROMOSOME}\t0\t{VALIDATION}\n", encoding="utf-8")
    mixture: dict[str, dict[str, str]] = {
        "chr20": {"genome": relative(genomes / "human_chr20_GRCh37.fa.gz"), "validation": "chr20.validation.bed"},
        "lrg": {"genome": relative(fasta), "contigs": "LRG_*"} | {s: f"lrg.{s}.bed" for s in ("train", "validation")},
    }
    if options.everything:
        first, last = BUNDLED_LOCUS
        (options.out / "chr20.locus.bed").write_text(f"{CHROMOSOME}\t{first}\t{last}\n", encoding="utf-8")
        (options.out / "chr20.regions.bed").write_text(chr20_regions(options.data / "annotation"), encoding="utf-8")
        mixture["chr20"] |= {"exclude": "chr20.locus.bed", "regions": "chr20.regions.bed", "region_shares": "genome"}
        mixture["pieces"] = {"genome": relative(genomes / PIECES), "contigs": "chr*"}
        mixture |= joined_segments(options.data, options.out, held_out(records, split_of), options.margin)
    elif options.apes is None:
        fasta = options.data / "great_apes_chr22" / "human.fa.gz"
        (options.out / "chr22.validation.bed").write_text(beyond(open_genome([fasta]).contigs), encoding="utf-8")
        mixture["chr22"] = {"genome": relative(fasta), "contigs": "*", "validation": "chr22.validation.bed"}
    for name in () if options.apes is None or options.everything else ("human", "chimp", "gorilla", "orangutan"):
        beds = {split: relative(options.apes / f"{name}.{split}.bed") for split in ("train", "validation", "test")}
        mixture[name] = {"genome": relative(options.apes / f"{name}.fa.gz")} | beds
    (options.out / "mixture.yaml").write_text(yaml.safe_dump(mixture, sort_keys=False), encoding="utf-8")


def held_out(records: list[Record], split_of: dict[str, str]) -> list[Record]:
    """Those that are not trained on."""
    return [record for record in records if split_of.get(record.name) != "train" and record.contig not in ELSEWHERE]


def joined_segments(data: Path, out: Path, held: list[Record], margin: int) -> dict[str, dict[str, str]]:
    """chr22 and the blocks of chr4, each as few records: the mixture's entries."""
    segments = read_segments(data / "great_apes_chr22" / "human.fa.gz")
    early = [text for first, _, text in segments if first <= CHR22_VALIDATION]
    late = [text for first, _, text in segments if first > CHR22_VALIDATION]
    write_records(out / "chr22.fa", {"chr22": early, "chr22_validation": late})
    blocks = [
        text
        for first, last, text in read_segments(data / "genomes" / CHR4)
        if not any(r.contig == "4" and first < r.end + margin and last > r.start - margin for r in held)
    ]
    write_records(out / "chr4.fa", {"chr4_blocks": blocks})
    chr22 = {"genome": "chr22.fa", "contigs": "chr22*", "train": "chr22", "validation": "chr22_validation"}
    return {"chr22": chr22, "chr4": {"genome": "chr4.fa", "contigs": "chr4_blocks"}}


def read_segments(path: Path) -> list[tuple[int, int, str]]:
    """First and last base, 1-based, and sequence of records called `NAME:FIRST-LAST`; others are no segments."""
    found = []
    for head, sequence in sequences_of(path):
        first, _, last = head.split()[0].rpartition(":")[2].partition("-")
        if first and last:
            found.append((int(first), int(last), sequence))
    return found


def sequences_of(path: Path) -> list[tuple[str, str]]:
    """Header and sequence of each record of a gzipped FASTA."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        records = (record.split("\n") for record in file.read().split(">")[1:])
        return [(head, "".join(lines)) for head, *lines in records]


def write_records(path: Path, records: dict[str, list[str]]) -> None:
    """Each name's segments as one record, an N between two of them."""
    write_atomically(path, "".join(f">{name}\n{'N'.join(parts)}\n" for name, parts in records.items()))


def beyond(contigs: Sequence[Contig]) -> str:
    """BED lines of the segments of chr22, called `hg19_chr22:FIRST-LAST`, that begin beyond `CHR22_VALIDATION`."""
    held = [c for c in contigs if int(c.name.partition(":")[2].partition("-")[0]) > CHR22_VALIDATION]
    return "".join(f"{contig.name}\t0\t{contig.length}\n" for contig in held)


def read_records(path: Path) -> list[Record]:
    """The BED file of LRG records: contig, start, end, record, gene."""
    rows = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines() if line]
    return sorted(Record(row[0], int(row[1]), int(row[2]), row[3], row[4]) for row in rows)


def group(records: list[Record], margin: int) -> list[list[Record]]:
    """Records less than `margin` bases apart, together; `records` are sorted."""
    groups: list[list[Record]] = []
    reach = 0
    for record in records:
        if groups and groups[-1][-1].contig == record.contig and record.start - reach < margin:
            groups[-1].append(record)
            reach = max(reach, record.end)
        else:
            groups.append([record])
            reach = record.end
    return groups


def split_groups(groups: list[list[Record]], validation: float, test: float) -> dict[str, str]:
    """Record → split; records in no split are left out."""
    split_of = {}
    for members in groups:
        if members[0].contig in ELSEWHERE or any(record.gene == EXCLUDED_GENE for record in members):
            continue
        key = f"0/{members[0].name}".encode()
        draw = int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little") / 2**64
        split = "test" if draw < test else "validation" if draw < test + validation else "train"
        split_of.update({record.name: split for record in members})
    return split_of


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder with genomes/")
    parser.add_argument(
        "--apes", type=Path, help="folder that make_species_splits.py --homologous wrote; else human alone"
    )
    parser.add_argument(
        "--everything", action="store_true", help="all human sequence in DATA, as for the bundled human-7m"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the splits")
    parser.add_argument("--margin", type=int, default=131072, help="bases between groups of LRG records")
    parser.add_argument("--validation_fraction", type=float, default=0.04, help="share of the LRG groups")
    parser.add_argument("--test_fraction", type=float, default=0.15, help="share of the LRG groups")
    parser.add_argument("--overwrite", action="store_true", help="write over earlier splits in --out")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(cli.run(main))
