"""VCF text in and out: every line as it was, fields added, valid to htslib's readers; what is no VCF is refused."""

import dataclasses
import gzip
import os
from pathlib import Path

import cyvcf2
import pysam
import pytest

from dnamamba.errors import InputError
from dnamamba.genome.vcf import Field, annotate, info_fields, info_numbers, is_vcf_name, read_ids, read_vcf

HEADER = (
    "##fileformat=VCFv4.2\n"
    '##FILTER=<ID=PASS,Description="All filters passed">\n'
    "##contig=<ID=1,length=1000>\n"
    '##INFO=<ID=DP,Number=1,Type=Integer,Description="Depth">\n'
    '##INFO=<ID=DB,Number=0,Type=Flag,Description="dbSNP, with a comma; and a semicolon">\n'
    '##FORMAT=<ID=GT,Number=1,Type=String,Description="Genotype">\n'
)
COLUMNS = "#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\tFORMAT\tNA1\n"
RECORDS = [
    "1\t10\trs1\tA\tC,<DEL>\t9.5\tPASS\tDP=3;DB\tGT\t0|1",
    "1\t9\t.\tAC\tA\t.\t.\t.\tGT\t1/1",
    "2\t1\t.\tG\t.\t.\tPASS\tDB\tGT\t./.",
]
FIELDS = [
    Field("X_LLR", "A", "Float", "A ratio"),
    Field("X_WHY", "A", "String", "A reason"),
    Field("X_NONE", "0", "Flag", "No alternate allele"),
]
VALUES = [("-1.5,.", ".,symbolic", None), ("0.25", ".", None), (None, None, "")]


def written(tmp_path, text, name="in.vcf"):
    path = tmp_path / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def add(path, out, fields, values, **options):
    return annotate(path, out, fields, values, read_vcf(path), **options)


@pytest.fixture(params=["in.vcf", "in.vcf.gz", "bgzip.vcf.gz"])
def source(request, tmp_path):
    text = (HEADER + COLUMNS + "\n".join(RECORDS) + "\n").encode()
    if request.param == "bgzip.vcf.gz":
        with pysam.BGZFile(str(tmp_path / request.param), "w") as file:
            file.write(text)
        return tmp_path / request.param
    return written(tmp_path, text if request.param == "in.vcf" else gzip.compress(text), request.param)


def test_records_are_columns_in_file_order(source):
    records = read_vcf(source)
    assert records.contigs == ("1", "2")
    assert records.contig.tolist() == [0, 0, 1]
    assert records.start.tolist() == [9, 8, 0]
    assert records.ref == ["A", "AC", "G"]
    assert [records.alternates(record) for record in range(len(records))] == [["C", "<DEL>"], ["A"], []]


@pytest.mark.parametrize("name", ["out.vcf", "out.vcf.gz"])
def test_all_but_the_added_fields_comes_out_as_it_went_in(source, tmp_path, name):
    out = tmp_path / name
    assert add(source, out, FIELDS, VALUES, notes=["##x=1"], contig_lengths={"1": 5, "2": 77}) == 3
    text = (gzip.decompress(out.read_bytes()) if name.endswith("gz") else out.read_bytes()).decode()
    header, _, body = text.partition(COLUMNS)
    # The declared contig keeps its line, the other one gets one.
    assert header == HEADER + "##contig=<ID=2,length=77>\n" + "".join(f.line.decode() for f in FIELDS) + "##x=1\n"
    assert body.splitlines() == [
        RECORDS[0].replace("DP=3;DB", "DP=3;DB;X_LLR=-1.5,.;X_WHY=.,symbolic"),
        RECORDS[1].replace("\t.\tGT", "\tX_LLR=0.25;X_WHY=.\tGT"),
        RECORDS[2].replace("DB", "DB;X_NONE"),
    ]


def test_htslib_reads_what_is_written(source, tmp_path):
    out = tmp_path / "out.vcf.gz"
    add(source, out, FIELDS, VALUES, contig_lengths={"2": 77})
    with pysam.VariantFile(str(out)) as file:
        first, second, third = file
    assert first.info["X_LLR"] == (-1.5, None) and first.info["X_WHY"] == (".", "symbolic") and first.info["DP"] == 3
    assert second.info["X_LLR"] == (0.25,)
    assert "X_NONE" in third.info and "X_LLR" not in third.info
    reader = cyvcf2.VCF(str(out))
    assert reader.get_header_type("X_LLR")["Number"] == "A"
    assert [record.INFO.get("X_LLR") for record in reader] == [(-1.5, None), 0.25, None]
    reader.close()


def test_bgzip_output_can_be_indexed(tmp_path):
    text = HEADER + COLUMNS + "".join(f"1\t{p}\t.\tA\tC\t.\t.\t.\tGT\t0/1\n" for p in range(1, 900))
    out = tmp_path / "out.vcf.gz"
    add(written(tmp_path, text), out, FIELDS[:1], [(str(p),) for p in range(1, 900)])
    pysam.tabix_index(str(out), preset="vcf")
    with pysam.VariantFile(str(out)) as file:
        assert [record.info["X_LLR"] for record in file.fetch("1", 499, 501)] == [(500.0,), (501.0,)]


def test_annotating_again_replaces_the_fields(source, tmp_path):
    once, twice = tmp_path / "once.vcf", tmp_path / "twice.vcf"
    add(source, once, FIELDS, [("7,8", "a,b", ""), ("9", ".", ""), (None, None, "")], notes=["##x=old"])
    add(once, twice, FIELDS, VALUES, notes=["##x=new"])
    direct = tmp_path / "direct.vcf"
    add(source, direct, FIELDS, VALUES, notes=["##x=new"])
    assert twice.read_bytes() == direct.read_bytes()


def test_fields_of_ours_that_the_header_does_not_declare_are_replaced_too(tmp_path):
    record = "1\t10\t.\tA\tC\t.\t.\tAX_LLR=1;X_LLR=3;X_LLRS=2;X_NONE\tGT\t0|1\n"
    out = tmp_path / "out.vcf"
    add(written(tmp_path, HEADER + COLUMNS + record), out, FIELDS, [("-1", None, None)])
    assert out.read_text().splitlines()[-1].split("\t")[7] == "AX_LLR=1;X_LLRS=2;X_LLR=-1"


def test_an_empty_field_of_info_is_nobodys(tmp_path, capsys):
    out = tmp_path / "out.vcf"
    record = "1\t10\t.\tA\tC\t.\t.\tDP=1;;DB\tGT\t0|1\n"
    add(written(tmp_path, HEADER + COLUMNS + record), out, FIELDS, [("-1", None, None)])
    assert out.read_text().splitlines()[-1].split("\t")[7] == "DP=1;;DB;X_LLR=-1"
    assert capsys.readouterr().err == ""


def test_windows_line_ends_and_a_missing_last_one_are_read(tmp_path):
    text = (HEADER + COLUMNS + "\n".join(RECORDS)).replace("\n", "\r\n")
    path = written(tmp_path, text)
    assert read_vcf(path).alt == ["C,<DEL>", "A", "."]
    out = tmp_path / "out.vcf"
    add(path, out, FIELDS, VALUES)
    assert b"\r" not in out.read_bytes()


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (RECORDS[2], ""),  # a record less
        (RECORDS[2], RECORDS[2] + "\n" + RECORDS[2]),
        ("1\t9\t", "2\t9\t"),
        ("1\t9\t", "1\t8\t"),
        ("AC\tA\t", "AG\tA\t"),
        ("AC\tA\t", "AC\tC\t"),
        ("DP=3", "DP=4"),  # of the same size: the time of the change tells
        ("", ""),
    ],
)
def test_a_file_that_changed_in_the_meantime_leaves_no_output(tmp_path, before, after):
    path, out = tmp_path / "in.vcf", tmp_path / "out.vcf"
    text = HEADER + COLUMNS + "\n".join(RECORDS) + "\n"
    written(tmp_path, text)
    records = read_vcf(path)
    assert read_ids(path, records) == ["rs1", ".", "."]
    assert before in text
    path.write_text(text.replace(before, after, 1))
    os.utime(path, ns=(records.stamp[1] + 10**6, records.stamp[1] + 10**6))
    for stamp in (records.stamp, (path.stat().st_size, path.stat().st_mtime_ns)):
        if stamp != records.stamp and before in ("DP=3", ""):
            continue  # the same variants
        with pytest.raises(InputError, match=r"in\.vcf: was changed while it was scored; start again"):
            annotate(path, out, FIELDS, VALUES, dataclasses.replace(records, stamp=stamp))
        with pytest.raises(InputError, match="was changed"):
            read_ids(path, dataclasses.replace(records, stamp=stamp))
    assert not out.exists() and not list(tmp_path.glob(".*partial*"))


def test_fields_of_an_earlier_job_are_replaced_and_said_so(tmp_path, capsys):
    header = HEADER + '##INFO=<ID=X_DIST,Number=A,Type=Float,Description="old">\n'
    record = "1\t10\t.\tA\tC\t.\t.\tX_DIST=9.9;X_LLR=7;DP=1;X_OTHER=2\tGT\t0|1\n"
    path, out = written(tmp_path, header + COLUMNS + record), tmp_path / "out.vcf"
    add(path, out, FIELDS, [("-1", None, None)], replaces="X_(?:LLR|DIST)")
    assert out.read_text().splitlines()[-1].split("\t")[7] == "DP=1;X_OTHER=2;X_LLR=-1"
    assert "ID=X_DIST" not in out.read_text()
    assert (
        f"{path}: holds fields of an earlier job (X_DIST, X_LLR); out.vcf has those of this one"
        in capsys.readouterr().err
    )


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_marks_and_line_ends(tmp_path, mark, end):
    path, out = (
        written(tmp_path, mark + (HEADER + COLUMNS + "\n".join(RECORDS) + "\n").replace("\n", end)),
        tmp_path / "o.vcf",
    )
    assert read_vcf(path).start.tolist() == [9, 8, 0]
    add(path, out, [], [(), (), ()])
    assert out.read_text() == HEADER + COLUMNS + "\n".join(RECORDS) + "\n"


def test_names_that_are_not_utf_8_stay_apart(tmp_path):
    record = "{}\t10\t{}\tA\tC\t.\t.\tDP=3\tGT\t0|1\n"
    text = (HEADER + COLUMNS + record.format("M\xfc", "\xe4") + record.format("M\xf6", "x")).encode("latin-1")
    path, out = written(tmp_path, text), tmp_path / "out.vcf"
    assert read_vcf(path).contigs == ("Mü", "Mö") and read_ids(path, read_vcf(path)) == ["ä", "x"]
    add(path, out, [], [(), ()])
    assert out.read_bytes() == text


def test_no_records_are_no_fault(tmp_path):
    path = written(tmp_path, HEADER + COLUMNS)
    assert len(read_vcf(path)) == 0
    out = tmp_path / "out.vcf"
    assert add(path, out, FIELDS, []) == 0
    assert out.read_text().endswith(COLUMNS)


BAD = {
    "empty": (b"", "the file is empty"),
    "no header": ("1\t10\t.\tA\tC\t.\t.\t.\n", "line 1: no VCF header"),
    "a FASTA": (">chr1\nACGT\n", "line 1: no VCF header"),
    "binary": (b"\x00\x01\xff" * 50, "line 1, column 1: binary data (a NUL byte); expected a VCF"),
    "UTF-16": ((HEADER + COLUMNS).encode("utf-16"), "text in UTF-16; expected a VCF"),
    "BCF": (gzip.compress(b"BCF\x02\x02" + bytes(40)), "is BCF; convert it"),
    "no column line": (HEADER, "line 6: no line #CHROM"),
    "records before the column line": (HEADER + RECORDS[0] + "\n", "line 7: no line #CHROM"),
    "column line with blanks": (HEADER + COLUMNS.replace("\t", " "), "line 7: #CHROM line with fewer than 8"),
    "columns in another order": (
        HEADER + COLUMNS.replace("REF\tALT", "ALT\tREF"),
        "line 7: a column is called 'ALT', expected REF",
    ),
    "a damaged column": (HEADER + COLUMNS.replace("QUAL", "QUxL"), "line 7: a column is called 'QUxL', expected QUAL"),
    "no FORMAT": (HEADER + COLUMNS.replace("FORMAT", "format"), "'format', expected FORMAT"),
    "too few columns": (HEADER + COLUMNS + "1\t10\t.\tA\tC\n", "line 8: '1 10 . A C' is no VCF record"),
    "seven columns": (HEADER + COLUMNS + "1\t10\t.\tA\tC\t.\t.\n", "line 8: "),
    "blanks for tabs": (HEADER + COLUMNS + RECORDS[0].replace("\t", " ") + "\n", "line 8: "),
    "position is no number": (
        HEADER + COLUMNS + RECORDS[0].replace("\t10\t", "\tten\t") + "\n",
        "expected a whole number",
    ),
    "negative position": (
        HEADER + COLUMNS + RECORDS[0].replace("\t10\t", "\t-3\t") + "\n",
        "expected a whole number",
    ),
    "huge position": (
        HEADER + COLUMNS + RECORDS[0].replace("\t10\t", "\t" + "9" * 25 + "\t") + "\n",
        "expected a whole number",
    ),
    "underscore": (
        HEADER + COLUMNS + RECORDS[0].replace("\t10\t", "\t1_0\t") + "\n",
        "expected a whole number",
    ),
    "plus": (HEADER + COLUMNS + RECORDS[0].replace("\t10\t", "\t+10\t") + "\n", "expected a whole number"),
    "digits of others": (
        HEADER + COLUMNS + RECORDS[0].replace("\t10\t", "\t١٠\t") + "\n",
        "expected a whole number",
    ),
    "too many digits": (
        HEADER + COLUMNS + RECORDS[0].replace("\t10\t", "\t1" + "0" * 20 + "\t") + "\n",
        "expected a whole number",
    ),
    "NUL": (HEADER + COLUMNS + RECORDS[0].replace("rs1", "r\0s") + "\n", "line 8, column 7: binary data (a NUL byte)"),
    "a column less": (
        HEADER + COLUMNS + RECORDS[0].rpartition("\t")[0] + "\n",
        "line 8: 9 columns, the #CHROM line has 10",
    ),
    "a column more": (HEADER + COLUMNS + RECORDS[0] + "\t0|0\n", "line 8: 11 columns, the #CHROM line has 10"),
    "cut behind INFO": (HEADER + COLUMNS + RECORDS[0] + "\n" + RECORDS[1][:16], "line 9: 8 columns, the #CHROM line"),
    "no REF": (HEADER + COLUMNS + RECORDS[0].replace("\tA\t", "\t\t") + "\n", "line 8: "),
    "cut in a record": (HEADER + COLUMNS + RECORDS[0] + "\n" + RECORDS[1][:9], "line 9: "),
    "cut gzip": (gzip.compress((HEADER + COLUMNS).encode())[:-30], "the gzip data are truncated"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_no_vcf_is_reported_with_its_line(tmp_path, case):
    content, message = BAD[case]
    path = written(tmp_path, content)
    with pytest.raises(InputError) as error:
        read_vcf(path)
    assert str(error.value).startswith(str(path))
    assert message in str(error.value)


def test_a_bgzip_file_cut_off_is_reported_even_between_blocks(tmp_path, capsys):
    path = tmp_path / "in.vcf.gz"
    with pysam.BGZFile(str(path), "w") as file:
        file.write((HEADER + COLUMNS + "\n".join(RECORDS * 5000) + "\n").encode())
    whole = path.read_bytes()
    for keep in (-29, -200):
        path.write_bytes(whole[:keep])
        with pytest.raises(InputError, match="the gzip data are truncated"):
            read_vcf(path)
    path.write_bytes(whole[:-28])  # as some writers leave it
    assert len(read_vcf(path)) == 15_000 and "bgzip's last block is missing" in capsys.readouterr().err


def test_missing_file(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        read_vcf(tmp_path / "absent.vcf")


def test_progress_is_in_bytes(tmp_path):
    path = written(tmp_path, HEADER + COLUMNS + (RECORDS[0] + "\n") * 70_000)
    seen = []
    read_vcf(path, lambda done, total: seen.append((done, total)))
    assert seen and all(0 < done <= total == path.stat().st_size for done, total in seen)


def test_names_of_vcf_files():
    assert all(is_vcf_name(Path(name)) for name in ("a.vcf", "a.vcf.gz", "a.b.vcf.bgz"))
    assert not any(is_vcf_name(Path(name)) for name in ("a.gz", "a.tsv", "vcf"))


@pytest.mark.parametrize(
    ("info", "expected"),
    [
        (
            "A=1,2;R=0,1,2;D=x,y;S=x,y;F",
            [
                {"A": "1", "R": "1", "D": "x,y", "S": "x,y", "F": ""},
                {"A": "2", "R": "2", "D": "x,y", "S": "x,y", "F": ""},
            ],
        ),
        ("A=.,2;R=.;U=p,q", [{"U": "p"}, {"A": "2", "U": "q"}]),
        (".", [{}, {}]),
        ("A=1;R=0,1;D=x", [{"D": "x"}, {"D": "x"}]),  # nobody knows whose values they are
        ("D=x;D=y;S=z", [{"S": "z"}, {"S": "z"}]),
    ],
)
def test_info_goes_to_alleles_by_its_number(info, expected):
    header = [
        f'##INFO=<ID={name},Number={number},Type=String,Description="">\n'.encode()
        for name, number in zip("ARDSF", "AR.10", strict=True)
    ]
    assert info_fields(info_numbers(header), info, 2) == expected


def test_numbers_are_read_as_the_header_has_them():
    header = [
        b'##INFO=<ID=A1,Number=A,Type=String,Description="x,Number=R,y">\n',
        b'##INFO=<Description="a \\"quoted\\", ID=Z",Number=.,ID=B1,Type=String>\n',
        b"##FORMAT=<ID=GT,Number=1,Type=String>\n",
    ]
    assert info_numbers(header) == {"A1": "A", "B1": "."}
