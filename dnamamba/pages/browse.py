"""The job behind `python -m dnamamba.browse`: cuts all tracks to a region and puts them with igv.js on one page."""

import lzma
import re
import shlex
import sys
import tempfile
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dnamamba.alphabet import TOKEN_BITS, TOKEN_TO_ASCII
from dnamamba.errors import InputError
from dnamamba.genome.contig_names import ContigNames, some
from dnamamba.genome.genes import Gene, longest_transcripts, read_genes, repeats
from dnamamba.genome.genome import Genome
from dnamamba.genome.intervals import Interval, subtract
from dnamamba.genome.regions import parse_region
from dnamamba.genome.view import GenomeView
from dnamamba.outputs import refuse_existing, write_atomically
from dnamamba.pages.html import as_data, data_uri, labelled, page, refuse_other_names, text
from dnamamba.pages.settings import BrowseSettings
from dnamamba.pages.variants import PageVariant, cut, read_variants, score_with
from dnamamba.pictures.bigwig import BigWigWriter
from dnamamba.pictures.bigwig_reader import BigWig

LONGEST = 2_000_000
"""Bases of a region: its page has some 50 MB"""
_TRACK = re.compile(r"(?:^|\.)(forward|reverse|mean)_(log_likelihood|entropy|p_[ACGT])\.(?:bw|bigwig)$", re.IGNORECASE)
"""How `dnamamba likelihood` calls its files"""
_COLOURS = {"forward": "#0072B2", "reverse": "#D55E00", "mean": "#00704F"}
_STRANDS = {"forward": "forward strand", "reverse": "reverse strand", "mean": "mean of both strands"}
_ORDER = [f"{strand}_{track}" for track in ("log_likelihood", "entropy") for strand in ("mean", "forward", "reverse")]
_UNITS = (
    "Likelihoods are in bits above guessing: 2 + log₂ p of the base that is there. 0 is as good as drawing one of "
    "four, 2 is certainty, and grey below 0 is worse than guessing. Letters are as high as their probability times the "
    "bits that the prediction holds (2 − entropy)."
)
_RING = '<span class="swatch" style="border:1.5px solid #767676"></span>'
_STYLE = """
html { overflow-y: scroll; }
body { max-width: 1500px; }
#igv { margin: 1rem 0; border: 1px solid #ccc; min-height: 8rem; }
.swatch { display: inline-block; width: .8em; height: .8em; border-radius: 50%; margin: 0 .3em 0 .8em; }
"""


class Tracks(NamedTuple):
    """Values of the region's bases, (bases,) fp32, NaN where there are none."""

    ours: dict[str, np.ndarray]
    """STRAND_TRACK -> values, as `dnamamba likelihood` calls them"""
    others: dict[str, np.ndarray]
    """A file's name -> values"""


def browse(settings: BrowseSettings) -> None:
    """Writes the page. Raises `InputError` for whatever the user can fix."""
    if not settings.genome:
        raise InputError("--genome: give a FASTA file, GenBank file or token store")
    if settings.likelihood and settings.checkpoint:
        raise InputError("--likelihood and --checkpoint both say what to draw; give one of them")
    refuse_other_names(settings.out)
    refuse_existing([settings.out], settings.overwrite)
    genome = Genome(settings.genome, settings.store)
    region = parse_region(settings.region, genome.source)
    if region.length > LONGEST:
        raise InputError(f"--region: {region.length:,} bases are too many for one page; choose at most {LONGEST:,}")
    variants: list[PageVariant] = []
    field = None
    if settings.vcf is not None:
        variants, field = read_variants(settings.vcf, genome.source, region, settings.score)
    genes = read_genes(settings.annotation, genome.source, region) if settings.annotation is not None else []
    if settings.checkpoint is not None:
        tracks, variants, field = _computed(settings, genome, region, variants, field)
    else:
        tracks = _read_tracks(settings.likelihood or [], region)
    html = browser_page(
        genome.source, region, tracks, longest_transcripts(genes), variants, field, _origin(settings, region)
    )
    write_atomically(settings.out, html)
    counts = f"{len(tracks.ours) + len(tracks.others)} tracks, {len(variants):,} variants, {len(genes):,} transcripts"
    print(f"{settings.out}: {region.length:,} bases, {counts}, {len(html) / 1e6:.1f} MB; open it in a browser")


def browser_page(
    genome: GenomeView,
    region: Interval,
    tracks: Tracks,
    genes: Iterable[Gene],
    variants: list[PageVariant],
    field: str | None,
    origin: Mapping[str, str],
) -> str:
    """The HTML. `field` is what the variants' scores are called, `origin` label -> text about where all comes from."""
    contig = page_name(region.contig)
    length = genome.contig(region.contig).length
    tokens = genome.read(region.contig, region.start, region.end)
    bases = TOKEN_TO_ASCII[tokens & TOKEN_BITS].tobytes()
    head = f">{contig}:{region.start + 1}-{region.end} @len={length}\n".encode()
    scores = np.array([v.score for v in variants if v.score is not None], np.float64)
    logo = _logo_tracks(tracks.ours)
    data = {
        "contig": contig,
        "start": region.start,
        "end": region.end,
        "locus": f"{contig}:{region.start + 1}-{region.end}",
        "genome": page_name(genome.path.name.removesuffix(".dnamamba")),
        "fasta": data_uri(head + bases + b"\n", "text/plain"),
        "score_limit": float(np.quantile(np.abs(scores), 0.95)) or 1.0 if scores.size else 1.0,
        "score_signed": bool((scores < 0).any()),
        "tracks": [
            {"type": "sequence", "order": -100},
            *_gene_tracks(contig, genes),
            *_repeat_tracks(contig, repeats(genome, region)),
            *_value_tracks(tracks, contig, length, region, with_entropy=not logo),
            *logo,
            *_variant_tracks(variants, field, scores),
        ],
    }
    where = f"{region.contig}:{region.start + 1:,}-{region.end:,}"
    body = [
        f"<h1>{text(where)}</h1>",
        '<p class="muted">Drag to move, double-click or use + and − to zoom in and out. The box takes a region or the '
        "name of a gene. Click on a variant, a gene or a letter for what is known of it.</p>",
        _legend(data, field) if variants else "",
        '<noscript><p>This page draws with JavaScript, which is switched off.</p></noscript>\n<div id="igv"></div>',
        f'<p class="muted">{_UNITS}</p>' if tracks.ours else "",
        labelled(origin.items()),
        "<footer>Made by dnamamba. The browser is igv.js (MIT licence, Broad Institute and University of California), "
        "which is in this page; nothing is loaded from a network.</footer>",
        as_data("data", data),
    ]
    return page(f"{where}, dnamamba", "\n".join(body), style=_STYLE, scripts=[igv_js(), own_js()])


def igv_js() -> str:
    """igv.js, see NOTICE."""
    return lzma.decompress(_file("igv.min.js.xz")).decode()


def own_js() -> str:
    return _file("browse.js").decode()


def _file(name: str) -> bytes:
    return resources.files(__package__).joinpath(name).read_bytes()


def page_name(name: str) -> str:
    """A name that igv.js takes as one word: the colons and spaces of others would end it."""
    return re.sub(r"[^\w.*+-]", "_", name, flags=re.ASCII)


def _read_tracks(paths: list[Path], region: Interval) -> Tracks:
    tracks = Tracks({}, {})
    for path in paths:
        with BigWig(path) as file:
            if (contig := ContigNames(file.contigs).find(region.contig)) is None:
                raise InputError(f"{path}: has no contig {region.contig!r}; its contigs are {some(list(file.contigs))}")
            values = file.values(contig, region.start, region.end)
        if np.isnan(values).all():
            raise InputError(f"{path}: has no value in {region}; choose another --region, or compute it there")
        found = _TRACK.search(path.name)
        into, name = (tracks.ours, f"{found[1]}_{found[2]}") if found else (tracks.others, path.name)
        if name in into:
            raise InputError(f"{path}: there are two tracks {name}; give each once")
        into[name] = values
    return tracks


def _computed(
    settings: BrowseSettings, genome: Genome, region: Interval, variants: list[PageVariant], field: str | None
) -> tuple[Tracks, list[PageVariant], str | None]:
    """The tracks by a model, and its scores of the variants where these have none."""
    from dnamamba.analysis.likelihood.strand_values import TRACKS
    from dnamamba.api.model import load  # torch: seconds that other pages need not wait for

    assert settings.checkpoint is not None
    model = load(settings.checkpoint, device=settings.accelerator, precision=settings.precision)
    table = model.likelihood_table(
        genome=genome,
        regions=[(region.contig, region.start, region.end)],
        tracks=[track for track in TRACKS if track != "entropy"],
        context=settings.context,
        batch_tokens=settings.batch_tokens,
    )
    names = [name for name in table.columns if name not in ("contig", "position", "ref")]
    wanted = [name for name in names if name.endswith("_log_likelihood") or name.startswith("mean_p_")]
    ours = {name: table[name].fill_null(float("nan")).to_numpy() for name in wanted}
    if variants and field is None:
        context = settings.context if isinstance(settings.context, int) else None
        variants = score_with(model, genome, region, variants, context, settings.batch_tokens)
        field = "log-likelihood ratio (nats)"
    return Tracks(ours, {}), variants, field


def _origin(settings: BrowseSettings, region: Interval) -> dict[str, str]:
    def joined(paths: Iterable[Path | None]) -> str:
        return ", ".join(str(path) for path in paths if path is not None)

    return {
        "region": f"{region.length:,} bases",
        "genome": joined(settings.genome),
        "model": joined([settings.checkpoint]),
        "tracks": joined(settings.likelihood or []),
        "variants": joined([settings.vcf]),
        "genes": joined([settings.annotation]),
        "command": shlex.join(sys.orig_argv),
    }


def _gene_tracks(contig: str, genes: Iterable[Gene]) -> list[dict[str, Any]]:
    features = [
        {
            "chr": contig,
            "start": max(gene.start, 0),
            "end": gene.end,
            "name": gene.name,
            "strand": "-" if gene.reverse else "+",
            "exons": [
                {"start": start, "end": end, **({"utr": True} if kind == "utr" else {})}
                for kind, start, end in exon_parts(gene)
            ],
        }
        for gene in genes
    ]
    if not features:
        return []
    shown = {"displayMode": "EXPANDED", "height": 60, "autoHeight": True, "maxHeight": 200, "color": "#1F4E79"}
    return [{"type": "annotation", "name": "genes", "features": features, "searchable": True, "order": 1, **shown}]


def exon_parts(gene: Gene) -> list[tuple[str, int, int]]:
    """("coding" or "utr", start, end): the exons of a transcript, cut where coding begins and ends; ascending."""
    kinds = {"coding": gene.coding, "utr": subtract(gene.exons, gene.coding)}
    parts = [(kind, start, end) for kind, pairs in kinds.items() for start, end in pairs.tolist()]
    return sorted(parts, key=lambda part: part[1])


def _repeat_tracks(contig: str, pairs: np.ndarray) -> list[dict[str, Any]]:
    if not len(pairs):
        return []
    features = [{"chr": contig, "start": start, "end": end} for start, end in pairs.tolist()]
    shown = {"displayMode": "COLLAPSED", "height": 28, "color": "#8C510A"}
    return [{"type": "annotation", "name": "repeats (soft-masked)", "features": features, "order": 2, **shown}]


def _value_tracks(
    tracks: Tracks, contig: str, length: int, region: Interval, with_entropy: bool
) -> list[dict[str, Any]]:
    """`with_entropy`: unless there is a logo, whose bits are 2 minus the entropy."""
    found = []
    for number, name in enumerate(name for name in _ORDER if name in tracks.ours):
        strand, _, track = name.partition("_")
        values, colour = tracks.ours[name], _COLOURS[strand]
        if track == "log_likelihood":
            values = 2 + values / np.log(2).astype(np.float32)
            shown: dict[str, Any] = {"name": f"bits above guessing, {_STRANDS[strand]}", "autoscaleGroup": "likelihood"}
        elif not with_entropy:
            continue
        else:
            shown = {"name": f"entropy, {_STRANDS[strand]} (nats)", "min": 0, "max": 1.39}
        shown |= {"color": colour, "altColor": "#767676", "order": 40 + number}
        found.append(_wig(values, contig, length, region, height=60, **shown))
    for number, (name, values) in enumerate(tracks.others.items()):
        shown = {"name": text(name), "color": "#555555", "autoscale": True, "order": 100 + number}
        found.append(_wig(values, contig, length, region, height=60, **shown))
    return found


def _wig(values: np.ndarray, contig: str, length: int, region: Interval, **shown: Any) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "track.bw"
        file = BigWigWriter(path, {contig: length})
        there = ~np.isnan(values)
        file.add(contig, np.flatnonzero(there).astype(np.int64) + region.start, values[there].astype(np.float32))
        file.close()
        return {"type": "wig", "format": "bigwig", "url": data_uri(path.read_bytes()), **shown}


def _logo_tracks(ours: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    for strand in ("mean", "forward", "reverse"):
        columns = [ours.get(f"{strand}_p_{base}") for base in "ACGT"]
        if all(column is not None for column in columns):
            p = np.stack([np.asarray(column) for column in columns], 1)
            counts = np.rint(np.nan_to_num(p) * 255).astype(np.uint8)
            label = f"predicted bases, {_STRANDS[strand]} (bits)"
            uri = data_uri(counts.tobytes()).partition(",")[2]
            shown = {"name": label, "top": _tallest(p), "height": 80, "order": -50}
            return [{"type": "logo", "probabilities": uri, **shown}]
    return []


def _tallest(p: np.ndarray) -> float:
    """Bits at the top of the logo's axis: nearly all positions have fewer. A weak model's letters are seen, too."""
    with np.errstate(divide="ignore", invalid="ignore"):
        bits = 2 + np.where(p > 0, p * np.log2(p), 0).sum(1)
    known = bits[~np.isnan(bits)]
    high = float(np.quantile(known, 0.998)) if known.size else 2.0
    return next(step for step in (0.1, 0.2, 0.5, 1.0, 2.0) if step >= high or step == 2.0)


def _variant_tracks(variants: list[PageVariant], field: str | None, scores: np.ndarray) -> list[dict[str, Any]]:
    if not variants:
        return []
    low, high = (0.0, 1.0) if not scores.size else (min(float(scores.min()), 0.0), max(float(scores.max()), 0.0))
    features = [
        {"start": v.start, "length": len(v.ref), "ref": cut(v.ref), "alt": cut(v.alt)}
        | {"score": v.score, "fields": v.fields}
        for v in variants
    ]
    label = f"variants by {text(field)}" if field else "variants (no scores)"
    shown = {"name": label, "height": 120, "range": [low, high if high > low else low + 1], "order": 30}
    return [{"type": "variants", "variants": features, **shown}]


def _legend(data: Mapping[str, Any], field: str | None) -> str:
    if field is None:
        return f"<p>Variants have no scores: {_RING}a ring each.</p>"

    def swatch(colour: str, label: str) -> str:
        return f'<span class="swatch" style="background:{colour}"></span>{label}'

    if data["score_signed"]:
        parts = [swatch("#D55E00", "below 0, the alternate allele is less likely than the reference")]
        parts += [swatch("#969696", "near 0"), swatch("#005AB2", "above 0, it is likelier")]
    else:
        parts = [swatch("#969696", "low"), swatch("#D55E00", "high")]
    return f"<p>Variants by {text(field)}: {''.join(parts)}{_RING}without a score</p>"
