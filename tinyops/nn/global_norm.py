"""Batch norm over the batch of all processes."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from tinyops.nn.distributed import world_size


class GlobalBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm2d whose statistics in training are those of the images of all processes.

    On a CPU and on GPUs; in one process, and in eval mode, it is BatchNorm2d. Parameters and
    buffers have the names of BatchNorm2d. Sums are taken in float32 at least.
    """

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, C, H, W]; N, H and W may differ between the processes."""
        if world_size() == 1 or not self.training:
            return super().forward(x)
        y, mean, variance, count = _Normalise.apply(x, self.weight, self.bias, self.eps)
        if self.track_running_stats:
            self._track(mean, variance * (count / (count - 1).clamp(min=1)))
        return y

    @torch.no_grad()
    def _track(self, mean: Tensor, unbiased: Tensor) -> None:
        running_mean, running_var = self.running_mean, self.running_var
        count = self.num_batches_tracked
        assert running_mean is not None
        assert running_var is not None
        assert count is not None
        count += 1
        factor = 1 / count.to(mean.dtype) if self.momentum is None else self.momentum
        running_mean += factor * (mean.to(running_mean.dtype) - running_mean)
        running_var += factor * (unbiased.to(running_var.dtype) - running_var)


def use_global_norms(model: nn.Module) -> nn.Module:
    """Make every BatchNorm2d in `model` a GlobalBatchNorm2d, in place; parameters stay the same.

    Raises:
        ValueError: naming the module, if there is another batch norm with statistics of its own.
    """
    for name, module in model.named_modules():
        for child_name, child in module.named_children():
            if type(child) is nn.BatchNorm2d:
                setattr(module, child_name, _like(child))
            elif isinstance(child, nn.modules.batchnorm._BatchNorm) and not isinstance(
                child, GlobalBatchNorm2d
            ):
                raise ValueError(
                    f"{name}.{child_name} must be BatchNorm2d to train in several processes, "
                    f"got {type(child).__name__}"
                )
    return model


def _like(norm: nn.BatchNorm2d) -> GlobalBatchNorm2d:
    new = GlobalBatchNorm2d(
        norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats
    )
    for name, parameter in norm.named_parameters():
        setattr(new, name, parameter)
    for name, buffer in norm.named_buffers():
        setattr(new, name, buffer)
    return new.train(norm.training)


class _Normalise(torch.autograd.Function):
    """y = (x - mean) / sqrt(variance + eps) * weight + bias with the moments of all processes."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        size = wide.new_full((1,), x.numel() // x.shape[1])
        sums = _sum(torch.cat([wide.sum((0, 2, 3)), size]))
        count = sums[-1]
        mean = sums[:-1] / count
        # A second pass, since the difference of two large sums has no digits left.
        variance = _sum((wide - _row(mean)).square().sum((0, 2, 3))) / count
        scale = (variance + eps).rsqrt()
        ctx.save_for_backward(x, weight, mean, scale, count)
        y = (wide - _row(mean)) * _row(scale)
        if weight is not None and bias is not None:
            y = y * _row(weight) + _row(bias)
        ctx.mark_non_differentiable(mean, variance, count)
        return y.to(x.dtype), mean, variance, count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, scale, count = ctx.saved_tensors
        wide = grad.to(mean.dtype)
        normal = (x.to(mean.dtype) - _row(mean)) * _row(scale)
        # Those of the own images alone: DistributedDataParallel sums over the processes.
        grad_bias, grad_weight = wide.sum((0, 2, 3)), (wide * normal).sum((0, 2, 3))
        means = _sum(torch.stack([grad_bias, grad_weight])) / count
        slope = scale if weight is None else scale * weight
        grad_x = (wide - _row(means[0]) - normal * _row(means[1])) * _row(slope)
        if weight is None:
            return grad_x.to(x.dtype), None, None, None
        parameters = (grad_weight.to(weight.dtype), grad_bias.to(weight.dtype))
        return grad_x.to(x.dtype), *parameters, None


def _row(x: Tensor) -> Tensor:
    return x.view(1, -1, 1, 1)


def _sum(x: Tensor) -> Tensor:
    dist.all_reduce(x)
    return x
