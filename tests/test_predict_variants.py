"""`dnamamba predict --vcf`: a fine-tuned classifier of variants applied to a VCF, from the command line and Python."""

import csv
import hashlib
import json

import numpy as np
import polars
import pytest
import torch

import dnamamba
from dnamamba import cli, finetune, predict
from dnamamba.alphabet import CLS, SEP, encode
from dnamamba.formats.checkpoint import load_classifier, save_classifier
from dnamamba.inference.pooling import classify
from dnamamba.model.classifier import HeadConfig, SequenceClassifier
from dnamamba.model.config import preset

LENGTH = 40
CLASSES = ("benign", "likely; harmful")
FIELDS = ("DNAMAMBA_P_benign", "DNAMAMBA_P_likely__harmful")
SEQUENCE = "".join(np.random.default_rng(5).choice(list("ACGT"), 400))


def other(base, by=1):
    return "ACGT"[("ACGT".index(base) + by) % 4]


def snv(position):
    return SEQUENCE[position - 1], other(SEQUENCE[position - 1])


DELETED = SEQUENCE[199:203]
RECORDS = [
    ("chr1", 100, "rs1", *snv(100)),
    ("chr1", 60, ".", SEQUENCE[59], f"{other(SEQUENCE[59])},<DEL>,{other(SEQUENCE[59], 2)}"),
    ("chr1", 200, "del;x", DELETED, DELETED[0]),
    ("chr1", 300, "ins", SEQUENCE[299], SEQUENCE[299] + "ACGTACG"),
    ("chr1", 5, "edge", *snv(5)),
    ("chr1", 150, "none", SEQUENCE[149], "."),
    ("chrUn", 7, "lost", "A", "C"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("predict")
    (folder / "g.fa").write_text(f">chr1\n{SEQUENCE}\n")
    lines = ["##fileformat=VCFv4.2", '##FILTER=<ID=q10,Description="x">']
    lines += ["#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\tFORMAT\tS1"]
    lines += ["\t".join(map(str, record)) + "\t30.00\tq10\tAC=1;X\tGT:GQ\t0|1:9" for record in RECORDS]
    (folder / "in.vcf").write_text("\n".join(lines) + "\n")
    torch.manual_seed(2)
    head = HeadConfig("multiclass", CLASSES, "alleles", "mean")
    model = SequenceClassifier(preset("demo", n_layer=2, d_model=16, d_state=4), head).eval()
    torch.nn.init.normal_(model.head.weight)
    save_classifier(model, folder / "model", {"task": "variants", "settings": {"length": LENGTH}})
    return folder


@pytest.fixture(scope="module")
def expected(folder):
    """For each allele of `RECORDS` the probabilities, None where there are none: windows cut and classified here."""
    model, _ = load_classifier(folder / "model")
    model.eval()
    found = []
    for contig, position, _, ref, alts in RECORDS:
        for alt in alts.split(",") if alts != "." else []:
            if contig != "chr1" or not alt.isalpha():
                found.append(None)
                continue
            # VCF keeps the base before an indel: it is no part of the change.
            shared = int(len(ref) != len(alt))
            start, ref_length, new = position - 1 + shared, len(ref) - shared, alt[shared:]
            left = start - (LENGTH - ref_length) // 2
            window = "".join(SEQUENCE[i] if 0 <= i < len(SEQUENCE) else "N" for i in range(left, left + LENGTH))
            changed = window[: start - left] + new + window[start - left + ref_length :]
            row = np.concatenate(([CLS], encode(window), [SEP], encode(changed))).astype(np.uint8)
            with torch.no_grad():
                logits = classify(model, torch.from_numpy(row)[None], torch.tensor([len(row)]))
            found.append(logits.softmax(-1)[0].numpy())
    return found


def run(folder, out, *arguments, vcf="in.vcf"):
    flags = ["--checkpoint", folder / "model", "--vcf", folder / vcf, "--genome", folder / "g.fa", "--out", out]
    return cli.run(predict.main, [*map(str, flags), "--accelerator", "cpu", "--max_mismatches", "0", *arguments])


def table_of(path):
    if path.suffix == ".parquet":
        return polars.read_parquet(path).to_dicts()
    with path.open(newline="") as file:
        return list(csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ","))


def check_rows(rows, expected):
    """A row an allele, one for a record without any."""
    assert [row["skipped"] or None for row in rows] == [
        *(None, None, "symbolic"),
        *(None,) * 4,
        *("no_alternate", "no_contig"),
    ]
    assert [row["id"] for row in rows] == ["rs1", ".", ".", ".", "del;x", "ins", "edge", "none", "lost"]
    alleles = [row for row in rows if row["skipped"] != "no_alternate"]
    for row, values in zip(alleles, expected, strict=True):
        assert (row["predicted"] or None) == (None if values is None else CLASSES[int(values.argmax())])
        if values is not None:
            assert [float(row[f"p_{name}"]) for name in CLASSES] == pytest.approx(values.tolist(), abs=2e-6)


@pytest.mark.parametrize("name", ["out.parquet", "out.tsv", "out.csv"])
def test_tables_hold_the_probabilities_of_each_allele_alone(folder, expected, tmp_path, name):
    assert run(folder, tmp_path / name) == 0
    rows = table_of(tmp_path / name)
    check_rows(rows, expected)
    assert (int(rows[4]["start"]), int(rows[4]["end"]), rows[4]["ref"]) == (199, 203, DELETED)


@pytest.mark.parametrize("name", ["out.vcf", "out.vcf.gz"])
def test_the_vcf_keeps_every_field_and_adds_the_same(folder, expected, tmp_path, name):
    import pysam

    assert run(folder, tmp_path / name) == 0
    with pysam.VariantFile(str(tmp_path / name)) as file:
        found = list(file)
        assert {*FIELDS, "DNAMAMBA_CLASS", "DNAMAMBA_CLASS_SKIPPED", "DNAMAMBA_NO_ALT"} <= set(file.header.info)
    values = iter(expected)
    for record, (_, position, _, ref, alts) in zip(found, RECORDS, strict=True):
        assert (record.pos, record.ref) == (position, ref)
        wanted = [next(values) for _ in (alts.split(",") if alts != "." else [])]
        assert ("DNAMAMBA_NO_ALT" in record.info) == (alts == ".")
        if all(each is None for each in wanted):
            assert FIELDS[0] not in record.info
            continue
        for field, column in zip(FIELDS, (0, 1), strict=True):
            for number, each in zip(record.info[field], wanted, strict=True):
                assert number == (None if each is None else pytest.approx(float(each[column]), abs=2e-6))
        names = ["." if each is None else ("benign", "likely%3B%20harmful")[int(each.argmax())] for each in wanted]
        assert list(record.info["DNAMAMBA_CLASS"]) == names
    # Line by line: what was there stands as it was.
    opened = pysam.BGZFile(str(tmp_path / name)) if name.endswith("gz") else (tmp_path / name).open("rb")
    with opened as file:
        lines = [line for line in file.read().decode().splitlines() if not line.startswith("#")]
    before = [line for line in (folder / "in.vcf").read_text().splitlines() if not line.startswith("#")]
    for old, new in zip(before, lines, strict=True):
        old, new = old.split("\t"), new.split("\t")
        assert new[:7] == old[:7] and new[8:] == old[8:] and new[7].startswith(old[7])


def test_blocks_and_batches_change_nothing(folder, expected, tmp_path, monkeypatch):
    monkeypatch.setattr("dnamamba.finetuning.apply_variants.BLOCK_BASES", 2 * LENGTH * 2)
    assert run(folder, tmp_path / "out.parquet", "--micro_tokens", "100") == 0
    check_rows(table_of(tmp_path / "out.parquet"), expected)


def test_python_takes_a_vcf_a_frame_and_tuples(folder, expected):
    model = dnamamba.load(folder / "model", device="cpu")
    found = model.predict(variants=folder / "in.vcf", genome=folder / "g.fa", max_mismatches=0)
    check_rows(found.to_dicts(), expected)
    tuples = [("chr1", 100, *snv(100)), ("chr1", 300, SEQUENCE[299], SEQUENCE[299] + "ACGTACG")]
    frame = polars.DataFrame(tuples, ["chrom", "pos", "ref", "alt"], orient="row")
    for variants in (tuples, frame):
        table = model.predict(variants=variants, genome=folder / "g.fa")
        for row, values in zip(table.to_dicts(), (expected[0], expected[5]), strict=True):
            assert [row[f"p_{name}"] for name in CLASSES] == pytest.approx(values.tolist(), abs=2e-6)


def test_a_run_applied_to_its_own_variants_gives_its_test_predictions(folder, tmp_path, capsys):
    """The way of a new user: labels, finetune, then predict on a VCF without labels."""
    rng = np.random.default_rng(1)
    (tmp_path / "g.fa").write_text("".join(f">c{n}\n{''.join(rng.choice(list('ACGT'), 300))}\n" for n in range(12)))
    contigs = (tmp_path / "g.fa").read_text().split()[1::2]
    rows = []
    for number, sequence in enumerate(contigs):
        for position in range(40, 280, 20):
            ref = sequence[position - 1] if position % 40 else sequence[position - 1 : position + 2]
            alt = other(ref[0]) if len(ref) == 1 else ref[0]
            rows.append((f"c{number}", position, f"v{number}-{position}", ref, alt, "BP"[alt in "CG"]))
    head = ["##fileformat=VCFv4.2", "#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO"]
    for name, info in (("labelled.vcf", "LABEL={}"), ("new.vcf", ".")):
        lines = ["\t".join(map(str, row[:5])) + f"\t.\t.\t{info.format(row[5])}" for row in rows]
        (tmp_path / name).write_text("\n".join([*head, *lines]) + "\n")
    flags = ["--task", "variants", "--variants", "labelled.vcf", "--genome", "g.fa", "--checkpoint", "none"]
    flags += ["--model.preset", "demo", "--model.n_layer", "1", "--model.d_model", "16", "--length", "32"]
    flags += ["--epochs", "3", "--batch_size", "16", "--accelerator", "cpu", "--out", "run"]
    paths = [str(tmp_path / flag) if flag in ("labelled.vcf", "g.fa", "run") else flag for flag in flags]
    assert cli.run(finetune.main, paths) == 0
    with (tmp_path / "run" / "test_predictions.csv").open() as file:
        tested = list(csv.DictReader(file))
    out = tmp_path / "new.tsv"
    flags = ["--checkpoint", "run", "--vcf", "new.vcf", "--genome", "g.fa"]
    paths = [flag if flag.startswith("--") else str(tmp_path / flag) for flag in flags]
    assert cli.run(predict.main, [*paths, "--out", str(out), "--accelerator", "cpu"]) == 0
    known = {row["id"]: row for row in table_of(out)}
    assert len(known) == len(rows) and len(tested) >= 12
    written = {row[2]: row for row in rows}
    for row in tested:
        there, (_, position, _, ref, alt, label) = known[row["id"]], written[row["id"]]
        assert (row["ref"], row["alt"], row["label"]) == (ref, alt, label)
        assert int(row["start"]) == position - 1 and int(row["end"]) == position - 1 + len(ref)
        assert float(there["p_P"]) == pytest.approx(float(row["p_P"]), abs=1e-5)
        assert there["predicted"] == row["predicted"]


def test_what_does_not_fit_is_refused_in_a_line(folder, tmp_path, capsys):
    model = folder / "model"
    (tmp_path / "in.fa").write_text(">a\nACGT\n")

    def refused(*arguments):
        assert cli.run(predict.main, [*map(str, arguments), "--accelerator", "cpu"]) == 2
        return capsys.readouterr().err

    out = tmp_path / "x.vcf"
    error = refused("--checkpoint", model, "--input", tmp_path / "in.fa", "--out", tmp_path / "x.tsv")
    assert "classifies variants; give --vcf and --genome" in error
    error = refused("--checkpoint", model, "--vcf", folder / "in.vcf", "--out", out)
    assert "--genome: give the FASTA" in error
    error = refused("--checkpoint", model, "--vcf", folder / "in.vcf", "--input", tmp_path / "in.fa", "--out", out)
    assert "--input (sequences) or --vcf (variants)" in error
    flags = ["--checkpoint", model, "--vcf", folder / "in.vcf", "--genome", folder / "g.fa"]
    assert "x.bed: unknown kind of table" in refused(*flags, "--out", tmp_path / "x.bed")
    assert "is the input VCF itself" in refused(*flags, "--out", folder / "in.vcf", "--overwrite")
    lines = (folder / "in.vcf").read_text() + "\t".join(["chr1", "3", ".", other(SEQUENCE[2]), "A", *"....."]) + "\n"
    (tmp_path / "wrong.vcf").write_text(lines)
    flags = ["--checkpoint", model, "--vcf", tmp_path / "wrong.vcf", "--genome", folder / "g.fa", "--out", out]
    assert "REF is not the genome's in 1 of 7 records" in refused(*flags)
    assert not out.exists()
    loaded = dnamamba.load(model, device="cpu")
    with pytest.raises(dnamamba.InputError, match="classifies variants; give"):
        loaded.predict("ACGT")
    with pytest.raises(dnamamba.InputError, match="give variants= and genome="):
        loaded.predict(variants=folder / "in.vcf")


def test_the_header_says_which_classifier_and_genome(folder, tmp_path):
    assert run(folder, tmp_path / "out.vcf") == 0
    digest = hashlib.sha256((folder / "model" / "model.safetensors").read_bytes()).hexdigest()
    notes = [line for line in (tmp_path / "out.vcf").read_text().splitlines() if line.startswith("##dnamamba_predict")]
    assert len(notes) == 1 and f'weights_sha256="{digest}"' in notes[0] and f'window="{LENGTH}"' in notes[0]
    assert run(folder, tmp_path / "out.parquet") == 0
    told = json.loads(polars.read_parquet_metadata(tmp_path / "out.parquet")["dnamamba"])
    assert (told["weights_sha256"], told["genome"]) == (digest, [str(folder / "g.fa")])
