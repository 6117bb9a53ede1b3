"""Where a result comes from: which weights, of what training, on which genome; and whether that is the genome of the
training."""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dnamamba import __version__
from dnamamba.errors import InputError
from dnamamba.genome.contig_names import ContigNames
from dnamamba.genome.view import ContigView, GenomeView
from dnamamba.inference.load import Inference

_CUT = re.compile(r"(?P<name>.+):(?P<start>[0-9]+)-(?P<end>[0-9]+)", re.ASCII)
MOST_CONTIGS = 100
"""Contigs of a training genome that a checkpoint keeps, the longest: enough to know its assembly by."""


def result_provenance(inference: Inference, genome: Sequence[Path], store: GenomeView | None) -> dict[str, Any]:
    """What every result says of itself; `genome` are the files, `store` the genome read from them, if one was."""
    return {
        "dnamamba": __version__,
        "checkpoint": str(inference.checkpoint.absolute()),
        "weights_sha256": inference.provenance.get("weights_sha256"),
        "trained_on": trained_on(inference.provenance),
        "genome": [str(path) for path in genome],
        "genome_fingerprint": None if store is None else store.fingerprint,
    }


def trained_on(provenance: Mapping[str, Any]) -> list[str]:
    """The files that a model was trained on, each with the beginning of its checksum; of a classifier its labelled data
    first, then those of its pretraining."""
    data = provenance.get("data")
    labelled = [str(data["data"])] if isinstance(data, dict) and "data" in data else []
    genomes = [
        f"{source['path']} (sha256 {source['sha256'][:16]})"
        for genome in _training_genomes(provenance)
        for source in genome.get("source", [])
    ]
    return [*labelled, *genomes]


def vcf_note(verb: str, values: Mapping[str, Any]) -> str:
    """A structured line for a VCF's header: `##dnamamba_VERB=<ID=VERB,key="value",…>`. What is None or empty is left
    out."""
    parts = [f'{key}="{_quoted(value)}"' for key, value in values.items() if value not in (None, [], "")]
    return f"##dnamamba_{verb}=<{','.join([f'ID={verb}', *parts])}>"


def contig_lengths(contigs: Iterable[ContigView]) -> dict[str, int]:
    """Name → bases of the longest contigs, by which `genome_warning` knows a genome again."""
    longest = sorted(contigs, key=lambda contig: -contig.length)[:MOST_CONTIGS]
    return {contig.name: contig.length for contig in longest}


def genome_warning(provenance: Mapping[str, Any], store: GenomeView) -> str:
    """A sentence if a genome is none that the model was trained on, by names and lengths of contigs; "" otherwise, and
    for a model of an earlier version, which does not say.

    Contigs of a name (`ContigNames`) and a length are the same. A genome is known again if they hold most of the bases
    of the contigs that both have; so a model trained on one chromosome knows the genome of it. A contig called
    `NAME:START-END`, as samtools faidx calls what it cuts out, is part of that contig, if its length says so too.
    """
    trained = [genome["contigs"] for genome in _training_genomes(provenance) if genome.get("contigs")]
    if not trained:
        return ""
    differing = []
    for contigs in trained:
        difference = _difference(contigs, store)
        if difference is None:
            return ""
        differing.append(difference)
    others = f" (and none of {len(differing) - 1} others)" if len(differing) > 1 else ""
    return (
        f"not the genome that the model was trained on{others}, but another assembly or species: {differing[0]}; "
        "what it has learnt may not hold here"
    )


def _difference(contigs: Mapping[str, int], store: GenomeView) -> str | None:
    """How a genome differs from one with these contigs; None if it is the same."""
    lengths = {contig.name: contig.length for contig in store.contigs}
    names = ContigNames(lengths)  # its own: the job tells what it has matched itself
    shared = {}
    for name, length in contigs.items():
        try:
            found = names.find(name)
        except InputError:  # two could be meant
            continue
        if found is not None:
            shared[name] = (length, lengths[found])
    if not shared and any(_is_cut_from(contigs, name, length) for name, length in lengths.items()):
        return None
    if not shared:
        return f"it has no contig of the names {', '.join(list(contigs)[:3])}"
    same = sum(there for there, here in shared.values() if there == here)
    if 2 * same >= sum(there for there, _ in shared.values()):
        return None
    name, (there, here) = next((name, pair) for name, pair in shared.items() if pair[0] != pair[1])
    return f"{name} has {here:,} bases, in training {there:,}"


def _is_cut_from(contigs: Mapping[str, int], name: str, length: int) -> bool:
    """Whether a sequence of this name and length can be an interval of one of the contigs (name → bases)."""
    if (cut := _CUT.fullmatch(name)) is None:
        return False
    try:
        contig = ContigNames(contigs).find(cut["name"])
    except InputError:
        return False
    start, end = int(cut["start"]), int(cut["end"])
    return contig is not None and start > 0 and end - start + 1 == length and end <= contigs[contig]


def _training_genomes(provenance: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Of a language model's provenance, or of that which a classifier began with."""
    pretraining = provenance.get("pretraining")
    genomes = (pretraining if isinstance(pretraining, dict) else provenance).get("genomes", [])
    return [genome for genome in genomes if isinstance(genome, dict)]


def _quoted(value: Any) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", " ")
