"""Contracts of mechanisms that read picture and text at once, over every yaml of conf/fusion that names one."""

from __future__ import annotations

import copy
import csv
import functools
import json
import math
import random
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from commands import run
from conftest import (
    READERS,
    VISION,
    Characters,
    fusion_config,
    make_bert,
    make_language,
    make_text,
    make_visual,
    nudge,
)
from hydra.utils import instantiate
from omegaconf import OmegaConf
from PIL import Image
from transformers import LxmertConfig, LxmertModel, VisualBertConfig, VisualBertForPreTraining
from transformers.models.bert.modeling_bert import BertModel

from src.build import Parts, _check_direction, begin_at, build_objectives
from src.captioner import Captioner
from src.config.command_line import compose
from src.config.earlier import use_earlier
from src.contracts import Batch, Example, Line, Text, UserError
from src.data.scenes import Scenes
from src.decoding.beam import BeamSearch
from src.decoding.greedy import Greedy
from src.diagnostics import reading
from src.fusion.base import Read
from src.fusion.two_stream import CoAttention
from src.layers.regions import grid_boxes
from src.loading.batches import text_rows
from src.loading.module import CaptionData
from src.loading.rows import APART, with_views
from src.objectives.align import transport
from src.objectives.answer import AnswerHead, known_answers
from src.objectives.base import Surroundings
from src.objectives.match import Match, MatchHead, open_rows
from src.records.folder import Saved
from src.scenes.check import check
from src.scenes.foils import foil
from src.scenes.world import Scene
from src.tasks import retrieval
from src.tasks.matching import Matching

EXACT = {"rtol": 0, "atol": 1e-10}
VARIANTS = [
    *[(name, ()) for name in READERS],
    ("visualbert", ("fusion.fuse_at=late",)),
    ("vilbert", ("fusion.directions=to_text",)),
    ("vilbert", ("fusion.vision_width=24", "fusion.vision_layers=1")),
    ("lxmert", ("fusion.share_cross=false",)),
]
ANSWERS = ["yes", "no", "red"]


def make_reader(name: str, language, *overrides: str, nudged: bool = True, tokens: int = VISION.tokens):
    torch.manual_seed(1)
    fusion = instantiate(fusion_config(name, *overrides))(replace(VISION, tokens=tokens), language.spec).double()
    return (nudge(fusion) if nudged else fusion).eval()


@pytest.fixture(params=VARIANTS, ids=lambda v: "-".join([v[0], *(o.split(".")[-1] for o in v[1])]))
def parts(request):
    name, overrides = request.param
    language = make_bert()
    return make_reader(name, language, *overrides), language


def read(fusion, language, visual, text):
    text = replace(text, open_BT=torch.ones_like(text.valid_BT))
    return fusion.read(language, fusion.encode(language, visual), text)


# --------------------------------------------------------------------------------------------------------------------
# contracts
# --------------------------------------------------------------------------------------------------------------------
def test_every_word_sees_every_other_word_and_the_picture(parts):
    fusion, language = parts
    visual, text = make_visual(2), make_text(4, 7)
    found = read(fusion, language, visual, text)
    assert found.hidden_BTD.shape == (4, 7, 32) and found.pooled_BD.shape == (4, 32)
    assert found.regions_BND.shape[:2] == (4, VISION.tokens)
    other = replace(text, ids_BT=text.ids_BT.clone())
    other.ids_BT[:, 6] = (other.ids_BT[:, 6] + 1) % 100 + 4
    change_BT = (read(fusion, language, visual, other).hidden_BTD - found.hidden_BTD).abs().amax(-1)
    assert (change_BT > 1e-6).all(), "the last word reaches the first"
    seen = read(fusion, language, make_visual(2, seed=9), text)
    assert ((seen.hidden_BTD - found.hidden_BTD).abs().amax(-1) > 1e-6).all()
    assert ((seen.pooled_BD - found.pooled_BD).abs().amax(-1) > 1e-6).all()


def test_regions_see_words_unless_left_out(parts):
    fusion, language = parts
    one = read(fusion, language, make_visual(1), make_text(1, 6)).regions_BND
    two = read(fusion, language, make_visual(1), make_text(1, 6, seed=8)).regions_BND
    changed = (one - two).abs().max() > 1e-6
    assert changed != (getattr(fusion, "cross", None) is not None and not fusion.cross[0].both)


def test_rows_do_not_mix_and_rows_of_a_picture_are_neighbours(parts):
    fusion, language = parts
    visual, text = make_visual(2), make_text(4, 7)
    whole = read(fusion, language, visual, text)
    for i in range(2):
        rows = torch.tensor([2 * i, 2 * i + 1])
        alone = replace(text, ids_BT=text.ids_BT[rows], valid_BT=text.valid_BT[rows], phi_BT=text.phi_BT[rows])
        own = replace(visual, tokens_IMNC=visual.tokens_IMNC[i : i + 1], pooled_IMC=visual.pooled_IMC[i : i + 1])
        torch.testing.assert_close(read(fusion, language, own, alone).hidden_BTD, whole.hidden_BTD[rows], **EXACT)


@pytest.mark.parametrize("left", [False, True])
def test_padding_changes_nothing(parts, left):
    fusion, language = parts
    visual, text = make_visual(2), make_text(2, 5)
    plain = read(fusion, language, visual, text)
    pad = torch.full((2, 3), Characters.pad)
    ids = torch.cat([pad, text.ids_BT] if left else [text.ids_BT, pad], 1)
    valid = torch.arange(8) >= 3 if left else torch.arange(8) < 5
    padded = Text(ids, valid.expand(2, 8).clone(), valid.long().expand(2, 8).clone(), ragged=left)
    found = read(fusion, language, visual, padded)
    here = slice(3, None) if left else slice(0, 5)
    torch.testing.assert_close(found.hidden_BTD[:, here], plain.hidden_BTD, **EXACT)
    torch.testing.assert_close(found.pooled_BD, plain.pooled_BD, **EXACT)


def test_tokens_that_are_not_there_are_not_seen(parts):
    fusion, language = parts
    if fusion.regions.form == "vilbert":
        pytest.skip("the region of the whole is the mean of all tokens")
    visual, text = make_visual(2), make_text(2, 5)
    valid = torch.ones(2, 1, VISION.tokens, dtype=torch.bool)
    valid[:, :, 4:] = False
    other = visual.tokens_IMNC.clone()
    other[:, :, 4:] = 7.0
    one = read(fusion, language, replace(visual, token_valid_IMN=valid), text)
    two = read(fusion, language, replace(visual, tokens_IMNC=other, token_valid_IMN=valid), text)
    torch.testing.assert_close(one.hidden_BTD, two.hidden_BTD, **EXACT)


def test_a_hidden_region_is_not_seen_and_the_others_are(parts):
    fusion, language = parts
    visual, text = make_visual(1), make_text(1, 5)
    hidden = torch.zeros(1, VISION.tokens, dtype=torch.bool)
    hidden[0, 2] = True
    other = visual.tokens_IMNC.clone()
    other[0, 0, 2] += 1.0

    def states(tokens):
        memory = fusion.encode(language, replace(visual, tokens_IMNC=tokens))
        return fusion.read(language, fusion.hide(memory, hidden), replace(text, open_BT=text.valid_BT)).hidden_BTD

    torch.testing.assert_close(states(visual.tokens_IMNC), states(other), **EXACT)
    assert (states(visual.tokens_IMNC) - read(fusion, language, visual, text).hidden_BTD).abs().max() > 1e-6
    other[0, 0, 3] += 1.0
    assert (states(visual.tokens_IMNC) - states(other)).abs().max() > 1e-6


def test_every_parameter_learns_by_some_objective(parts):
    fusion, language = parts
    model = make_model(fusion, language)
    loss = model.total(batch := make_batch(model), model.losses(batch))
    loss.backward()
    unused = [name for name, p in fusion.named_parameters() if p.grad is None or not p.grad.any()]
    assert unused == []


# --------------------------------------------------------------------------------------------------------------------
# what is special about each
# --------------------------------------------------------------------------------------------------------------------
def test_regions_of_visualbert_are_a_set_and_those_with_places_are_not():
    language, order = make_bert(), [3, 0, 5, 1, 4, 2]
    for name, is_set in (("visualbert", True), ("uniter", False)):
        fusion, visual, text = make_reader(name, language), make_visual(1), make_text(2, 5)
        moved = replace(visual, tokens_IMNC=visual.tokens_IMNC[:, :, order])
        one, two = read(fusion, language, visual, text), read(fusion, language, moved, text)
        same = torch.allclose(one.hidden_BTD, two.hidden_BTD, **EXACT)
        assert same == is_set
        if is_set:
            torch.testing.assert_close(one.regions_BND[:, order], two.regions_BND, **EXACT)


def test_without_any_region_visualbert_is_bert():
    language = make_bert()
    fusion, visual, text = make_reader("visualbert", language), make_visual(2), make_text(2, 6)
    nothing = torch.zeros(2, 1, VISION.tokens, dtype=torch.bool)
    found = read(fusion, language, replace(visual, token_valid_IMN=nothing), text)
    torch.testing.assert_close(found.hidden_BTD, language.hidden(text), **EXACT)


def test_shared_cross_weights_mirror_when_streams_are_swapped():
    torch.manual_seed(0)
    shared = nudge(CoAttention(32, 32, 4, shared=True, feed=False, both=True, dropout=0.0).double()).eval()
    t, v = torch.randn(2, 5, 32, dtype=torch.float64), torch.randn(2, 7, 32, dtype=torch.float64)
    one, two = shared(t, v, None, None), shared(v, t, None, None)
    torch.testing.assert_close(one[0], two[1], **EXACT)
    torch.testing.assert_close(one[1], two[0], **EXACT)


def test_values_of_the_regions_come_from_the_words():
    """k regions and N words with k unlike N, where the notes' product is undefined."""
    torch.manual_seed(0)
    layer = nudge(CoAttention(32, 24, 4, shared=False, feed=False, both=True, dropout=0.0).double()).eval()
    t, v = torch.randn(1, 7, 32, dtype=torch.float64), torch.randn(1, 5, 24, dtype=torch.float64)
    before = layer(t, v, None, None)
    with torch.no_grad():
        layer.to_regions.read.v.weight.add_(0.1)
    after = layer(t, v, None, None)
    assert after[1].shape == (1, 5, 24) and (after[1] - before[1]).abs().max() > 1e-6
    torch.testing.assert_close(after[0], before[0], **EXACT)


@pytest.mark.parametrize("direction", ["to_text", "to_regions"])
def test_either_direction_is_torch_multihead_attention(direction):
    torch.manual_seed(0)
    layer = nudge(CoAttention(32, 24, 4, shared=False, feed=False, both=True, dropout=0.0).double()).eval()
    own = getattr(layer, direction)
    width, source = (32, 24) if direction == "to_text" else (24, 32)
    theirs = torch.nn.MultiheadAttention(width, 4, kdim=source, vdim=source, batch_first=True).double()
    with torch.no_grad():
        for mine, other in (("q", "q_proj_weight"), ("k", "k_proj_weight"), ("v", "v_proj_weight")):
            getattr(theirs, other).copy_(getattr(own.read, mine).weight)
        theirs.in_proj_bias.copy_(torch.cat([getattr(own.read, name).bias for name in "qkv"]))
        theirs.out_proj.load_state_dict(own.read.out.state_dict())
    x, s = torch.randn(2, 6, width, dtype=torch.float64), torch.randn(2, 4, source, dtype=torch.float64)
    expected = own.norm(x + theirs(x, s, s)[0])
    torch.testing.assert_close(own(x, s), expected, **EXACT)


def test_two_symmetric_layers_leak_later_words_and_reading_one_way_does_not():
    """With causal self-attention of words: why no next word may be learnt so. One layer alone hides it."""

    def change(both: bool, layers: int) -> float:
        torch.manual_seed(0)
        stack = [nudge(CoAttention(32, 32, 4, False, False, both, 0.0).double()).eval() for _ in range(layers)]
        t, v = torch.randn(1, 6, 32, dtype=torch.float64), torch.randn(1, 4, 32, dtype=torch.float64)
        other = t.clone()
        other[:, 5] += 1.0

        def first_words(words):
            regions = v
            for layer in stack:
                words, regions = layer(words, regions, None, None)
            return words[:, :5].detach()

        return float((first_words(t) - first_words(other)).abs().max())

    assert change(both=True, layers=1) < 1e-12 and change(both=True, layers=2) > 1e-6
    assert change(both=False, layers=1) < 1e-12 and change(both=False, layers=2) < 1e-12


def test_boxes_are_the_cells_of_the_squarest_grid():
    assert grid_boxes(6)[4].tolist() == pytest.approx([1 / 3, 1 / 2, 2 / 3, 1])  # two rows of three
    box = grid_boxes(49)
    assert box.shape == (49, 4) and box[0].tolist() == pytest.approx([0, 0, 1 / 7, 1 / 7])
    assert box[8].tolist() == pytest.approx([1 / 7, 1 / 7, 2 / 7, 2 / 7])
    areas = (box[:, 2] - box[:, 0]) * (box[:, 3] - box[:, 1])
    assert areas.sum() == pytest.approx(1)


# --------------------------------------------------------------------------------------------------------------------
# parity with the transformers library
# --------------------------------------------------------------------------------------------------------------------
SIZES = {"vocab_size": 131, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 128}
QUIET = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "max_position_embeddings": 64}


def test_bert_is_the_library_s():
    language, text = make_bert(), make_text(2, 7)
    text.valid_BT[1, 5:] = False
    body = language.model.bert
    assert isinstance(body, BertModel)
    theirs = language.model(input_ids=text.ids_BT, attention_mask=text.valid_BT.long()).logits
    ours = language.unembed(language.hidden(text))
    torch.testing.assert_close(ours[text.valid_BT], theirs[text.valid_BT], **EXACT)


def test_visualbert_is_the_library_s():
    """States, and what both heads of its pre-training say of them."""
    language = make_bert()
    fusion, visual, text = make_reader("visualbert", language), make_visual(2), make_text(2, 7)
    config = VisualBertConfig(**SIZES, **QUIET, num_hidden_layers=3, visual_embedding_dim=VISION.width)
    whole = VisualBertForPreTraining(config).double().eval()
    theirs, head = whole.visual_bert, nudge(MatchHead(32, VISION.width).double())
    own, bert = theirs.embeddings, language.model.bert
    theirs.encoder.load_state_dict(bert.encoder.state_dict())
    with torch.no_grad():
        for name in ("word_embeddings", "position_embeddings", "token_type_embeddings", "LayerNorm"):
            getattr(own, name).load_state_dict(getattr(bert.embeddings, name).state_dict())
        fusion.regions.norm.load_state_dict(bert.embeddings.LayerNorm.state_dict())  # theirs has one for both
        fusion.regions.norm.eps = config.layer_norm_eps
        own.visual_projection.load_state_dict(fusion.regions.fc.state_dict())
        own.visual_token_type_embeddings.weight[1] = fusion.regions.kind_D
        own.visual_position_embeddings.weight[0] = fusion.regions.position_D
        theirs.pooler.dense.load_state_dict(fusion.pool.state_dict())
        whole.cls.predictions.load_state_dict(language.model.cls.predictions.state_dict())
        whole.cls.seq_relationship.weight.copy_(torch.cat([head.fc.weight, -head.fc.weight]) / 2)  # 0: they belong
        whole.cls.seq_relationship.bias.copy_(torch.cat([head.fc.bias, -head.fc.bias]) / 2)
    given = {
        "input_ids": text.ids_BT, "attention_mask": torch.ones(2, 7), "visual_embeds": visual.tokens_INC,
        "visual_attention_mask": torch.ones(2, VISION.tokens),
    }  # fmt: skip
    found, said = theirs(**given), whole(**given)
    ours = read(fusion, language, visual, text)
    torch.testing.assert_close(ours.hidden_BTD, found.last_hidden_state[:, :7], **EXACT)
    torch.testing.assert_close(ours.regions_BND, found.last_hidden_state[:, 7:], **EXACT)
    torch.testing.assert_close(ours.pooled_BD, found.pooler_output, **EXACT)
    torch.testing.assert_close(language.unembed(ours.hidden_BTD), said.prediction_logits[:, :7], **EXACT)
    matching_B = said.seq_relationship_logits.log_softmax(-1)[:, 0]
    torch.testing.assert_close(torch.nn.functional.logsigmoid(head(ours.pooled_BD)), matching_B, **EXACT)


def test_lxmert_is_the_library_s():
    language = make_bert(layers=3)
    fusion = make_reader("lxmert", language, "fusion.vision_layers=1", "fusion.cross_layers=2")
    config = LxmertConfig(
        **SIZES, **QUIET, l_layers=1, x_layers=2, r_layers=1, visual_feat_dim=VISION.width, visual_pos_dim=4
    )
    theirs = LxmertModel(config).double().eval()
    with torch.no_grad():
        copy_lxmert(fusion, language, theirs)
    visual, text = make_visual(2), make_text(2, 7)
    text.valid_BT[1, 5:] = False
    found = theirs(
        input_ids=text.ids_BT, attention_mask=text.valid_BT.double(), visual_feats=visual.tokens_INC,
        visual_pos=fusion.regions.box_NE.double().expand(2, -1, -1),
    )  # fmt: skip
    ours = read(fusion, language, visual, text)
    torch.testing.assert_close(ours.hidden_BTD[text.valid_BT], found.language_output[text.valid_BT], **EXACT)
    torch.testing.assert_close(ours.regions_BND, found.vision_output, **EXACT)
    torch.testing.assert_close(ours.pooled_BD, found.pooled_output, **EXACT)


def copy_lxmert(fusion, language, theirs) -> None:
    """Weights of ours into the library's, module by module."""
    bert, encoder = language.model.bert, theirs.encoder
    for name in ("word_embeddings", "position_embeddings", "token_type_embeddings", "LayerNorm"):
        getattr(theirs.embeddings, name).load_state_dict(getattr(bert.embeddings, name).state_dict())
    norms = [fusion.regions.norm, fusion.regions.box_norm]
    for ours, own in zip(
        (fusion.regions.fc, fusion.regions.norm, fusion.regions.box_fc, fusion.regions.box_norm),
        (
            encoder.visn_fc.visn_fc,
            encoder.visn_fc.visn_layer_norm,
            encoder.visn_fc.box_fc,
            encoder.visn_fc.box_layer_norm,
        ),
        strict=True,
    ):
        own.load_state_dict(ours.state_dict())
    assert all(norm.eps == 1e-12 for norm in norms)

    def attention(ours, own, output):
        for name, mine in (("query", ours.q), ("key", ours.k), ("value", ours.v)):
            getattr(own, name).load_state_dict(mine.state_dict())
        output.dense.load_state_dict(ours.out.state_dict())

    def bert_attention(layer, own):
        for name in ("query", "key", "value"):
            getattr(own.self, name).load_state_dict(getattr(layer.attention.self, name).state_dict())
        own.output.load_state_dict(layer.attention.output.state_dict())

    def ours_layer(layer, own_attention, inter, output):
        attention(layer.attend.read, own_attention.self, own_attention.output)
        own_attention.output.LayerNorm.load_state_dict(layer.attend.norm.state_dict())
        inter.dense.load_state_dict(layer.feed.fc1.state_dict())
        output.dense.load_state_dict(layer.feed.fc2.state_dict())
        output.LayerNorm.load_state_dict(layer.feed.norm.state_dict())

    bert_attention(bert.encoder.layer[0], encoder.layer[0].attention)
    encoder.layer[0].intermediate.load_state_dict(bert.encoder.layer[0].intermediate.state_dict())
    encoder.layer[0].output.load_state_dict(bert.encoder.layer[0].output.state_dict())
    ours_layer(
        fusion.alone[0], encoder.r_layers[0].attention, encoder.r_layers[0].intermediate, encoder.r_layers[0].output
    )
    for x, (cross, behind) in enumerate(zip(fusion.cross, fusion.behind, strict=True)):
        own, layer = encoder.x_layers[x], bert.encoder.layer[1 + x]
        attention(cross.to_text.read, own.visual_attention.att, own.visual_attention.output)
        own.visual_attention.output.LayerNorm.load_state_dict(cross.to_text.norm.state_dict())
        bert_attention(layer, own.lang_self_att)
        own.lang_inter.load_state_dict(layer.intermediate.state_dict())
        own.lang_output.load_state_dict(layer.output.state_dict())
        ours_layer(behind, own.visn_self_att, own.visn_inter, own.visn_output)
    theirs.pooler.dense.load_state_dict(fusion.pool_t.state_dict())


def test_what_looks_at_what_is_the_library_s_attention_in_both_directions():
    language = make_bert()
    fusion, visual, text = make_reader("visualbert", language), make_visual(2), make_text(2, 7)
    aux: dict = {}
    fusion.read(language, fusion.encode(language, visual), replace(text, open_BT=text.valid_BT), aux)
    joint = torch.cat([language.model.bert.embeddings(text.ids_BT), fusion.regions(visual.tokens_INC)], 1)
    encoder = copy.deepcopy(language.model.bert.encoder)
    encoder.config._attn_implementation = "eager"
    for layer in encoder.layer:
        layer.attention.self.config = encoder.config
    h_BSD = joint
    for l, layer in enumerate(encoder.layer):
        _, weights_BHSS = layer.attention(h_BSD)
        h_BSD = layer(h_BSD)
        torch.testing.assert_close(aux["attention"][l], weights_BHSS[:, :, :7, 7:], **EXACT)
        torch.testing.assert_close(aux["attention_back"][l], weights_BHSS[:, :, 7:, :7], **EXACT)


@pytest.mark.parametrize("name", READERS)
def test_each_word_has_a_map_of_what_it_sees_and_of_what_sees_it(name):
    language = make_bert()
    model = make_model(make_reader(name, language), language, "match")
    four = replace(make_visual(1), tokens_IMNC=make_visual(1).tokens_IMNC[:, :, :4])
    model.visual = lambda batch, aux=None: four
    model.fusion = make_reader(name, language, tokens=4)
    found = reading.read(model, torch.zeros(3, 8, 8, dtype=torch.uint8), "a red dog")
    assert found.words == ["a", "red", "dog", "(end)"] and found.occlusion is None
    for maps in (found.attention, found.back):
        assert maps.shape == (3, 2, 2) and (maps > 0).all()
    with pytest.raises(UserError, match="does not write"):
        reading.read(model, torch.zeros(3, 8, 8, dtype=torch.uint8))


# --------------------------------------------------------------------------------------------------------------------
# what they learn by
# --------------------------------------------------------------------------------------------------------------------
def make_model(fusion, language, *names: str) -> Captioner:
    around = Surroundings(VISION, language.spec, lambda most: ANSWERS[:most], fusion.regions.fc.out_features)
    same = fusion.regions.fc.out_features == language.spec.width
    every = ("masked", "match", "regions", *(["align"] if same else []))
    chosen = {name: {"_target_": f"src.objectives.{name}.{name.title()}"} for name in names or every}
    if "masked" in chosen and not names:
        chosen["masked"]["policy"] = "joint"
    objectives = build_objectives(OmegaConf.create({"objectives": chosen}), fusion, "caption", around)
    regime = {"train_language": True, "train_vision": False, "lr_fusion": 1e-3, "lr_language": 1e-3, "lr_vision": 0.0}
    optim = {"betas": (0.9, 0.95), "weight_decay": 0.0, "warmup": 0.0, "reduction": "token_mean"}
    model = Captioner(None, fusion, language, Characters(), regime, optim, Greedy(4), objectives)
    model.heads.double()
    model.visual = lambda batch, aux=None: batch.visual  # in double precision
    return model


def make_batch(model, captions=("a red dog", "the blue cat", "two birds", "one bird"), pictures: int = 2) -> Batch:
    lines = [Line(caption) for caption in captions]
    text = text_rows(lines, model.tokenizer, 40, 1, False)
    batch = Batch([str(i) for i in range(pictures)], text, visual=make_visual(pictures))
    batch.captions = [tuple(captions[2 * i : 2 * i + 2]) for i in range(pictures)]
    return with_views(batch, model.objectives, lambda row: random.Random(row), APART)


def test_hidden_words_are_asked_for_where_they_stood_and_seen_as_bert_has_it():
    language = make_bert()
    model = make_model(make_reader("visualbert", language), language, "masked")
    (objective,) = model.objectives.values()
    text = text_rows([Line("abcdefghij" * 3)] * 200, model.tokenizer, 40, 1, False)
    batch = Batch([str(i) for i in range(200)], text)
    view = objective.view(batch, lambda row: random.Random(row))
    hidden = torch.zeros_like(text.valid_BT)
    hidden.view(-1)[view.target.at_X] = True
    assert torch.equal(view.target.id_X, text.ids_BT[hidden])
    assert not hidden[:, 0].any() and not (hidden & ~text.valid_BT).any() and hidden.any(1).all()
    share = hidden.sum() / (text.valid_BT.sum() - len(text.ids_BT))
    assert share == pytest.approx(0.15, abs=0.01)
    seen = view.text.ids_BT[hidden]
    masked, kept = (seen == Characters.mask).float().mean(), (seen == view.target.id_X).float().mean()
    assert masked == pytest.approx(0.8, abs=0.03) and kept == pytest.approx(0.1, abs=0.03)
    assert torch.equal(view.text.ids_BT[~hidden], text.ids_BT[~hidden])
    assert view.text.open_BT.all() and view.hidden_IN is None


def test_a_text_of_which_chance_hides_nothing_hides_one_word():
    language = make_bert()
    model = make_model(make_reader("uniter", language), language, "masked")
    text = text_rows([Line("ab")] * 50, model.tokenizer, 40, 1, False)
    view = model.objectives["masked"].view(Batch([str(i) for i in range(50)], text), lambda row: random.Random(row))
    assert len(view.target.at_X) >= 50


def test_half_of_the_texts_are_of_other_pictures_and_told_so():
    language = make_bert()
    model = make_model(make_reader("visualbert", language), language, "match")
    captions = [f"{chr(97 + i)}{k}" for i in range(20) for k in range(2)]
    lines = [Line(caption) for caption in captions]
    batch = Batch([str(i) for i in range(20)], text_rows(lines, model.tokenizer, 9, 1, False))
    view = model.objectives["match"].view(batch, lambda row: random.Random(f"{row}"))
    said = [model.tokenizer.decode(ids) for ids in view.text.ids_BT.tolist()]
    for b, (words, label) in enumerate(zip(said, view.label_B.tolist(), strict=True)):
        assert (words[0] == captions[b][0]) == bool(label)
        assert bool(label) == (words[:2] == captions[b]) or not label
    assert view.label_B.mean() == pytest.approx(0.5, abs=0.2)


def test_the_first_of_two_captions_is_always_right():
    tokenizer = Characters()
    captions = [f"{chr(97 + i)}{k}" for i in range(10) for k in range(2)]
    text = text_rows([Line(caption) for caption in captions], tokenizer, 9, 1, False)
    view = Match(captions=2).view(Batch([str(i) for i in range(10)], text), lambda row: random.Random(f"{row}"))
    for b, (ids, label) in enumerate(zip(view.text.ids_BT.tolist(), view.label_B.tolist(), strict=True)):
        first, second = "".join(chr(i - 3) if i > 3 else "|" for i in ids).split("|")[1:3]
        assert first == captions[b ^ 1] and (second == captions[b]) == bool(label)


def test_foils_are_used_where_there_are_any():
    tokenizer = Characters()
    right = text_rows([Line("aa")] * 8, tokenizer, 9, 1, False)
    wrong = text_rows([Line("zz")] * 8, tokenizer, 9, 1, False)
    wrong.valid_BT[4:] = False
    batch = Batch([str(i) for i in range(8)], right, foils=wrong)
    view = Match(hard=1.0).view(batch, lambda row: random.Random(f"{row}"))
    said = [tokenizer.decode(ids) for ids in view.text.ids_BT.tolist()]
    labels = view.label_B.bool().tolist()
    assert all((words == "zz") == (not label) for words, label in zip(said[:4], labels[:4], strict=True))
    assert all(words == "aa" for words in said[4:])


def test_at_the_start_a_match_is_even_and_answers_are_alike():
    language = make_bert()
    for name in READERS:
        fusion = make_reader(name, language, nudged=False)
        model = make_model(fusion, language, "match")
        batch = make_batch(model)
        assert float(model.losses(batch)["match"].mean.detach()) == pytest.approx(math.log(2), abs=0.35)


def test_hidden_regions_are_told_by_the_tied_projection():
    language = make_bert()
    fusion = make_reader("vilbert", language, "fusion.vision_width=24")
    model = make_model(fusion, language, "regions")
    batch = make_batch(model)
    view, head = batch.views["regions"], model.heads["regions"]
    assert view.hidden_IN.shape == (2, VISION.tokens) and view.hidden_IN.any(1).all()
    assert torch.equal(view.text.ids_BT, batch.text.ids_BT)
    memory = fusion.encode(language, batch.visual)
    v_BNE = fusion.read(language, fusion.hide(memory, view.hidden_IN), view.text).regions_BND
    lost = []
    for b in range(4):
        for n in view.hidden_IN[b // 2].nonzero().flatten():
            h = head.norm(torch.nn.functional.gelu(head.fc(v_BNE[b, n])))
            found = fusion.regions.fc.weight.T @ h + head.bias_C
            lost.append((found - batch.visual.tokens_INC[b // 2, n]).square().mean())
    expected = float(torch.stack(lost).mean().detach())
    assert float(model.losses(batch)["regions"].mean.detach()) == pytest.approx(expected, rel=1e-5)


def test_a_plan_moves_everything_once_and_nothing_of_what_is_not_there():
    torch.manual_seed(0)
    cost = torch.rand(3, 5, 7, dtype=torch.float64)
    words, regions = torch.ones(3, 5, dtype=torch.bool), torch.ones(3, 7, dtype=torch.bool)
    words[1, 3:], regions[2, 4:] = False, False
    plan = transport(cost, words, regions, 300)
    torch.testing.assert_close(plan.sum(2), words / words.sum(1, keepdim=True), rtol=0, atol=1e-6, check_dtype=False)
    torch.testing.assert_close(
        plan.sum(1), regions / regions.sum(1, keepdim=True), rtol=0, atol=1e-6, check_dtype=False
    )
    assert not plan[~words].any() and not plan.transpose(1, 2)[~regions].any()
    pairs = torch.full((1, 4, 4), 2.0, dtype=torch.float64).index_put((torch.tensor(0),), 2 - 2 * torch.eye(4).double())
    all_there = torch.ones(1, 4, dtype=torch.bool)
    torch.testing.assert_close(
        transport(pairs, all_there, all_there, 300)[0], torch.eye(4).double() / 4, rtol=0, atol=1e-4
    )


def test_alignment_needs_words_and_regions_of_one_width():
    language = make_bert()
    fusion = make_reader("vilbert", language, "fusion.vision_width=24")
    with pytest.raises(UserError, match="compares words of width 32 with regions of 24"):
        make_model(fusion, language, "align")


def test_alignment_lowers_the_distance_of_what_matches_and_raises_that_of_others():
    language = make_bert()
    model = make_model(make_reader("uniter", language), language, "align")
    batch = make_batch(model)
    view = batch.views["align"]
    signs = []
    for label in (0.0, 1.0):
        one = replace(batch, views={"align": replace(view, label_B=torch.full((4,), label))})
        signs.append(float(model.losses(one)["align"].mean.detach()))
    assert signs[0] == pytest.approx(-signs[1]) and signs[1] > 0


def test_questions_are_read_without_their_answers():
    language = make_bert()
    model = make_model(make_reader("vilbert", language), language, "answer")
    lines = [Line("yes", "is it?"), Line("blue", "what colour is it?")]
    batch = Batch(
        ["0", "1"], text_rows(lines, model.tokenizer, 40, 1, False), captions=[("yes", "yes", "no"), ("blue",)]
    )
    view = model.objectives["answer"].view(batch, lambda row: random.Random(row))
    for row, line in enumerate(lines):
        here = view.text.valid_BT[row]
        assert model.tokenizer.decode(view.text.ids_BT[row][here].tolist()) == line.given
    assert view.label_B.tolist() == [pytest.approx([2 / 3, 1 / 3, 0]), [0, 0, 0]]
    batch = replace(batch, visual=make_visual(2), views={"answer": view})
    loss = model.losses(batch)["answer"]
    assert int(loss.count) == 1, "an answer that is no class teaches nothing"
    logits = model.heads["answer"](model.fusion.read(language, model.memory(batch), view.text).pooled_BD)
    own = -(torch.tensor([2 / 3, 1 / 3, 0]) * logits[0].float().log_softmax(-1)).sum()
    assert float(loss.mean.detach()) == pytest.approx(float(own.detach()), abs=1e-5)


def test_a_head_knows_its_answers_from_its_tensors():
    head = AnswerHead(8, ["ja", "nein", "vielleicht"])
    assert known_answers({f"answer.{name}": x for name, x in head.state_dict().items()}) == ["ja", "nein", "vielleicht"]
    assert known_answers({"match.weight": torch.zeros(1)}) == []


def test_a_writer_refuses_bert_and_a_reader_gpt():
    language, bert = make_language(), make_bert()
    with pytest.raises(UserError, match="reads both ways, and this language model"):
        _check_direction(make_reader("visualbert", bert), language)
    writer = instantiate(fusion_config("cross_attention"))(VISION, language.spec)
    with pytest.raises(UserError, match="writes word after word"):
        _check_direction(writer, bert)


# --------------------------------------------------------------------------------------------------------------------
# captions by filling
# --------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", READERS)
def test_captions_are_filled_from_left_to_right(name):
    """Greedily, against a loop that reads everything anew; a beam of one is the same."""
    language = make_bert()
    model = make_model(make_reader(name, language), language, "masked")
    batch = Batch(["0", "1", "2"], visual=make_visual(3))
    found = model.generate(batch, Greedy(5))
    memory = model.fusion.encode(language, batch.visual)
    for i in range(3):
        ids: list[int] = []
        while len(ids) < 5:
            row = torch.tensor([[Characters.bos, *ids, Characters.mask]])
            text = Text(row, torch.ones_like(row, dtype=torch.bool), torch.ones_like(row))
            logits = language.unembed(
                model.fusion.read(language, memory.select(torch.tensor([i])), text).hidden_BTD[0, -1]
            )
            if not ids:
                logits[Characters.eos] = -torch.inf
            if int(logits.argmax()) == Characters.eos:
                break
            ids.append(int(logits.argmax()))
        assert found[i] == ids
    several = model.generate(batch, BeamSearch(5, 3, 0.0))
    assert len(several) == 3 and all(several)
    assert model.speaks and not make_model(model.fusion, language, "match").speaks


# --------------------------------------------------------------------------------------------------------------------
# tasks
# --------------------------------------------------------------------------------------------------------------------
class Few:
    """Pictures of noise with a caption each."""

    name, has_images, interleaved, task = "few", True, False, "caption"

    def splits(self):
        return ("test",)

    def examples(self, split):
        return [Example(f"p{i}", (f"{chr(97 + i)}b{i}",)) for i in range(7)]

    def pixels(self, example, size):
        own = torch.Generator().manual_seed(int(example.id[1:]))
        return torch.randint(0, 256, (3, size, size), dtype=torch.uint8, generator=own)


def few_parts(name: str) -> Parts:
    language = make_bert()
    model = make_model(make_reader(name, language), language, "match")
    data = CaptionData(Few(), model.tokenizer, 8, 3, 1, max_tokens=12)
    places = {f"p{i}": i for i in range(7)}
    tokens = make_visual(7)
    model.visual = lambda batch, aux=None: select(tokens, [places[id] for id in batch.ids])
    return Parts(model, data)


def select(visual, places):
    own = {name: getattr(visual, name)[places] for name in ("tokens_IMNC", "pooled_IMC", "levels_IMKNC")}
    return replace(visual, **own)


@pytest.mark.parametrize("name", READERS)
def test_pairs_are_ordered_by_what_reading_them_says(name, monkeypatch):
    parts = few_parts(name)
    model, examples = parts.captioner, parts.data.examples("test")
    logits = torch.zeros(7, 7, dtype=torch.float64)
    for batch in parts.data.pictures("test"):
        memory = model.memory(batch)
        for i, id in enumerate(batch.ids):
            for b, example in enumerate(examples):
                text = open_rows([[0, *model.tokenizer.encode([example.captions[0]])[0], 1]])
                read = model.fusion.read(model.language, memory.select(torch.tensor([i])), text)
                logits[int(id[1:]), b] = model.heads["match"](read.pooled_BD)[0]
    similarity, picture = retrieval._read_similarity(parts, "test")
    torch.testing.assert_close(similarity.double(), logits.detach(), rtol=0, atol=1e-5)
    assert picture.tolist() == list(range(7))
    monkeypatch.setattr(retrieval, "READ", 2)
    some, _ = retrieval._read_similarity(parts, "test")
    read = (some.double() - logits).abs() < 1e-5
    assert read.sum(1).min() >= 2 and read.sum(0).min() >= 2 and read.sum() < 49
    assert some[~read].max() < some[read].min(), "what is not read stands behind what is"
    found = retrieval.Retrieval().evaluate(parts, "test")
    assert {"i2t/R@1", "t2i/R@10"} <= found.scores.keys()


def test_what_is_called_right_and_wrong_is_counted(monkeypatch):
    parts = few_parts("visualbert")
    right = {f"p{i}": f"{chr(97 + i)}b{i}" for i in range(7)}

    class Head(torch.nn.Module):
        def forward(self, pooled_BD):
            return torch.where(torch.tensor(self.answers), 1.0, -1.0)

    head = Head()
    parts.captioner.heads["match"] = head

    def reading(batch):
        said = [parts.captioner.tokenizer.decode(ids) for ids in batch.text.ids_BT.tolist()]
        # everything of p0 is called wrong, and everything of p1 right
        head.answers = [
            id == "p1" or (id != "p0" and text == right[id]) for id, text in zip(batch.ids, said, strict=True)
        ]
        return Read(torch.zeros(len(said), 1, 32), torch.zeros(len(said), 32))

    monkeypatch.setattr(parts.captioner, "reading", reading)
    result = Matching().evaluate(parts, "test")
    assert result.scores["match/right"] == result.scores["match/other"] == pytest.approx(6 / 7)
    assert result.scores["match/accuracy"] == pytest.approx(6 / 7)
    assert result.headline[0] == "match/accuracy"


@pytest.fixture(scope="module")
def trained_reader(tmp_path_factory):
    folder = tmp_path_factory.mktemp("readers")

    @functools.cache
    def train(data: str):
        run("src.train", "debug=smoke", f"data={data}", "fusion=lxmert", f"hydra.run.dir={folder}/{data}")
        return folder / data

    return train


@pytest.mark.parametrize("data", ["scenes", "scenes_questions"])
def test_readers_are_trained_scored_and_handed_on_end_to_end(data, tmp_path, trained_reader):
    """The commands of a user, on a few steps."""
    trained = trained_reader(data)
    scores = json.loads((trained / "metrics.json").read_text())["scores"]
    assert ("match/foil" if data == "scenes" else "accuracy/exists") in scores
    run("src.export", f"run={trained}", f"to={tmp_path}/exported")
    for folder in (trained, tmp_path / "exported"):
        run("src.evaluate", f"run={folder}", f"output={tmp_path}/again")
        assert json.loads((tmp_path / "again" / "metrics.json").read_text())["scores"] == scores
    picture = tmp_path / "a.png"
    Image.new("RGB", (40, 40)).save(picture)
    speaks = data == "scenes"  # where it has learnt hidden words
    said = run("src.caption", f"run={trained}", f"images={picture}", f"output={tmp_path}/said", ok=speaks)
    assert speaks or "does not write" in said.stderr


def test_where_no_split_is_scored_the_loss_of_validation_is_the_result(tmp_path):
    """Which tuning reads: of the last step of a run that got better with every validation."""
    words = ("debug=smoke", "fusion=visualbert", "test_split=null", "trainer.limit_val_batches=1.0")
    asked = ("objective=match", "val_captions=2", f"hydra.run.dir={tmp_path}/none")
    assert "val_captions asks for captions" in run("src.train", *words, *asked, ok=False).stderr
    said = run("src.train", *words, f"hydra.run.dir={tmp_path}/run").stdout
    found = json.loads((tmp_path / "run" / "metrics.json").read_text())
    with (tmp_path / "run" / "log" / "metrics.csv").open() as file:
        curve = [float(row["val/loss"]) for row in csv.DictReader(file) if row["val/loss"]]
    assert found["split"] == "val" and found["scores"]["loss"] == pytest.approx(min(curve), abs=1e-4)
    assert f"val loss {found['scores']['loss']:.4f} nats" in said


def test_an_encoder_that_was_frozen_there_comes_from_where_it_did():
    """And trains here; what is not in the run is left as it was made."""
    vision, fusion, there = torch.nn.Linear(2, 2), torch.nn.Linear(3, 3), torch.nn.Linear(3, 3)
    parts, before = {"vision": vision, "fusion": fusion}, vision.weight.clone()
    captioner = SimpleNamespace(vision=vision, trains=lambda part: True, parts=lambda trained: parts, heads={})
    begin_at(captioner, SimpleNamespace(part=lambda name: there.state_dict() if name == "fusion" else {}))
    assert torch.equal(fusion.weight, there.weight) and torch.equal(vision.weight, before)


def test_answers_begin_at_what_captions_have_taught(tmp_path, trained_reader):
    first, unmoved = trained_reader("scenes"), [f"regime.lr_{part}=1e-12" for part in ("fusion", "language", "vision")]
    words = ("debug=smoke", "data=scenes_questions", "fusion=lxmert", f"weights={first}", *unmoved)
    run("src.train", *words, f"hydra.run.dir={tmp_path}/run")
    before, after = Saved.at(first), Saved.at(tmp_path / "run")
    for part in ("fusion", "language", "vision"):
        assert before.part(part).keys() == after.part(part).keys()
        for name, tensor in before.part(part).items():
            if ".running_" not in name and not name.endswith("num_batches_tracked"):
                torch.testing.assert_close(after.part(part)[name], tensor, rtol=0, atol=1e-6)
    assert known_answers(after.part("heads")) and not known_answers(before.part("heads"))
    frozen = run("src.train", *words, "regime.train_vision=false", f"hydra.run.dir={tmp_path}/no", ok=False)
    assert f"trained its encoder, which is frozen here; say vision.weights={first} too" in frozen.stderr
    refused = {
        "fusion=visualbert": "was trained with fusion._target_=src.fusion.two_stream.TwoStream, and here it is",
        "fusion.vision_layers=1": "was trained with fusion.vision_layers=2, and here it is 1",
        "vision.patch=16": "was trained with vision.patch=8, and here it is 16",
        "language.weights=elsewhere": "leave language.weights= out",
    }
    for word, said in refused.items():
        with pytest.raises(UserError, match=said):
            use_earlier(compose("train", [*words, word], []))


# --------------------------------------------------------------------------------------------------------------------
# foils
# --------------------------------------------------------------------------------------------------------------------
def test_a_foil_differs_in_one_word_and_is_false():
    missing = 0
    for example in Scenes(train=200).examples("train")[:200]:
        scene = Scene.from_dict(example.extra["scene"])
        for k, caption in enumerate(example.captions):
            assert check(caption, scene).entirely_true
            other = foil(caption, scene, random.Random(f"{example.id}/{k}"))
            if other is None:
                missing += 1
                continue
            words, changed = caption.split(), other.split()
            assert len(words) == len(changed) and sum(a != b for a, b in zip(words, changed, strict=True)) == 1
            assert not check(other, scene).entirely_true
    assert missing < 20
