"""The house keeps its word: documented commands are those that CI runs and that parse; pins, versions, paths."""

import re
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import dnamamba
from dnamamba.verbs import VERBS

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("data/*.md"), *ROOT.glob("pipelines/**/*.md")])


def tracked_files():
    """What git knows or would add; the test is skipped outside of a checkout."""
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=False,
    )
    if listing.returncode:
        pytest.skip("not a git checkout")
    return [path for name in listing.stdout.decode().split("\0") if name and (path := ROOT / name).is_file()]


def documented_commands():
    """(document, verb, flags) of each `python -m dnamamba.VERB ...` and `dnamamba VERB ...`."""
    for document in DOCUMENTS:
        text = re.sub(r"\\\n\s*", " ", document.read_text())
        for found in re.finditer(r"(?:python -m dnamamba\.|(?<![\w/.])dnamamba )([a-z_]+)([^`\n]*)", text):
            if found[1] in VERBS or "python -m" in found[0]:
                yield document.name, found[1], re.findall(r"(?<!\S)--[a-z_.]+", found[2])


def documented_scripts():
    """(place, script, flags) of each `python FOLDER/SCRIPT.py ...` in the documents and in the scripts' own heads."""
    scripts = [path for folder in ("pipelines", "data", "kernels/bench") for path in ROOT.glob(f"{folder}/*.py")]
    for place in [*DOCUMENTS, ROOT / "kernels" / "README.md", *scripts]:
        text = place.read_text()
        if place.suffix == ".py":
            text = text.split('"""')[1]
        text = re.sub(r"\\+\n\s*", " ", text)
        for found in re.finditer(r"python ((?:pipelines|data|kernels/bench)/\w+\.py)([^`\n]*)", text):
            yield str(place.relative_to(ROOT)), found[1], re.findall(r"(?<!\S)\[?(--[a-z_.]+)", found[2])


def output_of(*command):
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout


@cache
def help_of(verb):
    return output_of(sys.executable, "-m", f"dnamamba.{verb}", "--help")


def test_ci_runs_the_commands_of_the_readme():
    readme = (ROOT / "README.md").read_text()
    blocks = re.findall(r"^<!-- ci: (\w+) -->\n```bash\n(.*?)```$", readme, re.MULTILINE | re.DOTALL)
    listed = output_of(ROOT / ".ci" / "run", "--list").splitlines()
    assert [name for name, _ in blocks] == ["train", "test"]
    assert [command.strip() for _, command in blocks] == listed[:2]
    assert listed[2:] == ["ruff check", "ruff format --check", "mypy", "lint-imports"]


@pytest.mark.parametrize(("document", "verb", "flags"), sorted({(d, v, tuple(f)) for d, v, f in documented_commands()}))
def test_documented_commands_parse(document, verb, flags):
    known = set(re.findall(r"--[a-z_.]+", help_of(verb)))
    assert set(flags) <= known


def test_documented_scripts_have_their_flags():
    """By their text, not by asking them: each would have to import torch first."""
    found = list(documented_scripts())
    assert len({script for _, script, _ in found}) > 10
    for place, script, flags in found:
        assert (ROOT / script).is_file(), f"{place}: {script}"
        if script == "pipelines/simple_models.py":
            continue  # takes the flags of finetune
        known = set(re.findall(r'"(--\w+)"', (ROOT / script).read_text()))
        assert set(flags) <= known, f"{place}: {script}"


def test_every_verb_and_every_script_is_documented():
    guide = (ROOT / "GUIDE.md").read_text()
    assert [verb for verb in VERBS if not re.search(rf"dnamamba[. ]{verb}\b", guide)] == []
    table = (ROOT / "pipelines" / "README.md").read_text()
    assert [path.name for path in ROOT.glob("pipelines/*.py") if f"`{path.name}`" not in table] == []


def test_documents_name_files_that_exist():
    for place in re.findall(r"`(\w+/[\w/]+\.\w+)", (ROOT / "ARCHITECTURE.md").read_text()):
        assert (ROOT / place).exists() or (ROOT / "dnamamba" / place).exists(), f"ARCHITECTURE.md: {place}"
    for document in [*DOCUMENTS, ROOT / "kernels" / "README.md"]:
        for target in re.findall(r"\]\(([^)#]+)\)", document.read_text()):
            if "://" not in target:
                assert (document.parent / target).exists(), f"{document.name}: {target}"


def test_nothing_names_the_machine_it_was_written_on():
    places = "|".join(["wo" + "rk", "op" + "t", "ro" + "ot", "ho" + "me"])
    index = "py" + "pi.org|python" + "hosted"
    forbidden = re.compile(rf"(?<![\w.~$}}\]])/(?:{places})/\w|{index}")
    for path in tracked_files():
        try:
            text = path.read_text()
        except UnicodeDecodeError:
            continue
        found = forbidden.search(text)
        assert found is None, f"{path.relative_to(ROOT)}: {found[0]}"


def test_version_stands_in_one_voice():
    assert PROJECT["version"] == dnamamba.__version__
    assert "## [Unreleased]" in (ROOT / "CHANGELOG.md").read_text()


def test_every_dependency_is_pinned_inside_its_range():
    pins = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            name, _, version = line.partition("==")
            assert version, f"constraints.txt: {line} pins nothing"
            pins[canonicalize_name(name)] = version
    extras = PROJECT["optional-dependencies"].values()
    for text in [*PROJECT["dependencies"], *(text for extra in extras for text in extra)]:
        requirement = Requirement(text)
        if requirement.name == PROJECT["name"]:
            continue  # an extra that takes in another
        name = canonicalize_name(requirement.name)
        assert name in pins, f"{name} is not in constraints.txt"
        assert pins[name] in requirement.specifier, f"{name}: {pins[name]} is outside of {requirement.specifier}"


def test_licences_are_shipped():
    assert "Apache License" in (ROOT / "LICENSE").read_text()[:200]
    for name in PROJECT["license-files"]:
        assert (ROOT / name).is_file()
