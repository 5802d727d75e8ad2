"""What all networks of photos ask of their input."""

from torch import Tensor


def check_pixels(x: Tensor, caller: str) -> None:
    """Raise ValueError, in the name of `caller`, unless x is RGB in [0, 1]."""
    if x.dim() not in (3, 4) or x.shape[-3] != 3:
        raise ValueError(f"{caller} needs (3, H, W) or (N, 3, H, W), got {tuple(x.shape)}")
    if not x.is_floating_point() or not (float(x.min()) >= 0 and float(x.max()) <= 1):
        raise ValueError(
            f"{caller} needs floating-point pixels in [0, 1], got {x.dtype} from {x.min()} to "
            f"{x.max()}; divide bytes by 255"
        )
