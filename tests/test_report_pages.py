"""The page of `dnamamba report`: runs of each kind, scores, comparisons, and what is neither."""

import json
import re
import shutil
from pathlib import Path

import chromium
import numpy as np
import pytest

from dnamamba import report
from dnamamba.errors import InputError
from dnamamba.pages.extremes import window_extremes
from dnamamba.pages.finetuning import _wilson
from dnamamba.pages.html import page, table, text
from dnamamba.pages.report import names
from dnamamba.pages.scores import ScoreTable
from dnamamba.pictures import calibration
from dnamamba.pictures.calibration import calibrations
from dnamamba.pictures.split_map import plot_split_map

FIXTURES = Path(__file__).parent / "fixtures" / "formats-2026-11"
PRETRAINED, FINETUNED = FIXTURES / "pretrain-finished", FIXTURES / "finetune-finished"
HOSTILE = "<img src=x onerror=alert(1)>"


def make(tmp_path, *runs):
    out = tmp_path / "page.html"
    report.main([*map(str, runs), "--out", str(out), "--overwrite"])
    return out.read_text()


def plain(html):
    """Its text, without pictures and marks."""
    return re.sub(
        r"\s+", " ", re.sub(r"<[^>]*>", " ", re.sub(r"<style>.*?</style>|data:[^\"]*", "", html, flags=re.DOTALL))
    )


class TestPretraining:
    def test_what_is_said(self, tmp_path):
        html = make(tmp_path, PRETRAINED)
        words = plain(html)
        summary = json.loads((PRETRAINED / "summary.json").read_text())
        assert f"{summary['markov_bits_per_base']:.4f} bits/base (order 8)" in words
        assert "python -m dnamamba.pretrain --genome ecoli.fa.gz" in words
        assert "kbases/s, median of the steps" in words
        trained = re.search(r"train ([\d,]+) ([\d.]+)% (\d+)", words)
        rows = [line.split("\t") for line in (PRETRAINED / "splits.bed").read_text().splitlines()]
        own = [int(row[2]) - int(row[1]) for row in rows if row[3] == "train"]
        assert trained[1] == f"{sum(own):,}" and trained[3] == str(len(own))
        assert html.count("<img ") == 4  # curve, speed, classes, splits
        assert "script-src 'none'" in html and "<script" not in html

    def test_several_are_compared(self, tmp_path):
        other = tmp_path / HOSTILE
        shutil.copytree(PRETRAINED, other, symlinks=True)
        html = make(tmp_path, PRETRAINED, other)
        words = plain(html)
        assert "Compared" in words and "cpg: CpG 1.8225 1.8225" in words
        assert "<img src=x" not in html and text(HOSTILE) in html

    def test_before_the_end(self, tmp_path):
        words = plain(make(tmp_path, FIXTURES / "pretrain-stopped"))
        assert "unfinished the run still trains, or was ended; continue with --resume" in words

    def test_best_and_worst_contigs(self, tmp_path):
        run = tmp_path / "run"
        shutil.copytree(PRETRAINED, run, symlinks=True)
        rows = [f"300,contig,chr{number},{1 + number / 10},2,{number + 1}000" for number in range(9)]
        with (run / "validation_by_class.csv").open("a") as file:
            file.write("\n".join(rows) + "\n")
        words = plain(make(tmp_path, run))
        assert "chr0 1.0000 1,000 chr1 1.1000 2,000 chr2 1.2000 3,000 chr7 1.7000 8,000 chr8 1.8000 9,000" in words

    def test_best_and_worst_windows(self, tmp_path):
        """In the order of their bits, with what the run says of them, and a command that shows the worst."""
        run = tmp_path / HOSTILE
        shutil.copytree(PRETRAINED, run, symlinks=True)
        assert "Not known: an earlier dnamamba, which kept no validation_windows.csv" in plain(make(tmp_path, run))
        bits = [1.9, 1.1, 1.5, 1.2, 1.8, 1.3, 1.7, 1.4, 1.6, "nan", 0.1]
        bases = [1024] * 10 + [100]
        rows = [
            f"300,,K-12-MG1655,{1000 * n},{1000 * n + 1025},{of},{many},0.0{n % 10},intron,0.75"
            for n, (of, many) in enumerate(zip(bits, bases, strict=True))
        ]
        header = "step,genome,contig,start,end,bits_per_base,bases,soft_masked,region,region_share"
        (run / "validation_windows.csv").write_text("\n".join([header, *rows]) + "\n")
        html = make(tmp_path, run)
        words = plain(html)
        assert "Of the 11 windows of the validation after step 300" in words
        first, last = "K-12-MG1655:1,001-2,025 1.1000 1,024 1%", "K-12-MG1655:1-1,025 1.9000 1,024 0%"
        assert f"best {first} intron (75%)" in words and f"worst {last} intron (75%)" in words
        shown = re.findall(r"(best|worst) K-12-MG1655:[\d,]+-[\d,]+ ([\d.]+)", words)
        assert shown == [("best", f"1.{n}000") for n in (1, 2, 3, 4)] + [("worst", f"1.{n}000") for n in (9, 8, 7, 6)]
        assert f"--checkpoint '{text(str(run))}'" in html.replace("&#x27;", "'")
        command = re.search(r"dnamamba browse [^<]*", html)[0]
        assert command.endswith("--region K-12-MG1655:1-1,025 --out window.html") and "ecoli.fa.gz" in command

    def test_windows_of_a_mixture(self):
        row = {"step": "4", "contig": "1", "start": "0", "end": "9", "bases": "8", "soft_masked": "0.5", "region": ""}
        rows = [{**row, "genome": name, "bits_per_base": bits} for name, bits in (("a", "1.5"), ("b", "1.0"))]
        genomes = [{"name": "a", "source": [{"path": "x y.fa"}]}, {"name": "b", "source": [{"path": "b.fa"}]}]
        html = window_extremes(rows, Path("run"), {"annotation": None, "store": "s"}, genomes)
        assert "best b 1:1-9 1.0000 8 50% worst a 1:1-9 1.5000 8 50%" in plain(html)
        assert "--genome &#x27;x y.fa&#x27; --store s --region 1:1-9" in html and "most bases are" not in html
        assert "browse" not in window_extremes(rows, Path("run"), {}, [])
        assert not window_extremes(rows[:1], Path("run"), {}, genomes)

    def test_contigs_and_their_splits(self, tmp_path):
        lengths = {f"chr{number}": 3_000_000 - number for number in range(60)}
        intervals = [(name, 0, 1_000_000, "train") for name in lengths] + [("chr3", 1_500_000, 2_000_000, "test")]
        plot_split_map(intervals, lengths, tmp_path / "x.svg", title="splits")
        drawn = (tmp_path / "x.svg").read_text()
        assert drawn.startswith("<?xml") and "dc:date" not in drawn


class TestFinetuning:
    def test_what_is_said(self, tmp_path):
        html = make(tmp_path, FINETUNED)
        words = plain(html)
        assert "accuracy 0.6000 0.4500 to 0.7500" in words
        assert "2-mer mcc 0.8601 0.4284 no" in words
        assert html.count("<img ") == 4  # trials, confusion, ROC and calibration, by length

    def test_one_epoch_is_no_curve(self, tmp_path):
        run = tmp_path / "run"
        shutil.copytree(FINETUNED, run, symlinks=True)
        header, *rows = (run / "metrics.csv").read_text().splitlines()
        epoch = header.split(",").index("epoch")
        first = [row for row in rows if row.split(",")[epoch] == "1"]
        assert 0 < len(first) < len(rows)
        (run / "metrics.csv").write_text("\n".join([header, *first]) + "\n")
        html = make(tmp_path, run)
        assert html.count("<img ") == 3 and "epoch by epoch" not in plain(html)

    def test_of_several_labels_and_of_numbers(self, tmp_path):
        for kind, header, rows in (
            ("labels", "label_a,label_b,p_a,p_b", ["1,0,0.9,0.2", "0,1,0.4,0.6", "1,1,0.7,0.1"]),
            ("numbers", "label_y,value_y", ["1,1.5", "2,2.5", "3,3.5"]),
        ):
            run = tmp_path / kind
            run.mkdir()
            (run / "config.yaml").write_text("task: sequences\n")
            lines = [f"0,c,{number},{number + 100},g,{row}" for number, row in enumerate(rows)]
            text = "\n".join([f"seed,contig,start,end,group,{header}", *lines, *(f"1{line[1:]}" for line in lines)])
            (run / "test_predictions.csv").write_text(text + "\n")
        assert "ROC and calibration" not in plain(make(tmp_path, tmp_path / "numbers"))
        assert "y 3 1.0000 0.5 0.8165" in plain(make(tmp_path, tmp_path / "numbers"))
        assert make(tmp_path, tmp_path / "labels").count("<img ") == 1

    def test_of_variants_with_an_annotation(self, tmp_path):
        bins = [{"variants": 5, "predicted": 0.1, "observed": 0.2}, {"variants": 5, "predicted": 0.9, "observed": 0.8}]
        of = {"calibration": {"brier": 0.15, "expected_calibration_error": 0.1, "bins": bins}}
        annotation = {**of, "missense": of, "with_model": {**of, "missense": of}}
        variants = {**of, "missense": of, "annotation": annotation}
        run = tmp_path / "run"
        shutil.copytree(FINETUNED, run, symlinks=True)
        summary = json.loads((run / "summary.json").read_text()) | {"variants": variants}
        (run / "summary.json").write_text(json.dumps(summary))
        html = make(tmp_path, run)
        assert html.count("<img ") == 5 and "Test variants in tenths" in plain(html)
        parts = ("the model", "annotation", "both together")
        assert list(calibrations(variants)) == [name for part in parts for name in (part, f"{part}, missense")]
        assert list(calibrations({"annotation": of})) == ["annotation"]

    def test_a_line_lies_at_its_bins(self, monkeypatch):
        drawn = []
        monkeypatch.setattr(calibration, "save_png", lambda figure, path: drawn.append(figure.axes[0]))
        bins = [{"variants": 5, "predicted": 0.1, "observed": 0.2}, {"variants": 5, "predicted": 0.9, "observed": 1.0}]
        of = {"brier": 0.15, "expected_calibration_error": 0.1, "bins": bins}
        calibration.plot_calibration({"a": of}, Path("a.png"), title="t", positive="x")
        line = drawn[0].containers[0].lines[0]
        assert line.get_xdata().tolist() == [0.1, 0.9] and line.get_ydata().tolist() == [0.2, 1.0]
        assert drawn[0].containers[0].get_label() == "a: calibration error 0.100, Brier 0.150"

    def test_stopped_ones_say_so(self, tmp_path):
        words = plain(make(tmp_path, FIXTURES / "finetune-stopped"))
        assert "unfinished the run still trains, or was ended; continue with --resume" in words
        assert "command python -u -m dnamamba.finetune --checkpoint none" in words

    def test_intervals_of_shares(self):
        low, high = _wilson(8, 10)  # Brown, Cai and DasGupta 2001
        assert (round(low, 3), round(high, 3)) == (0.49, 0.943)


class TestScores:
    def test_of_a_table_by_class(self, tmp_path):
        path = tmp_path / "scored.tsv"
        rows = [
            "contig\tllr\teffect",
            "1\t-1.5\tmissense",
            "1\t0.5\tsynonymous",
            "1\t\tmissense",
            f"1\t-0.5\t{HOSTILE}",
        ]
        path.write_text("\n".join(rows) + "\n")
        scores = ScoreTable(path, "scored")
        assert scores.skipped == 1 and scores.class_name == "effect"
        assert {name: of.tolist() for name, of in scores.by_class().items()} == {
            "missense": [-1.5], "synonymous": [0.5], HOSTILE: [-0.5],
        }  # fmt: skip
        html = make(tmp_path, path)
        assert "1 alleles have no score" in plain(html) and "<img src=x" not in html

    def test_of_a_vcf(self, tmp_path):
        path = tmp_path / "scored.vcf"
        header = "".join(
            f'##INFO=<ID={name},Number={number},Type=String,Description="x">\n'
            for name, number in (("DNAMAMBA_LLR", "A"), ("Consequence", "1"))
        )
        path.write_text(
            f"##fileformat=VCFv4.2\n{header}#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"
            "1\t5\t.\tA\tC,G\t.\t.\tDNAMAMBA_LLR=-1.25,.;Consequence=stop\n"
        )
        scores = ScoreTable(path, "scored")
        assert scores.scores.tolist() == [-1.25] and scores.skipped == 1
        assert scores.classes.tolist() == ["stop"]


class TestBadInput:
    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ([], "give run folders, or files of scored variants"),
            (["{}"], "is no run folder (config.yaml is missing); expected what pretrain or finetune wrote"),
            (["{}/missing"], "missing: no such run folder or file"),
            (["{}/x.txt"], "x.txt: is no run folder and no file of scores"),
            (["{}/x.csv"], "x.csv: has the columns a, b; expected one called llr or score"),
            (["{}/x.csv", "{}/../*/x.csv"], "x.csv"),
        ],
    )
    def test_is_one_line(self, tmp_path, given, message):
        (tmp_path / "x.txt").write_text("x")
        (tmp_path / "x.csv").write_text("a,b\n1,2\n")
        paths = [path.format(tmp_path) for path in given]
        with pytest.raises(InputError, match=re.escape(message)):
            report.main([*paths, "--out", str(tmp_path / "page.html")])
        assert not (tmp_path / "page.html").exists()

    def test_names_are_as_long_as_it_takes(self, tmp_path):
        paths = [tmp_path / "a" / "run", tmp_path / "b" / "run", tmp_path / "other"]
        assert names(paths) == ["a/run", "b/run", f"{tmp_path.name}/other"]
        with pytest.raises(InputError, match="is there twice"):
            names([paths[0], paths[0]])


def test_tables_and_pages_escape():
    assert table(("<a>", "b"), [("<c>", "1.5")]) == (
        '<table><thead><tr><th>&lt;a&gt;</th><th class="number">b</th></tr></thead>'
        '<tbody><tr><td>&lt;c&gt;</td><td class="number">1.5</td></tr></tbody></table>'
    )
    assert "<title>&lt;t&gt;</title>" in page("<t>", "") and text("a\x1b[0m\"'") == "a\\x1b[0m&quot;&#x27;"


@pytest.mark.skipif(chromium.find() is None, reason="no Chromium on this machine (Debian: apt-get install chromium)")
def test_in_a_browser_all_pictures_are_drawn(tmp_path):
    make(tmp_path, PRETRAINED, FINETUNED)
    with chromium.Chromium() as browser:
        browser.open(tmp_path / "page.html")
        browser.wait_for("document.readyState === 'complete'")
        widths = browser.evaluate("[...document.images].map(image => image.naturalWidth)")
        assert len(widths) == 8 and np.min(widths) > 200
        assert browser.console == []
        assert browser.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
