"""A ResNet's first three stages in place of patches (Dai et al. 2021, CoAtNet, arXiv 2106.04803; SimVLM's stem, arXiv
2108.10904, section 3.2).

    x = conv7x7/2, norm, ReLU, maxpool/2;   x = stage_1(x), stage_2(x)/2, stage_3(x)/2;   tokens = W x + b

One token for 16 x 16 pixels, as of patches of that size: 14 x 14 of 224 pixels, 256 channels wide before the linear
map. "Three blocks" are three stages here, not three layers. ResNet-18 (He et al. 2015, arXiv 1512.03385) from random
weights; the authors' stems are those of ResNet-101 and -152.
"""

from __future__ import annotations

from torch import nn


def resnet_stem(width: int) -> nn.Sequential:
    """Pictures (X, 3, h, w) -> grid (X, width, h / 16, w / 16)."""
    from torchvision.models import resnet18  # which takes seconds to import

    whole = resnet18()
    entry = (whole.conv1, whole.bn1, whole.relu, whole.maxpool)
    return nn.Sequential(*entry, whole.layer1, whole.layer2, whole.layer3, nn.Conv2d(256, width, 1))
