"""The demo genome: the complete chromosome of *Escherichia coli* K-12 MG1655, one contig of 4,639,675 bases.

Provenance, licence and checksums stand in `data/README.md` of the repository and in `NOTICE` next to this file.
"""

from importlib.resources import files
from pathlib import Path

FILE_NAME = "ecoli_K12_MG1655.fa.gz"


def genome_path() -> Path:
    """The gzipped FASTA in the installed package, perhaps read-only (its token store then lies in the user's cache).

    `FileNotFoundError` if the installation lost it.
    """
    # A wheel is unpacked when installed and torch cannot be imported from a zip, so the resource is a real file.
    path = Path(str(files(__package__).joinpath(FILE_NAME)))
    if not path.is_file():
        raise FileNotFoundError(2, "the demo genome is missing from the installation; reinstall dnamamba", str(path))
    return path
