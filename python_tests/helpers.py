"""What the tests of all operators share: tolerances, awkward layouts, and the common checks."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

FLOAT_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)

# (relative, absolute) by dtype, for values of order 1 computed in the accumulation type and rounded
# once. Absolute errors of sums over channels grow with their number, which tests keep below 100.
TOLERANCES = {
    torch.float64: (1e-12, 1e-12),
    torch.float32: (2e-6, 2e-5),
    torch.float16: (1.0e-3, 1e-3),  # half an ulp is 4.9e-4
    torch.bfloat16: (8.0e-3, 8e-3),  # half an ulp is 3.9e-3
}


def assert_close(actual: Tensor, expected: Tensor) -> None:
    """`actual` is `expected` (usually float64) up to the tolerance of the dtype of `actual`."""
    relative, absolute = TOLERANCES[actual.dtype]
    torch.testing.assert_close(
        actual.double().cpu(), expected.double().cpu(), rtol=relative, atol=absolute, equal_nan=True
    )


def as_layout(x: Tensor, layout: str) -> Tensor:
    """The same values in other strides; `x` has 4 dimensions."""
    if layout == "contiguous":
        return x.contiguous()
    if layout == "channels_last":
        return x.contiguous(memory_format=torch.channels_last)
    if layout == "transposed":  # dense, but neither NCHW nor NHWC
        return x.transpose(2, 3).contiguous().transpose(2, 3)
    if layout == "sliced":  # every second element of rows with a margin
        wide = x.new_full((*x.shape[:3], 2 * x.shape[3] + 3), float("nan"))
        view = wide[..., 2 : 2 + 2 * x.shape[3] : 2]
        return view.copy_(x)
    if layout == "shifted":  # contiguous, but the storage starts at an odd element
        flat = x.new_full((x.numel() + 1,), float("nan"))
        return flat[1:].view(x.shape).copy_(x)
    raise AssertionError(layout)


LAYOUTS = ("contiguous", "channels_last", "transposed", "sliced", "shifted")


def leaves(tensors: Iterable[Tensor | None], dtype: torch.dtype | None = None) -> list[Any]:
    """Copies that ask for gradients, with their strides kept."""
    return [
        None if x is None else x.detach().to(dtype or x.dtype).requires_grad_() for x in tensors
    ]


def gradients(output: Tensor, grad: Tensor, inputs: Sequence[Tensor | None]) -> list[Tensor]:
    return list(torch.autograd.grad(output, [x for x in inputs if x is not None], grad))


def assert_matches_reference(
    operator: Callable[..., Tensor],
    reference: Callable[..., Tensor],
    tensors: Sequence[Tensor | None],
    **options: Any,
) -> None:
    """Output and gradients of `operator` are those of `reference` in float64."""
    ours, theirs = leaves(tensors), leaves((_cpu(x) for x in tensors), torch.float64)
    output, expected = operator(*ours, **options), reference(*theirs, **options)
    assert output.dtype == next(x.dtype for x in tensors if x is not None)
    assert_close(output.detach(), expected.detach())
    grad = torch.randn(expected.shape, dtype=torch.float64).to(output.dtype)
    actual_gradients = gradients(output, grad.to(output.device), ours)
    expected_gradients = gradients(expected, grad.double(), theirs)
    for x, actual, wanted in zip(
        [x for x in ours if x is not None], actual_gradients, expected_gradients, strict=True
    ):
        assert actual.shape == x.shape
        assert_close(actual, wanted)


def assert_fake_has_real_strides(operator: Any, *args: Any, **options: Any) -> None:
    """The fake kernel gives sizes, strides and dtype of the real one; opcheck skips strides."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    real = operator(*args, **options)
    with FakeTensorMode() as mode:
        fakes = [mode.from_tensor(x) if isinstance(x, Tensor) else x for x in args]
        fake = operator(*fakes, **options)
    real, fake = (x if isinstance(x, tuple) else (x,) for x in (real, fake))
    for a, b in zip(real, fake, strict=True):
        assert (a.shape, a.dtype, a.device) == (b.shape, b.dtype, b.device)
        assert a.numel() == 0 or a.stride() == b.stride()


OPCHECKS = (
    "test_schema",
    "test_autograd_registration",
    "test_faketensor",
    "test_aot_dispatch_dynamic",
)


def opcheck(operator: Any, args: Sequence[Any], options: dict[str, Any] | None = None) -> None:
    torch.library.opcheck(operator, tuple(args), options or {}, test_utils=OPCHECKS)


def same_for_any_threads(run: Callable[[], Sequence[Tensor]]) -> Sequence[Tensor]:
    """What `run` gives, to the same bits with 1, 2, 3 and 8 threads."""
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3, 8):
            torch.set_num_threads(threads)
            results.append(run())
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert torch.equal(a, b)
    return results[0]


def assert_compiles(step: Callable[..., Tensor], tensors: Sequence[Tensor], **options: Any) -> None:
    """Without a graph break, to the same bits, and so are the gradients of the leaves `tensors`."""
    expected = step(*tensors)
    actual = torch.compile(step, fullgraph=True, **options)(*tensors)
    assert torch.equal(actual, expected)
    grad = torch.randn_like(expected)
    both = (gradients(x, grad, tensors) for x in (actual, expected))
    for a, b in zip(*both, strict=True):
        assert torch.equal(a, b)


def assert_replays(step: Callable[[], Sequence[Tensor]], x: Tensor) -> None:
    """Captured in a CUDA graph, `step` sees new values of x."""
    step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    x.normal_()
    graph.replay()
    for a, b in zip(captured, step(), strict=True):
        assert torch.equal(a, b)


def _cpu(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.cpu()
