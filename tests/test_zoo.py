"""A sample of the zoo: one small network of each family, and one row of the table in the book."""

import re

import pytest
import torch
import torchvision.models as tm
from torch import nn

import bilrp
from tests import frozen, joint_gamma, nets, zoo, zoo_libraries
from tests.benchmark import by_patches
from tests.conftest import ROOT

TABLE = ROOT / "assets" / "zoo.md"
HALVED = r" \*"  # behind the names of those that need a rule
LIBRARIES = ROOT / "assets" / "zoo_libraries.md"
FEW = {
    "resnet18": 32,
    "vgg11": 32,
    "densenet121": 32,
    "mobilenet_v3_small": 32,
    "efficientnet_b0": 32,
    "regnet_x_400mf": 32,
    "shufflenet_v2_x0_5": 32,
    "squeezenet1_0": 32,
    "convnext_tiny": 32,
    "vit": 16,
    "swin_t": 32,
    "googlenet": 32,
}


def built(name: str) -> nn.Module:
    """A model of the zoo; of two families a smaller one."""
    if name not in ("vgg11", "vit"):
        return zoo.built(name)
    torch.manual_seed(0)
    if name == "vgg11":  # without its 120 million weights at the top
        model: nn.Module = nn.Sequential(tm.vgg11().features, nn.Flatten())
    else:
        model = tm.VisionTransformer(16, 4, 2, 4, 32, 48, num_classes=10)
    model = model.double().eval()
    return zoo.randomise(model, pictures(name, 8))


def pictures(name: str, count: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(count, 3, FEW[name], FEW[name], generator=generator, dtype=torch.float64)


@pytest.fixture(autouse=True)
def _one_thread():
    """Small products are slower with more."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


QUICK = ("resnet18", "mobilenet_v3_small", "squeezenet1_0", "shufflenet_v2_x0_5", "vit")


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in QUICK else pytest.mark.slow) for n in FEW]
)
def test_a_family_is_explained_exactly_and_completely(name):
    found = zoo.measured(built(name), pictures(name), gamma_zero=False)
    assert found["y"] < 1e-10
    assert found["ledger"] < 1e-10
    assert found["push"] < 1e-10
    assert abs(found["pixels"]) > 1e-4, "the images have no part in it: nothing was tested"


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in QUICK else pytest.mark.slow) for n in FEW]
)
def test_parts_at_gamma_zero_are_the_gradient_with_frozen_parts(name):
    """The independent check: automatic differentiation of the model, owner by owner."""
    model, x = built(name), pictures(name)[0]
    owners = zoo.quadrants(x.shape[-1])
    f = bilrp.factor(model, x, bilrp.LRP0(), groups=owners)
    generator = torch.Generator().manual_seed(3)
    weights = torch.randn(3, len(f.features), generator=generator, dtype=torch.float64)
    features, found = frozen.relevance(model, x[None], weights)
    torch.testing.assert_close(f.features, features)
    expected = torch.stack([(found * (owners == k)).flatten(1).sum(1) for k in range(4)])
    parts = f.dense() @ weights.T
    assert float((parts - expected).abs().max()) <= 1e-10 * float(expected.abs().max())


def rows(text: str | None = None) -> list[dict[str, str]]:
    text = TABLE.read_text(encoding="utf-8").split("\nautoLRP")[0] if text is None else text
    lines = [line for line in text.splitlines() if line[:1] == "|"]
    cells = [[c.strip() for c in line.strip("|").split("|")] for line in lines]
    return [dict(zip(cells[0], row, strict=True)) for row in cells[2:]]


def test_the_table_says_what_was_run_and_nothing_in_it_is_wrong():
    text, every = TABLE.read_text(encoding="utf-8"), tm.list_models(module=tm)
    assert re.search(r"commit [0-9a-f]{7,}, `make zoo`", text)
    listed = [r["model"] for r in rows()]
    assert len(listed) >= 20
    assert listed == [name for name in every if name in listed]
    missing = re.search(r"explained, (\d+) not run yet", text)
    assert len(every) - len(listed) == (int(missing[1]) if missing else 0)
    for r in rows():
        if r["error of y"].startswith("refused"):
            continue
        tolerance = 1e-10 if r["format"] == "float64" else 1e-5
        for column in ("error of y", "error of ledger", "push - pull"):
            assert float(r[column]) < tolerance, r


@pytest.mark.parametrize(
    "name", ["squeezenet1_0", pytest.param("mobilenet_v3_small", marks=pytest.mark.slow)]
)
def test_a_row_of_the_table_comes_out_again(name):
    (row,) = (r for r in rows() if r["model"] == name)
    found = zoo.measured(zoo.built(name), zoo.images(name))
    expected = [float(row[c]) for c in ("pixels, %", "size, gamma 0", "size, default")]
    assert [100 * found["pixels"], found["zero"], found["default"]] == pytest.approx(
        expected, rel=0.01, abs=0.06
    )


def test_the_table_of_other_libraries_is_whole_and_nothing_in_it_is_wrong():
    text = LIBRARIES.read_text(encoding="utf-8")
    assert re.search(r"commit [0-9a-f]{7,}( and changes)?, `python -m tests.zoo_libraries`", text)
    tables = re.split(r"\n(?=timm )", text)
    assert len(tables) == 2
    listed = [[r["network"].removesuffix(HALVED) for r in rows(t)] for t in tables]
    assert listed[0] == [k for kinds in zoo_libraries.TRANSFORMERS.values() for k in kinds]
    assert listed[1] == zoo_libraries.TIMM
    for r in (*rows(tables[0]), *rows(tables[1])):
        if r["error of y"] in ("refused", "not run"):
            why = text.split(f"\n{r['network']}, {r['error of y']}: ")[1].split("\n")[0]
            assert "has no relevance map" in why or "million parameters" in why
            continue
        if r["network"].endswith(HALVED):
            assert f"\n\\* {r['network'].removesuffix(HALVED)}: half each in " in text
        for column in ("error of y", "error of ledger"):  # some compute parts in float32
            assert float(r[column]) < 1e-5, r


@pytest.mark.parametrize(
    ("kind", "key"),
    [("Llama", "inputs_embeds"), ("AST", "input_values"), ("Mamba", "inputs_embeds")],
)
def test_a_row_of_the_other_libraries_comes_out_again(kind, key):
    pytest.importorskip("transformers")
    of_transformers = rows(LIBRARIES.read_text(encoding="utf-8").split("\ntimm ")[0])
    (row,) = (r for r in of_transformers if r["network"].removesuffix(HALVED) == kind)
    again = zoo_libraries.row(kind, zoo_libraries.of_transformers(kind, key))
    assert [again[1], again[2]] == [row["takes"], row["format"]]
    assert float(again[5]) == pytest.approx(float(row["input, %"]), abs=0.2)


@pytest.mark.slow
def test_joint_gamma_is_tame_where_gamma_at_each_layer_is_not():
    """One row of the other table of that page, computed again."""
    name = "resnet18"
    text = (ROOT / "assets" / "joint_gamma.md").read_text()
    printed = [
        float(v) for v in re.findall(r"([\d.e+]+) \(", text.split(f"| {name} ")[1].split("\n")[0])
    ]
    rules = (bilrp.LRP0(), joint_gamma.EachGamma(0.1), bilrp.Gamma(0.1), bilrp.Gamma(0.1, "shared"))
    found = [joint_gamma.measured(name, rule) for rule in rules]
    assert [size for size, _ in found] == pytest.approx(printed, rel=0.3)
    assert all(error < 1e-12 for _, error in found)
    assert found[1][0] > 1e6
    assert found[2][0] < 5


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_a_resnet_is_shared_out_as_by_zennit(name: str) -> None:
    """LRP-0 through shortcuts, by an independent library with its canonizer for them."""
    model = zoo.built(name)
    model.fc = nn.Identity()
    x = zoo.images(name, 1)[0]
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(2, len(model(x[None])[0]), generator=generator, dtype=x.dtype)
    cells = by_patches(nets.zennit_resnet(nets.without_batch_norms(model), x, rows))
    ours = bilrp.factor(model, x, bilrp.LRP0(), patch=8).dense() @ rows.T
    # they divide by each sum, stabilised by 1e-12; here nothing is divided at LRP-0
    assert float((ours.T - cells).abs().max()) < 1e-6 * float(cells.abs().max())
