"""Problems, an oracle and error bounds for the tests of every scan backend.

The oracle is the recurrence written out position by position, differentiated by autograd: in fp64 it is the truth, in
fp32 the error that a backend is measured by.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from dnamamba_kernels import selective_scan

FLOOR = 5e-7  # some roundings of fp32, relative to the terms of a sum: it may cancel, and the sequential error be luck
HALF_BOUND = {torch.bfloat16: 5e-3, torch.float16: 1e-3}


@dataclass
class Problem:
    """Arguments of a scan, and weights of a loss over both results."""

    tensors: dict[str, Tensor]
    """Differentiable arguments by the public names."""
    options: dict[str, Any]
    """All others: sequence_ids, dt_softplus, reverse, discretization."""
    dy: Tensor = field(repr=False)
    dfinal: Tensor = field(repr=False)

    def to(self, dtype: torch.dtype, device: str = "cpu") -> "Problem":
        """Data in dtype (rounding it), parameters and states in fp32, or all in fp64."""
        data = {"x", "dt", "z", "B", "C"}
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        tensors = {
            name: value.detach().to(device, dtype if name in data and value.dim() > 2 else wide)
            for name, value in self.tensors.items()
        }
        options = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in self.options.items()}
        return Problem(tensors, options, self.dy.to(device, dtype), self.dfinal.to(device, wide))


def random_problem(
    batch: int,
    length: int,
    channels: int,
    state: int,
    *,
    groups: int = 0,
    constant_B: bool = False,
    constant_C: bool = False,
    gate: bool = True,
    skip: bool = True,
    bias: bool = True,
    initial: bool = True,
    packed: bool = False,
    seed: int = 0,
    dt_range: tuple[float, float] = (1e-3, 1.0),
    A_range: tuple[float, float] = (1e-1, 16.0),
    **options: Any,
) -> Problem:
    """A random scan; Δ and −A are log-uniform in their ranges; groups 0 means B and C without a group dimension."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    def log_uniform(low: float, high: float, *shape: int) -> Tensor:
        return low * (high / low) ** torch.rand(*shape, generator=generator)

    delta = log_uniform(*dt_range, batch, length, channels)
    shift = 0.3 * normal(channels) if bias else torch.zeros(channels)
    softplus = options.get("dt_softplus", True)
    shape = (batch, length, groups, state) if groups else (batch, length, state)
    tensors = {
        "x": normal(batch, length, channels),
        "dt": (delta + torch.log(-torch.expm1(-delta)) if softplus else delta) - (shift if softplus else 0),
        "A": -log_uniform(*A_range, channels, state),
        "B": normal(channels, state) if constant_B else normal(*shape),
        "C": normal(channels, state) if constant_C else normal(*shape),
    }
    if skip:
        tensors["D"] = normal(channels)
    if gate:
        tensors["z"] = normal(batch, length, channels)
    if bias:
        tensors["dt_bias"] = shift if softplus else shift.abs()
    if initial:
        tensors["initial_state"] = normal(batch, channels, state)
    if packed:
        starts = torch.rand(batch, length, generator=generator) < 4 / length
        options["sequence_ids"] = (starts.cumsum(1) % 3).int()  # an id may come again
    return Problem(tensors, options, normal(batch, length, channels), normal(batch, channels, state))


def oracle(
    x, dt, A, B, C, *, D=None, z=None, dt_bias=None, initial_state=None, sequence_ids=None, dt_softplus=True,
    reverse=False, discretization="euler",
):  # fmt: skip
    """(y, final_state) by the recurrence, in the widest dtype given.

    A, D and dt_bias may vary along the length, too: (batch, length, channels[, state]).
    """
    batch, length, channels = x.shape
    decay = A.unbind(1) if A.dim() == 4 else [A] * length
    state_shape = batch, channels, A.shape[-1]
    delta = dt if dt_bias is None else dt + dt_bias
    delta = functional.softplus(delta) if dt_softplus else delta

    def at(B, t):
        if B.dim() == 2:
            return B
        B = B[:, t, None] if B.dim() == 3 else B[:, t]
        return B.repeat_interleave(channels // B.shape[1], 1)

    state = torch.zeros(state_shape, dtype=A.dtype) if initial_state is None else initial_state
    rows, previous = {}, None
    for t in range(length - 1, -1, -1) if reverse else range(length):
        if sequence_ids is not None and previous is not None:
            state = state * (sequence_ids[:, t] == sequence_ids[:, previous])[:, None, None]
        step, A = delta[:, t, :, None], decay[t]
        weight = torch.expm1(step * A) / A if discretization == "zoh" else step
        state = torch.exp(step * A) * state + weight * at(B, t) * x[:, t, :, None]
        rows[t] = (state * at(C, t)).sum(-1)
        previous = t
    y = torch.stack([rows[t] for t in range(length)], 1)
    y = y if D is None else y + D * x
    return y if z is None else y * functional.silu(z), state


def results(problem: Problem, scan=selective_scan, **options: Any) -> dict[str, Tensor]:
    """y, final_state and the gradient of Σ y·dy + Σ final_state·dfinal by every tensor, by name."""
    leaves = {name: value.detach().clone().requires_grad_() for name, value in problem.tensors.items()}
    arguments = dict(leaves)
    positional = [arguments.pop(name) for name in ("x", "dt", "A", "B", "C")]
    y, final_state = scan(*positional, **arguments, **problem.options, **options)
    torch.autograd.backward([y, final_state], [problem.dy, problem.dfinal])
    return {"y": y.detach(), "final_state": final_state.detach()} | {f"d{k}": v.grad for k, v in leaves.items()}


def relative_error(found: Tensor, exact: Tensor) -> float:
    """‖found − exact‖ / ‖exact‖, NaN if found holds any."""
    exact = exact.double()
    return ((found.double().cpu() - exact).norm() / exact.norm().clamp(min=1e-30)).item()


def magnitudes(problem: Problem) -> dict[str, float]:
    """Of each gradient that is a sum over positions or channels, the norm of Σ |term|: what its roundings scale with.

    Each parameter gets a copy a position, B and C one a channel: their gradients are the terms.
    """
    x = problem.tensors["x"]
    batch, length, channels = x.shape
    apart, own = dict(problem.tensors), {"A", "D", "dt_bias"} & problem.tensors.keys()
    for name in own:
        apart[name] = apart[name].expand(batch, length, *apart[name].shape)
    for name in ("B", "C"):
        value = apart[name]
        if value.dim() == 2:
            apart[name] = value.expand(batch, length, *value.shape)
        else:
            value = value.unsqueeze(2) if value.dim() == 3 else value
            apart[name] = value.repeat_interleave(channels // value.shape[2], 2)
    terms = results(Problem(apart, problem.options, problem.dy, problem.dfinal), oracle)
    norms = {}
    for name in (*own, "B", "C"):
        value, shape = terms[f"d{name}"].abs(), problem.tensors[name].shape
        if len(shape) > 2:
            groups = shape[2] if len(shape) == 4 else 1
            norms[f"d{name}"] = value.unflatten(2, (groups, -1)).sum(3).norm().item()
        else:
            norms[f"d{name}"] = value.sum((0, 1)).norm().item()
    return norms


def check_fp32(problem: Problem, found: dict[str, Tensor]) -> None:
    """Every result within twice the error of the sequential recurrence in fp32."""
    truth = problem.to(torch.float64)
    exact, sequential = results(truth, oracle), results(problem.to(torch.float32), oracle)
    terms = magnitudes(truth)
    assert found.keys() == exact.keys()
    for name, value in found.items():
        assert value.shape == exact[name].shape, name
        norm = exact[name].norm().clamp(min=1e-30).item()
        bound = 2 * relative_error(sequential[name], exact[name]) + FLOOR * terms.get(name, norm) / norm
        error = relative_error(value, exact[name])
        assert error <= bound, f"{name}: relative error {error:.1e}, bound {bound:.1e}"  # false for NaN, too


def check_half(problem: Problem, found: dict[str, Tensor], dtype: torch.dtype) -> None:
    """Every result within the bound of a half-precision dtype, against fp64 on the same rounded data."""
    exact = results(problem.to(dtype).to(torch.float64), oracle)
    for name, value in found.items():
        error = relative_error(value, exact[name])
        assert error <= HALF_BOUND[dtype], f"{name}: relative error {error:.1e}"


def check_sequences_stay_apart(problem: Problem, backend: str) -> None:
    """A NaN in one packed sequence reaches neither the results nor the gradients of another, by a single bit."""
    length = problem.tensors["x"].shape[1]
    cut = length * 2 // 5
    ids = torch.zeros(problem.tensors["x"].shape[:2], dtype=torch.int32, device=problem.dy.device)
    ids[:, cut:] = 7
    problem.options["sequence_ids"] = ids
    clean = results(problem, backend=backend)
    for name in ("x", "dt", "B", "C", "z"):
        for at, other in ((cut // 2, slice(cut, None)), ((cut + length) // 2, slice(0, cut))):
            tensors = problem.tensors | {name: problem.tensors[name].clone()}
            tensors[name][0, at] = float("nan")
            found = results(Problem(tensors, problem.options, problem.dy, problem.dfinal), backend=backend)
            assert found["y"][0, at].isnan().any(), name
            for value in ("y", "dx", "ddt", "dz", "dB", "dC"):
                assert torch.equal(found[value][:, other], clean[value][:, other]), f"NaN in {name}: {value}"
            if at < cut:
                assert torch.equal(found["final_state"], clean["final_state"]), f"NaN in {name}: final state"
