"""`dnamamba export`: a checkpoint of any format that dnamamba reads, in a format that it writes. Torch-free until it
does so."""

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Literal

from dnamamba.errors import InputError
from dnamamba.formats import WRITERS, Writer, load_checkpoint
from dnamamba.settings.options import PretrainedModelOptions


@dataclass(kw_only=True)
class ExportSettings(PretrainedModelOptions):
    """A pretrained model for other programs, or one of theirs as a checkpoint of dnamamba."""

    format: Literal["hf", "dnamamba"] = "hf"
    """hf: Hugging Face's MambaForCausalLM with its tokenizer, which transformers loads without trust_remote_code.
    dnamamba: a checkpoint folder of this program."""
    dtype: Literal["fp32", "bf16"] = "fp32"
    """How matrices are stored. bf16 takes half the space; it is what --precision bf16 rounds them to anyway. All else
    stays fp32. For --format dnamamba."""
    out: Path
    """Folder to write, which must not exist."""


def export(settings: ExportSettings) -> None:
    """Reads, writes and says what was written. Raises `InputError`."""
    if settings.out.exists():
        raise InputError(f"{settings.out}: exists already; choose another --out or remove it first")
    writer: Writer = import_module(WRITERS[settings.format])  # type: ignore[assignment]
    model, provenance = load_checkpoint(settings.checkpoint)
    writer.save_checkpoint(model, settings.out, provenance, dtype=settings.dtype)
    print(f"{settings.out}: {', '.join(sorted(path.name for path in settings.out.iterdir()))}")
