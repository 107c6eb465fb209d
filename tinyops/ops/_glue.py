"""What every operator needs between its kernels and torch: layouts, checks, autocast, in place."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.forward_ad import unpack_dual

FLOAT_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def layout_of(x: Tensor) -> torch.memory_format:
    """The kernels' layout rule: NHWC stays NHWC, anything else becomes contiguous."""
    if not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last):
        return torch.channels_last
    return torch.contiguous_format


def check(condition: bool, message: str) -> None:
    """Raise RuntimeError, as torch's own operators do, in the words of the C++ checks."""
    if not condition:
        raise RuntimeError(f"tinyops: {message}")


def dtype_text(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def shape_text(size: Sequence[int]) -> str:
    return f"[{', '.join(map(str, size))}]"


def share_memory(a: Tensor, b: Tensor) -> bool:
    """Whether the memory that two tensors span overlaps; views that interleave count as such."""

    def span(x: Tensor) -> tuple[int, int]:
        last = sum((n - 1) * s for n, s in zip(x.shape, x.stride(), strict=True))
        return x.data_ptr(), x.data_ptr() + (last + 1) * x.element_size()

    if a.numel() == 0 or b.numel() == 0 or a.device != b.device:
        return False
    (a_begin, a_end), (b_begin, b_end) = span(a), span(b)
    return a_begin < b_end and b_begin < a_end


def register_autocast(name: str, *, in_place: bool = False, wide: Sequence[str] = ()) -> None:
    """Under autocast, run operator `name` in autocast's dtype, as a convolution would.

    Feature operators are memory-bound and the convolution after them casts anyway; their arithmetic
    is float32 inside. float64 tensors are left alone, as in torch. An operator that writes into its
    first argument follows the dtype of that argument instead. The arguments named in `wide` become
    float32, as those of a loss do.
    """
    names = [a.name for a in operator(name)._schema.arguments]
    for device, key in (("cpu", "AutocastCPU"), ("cuda", "AutocastCUDA")):

        def kernel(*args: Any, device: str = device, key: str = key, **kwargs: Any) -> Any:
            dtype = args[0].dtype if in_place else torch.get_autocast_dtype(device)

            def cast(argument: str, x: Any) -> Any:
                narrower = isinstance(x, Tensor) and x.dtype in FLOAT_DTYPES[:3]
                return x.to(torch.float32 if argument in wide else dtype) if narrower else x

            with torch._C._ExcludeDispatchKeyGuard(_keys(key)):
                options = {k: cast(k, v) for k, v in kwargs.items()}
                return operator(name)(*map(cast, names, args), **options)

        # Once for eager calls, once for tensors that Python dispatches (tracing, subclasses).
        operator(name).py_impl(getattr(torch._C.DispatchKey, key))(kernel)
        torch.library.impl(name, key)(kernel)


def register_autocast_of_pair(name: str, first: str, second: str) -> None:
    """Under autocast, run operator `name` on two tensors of different dtypes in the wider one.

    For sums that are accumulated in float32 and that no convolution follows: a rounding before them
    would only lose bits, and a copy in float32 of tensors that agree would only take time.
    """
    names = [argument.name for argument in operator(name)._schema.arguments]

    for key in ("AutocastCPU", "AutocastCUDA"):

        def kernel(*args: Any, key: str = key, **kwargs: Any) -> Any:
            named = {**dict(zip(names, args, strict=False)), **kwargs}
            a, b = named[first], named[second]
            if a.dtype != b.dtype and {a.dtype, b.dtype} <= {*FLOAT_DTYPES[:3]}:
                named |= {first: a.to(torch.float32), second: b.to(torch.float32)}
            with torch._C._ExcludeDispatchKeyGuard(_keys(key)):
                return operator(name)(**named)

        operator(name).py_impl(getattr(torch._C.DispatchKey, key))(kernel)
        torch.library.impl(name, key)(kernel)


def once_differentiable(backward: Callable[..., tuple[Any, ...]]) -> Callable[..., Any]:
    """Make a second derivative through `backward` an error, never a silent zero.

    torch's decorator of this name notices it by the incoming gradient alone, and loses the part
    that depends on the saved tensors.
    """

    @functools.wraps(backward)
    def run(ctx: Any, *grads: Tensor) -> Any:
        with torch.no_grad():
            results = backward(ctx, *grads)
        if not torch.is_grad_enabled():
            return results
        present = [k for k, x in enumerate(results) if x is not None]
        error = torch._C._functions.DelayedError(
            b"tinyops: this operator can be differentiated once only", len(present)
        )
        tracked = error(*(results[k].detach().requires_grad_() for k in present))
        tracked = tracked if isinstance(tracked, tuple) else (tracked,)
        delayed = dict(zip(present, tracked, strict=True))
        return tuple(delayed.get(k) for k in range(len(results)))

    return run


def register_in_place(name: str) -> None:
    """Tell autograd that operator `name` changes its first argument, and has no derivative."""
    stem = name.partition("::")[2]

    def refuse_derivatives(*args: Any, **kwargs: Any) -> Any:
        tensors = [x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)]
        tracked = torch.is_grad_enabled() and any(x.requires_grad for x in tensors)
        check(
            not tracked and all(unpack_dual(x).tangent is None for x in tensors),
            f"{stem} works in place and has no gradient: call it under torch.no_grad(), or call "
            f"{stem.rstrip('_')}",
        )
        with torch._C._AutoDispatchBelowAutograd():
            return count_change(*args, **kwargs)

    def count_change(*args: Any, **kwargs: Any) -> Any:
        changed = args[0] if args else kwargs["low"]
        check(
            not changed.is_inference() or torch.is_inference_mode_enabled(),
            f"{stem}: low is an inference tensor and can be changed only in inference mode",
        )
        torch.autograd.graph.increment_version(changed)  # a backward that saved it must notice
        with torch._C._AutoDispatchBelowADInplaceOrView():
            return operator(name)(*args, **kwargs)

    torch.library.impl(name, "Autograd")(refuse_derivatives)
    torch.library.impl(name, "ADInplaceOrView")(count_change)


def _keys(name: str) -> torch._C.DispatchKeySet:
    return torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, name))


def operator(name: str) -> torch._ops.OpOverload:
    """The operator "namespace::name"."""
    namespace, _, stem = name.partition("::")
    return getattr(getattr(torch.ops, namespace), stem).default
