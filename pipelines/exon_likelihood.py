"""Are exons predicted better than introns, and do splice sites and start codons show? On genes with known transcripts.

    python pipelines/exon_likelihood.py --checkpoint RUN --genome human_LRG_disease_genes_GRCh37.fa.gz \
        --exons human_LRG_exons_GRCh37.tsv --out FOLDER [--genes 60] [--likelihoods FILE.parquet]

The records of the FASTA are genomic (forward) slices called `LRG_n|…|gene_strand=±`; the exons' table counts from 1
along the transcript. What is left of a record outside its gene counts as between genes (other genes may lie there).

With --likelihoods what `python -m dnamamba.likelihood --format parquet --tracks log_likelihood entropy --strands mean`
has written for this FASTA is taken (so a GPU can be used elsewhere); without, it is computed here for --genes records,
drawn by a hash of their names and the seed. If the checkpoint was trained on these genes, the figures are no test of
it; --keep names a file of record names (LRG_1 …) that it has not seen.

Leaves classes.csv (bits per base of coding, other exon, intron, …, over all bases), genes.csv (a row a record),
profiles.csv (means around donors, acceptors, start codons), and the pictures exon_against_intron.png, splice_sites.png,
locus.png.
"""

import argparse
import csv
import math
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import polars as pl

from dnamamba import likelihood
from dnamamba.analysis.likelihood.gene_tables import (
    class_table,
    classes_of,
    gene_table,
    in_bits,
    interval_table,
    profile_table,
    rows_within,
)
from dnamamba.errors import InputError
from dnamamba.genome.genes import Gene, repeats
from dnamamba.genome.intervals import Interval, merge
from dnamamba.genome.store import Contig, TokenStore, open_genome
from dnamamba.genome.windows import hash_key
from dnamamba.outputs import write_table
from dnamamba.pictures.figures import save_png
from dnamamba.pictures.locus import plot_locus
from dnamamba.pictures.profiles import plot_profiles
from dnamamba.tables import read_table

MARKS = {"donor": {0: "G", 1: "T"}, "acceptor": {-2: "A", -1: "G"}, "start codon": {0: "A", 1: "T", 2: "G"}}
MEASURES = {"gain on the base that is there": "gain", "2 − entropy": "information"}


def read_lrg(path: Path, contigs: Iterable[Contig]) -> list[Gene]:
    """The transcripts of the exons' table on the records of the FASTA, in the records' coordinates."""
    records = {contig.name.partition("|")[0]: contig for contig in contigs}
    parts: dict[tuple[str, str, str], dict[str, list[tuple[int, int]]]] = {}
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE):
            if row["lrg"] in records:
                features = parts.setdefault(
                    (row["lrg"], row["gene"], row["transcript"]), {"exon": [], "coding_span": []}
                )
                features[row["feature"]].append((int(row["lrg_start"]) - 1, int(row["lrg_end"])))
    genes = []
    for (lrg, name, _), features in parts.items():
        contig = records[lrg]
        reverse = contig.name.endswith("gene_strand=-")

        def on_strand(
            pairs: list[tuple[int, int]], is_reverse: bool = reverse, length: int = contig.length
        ) -> np.ndarray:
            array = np.array(pairs, np.int64).reshape(-1, 2)
            return merge(length - array[:, ::-1] if is_reverse else array)

        exons, spans = on_strand(features["exon"]), on_strand(features["coding_span"])
        coding = [np.clip(exons, start, end) for start, end in spans.tolist()]
        none = np.empty((0, 2), np.int64)
        genes.append(Gene(name, contig.name, reverse, exons, merge(np.concatenate(coding)) if coding else none))
    return genes


def choose(contigs: Iterable[Contig], genes: int | None, seed: int, keep: Path | None) -> list[Contig]:
    """Records drawn by a hash of their names, so that a larger number contains a smaller one."""
    chosen = list(contigs)
    if keep is not None:
        names = set(keep.read_text(encoding="utf-8").split())
        chosen = [contig for contig in chosen if contig.name.partition("|")[0] in names]
        if not chosen:
            raise InputError(f"{keep}: names none of the records")
    chosen.sort(key=lambda contig: hash_key(seed, *contig.name.encode()))
    return chosen[:genes]


def gene_rows(track: pl.DataFrame, classes: np.ndarray, genes: list[Gene]) -> pl.DataFrame:
    """A row a record: its genes, and bits per base and bases in exons and introns."""
    value = pl.col("mean_log_likelihood").cast(pl.Float64)
    kind = (
        pl.when(pl.col("class").is_in(["coding", "exon, not coding"]))
        .then(pl.lit("exon"))
        .otherwise(pl.when(pl.col("class").str.starts_with("intron")).then(pl.lit("intron")))
    )
    sums = (
        track.select(pl.col("contig").cast(pl.String), value=value, **{"class": pl.Series(classes)})
        .with_columns(kind=kind)
        .filter(pl.col("kind").is_not_null() & pl.col("value").is_not_null() & pl.col("value").is_not_nan())
        .group_by("contig", "kind")
        .agg(bases=pl.len(), bits=-pl.col("value").sum() / pl.len() / math.log(2))
        .pivot("kind", index="contig", values=["bases", "bits"])
        .sort("contig")
    )
    names: dict[str, list[str]] = {}
    for gene in genes:
        names.setdefault(gene.contig, []).append(gene.name)
    called = [", ".join(dict.fromkeys(names.get(contig, []))) for contig in sums["contig"]]
    wanted = [name for name in ("bases_exon", "bits_exon", "bases_intron", "bits_intron") if name in sums.columns]
    return sums.select("contig", pl.Series("gene", called), *wanted)


def plot_exons_against_introns(rows: pl.DataFrame, classes: pl.DataFrame, path: Path, title: str) -> None:
    """Left: bits per base of each class. Right: a dot a gene, its exons against its introns."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 5), layout="constrained")
    bars, dots = figure.subplots(1, 2)
    shown = classes.sort("bits_per_base", descending=True)
    drawn = bars.barh(range(len(shown)), shown["bits_per_base"].to_list(), color="tab:blue", alpha=0.75)
    bars.set_yticks(
        range(len(shown)),
        [f"{name}\n{bases:,} bases" for name, bases in shown.select("class", "bases").iter_rows()],
        fontsize=8,
    )
    bars.bar_label(drawn, [f"{value:.3f}" for value in shown["bits_per_base"]], padding=3, fontsize=8)
    low, high = float(shown["bits_per_base"].min()), float(shown["bits_per_base"].max())  # type: ignore[arg-type]
    margin = max(high - low, 0.02)
    bars.set(xlim=(max(low - margin, 0), high + margin), xlabel="bits per base, both strands (lower: better predicted)")
    bars.set_title("over all bases")
    both = rows.drop_nulls(["bits_exon", "bits_intron"])
    exon, intron = both["bits_exon"].to_numpy(), both["bits_intron"].to_numpy()
    dots.scatter(intron, exon, s=14, alpha=0.6, linewidths=0)
    ends = [min(exon.min(), intron.min()) - 0.02, max(exon.max(), intron.max()) + 0.02]
    dots.plot(ends, ends, color="tab:gray", linestyle="--", linewidth=0.9, label="equal")
    better = int((exon < intron).sum())
    dots.set(
        xlabel="introns, bits per base",
        ylabel="exons, bits per base",
        title=f"a dot a record: exons better predicted in {better} of {len(exon)}",
        aspect="equal",
    )
    for axes in (bars, dots):
        axes.grid(alpha=0.3)
    dots.legend(fontsize=8)
    figure.suptitle(title)
    save_png(figure, path)


def typical(rows: pl.DataFrame, genes: list[Gene]) -> Gene:
    """The gene to show: its span nearest to 20 kb."""
    known = set(rows["contig"].to_list())
    return min((gene for gene in genes if gene.contig in known), key=lambda gene: abs(gene.end - gene.start - 20_000))


def likelihoods(arguments: argparse.Namespace, store: TokenStore) -> pl.DataFrame:
    """The table, computed now or taken from a file; its records are those that are looked at."""
    if arguments.likelihoods is not None:
        return read_table(arguments.likelihoods)
    chosen = choose(store.contigs, arguments.genes, arguments.seed, arguments.keep)
    prefix = arguments.out / "likelihoods"
    what = ["--tracks", "log_likelihood", "entropy", "--strands", "mean", "--format", "parquet", "--out", f"{prefix}"]
    context = [] if arguments.context is None else ["--context", arguments.context]
    where = ["--contigs", *(contig.name.replace("[", "[[]") for contig in chosen)]
    model = ["--checkpoint", f"{arguments.checkpoint}", "--genome", f"{arguments.genome}"]
    likelihood.main([*model, *where, *what, *context, "--overwrite"])
    return read_table(prefix.with_name("likelihoods.parquet"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, help="run or checkpoint folder")
    parser.add_argument("--genome", type=Path, required=True, help="FASTA of the LRG records")
    parser.add_argument("--exons", type=Path, required=True, help="TSV of their exons")
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument("--genes", type=int, help="records to look at (default: all)")
    parser.add_argument("--keep", type=Path, help="file with the names of records to choose from (LRG_1 …)")
    parser.add_argument("--seed", type=int, default=0, help="of the choice")
    parser.add_argument("--context", help="bases of context, or unlimited (default: the trained length)")
    parser.add_argument("--likelihoods", type=Path, help="Parquet that dnamamba likelihood has written")
    parser.add_argument("--store", type=Path, help="where the genome's token store lies")
    arguments = parser.parse_args()
    if arguments.checkpoint is None and arguments.likelihoods is None:
        parser.error("give --checkpoint or --likelihoods")
    arguments.out.mkdir(parents=True, exist_ok=True)
    store = open_genome([arguments.genome], arguments.store)
    track = likelihoods(arguments, store)
    names = set(track["contig"].unique().cast(pl.String).to_list())
    genes = [gene for gene in read_lrg(arguments.exons, store.contigs) if gene.contig in names]
    masked = {name: repeats(store, Interval(name, 0, store.contig(name).length)) for name in sorted(names)}
    classed = classes_of(track, genes, masked)
    classes = class_table(track, classed)
    write_table(classes, arguments.out / "classes.csv", overwrite=True)
    rows = gene_rows(track, classed, genes)
    write_table(rows, arguments.out / "genes.csv", overwrite=True)
    profiles = profile_table(in_bits(track), genes, MEASURES, flank=25)
    write_table(profiles, arguments.out / "profiles.csv", overwrite=True)
    source = arguments.checkpoint or arguments.likelihoods
    title = f"{len(names)} records, {len({gene.name for gene in genes})} genes, {source}"
    plot_exons_against_introns(rows, classes, arguments.out / "exon_against_intron.png", title)
    plot_profiles(profiles, arguments.out / "splice_sites.png", title=title, ylabel="bits above guessing", marks=MARKS)
    gene = typical(rows, genes)
    shown = Interval(gene.contig, max(gene.start - 1000, 0), min(gene.end + 1000, store.contig(gene.contig).length))
    plot_locus(
        rows_within(track, shown),
        gene_table([gene]),
        arguments.out / "locus.png",
        title=f"{gene.name}, {source}",
        columns={"mean_log_likelihood": "both strands"},
        repeats=interval_table(masked[gene.contig]),
        window=101,
    )
    print(classes)
    with pl.Config(tbl_rows=-1):
        print(
            profiles.filter(pl.col("offset").is_between(-3, 5)).pivot(
                "measure", index=["site", "offset"], values="mean"
            )
        )
    print(f"written to {arguments.out}")


if __name__ == "__main__":
    main()
