"""vision=open_clip: any image tower of the open_clip library, with any of its pretrained tags.

Radford et al. 2021, "Learning transferable visual models from natural language supervision", arXiv 2103.00020; the
library is github.com/mlfoundations/open_clip. ClipCap (arXiv 2111.09734) reads ``pooled``, the CLIP embedding before it
is normalised to length 1.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor, nn

from src.contracts import UserError, VisionSpec
from src.vision.base import Vision

RESIZE = {"shortest": "crop", "squash": "squash"}  # open_clip's words -> ours
WEIGHTS = ("*.safetensors", "*.bin", "*.pth")  # what open_clip looks for in a folder
PIP = "vision=open_clip needs a package: pip install open_clip_torch"


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
        config = _config(model)
        checkpoint, tag = _checkpoint(model, pretrained)
        # Some published weights want QuickGELU although the architecture of that name has GELU; the tag knows.
        config["quick_gelu"] = bool(config.get("quick_gelu") or tag.get("quick_gelu"))
        tower = _tower(model, checkpoint, tag, config["quick_gelu"])
        tokens_XNC, pooled_XC, levels = _probe(tower, model)
        preprocessing = _preprocessing(tower, model)
        spec = VisionSpec(tokens_XNC.shape[2], tokens_XNC.shape[1], pooled_XC.shape[1], preprocessing["size"], levels)
        computation = {name: config.get(name) for name in ("embed_dim", "quick_gelu", "vision_cfg")}
        super().__init__(
            spec, preprocessing, json.dumps(computation, sort_keys=True), checkpoint is not None or _has_weights(model)
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
    height, width = _sides(tower.preprocess_cfg["size"])
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


def _preprocessing(tower: nn.Module, model: str) -> dict:
    """What open_clip's own transforms for this tower do, in the words of ``Vision.preprocessing``."""
    wanted = tower.preprocess_cfg
    height, width = _sides(wanted["size"])
    if height != width:
        raise UserError(f"{model} reads pictures of {height} x {width} pixels; only square ones are supported.")
    if wanted["resize_mode"] not in RESIZE:
        raise UserError(f"{model} wants pictures resized by {wanted['resize_mode']!r}; only {list(RESIZE)} are known.")
    return {
        "size": height,
        "resize": RESIZE[wanted["resize_mode"]],
        "interpolation": wanted["interpolation"],
        "mean": tuple(wanted["mean"]),
        "std": tuple(wanted["std"]),
    }


def _sides(size: int | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else tuple(size)


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
        raise UserError(f"open_clip cannot build {model} from {source}: {_first_line(error)}") from error
    tower = whole.visual
    if getattr(tower, "attn_pool", None) is not None:
        tower.output_tokens = True  # CoCa: hand out the pooler's tokens beside the pooled vector
    return tower


def _config(model: str) -> dict:
    """open_clip's description of the architecture."""
    try:
        import open_clip
    except ImportError as error:
        raise UserError(PIP) from error
    folder = _folder(model)
    if folder is None:
        config = open_clip.get_model_config(model)
        if config is None:
            raise UserError(f"open_clip knows no architecture {model!r}; open_clip.list_models() names those it knows.")
        return config
    try:
        return json.loads((folder / "open_clip_config.json").read_text())["model_cfg"]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{folder} holds no open_clip_config.json with a model_cfg.") from error


def _folder(model: str) -> Path | None:
    return Path(model.removeprefix("local-dir:")) if model.startswith("local-dir:") else None


def _has_weights(model: str) -> bool:
    folder = _folder(model)
    return folder is not None and any(next(folder.glob(pattern), None) for pattern in WEIGHTS)


def _checkpoint(model: str, pretrained: str | None) -> tuple[str | None, dict]:
    """The checkpoint file that ``pretrained`` means, if any, and what open_clip knows of the tag."""
    import open_clip

    if pretrained is None:
        return None, {}
    if _folder(model) is not None:
        raise UserError(f"vision.model={model} brings its own weights; leave vision.pretrained=null.")
    tag = open_clip.get_pretrained_cfg(model, pretrained)
    if tag:
        return _download(tag["hf_hub"], f"{model}:{pretrained}"), tag
    if Path(pretrained).is_file():
        return pretrained, {}
    tags = ", ".join(open_clip.list_pretrained_tags_by_model(model)) or "none"
    raise UserError(f"vision.pretrained={pretrained} is neither a file nor one of the tags of {model}: {tags}.")


def _download(address: str, what: str) -> str:
    """A file of the Hugging Face hub, from the local cache or the net; safetensors where there are any.

    ``address`` is "organisation/repository/file", the file empty for open_clip's usual name. Not left to open_clip,
    which asks the network even for files that are here, and retries for most of a minute without one.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache
    from huggingface_hub.errors import RemoteEntryNotFoundError
    from open_clip.constants import HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME

    repository, _, file = address.rpartition("/")
    names = [str(Path(file).with_suffix(".safetensors")), file] if file else [HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME]
    for name in names:
        cached = try_to_load_from_cache(repository, name)
        if isinstance(cached, str):
            return cached
    for name in names:
        try:
            get_hf_file_metadata(hf_hub_url(repository, name), timeout=5)  # one request without retries
            return hf_hub_download(repository, name)
        except RemoteEntryNotFoundError:
            continue
        except Exception as error:  # gated repositories and network errors share no base class
            raise _undownloadable(what, repository, _first_line(error)) from error
    raise _undownloadable(what, repository, "it has no such file")


def _undownloadable(what: str, repository: str, reason: str) -> UserError:
    return UserError(
        f"The weights {what} cannot be downloaded from the Hugging Face hub ({reason}); fetch the repository "
        f"{repository} where there is a network and give its folder as vision.model=local-dir:<folder> with "
        "vision.pretrained=null."
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
