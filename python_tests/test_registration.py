"""Every operator is complete: schema, kernels, fake, gradient, documentation, tests, benchmark."""

import inspect

import pytest
import torch
from backends import ROOT

import tinyops

SCHEMAS = sorted(
    name.partition("::")[2]
    for name in torch._C._dispatch_get_all_op_names()
    if name.startswith("tinyops::")
)
PUBLIC = [name for name in SCHEMAS if not name.startswith("_")]


def has_kernel(namespace, name, key):
    return torch._C._dispatch_has_kernel_for_dispatch_key(f"{namespace}::{name}", key)


def test_listed_operators_are_those_of_the_library():
    stems = {name.removeprefix("_").removesuffix("_backward").rstrip("_") for name in SCHEMAS}
    assert stems == set(tinyops.ops.OPERATORS)


@pytest.mark.parametrize("name", SCHEMAS)
def test_kernels_exist_for_cpu_fake_and_every_gpu_path(name):
    import backends

    backends.get("sim"), backends.get("triton")
    assert has_kernel("tinyops", name, "CPU")
    assert has_kernel("tinyops", name, "Meta")
    assert has_kernel("tinyops_sim", name, "CompositeExplicitAutograd")
    assert has_kernel("tinyops_triton", name, "CompositeExplicitAutograd")
    if torch.version.cuda is not None:
        assert has_kernel("tinyops", name, "CUDA")


@pytest.mark.parametrize("name", PUBLIC)
def test_public_operators_have_gradients_autocast_and_a_documented_function(name):
    assert has_kernel("tinyops", name, "Autograd")
    assert has_kernel("tinyops", name, "AutocastCPU")
    assert has_kernel("tinyops", name, "AutocastCUDA")
    function = getattr(tinyops.ops, name)
    assert name in tinyops.ops.__all__
    text = inspect.getdoc(function)
    assert "Args" in text
    assert "Returns:" in text
    assert "Raises:" in text
    parameters = inspect.signature(function).parameters.values()
    assert all(p.annotation is not inspect.Parameter.empty for p in parameters)
    schema = getattr(torch.ops.tinyops, name).default._schema
    assert [p.name for p in parameters] == [a.name for a in schema.arguments]


def test_no_schema_takes_a_string():  # torch's stable ABI leaks it at every call
    for name in SCHEMAS:
        arguments = getattr(torch.ops.tinyops, name).default._schema.arguments
        assert not any("str" in str(a.type) for a in arguments)


@pytest.mark.parametrize("stem", tinyops.ops.OPERATORS)
def test_every_operator_has_its_files_and_its_place_in_the_readme(stem):
    for path in (
        f"tinyops/ops/{stem}.py",
        f"tinyops/_triton/{stem}.py",
        f"csrc/cpu/{stem}.cpp",
        f"csrc/cuda/{stem}.cpp",
        f"csrc/cuda/{stem}_kernels.cu",
        f"python_tests/test_{stem}.py",
        f"benchmarks/ops/bench_{stem}.py",
    ):
        assert (ROOT / path).is_file(), path
    assert f"`{stem}`" in (ROOT / "README.md").read_text()
    assert stem in (ROOT / "CHANGELOG.md").read_text()
