"""Resuming a run: which settings it had, which of them may change on the way, and whether its data are the same.

What may change is said at each setting (`on_resume` of `dnamamba.settings.fields.setting`). Files are known by the
fingerprints of what is in them, which the run has recorded, never by their names: run folder, genomes, tables and
checkpoints may move.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from dnamamba.errors import InputError
from dnamamba.formats.files import PROVENANCE, read_json
from dnamamba.runs.folder import RunFolder
from dnamamba.settings.fields import Settings, as_plain, flat, named_fields, plain
from dnamamba.settings.parser import Parser
from dnamamba.settings.yaml_files import read_yaml

T = TypeVar("T", bound=Settings)

DATA = "data.json"
"""In the run folder: the fingerprints of what the run reads, written before the first step."""


def with_stored_settings(parser: Parser[T], out: Path | None, arguments: Sequence[str] | None) -> T:
    """The settings of the run folder `out` to resume, below the command line's. `InputError` without such a run."""
    config, values = stored_values(parser, out)
    return parser.parse(arguments, stored=(config, values))


def stored_values(parser: Parser[Any], out: Path | None) -> tuple[Path, dict[str, Any]]:
    """The config.yaml of the run folder `out` and its settings by their dotted names. `InputError` without such a
    run."""
    if out is None:
        raise InputError("--resume: name the run folder to resume by --out")
    config = RunFolder(out).config
    if not config.is_file():
        raise InputError(f"{out}: no run to resume there (config.yaml is missing)")
    older = {name: known.absent for name, known in parser.names.items() if known.absent is not known.default}
    return config, older | stored_settings(config, parser.settings)


def stored_settings(config: Path, settings: type) -> dict[str, Any]:
    """What a run's config.yaml says, by the dotted names of the dataclass's fields. Raises `InputError` for a setting
    that this version does not have, naming the version that wrote it."""
    names = named_fields(settings)
    content = read_yaml(config)
    if not isinstance(content, dict):
        raise InputError(f"{config}: not a mapping of settings, which every run has; begin a new run")
    found = flat(content, names)
    for name in found:
        if name not in names:
            raise InputError(
                f"{config}: unknown setting {name!r}, written by dnamamba {_version(config.parent)}; "
                "resume it with that version, or begin a new run"
            )
    return found


def _version(folder: Path) -> str:
    try:
        return str(read_json(folder / "environment.json")["versions"]["dnamamba"])
    except (InputError, KeyError, TypeError):
        return "of an unknown version"


def kept_with_truncation(resolved: Any, config: Path) -> dict[str, str]:
    """For `refuse_changes`: exact gradients are the same by any chunks, truncated ones depend on them."""
    before = stored_settings(config, type(resolved)).get("backprop")
    is_truncated = "truncated" in (resolved.backprop, before)
    return dict.fromkeys(("backprop", "chunk"), "with truncated gradients") if is_truncated else {}


def refuse_changes(
    requested: Settings, resolved: Settings, config: Path, *, kept: Mapping[str, str], files: bool
) -> None:
    """Raises `InputError` naming the settings that a resumed run must keep but that differ from its config.yaml.

    Args:
        requested, resolved: the settings now, as given and with every default filled in. What the file does not
            name is younger than the run, and must be given as it was before it could be.
        kept: settings that may not change either, though their fields allow it, and which runs those are.
        files: compare the names of files too: where the run has recorded no fingerprints, they are all there is.
    """
    names = named_fields(type(requested))
    stored = stored_settings(config, type(requested))
    given, now = (flat(as_plain(each), names) for each in (requested, resolved))
    changed, runs = [], []
    for name, known in names.items():
        may_differ = known.on_resume == "free" or (known.on_resume == "files" and not files)
        if may_differ and name not in kept:
            continue
        absent = plain(known.absent)
        is_stored = name in stored
        before, after = stored.get(name, absent), (now if is_stored else given).get(name, absent)
        if before != after:
            changed.append(f"--{name} (was {before!r}, now {after!r})")
            runs.append(kept.get(name, ""))
    if changed:
        which = "".join(f" {run}" for run in dict.fromkeys(filter(None, runs)))
        raise InputError(f"{config}: a resumed run{which} keeps its settings; changed: {', '.join(changed)}")


def recorded_splits(folder: RunFolder) -> str | None:
    """The fingerprint of genomes, splits and weights that a pretraining run has recorded; None for one of an earlier
    version that was stopped before its first checkpoint."""
    last = folder.last_checkpoint()
    source = folder.path / DATA if last is None else last / PROVENANCE
    return read_json(source)["splits"] if source.is_file() else None


def refuse_other_splits(folder: RunFolder, recorded: str | None, fingerprint: str) -> None:
    """Raises `InputError` when the run has recorded other genomes, splits or weights than `fingerprint` says."""
    if recorded not in (None, fingerprint):
        raise InputError(
            f"{folder.path}: a resumed run keeps its data, but a genome file, a BED file or the mixture has "
            "changed since; put it back, or begin a new run"
        )


def refuse_fewer_steps(folder: RunFolder, max_steps: int) -> None:
    """Raises `InputError` when the run's last checkpoint lies beyond `max_steps`."""
    if (last := folder.last_checkpoint()) is None:
        return
    step = read_json(last / PROVENANCE)["step"]
    if step > max_steps:
        raise InputError(f"--max_steps: {max_steps}, but {folder.path} is at step {step} already")
