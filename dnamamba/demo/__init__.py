"""What comes with the package to try things on: the complete chromosome of *Escherichia coli* K-12 MG1655, one contig
of 4,639,675 bases; and a locus of human chromosome 20 with its repeats in lower case, three genes, and made variants
of these.

Provenance, licences and checksums stand in `data/README.md` of the repository and in `NOTICE` next to this file.
"""

from importlib.resources import files
from pathlib import Path

FILE_NAME = "ecoli_K12_MG1655.fa.gz"
LOCUS_NAME = "human_locus"
"""Its contig is bases 34,190,001 to 34,255,000 of chromosome 20 of GRCh37."""


def genome_path() -> Path:
    """The gzipped FASTA in the installed package, perhaps read-only (its token store then lies in the user's cache).

    `FileNotFoundError` if the installation lost it.
    """
    return _file(FILE_NAME)


def locus_path() -> Path:
    """The gzipped FASTA of the human locus. `FileNotFoundError` if the installation lost it."""
    return _file(f"{LOCUS_NAME}.fa.gz")


def locus_genes_path() -> Path:
    """The GFF3 of its genes. `FileNotFoundError` if the installation lost it."""
    return _file(f"{LOCUS_NAME}.gff3")


def locus_variants_path() -> Path:
    """The VCF of made variants of its genes, one of each effect. `FileNotFoundError` if the installation lost it."""
    return _file(f"{LOCUS_NAME}.vcf")


def _file(name: str) -> Path:
    # A wheel is unpacked when installed and torch cannot be imported from a zip, so the resource is a real file.
    path = Path(str(files(__package__).joinpath(name)))
    if not path.is_file():
        raise FileNotFoundError(2, "a file of the demo is missing from the installation; reinstall dnamamba", str(path))
    return path
