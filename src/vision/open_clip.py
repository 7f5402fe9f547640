"""vision=open_clip: any image tower of the open_clip library, with any of its pretrained tags.

Radford et al. 2021, "Learning transferable visual models from natural language supervision", arXiv 2103.00020; the
library is github.com/mlfoundations/open_clip. ClipCap (arXiv 2111.09734) reads ``pooled``, the CLIP embedding before it
is normalised to length 1.
"""

from __future__ import annotations

import json

import torch
from torch import Tensor, nn

from src.contracts import UserError, VisionSpec
from src.vision.base import Vision
from src.vision.open_clip_weights import (
    architecture,
    brings_weights,
    checkpoint_file,
    first_line,
    preprocessing_of,
    sides,
)


class OpenClip(Vision):
    """The image tower alone; the text tower is dropped after loading.

    Tokens are the patches (or the grid of a convolutional tower) after the tower's final norm, without class tokens;
    CoCa's towers give what their attention pooler hands to the captioning decoder. Levels are the outputs of the last
    blocks, each after the final norm, for towers whose blocks all have the same shape; others have none.

    ``model``: an architecture of open_clip.list_models(), or "local-dir:<folder>" with an open_clip_config.json (and
    weights, if there are any) inside. ``pretrained``: one of its tags, a checkpoint file, or None for random weights. A
    bare file says nothing of activation and normalisation: those of ``model`` are taken (OpenAI's weights want
    ViT-B-32-quickgelu), while tags and folders bring their own. Raises UserError for unknown names, unreadable files,
    weights that cannot be downloaded, and towers without a grid.
    """

    def __init__(self, model: str = "ViT-B-32", pretrained: str | None = None):
        config = architecture(model)
        checkpoint, tag = checkpoint_file(model, pretrained)
        # Some published weights want QuickGELU although the architecture of that name has GELU; the tag knows.
        config["quick_gelu"] = bool(config.get("quick_gelu") or tag.get("quick_gelu"))
        tower = _tower(model, checkpoint, tag, config["quick_gelu"])
        tokens_XNC, pooled_XC, levels = _probe(tower, model)
        preprocessing = preprocessing_of(tower, model)
        spec = VisionSpec(tokens_XNC.shape[2], tokens_XNC.shape[1], pooled_XC.shape[1], preprocessing["size"], levels)
        computation = {name: config.get(name) for name in ("embed_dim", "quick_gelu", "vision_cfg")}
        super().__init__(
            spec,
            preprocessing,
            json.dumps(computation, sort_keys=True),
            checkpoint is not None or brings_weights(model),
        )
        self.tower = tower

    def encode(self, pixels_X3hw: Tensor, levels: int) -> tuple[Tensor, Tensor, Tensor | None]:
        tokens_XNC, pooled_XC, outputs = _run(self.tower, pixels_X3hw, max(levels, 1))
        return tokens_XNC, pooled_XC, torch.stack(outputs, 1) if levels else None


def _run(tower: nn.Module, pixels_X3hw: Tensor, levels: int | None) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Tokens, pooled, and the outputs of the last ``levels`` blocks (None: of all), each (X, N, C)."""
    if getattr(tower, "attn_pool", None) is not None:
        pooled_XC, tokens_XNC = tower(pixels_X3hw)
        return tokens_XNC, pooled_XC, []
    out = tower.forward_intermediates(pixels_X3hw, indices=levels, normalize_intermediates=True)
    outputs = [grid_XCyx.flatten(2).transpose(1, 2) for grid_XCyx in out["image_intermediates"]]  # N = y*x, row by row
    return outputs[-1], out["image_features"], outputs


@torch.no_grad()
def _probe(tower: nn.Module, model: str) -> tuple[Tensor, Tensor, int]:
    """Encode one blank picture: tokens, pooled, and how many of the last blocks have the shape of the tokens."""
    height, width = sides(tower.preprocess_cfg["size"])
    training = tower.training
    try:
        tokens_XNC, pooled_XC, outputs = _run(tower.eval(), torch.zeros(1, 3, height, width), None)
    except (AttributeError, AssertionError, NotImplementedError, TypeError, ValueError) as error:
        raise UserError(f"The image tower of {model} gives no grid of tokens; choose another vision.model.") from error
    tower.train(training)
    if pooled_XC.ndim != 2:
        raise UserError(f"The image tower of {model} gives no pooled vector; choose another vision.model.")
    alike = 0
    while alike < len(outputs) and outputs[-1 - alike].shape == tokens_XNC.shape:
        alike += 1
    # The blocks of a convolutional stage are one level; a single level would only be the tokens over again.
    return tokens_XNC, pooled_XC, alike if alike > 1 else 0


# --------------------------------------------------------------------------------------------------------------------
# loading
# --------------------------------------------------------------------------------------------------------------------
def _tower(model: str, checkpoint: str | None, tag: dict, quick_gelu: bool) -> nn.Module:
    import open_clip

    try:
        whole = open_clip.create_model(
            model,
            pretrained=checkpoint,
            force_preprocess_cfg=tag,
            force_quick_gelu=quick_gelu,
            force_patch_dropout=0.0,  # else the number of tokens would change from training to evaluation
            pretrained_image=False,
            pretrained_text=False,  # the text tower is about to be dropped: no download for it
        )
    except Exception as error:  # bad files, failed downloads and missing extras share no base class
        source = checkpoint or model
        raise UserError(f"open_clip cannot build {model} from {source}: {first_line(error)}") from error
    tower = whole.visual
    if getattr(tower, "attn_pool", None) is not None:
        tower.output_tokens = True  # CoCa: hand out the pooler's tokens beside the pooled vector
    return tower
