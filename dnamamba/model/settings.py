"""What the command line can say of a model: a preset, changes to it, and how it is trained. Torch-free."""

import dataclasses
from dataclasses import dataclass
from typing import Any, Optional, TypeVar

from dnamamba.model.config import PRESETS, ModelConfig, preset
from dnamamba.settings.fields import attribute_docstrings

Settings = TypeVar("Settings", bound=type)


def _with_changes_to(config: type) -> Any:
    """Class decorator: every field of the dataclass `config` becomes one here, None, which leaves it as it is. Its
    docstring becomes the flag's help. Fields that have come after checkpoint format 2 stand in a run's config.yaml only
    where they say something, as in checkpoints."""

    def decorate(settings: Settings) -> Settings:
        texts = attribute_docstrings(config)
        for each in dataclasses.fields(config):
            settings.__annotations__[each.name] = Optional[each.type]  # noqa: UP045  # a type only at run time
            text = f"{texts[each.name]} Default: the preset's."
            metadata = {"help": text} | ({"absent": None} if each.metadata.get("since", 1) > 2 else {})
            setattr(settings, each.name, dataclasses.field(default=None, metadata=metadata))
        return settings

    return decorate


@dataclass
@_with_changes_to(ModelConfig)
class ModelSettings:
    """Which model to train: a preset, and what to change in it."""

    preset: str | None = None
    """Size: demo, 250k, 700k, 1.4m, 3.5m, 7m, 19m or 41m (parameters). Default: demo for the demo genome,
    250k on a CPU, else 1.4m."""
    activation_checkpointing: bool = False
    """The older name of --recompute all."""


def changes(settings: ModelSettings) -> dict[str, Any]:
    """Field of `ModelConfig` → value, where one was given that is not the preset's own."""
    given = {each.name: getattr(settings, each.name) for each in dataclasses.fields(ModelConfig)}
    usual = PRESETS.get(settings.preset or "")
    return {name: value for name, value in given.items() if value is not None and value != getattr(usual, name, None)}


def model_config(settings: ModelSettings) -> ModelConfig:
    """The preset with the changes that were given. Raises `InputError`."""
    return preset(settings.preset or "", **changes(settings))


def model_name(settings: ModelSettings) -> str:
    """For people and folders: `1.4m`, or `1.4m with d_state 8` where it is not the preset itself."""
    changed = ", ".join(f"{name} {value}" for name, value in changes(settings).items())
    return f"{settings.preset} with {changed}" if changed else str(settings.preset)
