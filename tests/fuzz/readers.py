"""The package's readers, with small files of their kinds. Add one here: seeds, what reads them, and an oracle."""

import gzip
import zlib
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import checkpoint_readers
import numpy as np
import oracles
import yaml_oracle
from harness import Damaged, Files, Reader
from mutations import mutate_packed
from parquet_oracle import parquet

from dnamamba.alphabet import BASES, SOFT_MASK_BIT, TOKEN_BITS
from dnamamba.errors import InputError
from dnamamba.finetuning.tasks.variants import read_rows
from dnamamba.genome.annotation import read_annotation
from dnamamba.genome.bed import read_bed
from dnamamba.genome.contig_names import ContigNames
from dnamamba.genome.genes import read_genes
from dnamamba.genome.indexed import index_of
from dnamamba.genome.reader import SequenceBlock, read_genome
from dnamamba.genome.sequences import read_sequences
from dnamamba.genome.vcf import Field, annotate, read_ids, read_vcf
from dnamamba.settings.fields import Settings, setting
from dnamamba.settings.parser import Parser
from dnamamba.tables import read_table, table_rows
from dnamamba.training.mixture_file import read_mixture


def letters(count: int, seed: int) -> str:
    return "".join(Random(seed).choices("ACGTacgtN", (4, 4, 4, 4, 1, 1, 1, 1, 1), k=count))


def lines_of(text: str, width: int = 40) -> str:
    return "".join(text[start : start + width] + "\n" for start in range(0, len(text), width))


def to_text(tokens: np.ndarray) -> str:
    """A, C, G, T, N, in lower case where soft-masked."""
    return "".join(
        ("ACGTN" if token < SOFT_MASK_BIT else "acgtn")[min(token & TOKEN_BITS, BASES)] for token in tokens.tolist()
    )


FASTA = (
    f">chr1 Homo sapiens chromosome 1\n{lines_of(letters(130, 1))}"
    f">gi|5|gb|J02.1| phage RY\n{lines_of('ACGTRYKMNNNacgtu')}\n>plasmid_2\n{lines_of(letters(85, 2))}"
).encode()


def bgzip(data: bytes, size: int = 100) -> bytes:
    """Blocks of bgzip (SAM specification, 4.1), the empty last one too."""
    packed = b""
    for start in range(0, len(data) + size, size):
        part = data[start : start + size]
        body = zlib.compress(part, 6, -15)
        packed += bytes.fromhex("1f8b08040000000000ff060042430200") + (len(body) + 25).to_bytes(2, "little") + body
        packed += zlib.crc32(part).to_bytes(4, "little") + len(part).to_bytes(4, "little")
    return packed


def _records(path: Path) -> list[list[str]]:
    found: list[list[str]] = []
    for block in read_genome(path):
        if isinstance(block, SequenceBlock):
            if block.first:
                found.append([block.name, block.description, ""])
            found[-1][2] += to_text(block.tokens)
    return found


def fasta_reader(data: bytes, name: str) -> Reader:
    return Reader(
        lambda: [{name: data}],
        lambda folder: [tuple(record) for record in _records(folder / name)],
        lambda folder: oracles.fasta(folder / name),
        **({"mutate": mutate_packed} if name.endswith("gz") else {}),
    )


def _indexed(folder: Path) -> list[tuple[str, str]]:
    path = folder / "g.fa"
    if (genome := index_of(path)) is None:
        raise InputError(f"{path}: read whole, as it cannot be indexed")
    return [(contig.name, to_text(genome.read(contig.name, 0, contig.length))) for contig in genome.contigs]


def _indexed_oracle(folder: Path) -> list[tuple[str, str]]:
    return [(name, text) for name, _, text in oracles.fasta(folder / "g.fa") if text]


def genbank_record(locus: str, accession: str, version: str, sequence: str) -> str:
    rows = "".join(
        f"{60 * number + 1:>9} {' '.join(lines_of(line, 10).split())}\n"
        for number, line in enumerate(lines_of(sequence, 60).split())
    )
    return (
        f"LOCUS       {locus:<16} {len(sequence):>11} bp    DNA     linear   PHG 06-JUL-2018\n"
        f"DEFINITION  Bacteriophage {locus},\n            complete genome.\nACCESSION   {accession}\n"
        f"VERSION     {version}\nKEYWORDS    .\nFEATURES             Location/Qualifiers\n     gene            12..40\n"
        f'                     /gene="cI"\nORIGIN      \n{rows}//\n'
    )


GENBANK = (
    genbank_record("NC_001416", "NC_001416", "NC_001416.1", letters(130, 3).lower())
    + genbank_record("SCU49845", "U49845", "U49845.1  GI:1293613", letters(61, 4).lower())
).encode()


def _genbank(folder: Path) -> list[tuple[str, str]]:
    return [(name, text) for name, _, text in _records(folder / "p.gb")]


VCF = "\n".join(
    [
        "##fileformat=VCFv4.2",
        "##contig=<ID=chr1,length=600>",
        '##INFO=<ID=AF,Number=A,Type=Float,Description="Frequency">',
        '##FORMAT=<ID=GT,Number=1,Type=String,Description="Genotype">',
        "#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\tFORMAT\tNA12878",
        "chr1\t10\trs1\tA\tC\t30.00\tPASS\tAF=0.1;DB\tGT\t0/1",
        "chr1\t20\t.\tGAT\tG,GA\t.\t.\tAF=0.5,0.25\tGT:GQ\t1/2:9",
        "chr1\t300\trs3;x\tT\t<DEL>\t1e3\tq10;s50\t.\tGT\t./.",
        "chr2\t400\t.\tN\t.\t.\tPASS\tEND=400\tGT\t0|0",
        "",
    ]
).encode()


def _vcf(folder: Path) -> tuple[list[tuple], bytes]:
    path, out = folder / "v.vcf", folder / "out.vcf"
    records = read_vcf(path)
    ids = read_ids(path, records)
    out.unlink(missing_ok=True)
    annotate(path, out, [Field("X", "0", "Flag", "")], [[""]] * len(records), records)
    names = [records.contigs[index] for index in records.contig]
    return list(zip(names, records.start.tolist(), records.ref, records.alt, ids, strict=True)), out.read_bytes()


class Genome:
    """A genome's contigs, as the readers of intervals ask for them."""

    path = Path("genome.fa")

    def __init__(self) -> None:
        self.contigs = [SimpleNamespace(name=name, length=length) for name, length in oracles.LENGTHS.items()]
        self.names = ContigNames(oracles.LENGTHS)

    def contig(self, name: str) -> Any:
        return next(contig for contig in self.contigs if contig.name == name)


BEDS = (
    b"track name=peaks\n# peaks\nchr1\t100\t400\tpeak one\t0\t+\nchr2\t50\t350\tb\t7\t-\n"
    b"2\t5\t5\tc\t0\t.\nchrM\t0\t90\td\t0\t.\n",
    b"browser position chr1:1-100\nchr1 10 20\nchr2  30 400\n",
)  # fmt: skip


def _bed(folder: Path) -> list[tuple]:
    genome: Any = Genome()
    return [(*row.interval, row.name, row.strand) for row in read_bed(folder / "i.bed", genome)]


GFF = b"""##gff-version 3
chr1\tx\tgene\t21\t300\t.\t+\t.\tID=g1;Name=abc
chr1\tx\tmRNA\t21\t300\t.\t+\t.\tID=t1;Parent=g1
chr1\tx\texon\t21\t100\t.\t+\t.\tParent=t1;gene=abc
chr1\tx\tCDS\t31\t100\t0.5\t+\t0\tParent=t1;gene=abc
chr1\tx\texon\t201\t300\t.\t+\t.\tParent=t1;gene=abc
# a comment
chr2\tx\tCDS\t5\t304\t.\t-\t0\tID=c2;locus_tag=b0001
##FASTA
>chr1
ACGT
"""
GTF = b"""chr1\tx\texon\t21\t100\t.\t+\t.\tgene_id "G1"; transcript_id "T1"; gene_name "abc";
chr1\tx\tCDS\t31\t100\t.\t+\t0\tgene_id "G1"; transcript_id "T1"; gene_name "abc";
1\tx\texon\t201\t300\t.\t+\t.\tgene_id "G1"; transcript_id "T1"; gene_name "abc";
MT\tx\texon\t1\t90\t.\t-\t.\tgene_id "M1"; transcript_id "M1";
"""


def _gff(folder: Path) -> tuple[dict, list]:
    path, genome = folder / "a.gff3", Genome()
    store: Any = genome

    def positions(pairs: np.ndarray) -> list[int]:
        return [at for start, end in pairs.tolist() for at in range(start, end)]

    exons = {name: positions(pairs) for name, pairs in read_annotation(path, store).exons.items()}
    genes = [
        (gene.name, gene.contig, gene.reverse, positions(gene.exons), positions(gene.coding))
        for gene in read_genes(path, store)
    ]
    return exons, sorted(genes)


CSV = b'name,sequence,label,note\na,ACGTacgtNN,0,"one, ""two"""\nb2,TTTTGGGGRR,1,5 inch\n"c,c",ACGUACGU,0.5,\n'
TSV = b'name\tseq\tlabel\tnote\na\tACGTacgtNN\t0\t"one"\nb2\tTTTTGGGG\t1\t5" inch\nc\tACGUACGU\tNA\t\n'


VARIANTS = b"chrom\tpos\tref\talt\tlabel\tgene\nchr1\t10\tA\tC\t1\tabc\nchr2\t400\tGAT\tG\t0\t.\nX\t7\tT\tTA\tNA\tx\n"


def _variants(folder: Path) -> list[tuple]:
    return [(row.contig, row.start, row.ref, row.alt, row.columns) for row in read_rows(next(folder.iterdir()))]


def _table(folder: Path, name: str) -> tuple[list[str], list[list]]:
    header, rows = table_rows(folder / name)
    found = [list(cells) for _, cells in rows]
    if len(set(header)) == len(header) and all(header):
        read_table(folder / name)
    return header, found


def _sequences(folder: Path) -> list[tuple[str, str]]:
    found = read_sequences(next(folder.iterdir()), None)
    return [(sequence.name, to_text(sequence.tokens())) for sequence in found]


def _sequences_oracle(folder: Path) -> list[tuple[str, str]]:
    path = next(folder.iterdir())
    header, rows = parquet(path) if path.suffix == ".parquet" else oracles.delimited(path)
    return oracles.sequence_table(header, rows)


@cache
def parquet_file() -> bytes:
    import io

    import polars

    table = polars.DataFrame(
        {
            "name": ["a", "b", "c", "d"],
            "sequence": ["ACGT", "acgtn", "GGGGCCCC", "ACGU"],
            "label": [0, 1, None, 1],
            "score": [0.5, None, -1.25, 3e8],
        }
    )
    into = io.BytesIO()
    table.write_parquet(into, compression="uncompressed")
    return into.getvalue()


@cache
def store_files() -> list[Files]:
    """A token store, of which the source is not there."""
    import tempfile

    from dnamamba.genome.store import open_genome

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "g.fa"
        path.write_bytes(FASTA)
        store = open_genome(path)
        return [{file.name: file.read_bytes() for file in sorted(store.path.iterdir())}]


def _store(folder: Path) -> Any:
    from dnamamba.genome.store import TokenStore

    store = TokenStore(folder)
    store.verify()
    runs = [store.n_runs(contig.name).tolist() for contig in store.contigs]
    text = [to_text(store.read(contig.name, 0, contig.length)) for contig in store.contigs]
    return store.fingerprint, store.bases, store.source, store.empty_records, store.contigs, runs, text


def _checksums(folder: Path) -> Any:
    raise Damaged("checksums cover all that is read")


@dataclass(kw_only=True)
class Config(Settings):
    """Settings of all kinds."""

    label: str = "a"
    """A text."""
    length: int = setting(1, at_least=1)
    """A whole number."""
    rate: float = setting(0.5, between=(0, 1))
    """A number."""
    mask: bool = False
    """A switch."""
    contigs: list[str] | None = None
    """A list."""
    out: Path = Path("out")
    """A path."""


CONFIG = b"""# a run
label: 'first: run'
length: 1024
rate: 2.5e-1
mask: true
contigs: [chr1, chr2, 19, "X Y"]
out: runs/a
"""
MIXTURE = b"""ecoli:
  genome: ecoli.fa.gz
  weight: 3
yeast:
  genome: [sacCer3.fa, plasmid.fa]
  weight: 0.5
  contigs: chr*
  validation:
    - chrIV
    - held.bed
"""


def _config(folder: Path) -> dict[str, Any]:
    said = asdict(Parser("run", Config).parse(["--config", str(folder / "c.yaml")]))
    return said | {"out": str(said["out"])}


def _config_oracle(folder: Path) -> dict[str, Any]:
    return asdict(Config()) | {"out": "out"} | yaml_oracle.config(folder / "c.yaml")


def _mixture(folder: Path) -> list[tuple[Any, ...]]:
    return [
        (genome.name, list(map(str, genome.genome)), genome.weight, genome.contigs, genome.validation)
        for genome in read_mixture(folder / "m.yaml")
    ]


READERS: dict[str, Reader] = {
    "fasta": fasta_reader(FASTA, "g.fa"),
    "fasta, gzip": fasta_reader(gzip.compress(FASTA, mtime=0), "g.fa.gz"),
    "fasta, bgzip": fasta_reader(bgzip(FASTA), "g.fa.bgz"),
    "fasta, index": Reader(lambda: [{"g.fa": FASTA}], _indexed, _indexed_oracle),
    "genbank": Reader(lambda: [{"p.gb": GENBANK}], _genbank, lambda folder: oracles.genbank(folder / "p.gb")),
    "vcf": Reader(lambda: [{"v.vcf": VCF}], _vcf, lambda folder: oracles.vcf(folder / "v.vcf")),
    "bed": Reader(lambda: [{"i.bed": data} for data in BEDS], _bed, lambda folder: oracles.bed(folder / "i.bed")),
    "gff3, gtf": Reader(
        lambda: [{"a.gff3": GFF}, {"a.gff3": GTF}], _gff, lambda folder: oracles.gff(folder / "a.gff3")
    ),
    "csv": Reader(
        lambda: [{"t.csv": CSV}],
        lambda folder: _table(folder, "t.csv"),
        lambda folder: oracles.delimited(folder / "t.csv"),
    ),
    "tsv": Reader(
        lambda: [{"t.tsv": TSV}],
        lambda folder: _table(folder, "t.tsv"),
        lambda folder: oracles.delimited(folder / "t.tsv"),
    ),
    "parquet": Reader(
        lambda: [{"t.parquet": parquet_file()}],
        lambda folder: _table(folder, "t.parquet"),
        lambda folder: parquet(folder / "t.parquet"),
    ),
    "parquet, checksums": Reader(  # of pages, as pyarrow writes them where asked to; polars does not
        lambda: [{"t.parquet": (Path(__file__).parents[1] / "fixtures/page_checksums.parquet").read_bytes()}],
        lambda folder: _table(folder, "t.parquet"),
        lambda folder: parquet(folder / "t.parquet"),
    ),
    "sequences": Reader(
        lambda: [{"s.csv": CSV}, {"s.tsv": TSV}, {"s.parquet": parquet_file()}], _sequences, _sequences_oracle
    ),
    "variants": Reader(
        lambda: [{"v.tsv": VARIANTS}, {"v.csv": VARIANTS.replace(b"\t", b",")}, {"v.vcf": VCF}],
        _variants,
        lambda folder: oracles.variants(next(folder.iterdir())),
    ),
    "yaml, config": Reader(lambda: [{"c.yaml": CONFIG}], _config, _config_oracle),
    "yaml, mixture": Reader(
        lambda: [{"m.yaml": MIXTURE}], _mixture, lambda folder: yaml_oracle.mixture(folder / "m.yaml")
    ),
    "token store": Reader(store_files, _store, _checksums),
    "checkpoint": Reader(checkpoint_readers.own_files, checkpoint_readers.read_own, _checksums),
    "hugging face": Reader(
        checkpoint_readers.hugging_face_files, checkpoint_readers.read_foreign, checkpoint_readers.hugging_face_oracle
    ),
    "mamba-ssm": Reader(
        checkpoint_readers.mamba_ssm_files, checkpoint_readers.read_foreign, checkpoint_readers.mamba_ssm_oracle
    ),
}
"""What is called and tested."""
