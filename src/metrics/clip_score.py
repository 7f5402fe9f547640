"""CLIPScore and RefCLIPScore (Hessel et al. 2021, EMNLP, arXiv 2104.08718, section 3).

CLIPScore(c, v) = 2.5 * max(cos(c, v), 0) of the embeddings of caption and picture; RefCLIPScore is the harmonic mean of
CLIPScore and max(the highest cos(c, r) of the references r, 0). Captions and references stand behind "A photo depicts";
corpus scores are means over the pictures. Published numbers are those of OpenAI's ViT-B/32.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from src import hub
from src.errors import UserError
from src.vision.open_clip_weights import (
    architecture,
    checkpoint_file,
    download,
    local_folder,
    located,
    preprocessing_of,
)

PROMPT = "A photo depicts "
WEIGHT = 2.5
BATCH = 32  # pictures

# (id, how the model wants pictures: "size", "resize", "interpolation") -> uint8 RGB pixels (3, size, size)
Pictures = Callable[[str, Mapping], Tensor]


def clip_scores(image_BE: Tensor, caption_BE: Tensor, references: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """CLIPScore and RefCLIPScore of B pairs, each (B,); E is the width of the embeddings, of any length.

    ``references``: for each pair the embeddings of its R references, (R, E).
    """
    image_BE, caption_BE = F.normalize(image_BE, dim=-1), F.normalize(caption_BE, dim=-1)
    clip_B = WEIGHT * (image_BE * caption_BE).sum(-1).clamp(min=0)
    nearest = [
        (F.normalize(own_RE, dim=-1) @ one_E).max() for one_E, own_RE in zip(caption_BE, references, strict=True)
    ]
    text_B = torch.stack(nearest).clamp(min=0)
    both_B = clip_B + text_B
    return clip_B, torch.where(both_B > 0, 2 * clip_B * text_B / both_B.clamp(min=1e-12), 0.0)


class ClipScorer:
    """Scores by one open_clip model, on the GPU where there is one.

    ``model``, ``pretrained``: as for vision=open_clip. ``self.pretrained`` is False where the weights are random, and
    the scores without meaning. Raises UserError, within seconds, for unknown names and weights that cannot be had.
    """

    def __init__(self, model: str = "ViT-B-32", pretrained: str | None = "openai"):
        try:
            here = located(model, pretrained)
            architecture(here)  # names what is wrong with the model
            checkpoint, known = checkpoint_file(here, pretrained)
            tokenizer = _made_tokenizer(model, here)
            self.model = _build(here, checkpoint, known)
            self.preprocessing = preprocessing_of(self.model.visual.preprocess_cfg, model)
        except UserError as error:
            raise UserError(str(error).replace("vision.", "clip.")) from error  # what the option is called here
        self.pretrained = checkpoint is not None
        self.tokenizer = tokenizer
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model.to(self.device).eval()
        constants = (torch.tensor(self.preprocessing[name], device=self.device) for name in ("mean", "std"))
        self.mean_311, self.std_311 = (constant[:, None, None] for constant in constants)

    @torch.inference_mode()
    def score(
        self, ids: Sequence[str], captions: Sequence[str], references: Sequence[Sequence[str]], pictures: Pictures
    ) -> tuple[list[float], list[float]]:
        """CLIPScore and RefCLIPScore of every picture's caption; ``references`` has one caption or more for each."""
        clip, with_references = [], []
        for first in tqdm(range(0, len(ids), BATCH), desc="CLIPScore", unit="batch", delay=2, leave=False):
            some = slice(first, first + BATCH)
            image_BE = self.embed_pictures([pictures(id, self.preprocessing) for id in ids[some]])
            counts = [len(own) for own in references[some]]
            reference_XE = self.embed_texts([caption for own in references[some] for caption in own])
            scores = clip_scores(image_BE, self.embed_texts(captions[some]), reference_XE.split(counts))
            clip += scores[0].tolist()
            with_references += scores[1].tolist()
        return clip, with_references

    def embed_pictures(self, pixels: Sequence[Tensor]) -> Tensor:
        """uint8 pixels, B times (3, size, size) -> (B, E)."""
        pixels_B3hw = torch.stack(list(pixels)).to(self.device).float().div_(255)
        return self.model.encode_image((pixels_B3hw - self.mean_311) / self.std_311)

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Captions behind the prompt -> (B, E); what does not fit into the model's context is cut off."""
        return self.model.encode_text(self.tokenizer([PROMPT + text for text in texts]).to(self.device))


def _made_tokenizer(model: str, here: str):
    try:
        return _tokenizer(model, here)
    except UserError:
        raise
    except Exception as error:  # missing or bad files, and missing packages, share no base class
        raise UserError(f"open_clip cannot make the tokenizer of {model}: {hub.reason(error)}") from error


def _tokenizer(model: str, here: str):
    """The model's tokenizer; one that comes from the hub is looked for on this machine first.

    Left to itself the library asks the network for files that are here, and retries for most of a minute without one.
    """
    import open_clip

    name = architecture(here).get("text_cfg", {}).get("hf_tokenizer_name")
    options = {"trust_remote_code": False}  # else a repository with code of its own is asked about on the terminal
    if not name or local_folder(model) is not None:
        return open_clip.get_tokenizer(here, **(options if name else {}))
    try:
        return open_clip.get_tokenizer(model, local_files_only=True, **options)
    except OSError:
        download(f"{name}/tokenizer_config.json", f"of {model}'s tokenizer")  # a sentence, at once, if it is not there
        return open_clip.get_tokenizer(model, **options)


def _build(model: str, checkpoint: str | None, known: dict) -> torch.nn.Module:
    import open_clip

    try:
        return open_clip.create_model(
            model,
            pretrained=None if local_folder(model) else checkpoint,  # a folder's own is found again
            force_preprocess_cfg=known,
            force_quick_gelu=bool(architecture(model).get("quick_gelu") or known.get("quick_gelu")),
            pretrained_image=False,
            pretrained_text=False,  # the checkpoint has both towers; nothing else may be fetched
        )
    except Exception as error:  # bad files and missing extras share no base class
        source = Path(checkpoint).name if checkpoint else model
        raise UserError(f"open_clip cannot build {model} from {source}: {hub.reason(error)}") from error
