"""A mixer is a file and a line: a toy one trains, is saved and loaded; what models can do is checked in one module."""

import copy
import hashlib
import re

import pytest
import torch
import torch.nn as nn

from dnamamba.errors import InputError
from dnamamba.formats import load_checkpoint
from dnamamba.formats.checkpoint import read_card, save_checkpoint
from dnamamba.inference.sampling import _with_matrices_in
from dnamamba.model.abilities import NEEDS, Ability, require
from dnamamba.model.config import ModelConfig, preset
from dnamamba.model.language_model import LanguageModel
from dnamamba.model.mixers import MIXERS
from dnamamba.model.mixers.mixer import Mixer
from dnamamba.model.parameters import parameter_groups, training_flops_per_token
from dnamamba.runs.card import card_lines

TINY = {"n_layer": 3, "d_model": 8}


class RunningSum(Mixer):
    """Sums of the projected past, without a state that could be handed on."""

    causal = True
    carries_state = False

    def __init__(self, config):
        super().__init__(config)
        self.project = nn.Linear(config.d_model, config.d_model, bias=False)
        self.gain = nn.Parameter(torch.ones(1, config.d_model))

    def forward(self, x, state=None, sequence_ids=None):
        return self.project(x).cumsum(1) * self.gain, None

    def output_weights(self):
        return [self.project.weight]

    def undecayed_parameters(self):
        return [self.gain]


class BothWays(RunningSum):
    causal = False


@pytest.fixture(autouse=True)
def toys(monkeypatch):
    monkeypatch.setitem(MIXERS, "running_sum", f"{__name__}:RunningSum")
    monkeypatch.setitem(MIXERS, "both_ways", f"{__name__}:BothWays")


def toy():
    torch.manual_seed(0)
    return LanguageModel(ModelConfig(mixer="running_sum", **TINY))


def test_a_registered_mixer_trains_is_saved_and_loaded(tmp_path):
    model = toy()
    tokens = torch.randint(0, 4, (2, 33), dtype=torch.uint8)
    batch = model.objective.prepare_batch(tokens)
    optimizer = torch.optim.AdamW(parameter_groups(model, 0.1), lr=1e-2)
    before = model.loss(batch.inputs, batch.targets).nll_sum
    before.backward()
    optimizer.step()
    assert model.loss(batch.inputs, batch.targets).nll_sum < before
    save_checkpoint(model, tmp_path / "model", {})
    loaded, _ = load_checkpoint(tmp_path / "model")
    assert loaded.config.mixer == "running_sum"
    assert torch.equal(loaded(batch.inputs).logits, model(batch.inputs).logits)
    assert ("model", "3 blocks x 8: running_sum") in card_lines(read_card(tmp_path / "model"))


def test_a_mixer_answers_for_its_parameters():
    model = toy()
    mixer = model.backbone.layers[0].mixer
    assert mixer.project.weight.abs().max() <= 8**-0.5 / 3**0.5  # divided by √n_layer
    decayed, kept = (group["params"] for group in parameter_groups(model, 0.1))
    assert any(each is mixer.gain for each in kept)
    assert any(each is mixer.project.weight for each in decayed)
    assert training_flops_per_token(model, 100) == 3 * (3 * 2 * (8 * 8 + 8) + 2 * 4 * 8)
    cast = _with_matrices_in(torch.bfloat16, model).backbone.layers[0].mixer
    assert (cast.project.weight.dtype, cast.gain.dtype) == (torch.bfloat16, torch.float32)


def test_what_mamba_may_cast_is_its_projections():
    mixer = _with_matrices_in(torch.bfloat16, LanguageModel(ModelConfig(**TINY))).backbone.layers[1].mixer
    cast = {name for name, parameter in mixer.named_parameters() if parameter.dtype == torch.bfloat16}
    assert cast == {f"{name}.weight" for name in ("in_proj", "x_proj", "dt_proj", "out_proj")}


def test_verbs_say_what_a_model_lacks_and_which_would_do():
    for verb in NEEDS:
        require(LanguageModel(ModelConfig(**TINY)), verb)
    others = " or ".join(name for name in MIXERS if name not in ("running_sum", "both_ways", "bimamba"))
    expected = f"dnamamba generate: this model carries no state from base to base; take one with mixer {others}"
    with pytest.raises(InputError, match=f"^{re.escape(expected)}$"):
        require(toy(), "generate")
    blind = copy.copy(toy())
    blind.abilities = Ability.CAUSAL
    with pytest.raises(
        InputError, match=r"score: .* does not predict masked bases; take one with objective masked_base"
    ):
        require(blind, "score")  # the least that would do
    with pytest.raises(
        InputError, match=r"does not predict the next base; take one with mixer mamba or .* and objective next"
    ):
        require(blind, "generate")


def test_a_mixer_that_sees_the_target_cannot_learn_the_next_base():
    with pytest.raises(InputError, match=r"both_ways sees what the objective next_base wants .* masked_base"):
        LanguageModel(ModelConfig(mixer="both_ways", **TINY))


@pytest.mark.parametrize("name", ["mixer", "objective"])
def test_unknown_names_are_refused(name):
    with pytest.raises(InputError, match=rf"model.{name}: 'unheard_of' is not possible, expected .*(mamba|next_base)"):
        ModelConfig(**{name: "unheard_of"})


def test_a_seed_draws_the_weights_that_it_always_drew():
    torch.manual_seed(0)
    digest = hashlib.sha256()
    for name, value in LanguageModel(preset("demo", n_layer=2, d_model=16, d_state=4)).state_dict().items():
        digest.update(name.encode() + value.contiguous().numpy().tobytes())
    assert digest.hexdigest() == "e198ab13ba7100c693f714b0a838e23ceb4488039da85e2e09c254379c1c2561"
