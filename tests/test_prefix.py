"""Visual tokens in front of the text: against transformers' LLaVA, and what open tokens see."""

from __future__ import annotations

import pytest
import torch
import transformers
from conftest import VISION, Characters, make_language, make_text, make_visual

from src.contracts import UserError, VisionSpec, Visual
from src.fusion.prefix import Prefix
from src.language.llama import Llama
from src.projectors.mlp import MLP

PATCHES, IMAGE = 4, 130  # tokens of a picture, and the token that LLaVA puts in their place


def llava() -> transformers.LlavaForConditionalGeneration:
    vision = transformers.CLIPVisionConfig(
        hidden_size=24, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=16, patch_size=8
    )
    text = transformers.LlamaConfig(
        vocab_size=131,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
    )
    config = transformers.LlavaConfig(
        vision_config=vision, text_config=text, image_token_index=IMAGE, vision_feature_layer=-1
    )
    torch.manual_seed(0)
    return transformers.LlavaForConditionalGeneration(config).double().eval()


@torch.no_grad()
def test_equal_to_llava_with_its_weights():
    theirs = llava()
    pixels = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    features = theirs.model.vision_tower(pixels, output_hidden_states=True).hidden_states[-1][:, 1:]  # without CLS
    spec = VisionSpec(width=24, tokens=PATCHES, pooled_width=24, image_size=16)

    causal = transformers.LlamaForCausalLM(theirs.config.text_config).double()
    causal.model.load_state_dict(theirs.model.language_model.state_dict())
    causal.lm_head.load_state_dict(theirs.lm_head.state_dict())
    language = Llama(causal, Characters()).eval()
    projector = MLP(spec, language.spec, layers=2, pooled=None, dropout=0.0).double()
    projector.steps[0].load_state_dict(theirs.model.multi_modal_projector.linear_1.state_dict())
    projector.steps[2].load_state_dict(theirs.model.multi_modal_projector.linear_2.state_dict())
    fusion = Prefix(projector.spec, language.spec, open=False)

    text = make_text(2, 7)
    ids = torch.cat([torch.full((2, PATCHES), IMAGE), text.ids_BT], dim=1)
    want = theirs(input_ids=ids, pixel_values=pixels).logits[:, PATCHES:]
    memory = fusion.encode(language, projector(Visual(features[:, None], features[:, None].mean(2))))
    got = fusion.readout(language, fusion.decode(language, memory, text))
    torch.testing.assert_close(got, want, rtol=0, atol=1e-10)


def prefix_states(open: bool, changed: int) -> torch.Tensor:
    """Which visual columns of the last block move when one visual token does, (N,)."""
    language = make_language()
    spec = VisionSpec(width=32, tokens=5, pooled_width=32, image_size=8)
    fusion, text = Prefix(spec, language.spec, open), make_text(1, 3)
    seen, end = [], language.final_norm
    language.final_norm = lambda h: seen.append(h) or end(h)
    tokens = torch.randn(1, 1, 5, 32, dtype=torch.float64)
    for shift in (0.0, torch.randn(32)):  # a constant would be lost in the first norm
        tokens[0, 0, changed] += shift
        fusion.decode(language, fusion.encode(language, Visual(tokens, tokens.mean(2))), text)
    return (seen[1] - seen[0]).abs().amax(-1)[0, :5] > 1e-9


@torch.no_grad()
def test_open_tokens_see_each_other_and_others_only_those_before():
    assert prefix_states(open=True, changed=3).tolist() == [True] * 5
    assert prefix_states(open=False, changed=3).tolist() == [False, False, False, True, True]


def test_widths_must_agree_without_a_projector():
    with pytest.raises(UserError, match=r"width 24 among word vectors of 32; use projector=mlp"):
        Prefix(VISION, make_language().spec, open=False)


def test_vectors_of_the_pooled_feature():
    """Frozen's prefix: as many as asked for, of the pooled vector alone."""
    language, visual = make_language(), make_visual(3)
    projector = MLP(VISION, language.spec, layers=1, pooled=2, dropout=0.0).double()
    seen = projector(visual)
    assert projector.spec.tokens == 2 and not projector.needs_tokens and seen.tokens_IMNC.shape == (3, 1, 2, 32)
    want = projector.steps[0](visual.pooled_IMC[:, 0]).view(3, 2, 32)
    torch.testing.assert_close(seen.tokens_IMNC[:, 0], want, rtol=0, atol=0)
