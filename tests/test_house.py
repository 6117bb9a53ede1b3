"""What the documents say is true: commands parse, names and files exist, calls fit, pins and versions agree."""

import ast
import re
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path

import pytest
from names_in_tree import back_ticked, docstrings, read_tree, unknown
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import dnamamba
from dnamamba.verbs import VERBS

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PACKAGES = "dnamamba", "kernels/dnamamba_kernels"
DOCUMENTS = sorted(
    [
        *ROOT.glob("*.md"),
        *(path for folder in ("data", "docs", "kernels", "pipelines") for path in ROOT.glob(f"{folder}/**/*.md")),
    ]
)


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
    for place in [*DOCUMENTS, *scripts]:
        text = place.read_text()
        if place.suffix == ".py":
            text = text.split('"""')[1]
        text = re.sub(r"\\+\n\s*", " ", text)
        for found in re.finditer(r"python ((?:pipelines|data|kernels/bench)/\w+\.py)([^`\n]*)", text):
            yield str(place.relative_to(ROOT)), found[1], re.findall(r"(?<!\S)\[?(--[a-z_.]+)", found[2])


@cache
def tree():
    """The names of the tree; the strings of this file, which holds wrong names on purpose, do not count."""
    paths = (str(path.relative_to(ROOT)) for path in tracked_files())
    return read_tree(ROOT, paths, without_strings_of=frozenset({"tests/test_house.py"}))


def back_ticked_names():
    """(file, name) of all that stands in back-ticks in documents and docstrings; log and results are of the past."""
    for path in tracked_files():
        if path.suffix == ".md" and path.name != "LOG.md" and "results" not in path.parts:
            texts = [path.read_text()]
        elif path.suffix == ".py":
            texts = [text.value for text in docstrings(ast.parse(path.read_text()))]
        else:
            continue
        for text in texts:
            for name in back_ticked(text):
                yield str(path.relative_to(ROOT)), name


def python_blocks(document):
    blocks = re.findall(r"^```python\n(.*?)^```$", (ROOT / document).read_text(), re.MULTILINE | re.DOTALL)
    return "\n".join(blocks)


def wrong_calls(source):
    """What a documented example uses of `dnamamba` that is not there: names, methods, arguments.

    Variables are followed as far as documents need it: what `load`, `pretrain`, `finetune` and `Run.model` give.
    """
    gives = {"dnamamba.load": "Model", "dnamamba.pretrain": "Run", "dnamamba.finetune": "Run", "Run.model": "Model"}
    settings = {"dnamamba.pretrain": "PretrainSettings", "dnamamba.finetune": "FinetuneSettings"}
    kinds = {}
    wrong = []

    def callee(node):
        """`dnamamba.load`, `Model.embed`, …; None for what is not ours."""
        if not isinstance(node, ast.Attribute):
            return None
        if isinstance(node.value, ast.Name) and node.value.id == "dnamamba":
            return f"dnamamba.{node.attr}"
        owner = kind(node.value)
        return owner and f"{owner}.{node.attr}"

    def kind(node):
        if isinstance(node, ast.Name):
            return kinds.get(node.id)
        return gives.get(callee(node.func)) if isinstance(node, ast.Call) else None

    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            kinds[node.targets[0].id] = kind(node.value)
    for node in ast.walk(ast.parse(source)):
        name = callee(node)
        if name is not None:
            owner, _, attribute = name.partition(".")
            known = dnamamba.__all__ if owner == "dnamamba" else tree().classes[owner]
            wrong += [name] if attribute not in known else []
        if isinstance(node, ast.Call) and (called := callee(node.func)):
            taken = tree().classes[settings[called]] if called in settings else arguments_of(called.partition(".")[2])
            wrong += [f"{called}({word.arg}=)" for word in node.keywords if word.arg not in taken]
    return wrong


@cache
def arguments_of(name):
    source = ast.parse((ROOT / "dnamamba" / "api" / "model.py").read_text())
    found = [node.args for node in ast.walk(source) if isinstance(node, ast.FunctionDef) and node.name == name]
    return {argument.arg for arguments in found for argument in [*arguments.args, *arguments.kwonlyargs]}


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
    assert listed[2:] == ["ruff check", "ruff format --check", "mypy", "lint-imports", "mkdocs build --strict"]


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
        if script in ("pipelines/simple_models.py", "pipelines/train_for.py"):
            continue  # they take the flags of finetune and pretrain
        known = set(re.findall(r'"(--\w+)"', (ROOT / script).read_text()))
        assert set(flags) <= known, f"{place}: {script}"


def test_every_verb_and_every_script_is_documented():
    guide = "".join(path.read_text() for path in [ROOT / "GUIDE.md", *ROOT.glob("docs/*.md")])
    assert [verb for verb in VERBS if not re.search(rf"dnamamba[. ]{verb}\b", guide)] == []
    table = (ROOT / "pipelines" / "README.md").read_text()
    assert [path.name for path in ROOT.glob("pipelines/*.py") if f"`{path.name}`" not in table] == []


def test_documents_name_files_that_exist():
    for place in re.findall(r"`(\w+/[\w/]+\.\w+)", (ROOT / "ARCHITECTURE.md").read_text()):
        assert (ROOT / place).exists() or (ROOT / "dnamamba" / place).exists(), f"ARCHITECTURE.md: {place}"
    for document in [*DOCUMENTS, ROOT / "kernels" / "README.md"]:
        for target in re.findall(r"\]\(([^)#]+)\)", document.read_text()):
            if "://" not in target:
                # A file: the documentation site has no page for a folder.
                assert (document.parent / target).is_file(), f"{document.name}: {target}"


def test_names_in_back_ticks_exist():
    found = list(back_ticked_names())
    assert len(found) > 1000
    assert [f"{file}: {name}" for file, name in found if unknown(name, tree())] == []


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("dnamamba.genome.vcf.read_vcf", "dnamamba.genome.vcf.read_vcfs"),
        ("dnamamba.runs.resume", "dnamamba.training.resume"),
        ("dnamamba.load(…)", "dnamamba.unload(…)"),
        ("runs/resume.py", "training/resume.py"),
        ("summary.json", "summaries.json"),
        ("WindowPlan.length", "WindowPlan.longitude"),
        ("metrics.evaluate", "metrics.devaluate"),
        ("--length_warmup 0.5", "--length_cooldown 0.5"),
        ("dnamamba score --suffix 64", "dnamamba score --postfix 64"),
        ("validation_bits_per_base", "validation_bits_a_base"),
        ("InputError", "InputFault"),
    ],
)
def test_a_wrong_name_in_back_ticks_is_found(right, wrong):
    names = list(back_ticked(f"Read `{right}`,\nnot `{wrong}`."))
    assert names == [right, wrong]
    assert [name for name in names if unknown(name, tree())] == [wrong]


def test_prose_fits_120_columns():
    """Tables, code, and links alone on a line may be longer. The log is a lab book; programs write results."""
    found = []
    for path in (path for path in DOCUMENTS if path.name != "LOG.md" and "results" not in path.parts):
        fenced = False
        for number, line in enumerate(path.read_text().splitlines(), 1):
            fenced ^= line.lstrip().startswith("```")
            alone = line.startswith(("|", "    ")) or re.fullmatch(r"\s*(!?\[.*\]\(\S+\)|<\S+>)", line)
            if len(line) > 120 and not fenced and not alone:
                found.append(f"{path.relative_to(ROOT)}:{number}")
    assert found == []


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


@pytest.mark.parametrize(
    ("document", "calls"),
    [("README.md", 5), ("docs/python_api.md", 5), ("docs/tutorial.md", 2), ("kernels/README.md", 0)],
)
def test_documented_calls_fit_the_api(document, calls):
    source = python_blocks(document)
    assert source.count("model.") >= calls
    assert wrong_calls(source) == []


def test_a_wrong_call_is_found():
    source = (
        "run = dnamamba.pretrain(genome='a.fa', size=3)\nmodel = run.model()\nmodel.embed('A', pooling='last')\n"
        "model.guess('A')\ndnamamba.lode('runs/a').embed('A')\ndnamamba.load('runs/a').embed('A', pool='last')"
    )
    expected = ["dnamamba.lode", "dnamamba.pretrain(size=)", "Model.embed(pooling=)", "Model.guess"]
    assert sorted(wrong_calls(source)) == sorted(expected)


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


def classes(folder):
    """(module, name) of each class that a module below this folder defines at its top level."""
    for path in sorted((ROOT / folder).rglob("*.py")):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef):
                yield str(path.relative_to(ROOT)), node.name


def test_a_class_has_a_name_of_its_own():
    modules = {}
    for module, name in (found for folder in PACKAGES for found in classes(folder)):
        modules.setdefault(name, []).append(module)
    assert len(modules) > 100
    assert {name: found for name, found in modules.items() if len(found) > 1} == {}


def defined_names(folder):
    """(module, name) of all that the modules below this folder define: modules, classes, functions, arguments,
    variables and attributes."""
    for path in sorted((ROOT / folder).rglob("*.py")):
        module = str(path.relative_to(ROOT))
        yield module, path.stem
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef | ast.FunctionDef):
                yield module, node.name
            elif isinstance(node, ast.arg):
                yield module, node.arg
            elif isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
                yield module, node.id if isinstance(node, ast.Name) else node.attr
            elif isinstance(node, ast.alias) and node.asname:
                yield module, node.asname


def unwanted(name):
    """Whether one of the words of a name is among those that CONTRIBUTING says not to use."""
    words = "told|tells?|conjoin(ed|s)?|believed?|mend(s|ed)?|stretch(es)?|pieces?|turned|asked|beside|house|rooms?"
    parts = re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name)
    return name != "conjoin" and any(re.fullmatch(words, part.lower()) for part in parts)  # the name of a flag


def test_names_do_without_the_words_not_to_use():
    names = [found for folder in PACKAGES for found in defined_names(folder)]
    assert len(names) > 5000
    assert [found for found in names if unwanted(found[1])] == []


def test_an_unwanted_word_is_found():
    wrong = ["told", "is_turned", "StrandStretch", "_pieces", "conjoin_strands", "Asked", "mend"]
    assert [name for name in [*wrong, "conjoin", "masked", "returned", "untold"] if unwanted(name)] == wrong


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
