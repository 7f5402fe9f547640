"""The letters at the ends of tensors' names are true: in training, decoding and diagnostics of every mechanism."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch
import transformers
from axes import SOURCE, Axes
from conftest import FUSIONS, OBJECTIVES, Characters, make_fusion, make_text
from families import make_family
from test_captioner import OPTIM, make_captioner
from test_language import LLAMA_SIZES

from src.captioner import Captioner
from src.contracts import Batch
from src.decoding.beam import BeamSearch
from src.decoding.contrastive import ContrastiveSearch
from src.decoding.greedy import Greedy
from src.decoding.sample import Sample
from src.diagnostics.reading import log_probabilities
from src.language.llama import Llama
from src.loading.rows import APART, with_views
from src.objectives.base import Objective
from src.objectives.prefix_lm import PrefixLM
from src.vision.efficientnet_lite import EfficientNetLite0
from src.vision.vit import ViT

# Sizes that tell letters apart: I = 2, G = 7, B = 14, T = 12, N = 6, K = 3, C = 24, D = 32, V = 131, H = 4, d = 8.
DECODERS = (
    Greedy(5),
    BeamSearch(5, beams=3, length_penalty=1.0),
    Sample(5, 1.0, top_k=9, top_p=0.9, seed=0),
    ContrastiveSearch(5, candidates=3, penalty=0.6),
)
FORMS = [
    *((name, ()) for name in FUSIONS),
    ("clipcap", ("fusion.mapper=transformer", "fusion.prefix_length=5", "fusion.layers=2")),
    ("coca", ("fusion.pool=parallel", "fusion.embed_width=20")),
    ("flamingo", ("fusion.resampler_width=40", "fusion.last_image=false")),
    ("prefix", ("fusion.open=true",)),
    ("srau", ("fusion.gate=concat", "fusion.levels=2")),
    ("srau", ("fusion.reference_defects=true",)),
    ("vcgpt", ("fusion.head=shared",)),
    ("show_attend_tell", ("fusion.score=dot", "fusion.query=current", "fusion.width=20")),
]


def make_batch(pictures: int = 1, objectives: Mapping[str, Objective] = OBJECTIVES) -> Batch:
    """Captions of several lengths; more pictures: documents, in one of which the last is missing."""
    text = make_text(14, 12)
    text.valid_BT[-1, -2:] = False
    text.phi_BT = 1 + torch.arange(12).expand(14, 12) * pictures // 12
    pixels = torch.randint(0, 256, (2, pictures, 3, 12, 12), dtype=torch.uint8)
    valid_IM = None
    if pictures > 1:
        valid_IM = torch.ones(2, pictures, dtype=torch.bool)
        valid_IM[1, -1] = False
    batch = Batch(["a", "b"], text, pixels, image_valid_IM=valid_IM)
    return with_views(batch, objectives, random.Random, APART)


def live(model: Captioner, batch: Batch) -> Axes:
    """What was found while a model trained, was looked at, and captioned, from its own start and from prompts."""
    axes = Axes(D=model.language.spec.width, V=model.language.spec.vocabulary)
    prompts = make_text(2, 3)
    prompts.valid_BT[0, 0], prompts.ragged = False, True
    with axes.checked():
        model.train()
        model.total(batch, model.losses(batch)).backward()
        model.eval()
        with torch.no_grad():
            memory = model.memory(batch, aux := {})
            model.writer.decode(model.language, memory, batch.text, aux=aux)
            log_probabilities(model, memory, batch.text)
        for decoder in DECODERS:
            model.caption([batch], decoder)
        model.caption([replace(batch, text=prompts)], DECODERS[0], prompted=True)
    return axes


@pytest.mark.parametrize(("name", "options"), FORMS, ids=[" ".join([name, *options]) for name, options in FORMS])
def test_letters_are_true(name, options):
    axes = live(make_captioner(name, "finetune_lm", *options, dropout=0.1), make_batch())
    assert not axes.wrong
    assert len(axes.functions) > 40  # it has looked


@pytest.mark.parametrize("name", ["cross_attention", "flamingo", "coca"])
def test_letters_are_true_of_several_pictures(name):
    assert not live(make_captioner(name), make_batch(pictures=3)).wrong


def test_letters_are_true_of_blocks_that_compute_again_and_text_that_is_open():
    model = make_captioner("clipcap")
    model.language.recompute, model.objectives = True, {"prefix_lm": PrefixLM()}
    assert not live(model, make_batch(objectives=model.objectives)).wrong


def test_letters_are_true_of_a_llama_that_shares_keys():
    options = {**LLAMA_SIZES, "vocab_size": 131, "hidden_size": 40, "num_attention_heads": 4, "num_key_value_heads": 2}
    language = Llama(transformers.LlamaForCausalLM(transformers.LlamaConfig(**options)).double(), Characters())
    plain = make_captioner("flamingo")
    fusion = make_fusion("flamingo", language)
    model = Captioner(plain.vision, fusion, language, Characters(), plain.regime, OPTIM, DECODERS[0], OBJECTIVES)
    assert not live(model, make_batch()).wrong


@pytest.mark.parametrize("family", ["neox", "opt_350m", "phi3_partial", "gemma2", "gemma3", "olmo2", "smollm3"])
def test_letters_are_true_of_every_family(family):
    language, plain = make_family(family), make_captioner("srau")
    fusion = make_fusion("srau", language)
    model = Captioner(plain.vision, fusion, language, Characters(), plain.regime, OPTIM, DECODERS[0], OBJECTIVES)
    assert not live(model, make_batch()).wrong


@pytest.mark.parametrize(
    "encoder", [lambda: ViT(16, 4, 24, 3, 2), lambda: EfficientNetLite0(None)], ids=["vit", "lite"]
)
def test_letters_are_true_of_encoders_and_videos(encoder):
    vision = encoder().eval()
    size, axes = vision.spec.image_size, Axes(C=vision.spec.width, N=vision.spec.tokens)
    pixels_IMF3hw = torch.zeros(2, 1, 3, 3, size, size, dtype=torch.uint8)
    with axes.checked(), torch.no_grad():
        vision.eval()
        vision(pixels_IMF3hw[:, :, 0], levels=vision.spec.levels)
        vision(pixels_IMF3hw)
    assert not axes.wrong and len(axes.functions) >= 3


def planted(source: str, room: str = "fusion") -> list[str]:
    """What is found wrong in a file of ``room`` whose function ``wrong`` is called with h (14, 12, 32)."""
    names = {"torch": torch}
    exec(compile(source, str(SOURCE / room / "mine.py"), "exec"), names)
    axes = Axes(D=32)
    with axes.checked():
        names["wrong"](torch.zeros(14, 12, 32))
    return axes.wrong


@pytest.mark.parametrize(
    ("body", "fault"),
    [
        ("h_BTD = x", None),
        ("h_BDT = x", "D of h_BDT is 12, of the model 32"),
        ("h_BTD = x; k_BTd = x[:, 1:]", "T of k_BTd is 11, of h_BTD 12"),
        ("h_BTD = x[0]", "h_BTD has 2 axes"),
        ("h_BT1 = x", "1 of h_BT1 is 32, of its name 1"),
        ("h_BT1 = x[:, :, :1]", None),
        ("h_BTBTD = x.unbind()", "h_BTBTD has 3 axes"),
        ("h_TBD = x; k_BTd = x", "B of k_BTd is 14, of h_TBD 12"),
        ("image_valid = x[0]", None),  # a word
        ("h_BTD = None", None),
        ("[h_BT for h_BT in [x]]", "h_BT has 3 axes"),
    ],
)
def test_a_wrong_letter_is_found(body, fault):
    found = planted(f"def wrong(x):\n    {body}\n")
    assert (fault is None and not found) or found[0].endswith(f": {fault}")


def test_bricks_have_widths_of_their_own():
    body = "def wrong(x):\n    h_BTD = x[:, :, :8]\n"
    assert planted(body) and not planted(body, "layers")
