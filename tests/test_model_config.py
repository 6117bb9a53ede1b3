"""Sizes and presets: plain data that refuses what no model can be."""

import subprocess
import sys

import pytest

from dnamamba import verbs
from dnamamba.errors import InputError
from dnamamba.model.config import PRESETS, ModelConfig, preset
from dnamamba.model.language_model import LanguageModel
from dnamamba.model.mixers import MIXERS, PATTERNS
from dnamamba.model.parameters import parameter_count
from dnamamba.model.settings import ModelSettings, model_config, model_name
from dnamamba.settings.fields import attribute_docstrings
from dnamamba.training.resolve import resolve
from dnamamba.training.settings import PretrainSettings

# The Mamba paper's genomics models: blocks, width, nominal parameters (arXiv 2312.00752, appendix E.3).
PAPER = {
    "250k": (8, 64, 250e3),
    "700k": (10, 96, 700e3),
    "1.4m": (12, 128, 1.4e6),
    "3.5m": (14, 192, 3.5e6),
    "7m": (16, 256, 7.0e6),
    "19m": (20, 384, 19.3e6),
    "41m": (24, 512, 40.7e6),
}


@pytest.mark.parametrize("name", PAPER)
def test_parameter_counts_are_the_papers(name):
    blocks, d, nominal = PAPER[name]
    channels, state, width, rank, vocabulary = 2 * d, 16, 4, -(-d // 16), 16
    mixer = (
        d * 2 * channels  # in_proj
        + channels * (width + 1)  # conv1d
        + channels * (rank + 2 * state)  # x_proj
        + (rank + 1) * channels  # dt_proj
        + channels * state  # A_log
        + channels  # D
        + channels * d  # out_proj
    )
    expected = vocabulary * d + blocks * (mixer + d) + d
    count = parameter_count(LanguageModel(PRESETS[name]))
    assert count == expected
    assert count == pytest.approx(nominal, rel=0.06)


def test_an_untied_head_has_its_own_weights():
    tied, untied = (parameter_count(LanguageModel(preset("demo", tie_embeddings=tie))) for tie in (True, False))
    assert untied - tied == 16 * PRESETS["demo"].d_model


def test_overrides_replace_fields_of_a_preset():
    assert preset("7m", n_layer=3, dt_rank=5) == ModelConfig(d_model=256, n_layer=3, dt_rank=5)
    assert (preset("19m").rank, preset("700k", dt_rank=5).rank, preset("7m", dt_rank="broadcast").rank) == (24, 5, 1)


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("1.4M", {}, "1.4m"),
        ("demo", {"width": 3}, "no such option, choose among d_model"),
        ("demo", {"d_model": 0}, "model.d_model: 0"),
        ("demo", {"d_model": 64.0}, "model.d_model: 64.0"),
        ("demo", {"n_layer": True}, "model.n_layer: True"),
        ("demo", {"d_state": 257}, "1 to 256"),
        ("demo", {"d_conv": 1}, "2 to 8"),
        ("demo", {"dt_rank": "large"}, "broadcast"),
        ("demo", {"dt_rank": 0}, "broadcast"),
        ("demo", {"dt_max": 1e-4}, "at least dt_min"),
        ("demo", {"dt_min": float("nan")}, "above 0"),
        ("demo", {"discretization": "bilinear"}, "'euler' or 'zoh'"),
        ("demo", {"tie_embeddings": 1}, "true or false"),
        ("demo", {"vocabulary_size": 4}, "of at least 5"),
    ],
)
def test_impossible_sizes_are_refused_by_name(name, overrides, message):
    with pytest.raises(InputError, match=message):
        preset(name, **overrides)


def test_configuration_does_not_load_torch():
    code = "import sys, dnamamba.model.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_field_is_a_flag_with_its_docstring():
    parser = verbs.parser("pretrain")
    reported = " ".join(parser.format_help().split())
    for name, text in attribute_docstrings(ModelConfig).items():
        assert f"--model.{name}" in reported
        assert text[:30] in reported, name
    named = attribute_docstrings(ModelConfig)["mixer"]
    assert [name for name in (*MIXERS, *PATTERNS) if f" {name}" not in named] == []
    flags = ["--model.preset", "1.4m", "--model.d_conv", "3", "--model.dt_rank", "broadcast"]
    settings = parser.parse([*flags, "--model.conv_bias", "false"]).model
    assert model_config(settings) == preset("1.4m", d_conv=3, dt_rank="broadcast", conv_bias=False)


def test_a_changed_preset_is_called_so():
    assert model_name(ModelSettings(preset="1.4m", d_state=16)) == "1.4m"
    assert model_name(ModelSettings(preset="1.4m", d_state=8)) == "1.4m with d_state 8"
    settings = resolve(PretrainSettings(model=ModelSettings(preset="1.4m", d_state=8, dt_rank=4)))
    assert "-1.4m-with-d_state-8-dt_rank-4-" in settings.out.name
