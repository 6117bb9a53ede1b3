"""Operators called past PyTorch's dispatcher where nothing listens there, and past torch.library's autograd wrapper.

Both cost more than the launch of a small kernel: some 15 µs a call on a fast machine, several times that on a slow one.
"""

from collections.abc import Callable
from typing import Any

import torch

_PLAIN = {torch.Tensor, torch.nn.Parameter, type(None), bool, int, float, str, torch.dtype}


def direct(operator: Callable[..., Any], function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, which `operator` wraps, positional arguments only; but the operator where something has to see it
    (autograd refuses second derivatives so)."""

    def call(*inputs):
        return operator(*inputs) if observed(*inputs) else function(*inputs)

    return call


def differentiable(
    run: Callable[..., Any], setup_context: Callable[..., None], backward: Callable[..., Any]
) -> Callable[..., Any]:
    """`run`, a `direct` operator, with the gradient that the operator's `register_autograd` has been given.

    While torch.compile traces, and where no gradient is wanted, it is `run` itself; else an autograd.Function around.
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

    def call(*inputs):
        if torch.compiler.is_compiling() or not wants_gradient(*inputs):
            return run(*inputs)
        return Function.apply(*inputs)

    return call


def observed(*inputs: Any) -> bool:
    """Whether something has to see a function of these inputs: torch.compile, a mode (fake tensors, counters of
    operations, selective checkpointing), torch.func, a tensor subclass, or autograd."""
    return (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._is_torch_function_mode_enabled()
        or torch._C._functorch.peek_interpreter_stack() is not None
        or not _PLAIN.issuperset(map(type, inputs))
        or wants_gradient(*inputs)
    )


def wants_gradient(*inputs: Any) -> bool:
    """Whether autograd will need the gradient of a function of these inputs."""
    return torch.is_grad_enabled() and any(isinstance(t, torch.Tensor) and t.requires_grad for t in inputs)
