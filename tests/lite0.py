"""EfficientNet-Lite0 beside VGG-16, at length: what chapter 11 shows a part of.

python -m tests.lite0    writes assets/lite0.json, in about 20 minutes of one core. What is done is
kept in _build/lite0, so that a run that was stopped goes on.

Planted matches (ten objects, four sizes and contrasts, gamma from 0 to 1, biases as owners and
shared, shuffled weights), face to face among five cats, the stereo pair with its nulls, ORL
faces and the invariance of films over depth.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from datetime import date
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import bilrp
from bilrp import controls, data, metrics
from bilrp.compare.planted import planted_ring
from bilrp.engine.rules import Rules

ROOT = Path(__file__).resolve().parents[1]
TARGET, KEPT = ROOT / "assets" / "lite0.json", ROOT / "_build" / "lite0"
SIDE, PATCH, RING = 128, 32, 5

# --- planted matches ---------------------------------------------------------------------------

# Pictures that something is cut out of, and where: top, left, side, in pixels of 160 on a side.
OBJECTS = {
    "tabby's face": ("cats/tabby.jpg", 32, 38, 96),
    "Persian's face": ("cats/persian.jpg", 16, 26, 88),
    "Siamese's face": ("cats/siamese.jpg", 8, 66, 94),
    "ginger cat's face": ("photos/chelsea.png", 10, 10, 140),
    "cup": ("photos/coffee.png", 16, 30, 110),
    "astronaut's face": ("photos/astronaut.png", 0, 34, 70),
    "flower": ("photos/flower.jpg", 20, 20, 120),
    "strawberries": ("imagenet/strawberry.jpg", 30, 30, 100),
    "drum": ("imagenet/drum.jpg", 20, 20, 120),
    "eagle": ("imagenet/bald_eagle.jpg", 20, 20, 120),
}
GAMMAS = (0.0, 0.01, 0.02, 0.05, 0.2, 1.0)
# Other sizes in pixels and contrasts of the object.
VARIANTS = (
    ("size 20", 20, 1.0),
    ("size 64", 64, 1.0),
    ("contrast .5", PATCH, 0.5),
    ("contrast .25", PATCH, 0.25),
)


def backgrounds() -> Tensor:
    """ImageNet photos that no object is cut out of, and one of the two jeeps."""
    used = {name for name, *_ in OBJECTS.values()} | {"imagenet/jeep_2.jpg"}
    return data.photos([n for n in data.names("imagenet") if n not in used], SIDE)


def thing(name: str) -> Tensor:
    """An object as a square picture."""
    path, top, left, side = OBJECTS[name]
    return data.photo(path, 160)[0, :, top : top + side, left : left + side]


def rows_of_patches() -> Tensor:
    own = torch.arange((SIDE // PATCH) ** 2).view(SIDE // PATCH, -1)
    own = own.repeat_interleave(PATCH, 0).repeat_interleave(PATCH, 1)
    return (own == torch.arange(int(own.max()) + 1)[:, None, None])[:, None, None].float()


@torch.no_grad()
def factor(model: nn.Module, x: Tensor, rules: Rules) -> tuple[Tensor, Tensor]:
    """What each patch owns of each feature, and the features; without the rows of the sinks.

    float64 where biases are shared: in float32 the engine's guard refuses them for this network.
    """
    shared = isinstance(rules, bilrp.Gamma) and rules.biases == "shared"
    form = torch.float64 if shared else torch.float32
    trace = bilrp.Trace(model, x[None], rules, form)
    u = rows_of_patches().expand(-1, 1, 3, SIDE, SIDE).to(form)
    return trace.push_rows(u, sinks=False).flatten(1).double(), trace.features.flatten().double()


def measure(R: Tensor, y: float, pairs: Tensor) -> list[float]:
    """Share on the true pairs, that of its marginals, magnitudes over sum, share of the pixels."""
    R = R.view(pairs.shape)
    null = metrics.share_on(controls.marginal_null(R), pairs)
    numbers = (metrics.share_on(R, pairs), null, R.abs().sum() / R.sum().abs(), R.sum() / y)
    return [float(f"{float(v):.4g}") for v in numbers]


def planted(
    model: nn.Module,
    prepare: Callable[[Tensor], Tensor],
    rules: Rules,
    *,
    ring: int = RING,
    size: int = PATCH,
    contrast: float = 1.0,
    objects: tuple[str, ...] = tuple(OBJECTS),
) -> list[list[float]]:
    """`measure` of each pair, object by object."""
    found = []
    for k, name in enumerate(OBJECTS):
        if name not in objects:
            continue
        options = dict(seed=k, patch=PATCH, size=size, contrast=contrast)
        chosen = planted_ring(backgrounds(), thing(name), ring, **options)
        factors: dict[int, tuple[Tensor, Tensor]] = {}
        for pair in chosen:
            for photo, image in zip(pair.photos, pair.images, strict=True):
                if photo not in factors:
                    factors[photo] = factor(model, prepare(image), rules)
            (A, a), (B, b) = (factors[photo] for photo in pair.photos)
            found.append(measure(A @ B.T, float(a @ b), pair.pairs))
    return found


def lite0() -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
    return bilrp.efficientnet_lite0(), bilrp.efficientnet_lite0_input


def shuffled(seed: int = 0) -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
    """The same network with shuffled weights and statistics of its own."""
    model = bilrp.randomized(bilrp.efficientnet_lite0(), seed=seed)
    prepare = bilrp.efficientnet_lite0_input
    return bilrp.recalibrated(model, prepare(backgrounds())), prepare


def vgg() -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
    """VGG-16 averaged over places, so that it does not know where either."""
    model = nn.Sequential(*bilrp.vgg16(31), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return model, bilrp.normalize


# --- faces, stereo, depth ----------------------------------------------------------------------

BLOCKS = (3, 5, 8, 11, 15, 16, None)
LAYERS = (5, 10, 17, 24, 31)


def soft_boxes(grid: int) -> list[Tensor]:
    """How much of each patch lies within the box around a cat's face, (grid, grid) each."""
    found = []
    for top, bottom, left, right in data.CAT_FACES:
        inside = torch.zeros(128, 128)
        inside[top:bottom, left:right] = 1
        found.append(F.avg_pool2d(inside[None], 128 // grid)[0])
    return found


def face_to_face(model: nn.Module, prepare: Callable, rules: Rules, patch: int) -> list[dict]:
    """Of each pair of five cats: positive relevance from face to face, its nulls, the cosine."""
    cats = [*data.cats(128)[0], data.photo("photos/chelsea.png", 128)[0]]
    factors = [bilrp.factor(model, prepare(x), rules, patch=patch) for x in cats]
    boxes = soft_boxes(128 // patch)
    found = []
    for i in range(5):
        for j in range(i + 1, 5):
            e = factors[i].explain(factors[j])
            both = boxes[i][:, :, None, None] * boxes[j]
            R = e.relevance.double().clamp(min=0)
            null = controls.marginal_null(e.relevance)
            size = float(factors[i].features.norm() * factors[j].features.norm())
            found.append(
                dict(
                    cats=[i, j],
                    share=float((R * both).sum() / R.sum()),
                    marginals=float((null * both).sum() / null.sum()),
                    area=float(both.mean()),
                    cosine=e.similarity / size,
                    carried=float(e.ledger[0, 0]) / e.similarity,
                )
            )
    return found


def stereo(model: nn.Module, prepare: Callable, rules: Rules) -> dict:
    """Shares on true partners with nulls, for the stereo pair at 128 pixels, patches of 8."""
    pair = data.stereo(128)
    row, col = torch.meshgrid(torch.arange(128.0), torch.arange(128.0), indexing="ij")
    partner = torch.where(pair.valid, col - pair.disparity, torch.nan)
    true = metrics.correspondence(row, partner, patch=8, size=(128, 128)) > 0.2
    factors = [bilrp.factor(model, prepare(v[0]), rules, patch=8) for v in (pair.left, pair.right)]
    R = factors[0].explain(factors[1]).relevance.double()
    share = controls.controlled_share(R, true)
    moved = controls.opposite_displacement(R, true)
    return share._asdict() | {"true": moved.true, "opposite": moved.opposite}


@torch.no_grad()
def block_features(x: Tensor, blocks: tuple[int | None, ...] = BLOCKS) -> dict[str, Tensor]:
    """Features after some blocks, flattened; "all" is the whole network."""
    model, found = bilrp.efficientnet_lite0(), {}
    for name, layer in model.named_children():
        x = layer(x)
        if name.removeprefix("block").isdigit() and int(name[5:]) in blocks:
            found[name[5:]] = x.flatten(1)
    return found | {"all": x}


def compact(f: Tensor) -> Tensor:
    """As many features as there are examples, with the same dot products."""
    size, axes = torch.linalg.eigh(f.double() @ f.double().T)
    return axes * size.clamp(min=0).sqrt()


def faces_over_depth(features: dict[str, Tensor], people: Tensor, seeds: int = 5) -> dict:
    """Accuracy of a linear SVM, two pictures of each person to train on, by split."""
    found: dict[str, list[float]] = {}
    for name, f in features.items():
        small = compact(f)
        for seed in range(seeds):
            draw = torch.Generator().manual_seed(seed)
            train = torch.zeros(len(people), dtype=torch.bool)
            for one in people.unique():
                members = (people == one).nonzero()[:, 0]
                train[members[torch.randperm(len(members), generator=draw)[:2]]] = True
            accuracy = bilrp.svm_accuracy(small, people, train)
            found.setdefault(name, []).append(round(accuracy, 4))
    return found


def invariance_over_depth(features: dict[str, Tensor], films: data.FilmScenes) -> dict:
    """Inv as in Eq. (7), of features as they are and divided by their lengths."""
    return {
        name: [
            round(bilrp.invariance(g, films.scene, films.frame), 4)
            for g in (f, f / f.norm(dim=1, keepdim=True))
        ]
        for name, f in features.items()
    }


# --- all of it ---------------------------------------------------------------------------------


def plan() -> dict[str, Callable[[], object]]:
    """What is measured, by name; what matters most comes first."""
    found: dict[str, Callable[[], object]] = {}

    @cache
    def films() -> data.FilmScenes:
        return data.film_scenes()

    def gamma_of(gamma: float, **options) -> Callable[[], object]:
        return lambda: planted(*lite0(), bilrp.Gamma(gamma), **options)

    def look(network: str, block: int | None) -> Callable[[], object]:
        if network == "Lite0":
            prepare = bilrp.efficientnet_lite0_input
            return lambda: stereo(bilrp.efficientnet_lite0(block), prepare, bilrp.Gamma(0.02))
        return lambda: stereo(bilrp.vgg16(block), bilrp.normalize, bilrp.vgg16_rules())

    for gamma in (0.02, 0.0):
        found[f"planted, owners, {gamma:g}"] = gamma_of(gamma)
    found["cat faces, Lite0"] = lambda: face_to_face(*lite0(), bilrp.Gamma(0.02), 16)
    found["invariance, Lite0"] = lambda: invariance_over_depth(
        block_features(bilrp.efficientnet_lite0_input(films().frames)), films()
    )
    for gamma in (0.0, 0.02):
        found[f"planted, shuffled weights, {gamma:g}"] = lambda g=gamma: planted(
            *shuffled(), bilrp.Gamma(g), ring=2
        )
    for gamma in GAMMAS:
        found[f"planted, owners, {gamma:g}"] = gamma_of(gamma)
    found["faces, Lite0"] = lambda: faces_over_depth(
        block_features(bilrp.efficientnet_lite0_input(data.faces(128)[0])), data.faces(128)[1]
    )
    found["stereo, Lite0, all"] = look("Lite0", None)
    for gamma in (0.05, 1.0):
        found[f"planted, shared, {gamma:g}"] = lambda g=gamma: planted(
            *lite0(), bilrp.Gamma(g, "shared"), ring=2
        )
    for name, size, contrast in VARIANTS:
        for gamma in (0.0, 0.02):
            found[f"planted, {name}, {gamma:g}"] = gamma_of(
                gamma, ring=2, size=size, contrast=contrast
            )
    found["planted, VGG-16, paper's rules"] = lambda: planted(*vgg(), bilrp.vgg16_rules(), ring=2)
    found["planted, VGG-16, 0"] = lambda: planted(*vgg(), bilrp.Gamma(0.0), ring=2)
    found["stereo, Lite0, 11"] = look("Lite0", 11)
    found["cat faces, VGG-16"] = lambda: face_to_face(
        bilrp.vgg16(), bilrp.normalize, bilrp.vgg16_rules(), 16
    )
    found["stereo, VGG-16, 31"] = look("VGG-16", 31)
    found["invariance, VGG-16"] = lambda: invariance_over_depth(
        {str(k): f for k, f in bilrp.vgg16_features(bilrp.normalize(films().frames)).items()},
        films(),
    )
    found["stereo, VGG-16, 17"] = look("VGG-16", 17)
    found["stereo, Lite0, 5"] = look("Lite0", 5)
    found["faces, VGG-16"] = lambda: faces_over_depth(
        {str(k): f for k, f in bilrp.vgg16_features(bilrp.normalize(data.faces(128)[0])).items()},
        data.faces(128)[1],
    )
    return found


def main() -> None:
    """Measure what is not kept yet, and write all; an argument: seconds, then no new row."""
    warnings.simplefilter("ignore")
    KEPT.mkdir(parents=True, exist_ok=True)
    end = time.process_time() + float(sys.argv[1] if len(sys.argv) > 1 else "inf")
    numbers = {}
    for name, run in plan().items():
        place = KEPT / (hashlib.sha256(name.encode()).hexdigest()[:16] + ".json")
        if not place.exists() and time.process_time() < end:
            place.write_text(json.dumps(run()), encoding="utf-8")
            print(name, flush=True)
        if place.exists():
            numbers[name] = json.loads(place.read_text(encoding="utf-8"))
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    head = dict(date=f"{date.today()}", commit=commit, command="make lite0", objects=list(OBJECTS))
    lines = [f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in (head | numbers).items()]
    TARGET.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
