"""Where open_clip's models come from: architecture, checkpoint file, preprocessing; failures as one quick sentence."""

from __future__ import annotations

import json
from pathlib import Path

from torch import nn

from src.contracts import UserError

RESIZE = {"shortest": "crop", "squash": "squash"}  # open_clip's words -> ours
WEIGHTS = ("*.safetensors", "*.bin", "*.pth")  # what open_clip looks for in a folder
PIP = "open_clip is missing: pip install open_clip_torch"


def architecture(model: str) -> dict:
    """open_clip's description of the architecture."""
    try:
        import open_clip
    except ImportError as error:
        raise UserError(PIP) from error
    folder = local_folder(model)
    if folder is None:
        config = open_clip.get_model_config(model)
        if config is None:
            raise UserError(f"open_clip knows no architecture {model!r}; open_clip.list_models() names those it knows.")
        return config
    try:
        return json.loads((folder / "open_clip_config.json").read_text())["model_cfg"]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{folder} holds no open_clip_config.json with a model_cfg.") from error


def local_folder(model: str) -> Path | None:
    return Path(model.removeprefix("local-dir:")) if model.startswith("local-dir:") else None


def brings_weights(model: str) -> bool:
    folder = local_folder(model)
    return folder is not None and any(next(folder.glob(pattern), None) for pattern in WEIGHTS)


def checkpoint_file(model: str, pretrained: str | None) -> tuple[str | None, dict]:
    """The checkpoint file that ``pretrained`` means, if any, and what open_clip knows of the tag."""
    import open_clip

    if pretrained is None:
        return None, {}
    if local_folder(model) is not None:
        raise UserError(f"vision.model={model} brings its own weights; leave vision.pretrained=null.")
    tag = open_clip.get_pretrained_cfg(model, pretrained)
    if tag:
        return download(tag["hf_hub"], f"{model}:{pretrained}"), tag
    if Path(pretrained).is_file():
        return pretrained, {}
    tags = ", ".join(open_clip.list_pretrained_tags_by_model(model)) or "none"
    raise UserError(f"vision.pretrained={pretrained} is neither a file nor one of the tags of {model}: {tags}.")


def download(address: str, what: str) -> str:
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
            raise _undownloadable(what, repository, first_line(error)) from error
    raise _undownloadable(what, repository, "it has no such file")


def _undownloadable(what: str, repository: str, reason: str) -> UserError:
    return UserError(
        f"The weights {what} cannot be downloaded from the Hugging Face hub ({reason}); fetch the repository "
        f"{repository} where there is a network and give its folder as vision.model=local-dir:<folder> with "
        "vision.pretrained=null."
    )


def first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def preprocessing_of(tower: nn.Module, model: str) -> dict:
    """What open_clip's own transforms for this tower do, in the words of ``Vision.preprocessing``."""
    wanted = tower.preprocess_cfg
    height, width = sides(wanted["size"])
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


def sides(size: int | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else tuple(size)
