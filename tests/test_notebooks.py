"""The notebooks: executed as they stand, and with a user's genome, annotation and model in their first cell."""

import ast
import base64
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import dnamamba
from dnamamba.formats.checkpoint import save_checkpoint
from dnamamba.model.config import preset
from dnamamba.model.language_model import LanguageModel

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PICTURES = {
    "01_per_position_likelihood": 2,
    "02_variants": 3,
    "03_species": 2,
    "04_training_curves": 2,
    "05_the_selective_scan": 6,
}
NAMES = list(PICTURES)
OWN_LINES = 100
FORMULAS = "05_the_selective_scan"
"""Writes out what it explains, with torch and matplotlib, in up to twice as many lines"""
SECONDS = 600
"""A cell at most, on a busy machine; a quiet one runs a whole notebook in less than a minute"""


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def code_cells(notebook: dict[str, Any]) -> list[dict[str, Any]]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def source(cell: dict[str, Any]) -> str:
    text = cell["source"]
    return text if isinstance(text, str) else "".join(text)


def pictures(notebook: dict[str, Any]) -> list[bytes]:
    outputs = [output for cell in code_cells(notebook) for output in cell["outputs"]]
    return [base64.b64decode("".join(o["data"]["image/png"])) for o in outputs if "image/png" in o.get("data", {})]


def execute(folder: Path, names: list[str]) -> None:
    """Runs the notebooks of a folder by nbmake, one after the other, and keeps their outputs."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "pytest", "-c", os.devnull, f"--rootdir={folder}", "-p", "no:cacheprovider"]
    options = ["--nbmake", f"--nbmake-timeout={SECONDS}", "--overwrite", *(f"{name}.ipynb" for name in names)]
    environment = {**os.environ, "PYTHONPATH": path, "OMP_WAIT_POLICY": "PASSIVE"}
    done = subprocess.run(
        [*command, *options], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-6000:]


def test_their_names() -> None:
    assert [path.stem for path in NOTEBOOKS] == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_committed_with_their_pictures(name: str) -> None:
    """Run from top to bottom, no error, no path of the machine, every picture a PNG of some size."""
    notebook = read(ROOT / "notebooks" / f"{name}.ipynb")
    cells = code_cells(notebook)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert not [output for output in outputs if output["output_type"] in ("error", "stream")]
    found = pictures(notebook)
    assert len(found) == PICTURES[name]
    assert all(data.startswith(b"\x89PNG") and len(data) > 10_000 for data in found)


@pytest.mark.parametrize("name", NAMES)
def test_thin(name: str) -> None:
    """They import nothing but dnamamba and pathlib, define next to nothing, and have one cell to change."""
    allowed = {"dnamamba", "pathlib"} | ({"dnamamba_kernels", "matplotlib", "torch"} if name == FORMULAS else set())
    cells = code_cells(read(ROOT / "notebooks" / f"{name}.ipynb"))
    lines = 0
    for cell in cells:
        text = "\n".join(line for line in source(cell).splitlines() if not line.startswith("%%"))
        lines += len(text.splitlines())
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Import):
                assert allowed.issuperset(alias.name.split(".")[0] for alias in node.names)
            if isinstance(node, ast.ImportFrom):
                assert (node.module or "").split(".")[0] in allowed
    assert lines < (2 if name == FORMULAS else 1) * OWN_LINES
    assert [index for index, cell in enumerate(cells) if "parameters" in cell["metadata"].get("tags", [])] == [0]
    assert source(cells[0]).count("Yours") == 1


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_as_they_stand(tmp_path: Path) -> None:
    """Everything from nothing: the second trains the toy model, the others take it."""
    for path in NOTEBOOKS:
        (tmp_path / path.name).write_bytes(path.read_bytes())
    execute(tmp_path, NAMES)
    for name in NAMES:
        assert len(pictures(read(tmp_path / f"{name}.ipynb"))) == PICTURES[name]


def users_genome(folder: Path) -> None:
    """Two contigs with N, repeats in lower case, genes of three exons on both strands; a GFF3; an untrained model; a
    run of a few steps."""
    rng = np.random.default_rng(0)
    letters = rng.choice(list("ACGT"), 12_000)
    lines = ["##gff-version 3\n"]
    for number, start in enumerate(range(500, 11_000, 1_500)):
        strand = "+-"[number % 2]
        for first, last in ((0, 120), (400, 520), (800, 920)):
            for kind in ("exon", "CDS"):
                interval = f"{start + first + 1}\t{start + last}\t.\t{strand}\t."
                lines.append(f"chrU\tx\t{kind}\t{interval}\tParent=t{number};gene=GENE{number}\n")
    letters[2_100:2_300] = np.char.lower(letters[2_100:2_300])
    letters[3_400:3_420] = "N"
    (folder / "user.fa").write_text(f">chrU\n{''.join(letters)}\n>chrV\n{''.join(rng.choice(list('ACGT'), 3000))}\n")
    (folder / "user.gff3").write_text("".join(lines))
    torch.manual_seed(0)
    model = LanguageModel(preset("demo", n_layer=1, d_model=16, d_state=4))
    save_checkpoint(model, folder / "user", {"settings": {"length": 256}})
    species = {"one": rng.choice(list("ACGT"), 60_000), "two": rng.choice(list("ACGT"), 60_000, p=[0.4, 0.1, 0.1, 0.4])}
    for name, bases in species.items():
        (folder / f"{name}.fa").write_text(f">{name}\n{''.join(bases)}\n")
    (folder / "species.tsv").write_text("name\tfasta\none\tone.fa\ntwo\ttwo.fa\n")
    tiny = {"preset": "demo", "n_layer": 1, "d_model": 16, "d_state": 4}
    sizes = {"length": 128, "batch_tokens": 512, "max_steps": 6, "validation_every": 2, "validation_tokens": 512}
    dnamamba.pretrain(genome=folder / "two.fa", model=tiny, out=folder / "trained", markov_order=0, **sizes)
    alleles = rng.choice(list("ACGT"), (200, 2))
    scores = rng.normal(size=200)
    rows = [
        f"{ref}\t{alt}\t{score:.3f}\t{int(score < 0)}\tg{row % 7}\n"
        for row, ((ref, alt), score) in enumerate(zip(alleles, scores, strict=True))
    ]
    (folder / "scored.tsv").write_text("ref\talt\tllr\tlabel\tgroup\n" + "".join(rows))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_with_a_users_genome_and_model(tmp_path: Path) -> None:
    users_genome(tmp_path)
    given = {
        "CHECKPOINT": 'Path("user")',
        "GENOME": 'Path("user.fa")',
        "GENES": 'Path("user.gff3")',
        "LOCUS": '"chrU:1,901-3,900"',
        "AROUND": '["chrU:1,001-11,000"]',
        "GENE": '"chrU:2,001-2,160"',
        "CLOSE_UP": '"chrU:2,001-2,040"',
        "LABELLED": 'Path("scored.tsv")',
        "SPECIES": 'Path("species.tsv")',
        "RUNS": '{"mine": Path("trained")}',
        "LENGTHS": "(64, 128)",
    }
    for name in NAMES:
        notebook = read(ROOT / "notebooks" / f"{name}.ipynb")
        cell = code_cells(notebook)[0]
        names = {node.id for node in ast.walk(ast.parse(source(cell))) if isinstance(node, ast.Name)}
        cell["source"] = source(cell) + "".join(f"\n{key} = {value}" for key, value in given.items() if key in names)
        (tmp_path / f"{name}.ipynb").write_text(json.dumps(notebook))
    execute(tmp_path, NAMES)
    for name in NAMES:
        assert len(pictures(read(tmp_path / f"{name}.ipynb"))) == PICTURES[name]
    assert not (tmp_path / "runs" / "demo").exists() and not list((tmp_path / "runs" / "04").glob("rate-*"))
    table = (tmp_path / "01_per_position_likelihood.ipynb").read_text()
    assert "intron" in table and "repeat" in table
