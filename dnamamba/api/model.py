"""A trained model as a Python object: likelihoods, embeddings, samples, variants, classes.

Sequences are `str` (any case; U is read as T, other IUPAC codes as N), one or a list of them. Genomes are paths of
FASTA files, GenBank files or token stores, or an open one. Regions are written as samtools takes them
(`chr20:1,000,001-1,010,000`, 1-based, both ends included), or are (contig, start, end), 0-based and half-open, or a BED
file. A call for one sequence or region gives one value; a call for several, a list in their order.
"""

import os
import sys
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from dnamamba.alphabet import decode
from dnamamba.analysis.embedding.compute import Pool, check_pool, embed_sequences, position_offsets
from dnamamba.analysis.generation.job import check_temperature
from dnamamba.analysis.generation.settings import GenerateSettings
from dnamamba.analysis.likelihood.compute import likelihood_table
from dnamamba.analysis.likelihood.job import tiling_for
from dnamamba.analysis.likelihood.sequences import likelihoods_of_sequences
from dnamamba.analysis.likelihood.strand_values import TRACKS
from dnamamba.analysis.variants.mutagenesis import saturate, saturation_table
from dnamamba.analysis.variants.plan import plan_for
from dnamamba.analysis.variants.score_output import combine, scored_table
from dnamamba.api.variants import Variants, records_of
from dnamamba.errors import GenomeWarning, InputError
from dnamamba.finetuning.apply import prediction_table, refuse_other_queries
from dnamamba.finetuning.apply_variants import variant_table
from dnamamba.formats.checkpoint import is_classifier
from dnamamba.genome.alleles import check, refuse_mismatches
from dnamamba.genome.genome import Genome
from dnamamba.genome.intervals import Interval
from dnamamba.genome.regions import parse_region, read_regions
from dnamamba.genome.sequences import CodesReadAsN, NamedSequence, to_tokens
from dnamamba.genome.store import TokenStore
from dnamamba.genome.view import GenomeView
from dnamamba.inference.device import Accelerator, Precision
from dnamamba.inference.load import Inference, load_classifier_for_inference, load_for_inference
from dnamamba.inference.provenance import genome_warning
from dnamamba.inference.recorded_passes import record_no_passes
from dnamamba.inference.sampling import Generator, Sampling
from dnamamba.model.abilities import require

if TYPE_CHECKING:
    import polars
    import torch.nn as nn

Sequences = str | Sequence[str]
"""One sequence, or several"""
GenomeLike = str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | Genome | TokenStore
"""Files of a genome, or a genome that is open"""
Region = str | tuple[str, int, int]
"""`chr20:1,000,001-1,010,000` as samtools takes it, or (contig, start, end), 0-based and half-open"""
Regions = Region | Sequence[Region] | os.PathLike[str]
"""One region, several, or a BED file"""
Strand = Literal["forward", "reverse", "mean"]


def load(
    checkpoint: str | os.PathLike[str], *, device: Accelerator = "auto", precision: Precision | None = None
) -> "Model":
    """A trained model, ready to be used.

    Args:
        checkpoint: a run folder (its best checkpoint by validation is taken) or a checkpoint folder, of a pretrained
            model or of a fine-tuned one; or a folder of Hugging Face's MambaForCausalLM, of state-spaces/mamba or of
            Caduceus.
        device: `auto` takes the GPU if there is one; `cpu`; `gpu`.
        precision: of the matrix products, `fp32` or `bf16`; states and likelihoods are fp32 in both. Default: fp32,
            as small differences of likelihoods want.

    Raises:
        InputError: no checkpoint there, a damaged one, or no GPU where one was wanted.
    """
    return Model(Path(checkpoint), device, precision or "fp32")


class Model:
    """A pretrained language model, or a classifier fine-tuned from one. Made by `dnamamba.load`."""

    def __init__(self, checkpoint: Path, device: Accelerator, precision: Precision) -> None:
        self.checkpoint = checkpoint
        self.is_classifier = is_classifier(checkpoint)
        """Whether it predicts classes (`predict`) and not bases."""
        load_it: Any = load_classifier_for_inference if self.is_classifier else load_for_inference
        self._loaded: Any = load_it(checkpoint, device, precision)

    def __repr__(self) -> str:
        config = self._loaded.model.config
        kind = f"classifier of {', '.join(self.classes[:6])}" if self.is_classifier else "language model"
        return f"<dnamamba {kind}: {config.n_layer} blocks x {config.d_model}, from {self.checkpoint}>"

    @property
    def module(self) -> "nn.Module":
        """The `torch.nn.Module`, in evaluation mode, its parameters without gradients. Hooks may be added, and weights
        changed: from then on this model does without recorded passes."""
        record_no_passes(self._loaded.model.backbone)
        return self._loaded.model

    @property
    def provenance(self) -> dict[str, Any]:
        """What the checkpoint says of its training: settings, genomes, splits, metrics, versions, command."""
        return self._loaded.provenance

    @property
    def trained_length(self) -> int | None:
        """Bases of context that it was trained at; None where its checkpoint does not say."""
        return self._loaded.trained_length

    @property
    def classes(self) -> list[str]:
        """The names of a classifier's outputs; empty for a language model."""
        return list(self._loaded.model.head_config.names) if self.is_classifier else []

    @cached_property
    def _inference(self) -> Inference:
        if self.is_classifier:
            raise InputError(
                f"{self.checkpoint}: a fine-tuned classifier, which predicts classes and no bases; "
                "load the pretrained checkpoint"
            )
        return self._loaded

    def log_likelihood(
        self,
        sequences: Sequences | None = None,
        *,
        genome: GenomeLike | None = None,
        regions: Regions | None = None,
        strand: Strand = "forward",
        context: int | Literal["unlimited"] | None = None,
        mask_every: int | Literal["alone"] | None = None,
        batch_tokens: int | None = None,
    ) -> Any:
        """ln p of each base given the bases before it, in nats: (length,) fp32, NaN where there is none (N, and the
        first base of a strand). Of a model that predicts masked bases: given the bases on both sides. For several
        sequences or regions a list of such arrays.

        Args:
            sequences: one or several; or
            genome, regions: regions of a genome, whose neighbouring bases are read as context.
            strand: `forward`, `reverse` (the bases are read on the other strand), or the `mean` of the two.
            context: bases of context at most; `unlimited` hands the state on. Default: what it was trained at.
            mask_every: of a model that predicts masked bases, bases between those that one pass masks (default 16), or
                `alone`.
            batch_tokens: bases in one pass; lower it when memory runs out. The result does not depend on it beyond
                rounding.

        >>> model.log_likelihood("ACGTTGCA").shape
        (8,)
        """
        found = self._tracks(["log_likelihood"], sequences, genome, regions, strand, context, mask_every, batch_tokens)
        return _one_or_all([values[0] for values in found], sequences, regions)

    def base_probabilities(
        self,
        sequences: Sequences | None = None,
        *,
        genome: GenomeLike | None = None,
        regions: Regions | None = None,
        strand: Strand = "forward",
        context: int | Literal["unlimited"] | None = None,
        mask_every: int | Literal["alone"] | None = None,
        batch_tokens: int | None = None,
    ) -> Any:
        """The probabilities of A, C, G, T at each position given the bases before it, in letters of the sequence as
        given: (length, 4) fp32, NaN where there are none. Arguments as `log_likelihood`'s.

        >>> model.base_probabilities("ACGTTGCA")[1:].sum(axis=1).round(3).tolist()
        [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]
        """
        tracks = ["p_A", "p_C", "p_G", "p_T"]
        found = self._tracks(tracks, sequences, genome, regions, strand, context, mask_every, batch_tokens)
        return _one_or_all([np.ascontiguousarray(values.T) for values in found], sequences, regions)

    def likelihood_table(
        self,
        *,
        genome: GenomeLike,
        regions: Regions,
        strands: Sequence[Strand] = ("forward", "reverse", "mean"),
        tracks: Sequence[str] = TRACKS,
        context: int | Literal["unlimited"] | None = None,
        mask_every: int | Literal["alone"] | None = None,
        batch_tokens: int | None = None,
    ) -> "polars.DataFrame":
        """The likelihoods of regions as a table, a row a base of the merged regions: what `dnamamba likelihood --format
        parquet` writes. Columns: contig, position (0-based), ref, then STRAND_TRACK (fp32, null where there is none).

        Args:
            tracks: log_likelihood (nats), p_A, p_C, p_G, p_T, entropy (nats), or some of them.
            genome, regions, context, mask_every, batch_tokens: as `log_likelihood`'s.

        >>> model.likelihood_table(genome=genome, regions="K-12-MG1655:1-100", tracks=["entropy"]).shape
        (100, 6)
        """
        store = self._open(genome)
        tiling = tiling_for(self._inference, context, None, mask_every)
        intervals = _intervals(regions, store)
        return likelihood_table(self._inference, store, intervals, tiling, strands, tracks, batch_tokens)

    def embed(
        self,
        sequences: Sequences | None = None,
        *,
        genome: GenomeLike | None = None,
        regions: Regions | None = None,
        pool: Pool = "mean",
        both_strands: bool = False,
        batch_tokens: int | None = None,
    ) -> Any:
        """Hidden states after the last block and norm: (sequences, d_model) fp32, or (d_model,) of one sequence. Of a
        reverse-complement-equivariant model the mean of its two streams, which is the same for both strands.

        Args:
            sequences, genome, regions: as `log_likelihood`'s; here each region is read by itself, without neighbours.
            pool: `mean` over A, C, G, T; `last`, of a causal model, the state after the last base, which has seen them
                all; `position`, (length, d_model), a list of them for several sequences.
            both_strands: the mean with the reverse complement's (of the same base, with `position`).

        >>> model.embed(["ACGTTGCA", "GGGTTTCCC"]).shape
        (2, 64)
        """
        check_pool(self._inference.model, pool)
        named = self._named_sequences(sequences, genome, regions)
        for each in named:
            if not len(each):
                raise InputError(f"{each.name}: has no bases; there is nothing to embed")
        width = self._inference.model.config.d_model
        offsets = position_offsets(named)
        out = np.empty((int(offsets[-1]) if pool == "position" else len(named), width), np.float32)
        batch = batch_tokens or self._inference.compute.micro_tokens
        embed_sequences(self._inference, named, pool, out, batch_tokens=batch, both_strands=both_strands)
        if pool == "position":
            return _one_or_all(np.split(out, offsets[1:-1]), sequences, regions)
        return out[0] if _is_one(sequences, regions) else out

    def generate(
        self,
        prompt: Sequences,
        *,
        length: int = 1000,
        samples: int = 1,
        temperature: float = 1.0,
        top_k: int = 4,
        seed: int = 0,
        batch: int = 64,
    ) -> Any:
        """Continues a prompt by `length` bases: a `str` of A, C, G, T without the prompt; for several prompts or
        `samples` a list, the samples of a prompt together.

        Args:
            prompt: at least one base each.
            temperature: above 1 more random than the model's probabilities, below 1 less; 0 takes the likeliest base.
            top_k: draw from so many of the likeliest bases only.
            seed: the n-th sequence is a function of seed and n, not of the batch it is sampled in.

        >>> len(model.generate("ACGT", length=20, seed=1))
        20
        """
        require(self._inference.model, "generate")
        # The bounds of the command line's flags.
        GenerateSettings(
            checkpoint=self.checkpoint, length=length, samples=samples, batch=batch, top_k=top_k, seed=seed
        )
        check_temperature(temperature)
        prompts = [to_tokens(text, f"prompt {number}", None) for number, text in enumerate(_several(prompt), 1)]
        if not all(len(tokens) for tokens in prompts):
            raise InputError("prompt: empty; a causal model needs at least one base to continue from")
        rows = [tokens for tokens in prompts for _ in range(samples)]
        generator = Generator(self._inference, Sampling(temperature, top_k, seed))
        found: list[str] = []
        for first in range(0, len(rows), batch):
            part = rows[first : first + batch]
            found += [decode(row) for row in generator.generate(part, range(first, first + len(part)), length)]
        return found[0] if isinstance(prompt, str) and samples == 1 else found

    def score_variants(
        self,
        variants: Variants,
        *,
        genome: GenomeLike,
        context: int | None = None,
        suffix: int | None = None,
        exact: bool = False,
        embedding_distance: bool = False,
        flank: int | None = None,
        mask_every: int | Literal["alone"] | None = None,
        max_mismatches: float = 0.01,
        batch_tokens: int | None = None,
    ) -> "polars.DataFrame":
        """Zero-shot scores of variants: log-likelihood ratios in nats, above 0 where the alternate allele is the
        likelier one. A row an alternate allele, with the columns that `dnamamba score --out scores.parquet` writes:
        contig, start and end (0-based, half-open), id, ref, alt, llr, its parts, and why an allele was skipped.

        Args:
            variants: a VCF (plain, gzip, bgzip); (contig, position, ref, alt) with positions from 1, as in a VCF; or a
                polars frame with the columns contig (or chrom), pos (from 1) or start (from 0), ref and alt.
            genome: the assembly that they were called on.
            context: bases of a tile, or of the window around a variant. Default: what the model was trained at.
            suffix: reference bases after an allele that are scored with it. Default: a 32nd of `context`, at least
                2048; `exact` scores all to the tile's end.
            embedding_distance: adds how far the embeddings of the bases after the variant move.
            flank: of a model that predicts masked bases, which needs no `suffix`: bases on each side of an allele that
                are scored with it (default 16), single-base changes apart.
            mask_every: of such a model, bases between those of an allele and its flanks that one pass masks, or `alone`
                (the default).
            max_mismatches: share of the variants whose ref may differ from the genome.

        >>> model.score_variants([("K-12-MG1655", 1000, "T", "A")], genome=genome)["llr"].len()
        1
        """
        inference, store = self._inference, self._open(genome)
        records, ids = records_of(variants)
        plan = plan_for(
            inference,
            context=context,
            suffix=suffix,
            batch_tokens=batch_tokens,
            exact=exact,
            embedding_distance=embedding_distance,
            flank=flank,
            mask_every=mask_every,
        )
        checked = check(records, store, longest=plan.context // 2)
        refuse_mismatches(checked, records, store, max_mismatches, "variants", hint="; max_mismatches raises the limit")
        scores = plan.score(inference, store, checked.alleles)
        return scored_table(records, ids, checked, combine(checked.alleles, scores))

    def mutagenesis(
        self,
        region: Region,
        *,
        genome: GenomeLike,
        context: int | None = None,
        suffix: int | None = None,
        batch_tokens: int | None = None,
    ) -> "polars.DataFrame":
        """The scores of every single-base change of a region, as `score_variants` gives them: a row a base with contig,
        position (0-based), ref, and llr_A, llr_C, llr_G, llr_T (nats; 0 for the reference base), of both strands and
        of each.

        >>> model.mutagenesis("K-12-MG1655:1,001-1,010", genome=genome, suffix=64).height
        10
        """
        inference, store = self._inference, self._open(genome)
        plan = plan_for(inference, context=context, suffix=suffix, batch_tokens=batch_tokens, state_every=256)
        return saturation_table(saturate(inference, store, _intervals(region, store)[0], plan))

    def predict(
        self,
        sequences: Sequences | None = None,
        *,
        genome: GenomeLike | None = None,
        regions: Regions | None = None,
        variants: Variants | None = None,
        max_mismatches: float = 0.01,
        batch_tokens: int | None = None,
    ) -> "polars.DataFrame":
        """What a fine-tuned model says of each sequence, region or variant.

        Sequences and regions: a row each with name, start, end, strand, the share of N, the predicted class, and the
        probability p_CLASS of each class (a regression: value_TARGET). Variants: a row an alternate allele with record,
        contig, start and end (0-based, half-open), id, ref, alt, predicted, p_CLASS, and why an allele was skipped.

        Args:
            sequences, genome, regions: as `log_likelihood`'s; here each region is read by itself.
            variants, genome: of a classifier of variants, as `score_variants`'s.
            max_mismatches: share of the variants whose ref may differ from the genome.

        Raises:
            InputError: a language model without classes; sequences for a classifier of variants, or the other way
                round.
        """
        if not self.is_classifier:
            raise InputError(
                f"{self.checkpoint}: a language model without classes; train them by dnamamba.finetune first"
            )
        loaded = self._loaded
        refuse_other_queries(loaded, of_variants=variants is not None)
        if batch_tokens is not None:
            loaded = replace(loaded, compute=replace(loaded.compute, micro_tokens=batch_tokens))
        if variants is None:
            return prediction_table(loaded, self._named_sequences(sequences, genome, regions))
        if genome is None or sequences is not None or regions is not None:
            raise InputError("give variants= and genome=, and neither sequences nor regions")
        return variant_table(loaded, self._open(genome), *records_of(variants), max_mismatches)

    def _named_sequences(
        self, sequences: Sequences | None, genome: GenomeLike | None, regions: Regions | None
    ) -> list[NamedSequence]:
        if _are_sequences(sequences, genome, regions):
            assert sequences is not None
            found = enumerate(_tokens(sequences), 1)
            return [NamedSequence(f"{n}", f"{n}", 0, tokens.size, False, tokens) for n, tokens in found]
        assert genome is not None and regions is not None
        store = _open(genome)
        return [NamedSequence(str(each), *each, False, store.read(*each)) for each in _intervals(regions, store)]

    def _open(self, genome: GenomeLike) -> GenomeView:
        """A genome, with a `GenomeWarning` where the verbs print one."""
        store = _open(genome)
        if text := genome_warning(self.provenance, store):
            warnings.warn(text, GenomeWarning, stacklevel=_level_of_caller())
        return store

    def _tracks(
        self,
        tracks: list[str],
        sequences: Sequences | None,
        genome: GenomeLike | None,
        regions: Regions | None,
        strand: Strand,
        context: int | Literal["unlimited"] | None,
        mask_every: int | Literal["alone"] | None,
        batch_tokens: int | None,
    ) -> list[np.ndarray]:
        """(tracks, bases) fp32 of each sequence or region."""
        inference = self._inference
        tiling = tiling_for(inference, context, None, mask_every)
        if _are_sequences(sequences, genome, regions):
            assert sequences is not None
            return likelihoods_of_sequences(inference, _tokens(sequences), tiling, strand, tracks, batch_tokens)
        assert genome is not None and regions is not None
        store = self._open(genome)
        intervals = _intervals(regions, store)
        table = likelihood_table(inference, store, intervals, tiling, [strand], tracks, batch_tokens)
        return [_rows_of(table, each, [f"{strand}_{track}" for track in tracks]) for each in intervals]


def _level_of_caller() -> int:
    """For `warnings.warn` in the function that calls this: how far up the first line outside the package is."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals["__name__"].partition(".")[0] == "dnamamba":
        level, frame = level + 1, frame.f_back
    return level


def _rows_of(table: "polars.DataFrame", interval: Interval, columns: list[str]) -> np.ndarray:
    import polars as pl

    here = (pl.col("contig").cast(pl.String) == interval.contig) & (pl.col("position") >= interval.start)
    rows = table.filter(here & (pl.col("position") < interval.end)).select(columns)
    return rows.select(pl.all().fill_null(float("nan"))).to_numpy().T


def _are_sequences(sequences: Sequences | None, genome: GenomeLike | None, regions: Regions | None) -> bool:
    if (sequences is None) == (genome is None) or (genome is None) != (regions is None):
        raise InputError("give sequences, or genome= and regions=")
    return sequences is not None


def _several(sequences: Sequences) -> Iterable[str]:
    return [sequences] if isinstance(sequences, str) else sequences


def _is_one(sequences: Sequences | None, regions: Regions | None) -> bool:
    if sequences is not None:
        return isinstance(sequences, str)
    return isinstance(regions, str) or (
        isinstance(regions, tuple) and len(regions) == 3 and isinstance(regions[1], int)
    )


def _one_or_all(found: list[Any], sequences: Sequences | None, regions: Regions | None) -> Any:
    return found[0] if _is_one(sequences, regions) else found


def _tokens(sequences: Sequences) -> list[np.ndarray]:
    """(bases,) uint8 of each. Raises `InputError` for a letter that is no nucleotide code."""
    with CodesReadAsN("sequences") as codes:
        return [to_tokens(text, f"sequence {number}", codes) for number, text in enumerate(_several(sequences), 1)]


def _open(genome: GenomeLike) -> GenomeView:
    if isinstance(genome, Genome):
        return genome.source
    if isinstance(genome, TokenStore):
        return genome
    return Genome([Path(genome)] if isinstance(genome, str | os.PathLike) else [Path(path) for path in genome]).source


def _intervals(regions: Regions, store: GenomeView) -> list[Interval]:
    if isinstance(regions, os.PathLike):
        return read_regions(store, None, Path(regions))
    if _is_one(None, regions):
        return [_interval(regions, store)]  # type: ignore[arg-type]
    return [_interval(region, store) for region in regions]  # type: ignore[arg-type, union-attr]


def _interval(region: Region, store: GenomeView) -> Interval:
    if isinstance(region, str):
        return parse_region(region, store)
    contig, start, end = region
    length = store.contig(contig).length
    if not 0 <= start < end <= length:
        raise InputError(f"{contig}:{start}-{end}: expected 0 <= start < end <= {length}, the contig's length")
    return Interval(contig, start, end)
