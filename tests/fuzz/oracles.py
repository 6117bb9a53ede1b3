"""Parsers of a few lines, from the formats' specifications. They share no code with the package."""

import json
import re
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

from harness import Damaged

LENGTHS = {"chr1": 600, "chr2": 400, "chrM": 90}
"""The contigs of the genome that BED and GFF3 files are about"""


def content(path: Path) -> bytes:
    """What `gzip -dc` gives, or the file as it is; without a byte order mark."""
    data = path.read_bytes()
    if data.startswith(b"\x1f\x8b"):
        done = subprocess.run(["gzip", "-dc", path], capture_output=True, check=False)
        if done.returncode == 1:
            raise Damaged(done.stderr.decode())
        data = done.stdout
    return data.removeprefix(b"\xef\xbb\xbf")


def lines(path: Path) -> list[bytes]:
    found = re.split(rb"\r\n|\r|\n", content(path))
    if b"\0" in b"".join(found):
        raise Damaged("a NUL byte in a text file")
    return found if found[-1] else found[:-1]


def text(data: bytes) -> str:
    """UTF-8, and Latin-1 for bytes that are none."""
    return re.sub("[\udc80-\udcff]", lambda found: chr(ord(found[0]) - 0xDC00), data.decode("utf-8", "surrogateescape"))


def number(cell: bytes | str) -> int:
    cell = cell if isinstance(cell, str) else text(cell)
    if not re.fullmatch("[0-9]+", cell, re.ASCII):
        raise Damaged(f"no number: {cell[:99]!r}")
    return int(cell)


def bases(data: bytes) -> str:
    """U is T, codes of several bases are N; lower case stays."""
    if other := re.search(rb"[^ACGTUNRYSWKMBDHVXacgtunryswkmbdhvx]", data):
        raise Damaged(f"no nucleotide: {other[0]!r}")
    return re.sub("[rywskmbdhvx]", "n", re.sub("[RYSWKMBDHVX]", "N", data.decode())).replace("U", "T").replace("u", "t")


def fasta(path: Path) -> list[tuple[str, str, str]]:
    """(name, description, bases) of each record."""
    records: list[list[Any]] = []
    for line in lines(path):
        if line.startswith(b">"):
            name, _, description = (text(part) for part in re.match(rb">\s*(\S*)(\s*)(.*)", line, re.DOTALL).groups())
            if not name:
                raise Damaged("a record without a name")
            records.append([name, description.strip(" \t\n\r\x0b\x0c"), ""])
        elif letters := re.sub(rb"[ \t\v\f]", b"", line):
            if not records:
                raise Damaged("bases before the first header")
            records[-1][2] += bases(letters)
    return [(name, description, letters) for name, description, letters in records]


class AnyOf(frozenset):
    """Equal to each of its members: where a file contradicts itself."""

    __hash__ = frozenset.__hash__

    def __eq__(self, other: object) -> bool:
        return other in self


def genbank(path: Path) -> list[tuple[Any, str]]:
    """(name, bases in upper case) of each record."""
    found = []
    rows = lines(path)
    while rows:
        if not (row := rows.pop(0)).startswith(b"LOCUS "):
            continue
        end = next((at for at, line in enumerate(rows) if line.rstrip() == b"//"), None)
        if end is None:
            raise Damaged("a record without its end")
        record, rows = rows[:end], rows[end + 1 :]
        if any(line.startswith(b"LOCUS ") for line in record):
            raise Damaged("a record without its end")
        said: dict[bytes, list[str]] = {}
        letters, at = b"", None
        for line in record:
            if at is None:
                said.setdefault(line[:12].strip(b" "), []).append([text(word) for word in line[12:].split()])
                at = 0 if line.startswith(b"ORIGIN") else None
            elif line.strip() and not line[:1].isalpha():
                match = re.fullmatch(rb" *(\d*) {1,2}([A-Za-z ]*)", line.rstrip()) if line[:10].strip() else None
                if match is None or number(match[1]) != len(letters) + 1:
                    raise Damaged(f"a line of sequence: {line[:99]!r}")
                letters += match[2].replace(b" ", b"")
        size = re.search(rb"\s(\d+)\s+bp\s", row + b" ")
        if not letters or size is None or int(size[1]) != len(letters):
            raise Damaged("another length than is declared")
        both = [said.get(keyword, [[]]) for keyword in (b"ACCESSION", b"VERSION")]
        accession, version = (next(iter(found[0]), "") for found in both)
        locus = text(row.split()[1])
        suffix = re.fullmatch(r"[^.]*\.([0-9]+)", version)
        identity = f"{accession}.{suffix[1]}" if accession and suffix else version or accession
        words = re.split(r"[;\s]+", " ".join(word for found in both for line in found for word in line))
        versions = {word.rpartition(".")[2] for word in words if "." in word}
        names = {locus, identity, *words, *(f"{word}.{suffix}" for word in words for suffix in versions)}
        once = all(len(found) == 1 for found in both)
        agree = once and re.fullmatch(r"[\w.]*", accession) and version.partition(".")[0] in ("", accession)
        found.append((locus, identity, bases(letters.upper()), names, agree))
    times = Counter(identity for _, identity, *_ in found)
    if not all(agree for *_, agree in found):
        return [(AnyOf(names), letters) for _, _, letters, names, _ in found]
    return [
        (locus if identity in ("", ".", "unknown", "<unknown") or times[identity] > 1 else identity, letters)
        for locus, identity, letters, *_ in found
    ]


VCF_COLUMNS = [b"#CHROM", b"POS", b"ID", b"REF", b"ALT", b"QUAL", b"FILTER", b"INFO"]


def vcf(path: Path) -> tuple[list[tuple], bytes]:
    """(contig, position from 0, ref, alt, ID) of each record; and the file with X=1 in each INFO."""
    rows = lines(path)
    if not rows or not rows[0].startswith(b"##fileformat=VCF"):
        raise Damaged("no VCF header")
    header = next((at for at, row in enumerate(rows) if not row.startswith(b"##")), len(rows) - 1)
    columns = rows[header].split(b"\t")
    if columns[:8] != VCF_COLUMNS or columns[8:9] not in ([], [b"FORMAT"]):
        raise Damaged("no line #CHROM POS ID REF ALT QUAL FILTER INFO")
    records = []
    written = [*rows[:header], b'##INFO=<ID=X,Number=0,Type=Flag,Description="">', rows[header]]
    for row in filter(bytes.strip, rows[header + 1 :]):
        cells = row.split(b"\t")
        if len(cells) != len(columns):
            raise Damaged("another number of columns")
        contig, pos, name, ref, alt, *_, info = cells[:8]
        if not (contig and ref and alt and (ref + alt).isascii()):
            raise Damaged("an empty column")
        records.append((text(contig), number(pos) - 1, ref.decode(), alt.decode(), text(name)))
        parts = [part for part in info.split(b";") if part.partition(b"=")[0] != b"X"]
        info = b";".join([*parts, b"X"]) if b";".join(parts) not in (b"", b".") else b"X"
        written.append(b"\t".join([*cells[:7], info, *cells[8:]]))
    return records, b"".join(line + b"\n" for line in written)


MISSING = ("", ".", "NA", "<NA>", "N/A", "n/a", "#N/A", "NaN", "nan", "-NaN", "-nan", "NULL", "null", "None")


def variants(path: Path) -> list[tuple]:
    """(contig, position from 0, ref, alt, columns) of each alternate allele of a VCF, or row of a table."""
    if path.suffix == ".vcf":
        records, _ = vcf(path)
        rows = lines(path)
        names = {}
        for row in rows:
            if row.startswith(b"##INFO=<"):
                said = dict(re.findall(r'(\w+)=("[^"]*"|[^",>]*)', text(row[8:])))
                names |= {said["ID"]: said["Number"]} if {"ID", "Number"} <= said.keys() else {}
        header = next(at for at, row in enumerate(rows) if row.startswith(b"#CHROM"))
        infos = [text(row.split(b"\t")[7]) for row in rows[header + 1 :] if row.strip()]
        return [
            (*record[:3], alt, _of_allele(names, info, number, len(record[3].split(","))))
            for record, info in zip(records, infos, strict=True)
            for number, alt in enumerate(record[3].split(",") if record[3] != "." else [])
        ]
    header, rows = delimited(path)
    known = [name.lower() for name in header]
    wanted = [("chrom", "contig", "chr", "#chrom", "chromosome"), ("pos", "position"), ("ref",), ("alt",)]
    places = [next((known.index(name) for name in usual if name in known), None) for usual in wanted]
    if None in places or len(set(filter(None, known))) < len([name for name in known if name]):
        raise Damaged("a column is missing, or there twice")
    return [
        (
            row[places[0]],
            number(row[places[1]]) - 1,
            *(row[at] for at in places[2:]),
            {name: cell for name, cell in zip(known, row, strict=True) if cell not in MISSING},
        )
        for row in rows
    ]


def _of_allele(numbers: dict[str, str], info: str, allele: int, alleles: int) -> dict[str, str]:
    """What INFO says of an alternate allele: of Number=A its own value, of R the one behind the reference's."""
    found = {}
    parts = [part.partition("=") for part in info.split(";")]
    for key, _, value in parts:
        before = {"A": 0, "R": 1}.get(numbers.get(key, "A"))
        values = value.split(",")
        if before is not None and len(values) == alleles + before:
            value = values[allele + before]
        elif numbers.get(key) in ("A", "R"):
            continue
        if [other for other, _, _ in parts].count(key) > 1:
            continue
        if key not in ("", ".") and value not in MISSING:
            found[key.lower()] = value
    return found


def contig(name: bytes) -> str | None:
    """The contig meant by a name: with or without chr, M or MT."""
    found = text(name)
    plain = {known.removeprefix("chr"): known for known in LENGTHS} | {"MT": "chrM"}
    return found if found in LENGTHS else plain.get(found[3:] if found[:3].lower() == "chr" else found)


def bed(path: Path) -> list[tuple]:
    """(contig, start, end, name, strand) of each interval with bases."""
    found = []
    for line in lines(path):
        cells = [cell.strip(b" ") for cell in line.split(b"\t")] if b"\t" in line else line.split()
        words = line.split()
        if not words or line.startswith(b"#") or cells[0].startswith(b"#"):
            continue
        if words[0] in (b"track", b"browser") and not (len(cells) > 2 and cells[1].isdigit() and cells[2].isdigit()):
            continue
        if len(cells) < 3:
            raise Damaged("another number of columns")
        name, start, end = contig(cells[0]), number(cells[1]), number(cells[2])
        if name is None or not start <= end <= LENGTHS[name]:
            raise Damaged("not on the genome")
        strand = cells[5] if len(cells) > 5 else b"."
        if start < end:
            if strand not in (b"+", b"-", b"."):
                raise Damaged(f"strand {strand!r}")
            called = text(cells[3]) if len(cells) > 3 else ""
            found.append((name, start, end, called, "-" if strand == b"-" else "+"))
    return found


def gff(path: Path) -> tuple[dict, list]:
    """Bases of exons a contig; (name, contig, strand, bases of exons, bases of CDS) of each transcript."""
    exons: dict[str, set] = {}
    parts: dict[tuple, list[set]] = {}
    called: dict[tuple, str] = {}
    any_contig, rows = False, lines(path)
    for at, line in enumerate(rows):
        if line.startswith((b"##FASTA", b">")):
            if any(b"\t" in row for row in rows[at:] if not row.startswith(b">")):
                raise Damaged("features behind the sequence")
            break
        if not line.strip() or line.startswith(b"#"):
            continue
        cells = line.split(b"\t")
        if len(cells) < 9 or any(cells[9:]):
            raise Damaged("not nine columns")
        name, kind, strand = contig(cells[0]), cells[2], cells[6]
        any_contig |= name is not None
        if kind not in (b"exon", b"CDS"):
            continue
        exons.setdefault("", set())
        if name is None:
            continue
        first, last = number(cells[3]), number(cells[4])
        if not 1 <= first <= last <= LENGTHS[name] or strand not in (b"+", b"-", b".", b"?"):
            raise Damaged("not on the genome, or no strand")
        said = re.findall(r'(?:^|;)\s*(\w+)(?:=| ")([^;"]+)', text(cells[8]))

        def attribute(*names: str, said: list = said) -> str:
            return next((value.strip() for name in names for key, value in said if key == name), "")

        transcript = attribute("transcript_id", "Parent", "ID") or f"line {at + 1}"
        key = name, transcript, strand == b"-"
        parts.setdefault(key, [set(), set()])[kind == b"CDS"].update(range(first - 1, last))
        called.setdefault(key, attribute("gene_name", "gene", "gene_id", "Name") or transcript)
        exons.setdefault(name, set()).update(range(first - 1, last))
    if "" not in exons or not any_contig:
        raise Damaged("no exon, or no contig of the genome")
    del exons[""]
    genes = [
        (called[key], key[0], key[2], sorted(parts[key][0] or parts[key][1]), sorted(parts[key][1])) for key in parts
    ]
    return {name: sorted(found) for name, found in exons.items()}, sorted(genes)


def delimited(path: Path) -> tuple[list[str], list[list[str]]]:
    """Header and rows of .csv (RFC 4180, a cell ends on its line) or .tsv (without quoting, unless the header has)."""
    delimiter = "," if ".csv" in path.name else "\t"
    rows = [text(line) for line in lines(path) if line]
    while rows and rows[0].startswith("#") and delimiter not in rows[0]:
        rows.pop(0)
    if not rows:
        return [], []
    quoted = delimiter == "," or any(cell[:1] == cell[-1:] == '"' for cell in rows[0].split(delimiter))
    found = [_cells(row, delimiter) if quoted else row.split(delimiter) for row in rows]
    header = [name.strip() for name in found[0]]
    if any(len(row) != len(header) for row in found):
        raise Damaged("another number of columns")
    if len(header) == 1 and re.search("[,;\t]", header[0].replace(delimiter, "")):
        raise Damaged("another delimiter")
    return header, found[1:]


def _cells(row: str, delimiter: str) -> list[str]:
    cells, rest = [], row
    while True:
        if rest.startswith('"'):
            match = re.match(r'"((?:[^"]|"")*)"', rest)
            if match is None or rest[match.end() : match.end() + 1] not in ("", delimiter):
                raise Damaged("a quotation mark that is not closed")
            cells.append(match[1].replace('""', '"'))
            rest = rest[match.end() :]
        else:
            cell = rest.partition(delimiter)[0]
            cells.append(cell)
            rest = rest[len(cell) :]
        if not rest:
            return cells
        rest = rest[1:]


def sequence_table(header: list[str], rows: list[list]) -> list[tuple[str, str]]:
    """(name, bases in upper case) of each row."""
    usual = [name for name in ("sequence", "seq", "Sequence", "dna", "text") if name in header]
    if not usual or header.count(usual[0]) > 1 or not rows:
        raise Damaged("no column of sequences, or none in it")
    column = header.index(usual[0])
    named = next((header.index(name) for name in ("name", "id", "seq_id") if name in header), None)
    found = []
    for at, row in enumerate(rows, 1):
        if row[column] is None or row[column].strip() in MISSING:
            raise Damaged("no sequence")
        name = (row[named] if named is not None else "") or str(at)
        found.append((name, bases(row[column].strip().encode()).upper()))
    return found


def json_object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes().decode())
    except ValueError as error:
        raise Damaged(str(error)) from None
    if not isinstance(value, dict):
        raise Damaged("no object")
    return value


def safetensors(path: Path) -> dict[str, tuple[str, list[int], bytes]]:
    """Name → dtype, shape, bytes: eight bytes of length, a JSON object, the numbers."""
    data = path.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    header.pop("__metadata__", None)
    return {
        name: (said["dtype"], said["shape"], data[end + said["data_offsets"][0] : end + said["data_offsets"][1]])
        for name, said in header.items()
    }
