"""MAGiC against its equation, its limits, and the scale without which it chooses nothing; SimCTG against a loop."""

from __future__ import annotations

import json

import pytest
import torch
from commands import run
from conftest import Characters, make_text
from test_decoding import random_model, searched_states

from src.contracts import Memory, Text, UserError
from src.decoding.base import Seen
from src.decoding.contrastive import ContrastiveSearch
from src.decoding.greedy import Greedy
from src.decoding.magic import Magic
from src.fusion.blind import Blind
from src.objectives.simctg import alikeness

SMALL = ("debug=smoke", "logger=csv", "trainer.accelerator=cpu", "language.model.width=32", "language.model.layers=1")


class Taste:
    """A judge whose pictures like some letters; its vectors count letters."""

    def __init__(self, scale: float = 100.0):
        self.scale = scale

    def pictures(self, ids):
        return torch.stack([self._vector(id) for id in ids])

    def texts(self, texts):
        return torch.stack([self._vector(text) for text in texts])

    def _vector(self, text):
        counts = torch.bincount(torch.tensor([ord(c) % 7 for c in text], dtype=torch.long), minlength=7).float()
        return torch.nn.functional.normalize(counts + 0.5, dim=0)


IDS = ("abcab", "ffg", "kkk")


def met(candidates: int, penalty: float, weight: float, judge: Taste | None = None, longest: int = 8) -> Magic:
    decoder = Magic(longest, candidates, penalty, weight, "a run")
    decoder.meet(judge or Taste(), Characters().decode)
    return decoder


def written(language, ids_BT, decoder, pictures=IDS) -> list[list[int]]:
    blind = Blind(None, language.spec)

    def step(memory, text, cache):
        hidden_BTD = blind.decode(language, memory, text, cache)
        return Seen(blind.readout(language, hidden_BTD[:, -1]), hidden_BTD)

    text = Text(ids_BT, torch.ones_like(ids_BT, dtype=torch.bool), torch.ones_like(ids_BT))
    memory = decoder.beside(Memory(rows=torch.zeros(len(ids_BT), 1)), pictures)
    return decoder(step, memory, text, Characters.eos)


def by_its_equation(language, ids, picture, candidates, penalty, weight, judge, longest) -> list[int]:
    """One candidate at a time, everything computed anew."""
    said: list[int] = []
    while len(said) < longest:
        before = searched_states(language, torch.tensor([[*ids, *said]]))[0]
        logits = language.unembed(before[-1])
        if not said:
            logits = logits.index_fill(-1, torch.tensor([Characters.eos]), -torch.inf)
        probability, scores = logits.softmax(-1), []
        tokens = probability.topk(candidates).indices.tolist()
        x = judge.pictures([picture])[0]
        cosines = torch.stack([x @ judge.texts([Characters().decode([*said, token])])[0] for token in tokens])
        for token, f in zip(tokens, torch.softmax(judge.scale * cosines, 0).tolist(), strict=True):
            state = searched_states(language, torch.tensor([[*ids, *said, token]]))[0, -1]
            alike = max(torch.cosine_similarity(state, other, dim=0).item() for other in before)
            scores.append((1 - penalty) * probability[token].item() - penalty * alike + weight * f)
        chosen = tokens[max(range(len(tokens)), key=scores.__getitem__)]
        if chosen == Characters.eos:
            break
        said.append(chosen)
    return said


@torch.no_grad()
@pytest.mark.parametrize("number", range(3))
@pytest.mark.parametrize(("candidates", "penalty", "weight"), [(5, 0.1, 2.0), (12, 0.4, 0.3)])
def test_it_is_its_equation_in_a_batch_and_alone(number, candidates, penalty, weight):
    language, ids_BT = random_model(number)
    language, judge = language.double(), Taste(10.0)
    want = [
        by_its_equation(language, ids, picture, candidates, penalty, weight, judge, 8)
        for ids, picture in zip(ids_BT.tolist(), IDS, strict=True)
    ]
    decoder = met(candidates, penalty, weight, judge)
    assert written(language, ids_BT, decoder) == want
    assert written(language, ids_BT[1:2], decoder, IDS[1:2]) == want[1:2]


@torch.no_grad()
def test_its_limits():
    language, ids_BT = random_model(1)
    language.double()
    plain = ContrastiveSearch(8, 6, 0.4)
    assert written(language, ids_BT, met(6, 0.4, 0.0)) == written(language, ids_BT, plain)
    assert written(language, ids_BT, met(1, 0.4, 5.0)) == written(language, ids_BT, Greedy(8))
    assert written(language, ids_BT, met(6, 0.0, 0.0)) == written(language, ids_BT, Greedy(8))
    assert written(language, ids_BT, met(6, 0.1, 50.0)) != written(language, ids_BT, plain)


def test_the_judges_share_is_one_and_without_its_scale_nothing_is_chosen():
    """Cosines of .200 to .236 over ten candidates, as CLIP's are: the best has 1.04 times the share of the worst."""

    class Narrow(Taste):
        def texts(self, texts):
            cosine = torch.linspace(0.2, 0.236, len(texts))
            return torch.stack([cosine, (1 - cosine**2).sqrt()], 1)

        def pictures(self, ids):
            return torch.tensor([[1.0, 0.0]]).repeat(len(ids), 1)

    shares = {}
    for scale in (1.0, 100.0):
        decoder = met(10, 0.1, 2.0, Narrow(scale))
        memory = decoder.beside(Memory(), ["a"])
        liked = decoder.liked(memory, [[]], torch.arange(5, 15)[None])
        assert liked.sum().item() == pytest.approx(2.0)
        shares[scale] = (liked.max() / liked.min()).item()
    assert shares[1.0] == pytest.approx(1.037, abs=1e-3) and shares[100.0] == pytest.approx(36.6, abs=0.1)


def test_a_judge_has_to_be_met():
    with pytest.raises(UserError, match="needs a judge that knows the pictures"):
        Magic(8, 4, 0.1, 2.0, "a run").beside(Memory(), ["a"])


@pytest.mark.parametrize("segments", [False, True])
def test_states_of_one_text_are_to_differ(segments):
    text = make_text(2, 6)
    text.valid_BT[1, 4:] = False
    if segments:
        text.segment_BT = torch.tensor([[1, 1, 1, 2, 2, 2], [1, 1, 2, 2, 0, 0]])
    h_BTE = torch.randn(2, 6, 5, generator=torch.Generator().manual_seed(0))
    pairs = []
    for b in range(2):
        for i in range(6):
            for j in range(6):
                apart = segments and text.segment_BT[b, i] != text.segment_BT[b, j]
                if i != j and text.valid_BT[b, i] and text.valid_BT[b, j] and not apart:
                    alike = torch.cosine_similarity(h_BTE[b, i], h_BTE[b, j], dim=0).item()
                    pairs.append(max(0.0, 0.5 - 1 + alike))
    assert alikeness(h_BTE, text, 0.5).item() == pytest.approx(sum(pairs) / len(pairs), abs=1e-6)
    assert alikeness(h_BTE, text, 0.0) < 1e-6 and alikeness(h_BTE[:, :1], text.columns(0, 1), 0.5) == 0


def test_a_blind_run_is_shown_pictures_by_a_judge(tmp_path):
    run("src.train", *SMALL, "fusion=clip", f"hydra.run.dir='{tmp_path}/clip'")
    run("src.train", *SMALL, "fusion=blind", "objective=simctg", f"hydra.run.dir='{tmp_path}/blind'")
    words = ["src.evaluate", f"run='{tmp_path}/blind'", "decode=magic", "decode.max_tokens=4", "decode.candidates=5"]
    run(*words, f"decode.judge='{tmp_path}/clip'")
    found = json.loads((tmp_path / "blind" / "evaluate" / "test-magic" / "metrics.json").read_text())
    assert found["decoding"]["method"] == "Magic" and found["decoding"]["weight"] == 2.0
    refused = run(*words, f"decode.judge='{tmp_path}/blind'", ok=False)
    assert "The judge must compare texts with pictures, and Blind does not" in refused.stderr
    refused = run("src.train", "fusion=blind", "decode=magic", f"decode.judge='{tmp_path}/clip'", ok=False)
    assert "train with another decode=" in refused.stderr
