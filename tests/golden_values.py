"""What `golden.py` keeps of files, and how two recordings of them are compared.

Every file becomes texts and arrays, without what differs from run to run, which is left out by name. A recording holds
of each a digest of all its values, and the values themselves: all of them up to a limit, else as many spread evenly.
"""

import contextlib
import csv
import gzip
import hashlib
import io
import json
import platform
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

# --- What is left out, by name -------------------------------------------------------------------------------------

VOLATILE = frozenset(
    {
        *("seconds", "seconds_since_row", "read_at", "test_read_at", "written", "mtime_ns", "checksum"),
        *("tokens_per_second", "examples_per_second", "bases_per_second", "data_wait_fraction"),
        *("peak_fraction", "peak_memory_gib", "python", "platform", "cpu_count", "device", "devices"),
        *("versions", "version", "commit", "git_commit", "command", "pytorch-lightning_version"),
        "loops",  # Lightning's own counters
    }
)
"""Keys of JSON and of trainer states, and columns of tables."""
VOLATILE_LINES = re.compile(
    r"bases/s|examples/s|\bin \d[\d:.]* ?s\b|, \d+:\d\d$|^ *(estimate|kernels|device|devices|training|versions|written"
    r"|commit|command|took|speed)\b|^##dnamamba|^##source|^##bcftools|^ *\"(version|commit)"
)
"""Lines of texts: times, speeds, machines, versions."""
ONLY_THERE = re.compile(r"\.png$|\.tbi$|\.csi$|\.fai$|\.gzi$|events\.out\.tfevents")
"""Files of which it is recorded that they are there."""
DIGEST = re.compile(r"(?<![\w.])[0-9a-f]{16,}(?![\w.])")
"""Of weights: the same bits have the same, anything else another, so that the numbers themselves must be compared."""
NUMBER = re.compile(r"(?<![\w.])-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?(?![\w.])")


# --- From files to texts and arrays --------------------------------------------------------------------------------

Content = dict[str, list[str] | np.ndarray]
"""Name of a file, or file:part -> its lines or its values."""


def contents(folder: Path, work: Path) -> Content:
    """All files below `folder`, links followed by name alone."""
    found: Content = {}
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        if any(part.startswith(".") for part in relative.parts) or any(p.is_symlink() for p in path.parents):
            continue
        name = re.sub(r"\d{8}-\d{6}|(?<=tfevents).*", "TIME", str(relative))
        if path.is_symlink():
            found[name] = [f"-> {path.readlink()}"]
        elif path.is_file():
            for part, value in reduce_file(path).items():
                full = f"{name}:{part}" if part else name
                found[full] = [line.replace(str(work), "WORK") for line in value] if isinstance(value, list) else value
    return found


def reduce_file(path: Path) -> Content:
    """The parts of a file that do not differ from run to run; "" is the whole."""
    if ONLY_THERE.search(path.name):
        return {"": [f"{path.suffix or 'file'}, not empty: {path.stat().st_size > 0}"]}
    suffix = path.suffix
    if suffix == ".gz":
        suffix = Path(path.stem).suffix
        raw = gzip.decompress(path.read_bytes())
    else:
        raw = path.read_bytes()
    if suffix == ".bw":
        return reduce_bigwig(path)
    if suffix == ".parquet":
        return reduce_parquet(path)
    if suffix == ".npz":
        with np.load(path) as arrays:
            return split_kinds({name: arrays[name] for name in arrays.files})
    if suffix == ".safetensors":
        from safetensors.numpy import load_file

        return split_kinds(load_file(path))
    if suffix in (".ckpt", ".pt"):
        import torch

        return split_kinds(flat(torch.load(path, weights_only=True)))
    if suffix == ".bin":
        return {"": np.frombuffer(raw, np.uint8)}
    if suffix == ".json":
        return split_kinds(flat(json.loads(raw)))
    if suffix in (".csv", ".tsv"):
        return reduce_table(raw.decode(), "\t" if suffix == ".tsv" else ",")
    return {"": stable_lines(raw.decode())}


def stable_lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if not VOLATILE_LINES.search(line)]


def reduce_table(text: str, delimiter: str) -> Content:
    rows = list(csv.reader(io.StringIO(text), delimiter=delimiter))
    keep = [index for index, name in enumerate(rows[0]) if name not in VOLATILE]
    return {"": [delimiter.join(row[index] for index in keep if index < len(row)) for row in rows]}


def reduce_bigwig(path: Path) -> Content:
    import pyBigWig

    found: Content = {}
    with contextlib.closing(pyBigWig.open(str(path))) as file:
        found["contigs"] = [f"{name} {length}" for name, length in file.chroms().items()]
        for name, length in file.chroms().items():
            found[name] = np.asarray(file.values(name, 0, length), np.float32)
            bins = [file.stats(name, type=kind, nBins=20) for kind in ("mean", "min", "max", "coverage")]
            found[f"{name}:zoom"] = np.array(bins, np.float64)
    return found


def reduce_parquet(path: Path) -> Content:
    import polars

    table = polars.read_parquet(path)
    found: Content = {"schema": [f"{name} {kind}" for name, kind in table.schema.items()]}
    for column in table.drop([name for name in table.columns if name in VOLATILE]):
        while isinstance(column.dtype, polars.List | polars.Array):
            found[f"{column.name}:lengths"] = (
                column.list.len().to_numpy() if column.dtype == polars.List else np.array([column.dtype.size])
            )
            column = column.explode()
        if column.dtype.is_numeric():
            missing = column.is_null().to_numpy()
            found[f"{column.name}:missing"] = missing
            found[column.name] = column.fill_null(0).to_numpy()
        else:
            found[column.name] = [str(value) for value in column.to_list()]
    return found


def flat(value: Any, name: str = "") -> dict[str, Any]:
    """Nested dicts and lists as path -> leaf, without what is volatile."""
    if isinstance(value, dict):
        items = [(str(key), item) for key, item in value.items() if str(key) not in VOLATILE]
    elif isinstance(value, list | tuple):
        items = [(str(index), item) for index, item in enumerate(value)]
    else:
        return {name: value.detach().cpu().numpy() if hasattr(value, "detach") else value}
    leaves: dict[str, Any] = {}
    for key, item in items:
        leaves |= flat(item, f"{name}/{key}")
    return leaves or {name: type(value).__name__}


def split_kinds(leaves: dict[str, Any]) -> Content:
    """Arrays each by itself; all else as one text, a line a leaf."""
    found: Content = {}
    lines = []
    for name, leaf in leaves.items():
        if isinstance(leaf, np.ndarray) and leaf.dtype.kind in "biuf":
            found[name] = leaf
        elif isinstance(leaf, np.ndarray):
            found[name] = [str(item) for item in leaf.ravel().tolist()]
        else:
            lines.append(f"{name}: {leaf!r}")
    return found | ({"": lines} if lines or not found else {})


# --- Recordings ----------------------------------------------------------------------------------------------------


class Output(NamedTuple):
    """One text or array of a recording."""

    digest: str
    shape: list[int]
    dtype: str
    """`text` for lines"""
    kept: list[str] | np.ndarray
    """All, or some spread evenly"""


class Recording(NamedTuple):
    machine: dict[str, str]
    outputs: dict[str, dict[str, Output]]
    """Case -> name -> output"""


def reduced(value: list[str] | np.ndarray, limit: int) -> Output:
    if isinstance(value, list):
        digest = hashlib.sha256("\n".join(value).encode()).hexdigest()
        return Output(digest, [len(value)], "text", [value[i] for i in indices(len(value), limit)])
    value = np.ascontiguousarray(value)
    digest = hashlib.sha256(value.tobytes()).hexdigest()
    return Output(digest, list(value.shape), value.dtype.str, value.reshape(-1)[indices(value.size, limit)])


def indices(size: int, limit: int) -> list[int]:
    return list(range(size)) if size <= limit else np.linspace(0, size - 1, limit).astype(int).tolist()


def save(recording: Recording, file: Path) -> None:
    """Texts and digests in one JSON, kept values by dtype in one array each: thousands of members would weigh more."""
    values: dict[str, list[np.ndarray]] = {}
    index: dict[str, Any] = {}
    for case, outputs in recording.outputs.items():
        index[case] = {}
        for name, item in outputs.items():
            kept: Any = item.kept
            if isinstance(kept, np.ndarray):
                values.setdefault(item.dtype, []).append(kept)
                kept = len(kept)
            index[case][name] = [item.digest[:32], item.shape, item.dtype, kept]
    text = json.dumps({"machine": recording.machine, "cases": index}, ensure_ascii=False).encode()
    arrays = {dtype: np.concatenate(parts) for dtype, parts in values.items()}
    file.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(file, index=np.frombuffer(text, np.uint8), **arrays)


def load(file: Path) -> Recording:
    with np.load(file) as arrays:
        index = json.loads(arrays["index"].tobytes())
        values = {name: arrays[name] for name in arrays.files if name != "index"}
    taken = dict.fromkeys(values, 0)
    cases: dict[str, dict[str, Output]] = {}
    for case, outputs in index["cases"].items():
        cases[case] = {}
        for name, (digest, shape, dtype, kept) in outputs.items():
            if isinstance(kept, int):
                begin, taken[dtype] = taken[dtype], taken[dtype] + kept
                kept = values[dtype][begin : taken[dtype]]
            cases[case][name] = Output(digest, shape, dtype, kept)
    return Recording(index["machine"], cases)


def machine(threads: int = 1) -> dict[str, str]:
    """What the last bits of fp32 arithmetic may depend on."""
    import numba
    import torch

    # Its name is not enough: virtual machines call several families "AMD EPYC", and their last bits differ.
    lines = [[part.strip() for part in line.split(":", 1)] for line in _lines("/proc/cpuinfo") if ":" in line]
    described = dict(reversed(lines))
    names = [f"{name.replace('cpu ', '')} {described[name]}" for name in ("cpu family", "model") if name in described]
    model = ", ".join([described.get("model name", platform.processor()), *names])
    return {
        "torch": torch.__version__,
        "capability": torch.backends.cpu.get_cpu_capability(),
        "numba": numba.__version__,
        "numpy": np.__version__,
        "cpu": model,
        "threads": str(threads),
    }


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


# --- Comparing -----------------------------------------------------------------------------------------------------


def differences(
    before: dict[str, Output], now: dict[str, Output], *, rtol: float = 0.0, atol: float = 0.0
) -> Iterator[str]:
    """A line for each output of a case that differs. Without tolerances all bits count; with them, what was kept."""
    exact = rtol == atol == 0
    for name in sorted(before.keys() | now.keys()):
        if name not in before or name not in now:
            yield f"{name}: {'is new' if name in now else 'is missing'}"
    for name in sorted(before.keys() & now.keys()):
        old, new = before[name], now[name]
        if old.dtype == new.dtype and old.shape == new.shape and old.digest[:32] == new.digest[:32]:
            continue
        if (old.dtype, old.shape) != (new.dtype, new.shape):
            yield f"{name}: {old.dtype} {old.shape}, now {new.dtype} {new.shape}"
        elif old.dtype == "text":
            yield from _text_difference(name, old.kept, new.kept, exact, rtol, atol)
        else:
            yield from _array_difference(name, np.asarray(old.kept), np.asarray(new.kept), exact, rtol, atol)


def _array_difference(
    name: str, old: np.ndarray, new: np.ndarray, exact: bool, rtol: float, atol: float
) -> Iterator[str]:
    if not exact and np.allclose(old, new, rtol, atol, equal_nan=True):
        return
    if (np.isnan(old) != np.isnan(new)).any():
        yield f"{name}: values are missing elsewhere"
        return
    yield f"{name}: {_largest(old, new)}"


def _largest(old: np.ndarray, new: np.ndarray) -> str:
    one, other = np.nan_to_num(old.astype(np.float64)), np.nan_to_num(new.astype(np.float64))
    apart = np.abs(one - other)
    if not apart.any():
        return "differs, but not in the values that were kept"
    relative = apart[apart > 0] / np.maximum(np.abs(one), np.abs(other))[apart > 0]
    return f"largest difference {apart.max():.3g}, relative {relative.max():.3g}, of {np.abs(one).max():.3g}"


def _text_difference(
    name: str, old: Sequence[str], new: Sequence[str], exact: bool, rtol: float, atol: float
) -> Iterator[str]:
    numbers: list[tuple[float, float]] = []
    for one, other in zip(old, new, strict=True):
        if one == other:
            continue
        skeletons = [NUMBER.sub("#", DIGEST.sub("digest", line)) for line in (one, other)]
        if skeletons[0] != skeletons[1]:
            yield f"{name}: {one[:200]!r}, now {other[:200]!r}"
            return
        texts = [NUMBER.findall(DIGEST.sub("digest", line)) for line in (one, other)]
        for a, b in zip(*texts, strict=True):
            # Printed to a few digits: the last one may differ however close the numbers are.
            last = 0.0 if exact else max(_unit(a), _unit(b))
            if abs(float(a) - float(b)) > atol + last + rtol * abs(float(a)):
                numbers.append((float(a), float(b)))
    if numbers:
        yield f"{name}: {_largest(*np.array(numbers).T)}"
    elif exact:
        yield f"{name}: differs, but not in the numbers that were kept"


def _unit(text: str) -> float:
    digits, _, exponent = text.lower().partition("e")
    decimals = len(digits.partition(".")[2])
    return 10.0 ** (int(exponent or 0) - decimals) if decimals or exponent else 0.0
