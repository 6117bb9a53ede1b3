"""Tables as people write them: quotation marks, delimiters, columns twice, odd names of files, damage, pipes."""

import gzip
import os
import subprocess
import sys
import threading
from pathlib import Path

import polars
import pytest

from dnamamba import alphabet, tables
from dnamamba.errors import InputError
from dnamamba.finetuning.tasks import sequences
from dnamamba.finetuning.tasks.readers import TableColumns, read_records
from dnamamba.finetuning.tasks.variants import read_rows
from dnamamba.genome.sequences import read_sequences
from dnamamba.genome.species_table import read_species
from dnamamba.tables import column_index, read_table, suffix, table_rows


def cells(path):
    return [list(row) for _, row in table_rows(path)[1]]


NOTES = ["\"5' UTR", 'end" quoted', '3" end', 'a "b" c', '""', '"']


def test_quotation_marks_are_letters_in_tsv(tmp_path):
    """A pair of unpaired ones once swallowed all rows between them, without a word."""
    rows = [["chr1", str(100 + n), "A", "C", note] for n, note in enumerate(NOTES)]
    text = "\n".join("\t".join(row) for row in [["chrom", "pos", "ref", "alt", "note"], *rows])
    for name, content in (("x.tsv", text.encode()), ("x.tsv.gz", gzip.compress(text.encode()))):
        (tmp_path / name).write_bytes(content)
        assert cells(tmp_path / name) == rows
        assert [row.columns.get("note") for row in read_rows(tmp_path / name)] == NOTES
        assert read_table(tmp_path / "x.tsv")["note"].to_list() == NOTES


def test_every_reader_of_tables_keeps_rows_behind_a_quotation_mark(tmp_path):
    (tmp_path / "s.tsv").write_text('sequence\tlabel\tname\nACG\t0\t"5\nCCG\t1\tn\nACC\t0\t3" end\nCCC\t1\tm\n')
    assert [record.name for record in read_records(tmp_path / "s.tsv", TableColumns())] == ['"5', "n", '3" end', "m"]
    assert [record.name for record in read_sequences(tmp_path / "s.tsv", None)] == ['"5', "n", '3" end', "m"]
    (tmp_path / "species.tsv").write_text('name\tfasta\n"a\ta.fa\nb"\tb.fa\nc\tc.fa\n')
    assert [row.name for row in read_species(tmp_path / "species.tsv")] == ['"a', 'b"', "c"]


def test_tables_of_r_are_quoted_throughout(tmp_path):
    (tmp_path / "r.tsv").write_text('"sequence"\t"label"\n"ACGT"\t1\n"AC\tGT"\t0\n')
    assert table_rows(tmp_path / "r.tsv")[0] == ["sequence", "label"]
    assert cells(tmp_path / "r.tsv") == [["ACGT", "1"], ["AC\tGT", "0"]]


def test_csv_has_quoted_cells(tmp_path):
    (tmp_path / "x.csv").write_text('sequence,label\r\n"AC,GT",1\r\n"say ""hi""",3" end\r\n')
    assert cells(tmp_path / "x.csv") == [["AC,GT", "1"], ['say "hi"', '3" end']]


@pytest.mark.parametrize("text", ['ACG,1,"open\nACC,0,b\n', 'ACG,1,"two\nlines"\nACC,0,b\n', 'ACG,1,"a"b\n'])
def test_an_open_quotation_mark_in_csv_is_named_by_its_line(tmp_path, text):
    (tmp_path / "x.csv").write_text("sequence,label,name\nAAA,0,a\n" + text)
    with pytest.raises(InputError, match=r"x\.csv, line 3: a cell begins with a quotation mark"):
        cells(tmp_path / "x.csv")
    with pytest.raises(InputError, match=r"x\.csv, line 3"):
        list(read_sequences(tmp_path / "x.csv", None))


@pytest.mark.parametrize(
    ("name", "header", "said"),
    [
        ("x.csv", "sequence\tlabel", r"tabs \(\.tsv\), in a file whose name says commas"),
        ("x.csv", "sequence;label", r"semicolons, in a file whose name says commas"),
        ("x.tsv", "sequence,label", r"commas \(\.csv\), in a file whose name says tabs"),
    ],
)
def test_other_delimiters_are_named(tmp_path, name, header, said):
    (tmp_path / name).write_text(f"{header}\nACG\n")
    with pytest.raises(InputError, match=f"line 1: the columns are separated by {said}"):
        table_rows(tmp_path / name)


def test_a_column_that_is_there_twice_is_refused_where_it_is_used(tmp_path):
    (tmp_path / "x.csv").write_text("sequence,label,label,note,note\nACG,0,1,a,b\n")
    with pytest.raises(InputError, match=r"x\.csv: 2 columns are called 'label'; rename all but one"):
        list(read_records(tmp_path / "x.csv", TableColumns()))
    assert [alphabet.decode(s.stored) for s in read_sequences(tmp_path / "x.csv", None)] == ["ACG"]
    with pytest.raises(InputError, match="2 columns are called"):
        column_index(["a", "b", "a"], "a", (), "x", "--x", Path("t"))


def test_binary_columns_of_parquet_are_text(tmp_path):
    frame = polars.DataFrame({"sequence": [b"ACGT", b"CCGA"], "label": [b"M\xfc", "Mü".encode()]})
    frame.write_parquet(tmp_path / "x.parquet")
    found = list(read_records(tmp_path / "x.parquet", TableColumns()))
    assert [(alphabet.decode(record.tokens), record.labels) for record in found] == [
        ("ACGT", ("Mü",)),
        ("CCGA", ("Mü",)),
    ]


def test_lines_of_a_comment_before_the_header_are_passed_over(tmp_path):
    """MAF begins with its version; a header itself may begin with #."""
    (tmp_path / "x.maf").write_text("#version 2.4\n#n 5\nChromosome\tStart_Position\nchr1\t5\n")
    assert table_rows(tmp_path / "x.maf")[0] == ["Chromosome", "Start_Position"]
    assert cells(tmp_path / "x.maf") == [["chr1", "5"]]
    (tmp_path / "x.tsv").write_text("#chrom\tpos\n#1\t5\n")
    assert cells(tmp_path / "x.tsv") == [["#1", "5"]]


def test_cells_of_any_length_are_read(tmp_path):
    (tmp_path / "x.csv").write_text('sequence,label\n"{}",1\n'.format("A" * 131_073))
    assert len(cells(tmp_path / "x.csv")[0][0]) == 131_073


def test_a_nul_byte_is_named(tmp_path):
    (tmp_path / "x.tsv").write_bytes(b"sequence\tlabel\nAC\0G\t1\n")
    with pytest.raises(InputError, match=r"x\.tsv, line 2, column 3: binary data \(a NUL byte\)"):
        cells(tmp_path / "x.tsv")


@pytest.mark.parametrize("name", ["train[1]", "train*", "train?", "a[b", "{x}"])
@pytest.mark.parametrize("kind", [".parquet", ".tsv"])
def test_names_of_files_are_no_patterns(tmp_path, name, kind):
    """polars takes brackets and stars for patterns: it read other files, or none."""
    for file, base in (("train1", "CCCC"), ("trainX", "CCCC"), (name, "ACGT")):
        frame = polars.DataFrame({"sequence": [base], "label": ["1"]})
        with (tmp_path / (file + kind)).open("wb") as out:
            frame.write_parquet(out) if kind == ".parquet" else frame.write_csv(out, separator="\t")
    assert cells(tmp_path / (name + kind)) == [["ACGT", "1"]]
    assert read_table(tmp_path / (name + kind))["sequence"].to_list() == ["ACGT"]


def test_folders_of_odd_names_hold_data(tmp_path):
    folder = tmp_path / "a[1]*"
    folder.mkdir()
    for split in ("train", "test"):
        polars.DataFrame({"sequence": ["ACGT"], "label": [split]}).write_parquet(folder / f"{split}.parquet")
    assert {
        split: [r.labels for r in rows] for split, rows in sequences.read_splits(folder, TableColumns()).items()
    } == {
        "train": [("train",)],
        "dev": [],
        "test": [("test",)],
    }


def test_damaged_parquet_is_one_line(tmp_path, capfd, monkeypatch):
    """Rust's panics are no `Exception` in Python, and print a backtrace."""
    path = tmp_path / "x.parquet"
    polars.DataFrame({"sequence": ["ACGT"]}).write_parquet(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"x\.parquet: not readable as Parquet"):
        table_rows(path)
    path.write_bytes(b"PBR1" + whole[4:])  # which polars reads
    with pytest.raises(InputError, match=r"x\.parquet: not Parquet: it does not begin with PAR1"):
        table_rows(path)
    path.write_bytes(whole)

    def panic(*_, **__):
        os.write(2, b"thread panicked\nstack backtrace\n")
        raise polars.exceptions.PanicException("assertion failed")

    monkeypatch.setattr(polars, "read_parquet", panic)
    with pytest.raises(InputError, match=r"x\.parquet: not readable as Parquet, it is damaged \(assertion failed\)"):
        table_rows(path)
    assert capfd.readouterr().err == ""


def test_what_is_printed_without_a_panic_is_kept(capfd):
    with tables._without_backtraces(polars.exceptions.PanicException):
        os.write(2, b"a warning\n")
    assert capfd.readouterr().err == "a warning\n"


PIPES = {
    ".csv": b"sequence,label\nACGT,1\n",
    ".tsv": b"sequence\tlabel\nACGT\t1\n",
    ".vcf": b"##fileformat=VCFv4.2\n#CHROM\tPOS\n",
    ".bed": b"track name=x\n# c\nchr1\t1\t5\n",
    ".fa": b">a\nACGT\n",
    ".gb": b"LOCUS       X\n",
}


@pytest.mark.parametrize("kind", PIPES)
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_a_pipe_is_known_by_what_comes_through(tmp_path, kind, pack):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    writer = threading.Thread(target=lambda: path.write_bytes(pack(PIPES[kind])))
    writer.start()
    assert suffix(path) == kind
    writer.join()
    if kind in (".csv", ".tsv"):
        assert cells(path) == [["ACGT", "1"]] and cells(path) == [["ACGT", "1"]]  # as often as wanted


def test_parquet_comes_through_a_pipe(tmp_path):
    frame = polars.DataFrame({"sequence": ["ACGT"], "label": ["1"]})
    frame.write_parquet(tmp_path / "x.parquet")
    code = "import sys, pathlib, dnamamba.tables as t; print(t.read_table(pathlib.Path(sys.argv[1])).rows())"
    line = f"{sys.executable} -c '{code}' <(cat {tmp_path / 'x.parquet'})"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=True)
    assert done.stdout == "[('ACGT', '1')]\n"
