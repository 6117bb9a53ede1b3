"""What back-ticked names in documents and docstrings may mean, read from the source by its syntax: nothing is imported.

A name is known where something in the tree defines it: a module, class, function, argument, variable, attribute or
import, a file, or a string without spaces (a column, a file that a job writes, a flag). Docstrings define nothing.
"""

import ast
import builtins
import keyword
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

PACKAGES = ("dnamamba", "dnamamba_kernels", "tests")
FOREIGN = frozenset(
    {
        "_no_weight_decay",
        "bincount",
        "register_autograd",
        "METRIC_std",
        "chr20.json",
        "--len",
        "tokens.split(length, dim=1)",
        *("tokens.bin", "model.safetensors", "DNAMAMBA", "PREFIX.STRAND_TRACK.bw", "PREFIX.json"),
        *("DNAMAMBA_LLR_FWD", "DNAMAMBA_LLR_REV", "DNAMAMBA_AT", "DNAMAMBA_AFTER", "DNAMAMBA_DIST", "DNAMAMBA_PCT"),
    }
)
"""Names of other people's programs, of examples, and those in files that are put together when they are written"""
FILE_ENDINGS = (".py", ".md", ".toml", ".yaml", ".json", ".cuh", ".cu", ".csv", ".tsv", ".png", ".bed", ".ipynb")


@dataclass
class Tree:
    """The names of the tree."""

    files: frozenset[str]
    """Paths relative to the root"""
    names: set[str] = field(default_factory=set)
    modules: dict[str, set[str]] = field(default_factory=dict)
    """Dotted module -> what it defines or imports, and its submodules"""
    classes: dict[str, set[str]] = field(default_factory=dict)
    """Class -> its members, those of base classes included"""
    strings: set[str] = field(default_factory=set)
    """Strings without spaces, such as names of columns, files and flags"""


def dotted(path: str) -> str:
    """`dnamamba/genome/vcf.py` -> `dnamamba.genome.vcf`"""
    return path.removeprefix("kernels/").removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def docstrings(source: ast.AST) -> Iterator[ast.Constant]:
    """Strings that stand alone: docstrings of modules, classes, functions, fields and constants."""
    for node in ast.walk(source):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield node.value


def read_tree(root: Path, files: Iterable[str], without_strings_of: frozenset[str] = frozenset()) -> Tree:
    tree = Tree(frozenset(files))
    bases: dict[str, set[str]] = {}
    for name in sorted(tree.files):
        tree.names |= set(re.findall(r"\w+", name))
        if name.endswith((".cuh", ".yaml", ".toml", ".tsv", "Snakefile")):
            text = (root / name).read_text()
            tree.names |= set(re.findall(r"\w+", text))
            tree.strings |= set(re.findall(r"[\w./-]+", text))
        if not name.endswith(".py"):
            continue
        source = ast.parse((root / name).read_text())
        tree.modules.setdefault(dotted(name), set()).update(_defined(source.body))
        spoken = {id(text) for text in docstrings(source)}
        for node in ast.walk(source):
            if isinstance(node, ast.ClassDef):
                tree.classes.setdefault(node.name, set()).update(_members(node))
                bases.setdefault(node.name, set()).update(base.id for base in node.bases if isinstance(base, ast.Name))
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                if id(node) not in spoken and name not in without_strings_of and " " not in node.value.strip():
                    tree.names |= set(re.findall(r"\w+", node.value))
                    tree.strings.add(node.value)
            else:
                tree.names |= _named(node)
    for module in list(tree.modules):
        parent, _, last = module.rpartition(".")
        if parent:
            tree.modules.setdefault(parent, set()).add(last)
    for _ in range(4):  # as deep as our classes inherit
        for name, parents in bases.items():
            for parent in parents & tree.classes.keys():
                tree.classes[name] |= tree.classes[parent]
    return tree


def _named(node: ast.AST) -> set[str]:
    """What one node defines, imports or passes by name."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return {node.name}
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
        return {node.id}
    if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
        return {node.attr}
    if isinstance(node, ast.arg | ast.keyword):
        return {node.arg or ""}
    if isinstance(node, ast.alias):
        return {*node.name.split("."), node.asname or ""}
    return set()


def _defined(body: list[ast.stmt]) -> set[str]:
    """The names of a module or class body, also those defined under `if` and `try`."""
    found: set[str] = set()
    for statement in body:
        if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(statement.name)
        elif isinstance(statement, ast.Import | ast.ImportFrom):
            found |= {alias.asname or alias.name for alias in statement.names}
        else:
            stored = (node for node in ast.walk(statement) if isinstance(node, ast.Name))
            found |= {node.id for node in stored if isinstance(node.ctx, ast.Store)}
            found |= {node.name for node in ast.walk(statement) if isinstance(node, ast.FunctionDef)}
    if "__all__" in found:
        found |= {text.value for s in body for text in ast.walk(s) if isinstance(text, ast.Constant)}
    return found


def _members(node: ast.ClassDef) -> set[str]:
    attributes = (part for part in ast.walk(node) if isinstance(part, ast.Attribute))
    return _defined(node.body) | {part.attr for part in attributes if isinstance(part.ctx, ast.Store)}


def back_ticked(text: str) -> Iterator[str]:
    """What stands in single back-ticks, outside of fenced blocks."""
    text = re.sub(r"^\s*```.*?^\s*```$", "", text, flags=re.MULTILINE | re.DOTALL)
    for found in re.finditer(r"`([^`]+)`", text):
        yield " ".join(found[1].split())


def unknown(text: str, tree: Tree) -> str | None:
    """What of a back-ticked `text` looks like one of our names and is not in the tree; None where all is well."""
    if text in FOREIGN or keyword.iskeyword(text) or hasattr(builtins, text) or re.fullmatch("[0-9a-f]{64}", text):
        return None
    if text.startswith(("--", "dnamamba ", "python -m dnamamba.")):
        return next(
            (flag for flag in re.findall(r"(?<!\S)--[a-z_.]+(?![a-z_.-])", text) if not _is_flag(flag, tree)), None
        )
    text = re.sub(r"\(.*\)$", "", text)
    if re.fullmatch(r"[\w.-]+(/[\w.-]+)*", text) and text.endswith(FILE_ENDINGS):
        return None if _is_file(text, tree) else text
    if re.fullmatch(r"\w+(\.\w+)+", text) and not text[0].isdigit():
        return None if _is_dotted(text.split("."), tree) else text
    if re.fullmatch(r"[A-Za-z_]\w{2,}", text):
        return None if text in tree.names else text
    return None


def _is_flag(flag: str, tree: Tree) -> bool:
    return flag in tree.strings or set(flag.removeprefix("--").split(".")) <= tree.names


def _is_file(path: str, tree: Tree) -> bool:
    """A file of the tree, by the end of its path, or one that a job reads or writes by that name."""
    return any(f"/{name}".endswith(f"/{path}") for name in tree.files | tree.strings)


def _is_dotted(parts: list[str], tree: Tree) -> bool:
    if parts[0] in PACKAGES:
        module = next(m for n in range(len(parts), 0, -1) if (m := ".".join(parts[:n])) in tree.modules or n == 1)
        rest = parts[module.count(".") + 1 :]
        return not rest or (rest[0] in tree.modules.get(module, ()) and all(part in tree.names for part in rest[1:]))
    if parts[0] in tree.classes:
        return parts[1] in tree.classes[parts[0]]
    homes = [found for module, found in tree.modules.items() if module.rpartition(".")[2] == parts[0]]
    if homes:
        owners = {name for found in homes for name in found} | {f"{parts[0].title()}Settings"}
        members = (tree.classes[name] for name in owners & tree.classes.keys())
        return any(parts[1] in found for found in [*homes, *members])
    return all(part in tree.names for part in parts if "_" in part)
