"""More than 2³² elements a tensor, where offsets of 32 bits end: whole sequences against their halves, forward and
backward. The same comparisons run on short sequences without a GPU."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from dnamamba.model.config import ModelConfig
from dnamamba.model.language_model import LanguageModel
from dnamamba_kernels import causal_conv1d, rms_norm, selective_scan

GIB, WIDTH = 2**30, 512
sizes = pytest.mark.parametrize(
    "length", [1_001, pytest.param(2**32 // WIDTH + 1_001, marks=pytest.mark.gpu)], ids=["short", "huge"]
)


@pytest.fixture
def device(length) -> torch.device:
    if length * WIDTH < 2**32:
        return torch.device("cpu")
    torch.cuda.empty_cache()
    if torch.cuda.mem_get_info()[0] < 90 * GIB:
        pytest.skip("needs 90 GiB of free GPU memory")
    return torch.device("cuda")


def random(*shape: int, device: torch.device, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    own = torch.Generator(device).manual_seed(sum(shape))
    return torch.empty(shape, device=device, dtype=dtype).normal_(generator=own)


def close(name: str, found: Tensor, expected: Tensor, bound: float = 1e-2) -> None:
    """Relative norm of the difference, block by block, so that no copy is as large as they are; false for NaN."""
    assert found.shape == expected.shape, name
    blocks = zip(found.flatten(0, 1).split(1 << 18), expected.flatten(0, 1).split(1 << 18), strict=True)
    for number, (one, other) in enumerate(blocks):
        error = (one.float() - other.float()).norm() / other.float().norm()
        assert error <= bound, f"{name}, block {number}: relative error {error:.1e}"


Operator = Callable[..., tuple[Tensor, Tensor | None]]


def differentiate(operator: Operator, inputs: list[Tensor], dy: Tensor, state: Tensor | None, dstate: Tensor | None):
    """y, the gradients of the inputs, and of the state before if there is one."""
    leaves = [each.detach().requires_grad_() for each in (*inputs, *([] if state is None else [state]))]
    y, after = operator(*leaves[: len(inputs)], None if state is None else leaves[-1])
    outputs, given = ((y, after), (dy, dstate)) if dstate is not None else ((y,), (dy,))
    return y.detach(), torch.autograd.grad(outputs, leaves, given)


def whole_against_halves(operator: Operator, inputs: list[Tensor], dy: Tensor) -> None:
    """`operator` of inputs (1, length, …) and a state, if it has one."""
    half = dy.shape[1] // 2 + 7
    y, found = differentiate(operator, inputs, dy, None, None)
    first, second = ([each[:, at] for each in (*inputs, dy)] for at in (slice(half), slice(half, None)))
    with torch.no_grad():
        between = operator(*first[:-1], None)[1]
    late, expected = differentiate(operator, second[:-1], second[-1], between, None)
    close("y, second half", y[:, half:], late)
    for number, (one, other) in enumerate(zip(found, expected[: len(found)], strict=True)):
        close(f"gradient {number}, second half", one[:, half:], other)
    dbetween = None if between is None else expected[-1]
    del late, expected, other
    early, expected = differentiate(operator, first[:-1], first[-1], None, dbetween)
    close("y, first half", y[:, :half], early)
    for number, (one, other) in enumerate(zip(found, expected, strict=True)):
        close(f"gradient {number}, first half", one[:, :half], other)


@sizes
def test_scan(length, device):
    def scan(x, dt, B, C, state):
        return selective_scan(x, dt, A, B, C, dt_bias=bias, initial_state=state)

    A = -torch.arange(1.0, 17.0, device=device).repeat(WIDTH, 1)
    bias = torch.full((WIDTH,), -3.0, device=device)
    wide = [random(1, length + n, WIDTH, device=device)[:, n:] for n in range(2)]
    maps = [random(1, length + n, 16, device=device)[:, n:] for n in range(2)]
    whole_against_halves(scan, [*wide, *maps], wide[1])


@sizes
def test_convolution(length, device):
    def convolve(x, state):
        return causal_conv1d(x, taps, initial_state=state)

    taps = random(WIDTH, 4, device=device, dtype=torch.float32)
    whole_against_halves(convolve, [random(1, length, WIDTH, device=device)], random(1, length, WIDTH, device=device))


@sizes
def test_norm(length, device):
    def normalise(x, residual, state):
        return rms_norm(x, scale, residual=residual)[0], None

    scale = random(WIDTH, device=device, dtype=torch.float32)
    inputs = [random(1, length + n, WIDTH, device=device)[:, n:] for n in range(2)]
    whole_against_halves(normalise, inputs, inputs[1])


@sizes
def test_language_model(length, device):
    """The whole by what a training keeps, the halves by what is recomputed in slices, and their states between."""
    torch.manual_seed(0)
    model = LanguageModel(ModelConfig(d_model=WIDTH // 2, n_layer=1)).to(device)
    tokens = torch.randint(0, 4, (1, length + 1), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    tokens = tokens.to(device)
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    half = length // 2 + 7
    gradients, losses = [], []
    for recompute, parts in (("cheap", [slice(None)]), ("all", [slice(half), slice(half, None)])):
        model.backbone.recompute = recompute
        total, state = torch.zeros((), device=device), None
        with torch.autocast(device.type, torch.bfloat16):
            for part in parts:
                sums = model.loss(inputs[:, part], targets[:, part], state)
                total, state = total + sums.nll_sum, sums.state
        (total / length).backward()
        losses.append(float(total.detach()) / length)
        gradients.append([parameter.grad for parameter in model.parameters()])
        model.zero_grad(set_to_none=True)
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    for (name, _), found, expected in zip(model.named_parameters(), *gradients, strict=True):
        assert (found - expected).norm() <= 3e-2 * expected.norm(), name
