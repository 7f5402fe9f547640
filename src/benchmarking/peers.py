"""Independent implementations from PyPI at the same sizes: random weights, our batches, what their libraries advise.

They are given every advantage that their interfaces offer: no cache in training, no mask where padding stands on the
right of causal text, visual tokens instead of pictures. What they cannot share they compute: a picture is read once for
each of its captions.
"""

from __future__ import annotations

from abc import abstractmethod

import torch
from open_clip.coca_model import CoCa
from open_clip.loss import CoCaLoss
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    BlipTextConfig,
    BlipTextLMHeadModel,
    GPT2Config,
    GPT2LMHeadModel,
    VisionEncoderDecoderModel,
    ViTConfig,
    ViTModel,
)
from transformers.modeling_outputs import BaseModelOutput
from transformers.utils import logging

from src.benchmarking.jobs import Job, Unsupported, family
from src.benchmarking.languages import gpt2_options
from src.benchmarking.workloads import Contestant, Workload
from src.contracts import Batch

IGNORED = -100  # label of a position without a target, in all of these libraries
PATCH = 16  # side in pixels of the only patch of image encoders that are there for form's sake

logging.set_verbosity_error()


class Peer(Contestant):
    """A model of another library.

    ``new``: what the names of parameters contain that a language model does not have; with a frozen one only they
    train. ``unused``: how the names inside an image encoder start that is never called. ``shifts``: the model itself
    moves its labels by one position. ``language``: what its language model is, whatever the size. Raises Unsupported
    for a size of another family.
    """

    language: str
    new: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    shifts = False

    def __init__(self, job: Job, workload: Workload):
        self.size, self.dropout, self.tokenizer = workload.size, workload.settings["dropout"], workload.tokenizer
        if family(self.size) != "gpt2":
            raise Unsupported(
                f"{job.model} is not measured at the size {job.size}: its language model is {self.language}, and that "
                f"size is of the family {family(self.size)}"
            )
        self.frozen = job.regime == "frozen_lm"
        self.module = self.build()
        for name, parameter in self.module.named_parameters():
            parameter.requires_grad_(self._learns(name) and not name.startswith(self.unused))

    def _learns(self, name: str) -> bool:
        return not self.frozen or any(part in name for part in self.new)

    @abstractmethod
    def build(self) -> nn.Module:
        """The model, with random weights."""

    @abstractmethod
    def given(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Token ids and labels, as the model gets them."""

    def train(self) -> None:
        for name, part in self.module.named_modules():
            part.training = self._learns(f"{name}.")

    def groups(self) -> list[dict]:
        return [{"params": [parameter for parameter in self.module.parameters() if parameter.requires_grad]}]

    def rows(self, batch: Batch) -> list[list[int]]:
        ids_BT, labels_BT = self.given(batch)
        labels_BT = labels_BT[:, 1:] if self.shifts else labels_BT
        starts_B = ids_BT[:, 0].tolist()
        return [[start, *row[row != IGNORED].tolist()] for start, row in zip(starts_B, labels_BT, strict=True)]

    def flops(self, batch: Batch) -> int:
        """Counted like those of our mechanisms: in eval mode and single precision."""
        self.module.eval()
        with FlopCounterMode(display=False) as counter:
            self.loss(batch).backward()
        self.module.zero_grad(set_to_none=True)
        return counter.get_total_flops()


class VisionEncoderDecoder(Peer):
    """transformers' VisionEncoderDecoderModel around a GPT-2 with cross-attention in every block."""

    language = "a GPT-2 (the library's Llama has no cross-attention)"
    new = ("crossattention", "ln_cross_attn", "enc_to_dec_proj")
    unused = ("encoder.",)

    def build(self) -> nn.Module:
        config = GPT2Config(
            **gpt2_options(self.size, self.dropout),
            add_cross_attention=True,
            is_decoder=True,
            bos_token_id=self.tokenizer.bos,
            eos_token_id=None,
            pad_token_id=self.tokenizer.pad,
        )
        encoder = ViTConfig(
            hidden_size=self.size["visual_width"],
            num_hidden_layers=0,
            num_attention_heads=1,
            intermediate_size=1,
            image_size=PATCH,
            patch_size=PATCH,
        )
        return VisionEncoderDecoderModel(
            encoder=ViTModel(encoder, add_pooling_layer=False), decoder=GPT2LMHeadModel(config)
        )

    def given(self, batch: Batch) -> tuple[Tensor, Tensor]:
        return batch.text.ids_BT[:, :-1], _labels(batch)[:, 1:]

    def loss(self, batch: Batch) -> Tensor:
        ids_BT, labels_BT = self.given(batch)
        read = BaseModelOutput(last_hidden_state=_visual(batch, len(ids_BT)))
        return self.module(encoder_outputs=read, decoder_input_ids=ids_BT, labels=labels_BT, use_cache=False).loss

    @torch.no_grad()
    def generate(self, batch: Batch, beams: int, tokens: int, cached: bool) -> list[list[int]]:
        found = self.module.generate(
            encoder_outputs=BaseModelOutput(last_hidden_state=_visual(batch, len(batch.ids))),
            decoder_start_token_id=self.tokenizer.bos,
            **_generation(beams, tokens, cached, self.tokenizer.pad),
        )
        return found[:, 1:].tolist()


class Blip(Peer):
    """The text decoder of transformers' BLIP: a BERT with a causal mask and cross-attention in every layer."""

    language = "a BERT"
    new = ("crossattention",)
    shifts = True

    def build(self) -> nn.Module:
        size = self.size
        config = BlipTextConfig(
            vocab_size=size["vocabulary"],
            hidden_size=size["width"],
            encoder_hidden_size=size["visual_width"],
            intermediate_size=4 * size["width"],
            num_hidden_layers=size["layers"],
            num_attention_heads=size["heads"],
            max_position_embeddings=size["context"],
            hidden_dropout_prob=self.dropout,
            attention_probs_dropout_prob=self.dropout,
            is_decoder=True,
            bos_token_id=self.tokenizer.bos,
            eos_token_id=None,
            sep_token_id=None,
            pad_token_id=self.tokenizer.pad,
        )
        return BlipTextLMHeadModel(config)

    def given(self, batch: Batch) -> tuple[Tensor, Tensor]:
        return batch.text.ids_BT, _labels(batch)

    def loss(self, batch: Batch) -> Tensor:
        ids_BT, labels_BT = self.given(batch)
        visual_BNC = _visual(batch, len(ids_BT))
        return self.module(input_ids=ids_BT, labels=labels_BT, encoder_hidden_states=visual_BNC).loss

    @torch.no_grad()
    def generate(self, batch: Batch, beams: int, tokens: int, cached: bool) -> list[list[int]]:
        visual_INC = _visual(batch, len(batch.ids))
        start_I1 = torch.full((len(batch.ids), 1), self.tokenizer.bos, device=visual_INC.device)
        options = _generation(beams, tokens, cached, self.tokenizer.pad)
        return self.module.generate(input_ids=start_I1, encoder_hidden_states=visual_INC, **options)[:, 1:].tolist()


class OpenClipCoCa(Peer):
    """open_clip's CoCa behind its image encoder: poolers, both text stacks, both losses; half of the layers see.

    It knows neither dropout nor an end of padding other than a word: padding is word 0 here, and is no target.
    """

    language = "a pair of stacks of its own"
    new = ("visual.", "text_decoder.cross_attn", "text.cls_emb", "text.text_projection", "logit_scale")
    unused = (
        "visual.conv1",
        "visual.class_embedding",
        "visual.positional_embedding",
        "visual.ln_pre",
        "visual.transformer",
    )

    def build(self) -> nn.Module:
        size = self.size
        lower = size["layers"] // 2
        text = {
            "context_length": size["context"],
            "vocab_size": size["vocabulary"],
            "width": size["width"],
            "heads": size["heads"],
        }
        vision = {
            "image_size": PATCH,
            "patch_size": PATCH,
            "layers": 0,
            "width": size["visual_width"],
            "head_width": size["visual_width"],
            "attentional_pool": True,
            "output_tokens": True,
        }
        model = CoCa(
            embed_dim=size["width"],
            text_cfg={**text, "layers": lower, "embed_cls": True, "output_tokens": True},
            multimodal_cfg={**text, "layers": size["layers"] - lower},
            vision_cfg=vision,
        )
        # The library leaves this matrix as it finds the memory: to be loaded, not to be trained.
        nn.init.normal_(model.text_decoder.text_projection, std=size["width"] ** -0.5)
        self._criterion = CoCaLoss(caption_loss_weight=2.0, clip_loss_weight=1.0, pad_id=IGNORED)
        return model

    def given(self, batch: Batch) -> tuple[Tensor, Tensor]:
        return batch.text.ids_BT.masked_fill(~batch.text.valid_BT, self.module.pad_id), _labels(batch)[:, 1:]

    def loss(self, batch: Batch) -> Tensor:
        ids_BT, labels_BT = self.given(batch)
        pooled_BE, tokens_BnD = self._pooled(_visual(batch, len(ids_BT)))
        found = self.module(None, ids_BT, image_latent=pooled_BE, image_embs=tokens_BnD)
        return sum(self._criterion(**{**found, "labels": labels_BT}))

    def _pooled(self, visual_BNC: Tensor) -> tuple[Tensor, Tensor]:
        """The end of the library's image tower, from where its transformer has finished."""
        tower = self.module.visual
        pooled_BE, tokens_BnD = tower._pool(visual_BNC)
        return F.normalize(pooled_BE @ tower.proj, dim=-1), tokens_BnD

    def generate(self, batch: Batch, beams: int, tokens: int, cached: bool) -> list[list[int]]:
        raise Unsupported(
            "open_clip's CoCa is not decoded: its generate() needs BeamSearchScorer, which transformers 5 no longer has"
        )


PEERS = {"vision_encoder_decoder": VisionEncoderDecoder, "blip": Blip, "open_clip_coca": OpenClipCoCa}


def _labels(batch: Batch) -> Tensor:
    """(B, T), the ids where they are targets."""
    return batch.text.ids_BT.masked_fill(~batch.text.targets(), IGNORED)


def _visual(batch: Batch, rows: int) -> Tensor:
    """Visual tokens (B, N, C), those of a picture once for each of its captions."""
    tokens_INC = batch.visual.tokens_INC.to(torch.get_default_dtype())
    return tokens_INC.repeat_interleave(rows // len(tokens_INC), 0)


def _generation(beams: int, tokens: int, cached: bool, pad: int) -> dict:
    """Options of the library's generate for captions of exactly ``tokens`` tokens."""
    return {
        "num_beams": beams,
        "max_new_tokens": tokens,
        "do_sample": False,
        "use_cache": cached,
        "eos_token_id": None,  # none: nothing ends a caption
        "pad_token_id": pad,
    }
