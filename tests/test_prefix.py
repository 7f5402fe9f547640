"""Visual tokens in front of the text: against transformers' LLaVA, and what open tokens see."""

from __future__ import annotations

import pytest
import torch
import transformers
from conftest import VISION, Characters, make_language, make_text, make_visual

from src.contracts import Chunk, Document, Example, Text, UserError, VisionSpec, Visual
from src.fusion.prefix import Prefix
from src.language.llama import Llama
from src.layers.cache import Cache
from src.loading.documents import Row, collate, document_row
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


def ours(theirs: transformers.LlavaForConditionalGeneration) -> tuple[Llama, MLP, Prefix]:
    """Language model, projector and mechanism with LLaVA's weights."""
    spec = VisionSpec(width=24, tokens=PATCHES, pooled_width=24, image_size=16)
    causal = transformers.LlamaForCausalLM(theirs.config.text_config).double()
    causal.model.load_state_dict(theirs.model.language_model.state_dict())
    causal.lm_head.load_state_dict(theirs.lm_head.state_dict())
    language = Llama(causal, Characters()).eval()
    projector = MLP(spec, language.spec, layers=2, pooled=None, dropout=0.0).double()
    projector.steps[0].load_state_dict(theirs.model.multi_modal_projector.linear_1.state_dict())
    projector.steps[2].load_state_dict(theirs.model.multi_modal_projector.linear_2.state_dict())
    return language, projector, Prefix(projector.spec, language.spec, open=False)


def features_of(theirs: transformers.LlavaForConditionalGeneration, pixels: torch.Tensor) -> torch.Tensor:
    """Of the last layer, without CLS."""
    return theirs.model.vision_tower(pixels, output_hidden_states=True).hidden_states[-1][:, 1:]


@torch.no_grad()
def test_equal_to_llava_with_its_weights():
    theirs = llava()
    pixels = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    features, (language, projector, fusion) = features_of(theirs, pixels), ours(theirs)
    text = make_text(2, 7)
    ids = torch.cat([torch.full((2, PATCHES), IMAGE), text.ids_BT], dim=1)
    want = theirs(input_ids=ids, pixel_values=pixels).logits[:, PATCHES:]
    memory = fusion.encode(language, projector(Visual(features[:, None], features[:, None].mean(2))))
    got = fusion.readout(language, fusion.decode(language, memory, text))
    torch.testing.assert_close(got, want, rtol=0, atol=1e-10)


def pages() -> tuple[Text, list[Row]]:
    """Two documents, of two pictures and of one; the second is shorter."""
    pictures = [Example(f"p{i}", ()) for i in range(3)]
    one = Document("a", (Chunk("so"), Chunk("dog", pictures[0]), Chunk("big cat", pictures[1])))
    two = Document("b", (Chunk("a fish", pictures[2]),))
    rows = [document_row(page, Characters(), 99, 9, PATCHES) for page in (one, two)]
    return collate(rows, Characters.pad, columns=PATCHES), rows


@torch.no_grad()
def test_pictures_among_the_words_are_where_llava_has_them():
    theirs = llava()
    pixels = torch.randn(3, 3, 16, 16, dtype=torch.float64)
    features, (language, projector, fusion) = features_of(theirs, pixels), ours(theirs)
    text, rows = pages()
    ids = torch.where(text.visual_BT > 0, IMAGE, text.ids_BT)
    want = theirs(input_ids=ids, attention_mask=text.valid_BT.long(), pixel_values=pixels).logits
    blank = torch.zeros_like(features[:1])
    features_IMNC = torch.stack([features[:2], torch.cat([features[2:], blank])])
    visual = projector(
        Visual(features_IMNC, features_IMNC.mean(2), image_valid_IM=torch.tensor([[1, 1], [1, 0]]).bool())
    )
    got = fusion.readout(language, fusion.decode(language, fusion.encode(language, visual), text))
    torch.testing.assert_close(got[text.valid_BT], want[text.valid_BT], rtol=0, atol=1e-10)
    assert [row.visual[1 if row.visual[1] else 4 :][:PATCHES] for row in rows] == [[1, 2, 3, 4]] * 2


@torch.no_grad()
def test_a_picture_among_words_is_seen_by_what_follows_alone_and_prompts_go_on_from_it():
    language = make_language()
    spec = VisionSpec(width=32, tokens=PATCHES, pooled_width=32, image_size=8)
    fusion, (text, _) = Prefix(spec, language.spec, open=False), pages()
    tokens = torch.randn(2, 2, PATCHES, 32, dtype=torch.float64)

    def states(tokens: torch.Tensor, text: Text, cache: Cache | None = None) -> torch.Tensor:
        return fusion.decode(language, fusion.encode(language, Visual(tokens, tokens.mean(2))), text, cache)

    whole = states(tokens, text)
    changed = tokens.clone()
    changed[0, 1] += torch.randn(32)
    moved = (states(changed, text) - whole).abs().amax(-1) > 1e-9
    second = int((text.phi_BT[0] == 2).nonzero()[0])
    assert not moved[:, :second].any() and moved[0, second:].all() and not moved[1].any()

    shift = int((~text.valid_BT[1]).sum())
    ids, valid, phi, visual = (
        torch.stack([x[0], x[1].roll(shift)]) for x in (text.ids_BT, text.valid_BT, text.phi_BT, text.visual_BT)
    )
    left = Text(ids, valid, phi, ragged=True, visual_BT=visual)
    cache, at = Cache(2, 64), text.ids_BT.shape[1] - 2
    begun = states(tokens, left.columns(None, at), cache)
    then = [states(tokens, left.columns(t, t + 1), cache) for t in (at, at + 1)]
    got = torch.cat([begun, *then], 1)
    torch.testing.assert_close(got[0], whole[0], rtol=0, atol=1e-10)
    torch.testing.assert_close(got[1, shift:], whole[1, :-shift], rtol=0, atol=1e-10)


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


@torch.no_grad()
def test_pages_without_pictures_are_texts_and_take_no_room_for_any():
    language = make_language(context=9)
    spec = VisionSpec(width=32, tokens=PATCHES, pooled_width=32, image_size=8)
    fusion = Prefix(spec, language.spec, open=False)
    text = collate([document_row(Document("a", (Chunk("so long"),)), Characters(), 99, 9, PATCHES)], 2, columns=PATCHES)
    blank = torch.zeros(1, 1, PATCHES, 32, dtype=torch.float64)
    memory = fusion.encode(language, Visual(blank, blank.mean(2), image_valid_IM=torch.zeros(1, 1, dtype=torch.bool)))
    want = language.hidden(Text(text.ids_BT, text.valid_BT, text.phi_BT))  # nine positions, all that there are
    torch.testing.assert_close(fusion.decode(language, memory, text), want, rtol=0, atol=1e-12)
