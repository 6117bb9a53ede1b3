"""Which models can have the positions of a sequence on several ranks (`dnamamba_kernels.context_parallel`)."""

from dnamamba.model.config import ModelConfig
from dnamamba.model.mixers import mixer_class
from dnamamba.model.mixers.gated_mlp import GatedMLP
from dnamamba.model.mixers.mixer import Mixer
from dnamamba_kernels import Ranks, context_parallel
from dnamamba_kernels.context_parallel import LEAST

__all__ = ["LEAST", "Ranks", "context_parallel", "mixers_without_parts"]


def mixers_without_parts(config: ModelConfig, packed: bool) -> str:
    """What stands against it, in words; empty where nothing does. `packed`: windows of several segments."""
    for name in dict.fromkeys(config.mixers):
        mixer = mixer_class(name)
        if mixer.state_grows:
            return f"{name} looks at all earlier positions again, and hands on no state of constant size"
        if packed and mixer.packs_on_host(config):
            return f"{name} cuts packed windows on the host"
        if config.rc_equivariant and mixer.reverse is Mixer.reverse and mixer is not GatedMLP:
            return f"{name} reads the complement of a sequence in reverse order, and its positions lie on several ranks"
    return ""
