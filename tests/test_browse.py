"""The page of `dnamamba browse`: what is in it, and how a real browser draws it."""

import json
import re
import struct

import chromium
import numpy as np
import pyBigWig
import pytest
from tiny_models import random_bases, tiny_model

from dnamamba import browse, verbs
from dnamamba.errors import InputError
from dnamamba.formats.checkpoint import save_checkpoint
from dnamamba.genome.genes import Gene
from dnamamba.pages import html
from dnamamba.pages.browse import _tallest, exon_parts, igv_js, own_js, page_name
from dnamamba.pictures.bigwig_reader import BigWig

CONTIG, LENGTH = "HLA:<b>1", 3000
HOSTILE = "<img/src=x/onerror=document.title='injected'>"
REGION = f"{{{CONTIG}}}:501-2,500"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A genome whose names are HTML, with genes, repeats, tracks, and variants with scores."""
    folder = tmp_path_factory.mktemp("files")
    bases = random_bases(LENGTH, 1)
    (folder / "genome.fa").write_text(
        f">other\nACGT\n>{CONTIG}\n{bases[:1000]}{bases[1000:1100].lower()}{bases[1100:]}\n"
    )
    genes = [
        f"{CONTIG}\tx\texon\t601\t800\t.\t-\t.\tParent=t1;gene=GENE1",
        f"{CONTIG}\tx\texon\t1201\t1500\t.\t-\t.\tParent=t1;gene=GENE1",
        f"{CONTIG}\tx\tCDS\t701\t1400\t.\t-\t.\tParent=t1;gene=GENE1",
        f"{CONTIG}\tx\tCDS\t1701\t2000\t.\t+\t.\tID=t2;gene={HOSTILE}",
    ]
    (folder / "genes.gff3").write_text("##gff-version 3\n" + "\n".join(genes) + "\n")
    header = '##fileformat=VCFv4.2\n##INFO=<ID=DNAMAMBA_LLR,Number=A,Type=Float,Description="x">\n'
    header += '##INFO=<ID=NOTE,Number=1,Type=String,Description="x">\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n'
    other = {base: "CGTA"["ACGT".index(base)] for base in "ACGT"}
    ref = {at: bases[at - 1].upper() for at in (100, 900, 1500)}
    rows = [
        f"{CONTIG}\t100\t.\t{ref[100]}\t{other[ref[100]]}\t.\t.\tDNAMAMBA_LLR=1",  # outside of the region
        f"{CONTIG}\t900\t{HOSTILE}\t{ref[900]}\t{other[ref[900]]}\t.\tPASS\tDNAMAMBA_LLR=-2.5;NOTE={HOSTILE}",
        f"{CONTIG}\t1500\trs2\t{ref[1500]}\t{other[ref[1500]]},<DEL>\t.\tPASS\tDNAMAMBA_LLR=0.75,.",
    ]
    (folder / "scored.vcf").write_text(header + "\n".join(rows) + "\n")
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.ones(4) * 0.3, LENGTH)
    p[1600:1900] = (0.3, 0.25, 0.25, 0.2)  # 0.015 bits: a region of which the model knows little
    columns = {f"mean_p_{base}": p[:, number] for number, base in enumerate("ACGT")}
    columns |= {f"{strand}_log_likelihood": np.log(p[:, 0] + 1e-3) for strand in ("mean", "forward", "reverse")}
    columns |= {"mean_entropy": -(p * np.log(p + 1e-9)).sum(1)}
    for name, values in columns.items():
        write_bigwig(folder / f"x.{name}.bw", {CONTIG: LENGTH}, (CONTIG, 0), values=values, span=1, step=1)
    write_bigwig(
        folder / f"{HOSTILE.replace('/', ' ')}.bw", {CONTIG: LENGTH}, (CONTIG, 0), values=p[:, 1], span=1, step=1
    )
    return folder


def write_bigwig(path, contigs, where, **values):
    file = pyBigWig.open(str(path), "w")
    file.addHeader(list(contigs.items()))
    file.addEntries(*where, **values)
    file.close()


@pytest.fixture(scope="module")
def made(files):
    """The page, made once."""
    out = files / "page.html"
    tracks = sorted(map(str, files.glob("*.bw")))
    flags = ["--genome", files / "genome.fa", "--vcf", files / "scored.vcf", "--annotation", files / "genes.gff3"]
    browse.main([*map(str, flags), "--region", REGION, "--out", str(out), "--likelihood", *tracks])
    return out


@pytest.fixture
def browser():
    if chromium.find() is None:
        pytest.skip("no Chromium on this machine (Debian: apt-get install chromium)")
    with chromium.Chromium() as opened:
        yield opened


def data_of(path):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', path.read_text())[1])


class TestPage:
    def test_what_is_in_it(self, made):
        data = data_of(made)
        tracks = {track.get("name", track["type"]): track for track in data["tracks"]}
        assert data["contig"] == page_name(CONTIG) == "HLA__b_1"
        assert (data["start"], data["end"], data["locus"]) == (500, 2500, "HLA__b_1:501-2500")
        assert list(tracks) == [
            "sequence", "genes", "repeats (soft-masked)", "bits above guessing, mean of both strands",
            "bits above guessing, forward strand", "bits above guessing, reverse strand",
            html.text(f"{HOSTILE.replace('/', ' ')}.bw"), "predicted bases, mean of both strands (bits)",
            "variants by DNAMAMBA_LLR",
        ]  # fmt: skip
        assert [(v["start"], v["score"]) for v in tracks["variants by DNAMAMBA_LLR"]["variants"]] == [
            (899, -2.5), (1499, 0.75), (1499, None),
        ]  # fmt: skip
        assert [(f["start"], f["end"]) for f in tracks["repeats (soft-masked)"]["features"]] == [(1000, 1100)]

    def test_nothing_from_files_is_markup(self, made):
        text = made.read_text()
        assert text.count("<script") == text.count("</script") == 3
        assert "<img" not in text.replace(igv_js(), "") and "<b>1" not in text.replace(igv_js(), "")

    def test_the_policy_lets_only_our_scripts_run_and_loads_nothing(self, made):
        policy = re.search(r'Content-Security-Policy" content="([^"]*)"', made.read_text())[1]
        assert policy.startswith("default-src 'none'; script-src 'sha256-") and policy.count("sha256") == 2
        assert "http" not in policy and "connect-src" not in policy

    def test_a_model_computes_tracks_and_scores(self, files, tmp_path):
        save_checkpoint(tiny_model(), tmp_path / "model", {"settings": {"length": 512}})
        vcf = tmp_path / "plain.vcf"
        vcf.write_text((files / "scored.vcf").read_text().replace("DNAMAMBA_LLR", "OTHER"))
        flags = ["--genome", files / "genome.fa", "--vcf", vcf, "--checkpoint", tmp_path / "model", "--context", 512]
        browse.main([*map(str, flags), "--region", REGION, "--out", str(tmp_path / "x.html"), "--accelerator", "cpu"])
        tracks = {track.get("name", track["type"]): track for track in data_of(tmp_path / "x.html")["tracks"]}
        assert "predicted bases, mean of both strands (bits)" in tracks
        variants = tracks["variants by log-likelihood ratio (nats)"]["variants"]
        assert [v["score"] is None for v in variants] == [False, False, True]
        assert dict(variants[0]["fields"])["log-likelihood ratio"] == f"{variants[0]['score']:.4f} nats"
        assert dict(variants[2]["fields"])["skipped"] == "symbolic"

    @pytest.mark.parametrize(
        ("flags", "message"),
        [
            (["--out", "x.txt"], "--out: x.txt is no name of a page; expected one that ends in .html"),
            (["--likelihood", "{}/genome.fa"], "genome.fa: is no bigWig; `dnamamba likelihood --format bigwig`"),
            (["--likelihood", "a.bw", "--checkpoint", "c"], "--likelihood and --checkpoint both say what to draw"),
            (["--vcf", "{}/scored.vcf", "--score", "CADD"], "declares no INFO field CADD; it has DNAMAMBA_LLR, NOTE"),
            (["--likelihood", "{}/x.mean_p_A.bw", "--region", "other"], "mean_p_A.bw: has no contig 'other'"),
        ],
    )
    def test_bad_input(self, files, tmp_path, monkeypatch, flags, message):
        monkeypatch.chdir(tmp_path)
        given = ["--genome", str(files / "genome.fa"), "--region", REGION, "--out", "x.html"]
        with pytest.raises(InputError, match=re.escape(message)):
            browse.main([*given, *(flag.format(files) for flag in flags)])
        assert list(tmp_path.iterdir()) == []


class TestChromium:
    def test_tracks_are_drawn_and_a_click_shows_scores(self, made, browser):
        browser.open(made)
        browser.wait_for("document.body && document.body.dataset.ready === 'true'")
        shadow = "document.getElementById('igv').shadowRoot"
        browser.wait_for("browser.trackViews.slice(1).every(view => view.viewports[0].canvas)")
        # Every track has pixels of several colours.
        colours = browser.evaluate(
            """browser.trackViews.filter(view => view.track.type !== 'ideogram').map(view => {
                const canvas = view.viewports[0].canvas;
                if (!canvas) return [view.track.type, 0];
                const pixels = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
                return [view.track.type, new Set(new Uint32Array(pixels.buffer)).size];
            })"""
        )
        drawn = {
            kind: count for kind, count in colours if kind in ("logo", "variants", "wig", "annotation", "sequence")
        }
        assert len(drawn) == 5 and all(count > 1 for count in drawn.values()), colours
        # A click at the first variant's dot.
        spot = browser.evaluate(
            """(() => {
                const view = browser.trackViews.find(view => view.track.type === 'variants');
                const { start, bpPerPixel } = browser.referenceFrameList[0];
                const [x, y] = view.track.place(view.track.variants[0], start, bpPerPixel);
                view.viewports[0].viewportElement.scrollIntoView({block: 'center'});
                const box = view.viewports[0].viewportElement.getBoundingClientRect();
                return [box.left + x, box.top + y];
            })()"""
        )
        browser.click(*spot)
        browser.wait_for(f"{shadow}.textContent.includes('DNAMAMBA_LLR\\u00a0\\u00a0\\u00a0-2.5')")
        assert HOSTILE in browser.evaluate(f"{shadow}.textContent")
        # A gene by its name, and closer.
        assert browser.evaluate("browser.search('GENE1')") is True
        assert browser.evaluate("browser.referenceFrameList[0].start") == 0  # with what is around it
        before = browser.evaluate("browser.referenceFrameList[0].bpPerPixel")
        browser.evaluate("browser.zoomIn()")
        assert browser.evaluate("browser.referenceFrameList[0].bpPerPixel") < before
        # Letters are read where the model knows little, and the axis says how high they are.
        top = "browser.trackViews.find(view => view.track.type === 'logo').track.top"
        contig = json.dumps(page_name(CONTIG))
        for first, bits in ((1701, 0.1), (1001, 2), (1701, 0.1)):
            browser.evaluate(f"browser.search({contig} + ':{first}-{first + 60}')")
            browser.wait_for(f"{top} === {bits}")
        browser.evaluate(f"browser.search({contig} + ':501-2500')")
        browser.wait_for(f"{top} === 2")
        assert browser.evaluate("document.title") == f"{CONTIG}:501-2,500, dnamamba"
        assert browser.console == []
        assert [url for url in browser.requests if not url.startswith(("file:", "data:", "blob:"))] == []


class TestBigWig:
    def test_each_kind_of_section(self, tmp_path):
        contigs = {"a": 500, "b": 9000}
        fixed, variable, graph = (tmp_path / name for name in ("fixed.bw", "variable.bw", "graph.bw"))
        write_bigwig(fixed, contigs, ("b", 100), values=[1.0, 2.0, 3.0], span=2, step=5)
        write_bigwig(variable, contigs, ("b", [100, 110, 200]), values=[1.0, 2.0, 3.0], span=4)
        write_bigwig(graph, contigs, (["a", "b"], [3, 100]), ends=[5, 8000], values=[1.0, 2.0])
        for path in (fixed, variable, graph):
            theirs = pyBigWig.open(str(path))
            with BigWig(path) as file:
                assert {name: length for name, (_, length) in file.contigs.items()} == contigs
                for start, end in ((0, 500), (101, 111), (104, 105), (202, 8_999), (8_998, 9_000)):
                    expected = theirs.values("b", start, end, numpy=True)
                    np.testing.assert_array_equal(file.values("b", start, end), expected)

    def test_many_blocks(self, tmp_path):
        values = np.random.default_rng(0).normal(size=300_000).astype(np.float32)
        write_bigwig(tmp_path / "x.bw", {"a": values.size}, ("a", 0), values=values.astype(float), span=1, step=1)
        with BigWig(tmp_path / "x.bw") as file:
            np.testing.assert_array_equal(file.values("a", 12_345, 290_001), values[12_345:290_001])

    def test_damaged(self, tmp_path):
        path = tmp_path / "x.bw"
        write_bigwig(path, {"a": 500}, ("a", 100), values=[1.0, 2.0, 3.0], span=1, step=1)
        whole = path.read_bytes()
        index = struct.unpack_from("<Q", whole, 24)[0]
        for damaged in (whole[:30], whole[: index + 8], whole[:index] + bytes(4) + whole[index + 4 :]):
            path.write_bytes(damaged)
            with pytest.raises(InputError, match=r"x\.bw: is a damaged bigWig"), BigWig(path) as file:
                file.values("a", 0, 500)

    def test_any_damage_is_refused_or_read_in_no_time(self, tmp_path):
        path = tmp_path / "x.bw"
        values = np.random.default_rng(0).normal(size=3000)
        write_bigwig(path, {"a": 9000, "b": 500}, ("a", 0), values=values, span=2, step=3)
        whole = bytearray(path.read_bytes())
        rng = np.random.default_rng(1)
        refused = 0
        for _ in range(300):
            damaged = whole.copy()
            for place in rng.integers(0, min(len(whole), 1200) if rng.random() < 0.5 else len(whole), 2).tolist():
                damaged[place] = int(rng.choice([0, 1, 255, rng.integers(256)]))
            path.write_bytes(damaged)
            try:
                with BigWig(path) as file:
                    for name in file.contigs:
                        assert file.values(name, 100, 400).shape == (300,)
            except InputError:
                refused += 1
        assert 50 < refused < 300

    def test_an_index_without_end(self, tmp_path):
        path = tmp_path / "x.bw"
        write_bigwig(path, {"a": 500}, ("a", 100), values=[1.0, 2.0, 3.0], span=1, step=1)
        whole = bytearray(path.read_bytes())
        root = struct.unpack_from("<Q", whole, 24)[0] + 48
        inner = struct.pack("<BBH", 0, 0, 2) + 2 * struct.pack("<IIIIQ", 0, 0, 9, 500, root)  # twice itself
        path.write_bytes(whole[:root] + inner + bytes(64))
        with pytest.raises(InputError, match="its index has no end"), BigWig(path) as file:
            file.values("a", 0, 500)


def test_exons_are_cut_where_coding_begins_and_ends():
    gene = Gene("g", "c", False, np.array([[0, 10], [20, 40], [50, 60]]), np.array([[5, 10], [20, 30]]))
    assert exon_parts(gene) == [
        ("utr", 0, 5), ("coding", 5, 10), ("coding", 20, 30), ("utr", 30, 40), ("utr", 50, 60),
    ]  # fmt: skip


def test_the_logo_is_as_high_as_its_letters():
    assert _tallest(np.full((50, 4), 0.25)) == 0.1
    assert _tallest(np.tile([0.7, 0.1, 0.1, 0.1], (50, 1))) == 1.0
    assert _tallest(np.eye(4)) == _tallest(np.full((3, 4), np.nan)) == 2.0


def test_scripts_do_not_end_their_element():
    assert "</script" not in igv_js() + own_js()
    assert verbs.VERBS["browse"].job == "pages.browse:browse"
