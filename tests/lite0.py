"""EfficientNet-Lite0 beside VGG-16, at length: what chapter 11 shows a part of.

python -m tests.lite0    writes assets/lite0.json, in about 20 minutes of one core. What is done is
kept in _build/lite0, so that a run that was stopped goes on.

Planted matches (ten objects, four sizes and contrasts, gamma from 0 to 1, biases as owners and
shared, shuffled weights), face to face among five cats, the stereo pair with its nulls, ORL
faces and the invariance of films over depth; shuffled weights and pixels beside them.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
import warnings
from collections.abc import Callable
from datetime import date
from functools import cache, partial
from pathlib import Path

import torch
from torch import Tensor, nn

import bilrp
from bilrp import controls, data, metrics
from bilrp.book.measured import commit_of
from bilrp.compare.planted import planted_ring
from bilrp.engine.rules import Rules
from tests.lite0_depth import (
    block_features,
    face_to_face,
    faces_over_depth,
    invariance_over_depth,
    stereo,
)

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


@cache
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


@torch.no_grad()
def without(model: nn.Module, prepare: Callable[[Tensor], Tensor]) -> list[list[float]]:
    """y of each pair: with the object in both photos, in the first, the second, in neither.

    No explanation is asked. y of both, less y of each alone, plus y of neither, is what the object
    in one photo and the object in the other do together.
    """
    found = []
    for k, name in enumerate(OBJECTS):
        bare: dict[int, Tensor] = {}
        full: dict[int, Tensor] = {}
        chosen = planted_ring(backgrounds(), thing(name), RING, seed=k, patch=PATCH)
        for pair in chosen:
            for photo, image in zip(pair.photos, pair.images, strict=True):
                if photo not in full:
                    images = torch.stack([backgrounds()[photo], image])
                    bare[photo], full[photo] = model(prepare(images)).double()
            i, j = pair.photos
            four = (full[i] @ full[j], full[i] @ bare[j], bare[i] @ full[j], bare[i] @ bare[j])
            found.append([float(f"{float(v):.6g}") for v in four])
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


# --- all of it ---------------------------------------------------------------------------------


def plan() -> dict[str, Callable[[], object]]:
    """What is measured, by name; what matters most comes first."""
    return planted_plan() | depth_plan()


def planted_plan() -> dict[str, Callable[[], object]]:
    """Planted matches: rules, sizes, contrasts, shuffled weights, both networks."""
    found: dict[str, Callable[[], object]] = {}
    for gamma in sorted(GAMMAS, key=lambda g: (g not in (0.0, 0.02), g)):
        found[f"planted, owners, {gamma:g}"] = partial(planted_of, lite0, bilrp.Gamma(gamma), RING)
    for gamma in (0.0, 0.02):
        name = f"planted, shuffled weights, {gamma:g}"
        found[name] = partial(planted_of, shuffled, bilrp.Gamma(gamma))
    for gamma in (0.05, 1.0):
        name = f"planted, shared, {gamma:g}"
        found[name] = partial(planted_of, lite0, bilrp.Gamma(gamma, "shared"))
    for name, size, contrast in VARIANTS:
        for gamma in (0.0, 0.02):
            found[f"planted, {name}, {gamma:g}"] = partial(
                planted_of, lite0, bilrp.Gamma(gamma), size=size, contrast=contrast
            )
    found["planted, VGG-16, paper's rules"] = lambda: planted_of(vgg, bilrp.vgg16_rules(), RING)
    for gamma in (0.0, 0.02):
        name = f"planted, VGG-16, {gamma:g}"
        found[name] = partial(planted_of, vgg, bilrp.Gamma(gamma), RING)
    found["without the object, Lite0"] = lambda: without(*lite0())
    found["without the object, VGG-16"] = lambda: without(*vgg())
    return found


def planted_of(network: Callable, rules: Rules, ring: int = 2, **options) -> list[list[float]]:
    """`planted` of a network that is made only now."""
    return planted(*network(), rules, ring=ring, **options)


def depth_plan() -> dict[str, Callable[[], object]]:
    """Faces of cats, the stereo pair, faces of people and films, over the depth of both."""
    found: dict[str, Callable[[], object]] = {}
    joint, paper = bilrp.Gamma(0.02), bilrp.vgg16_rules()
    lite_input, vgg_input = bilrp.efficientnet_lite0_input, bilrp.normalize

    def features(network: str, images: Tensor) -> dict[str, Tensor]:
        if network == "pixels":
            return {"pixels": images.flatten(1)}
        if network == "VGG-16":
            return {str(k): f for k, f in bilrp.vgg16_features(vgg_input(images)).items()}
        model = shuffled()[0] if network == "shuffled" else bilrp.efficientnet_lite0()
        return block_features(model, lite_input(images))

    @cache
    def films() -> data.FilmScenes:
        return data.film_scenes()

    found["cat faces, Lite0"] = lambda: face_to_face(*lite0(), joint, 16)
    found["cat faces, VGG-16"] = lambda: face_to_face(bilrp.vgg16(), vgg_input, paper, 16)
    found["cat faces, shuffled"] = lambda: face_to_face(*shuffled(), joint, 16)
    for block in (None, 16, 11, 5):
        found[f"stereo, Lite0, {block or 'all'}"] = lambda b=block: stereo(
            bilrp.efficientnet_lite0(b), lite_input, joint
        )
    for layer in (31, 24, 17):
        found[f"stereo, VGG-16, {layer}"] = lambda k=layer: stereo(bilrp.vgg16(k), vgg_input, paper)
    found["stereo, VGG-16, averaged"] = lambda: stereo(*vgg(), paper)
    found["stereo, VGG-16, 24, 0.02"] = lambda: stereo(bilrp.vgg16(24), vgg_input, joint)
    found["stereo, VGG-16, averaged, 0.02"] = lambda: stereo(*vgg(), joint)
    for network in ("Lite0", "VGG-16", "shuffled", "pixels"):
        found[f"invariance, {network}"] = lambda n=network: invariance_over_depth(
            features(n, films().frames), films()
        )
        found[f"faces, {network}"] = lambda n=network: faces_over_depth(
            features(n, data.faces(128)[0]), data.faces(128)[1]
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
    commit = commit_of()
    head = dict(date=f"{date.today()}", commit=commit, command="make lite0", objects=list(OBJECTS))
    lines = [f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in (head | numbers).items()]
    TARGET.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
