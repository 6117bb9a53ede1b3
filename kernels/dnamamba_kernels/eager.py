"""Operators called without torch.library's autograd wrapper, which costs 0.04 to 0.1 ms a call."""

from collections.abc import Callable
from typing import Any

import torch


def differentiable(
    operator: Callable[..., Any], setup_context: Callable[..., None], backward: Callable[..., Any]
) -> Callable[..., Any]:
    """`operator`, positional arguments only, with the gradient that `operator.register_autograd` has been given.

    While torch.compile traces, and where gradients are off, it calls the operator itself; else an autograd.Function
    around it.
    """

    class Function(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *inputs):
            output = operator(*inputs)
            setup_context(ctx, inputs, output)
            return output

        @staticmethod
        def backward(ctx, *gradients):
            return backward(ctx, *gradients)

    def call(*inputs):
        traced = torch.compiler.is_compiling()
        return operator(*inputs) if traced or not torch.is_grad_enabled() else Function.apply(*inputs)

    return call
