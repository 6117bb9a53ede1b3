"""The documentation: the tutorial's commands run, all others are accepted as they stand, and every page is in the
site's menu."""

import importlib.util
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import polars
import pytest
import yaml

from dnamamba import cli, verbs
from dnamamba.analysis.variants import score_output
from dnamamba.errors import InputError

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = [ROOT / "README.md", ROOT / "GUIDE.md", *sorted(ROOT.glob("docs/*.md")), *ROOT.glob("pipelines/README.md")]
TUTORIAL = ROOT / "docs" / "tutorial.md"
QUICK = {
    "--length 1024 --max_steps 300": "--length 128 --batch_tokens 1024 --max_steps 4 --validation_every 4 "
    "--validation_tokens 1024 --markov_order 2",
    "361,101-361,130": "361,101-361,104",
}
"""What the test runs in place of minutes of training"""


def blocks(document: Path, language: str) -> list[str]:
    """The fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", document.read_text(), re.MULTILINE | re.DOTALL)


def statements(block: str) -> Iterator[str]:
    """The commands of a bash block, with their continued lines and here-documents."""
    lines = iter(re.sub(r"\\\n\s*", " ", block).splitlines())
    for line in lines:
        if here := re.search(r"<<'(\w+)'", line):
            for more in lines:
                line += f"\n{more}"
                if more == here[1]:
                    break
        if line and not line.startswith("#"):
            yield line


def calls(text: str) -> Iterator[tuple[str, list[str]]]:
    """(verb, arguments) of each call of dnamamba in a command: `dnamamba VERB …` or `python -m dnamamba.VERB …`."""
    for part in re.split(r"\s(?:&&|\|\||\||;|>)\s", text.partition("\n")[0]):
        words = shlex.split(part, comments=True)
        for at, word in enumerate(words):
            module = word.partition("dnamamba.")[2] if at and words[at - 1] == "-m" else ""
            if module in verbs.VERBS:
                yield module, words[at + 1 :]
            elif word == "dnamamba" and at + 1 < len(words) and words[at + 1] in verbs.VERBS:
                yield words[at + 1], words[at + 2 :]


def documented() -> Iterator[tuple[str, str, list[str]]]:
    """(document, verb, arguments) of all bash blocks; what stands for more, `...` and `"${more[@]}"`, is left out, and
    `$x` taken for 1."""
    for document in DOCUMENTS:
        for block in blocks(document, "bash"):
            for statement in statements(block):
                for verb, arguments in calls(statement):
                    given = [word for word in arguments if word != "..." and not word.startswith("${")]
                    yield document.name, verb, [re.sub(r"\$\w+", "1", word) for word in given]


def accept(verb: str, arguments: list[str]) -> None:
    """Parses as the verb itself does: names, types, bounds, required flags. Raises `InputError`."""
    verbs.parser(verb).parse(arguments)


def test_documented_commands_are_accepted() -> None:
    found = list(documented())
    assert len(found) > 30 and {verb for _, verb, _ in found} > {"pretrain", "finetune", "score", "embed", "export"}
    for document, verb, arguments in found:
        try:
            accept(verb, arguments)
        except InputError as error:
            pytest.fail(f"{document}: dnamamba {verb} {shlex.join(arguments)}: {error}")


@pytest.mark.parametrize(
    "command",
    [
        "dnamamba pretrain --genome a.fa --length a_few",
        "dnamamba score --checkpoint runs/a --genome a.fa --out a.vcf",
        "dnamamba embed --checkpoint a --input a.bed --out a.parquet --pool median",
    ],
)
def test_a_wrong_command_is_found(command: str) -> None:
    ((verb, arguments),) = calls(command)
    with pytest.raises(InputError):
        accept(verb, arguments)


def test_the_tutorial_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """Every command of it, in its order; its calls of Python, too."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:/usr/bin:/bin")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    ran = []
    for statement in (each for block in blocks(TUTORIAL, "bash") for each in statements(block)):
        for slow, quick in QUICK.items():
            statement = statement.replace(slow, quick)
        if statement.startswith("dnamamba "):
            ((verb, arguments),) = calls(statement)
            assert cli.run(verbs.main(verb), arguments) == 0, f"{statement}: {capfd.readouterr().err}"
            ran.append(verb)
        else:
            subprocess.run(["bash", "-ec", statement], check=True)
    assert ran == ["pretrain", "pretrain", "info", "likelihood", "score", "score", "mutagenesis", "browse"]
    scope: dict = {}
    exec("\n".join(blocks(TUTORIAL, "python")), scope)
    for name in (
        "runs/ecoli/learning_curve.png",
        "lac.mean_log_likelihood.bw",
        "lac.json",
        "lacA.png",
        "lacA.parquet",
        "locus.html",
    ):
        assert Path(name).is_file(), name
    assert len(list(Path().glob("lac.*.bw"))) == 18
    scored = [line.split("\t") for line in Path("scored.vcf").read_text().splitlines() if line[0] != "#"]
    assert ["DNAMAMBA_LLR=" in fields[7] for fields in scored] == [True, True, True, False]
    assert "DNAMAMBA_SKIPPED=ref_mismatch" in scored[3][7]
    table = polars.read_csv("scored.tsv", separator="\t")
    assert table["id"].to_list() == ["two_alleles", "two_alleles", "deletion", "insertion", "wrong_REF"]
    assert scope["scores"]["llr"].to_list()[:4] == pytest.approx(table["llr"].to_list()[:4], abs=1e-5)
    assert scope["track"].shape == (1500,)


def test_every_document_and_notebook_is_in_the_menu() -> None:
    """And every entry of the menu is there; `docs/flags.md` is made by the hook."""

    def entries(node: object) -> Iterator[str]:
        if isinstance(node, str):
            yield node
        elif isinstance(node, list | dict):
            for each in node.values() if isinstance(node, dict) else node:
                yield from entries(each)

    found = list(entries(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]))
    made = {"docs/flags.md"}
    assert [name for name in found if name not in made and not (ROOT / name).is_file()] == []
    paths = [
        *ROOT.glob("docs/*.md"),
        *ROOT.glob("notebooks/*.ipynb"),
        *ROOT.glob("*.md"),
        *ROOT.glob("[a-z]*/README.md"),
    ]
    assert {path.relative_to(ROOT).as_posix() for path in paths} - set(found) == set()


def test_every_column_of_scored_variants_is_explained() -> None:
    rows = [line for line in (ROOT / "docs" / "file_formats.md").read_text().splitlines() if line.startswith("| `DNA")]
    for column, (name, _) in score_output._INFO.items():
        assert any(f"`DNAMAMBA_{name}`" in row and f"`{column}`" in row for row in rows), column


def test_pages_that_are_made(tmp_path: Path) -> None:
    """Notebooks with their pictures and tables, and the flags of all verbs; only what lies in the repository is copied
    from links."""
    pytest.importorskip("mkdocs")
    spec = importlib.util.spec_from_file_location("pages", ROOT / "docs" / "pages.py")
    assert spec is not None and spec.loader is not None
    pages = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(pages)
    path = ROOT / "notebooks" / "04_training_curves.ipynb"
    text, pictures = pages.notebook(path)
    assert list(pictures) == [f"04_training_curves-{number}.png" for number in (1, 2)]
    assert all(data.startswith(b"\x89PNG") and f"]({name})" in text for name, data in pictures.items())
    cells = json.loads(path.read_text())["cells"]
    assert text.count("```python\n") == sum(cell["cell_type"] == "code" for cell in cells)
    assert "best" in text.partition("```text\n")[2].partition("```")[0]
    flags = pages.flags()
    assert re.findall(r"^## (\w+)$", flags, re.MULTILINE) == list(verbs.VERBS)
    assert "- `--recompute none|cheap|all` What the backward pass" in flags and "- `--out OUT`" in flags
    assert pages._plain("*.bed  of\nx_y <DEL> [1]") == r"\*.bed of x\_y \<DEL> \[1]"
    (tmp_path / "a.md").write_text("[b](b.md#x) [c](c.txt) ![d](../d.png) [e](https://e.org/b.md) [f](#f) [g](gone.md)")
    for name in ("b.md", "c.txt"):
        (tmp_path / name).touch()
    assert [each.name for each in pages.targets(tmp_path / "a.md", tmp_path)] == ["b.md", "c.txt"]
