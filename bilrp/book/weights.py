"""The ImageNet weights of VGG-16's convolutions and of EfficientNet-Lite0."""

import hashlib
import io
import pickle
import tempfile
import warnings
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch

from bilrp.book.fetch import fetch, store
from bilrp.book.registry import DataError, WrongHash, cache_dir, digest

# Where the convolutions stand in torchvision.models.vgg16().features, with their channels.
_CONVOLUTIONS = {0: (3, 64), 2: (64, 64), 5: (64, 128), 7: (128, 128), 10: (128, 256)}
_CONVOLUTIONS |= {12: (256, 256), 14: (256, 256), 17: (256, 512)}
_CONVOLUTIONS |= {k: (512, 512) for k in (19, 21, 24, 26, 28)}
_SHAPES: dict[str, tuple[int, ...]] = {
    f"{k}.weight": (c_out, c_in, 3, 3) for k, (c_in, c_out) in _CONVOLUTIONS.items()
}
_SHAPES |= {f"{k}.bias": (c_out,) for k, (_, c_out) in _CONVOLUTIONS.items()}

# Sha256 of torchvision's file, and of the weights themselves, see _digest, when converted.
_TORCHVISION = "vgg16-397923af.pth"
_TORCHVISION_SHA256 = "397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0"
_PICKLE = "vgg16/vgg16.ckpt"
_CONVERTED = "vgg16/features.pt"
_STATE_SHA256 = "d649de3c8126095cbd4ddf98051ee4c6eb54127548e4623473d5a202c46418fe"


_reconstruct = np.empty(0).__reduce__()[0]
_ALLOWED = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    # NumPy 2 renamed numpy.core: the same function under both names.
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
}


class _ArraysOnly(pickle.Unpickler):
    """Read NumPy arrays and plain containers, nothing that could run code."""

    def find_class(self, module: str, name: str) -> object:
        if (module, name) not in _ALLOWED:
            raise DataError(f"refused: the checkpoint asks for {module}.{name}, not a NumPy array")
        return _ALLOWED[module, name]


def vgg16_state() -> dict[str, torch.Tensor]:
    """Weights of VGG-16's convolutions, trained on ImageNet.

    Taken from torchvision's own checkpoint where the user has it (in ``torch.hub.get_dir()``, so
    below TORCH_HOME), otherwise from the registered copy, converted once.

    Returns
    -------
    dict of Tensor
        float32, by the keys of ``torchvision.models.vgg16().features``: "0.weight" (64, 3, 3, 3),
        "0.bias" (64,), ..., "28.bias" (512,).

    Raises
    ------
    DataError
        As `fetch`, or if the checkpoint holds anything but the arrays of VGG-16.
    """
    own = Path(torch.hub.get_dir()) / "checkpoints" / _TORCHVISION
    if own.is_file():
        if (found := digest(own)) == _TORCHVISION_SHA256:
            state = torch.load(own, map_location="cpu", weights_only=True, mmap=True)
            mark = "features."
            features = {k.removeprefix(mark): v for k, v in state.items() if k.startswith(mark)}
            return _checked({k: v.float().clone() for k, v in features.items()}, own)
        warnings.warn(
            f"{own} is passed over: its sha256 is {found}, not {_TORCHVISION_SHA256}", stacklevel=2
        )
    return _converted()


def _converted() -> dict[str, torch.Tensor]:
    """The registered checkpoint, from its converted copy in the cache where that is whole."""
    copy = cache_dir() / _CONVERTED
    if (kept := _read(copy)) is not None:
        return kept
    source = fetch(_PICKLE)
    with source.open("rb") as stream:
        try:
            arrays = _ArraysOnly(stream).load()["VGG16_0"]
            layers = [arrays[f"Conv_{i}"] for i in range(len(_CONVOLUTIONS))]
        except (pickle.UnpicklingError, EOFError, KeyError, TypeError) as error:
            raise DataError(f"{source} is not the checkpoint of VGG-16: {error!r}") from error
    state = {}
    for k, layer in zip(_CONVOLUTIONS, layers, strict=True):
        kernel = torch.from_numpy(np.array(layer["kernel"], dtype=np.float32))
        state[f"{k}.weight"] = kernel.permute(3, 2, 0, 1).contiguous()  # from (h, w, in, out)
        state[f"{k}.bias"] = torch.from_numpy(np.array(layer["bias"], dtype=np.float32))
    _checked(state, source)
    if (found := _digest(state)) != _STATE_SHA256:
        raise WrongHash(f"what was made of {source}", _STATE_SHA256, found)
    _keep(state, copy)
    return state


def _read(copy: Path) -> dict[str, torch.Tensor] | None:
    """The converted copy, or None where there is none or it does not hold the known weights."""
    try:
        state = torch.load(copy, map_location="cpu", weights_only=True)
        return state if _digest(_checked(state, copy)) == _STATE_SHA256 else None
    except Exception:  # a damaged file fails in many ways, and all mean converting again
        return None


def _digest(state: dict[str, torch.Tensor]) -> str:
    """Sha256 of the numbers by sorted keys: of a file, it would change with torch's format."""
    sha = hashlib.sha256()
    for key in sorted(state):
        sha.update(state[key].contiguous().numpy().astype("<f4", copy=False).tobytes())
    return sha.hexdigest()


def _keep(state: dict[str, torch.Tensor], copy: Path) -> None:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    # A cache that cannot be written only means converting again next time.
    with suppress(OSError):
        copy.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".tmp-", dir=copy.parent) as work:
            store(buffer.getvalue(), copy, Path(work))


def _checked(state: dict[str, torch.Tensor], where: Path) -> dict[str, torch.Tensor]:
    """Return ``state`` if its keys and shapes are VGG-16's, else raise DataError."""
    shapes = {key: tuple(value.shape) for key, value in state.items()}
    if shapes != _SHAPES:
        wrong = sorted(k for k in shapes.keys() | _SHAPES if shapes.get(k) != _SHAPES.get(k))
        raise DataError(f"{where} is not VGG-16: wrong or missing {', '.join(wrong)}")
    return state


def efficientnet_lite0_state() -> dict[str, torch.Tensor]:
    """Weights and statistics of EfficientNet-Lite0, trained on ImageNet.

    Returns
    -------
    dict of Tensor
        float32, by the keys of the published file: "_conv_stem.weight" (32, 3, 3, 3),
        "_bn0.running_mean" (32,), ..., "_blocks.0._depthwise_conv.weight" (32, 1, 3, 3), ...,
        "_fc.bias" (1000,).

    Raises
    ------
    DataError
        As `fetch`, or if the file holds anything but tensors.
    """
    source = fetch("efficientnet_lite0/efficientnet-lite0.pth")
    try:  # weights_only: an unpickler that makes tensors and plain containers, and runs nothing
        return dict(torch.load(source, map_location="cpu", weights_only=True))
    except Exception as error:  # what is not a file of tensors fails in many ways
        raise DataError(f"{source} is not a file of weights: {error}") from error
