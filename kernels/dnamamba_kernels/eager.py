"""Operators called past PyTorch's dispatcher where nothing listens there, and past torch.library's autograd wrapper.

Both cost more than the launch of a small kernel: some 15 µs a call on a fast machine, several times that on a slow one.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch.autograd import forward_ad

NO_SECOND_DERIVATIVES = (
    "the kernels have first derivatives only: take second ones by torch.func (hessian, jacfwd, grad of grad), which "
    "runs plain PyTorch"
)
_PLAIN = {torch.Tensor, torch.nn.Parameter, type(None), bool, int, float, str, torch.dtype}
GRAD, VMAP = torch._C._functorch.TransformType.Grad, torch._C._functorch.TransformType.Vmap


def direct(operator: Callable[..., Any], function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, which `operator` wraps, positional arguments only; but the operator where something has to see it
    (autograd refuses second derivatives so)."""

    class FirstDerivatives(torch.autograd.Function):
        """What torch.func.grad sees of a backward pass."""

        @staticmethod
        def forward(*inputs):
            return call(*inputs)

        @staticmethod
        def setup_context(ctx, inputs, output):
            pass

        @staticmethod
        def backward(ctx, *gradients):
            raise RuntimeError(NO_SECOND_DERIVATIVES)

    def call(*inputs):
        if is_transformed() and GRAD in _transforms():
            return FirstDerivatives.apply(*inputs)
        return operator(*inputs) if observed(*inputs) else function(*inputs)

    return call


def refuse_second_derivatives(backward_operator: Any) -> None:
    """Lets autograd say so, where it is to differentiate a backward pass."""

    def refuse(ctx, *gradients):
        raise RuntimeError(NO_SECOND_DERIVATIVES)

    backward_operator.register_autograd(refuse)


def loop_over_batches(operator: Any) -> None:
    """Lets torch.func.vmap call the operator once for each element of its batch, as the kernels have no such axis."""

    def looped(info, in_dims, *inputs):
        calls = [
            operator(
                *(
                    value if dim is None else value.select(dim, index).contiguous()
                    for value, dim in zip(inputs, in_dims, strict=True)
                )
            )
            for index in range(info.batch_size)
        ]
        if isinstance(calls[0], torch.Tensor):
            return torch.stack(calls), 0
        outputs = tuple(torch.stack(each) for each in zip(*calls, strict=True))
        return outputs, (0,) * len(outputs)

    operator.register_vmap(looped)


def differentiable(
    run: Callable[..., Any],
    function: Callable[..., Any],
    setup_context: Callable[..., None],
    backward: Callable[..., Any],
) -> Callable[..., Any]:
    """`run`, a `direct` operator of `function`, with the gradient that the operator's `register_autograd` has been
    given.

    While torch.compile traces, and where no gradient is wanted, it is `run` itself; else an autograd.Function around.
    Tangents, and derivatives of derivatives in torch.func, are those of `function` on the reference, which is the
    backend that its last argument names: plain PyTorch, and with it slow and large.
    """

    class Function(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *inputs):
            output = run(*inputs)
            setup_context(ctx, inputs, output)
            return output

        @staticmethod
        def backward(ctx, *gradients):
            return backward(ctx, *gradients)

    class TransformedFunction(Function):
        """The same for torch.func.grad. Not for all, as this way to call it costs another 20 µs."""

        @staticmethod
        def forward(*inputs):
            return run(*inputs)

        @staticmethod
        def setup_context(ctx, inputs, output):
            setup_context(ctx, inputs, output)

    def call(*inputs):
        if torch.compiler.is_compiling():
            return run(*inputs)
        transforms = _transforms()
        if _has_tangent(*inputs) or (transforms and transforms != [GRAD] and set(transforms) != {VMAP}):
            return function(*inputs[:-1], "reference")
        if not wants_gradient(*inputs):
            return run(*inputs)
        return (TransformedFunction if transforms else Function).apply(*inputs)

    return call


def observed(*inputs: Any) -> bool:
    """Whether something has to see a function of these inputs: what `traced` says, or autograd."""
    return traced(*inputs) or wants_gradient(*inputs)


def traced(*inputs: Any) -> bool:
    """Whether something other than autograd's usual mode has to see what a function of these inputs is made of:
    torch.compile, a mode (fake tensors, counters of operations, selective checkpointing), torch.func, a tensor
    subclass, or forward-mode differentiation."""
    return (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._is_torch_function_mode_enabled()
        or is_transformed()
        or _has_tangent(*inputs)
        or not _PLAIN.issuperset(map(type, inputs))
    )


def is_transformed() -> bool:
    """Whether this runs within a transform of torch.func; torch.compile, which cannot see that, traces these itself."""
    return not torch.compiler.is_compiling() and torch._C._functorch.peek_interpreter_stack() is not None


def _transforms() -> list[Any]:
    """The transforms of torch.func that this runs within, the outermost first."""
    return [each.key() for each in torch._C._functorch.get_interpreter_stack() or ()]


def _has_tangent(*inputs: Any) -> bool:
    """Whether forward-mode differentiation passes through one of them."""
    if forward_ad._current_level < 0:
        return False
    return any(isinstance(t, torch.Tensor) and forward_ad.unpack_dual(t).tangent is not None for t in inputs)


def wants_gradient(*inputs: Any) -> bool:
    """Whether autograd will need the gradient of a function of these inputs."""
    return torch.is_grad_enabled() and any(isinstance(t, torch.Tensor) and t.requires_grad for t in inputs)
