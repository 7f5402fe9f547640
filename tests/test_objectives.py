"""What is learnt: views made of batches, losses made of views, and who may learn by what."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

import pytest
import torch
from conftest import OBJECTIVES, VISION, make_bert, make_language, make_text, viewed
from test_captioner import make_batch, make_captioner

from src.build import build_objectives
from src.contracts import Batch, Memory, UserError, View
from src.fusion.base import Fusion, Read, Reader, Retriever
from src.loading.batches import chance
from src.loading.rows import APART, with_views
from src.objectives.base import Loss, Objective, Surroundings
from src.objectives.contrastive import Contrastive
from src.objectives.default import default_objectives
from src.objectives.next_token import NextToken
from src.objectives.prefix_lm import PrefixLM


class Mean(Reader):
    """Reads the mean of its words; enough of a reader to see what is asked of one."""

    def encode(self, lm, visual, aux=None):
        return Memory()

    def hide(self, memory, hidden_IN):
        return memory

    def read(self, lm, memory, text, aux=None):
        h_BTD = lm.embed(text.ids_BT)
        return Read(h_BTD, h_BTD.mean(1))


@dataclass(frozen=True)
class Matches(Objective):
    """Rows told apart by a head of the objective's own."""

    def head(self, language):
        return torch.nn.Linear(language.width, 2)

    def view(self, batch, chance):
        return View(batch.text, label_B=torch.tensor([b % 2 for b in range(len(batch.text.ids_BT))]))

    def loss(self, of, walked, view):
        hidden_BTD, _ = walked
        logits_BC = of.heads["matches"](hidden_BTD.mean(1).float())
        mean = torch.nn.functional.cross_entropy(logits_BC, view.label_B)
        return Loss(mean, torch.tensor(len(view.label_B)))


AROUND = Surroundings(VISION, make_language().spec, lambda most: ["yes", "no"][:most])


def draws(seed: int):
    return lambda row: random.Random(f"{seed}/{row}")


def test_a_prefix_is_open_and_never_learnt():
    text = make_text(40, 8)
    text.valid_BT = torch.arange(8) < torch.randint(2, 9, (40, 1))
    view = PrefixLM().view(Batch([str(i) for i in range(40)], text), draws(1))
    open_B, n_B = view.text.open_BT.sum(1), text.valid_BT.sum(1)
    assert ((open_B != 1) & (open_B < n_B)).all(), "a start alone opens nothing, the last token is never open"
    assert len(set(open_B.tolist())) > 3
    before_BT = view.text.open_BT | text.starts()
    assert torch.equal(view.text.targets(), text.valid_BT & ~before_BT)
    assert len(view.target.at_X) == (n_B - open_B.clamp_min(1)).sum()


def test_what_is_drawn_depends_on_seed_epoch_and_picture_alone():
    text = make_text(4, 30)
    views = {
        key: PrefixLM().view(batch, chance(key[0], key[1], batch)).text.open_BT.sum(1).tolist()
        for key in ((0, 1), (0, 2), (3, 1), (0, None))
        for batch in [Batch(["a", "b"], text)]
    }
    assert len(set(map(tuple, views.values()))) == 4
    swapped = Batch(["b", "a"], text)
    again = PrefixLM().view(swapped, chance(0, 1, swapped)).text.open_BT.sum(1).tolist()
    assert again == views[0, 1][2:] + views[0, 1][:2]


@pytest.mark.parametrize("name", ["cross_attention", "prefix", "simvlm"])
def test_a_beginning_of_one_token_is_plain_next_token_prediction(name):
    model, batch = make_captioner(name).eval(), make_batch()

    class Always(random.Random):
        def random(self):
            return 0.0

    batch = with_views(batch, {**OBJECTIVES, "prefix_lm": PrefixLM()}, lambda row: Always(), APART)
    model.objectives = {**OBJECTIVES, "prefix_lm": PrefixLM()}
    losses = model.losses(batch)
    torch.testing.assert_close(losses["prefix_lm"].mean, losses["next_token"].mean, rtol=0, atol=1e-12)


def test_the_total_is_weighted_and_pictures_are_encoded_once():
    model = make_captioner("coca").eval()
    model.objectives = {"next_token": NextToken(weight=0.5), "prefix_lm": PrefixLM(weight=2.0)}
    batch = with_views(make_batch(), model.objectives, draws(2), APART)
    calls, encode = [], model.fusion.encode
    model.fusion.encode = lambda *given: calls.append(1) or encode(*given)
    losses = model.losses(batch)
    assert len(calls) == 1
    words = 0.5 * losses["next_token"].mean + 2.0 * losses["prefix_lm"].mean
    own = sum(weight * value for loss in losses.values() for value, weight in loss.terms.values())
    want = model.fusion.caption_weight * words + own
    torch.testing.assert_close(model.total(batch, losses), want)
    torch.testing.assert_close(model.total(replace(batch, weight=3.0), losses), 3 * want)


def test_heads_and_projectors_are_trained_and_saved():
    from src.captioner import Captioner

    plain = make_captioner("cross_attention")
    projector = torch.nn.Linear(VISION.width, VISION.width).double()
    model = Captioner(
        plain.vision,
        plain.fusion,
        plain.language,
        plain.tokenizer,
        plain.regime,
        plain.optim,
        plain.decoder,
        {"matches": Matches()},
        projector,
    )
    grouped = {id(p) for group in model.parameter_groups() for p in group["params"]}
    for part in ("heads.matches.", "projector."):
        mine = [p for name, p in model.named_parameters() if name.startswith(part)]
        assert mine and {id(p) for p in mine} <= grouped
        assert any(name.startswith(part) for name in model.state_dict())


def test_a_batch_without_views_is_an_error_and_not_a_loss_of_nothing():
    model = make_captioner("blind")
    batch = replace(make_batch(), views={})
    with pytest.raises(ValueError, match="has no views"):
        model.losses(batch)
    assert model.losses(viewed(batch)).keys() == {"next_token"}


def test_the_ability_decides_what_is_learnt():
    from omegaconf import OmegaConf

    writer, reader = make_captioner("srau").fusion, Mean(VISION, make_language().spec)
    assert build_objectives(OmegaConf.create({}), writer, "caption", AROUND) == {"next_token": NextToken()}
    chosen = OmegaConf.create({"objectives": {"prefix_lm": {"_target_": "src.objectives.prefix_lm.PrefixLM"}}})
    assert build_objectives(chosen, writer, "caption", AROUND) == {"prefix_lm": PrefixLM()}
    with pytest.raises(UserError, match="objective=prefix_lm needs a mechanism that is a Writer, and fusion=Mean"):
        build_objectives(chosen, reader, "caption", AROUND)
    around = replace(AROUND, language=make_bert().spec)
    assert build_objectives(OmegaConf.create({}), reader, "caption", around).keys() == {"masked", "match"}
    assert build_objectives(OmegaConf.create({}), reader, "vqa", around).keys() == {"answer"}
    maskless = replace(around, language=replace(around.language, mask=None))
    with pytest.raises(UserError, match="no token for that"):
        build_objectives(OmegaConf.create({}), reader, "caption", maskless)
    with pytest.raises(UserError, match="no answers to choose from"):
        build_objectives(OmegaConf.create({}), reader, "vqa", replace(around, commonest=lambda most: []))


def test_an_objective_of_a_mechanism_that_neither_writes_nor_reads_has_to_say_its_walk():
    class Compares(Retriever):
        def encode(self, lm, visual, aux=None):
            return Memory()

        def embed_pictures(self, memory):
            return torch.zeros(1, 1)

        def embed_texts(self, lm, text):
            return torch.zeros(1, 1)

        def scale(self):
            return torch.ones(1)

    language = make_language()
    compares = Compares(VISION, language.spec)
    assert default_objectives(compares, "caption") == {"contrastive": Contrastive()}
    with pytest.raises(TypeError, match="Matches has to say how it walks through Compares"):
        Matches().walk(Compares(VISION, language.spec), language, Memory(), View(make_text(2, 3)))


def test_a_mechanism_that_can_do_nothing_is_refused():
    class Idle(Fusion):
        def encode(self, lm, visual, aux=None):
            return Memory()

    with pytest.raises(TypeError, match="Idle can do nothing yet"):
        Idle(VISION, make_language().spec)
