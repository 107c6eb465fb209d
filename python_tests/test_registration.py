"""Every operator is complete: schema, kernels, fake, gradient, documentation, tests, benchmark."""

import inspect

import backends
import pytest
import torch
from backends import ROOT

import tinyops

FEATURE_OPERATORS = (  # with gradients, and Triton kernels
    "gated_upsample_add",
    "pixel_shuffle",
    "difference_map",
    "difference_gate",
    "avg_max_pool",
    "balanced_l1",
)
BOX_OPERATORS = (  # neither; on a GPU without CUDA kernels they work on a copy
    "nms",
    "soft_nms",
    "stitch_tiles",
    "max_overlap",
    "topk_per_target",
    "sample_negatives",
    "attention_targets",
)

# Schemas that share the files of another operator. Some have a function of their own (None), the
# others are what an option of the operator's function calls.
VARIANTS = {
    "pixel_shuffle_concat": ("pixel_shuffle", None),
    "pixel_shuffle_add": ("pixel_shuffle", None),
    "balanced_l1_sums": ("balanced_l1", None),
    "nms_padded": ("nms", "max_outputs"),
    "stitch_tiles_padded": ("stitch_tiles", "max_outputs"),
    "stitch_tiles_union": ("stitch_tiles", "merge"),
    "topk_per_target_ties": ("topk_per_target", "all_ties"),
    "sample_negatives_padded": ("sample_negatives", None),
    "sample_negatives_from_boxes": ("sample_negatives", None),
}
# What a schema takes instead of a parameter of the Python function.
STANDS_FOR = {
    "seed": "generator",
    **dict.fromkeys(("images", "height", "width"), "sizes"),
}

SCHEMAS = sorted(
    name.partition("::")[2]
    for name in torch._C._dispatch_get_all_op_names()
    if name.startswith("tinyops::")
)
PUBLIC = [name for name in SCHEMAS if not name.startswith("_")]
FUNCTIONS = [name for name in PUBLIC if VARIANTS.get(name, (name, None))[1] is None]


def stem_of(name):
    name = name.removeprefix("_").removesuffix("_backward").rstrip("_")
    return VARIANTS.get(name, (name, None))[0]


def has_kernel(namespace, name, key):
    return torch._C._dispatch_has_kernel_for_dispatch_key(f"{namespace}::{name}", key)


def arguments_of(name):
    return getattr(torch.ops.tinyops, name).default._schema.arguments


def test_listed_operators_are_those_of_the_library():
    assert {stem_of(name) for name in SCHEMAS} == {*FEATURE_OPERATORS, *BOX_OPERATORS}
    assert tinyops.ops.OPERATORS == FEATURE_OPERATORS + BOX_OPERATORS
    assert set(VARIANTS) <= set(SCHEMAS)


@pytest.mark.parametrize("name", SCHEMAS)
def test_kernels_exist_for_cpu_fake_and_every_gpu_path(name):
    backends.get("sim"), backends.get("triton")
    assert has_kernel("tinyops", name, "CPU")
    assert has_kernel("tinyops", name, "Meta")
    assert has_kernel("tinyops_sim", name, "CompositeExplicitAutograd")
    assert has_kernel("tinyops_triton", name, "CompositeExplicitAutograd")
    if torch.version.cuda is not None:
        assert has_kernel("tinyops", name, "CUDA")


@pytest.mark.parametrize("name", PUBLIC)
def test_gradient_and_autocast_of_features_but_not_of_boxes(name):
    assert has_kernel("tinyops", name, "Autograd")  # for boxes: that there is nothing to do
    features = stem_of(name) in FEATURE_OPERATORS
    for key in ("AutocastCPU", "AutocastCUDA"):
        assert has_kernel("tinyops", name, key) == features
    if not features:
        assert f"_{name}_backward" not in SCHEMAS
        where = torch._C._dispatch_dump(f"tinyops::{name}")
        lines = [line for line in where.splitlines() if line.startswith("Autograd")]
        assert lines
        assert all("fallthrough" in line for line in lines), lines


@pytest.mark.parametrize("name", FUNCTIONS)
def test_public_function_is_documented_and_takes_what_the_schema_takes(name):
    function = getattr(tinyops.ops, name)
    assert name in tinyops.ops.__all__
    text = inspect.getdoc(function)
    for section in ("Args:", "Returns:", "Raises:") if name[-1] != "_" else ("Args", "Returns:"):
        assert section in text
    signature = inspect.signature(function)
    parameters = signature.parameters
    assert signature.return_annotation is not inspect.Signature.empty
    assert all(p.annotation is not inspect.Parameter.empty for p in parameters.values())

    options = {v: option for v, (stem, option) in VARIANTS.items() if stem == name and option}
    own = [STANDS_FOR.get(a.name, a.name) for a in arguments_of(name)]
    more = {a.name for v in options for a in arguments_of(v)} | set(options.values())
    assert set(parameters) == set(own) | more
    replaced = set(STANDS_FOR.values())  # these may stand elsewhere
    assert [p for p in parameters if p in own and p not in replaced] == [
        p for p in own if p not in replaced
    ]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_words_are_codes_in_the_schema_and_defaults_agree(name):
    parameters = inspect.signature(getattr(tinyops.ops, name)).parameters
    for a in arguments_of(name):
        if STANDS_FOR.get(a.name, a.name) != a.name:
            continue
        p = parameters[a.name]
        if p.annotation in (str, "str"):
            assert str(a.type) == "int"
        elif a.has_default_value():
            assert p.default == a.default_value
        if a.kwarg_only:
            assert p.kind == inspect.Parameter.KEYWORD_ONLY


def test_no_schema_takes_a_string():  # torch's stable ABI leaks it at every call
    for name in SCHEMAS:
        assert not any("str" in str(a.type) for a in arguments_of(name))


@pytest.mark.parametrize("stem", tinyops.ops.OPERATORS)
def test_every_operator_has_its_files_and_its_place_in_the_readme(stem):
    for path in (
        f"tinyops/ops/{stem}.py",
        f"csrc/ops/{stem}_check.h",
        f"csrc/cpu/{stem}.cpp",
        f"csrc/cuda/{stem}.cpp",
        f"csrc/cuda/{stem}_kernels.cu",
        f"python_tests/test_{stem}.py",
        f"benchmarks/ops/bench_{stem}.py",
    ):
        assert (ROOT / path).is_file(), path
    # Only what Triton is for: `tinyops info` tells the way of an operator by this file.
    assert (ROOT / f"tinyops/_triton/{stem}.py").is_file() == (stem in FEATURE_OPERATORS)
    readme = (ROOT / "README.md").read_text()
    functions = [name for name in FUNCTIONS if stem_of(name) == stem]
    assert all(f"`{name}`" in readme for name in functions)
    assert f"tinyops/ops/{stem}.py" in readme
    changelog = (ROOT / "CHANGELOG.md").read_text()
    assert any(f"`{name}`" in changelog for name in functions)
