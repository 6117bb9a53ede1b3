"""Rebuilds the demo genome from Debian's package and checks every step against `demo_genome.json`.

    apt-get download ragout-examples
    python data/make_demo_genome.py ragout-examples_2.3-4_all.deb

Needs `dpkg-deb`. Writes the file only if the package's file has the recorded sha256, contig and bases.
"""

import gzip
import hashlib
import json
import os
import subprocess
import sys
import tarfile
from io import BytesIO
from pathlib import Path

HERE = Path(__file__).resolve().parent


def main(deb: Path) -> None:
    """Takes the recorded member out of `deb` and puts it where the package ships it."""
    record = json.loads((HERE / "demo_genome.json").read_text())
    tar = subprocess.run(["dpkg-deb", "--fsys-tarfile", deb], check=True, stdout=subprocess.PIPE).stdout
    with tarfile.open(fileobj=BytesIO(tar)) as archive:
        member = archive.extractfile("./" + record["source"]["member"])
        if member is None:
            sys.exit(f"{deb}: {record['source']['member']} is not a file")
        compressed = member.read()
    check(compressed, record)

    target = HERE.parent / record["path"]
    temporary = target.with_name(target.name + ".part")
    temporary.write_bytes(compressed)
    os.replace(temporary, target)
    print(f"{target}: {len(compressed):,} bytes, sha256 {record['sha256']}")


def check(compressed: bytes, record: dict) -> None:
    """Exits with a message unless the gzipped FASTA is the recorded one, down to its bases."""
    header, _, body = gzip.decompress(compressed).partition(b"\n")
    bases = body.replace(b"\n", b"")
    found = {
        "bytes": len(compressed),
        "sha256": hashlib.sha256(compressed).hexdigest(),
        "contig": header.removeprefix(b">").decode(),
        "bases": {base: bases.count(base.encode()) for base in "ACGT"},
        "bases_sha256": hashlib.sha256(bases).hexdigest(),
    }
    for key, value in found.items():
        if value != record[key]:
            sys.exit(f"{key}: expected {record[key]}, found {value}: not the recorded genome, nothing written")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
