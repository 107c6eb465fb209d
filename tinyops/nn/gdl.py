"""The losses of GDL, generative and discriminative learning (Gu et al., ICPR 2020).

Only the slides of the talk are public. m is the number of samples, z_HR and z_LR a region at high
and at low resolution, G the generator, r its factor, D the discriminator with its branches for
classes and boxes. The slides have, with their slips of the pen:

    L_adv = 1/m sum log(1 - D(G(z_LR)))
    L_MSE = 1/m sum |z_HR - G(z_LR)|^2
    L_TV  = 1/(r^2 W H) sum_ij |grad G(z_LR)_ij|
    L_cls = 1/m sum [-(log(p p* + (1 - p)(1 - p*)) - log D_cls(G(z_LR))) + log D_cls(z_HR)]
    L_reg = 1/m sum [u >= 1] smooth_L1(t_SR - t*), summed over x, y, w, h
    max_D min_G 1/m sum log D(z_HR) + alpha L_adv + beta L_cls + gamma L_reg + L_TV + L_MSE

where p is the probability that an anchor is an object, p* in {0, 1} the truth, and u a label. What
we read: in L_cls all three logarithms have a minus in front; squares and gradients are averaged
over the elements, so that the weights do not depend on the size; and D learns to tell classes and
boxes, too, since otherwise it could not teach them.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from tinyops.nn.distributed import count_over_processes
from tinyops.nn.losses import at_least_float32


def as_constant(module: nn.Module, *inputs: Any) -> Any:
    """module(*inputs) with gradients to the inputs, none to its parameters, and buffers left alone.

    Parts that take turns need it: the generator learns through a discriminator that stays as it is.
    """
    state = {name: x.detach() for name, x in module.named_parameters()}
    state |= {name: x.clone() for name, x in module.named_buffers()}
    return functional_call(module, state, inputs)


def squared_error(generated: Tensor, real: Tensor) -> Tensor:
    """L_MSE: the mean over all elements of (real - generated)^2, in all processes."""
    difference = at_least_float32(real) - at_least_float32(generated)
    return difference.square().sum() / count_over_processes(real.numel(), difference)


def total_variation(generated: Tensor, eps: float = 1e-6) -> Tensor:
    """L_TV: the mean over the pixels of |gradient|, in all processes.

    |gradient|^2 = eps + the sum over the channels of (x[i, j + 1] - x[i, j])^2 + (x[i + 1, j] -
    x[i, j])^2, with 0 beyond the last column and row.

    Args:
        generated: [N, C, H, W].
        eps: keeps the slope finite where all is equal.
    """
    x = at_least_float32(generated)
    right, down = F.pad(x.diff(dim=3), (0, 1)), F.pad(x.diff(dim=2), (0, 0, 0, 1))
    lengths = ((right.square() + down.square()).sum(1) + eps).sqrt()  # [N, H, W]
    return lengths.sum() / count_over_processes(lengths.numel(), lengths)


def objectness_of_classes(logits: Tensor, labels: Tensor) -> Tensor:
    """The sum of -log(p p* + (1 - p)(1 - p*)), p = 1 - P(background) and p* = [label >= 1].

    Args:
        logits: [S, 1 + num_classes], background first.
        labels: [S] int64.
    """
    logits = at_least_float32(logits)
    right = torch.where(labels > 0, logits[:, 1:].logsumexp(1), logits[:, 0])
    return (logits.logsumexp(1) - right).sum()


def realness_loss(logits: Tensor, real: bool) -> Tensor:
    """The mean over samples, in all processes, of -log D if they are real, else of -log(1 - D).

    The discriminator's loss is the sum of that of real and of generated samples, each as what it
    is. The generator's is that of generated ones as if they were real, which has large gradients
    as long as D is not deceived; L_adv as printed is minus that of generated ones as such.

    Args:
        logits: [S]; D = sigmoid(logits).
        real: what they are taken for.
    """
    losses = F.softplus(at_least_float32(-logits if real else logits))
    return losses.sum() / count_over_processes(len(logits), losses)
