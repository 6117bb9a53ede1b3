"""The parts of fine-tuning: windows, splits, labels, layouts, metrics, the classifier and its checkpoint."""

import csv
import gzip
import json
import os
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dnamamba import alphabet
from dnamamba.errors import InputError
from dnamamba.finetuning import metrics
from dnamamba.finetuning.chunks import ChunkedFeatures
from dnamamba.finetuning.resolve import resolve
from dnamamba.finetuning.settings import FinetuneSettings
from dnamamba.finetuning.tasks import sequences, species
from dnamamba.finetuning.tasks.examples import Examples, FixedSet, HeldOut, Target, canonical, pad
from dnamamba.finetuning.tasks.labels import describe_counts, encode_labels, find_target
from dnamamba.finetuning.tasks.readers import Record, TableColumns, read_records
from dnamamba.finetuning.tasks.windows import SpeciesWindows, Starts, spread_windows
from dnamamba.finetuning.trial import warmup_lengths
from dnamamba.formats.checkpoint import (
    is_classifier,
    load_checkpoint,
    load_classifier,
    read_card,
    save_checkpoint,
    save_classifier,
)
from dnamamba.genome.store import open_genome
from dnamamba.inference.pooling import classify, head_features, strand_features
from dnamamba.model.classifier import HeadConfig, SequenceClassifier
from dnamamba.model.config import ModelConfig
from dnamamba.model.language_model import LanguageModel
from dnamamba.model.tokens import reverse_complement

needs_real_data = pytest.mark.skipif("DNAMAMBA_TEST_DATA" not in os.environ, reason="needs DNAMAMBA_TEST_DATA")
TINY = ModelConfig(n_layer=2, d_model=16, d_state=4)


def random_dna(length, seed=0):
    return "".join(np.random.default_rng(seed).choice(list("ACGT"), length))


def classifier(**head):
    torch.manual_seed(0)
    return SequenceClassifier(TINY, HeadConfig(**({"kind": "multiclass", "names": ("a", "b", "c")} | head))).eval()


# The classifier


rows_of_tokens = st.lists(st.lists(st.integers(0, 4), min_size=1, max_size=20), min_size=1, max_size=5)


@given(rows_of_tokens, st.integers(0, 3))
def test_the_other_strand_of_padded_rows_is_that_of_each_row_alone(rows, more_padding):
    tokens, lengths = pad([np.array(row, np.uint8) for row in rows])
    tokens = np.pad(tokens, ((0, 0), (0, more_padding)), constant_values=alphabet.PAD)
    complements = reverse_complement(torch.from_numpy(tokens), torch.from_numpy(lengths)).numpy()
    for row, original in zip(complements, rows, strict=True):
        assert row[: len(original)].tolist() == alphabet.reverse_complement(np.array(original, np.uint8)).tolist()
        assert (row[len(original) :] == alphabet.PAD).all()
    where = torch.arange(len(rows)) % 2 == 1
    mixed = reverse_complement(torch.from_numpy(tokens), torch.from_numpy(lengths), where).numpy()
    assert np.array_equal(mixed, np.where(where.numpy()[:, None], complements, tokens))


@pytest.mark.parametrize("pooling", ["last", "mean"])
@pytest.mark.parametrize("strands", ["one", "mean", "both"])
def test_padding_batches_and_chunks_change_nothing(pooling, strands):
    model = classifier(pooling=pooling, strands=strands)
    sequences = [np.random.default_rng(n).integers(0, 5, n).astype(np.uint8) for n in (1, 2, 3, 17, 64, 65, 300)]
    with torch.no_grad():
        alone = torch.cat([classify(model, torch.from_numpy(s)[None], torch.tensor([len(s)])) for s in sequences])
        tokens, lengths = map(torch.from_numpy, pad(sequences))
        wide = torch.nn.functional.pad(tokens, (0, 37), value=alphabet.PAD)
        for together in (classify(model, tokens, lengths), classify(model, wide, lengths)):
            torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)
        for chunk in (1, 7, 64, 299, 1000):
            torch.testing.assert_close(classify(model, wide, lengths, chunk), alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize("pooling", ["last", "mean"])
@pytest.mark.parametrize("strands", ["one", "mean", "both"])
def test_gradients_by_chunks_are_those_of_whole_sequences(pooling, strands):
    """Of padded sequences, one of which ends in the first chunk, and one where a chunk does."""
    model = classifier(pooling=pooling, strands=strands).train()
    sequences = [np.random.default_rng(n).integers(0, 5, n).astype(np.uint8) for n in (5, 40, 97, 100)]
    tokens, lengths = map(torch.from_numpy, pad(sequences))
    wanted = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    (model.logits(head_features(model, tokens, lengths, strands)) * wanted).sum().backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters()}
    for chunk in (20, 33, 99, 500):
        model.zero_grad()
        found = ChunkedFeatures(model, tokens, lengths, strands, chunk=chunk, context=nullcontext)
        (model.logits(found.features) * wanted).sum().backward()
        found.backward()
        for name, parameter in model.named_parameters():
            assert (parameter.grad - expected[name]).norm() < 1e-5 * expected[name].norm(), name
    model.zero_grad()
    cut = ChunkedFeatures(model, tokens, lengths, strands, chunk=20, truncated=True, context=nullcontext)
    (model.logits(cut.features) * wanted).sum().backward()
    cut.backward()
    assert any((p.grad - expected[name]).norm() > 1e-4 * expected[name].norm() for name, p in model.named_parameters())


def test_both_strands_give_one_answer_to_a_sequence_and_its_reverse_complement():
    tokens = torch.randint(0, 4, (3, 50), dtype=torch.uint8)
    lengths = torch.tensor([50, 20, 1])
    other = reverse_complement(tokens, lengths)
    model = classifier(strands="mean")
    with torch.no_grad():
        torch.testing.assert_close(classify(model, tokens, lengths), classify(model, other, lengths), rtol=0, atol=1e-6)
        side_by_side = classifier(strands="both")
        assert not torch.allclose(classify(side_by_side, tokens, lengths), classify(side_by_side, other, lengths))
        seen, other_seen = (head_features(side_by_side, t, lengths, "both") for t in (tokens, other))
        assert torch.equal(seen, other_seen.roll(16, 1))
        assert torch.equal(seen[:, :16], head_features(side_by_side, tokens, lengths, "one"))


def test_the_mean_is_over_the_bases_and_the_last_state_is_that_of_the_last_base():
    tokens, lengths = torch.randint(0, 4, (2, 30), dtype=torch.uint8), torch.tensor([30, 11])
    with torch.no_grad():
        hidden, _ = classifier().backbone(tokens)
        expected = torch.stack([hidden[0].mean(0), hidden[1, :11].mean(0)])
        torch.testing.assert_close(strand_features(classifier(pooling="mean"), tokens, lengths), expected)
        torch.testing.assert_close(
            strand_features(classifier(), tokens, lengths), torch.stack([hidden[0, 29], hidden[1, 10]])
        )


def test_a_classifier_is_saved_and_loaded_with_its_classes(tmp_path):
    model = classifier(kind="regression", names=("x",), shift=(2.0,), scale=(3.0,), pooling="mean", strands="both")
    save_classifier(model, tmp_path / "model", {"task": "sequences"})
    loaded, provenance = load_classifier(tmp_path / "model")
    assert loaded.head_config == model.head_config and provenance["task"] == "sequences"
    tokens, lengths = torch.randint(0, 4, (2, 30), dtype=torch.uint8), torch.tensor([30, 11])
    stored = dict(loaded.state_dict())
    assert all(torch.equal(value, stored.pop(name)) for name, value in model.state_dict().items()) and not stored
    torch.testing.assert_close(classify(loaded, tokens, lengths), classify(model, tokens, lengths), rtol=0, atol=1e-6)
    assert torch.equal(loaded.predictions(torch.ones(1, 1)), torch.full((1, 1), 5.0))
    assert read_card(tmp_path / "model")["classifier"]["names"] == ("x",)


def test_language_models_and_classifiers_are_not_taken_for_each_other(tmp_path):
    save_classifier(classifier(), tmp_path / "classes", {})
    save_checkpoint(LanguageModel(TINY), tmp_path / "bases", {})
    assert is_classifier(tmp_path / "classes") and not is_classifier(tmp_path / "bases")
    with pytest.raises(InputError, match="classes: a fine-tuned classifier, which predicts classes and no bases"):
        load_checkpoint(tmp_path / "classes")
    with pytest.raises(InputError, match="bases: a language model without classes"):
        load_classifier(tmp_path / "bases")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"names": ["a"]}, "needs two classes at least"),
        ({"names": ["a", "b"]}, r"head.(weight|bias) has shape \(3,"),
        ({"kind": "ranking"}, "a classifier's kind is one of .*, not 'ranking'"),
        ({"colour": 1}, "unknown key colour"),
        ({"shift": [1.0]}, "one number a regression target"),
    ],
)
def test_damaged_heads_are_refused(tmp_path, change, message):
    save_classifier(classifier(), tmp_path / "model", {})
    path = tmp_path / "model" / "classifier.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(InputError, match=message):
        load_classifier(tmp_path / "model")


# Windows of genomes


def species_intervals(tmp_path, name, contigs, bounds):
    """A genome whose windows may come from `bounds`: (contig number, start, end) without N."""
    path = tmp_path / f"{name}.fa"
    path.write_text("".join(f">c{number}\n{text}\n" for number, text in enumerate(contigs)))
    store = open_genome(path)
    intervals = [species.Interval(f"c{number}", start, end) for number, start, end in bounds]
    return store, species._of_genome(name, store, tuple(intervals))


@pytest.fixture
def two_species(tmp_path):
    with_n = random_dna(300, 1) + "N" * 20 + random_dna(280, 2).lower() + "NNN" + random_dna(97, 3)
    human = species_intervals(
        tmp_path, "human", [with_n, random_dna(400, 4)], [(0, 10, 700), (1, 0, 150), (1, 200, 400)]
    )
    yeast = species_intervals(tmp_path, "yeast", [random_dna(1000, 5)], [(0, 0, 900)])
    return human, yeast


def test_all_places_are_n_free_and_contigs_then_places_are_equally_likely(two_species):
    store, found = two_species[0]
    length = 90
    starts = Starts(found, length)
    # Every contig and, within it, every position once.
    per_contig = np.diff(starts.contig_bounds)
    assert len(per_contig) == 2
    for contig, count in enumerate(per_contig.tolist()):
        drawn = starts.draw(np.full(count, contig, np.uint64), np.arange(count, dtype=np.uint64))
        assert len(set(drawn.tolist())) == count
        first, interval = starts.positions(drawn)
        assert set(found.contig[interval].tolist()) == {contig}
        windows = store.tokens[first[:, None] + np.arange(length)] & alphabet.TOKEN_BITS
        assert (windows < alphabet.BASES).all()
    # And there is no other N-free position in the intervals.
    expected = 0
    for contig, start, end in [("c0", 10, 700), ("c1", 0, 150), ("c1", 200, 400)]:
        is_n = (store.read(contig, start, end) & alphabet.TOKEN_BITS) == alphabet.N
        expected += sum(not is_n[i : i + length].any() for i in range(end - start - length + 1))
    assert starts.total == expected


def test_a_window_is_a_function_of_seed_epoch_and_index(two_species):
    plan = SpeciesWindows([found for _, found in two_species], 90, size=64)
    whole = plan.batch(3, 2, np.arange(64))
    for index in (0, 1, 17, 63):
        single = plan.batch(3, 2, np.array([index]))
        assert np.array_equal(single.tokens[0], whole.tokens[index]) and single.labels[0] == whole.labels[index]
    assert not np.array_equal(plan.batch(3, 3, np.arange(64)).tokens, whole.tokens)
    assert not np.array_equal(plan.batch(4, 2, np.arange(64)).tokens, whole.tokens)
    assert np.bincount(whole.labels).tolist() == [32, 32]
    assert (whole.tokens < alphabet.BASES).all()  # neither N nor case
    assert plan.batch(3, 2, np.arange(8), length=45).tokens.shape == (8, 45)
    fixed = replace(plan, is_fixed=True)
    assert np.array_equal(fixed.batch(3, 2, np.arange(64)).tokens, plan.batch(3, 0, np.arange(64)).tokens)
    assert np.array_equal(fixed.batch(3, 2, np.arange(64)).tokens, fixed.batch(3, 7, np.arange(64)).tokens)


def test_scored_windows_are_as_many_of_each_species_and_in_every_interval(two_species):
    found = [item for _, item in two_species]
    examples = spread_windows(found, 90, 1000)
    assert np.bincount(examples.labels).tolist() == [len(examples) // 2] * 2
    human = [origin for origin, label in zip(examples.origins, examples.labels, strict=True) if label == 0]
    assert {origin.group for origin in human} == {"human:c0:10-700", "human:c1:0-150", "human:c1:200-400"}
    for row, origin, label in zip(examples.tokens, examples.origins, examples.labels, strict=True):
        stored = two_species[label][0].read(origin.contig, origin.start, origin.end) & alphabet.TOKEN_BITS
        assert np.array_equal(row, stored) and origin.end - origin.start == 90
    assert len(spread_windows(found, 90, 3)) == 6


def apes(tmp_path, loci=60):
    """Three species whose records of one name are near-copies of each other."""
    generator = np.random.default_rng(0)
    texts = [random_dna(int(generator.integers(80, 400)), n) for n in range(loci)]
    table = ["name\tfasta"]
    for name in ("human", "chimp", "gorilla"):
        records = [
            f">chr22:{n}\n{text[: len(text) - len(name)]}{'NN' if name == 'gorilla' else ''}A"
            for n, text in enumerate(texts)
        ]
        (tmp_path / f"{name}.fa").write_text("\n".join(records) + "\n")
        table.append(f"{name}\t{name}.fa")
    (tmp_path / "apes.tsv").write_text("\n".join(table) + "\n")
    return tmp_path / "apes.tsv"


def test_named_loci_are_split_alike_in_all_species_whatever_the_length(tmp_path, monkeypatch):
    monkeypatch.setattr(species, "BLOCK", 1000)
    path = apes(tmp_path)
    rows = sorted(species.read_species(path))
    assert [row.name for row in rows] == ["chimp", "gorilla", "human"]
    stores = [open_genome(row.fasta) for row in rows]
    seen = {}
    for length in (100, 500):
        splits, _ = species.split_by_name(rows, stores, length, path)
        for split, found in splits.items():
            assert found[0].contigs == found[1].contigs == found[2].contigs
            for item, store in zip(found, stores, strict=True):
                assert (np.diff(item.bounds) >= length).all()
                assert ((item.tokens & alphabet.TOKEN_BITS) < alphabet.BASES).all()
                first = item.contigs[0].split("+")[0]
                start = store.read(first, 0, 50) & alphabet.TOKEN_BITS
                assert np.array_equal(item.tokens[:50] & alphabet.TOKEN_BITS, start)
            seen.setdefault(split, []).append({name.split("+")[0] for name in found[0].contigs})
    for split in seen:
        others = set().union(*(names for other in seen if other != split for names in seen[other]))
        assert not others & set().union(*seen[split]), "a locus is in two splits"
    assert sum(map(len, (seen[split][0] for split in seen))) > 20


def test_a_length_warm_up_doubles_up_to_the_length():
    assert warmup_lengths(0.5, 8192) == [1024, 2048, 4096]
    assert warmup_lengths(0.0, 8192) == []


# Labelled sequences


def records(*pairs):
    return [Record(f"file, line {n}", "", alphabet.encode(text), (label,)) for n, (text, label) in enumerate(pairs, 2)]


def test_classes_are_sorted_numbers_by_value():
    target = find_target(records(("A", "10"), ("C", "2"), ("G", "-1")), "auto", None)
    assert target == Target("multiclass", ("-1", "2", "10"))
    target = find_target(records(("A", "worm"), ("C", "human")), "auto", None)
    assert target.names == ("human", "worm")
    assert encode_labels(records(("A", "worm"), ("C", "human")), target).tolist() == [1, 0]


def test_several_labels_of_one_sequence():
    rows = records(("A", "x;y"), ("C", ""), ("G", "z;x"))
    target = find_target(rows, "multilabel", None)
    assert target.names == ("x", "y", "z")
    assert encode_labels(rows, target).tolist() == [[1, 1, 0], [0, 0, 0], [1, 0, 1]]


def test_unequal_classes_are_pointed_out():
    assert describe_counts({"a": 990, "b": 10}) == "a 990, b 10: wildly unequal, accuracy says little"
    assert describe_counts({"a": 60, "b": 40}) == "a 60, b 40"


def test_dev_is_carved_by_sequence_from_every_class():
    rows = records(*((random_dna(30, n), "ab"[n % 4 == 0]) for n in range(200)))
    rows += rows[:40]  # the same sequences again
    rest, dev = sequences.carve(rows, Target("multiclass", ("a", "b")), 0.1)
    assert len(rest) + len(dev) == 240
    assert not {canonical(r.tokens) for r in rest} & {canonical(r.tokens) for r in dev}
    for label, count in (("a", 180), ("b", 60)):
        assert 0.08 * count < sum(r.labels == (label,) for r in dev) < 0.15 * count
    again = sequences.carve(list(reversed(rows)), Target("multiclass", ("a", "b")), 0.1)[1]
    assert {r.where for r in again} == {r.where for r in dev}


def test_the_same_sequence_in_train_and_test_is_found_on_either_strand():
    split = {"train": records(("AACG", "0"), ("TTTT", "1")), "dev": [], "test": records(("CGTT", "0"), ("ACAC", "1"))}
    found = sequences.find_overlaps(split)["train_test"]
    assert (found["sequences"], found["of"]) == (1, 2)
    assert found["first"] == ["file, line 2 = file, line 2"]


def test_longer_sequences_are_cut_around_their_middle():
    kept, cut = sequences.crop(records(("AAACGTTT", "0"), ("ACG", "0")), 4)
    assert cut == 1 and [alphabet.decode(r.tokens) for r in kept] == ["ACGT", "ACG"]


def write_layout(folder, layout, rows):
    """The same data as GUE, Genomic Benchmarks and the Nucleotide Transformer tasks are published."""
    for split, items in rows.items():
        folder.mkdir(exist_ok=True)
        if layout == "gue":
            with gzip.open(folder / f"{split}.csv.gz", "wt", newline="") as file:
                csv.writer(file).writerows([("sequence", "label"), *items])
        elif layout == "tsv":
            text = "label\tseq\n" + "".join(f"{label}\t{text}\n" for text, label in items)
            (folder / f"{split}.tsv").write_text(text)
        elif layout == "genomic_benchmarks":
            for number, (text, label) in enumerate(items):
                (folder / split / label).mkdir(parents=True, exist_ok=True)
                (folder / split / label / f"{number}.txt").write_text(text)
        elif layout == "nt_fasta":
            (folder / f"{split}.fna").write_text("".join(f">s{n}|{label}\n{s}\n" for n, (s, label) in enumerate(items)))
        elif layout == "nt_parquet":
            (folder / "data").mkdir(exist_ok=True)
            half = len(items) // 2
            for shard, part in enumerate((items[:half], [*items[half:], ("ACGT", "9")])):
                columns = {"sequence": [s for s, _ in part], "label": [int(label) for _, label in part]}
                columns |= {"task": ["other" if label == "9" else "promoter_all" for _, label in part]}
                polars.DataFrame(columns).write_parquet(folder / "data" / f"{split}-0000{shard}-of-00002.parquet")


@pytest.mark.parametrize("layout", ["gue", "tsv", "genomic_benchmarks", "nt_fasta", "nt_parquet"])
def test_published_layouts_are_read_alike(tmp_path, layout):
    rows = {s: [(random_dna(20 + n, n), str(n % 2)) for n in range(9)] for s in ("train", "test")}
    write_layout(tmp_path / "data", layout, rows)
    found = sequences.read_splits(
        tmp_path / "data", TableColumns(subset="promoter_all" if layout == "nt_parquet" else None)
    )
    assert found["dev"] == []
    for split in rows:
        read = {(alphabet.decode(r.tokens), *r.labels) for r in found[split]}
        assert read == set(rows[split])


def test_one_of_several_tasks_in_a_file_has_to_be_chosen(tmp_path):
    write_layout(tmp_path / "data", "nt_parquet", {s: [("ACGT", "0"), ("AAGT", "1")] for s in ("train", "test")})
    with pytest.raises(InputError, match="holds several tasks; choose one with --subset: other, promoter_all"):
        sequences.read_splits(tmp_path / "data", TableColumns())


@pytest.mark.parametrize("suffix", ["csv", "tsv"])
def test_sequences_in_tables_may_be_long(tmp_path, suffix):
    """The csv module refuses cells above 131 072 characters unless set otherwise."""
    path = tmp_path / f"x.{suffix}"
    path.write_text("sequence,label\n{},1\n".format("ACGT" * 250_000).replace(",", "\t" if suffix == "tsv" else ","))
    assert len(next(iter(read_records(path, TableColumns()))).tokens) == 1_000_000


def test_case_is_dropped_and_ambiguous_codes_are_n(tmp_path):
    (tmp_path / "x.csv").write_text("sequence,label\nacgRn,1\n")
    assert next(iter(read_records(tmp_path / "x.csv", TableColumns()))).tokens.tolist() == [0, 1, 2, 4, 4]


def test_an_epoch_shows_each_example_once():
    fixed = FixedSet(Examples(*pad([np.full(1, n, np.uint8) for n in range(50)]), np.arange(50)))
    for epoch in range(3):
        labels = np.concatenate([fixed.batch(1, epoch, np.arange(n, min(n + 8, 50))).labels for n in range(0, 50, 8)])
        assert sorted(labels.tolist()) == list(range(50)) and labels.tolist() != list(range(50))
    assert fixed.batch(1, 0, np.arange(50)).labels.tolist() != fixed.batch(1, 1, np.arange(50)).labels.tolist()


def test_the_test_split_is_read_once():
    held_out = HeldOut(Examples(*pad([np.zeros(3, np.uint8)]), np.zeros(1, np.int64)))
    assert held_out.size == 1
    assert len(held_out.read({"by": "dev mcc"})) == 1
    with pytest.raises(AssertionError, match=r"read before, for \{'by': 'dev mcc'\}"):
        held_out.read({"by": "another look"})


@needs_real_data
def test_a_gue_task_is_read_as_published():
    folder = Path(os.environ["DNAMAMBA_TEST_DATA"]) / "gue" / "prom_core_tata"
    settings = resolve(FinetuneSettings(data=folder, checkpoint="none", accelerator="cpu"))
    task = sequences.build(settings)
    assert (task.train.size, len(task.dev), task.test.size, task.length) == (4904, 613, 613, 70)
    assert task.target == Target("multiclass", ("0", "1")) and not task.facts["dev_carved_from_train"]
    train = {canonical(sequence) for sequence in task.train.sample(0).sequences()}
    both = sum(canonical(sequence) in train for sequence in task.test.read({}).sequences())
    assert task.facts["overlaps"]["train_test"]["sequences"] == both > 0


@needs_real_data
def test_homologous_apes_are_split_by_their_human_interval(tmp_path):
    folder = Path(os.environ["DNAMAMBA_TEST_DATA"]) / "great_apes_chr22"
    names = ("human", "chimp", "gorilla", "orangutan")
    (tmp_path / "apes.tsv").write_text("name\tfasta\n" + "".join(f"{n}\t{folder}/{n}.fa.gz\n" for n in names))
    rows = sorted(species.read_species(tmp_path / "apes.tsv"))
    stores = [open_genome(row.fasta) for row in rows]
    # Whole records: names of the first locus of each joined group say which loci a split holds.
    loci = {}
    for length in (1024, 131_072):
        splits, _ = species.split_by_name(rows, stores, length, tmp_path / "apes.tsv")
        for split, found in splits.items():
            assert all(item.contigs == found[0].contigs for item in found)
            assert all((np.diff(item.bounds) >= length).all() for item in found)
            loci.setdefault(split, set()).update(name.split("+")[0] for name in found[0].contigs)
    assert not loci["train"] & loci["test"] and not loci["train"] & loci["dev"] and not loci["dev"] & loci["test"]
    assert 150 < len(loci["test"]) < 300


# Metrics


def test_metrics_of_classes_against_their_definitions():
    labels = np.array([0, 0, 0, 1, 1, 1, 1, 0])
    positive = np.array([0.1, 0.6, 0.2, 0.9, 0.8, 0.4, 0.7, 0.3])
    found = metrics.evaluate(np.column_stack((1 - positive, positive)), labels, Target("multiclass", ("a", "b")))
    tp, tn, fp, fn = 3, 3, 1, 1
    assert found["accuracy"] == 6 / 8
    assert found["mcc"] == pytest.approx((tp * tn - fp * fn) / np.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)))
    pairs = [(p > n) for p in positive[labels == 1] for n in positive[labels == 0]]
    assert found["auroc"] == pytest.approx(np.mean(pairs))
    assert found["f1"] == pytest.approx(0.75)


def test_undefined_metrics_are_missing_and_never_zero():
    found = metrics.evaluate(np.eye(3)[[0, 1]], np.array([0, 1]), Target("multiclass", ("a", "b", "c")))
    assert found["accuracy"] == 1 and np.isnan(found["auroc"])
    assert metrics.over_seeds([found])["auroc"] == {"mean": None, "std": None, "by_seed": [None]}
    constant = metrics.evaluate(np.ones((3, 1)), np.array([[1.0], [2.0], [3.0]]), Target("regression", ("x",)))
    assert np.isnan(constant["pearson"]) and constant["mse"] == pytest.approx(5 / 3)


def test_a_target_that_is_the_same_everywhere_has_no_say_in_a_correlation():
    labels = np.array([[0.0, 5.0], [0.5, 5.0], [0.7, 5.0], [1.0, 5.0]])
    values = np.array([[0.1, 0.2], [0.4, 0.1], [0.8, 0.3], [0.9, 0.2]])
    found = metrics.evaluate(values, labels, Target("regression", ("a", "b")))
    assert found["pearson"] == pytest.approx(np.corrcoef(values[:, 0], labels[:, 0])[0, 1])
    labels[:, 1] = [1, 2, 3, 4]
    values[:, 1] = 0.2  # a constant prediction is no reason to leave the target out
    assert np.isnan(metrics.evaluate(values, labels, Target("regression", ("a", "b")))["pearson"])


def test_seeds_are_summed_up_by_mean_and_sample_deviation():
    found = metrics.over_seeds([{"mcc": 0.5}, {"mcc": 0.7}])["mcc"]
    assert found["mean"] == pytest.approx(0.6) and found["std"] == pytest.approx(np.sqrt(0.02))


def test_whole_groups_are_resampled():
    generator = np.random.default_rng(0)
    independent = generator.random(400) < 0.7
    interval = metrics.bootstrap_by_group(independent, [str(n) for n in range(400)])
    assert interval.groups == 400 and interval.value == pytest.approx(independent.mean())
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * np.sqrt(0.7 * 0.3 / 400), rel=0.15)
    # Ten copies of each are no more information.
    copies = metrics.bootstrap_by_group(np.repeat(independent, 10), [str(n) for n in np.repeat(np.arange(400), 10)])
    assert copies.high - copies.low == pytest.approx(interval.high - interval.low, rel=0.15)
    one = metrics.bootstrap_by_group(independent, ["all"] * 400)
    assert one.low == one.high == pytest.approx(one.value)


def test_matthews_is_resampled_by_groups_and_averaged_over_seeds():
    generator = np.random.default_rng(0)
    truth = generator.integers(3, size=300)
    predicted = np.where(generator.random((2, 300)) < 0.6, truth, generator.integers(3, size=(2, 300)))
    groups = [str(n // 3) for n in range(300)]
    interval = metrics.bootstrap_matthews(truth, predicted, groups, resamples=200, seed=5)
    assert interval.groups == 100
    assert interval.value == pytest.approx(np.mean([metrics.matthews(truth, each) for each in predicted]))
    names = sorted({*groups})
    drawn = [
        np.concatenate([np.arange(300)[np.asarray(groups) == names[k]] for k in row])
        for row in np.random.default_rng(5).integers(100, size=(200, 100))
    ]
    expected = [np.mean([metrics.matthews(truth[rows], each[rows]) for each in predicted]) for rows in drawn]
    assert (interval.low, interval.high) == pytest.approx(tuple(np.percentile(expected, [2.5, 97.5])))
    constant = metrics.bootstrap_matthews(truth, np.zeros((1, 300), int), groups, resamples=10)
    assert (constant.value, constant.low, constant.high) == (0, 0, 0)


# Settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"checkpoint": None}, "--checkpoint: name a pretrained checkpoint"),
        ({"mode": "probe"}, "--mode probe: needs a pretrained model"),
        ({"learning_rate": [1e-3, 1e-3]}, "--learning_rate: the same value is given twice"),
        ({"learning_rate": [-1.0]}, "--learning_rate: -1.0 is not between 0 and 1"),
        ({"conjoin": ["sometimes"]}, "--conjoin: 'sometimes' is none of no, test, always, concatenate"),
        ({"kmer": 9}, "--kmer: 9 is above 8"),
        ({"dev_fraction": 1.0}, "--dev_fraction: 1.0"),
        ({"length_warmup": 0.5}, "--length_warmup: not a flag of --task sequences"),
        ({"task": "species", "refuse_overlap": True}, "--refuse_overlap: not a flag of --task species"),
        ({"task": "species", "length": 1001, "length_warmup": 0.5}, "has no shorter stage"),
        ({"seeds": 0}, "--seeds: 0 is below 1"),
        ({"chunk": 64}, "--chunk: --backprop whole has no chunks"),
        ({"task": "variants", "backprop": "chunked"}, "--backprop: not a flag of --task variants"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        resolve(FinetuneSettings(**({"checkpoint": "none"} | settings)))
