"""What a backward pass computes again where nobody has said so."""

from types import SimpleNamespace

import pytest
import torch

from dnamamba.model.config import preset
from dnamamba.model.language_model import LanguageModel
from dnamamba.model.settings import ModelSettings
from dnamamba.runs.recompute import choose_recompute, kept_bytes

GPU, POSITIONS = torch.device("cuda"), 1 << 20


def chosen(mixer: str = "mamba", given=None, positions: int = POSITIONS, device=GPU, **older):
    with torch.device("meta"):
        model = LanguageModel(preset("7m", n_layer=8, mixer=mixer))
    return choose_recompute(model.backbone, given, ModelSettings(**older), positions, device)


@pytest.fixture(autouse=True)
def gpu_of_80_gib(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=80 * 2**30))


def test_the_first_that_fits():
    with torch.device("meta"):
        backbone = LanguageModel(preset("7m", n_layer=8)).backbone
    per_position = [kept_bytes(backbone, recompute) for recompute in ("none", "cheap", "all")]
    assert [round(8 * size / 8192, 1) for size in per_position] == [60.8, 24.8, 8.0]  # GiB of a million bases
    assert [chosen(positions=POSITIONS * n // 4) for n in (1, 2, 3, 9, 10)] == ["none", "none", "cheap", "cheap", "all"]


def test_what_is_given_holds():
    assert chosen(given="cheap", positions=1) == "cheap"
    assert chosen(given="none", positions=1 << 40) == "none"
    assert chosen(activation_checkpointing=True, positions=1) == "all"
    assert chosen(given="none", activation_checkpointing=True) == "none"
    assert chosen(device=torch.device("cpu"), positions=1 << 40) is None


def test_mixers_that_do_not_know_keep_everything():
    assert chosen("attention") == "none"
