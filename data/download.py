"""Downloads the public data that the workflows take: `python data/download.py hg38 clinvar --out genomes`.

`data/sources.tsv` is the list: names, addresses, and checksums where they are known. A file appears under its name
only when it is whole and its checksum is right; one that is there is kept. `data/README.md` lists data that come
otherwise.
"""

import argparse
import csv
import hashlib
import sys
import urllib.error
import urllib.request
from pathlib import Path

from dnamamba import cli
from dnamamba.errors import InputError
from dnamamba.outputs import whole_file
from dnamamba.runs.progress import job_bar

SOURCES = Path(__file__).with_name("sources.tsv")
BLOCK = 1 << 20


def main(arguments: list[str] | None = None) -> None:
    sources = read_sources()
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n")[0],
        epilog="\n".join(f"{name:>10}  {source['note']}" for name, source in sources.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="+", choices=list(sources), help="what to download", metavar="NAME")
    parser.add_argument("--out", type=Path, default=Path("genomes"), help="folder for the files (genomes)")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    for name in options.names:
        source = sources[name]
        path = options.out / source["file"]
        if path.exists():
            print(f"{path}: there already")
            continue
        md5 = download(source["url"], path, source["md5"])
        print(f"{path}: md5 {md5}{', as it should be' if source['md5'] else ''}")


def read_sources() -> dict[str, dict[str, str]]:
    """Name → the columns of its row."""
    lines = SOURCES.read_text(encoding="utf-8").splitlines()
    return {row["name"]: row for row in csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)}


def download(url: str, path: Path, expected: str = "") -> str:
    """The file's MD5; `InputError` for an address that does not answer, a file cut short or a wrong checksum."""
    digest = hashlib.md5(usedforsecurity=False)
    try:
        with urllib.request.urlopen(url) as answer, whole_file(path) as partial, partial.open("wb") as file:
            size = int(answer.headers.get("Content-Length") or 0)
            with job_bar(path.name, "B") as progress:
                while block := answer.read(BLOCK):
                    file.write(block)
                    digest.update(block)
                    progress(file.tell(), size)
            if size and file.tell() < size:
                raise InputError(f"{url}: the connection ended after {file.tell():,} of {size:,} bytes; try again")
            if expected and digest.hexdigest() != expected:
                raise InputError(f"{url}: its md5 is {digest.hexdigest()}, expected {expected}; was it replaced?")
    except urllib.error.URLError as error:
        raise InputError(f"{url}: {error.reason}") from None
    return digest.hexdigest()


if __name__ == "__main__":
    sys.exit(cli.run(main))
