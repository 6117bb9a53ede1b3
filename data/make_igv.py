"""Takes igv.js out of its npm package, checks it, and puts it compressed where the pages of `dnamamba browse` find it.

    npm pack igv@3.8.10
    python data/make_igv.py igv-3.8.10.tgz

Writes the file only if the package has the recorded checksum, which is the registry's own (`npm view igv@3.8.10 dist`).
"""

import base64
import hashlib
import lzma
import sys
import tarfile
from pathlib import Path

SHA512 = "foqT9SJHoKvVXl7euYUsOy7XMs1nTrPeJMQbGRp7qWU7a6HzF345FER/nHUTdsL5cumaoAe19gDmJYsEHO08rw=="
MEMBER = "package/dist/igv.min.js"
SOURCE_MAP = b"//# sourceMappingURL=igv.min.js.map"
"""A comment that would make a browser's developer tools ask for a file"""
OUT = Path(__file__).resolve().parent.parent / "dnamamba" / "pages" / "igv.min.js.xz"


def main(package: Path) -> None:
    """Writes `OUT`, the same bytes on every machine with the same liblzma."""
    found = base64.b64encode(hashlib.sha512(package.read_bytes()).digest()).decode()
    if found != SHA512:
        sys.exit(f"{package}: has the checksum {found}, expected {SHA512}")
    with tarfile.open(package) as archive:
        member = archive.extractfile(MEMBER)
        if member is None:
            sys.exit(f"{package}: {MEMBER} is not a file")
        script = member.read().replace(SOURCE_MAP, b"")
    OUT.write_bytes(lzma.compress(script, preset=9 | lzma.PRESET_EXTREME))
    print(f"{OUT}: {OUT.stat().st_size:,} bytes, {len(script):,} uncompressed")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
