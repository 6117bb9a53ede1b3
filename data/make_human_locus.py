"""Rebuilds the human locus that the package ships, and checks it against `human_locus.json`.

    apt-get download vt-examples && apt-get install ncbi-blast+
    pip download --no-deps cispliceai==1.2.2
    python data/make_human_locus.py vt-examples_0.57721+ds-3_all.deb cispliceai-1.2.2-py3-none-any.whl

Bases: a slice of chromosome 20 of GRCh37. Lower case: repeats of the whole chromosome by WindowMasker and dust (two
minutes). Genes: the wheel's table says where the introns of all isoforms of a gene begin and end, but not which belong
together. Of all chains of introns, that is taken which has a reading frame as long as the record says.
Needs `dpkg-deb` and `windowmasker`.
"""

import csv
import gzip
import hashlib
import io
import itertools
import json
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
LINE = 80
STOPS = ("TAA", "TAG", "TGA")
COMPLEMENT = str.maketrans("ACGT", "TGCA")
RECORD = json.loads((HERE / "human_locus.json").read_text())


class Transcript(NamedTuple):
    """0-based half-open intervals of the chromosome, ascending."""

    exons: list[tuple[int, int]]
    coding: list[tuple[int, int]]


def main(deb: Path, wheel: Path) -> None:
    """Makes both files, and writes them if they hold what is recorded."""
    for path, sha256 in ((deb, RECORD["deb_sha256"]), (wheel, RECORD["wheel_sha256"])):
        if hashlib.sha256(path.read_bytes()).hexdigest() != sha256:
            sys.exit(f"{path}: its sha256 is not {sha256}")
    chromosome = read_member(deb, RECORD["member"])
    start, end = RECORD["start"], RECORD["end"]
    name = f"20:{start + 1}-{end}"
    bases = masked(chromosome, repeats(chromosome))[start:end]
    fasta = f">{name} GRCh37\n" + "".join(f"{bases[at : at + LINE]}\n" for at in range(0, len(bases), LINE))
    lines = ["##gff-version 3"]
    for gene, accession, amino_acids in RECORD["genes"]:
        reverse, found = transcript(wheel, accession, amino_acids, chromosome)
        for kind, intervals in (("exon", found.exons), ("CDS", found.coding)):
            for first, last in intervals:
                place = f"{first - start + 1}\t{last - start}\t.\t{'-' if reverse else '+'}\t."
                lines.append(f"{name}\tCI-SpliceAI\t{kind}\t{place}\tParent={accession};gene={gene}")
    genes = "\n".join(lines) + "\n"
    for key, text in (("fasta_sha256", fasta), ("genes_sha256", genes)):
        if (sha256 := hashlib.sha256(text.encode()).hexdigest()) != RECORD[key]:
            sys.exit(f"{key}: expected {RECORD[key]}, found {sha256}: nothing written")
    folder = HERE.parent / "dnamamba" / "demo"
    (folder / "human_locus.fa.gz").write_bytes(gzip.compress(fasta.encode(), mtime=0))
    (folder / "human_locus.gff3").write_text(genes)
    print(f"{folder}: human_locus.fa.gz, {len(bases):,} bases, and human_locus.gff3, {len(lines) - 1} features")


def read_member(deb: Path, member: str) -> str:
    """The bases of the gzipped FASTA in a Debian package."""
    tar = subprocess.run(["dpkg-deb", "--fsys-tarfile", deb], check=True, stdout=subprocess.PIPE).stdout
    with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
        file = archive.extractfile(f"./{member}")
        assert file is not None
        return "".join(gzip.decompress(file.read()).decode().split("\n")[1:])


def repeats(bases: str) -> list[tuple[int, int]]:
    """What WindowMasker and dust find, 0-based and half-open."""
    with tempfile.TemporaryDirectory() as folder:
        fasta, counts, found = (Path(folder) / name for name in ("in.fa", "counts", "found"))
        fasta.write_text(f">20\n{bases}\n")
        subprocess.run(["windowmasker", "-mk_counts", "-in", fasta, "-out", counts], check=True, capture_output=True)
        mask = ["windowmasker", "-ustat", counts, "-dust", "true", "-in", fasta, "-out", found, "-outfmt", "interval"]
        subprocess.run(mask, check=True, capture_output=True)
        pairs = (line.split(" - ") for line in found.read_text().splitlines() if line[0] != ">")
        return [(int(first), int(last) + 1) for first, last in pairs]


def masked(bases: str, intervals: list[tuple[int, int]]) -> str:
    """With the intervals, ascending, in lower case."""
    parts, at = [], 0
    for first, last in intervals:
        parts += [bases[at:first], bases[first:last].lower()]
        at = last
    return "".join([*parts, bases[at:]])


def transcript(wheel: Path, accession: str, amino_acids: int, bases: str) -> tuple[bool, Transcript]:
    """Whether the gene is on the reverse strand, and its transcript whose frame codes for so many amino acids."""
    with zipfile.ZipFile(wheel) as archive, archive.open(RECORD["table"]) as file:
        row = next(row for row in csv.DictReader(io.TextIOWrapper(file)) if row["gene_id"] == accession)
    reverse = row["strand"] == "-"
    ends = [(int(end), "exon ends") for end in row["jn_start"].split(",")]
    starts = [(int(start) - 1, "exon starts") for start in row["jn_end"].split(",")]
    # Neighbours of one kind are alternatives; what is chosen of each alternates.
    alternatives = itertools.groupby(sorted(ends + starts), lambda edge: edge[1])
    choices = [[position for position, _ in group] for _, group in alternatives]
    for chosen in itertools.product(*choices):
        exons = list(zip([int(row["start"]) - 1, *chosen[1::2]], [*chosen[0::2], int(row["end"])], strict=True))
        spliced = "".join(bases[start:end] for start, end in exons)
        spliced = spliced.translate(COMPLEMENT)[::-1] if reverse else spliced
        wanted = 3 * (amino_acids + 1)
        for first in (start for start in range(len(spliced)) if spliced.startswith("ATG", start)):
            codons = (at for at in range(first, len(spliced) - 2, 3) if spliced[at : at + 3] in STOPS)
            if next(codons, 0) + 3 - first == wanted:
                last = len(spliced) - first if reverse else first + wanted
                return reverse, Transcript(exons, within(exons, last - wanted, last))
    sys.exit(f"{accession}: no chain of introns has a frame of {amino_acids} amino acids")


def within(exons: list[tuple[int, int]], first: int, last: int) -> list[tuple[int, int]]:
    """The parts of exons that are the bases [first, last) of what they make together."""
    parts, before = [], 0
    for start, end in exons:
        low, high = max(first - before, 0), min(last - before, end - start)
        if low < high:
            parts.append((start + low, start + high))
        before += end - start
    return parts


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]))
