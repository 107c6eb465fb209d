"""What difference_gate promises besides its values: a threshold that learns, errors, torch."""

import functools

import helpers
import pytest
import torch
import torch.nn.functional as F
from test_difference_gate import CODES, make

from tinyops.ops import difference_gate, difference_map

# ---- learning ------------------------------------------------------------------------------------


class Detector(torch.nn.Module):
    """Features and a reconstruction of a picture, gated by where the reconstruction fails."""

    def __init__(self, ste, threshold):
        super().__init__()
        self.features = torch.nn.Conv2d(3, 8, 4, stride=4)
        self.reconstruction = torch.nn.ConvTranspose2d(8, 3, 4, stride=4)
        self.weight = torch.nn.Linear(8, 8)
        self.head = torch.nn.Conv2d(8, 1, 1)
        self.threshold = torch.nn.Parameter(torch.tensor(threshold))
        self.ste = ste

    def forward(self, image):
        features = self.features(image).relu()
        difference = difference_map(self.reconstruction(features).sigmoid(), image)
        weight = self.weight(features.mean((2, 3)))[..., None, None].sigmoid()
        gated = difference_gate(features, weight, difference, self.threshold, ste=self.ste)
        return self.head(gated)


def trained(ste, best=0.0, steps=6):
    """A network whose only fault is a threshold of 0.3 and not `best`, the losses and gradients."""
    torch.manual_seed(3)
    network, image = Detector(ste, best), torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        target = network(image)
        network.threshold.fill_(0.3)
    optimizer = torch.optim.SGD([network.threshold], lr=10)
    losses, gradients = [], []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = F.mse_loss(network(image), target)
        loss.backward()
        losses.append(loss.item())
        gradients.append(network.threshold.grad.item())
        optimizer.step()
    return network, losses, gradients


@pytest.mark.parametrize("best", [0.0, 0.6])
def test_threshold_learns_with_the_straight_through_estimator(best):
    network, losses, gradients = trained("identity", best)
    assert all(g > 0 if best < 0.3 else g < 0 for g in gradients)
    assert abs(network.threshold.item() - best) < abs(0.3 - best) - 0.02
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.9 * losses[0]
    assert all(p.grad.abs().sum() > 0 for p in network.reconstruction.parameters())


def test_threshold_does_not_learn_without_it_as_in_the_released_code():
    network, losses, gradients = trained("none")
    assert gradients == [0.0] * 6
    assert network.threshold.item() == torch.tensor(0.3).item()
    assert losses[-1] == losses[0] > 0
    # Not None: weight decay goes on pulling at the threshold, as it does in the released code.
    assert network.threshold.grad is not None
    assert all(p.grad.abs().sum() == 0 for p in network.reconstruction.parameters())


def test_gradient_of_the_threshold_is_zero_without_an_estimator(backend):
    for options in CODES:
        tensors = helpers.leaves(make(dtype=torch.float32, device=backend.device))
        out = backend.ops.difference_gate(*tensors, **(options | {"ste": 1}))
        _, _, d_difference, d_threshold = helpers.gradients(out, torch.ones_like(out), tensors)
        assert not d_difference.any()
        assert d_threshold.item() == 0


# ---- errors --------------------------------------------------------------------------------------


def bad_arguments():
    features, weight = torch.zeros(2, 3, 4, 5), torch.zeros(2, 3, 1, 1)
    difference, threshold = torch.zeros(2, 1, 8, 15), torch.zeros(())
    good = {
        "features": features,
        "channel_weight": weight,
        "difference": difference,
        "threshold": threshold,
    }

    def case(message, **changes):
        return pytest.param({**good, **changes}, message, id=message)

    yield case("features must have 4 dimensions [N, C, H, W], got [3, 4, 5]", features=features[0])
    yield case(
        "features must be float32, float64, float16 or bfloat16, got int64",
        features=features.long(),
    )
    yield case(
        "channel_weight must have 4 dimensions [N, C, H, W], got [2, 3]",
        channel_weight=weight[..., 0, 0],
    )
    yield case(
        "channel_weight must be float32 like features, got float64", channel_weight=weight.double()
    )
    yield case("channel_weight must be [2, 3, 1, 1], got [2, 3, 4, 5]", channel_weight=features)
    yield case(
        "difference must have 4 dimensions [N, C, H, W], got [1, 8, 15]", difference=difference[0]
    )
    yield case(
        "difference must be float32, float64 or float32 like features, got float16",
        difference=difference.half(),
    )
    yield case(
        "difference must be float32, float64 or bfloat16 like features, got float16",
        difference=difference.half(),
        features=features.bfloat16(),
        channel_weight=weight.bfloat16(),
    )
    yield case("difference must be [2, 1, H, W], got [1, 1, 8, 15]", difference=difference[:1])
    yield case(
        "difference must be [2, 1, H, W], got [2, 2, 8, 15]",
        difference=difference.expand(2, 2, 8, 15),
    )
    for height, width in ((8, 14), (9, 15), (2, 5), (0, 5)):
        yield case(
            f"height and width of difference must be multiples of 4x5, got {height}x{width}",
            difference=torch.zeros(2, 1, height, width),
        )
    yield case("threshold must have no dimensions, got [1]", threshold=threshold[None])
    yield case(
        "threshold must be float32 like difference, got float64", threshold=threshold.double()
    )


@pytest.mark.parametrize(("arguments", "message"), list(bad_arguments()))
@pytest.mark.parametrize("form", ["real", "fake", "backward"])
def test_bad_argument_is_named_with_expectation_and_value(backend, form, arguments, message):
    device = "meta" if form == "fake" else backend.device
    arguments = {k: v.to(device) for k, v in arguments.items()}
    run = backend.ops.difference_gate
    if form == "backward":
        needs = {f"need_{name}": True for name in arguments}
        grad = {"grad": arguments["features"]}
        run = functools.partial(backend.ops._difference_gate_backward, **grad, resize=0, **needs)
    with pytest.raises(RuntimeError) as error:
        run(**arguments)
    assert str(error.value).splitlines()[0] == f"tinyops: difference_gate: {message}"


@pytest.mark.parametrize("device", ["real", "meta"])
def test_bad_codes_and_gradients_are_named(backend, device):
    device = backend.device if device == "real" else device
    tensors = make(size="ratio-2x3", dtype=torch.float32, device=device)
    with pytest.raises(RuntimeError, match="difference_gate: resize must be 0, 1 or 2, got 3"):
        backend.ops.difference_gate(*tensors, resize=3)
    with pytest.raises(RuntimeError, match="difference_gate: ste must be 0 or 1, got -1"):
        backend.ops.difference_gate(*tensors, ste=-1)
    backward = backend.ops._difference_gate_backward
    with pytest.raises(RuntimeError, match=r"grad must be \[2, 3, 3, 7\], got \[1, 3, 3, 7\]"):
        backward(tensors[0][:1], *tensors, 0, True, True, True, True)


def test_unknown_words_are_named():
    tensors = make()
    with pytest.raises(RuntimeError, match="resize must be one of 'nearest', 'area', 'max', got"):
        difference_gate(*tensors, resize="bilinear")
    with pytest.raises(RuntimeError, match="ste must be one of 'identity', 'none', got 'sigmoid'"):
        difference_gate(*tensors, ste="sigmoid")


def test_device_mix_is_an_error():
    good = dict(zip(("features", "channel_weight", "difference", "threshold"), make(), strict=True))
    for name in ("channel_weight", "difference", "threshold"):
        with pytest.raises(RuntimeError, match=f"{name} must be on cpu like features, got meta"):
            difference_gate(**(good | {name: good[name].to("meta")}))


# ---- with the rest of torch ----------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_computes_in_its_dtype_and_decides_in_float32(backend, dtype):
    features, weight, difference, threshold = make(c=4, dtype=torch.float32, device=backend.device)
    difference += 1e-4  # half formats would round this to the threshold
    tensors = helpers.leaves([features, weight.to(dtype), difference, threshold])
    with torch.autocast(backend.device, dtype=dtype):
        out = backend.ops.difference_gate(*tensors)
    assert out.dtype == dtype
    rounded = features.to(dtype), weight.to(dtype), difference, threshold
    assert torch.equal(out, backend.ops.difference_gate(*rounded))
    out.float().sum().backward()
    assert [x.grad.dtype for x in tensors] == [x.dtype for x in tensors]
    half = [x.to(dtype) for x in (features, weight, difference, threshold)]
    with torch.autocast(backend.device, dtype=dtype):
        assert backend.ops.difference_gate(*half).dtype == dtype
        double = [x.double() for x in half]
        assert backend.ops.difference_gate(*double).dtype == torch.float64


def test_compile_without_graph_break(backend):
    tensors = helpers.leaves(make(c=4, dtype=torch.float32, device=backend.device))

    def step(features, weight, difference, threshold):
        op = backend.ops.difference_gate
        return op(features * 2, weight.sigmoid(), difference, threshold, resize=2) + 1

    helpers.assert_compiles(step, tensors, backend="aot_eager")


def test_public_functions_compile_with_inductor():
    def step(image, reconstruction, features, weight, threshold):
        difference = difference_map(reconstruction, image)
        return difference_gate(features, weight, difference, threshold, resize="area")

    features, weight, _, threshold = make(c=4, dtype=torch.float32)
    image, reconstruction = torch.rand(2, 2, 3, 8, 32)
    tensors = helpers.leaves([image, reconstruction, features, weight, threshold])
    helpers.assert_compiles(step, tensors)


def test_export_with_dynamic_sizes():
    class Step(torch.nn.Module):
        def forward(self, features, weight, difference, threshold):
            return difference_gate(features, weight, difference, threshold)

    n, h, w = (torch.export.Dim(name, min=1, max=512) for name in ("n", "h", "w"))
    shapes = {
        "features": {0: n, 2: h, 3: w},
        "weight": {0: n},
        "difference": {0: n, 2: 4 * h, 3: 4 * w},
        "threshold": {},
    }
    program = torch.export.export(Step(), tuple(make()), dynamic_shapes=shapes)
    other = make(3, size="ratio-4-odd")
    assert torch.equal(program.module()(*other), difference_gate(*other))


@pytest.mark.parametrize("backend", ["triton", "cuda"], indirect=True)
def test_cuda_graph_replays(backend):
    if backend.device != "cuda":
        pytest.skip("needs a GPU")
    tensors = make(c=8, dtype=torch.float32, device="cuda")
    grad = torch.randn_like(tensors[0])

    def step():
        d = backend.ops._difference_gate_backward(grad, *tensors, 2, True, True, True, True)
        return backend.ops.difference_gate(*tensors, resize=2), *d

    helpers.assert_replays(step, tensors[0])


# 9 GB of GPU memory; index arithmetic on the CPU is 64-bit throughout.
@pytest.mark.parametrize("backend", ["triton", "cuda"], indirect=True)
def test_more_than_two_to_the_31_elements(backend):
    if backend.device != "cuda":
        pytest.skip("needs a GPU")
    features = torch.randn(1, 33000, 256, 256, dtype=torch.float16, device="cuda")
    weight = torch.rand(1, 33000, 1, 1, dtype=torch.float16, device="cuda")
    difference = torch.rand(1, 1, 512, 512, device="cuda")
    threshold = torch.tensor(0.5, device="cuda")
    out = backend.ops.difference_gate(features, weight, difference, threshold)
    last = backend.ops.difference_gate(features[:, -1:], weight[:, -1:], difference, threshold)
    assert torch.equal(out[:, -1:], last)
