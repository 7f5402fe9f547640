"""vision=open_clip: any image tower of the open_clip library, with any of its pretrained tags.

Radford et al. 2021, "Learning transferable visual models from natural language supervision", arXiv 2103.00020; the
library is github.com/mlfoundations/open_clip. ClipCap (arXiv 2111.09734) reads ``pooled``, the CLIP embedding before it
is normalised to length 1.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from src import hub
from src.contracts import UserError, VisionSpec
from src.vision.base import Vision
from src.vision.open_clip_weights import architecture, checkpoint_file, located, preprocessing_of, sides

if TYPE_CHECKING:
    from open_clip import CLIP
    from open_clip.modified_resnet import ModifiedResNet
    from open_clip.timm_model import TimmModel
    from open_clip.transformer import VisionTransformer

    Tower = ModifiedResNet | TimmModel | VisionTransformer

# The text tower beside the image tower, which is dropped: the real one may need files of another repository.
SMALLEST_TEXT: dict[str, Any] = {"context_length": 8, "vocab_size": 8, "width": 8, "heads": 1, "layers": 1}


class OpenClip(Vision):
    """The image tower alone; the text tower is neither built nor loaded.

    Tokens are the patches (or the grid of a convolutional tower) after the tower's final norm, without class tokens;
    CoCa's towers give what their attention pooler hands to the captioning decoder. Levels are the outputs of the last
    blocks, each after the final norm, for towers whose blocks all have the same shape; others have none.

    ``model``: an architecture of open_clip.list_models(), "hf-hub:<repository>" of the Hugging Face hub, or
    "local-dir:<folder>" with an open_clip_config.json (and weights, if there are any) inside. ``pretrained``: a tag of
    the architecture, a checkpoint file, or None for random weights. Tags, folders and repositories know activation and
    normalisation; of a bare file, what all tags of ``model`` agree on is taken, and the rest told as assumed. Raises
    UserError for unknown names, unreadable files, weights that cannot be downloaded, and towers without a grid.
    ``preprocess_cfg``: the preprocessing in open_clip's words.
    """

    def __init__(self, model: str = "ViT-B-32", pretrained: str | None = None):
        here = located(model, pretrained)
        config = architecture(here)
        checkpoint, known = checkpoint_file(here, pretrained)
        # Some published weights want QuickGELU although the architecture of that name has GELU; the tag knows.
        config["quick_gelu"] = bool(config.get("quick_gelu") or known.get("quick_gelu"))
        tower, wanted = _tower(model, config, checkpoint, known)
        tokens_XNC, pooled_XC, levels = _probe(tower, wanted["size"], model)
        preprocessing = preprocessing_of(wanted, model)
        spec = VisionSpec(tokens_XNC.shape[2], tokens_XNC.shape[1], pooled_XC.shape[1], preprocessing["size"], levels)
        computation = {name: config.get(name) for name in ("embed_dim", "quick_gelu", "vision_cfg")}
        super().__init__(
            spec,
            preprocessing,
            json.dumps(computation, sort_keys=True),
            checkpoint is not None,
        )
        self.tower, self.preprocess_cfg = tower, wanted

    def encode(self, pixels_X3hw: Tensor, levels: int) -> tuple[Tensor, Tensor, Tensor | None]:
        tokens_XNC, pooled_XC, outputs = _run(self.tower, pixels_X3hw, max(levels, 1))
        return tokens_XNC, pooled_XC, torch.stack(outputs, 1) if levels else None


def _run(tower: Tower, pixels_X3hw: Tensor, levels: int | None) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Tokens, pooled, and the outputs of the last ``levels`` blocks (None: of all), each (X, N, C)."""
    if getattr(tower, "attn_pool", None) is not None:
        pooled_XC, tokens_XNC = tower(pixels_X3hw)
        return tokens_XNC, pooled_XC, []
    out: dict[str, Any] = tower.forward_intermediates(pixels_X3hw, indices=levels, normalize_intermediates=True)
    outputs = [grid_XCyx.flatten(2).transpose(1, 2) for grid_XCyx in out["image_intermediates"]]  # N = y*x, row by row
    return outputs[-1], out["image_features"], outputs


@torch.no_grad()
def _probe(tower: Tower, size: int | tuple[int, int], model: str) -> tuple[Tensor, Tensor, int]:
    """Encode one blank picture: tokens, pooled, and how many of the last blocks have the shape of the tokens."""
    height, width = sides(size)
    training = tower.training
    try:
        tokens_XNC, pooled_XC, outputs = _run(tower.eval(), torch.zeros(1, 3, height, width), None)
    except Exception as error:  # of a size that a library's network refuses, or without intermediate results
        raise UserError(
            f"The image tower of {model} gives no grid of tokens ({hub.reason(error)}); choose another vision.model."
        ) from error
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
def _tower(model: str, config: dict, checkpoint: str | None, known: dict) -> tuple[Tower, dict]:
    """The image tower of an architecture, with ``checkpoint``'s weights if there are any, and its preprocessing."""
    from open_clip.transform import PreprocessCfg, merge_preprocess_dict
    from open_clip.transformer import VisionTransformer

    try:
        whole = _build(config)
        tower = whole.visual if checkpoint is None else _load(whole, model, config, checkpoint)
    except Exception as error:  # bad files, unknown options and missing extras share no base class
        source = f" from {checkpoint}" if checkpoint else ""
        raise UserError(f"open_clip cannot build {model}{source}: {hub.reason(error)}") from error
    if isinstance(tower, VisionTransformer) and tower.attn_pool is not None:
        tower.output_tokens = True  # CoCa: hand out the pooler's tokens beside the pooled vector
    return tower, merge_preprocess_dict({**asdict(PreprocessCfg()), "size": tower.image_size}, known)


def _build(config: dict) -> CLIP:
    """An architecture with random weights and the smallest text tower."""
    from open_clip import CLIP, CLIPTextCfg, CLIPVisionCfg

    image = {
        **config["vision_cfg"],
        "patch_dropout": 0.0,  # else the number of tokens would change from training to evaluation
        "timm_model_pretrained": False,  # no download of weights that are about to be replaced
    }
    return CLIP(config["embed_dim"], CLIPVisionCfg(**image), CLIPTextCfg(**SMALLEST_TEXT), config["quick_gelu"])


def _load(whole: CLIP, model: str, config: dict, checkpoint: str) -> Tower:
    """The image tower of ``whole`` with the image side of a checkpoint, in whatever form open_clip reads."""
    import open_clip
    from open_clip.convert import convert_state_dict
    from open_clip.factory import load_state_dict
    from open_clip.model import resize_pos_embed

    if Path(checkpoint).suffix in (".npz", ".npy"):  # of big_vision, read into whole models only
        made = open_clip.create_model(
            model, checkpoint, force_quick_gelu=config["quick_gelu"], force_patch_dropout=0.0, pretrained_text=False
        )
        return made.visual  # pyright: ignore[reportReturnType]: one of several classes of models with an image tower
    state = convert_state_dict(whole, load_state_dict(checkpoint))
    if not isinstance(state, dict):
        raise ValueError("it holds no tensors by name")
    resize_pos_embed(state, whole)
    state = {name.removeprefix("visual."): x for name, x in state.items() if name.startswith("visual.")}
    if not state:
        raise ValueError("it holds no tensor of open_clip's image towers (visual.*)")
    whole.visual.load_state_dict(state)
    return whole.visual
