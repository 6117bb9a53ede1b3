"""The recipes of a container and a conda environment install what pyproject.toml and constraints.txt say."""

import re
import tomllib
from pathlib import Path

import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PINS = {
    Requirement(line).name.lower(): Requirement(line).specifier
    for line in (ROOT / "constraints.txt").read_text().splitlines()
    if line and not line.startswith("#")
}


def test_every_dependency_has_a_pin_within_its_range():
    for text in PROJECT["project"]["dependencies"]:
        wanted = Requirement(text)
        (pin,) = PINS[wanted.name.lower()]
        assert pin.operator == "==" and wanted.specifier.contains(pin.version), text


def test_the_container_installs_the_pinned_set_from_files_that_it_copies():
    recipe = (ROOT / "Dockerfile").read_text()
    python = re.search(r"^FROM python:([\d.]+)", recipe, re.MULTILINE)[1]
    assert SpecifierSet(PROJECT["project"]["requires-python"]).contains(f"{python}.0")
    assert re.search(r"^RUN pip install .*-c constraints\.txt \.$", recipe, re.MULTILINE)
    copied = {name for line in re.findall(r"^COPY (.+) \S+$", recipe, re.MULTILINE) for name in line.split()}
    needed = {"pyproject.toml", "constraints.txt", PROJECT["project"]["readme"], "dnamamba", "kernels"}
    needed |= {name.split("/")[0] for name in PROJECT["project"]["license-files"]}
    assert copied == needed
    assert set(PROJECT["tool"]["setuptools"]["packages"]["find"]["where"]) == {".", "kernels"}
    sent = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert sent == needed and all((ROOT / name).exists() for name in needed)
    (script,) = PROJECT["project"]["scripts"]
    assert f'ENTRYPOINT ["{script}"]' in recipe


def test_the_conda_environment_installs_the_pinned_set():
    content = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert content["name"] == PROJECT["project"]["name"]
    python, pip, of_pip = content["dependencies"]
    assert pip == "pip" and of_pip["pip"] == ["--constraint constraints.txt", "--editable ."]
    versions = SpecifierSet(python.removeprefix("python "))
    lowest = PROJECT["project"]["requires-python"].removeprefix(">=")
    first, last = re.search(r"Python (3\.\d+)–(3\.\d+)", (ROOT / "README.md").read_text()).groups()
    assert first == lowest and versions.contains(f"{first}.0") and versions.contains(f"{last}.9")
    for outside in (f"3.{int(first[2:]) - 1}.9", f"3.{int(last[2:]) + 1}.0"):
        assert not versions.contains(outside)
