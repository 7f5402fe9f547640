"""Where open_clip's models come from: architecture, checkpoint file, preprocessing; failures as one quick sentence."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from src import hub
from src.contracts import UserError

HUB, FOLDER = "hf-hub:", "local-dir:"  # open_clip's words for models that bring their own weights
RESIZE = {"shortest": "crop", "squash": "squash"}  # open_clip's words -> ours
WEIGHTS = (".safetensors", ".bin", ".pth")  # what open_clip looks for in a folder
SETTINGS = ("mean", "std", "interpolation", "resize_mode", "quick_gelu")  # what a tag knows, and a bare file does not
PIP = "open_clip is missing: pip install open_clip_torch"


def located(model: str, pretrained: str | None) -> str:
    """``model`` as something on this machine: of hf-hub:<repository>, architecture and weights are fetched.

    Raises UserError when they cannot be had, or ``pretrained`` asks for other weights than those that come along.
    """
    if pretrained is not None and model.startswith((HUB, FOLDER)):
        raise UserError(f"vision.model={model} brings its own weights; leave vision.pretrained=null.")
    if model.startswith(HUB):
        repository = model.removeprefix(HUB)
        download(f"{repository}/open_clip_config.json", model)
        return f"{FOLDER}{Path(download(f'{repository}/', model)).parent}"
    folder = local_folder(model)
    return model if folder is None else f"{FOLDER}{folder}"


def architecture(model: str) -> dict:
    """open_clip's description of the architecture."""
    try:
        import open_clip
    except ImportError as error:
        raise UserError(PIP) from error
    folder = local_folder(model)
    if folder is not None:
        return _described(folder)["model_cfg"]
    config = open_clip.get_model_config(model)
    if config is None:
        raise UserError(f"open_clip knows no architecture {model!r}; open_clip.list_models() names those it knows.")
    return config


def _described(folder: Path) -> dict:
    try:
        described = json.loads((folder / "open_clip_config.json").read_text(encoding="utf-8"))
        _ = described["model_cfg"]["vision_cfg"], described["model_cfg"]["embed_dim"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        why = hub.reason(error)
        raise UserError(f"{folder} holds no open_clip_config.json with a model_cfg of a vision_cfg ({why}).") from error
    return described


def local_folder(model: str) -> Path | None:
    return Path(model.removeprefix(FOLDER)).expanduser() if model.startswith(FOLDER) else None


def checkpoint_file(model: str, pretrained: str | None) -> tuple[str | None, dict]:
    """The checkpoint file that is meant, if any, and what is known of it (SETTINGS); ``model`` as ``located``."""
    import open_clip

    folder = local_folder(model)
    if folder is not None:
        weights, settings = _own_weights(folder), _described(folder).get("preprocess_cfg") or {}
        if weights and not settings:
            _say_assumed(weights, SETTINGS[:-1], model)
        return weights, {name: settings.get(name) for name in SETTINGS[:-1]}
    if pretrained is None:
        return None, {}
    tag = open_clip.get_pretrained_cfg(model, pretrained)
    if tag:
        return download(tag["hf_hub"], f"{model}:{pretrained}"), tag
    file = hub.expanded(pretrained)
    if Path(file).is_file():
        return file, _agreed(model, file)
    tags = ", ".join(open_clip.list_pretrained_tags_by_model(model)) or "none"
    raise UserError(f"vision.pretrained={pretrained} is neither a file nor one of the tags of {model}: {tags}.")


def _own_weights(folder: Path) -> str | None:
    """The weights in a folder; open_clip's own before those that another library put beside them."""
    found = [path for path in folder.iterdir() if path.suffix in WEIGHTS]
    order = sorted(found, key=lambda path: (not path.name.startswith("open_clip"), WEIGHTS.index(path.suffix), path))
    return str(order[0]) if order else None


def _agreed(model: str, file: str) -> dict:
    """What all published weights of an architecture have in common; the rest is said to be assumed."""
    import open_clip

    tags = [open_clip.get_pretrained_cfg(model, tag) for tag in open_clip.list_pretrained_tags_by_model(model)]
    found = {name: {tag.get(name) or None for tag in tags} for name in SETTINGS}
    if unsure := [name for name, values in found.items() if len(values) != 1]:
        _say_assumed(file, unsure, model)
    return {name: values.pop() for name, values in found.items() if len(values) == 1}


def _say_assumed(file: str, names: Iterable[str], model: str) -> None:
    from open_clip.transform import PreprocessCfg

    defaults = {**asdict(PreprocessCfg()), "quick_gelu": bool(architecture(model).get("quick_gelu"))}
    logging.getLogger(__name__).warning(
        "%s does not tell its %s, and published weights do not settle it; assumed: %s. "
        "A folder with an open_clip_config.json beside the weights tells it (model=local-dir:<folder>).",
        file,
        ", ".join(names),
        ", ".join(f"{name}={defaults[name]}" for name in names),
    )


def download(address: str, what: str) -> str:
    """A file of the Hugging Face hub, from the local cache or the net; safetensors where there are any.

    ``address`` is "organisation/repository/file", the file empty for open_clip's usual name. Not left to open_clip,
    which asks the network even for files that are here, and retries for most of a minute without one.
    """
    from open_clip.constants import HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME

    repository, _, file = address.rpartition("/")
    names = [file] if file else [HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME]
    if Path(file).suffix in WEIGHTS[1:]:
        names.insert(0, str(Path(file).with_suffix(".safetensors")))

    def load(local: bool) -> str:
        for name in names:
            if path := hub.obtain(repository, name, local):
                return str(path)
        raise FileNotFoundError(f"it has no {' and no '.join(names)}")

    advice = (
        f"fetch the repository {repository} where there is a network and give its folder as "
        "vision.model=local-dir:<folder> with vision.pretrained=null"
    )
    return hub.fetch(load, repository, f"repository of the weights {what},", advice, names[-1])


def preprocessing_of(wanted: dict, model: str) -> dict:
    """What open_clip's own transforms of a ``preprocess_cfg`` do, in the words of ``Vision.preprocessing``."""
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
    """Height and width."""
    height, width = (size, size) if isinstance(size, int) else size
    return height, width
