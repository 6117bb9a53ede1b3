"""Each operator on a device, compared with the reference in fp64: outputs and all gradients of small random problems.

Sizes are odd (no tile, warp or vector divides them) and even; states enter and leave, and windows are packed.
"""

from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple, cast

import torch
from torch import Tensor
from torch.nn.functional import linear

from dnamamba_kernels import backends
from dnamamba_kernels.block.computation import BlockOptions, BlockWeights
from dnamamba_kernels.block.mamba_block import mamba_block
from dnamamba_kernels.conv.causal_conv1d import causal_conv1d
from dnamamba_kernels.gated_norm.gated_rms_norm import gated_rms_norm
from dnamamba_kernels.norm.rms_norm import rms_norm
from dnamamba_kernels.rotary.rotary import rotary
from dnamamba_kernels.scan.selective_scan import selective_scan
from dnamamba_kernels.ssd.ssd_scan import ssd_scan

SIZES = ((67, 19), (160, 64))
"""(length, width): odd, and as models have them"""
BATCH, STATE, HEADS, RANK, TAPS = 2, 16, 3, 5, 4
LIMITS = {torch.float32: 1e-5, torch.bfloat16: 5e-3}
"""Relative errors allowed: norm of the difference over the norm of the exact tensor"""
ROUNDINGS_OF_A_BLOCK = 4
"""Times as much is allowed for a block, which rounds between its operators"""
DTYPES = {"cpu": (torch.float32,)}
"""Tested on a platform; on GPUs all of `LIMITS`"""
WAYS_OF_A_BLOCK = ("none", "cheap", "all")
"""What a block's backward pass computes again; a block takes the backends of its operators"""


class Problem(NamedTuple):
    """An operator with differentiable arguments, all in fp64."""

    operator: str
    call: Callable[[dict[str, Tensor], str], tuple[Tensor, ...]]
    """(arguments, backend; of a block what it computes again) -> outputs"""
    data: dict[str, Tensor]
    """Those that take the dtype to test"""
    parameters: dict[str, Tensor]
    """Those that are fp32 unless data are fp64"""


class OperatorCheck(NamedTuple):
    """One operator, backend and dtype."""

    operator: str
    backend: str
    """Of a block: what it computes again"""
    dtype: torch.dtype
    outputs: float
    """The largest relative error of an output; NaN where a result holds any"""
    gradients: float
    """The largest relative error of a gradient"""
    failure: str | None = None
    """What it raised, one line"""

    @property
    def limit(self) -> float:
        return LIMITS[self.dtype] * (ROUNDINGS_OF_A_BLOCK if self.operator == "block" else 1)

    @property
    def passed(self) -> bool:
        errors = self.outputs, self.gradients
        return self.failure is None and all(error <= self.limit for error in errors)  # NaN is not below anything


def compare(device: torch.device) -> Iterator[OperatorCheck]:
    """Every operator, backend and dtype that `auto` may take on a device, one after the other."""
    where = backends.platform(device)
    for dtype in DTYPES.get(where, tuple(LIMITS)):
        for operator, make in PROBLEMS.items():
            exact = [(problem, *_exact(problem, dtype)) for problem in (make(*size) for size in SIZES)]
            for way in _ways(operator, where):
                yield _compare(operator, way, dtype, device, exact)


Results = tuple[list[Tensor], list[Tensor]]
"""Outputs, gradients"""


def _compare(
    operator: str,
    way: str,
    dtype: torch.dtype,
    device: torch.device,
    exact: list[tuple[Problem, dict[str, Tensor], Results]],
) -> OperatorCheck:
    """The largest errors over all sizes."""
    errors: tuple[list[Tensor], list[Tensor]] = [], []
    for problem, arguments, truth in exact:
        try:
            found = _results(problem, way, {name: value.to(device) for name, value in arguments.items()})
        except Exception as error:  # whatever a compiler or driver raises is what is to be reported
            reason = str(error).partition("\n")[0] or type(error).__name__
            return OperatorCheck(operator, way, dtype, float("nan"), float("nan"), reason)
        for worst, values, wanted in zip(errors, found, truth, strict=True):
            worst += [_relative_error(value, want) for value, want in zip(values, wanted, strict=True)]
    outputs, gradients = (torch.stack(values).max().item() for values in errors)
    return OperatorCheck(operator, way, dtype, outputs, gradients)


def _exact(problem: Problem, dtype: torch.dtype) -> tuple[dict[str, Tensor], Results]:
    """The arguments in the dtypes of the test, and what the reference makes of the same values in fp64 on the CPU."""
    arguments = {name: value.to(dtype) for name, value in problem.data.items()}
    arguments |= {name: value.float() for name, value in problem.parameters.items()}
    wide = {name: value.double() for name, value in arguments.items()}
    return arguments, _results(problem, "reference", wide)


def _results(problem: Problem, way: str, arguments: dict[str, Tensor]) -> Results:
    """Outputs, and the gradients of their sum with fixed random weights."""
    leaves = {name: value.detach().requires_grad_() for name, value in arguments.items()}
    outputs = problem.call(leaves, way)
    draw = torch.Generator().manual_seed(1)
    weights = [torch.randn(y.shape, generator=draw, dtype=torch.float64).bfloat16() for y in outputs]
    weights = [weight.to(y.device, y.dtype) for weight, y in zip(weights, outputs, strict=True)]
    gradients = torch.autograd.grad(outputs, list(leaves.values()), weights)
    return [y.detach() for y in outputs], list(gradients)


def _relative_error(found: Tensor, exact: Tensor) -> Tensor:
    return (found.double().cpu() - exact).norm() / exact.norm()


def _ways(operator: str, where: str) -> tuple[str, ...]:
    if operator == "block":
        return WAYS_OF_A_BLOCK
    # Plain PyTorch in fp32 is for the tests; here the reference is what the others are compared with.
    return tuple(name for name in backends.of(operator, where) if name != "reference")


def _drawn(length: int) -> Callable[..., Tensor]:
    """A function of a shape: normal, the same in every process."""
    generator = torch.Generator().manual_seed(length)
    return lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)


def _ids(length: int, like: Tensor) -> Tensor:
    """Two sequences of three and two segments, (BATCH, length) int32."""
    position = torch.arange(length, device=like.device)
    first = (position > length // 3).int() + (position > length - 5).int()
    return torch.stack((first, (position > length // 2).int()))


def _scan(length: int, width: int) -> Problem:
    draw = _drawn(length)
    rows, maps = (BATCH, length, width), (BATCH, length, STATE)
    data = {"x": draw(*rows), "dt": draw(*rows) - 2, "B": draw(*maps), "C": draw(*maps), "z": draw(*rows)}
    parameters = {"A": -draw(width, STATE).exp(), "D": draw(width), "dt_bias": draw(width)}
    parameters["initial_state"] = draw(BATCH, width, STATE)

    def call(given: dict[str, Tensor], backend: str) -> tuple[Tensor, ...]:
        return selective_scan(**given, sequence_ids=_ids(length, given["x"]), backend=backend)  # type: ignore[arg-type]

    return Problem("scan", call, data, parameters)


def _conv(length: int, width: int) -> Problem:
    draw = _drawn(length)
    data = {"x": draw(BATCH, length, width), "initial_state": draw(BATCH, TAPS - 1, width)}
    parameters = {"weight": draw(width, TAPS), "bias": draw(width)}

    def call(given: dict[str, Tensor], backend: str) -> tuple[Tensor, ...]:
        return causal_conv1d(**given, sequence_ids=_ids(length, given["x"]), backend=backend)  # type: ignore[arg-type]

    return Problem("conv", call, data, parameters)


def _norm(length: int, width: int) -> Problem:
    draw = _drawn(length)
    rows = BATCH, length, width

    def call(given: dict[str, Tensor], backend: str) -> tuple[Tensor, ...]:
        return rms_norm(**given, backend=backend)  # type: ignore[arg-type]

    return Problem("norm", call, {"x": draw(*rows)}, {"weight": draw(width), "residual": draw(*rows)})


def _gated_norm(length: int, width: int) -> Problem:
    draw = _drawn(length)
    rows = BATCH, length, width

    def call(given: dict[str, Tensor], backend: str) -> tuple[Tensor, ...]:
        return (gated_rms_norm(**given, backend=backend),)  # type: ignore[arg-type]

    return Problem("gated_norm", call, {"x": draw(*rows), "z": draw(*rows)}, {"weight": draw(width)})


def _ssd(length: int, width: int) -> Problem:
    draw = _drawn(length)
    rows, maps = (BATCH, length, HEADS), (BATCH, length, 1, STATE)
    data = {"x": draw(*rows, width), "B": draw(*maps), "C": draw(*maps)}
    parameters = {"log_decay": -draw(*rows).exp() / 8, "weight": draw(*rows), "D": draw(HEADS)}
    parameters["initial_state"] = draw(BATCH, HEADS, width, STATE)

    def call(given: dict[str, Tensor], backend: str) -> tuple[Tensor, ...]:
        return ssd_scan(**given, sequence_ids=_ids(length, given["x"]), backend=backend)  # type: ignore[arg-type]

    return Problem("ssd", call, data, parameters)


def _rotary(length: int, width: int) -> Problem:
    pairs = (width + 1) // 2
    angles = torch.arange(length)[:, None] * 0.5 ** torch.arange(pairs)

    def call(given: dict[str, Tensor], backend: str) -> tuple[Tensor, ...]:
        qkv = given["qkv"]
        dtype = torch.float64 if qkv.dtype == torch.float64 else torch.float32
        cos, sin = (values.float().to(qkv.device, dtype) for values in (angles.cos(), angles.sin()))
        return rotary(qkv, cos, sin, backend=backend)

    return Problem("rotary", call, {"qkv": _drawn(length)(BATCH, length, 3, HEADS, 2 * pairs)}, {})


def _block(length: int, width: int) -> Problem:
    draw = _drawn(length)
    scaled = {"in_proj": (2 * width, width), "x_proj": (RANK + 2 * STATE, width), "dt_proj": (width, RANK)}
    data = {name: draw(*shape) / shape[1] ** 0.5 for name, shape in (scaled | {"out_proj": (width, width)}).items()}
    data["hidden"] = draw(BATCH, length, width)
    data["conv_state"] = draw(BATCH, TAPS - 1, width)
    parameters = {"norm": draw(width), "conv": draw(width, TAPS), "conv_bias": draw(width), "dt_bias": draw(width) - 2}
    parameters |= {"A": -draw(width, STATE).exp(), "D": draw(width), "residual": draw(BATCH, length, width)}
    parameters["ssm_state"] = draw(BATCH, width, STATE)

    def call(given: dict[str, Tensor], way: str) -> tuple[Tensor, ...]:
        weights = BlockWeights(*(given.get(name) for name in BlockWeights._fields))  # type: ignore[arg-type]
        hidden, residual = given["hidden"], given["residual"]
        states, ids = (given["conv_state"], given["ssm_state"]), _ids(length, hidden)
        if way == "reference":
            return _composed(hidden, residual, weights, *states, ids)
        recompute = cast(Literal["none", "cheap", "all"], way)
        options = BlockOptions(recompute, hidden.dtype, 1e-5, True, "euler")
        return mamba_block(
            hidden, residual, weights, options, conv_state=states[0], ssm_state=states[1], sequence_ids=ids
        )

    return Problem("block", call, data, parameters)


def _composed(
    hidden: Tensor, residual: Tensor, w: BlockWeights, conv_state: Tensor, ssm_state: Tensor, ids: Tensor
) -> tuple[Tensor, ...]:
    """`mamba_block` of single operators."""
    plain = {"sequence_ids": ids, "backend": "reference"}
    u, stream = rms_norm(hidden, w.norm, residual=residual, backend="reference")
    x, z = linear(u, w.in_proj).chunk(2, -1)
    x, conv_state = causal_conv1d(x, w.conv, w.conv_bias, initial_state=conv_state, **plain)  # type: ignore[arg-type]
    low, B, C = linear(x, w.x_proj).split((RANK, STATE, STATE), -1)
    rest = {"D": w.D, "z": z, "dt_bias": w.dt_bias, "initial_state": ssm_state, **plain}
    y, ssm_state = selective_scan(x, linear(low, w.dt_proj), w.A, B, C, **rest)  # type: ignore[arg-type]
    return linear(y, w.out_proj), stream, conv_state, ssm_state


PROBLEMS = {
    "scan": _scan,
    "conv": _conv,
    "norm": _norm,
    "block": _block,
    "ssd": _ssd,
    "gated_norm": _gated_norm,
    "rotary": _rotary,
}
"""Operator -> a problem of (length, width)"""
