"""Mamba language models on DNA: genomes in, likelihoods, variants and species out.

    import dnamamba

    model = dnamamba.load("runs/hg38")
    model.log_likelihood("ACGTTGCA")
    model.score_variants("in.vcf.gz", genome="hg38.fa")

`load`, `Model`, `Genome`, `MambaBlock`, `backward_in_chunks`, `pretrain` and `finetune` are imported when they are
first used, so that `import dnamamba` costs no time.
"""

import importlib
from typing import TYPE_CHECKING, Any

from dnamamba.errors import GenomeWarning, InputError

if TYPE_CHECKING:
    from dnamamba.api.model import Model, load
    from dnamamba.api.runs import Run, finetune, pretrain
    from dnamamba.genome.genome import Genome
    from dnamamba.model.blocks import MambaBlock
    from dnamamba.model.chunked_backward import backward_in_chunks

__version__ = "0.1.0"
__all__ = [
    "Genome",
    "GenomeWarning",
    "InputError",
    "MambaBlock",
    "Model",
    "Run",
    "backward_in_chunks",
    "finetune",
    "load",
    "pretrain",
]

_HOMES = {
    "load": "dnamamba.api.model",
    "Model": "dnamamba.api.model",
    "Run": "dnamamba.api.runs",
    "Genome": "dnamamba.genome.genome",
    "MambaBlock": "dnamamba.model.blocks",
    "backward_in_chunks": "dnamamba.model.chunked_backward",
}
"""name -> the module that it is imported from when it is first used"""


def __getattr__(name: str) -> Any:
    if name in ("pretrain", "finetune"):
        # The modules that `python -m` runs; called, they are functions (`dnamamba.api.runs`).
        return importlib.import_module(f"dnamamba.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'dnamamba' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
