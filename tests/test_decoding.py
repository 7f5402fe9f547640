"""Decoders against brute force on a small language whose probabilities depend on everything seen so far, and against
transformers' ``generate`` on small language models."""

from __future__ import annotations

import itertools

import pytest
import torch
from conftest import Characters

from src.contracts import Memory, Text, UserError
from src.decoding.base import Seen
from src.decoding.beam import BeamSearch
from src.decoding.best import BLOCK, best, best_few
from src.decoding.contrastive import ContrastiveSearch
from src.decoding.greedy import Greedy
from src.decoding.sample import Sample
from src.fusion.blind import Blind
from src.language.load import tiny
from src.layers.cache import Cache

V, EOS, BOS = 5, 1, 0


class History:
    """A step function with memory: logits are a fixed random function of the picture and of all tokens so far.

    The tokens seen are kept where a model keeps keys and values, so wrong reordering gives wrong logits.
    """

    def __init__(self, pictures: int, seed: int = 0):
        self.memory = Memory(picture_I1=torch.arange(pictures, dtype=torch.float64)[:, None])
        self.seed, self.calls = seed, 0

    def logits(self, picture: int, tokens: tuple[int, ...]) -> torch.Tensor:
        number = hash((self.seed, picture, tokens)) % 2**31  # hashes of ints are the same in every process
        return 2 * torch.randn(V, generator=torch.Generator().manual_seed(number), dtype=torch.float64)

    def __call__(self, memory, text: Text, cache):
        self.calls += 1
        cache.claim(text.valid_BT, text.ragged)
        ids_B1T1 = text.ids_BT[:, None, :, None].double()
        seen_B1S1, _ = cache.append("seen", ids_B1T1, ids_B1T1)
        rows = len(text.ids_BT) // len(memory["picture_I1"])
        picture_B = memory["picture_I1"][:, 0].repeat_interleave(rows)
        logits_BV = torch.stack(
            [
                self.logits(int(picture), tuple(int(t) for t in seen))
                for picture, seen in zip(picture_B, seen_B1S1[:, 0, :, 0].tolist(), strict=True)
            ]
        )
        return Seen(logits_BV, ids_B1T1[:, 0] + 1)  # any states


def prompt(pictures: int) -> Text:
    ids = torch.full((pictures, 1), BOS)
    return Text(ids, torch.ones_like(ids, dtype=torch.bool), torch.ones_like(ids))


def run(decoder, step: History):
    return decoder(step, step.memory, prompt(len(step.memory["picture_I1"])), EOS)


def best_by_brute_force(step: History, picture: int, longest: int, alpha: float) -> list[int]:
    """The caption of the highest score among all that end within ``longest`` tokens, end token included, or are cut."""
    best, best_score = None, -float("inf")
    others = [token for token in range(V) if token != EOS]
    endings = [(length - 1, (EOS,)) for length in range(2, longest + 1)]  # an empty caption is none
    for length, ending in [*endings, (longest, ())]:
        for body in itertools.product(others, repeat=length):
            logp, seen = 0.0, (BOS,)
            for token in (*body, *ending):
                logp += step.logits(picture, seen).log_softmax(-1)[token].item()
                seen = (*seen, token)
            score = logp / (length + len(ending)) ** alpha
            if score > best_score:
                best, best_score = list(body), score
    return best


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_wide_beam_finds_the_best_caption(alpha):
    step, longest = History(pictures=4), 4
    found = run(BeamSearch(longest, beams=4**3, length_penalty=alpha), step)
    assert found == [best_by_brute_force(step, picture, longest, alpha) for picture in range(4)]


def test_narrow_beam_keeps_its_rows_together():
    """Pictures decoded together equal pictures decoded alone, though they finish at different times."""
    together = run(BeamSearch(8, beams=3, length_penalty=0.6), History(pictures=6))
    for picture in range(6):
        step = History(pictures=6)
        step.memory = step.memory.select(torch.tensor([picture]))
        assert run(BeamSearch(8, beams=3, length_penalty=0.6), step) == [together[picture]]
    assert len({len(row) for row in together}) > 1


# 3 and 5 beams, without and with a penalty, limits that cut captions and one that cuts few.
SEARCHES = list(itertools.product((3, 5), (0.0, 1.0), (12, 20, 60)))


def random_model(number: int):
    """A tiny GPT-2 with random weights, from flat to certain, and three prompts of two tokens."""
    torch.manual_seed(number)
    language = tiny(Characters(), width=16, layers=2, heads=2, context=64, dropout=0.0).eval()
    with torch.no_grad():
        for parameter in language.parameters():
            parameter.add_((0.0, 0.1, 0.3)[number % 3] * torch.randn_like(parameter))
    return language, torch.randint(3, len(Characters()), (3, 2))


def searched(language, ids_BT, decoder) -> list[list[int]]:
    blind = Blind(None, language.spec)

    def step(memory, text, cache):
        hidden_BTD = blind.decode(language, memory, text, cache)
        return Seen(blind.readout(language, hidden_BTD[:, -1]), hidden_BTD)

    text = Text(ids_BT, torch.ones_like(ids_BT, dtype=torch.bool), torch.ones_like(ids_BT))
    return decoder(step, Memory(rows=torch.zeros(len(ids_BT), 1)), text, Characters.eos)


def generated(language, ids_BT, beams: int, alpha: float, longest: int) -> list[list[int]]:
    """What transformers says; it fills short rows up with the end token."""
    rows_BT = language.model.generate(
        ids_BT,
        attention_mask=torch.ones_like(ids_BT),
        num_beams=beams,
        length_penalty=alpha,
        min_new_tokens=1,
        max_new_tokens=longest,
        do_sample=False,
        eos_token_id=Characters.eos,
        pad_token_id=Characters.eos,
    )
    return [
        list(itertools.takewhile(lambda token: token != Characters.eos, row))
        for row in rows_BT[:, ids_BT.shape[1] :].tolist()
    ]


@torch.no_grad()
@pytest.mark.parametrize("every", [len(SEARCHES), pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("search", range(len(SEARCHES)))
def test_beams_say_what_transformers_says(search, every):
    """50 models: each under one of the searches, or under all of them."""
    beams, alpha, longest = SEARCHES[search]
    for number in range(search % every, 50, every):
        language, ids_BT = random_model(number)
        ours = searched(language, ids_BT, BeamSearch(longest, beams, alpha))
        assert ours == generated(language, ids_BT, beams, alpha, longest), f"model {number}"


class Written(History):
    """Probabilities by hand: ``table`` says them after the tokens so far; without a row, all are equal."""

    def __init__(self, table: dict[tuple[int, ...], dict[int, float]]):
        super().__init__(pictures=1)
        self.table = table

    def logits(self, picture: int, tokens: tuple[int, ...]) -> torch.Tensor:
        row = self.table.get(tokens[1:], dict.fromkeys(range(V), 1 / V))
        return torch.tensor([row.get(token, 0.0) for token in range(V)], dtype=torch.float64).log()


def test_an_end_token_below_the_beams_ends_nothing():
    """2 and its end (.24) would win, but with two beams it is third, after 3 3 (.33) and 3 4 (.27)."""
    step = Written({(): {3: 0.6, 2: 0.4}, (3,): {3: 0.55, 4: 0.45}, (2,): {EOS: 0.6, 0: 0.4}})
    assert run(BeamSearch(3, beams=2, length_penalty=0.0), step)[0][0] == 3
    assert run(BeamSearch(3, beams=3, length_penalty=0.0), step) == [[2]]


@pytest.mark.parametrize(("end", "last", "want"), [(0.75, 0.9, [3, 4, 3]), (1.0, 0.7, [2])])
def test_a_caption_cut_short_competes_with_those_that_ended(end, last, want):
    """2 and its end have .4 * end, the longest beam .6 * .9 * last: .3 against .486, then .4 against .378."""
    rows = {(): {3: 0.6, 2: 0.4}, (3,): {4: 0.9, 0: 0.1}}
    step = Written(rows | {(2,): {EOS: end, 0: 1 - end}, (3, 4): {3: last, 0: 1 - last}})
    assert run(BeamSearch(3, beams=2, length_penalty=0.0), step) == [want]


def test_one_beam_is_greedy():
    step = History(pictures=8, seed=3)
    greedy = run(Greedy(6), step)
    assert len({len(row) for row in greedy}) > 2 and max(map(len, greedy)) == 6
    assert run(BeamSearch(6, beams=1, length_penalty=0.0), step) == greedy


def test_greedy_takes_the_most_probable_token_and_stops():
    step = History(pictures=5)
    for picture, row in enumerate(run(Greedy(7), step)):
        seen = (BOS,)
        for place, token in enumerate(row):
            logits = step.logits(picture, seen)
            if not place:
                logits[EOS] = -torch.inf
            assert token == logits.argmax()
            seen = (*seen, token)
        assert len(row) == 7 or step.logits(picture, seen).argmax() == EOS


@pytest.mark.parametrize(
    "decoder", [Greedy(6), BeamSearch(6, 3, 0.0), Sample(6, 1.0, 0, 1.0, seed=0), ContrastiveSearch(6, 3, 0.6)]
)
def test_no_caption_is_empty(decoder):
    """Even where the end token is the most probable one at once, as for a model that does not know what it sees."""

    class Silent(History):
        def logits(self, picture, tokens):
            return super().logits(picture, tokens) + 20 * (torch.arange(V) == EOS)

    assert [len(row) for row in run(decoder, Silent(pictures=4))] == [1] * 4


def test_finished_rows_leave_the_batch():
    sizes = []

    class Watching(History):
        def __call__(self, memory, text, cache):
            sizes.append(len(text.ids_BT))
            return super().__call__(memory, text, cache)

    run(Greedy(12), Watching(pictures=16))
    assert sizes[0] == 16 and sizes[-1] < 16 and sizes == sorted(sizes, reverse=True)


def contrasted(language, ids: list[int], candidates: int, penalty: float, longest: int) -> list[int]:
    """The paper's equation, one candidate at a time, everything computed anew for each."""

    def states(ids: list[int]) -> torch.Tensor:
        return searched_states(language, torch.tensor([ids]))[0]

    said: list[int] = []
    while len(said) < longest:
        before = states([*ids, *said])
        probability = language.unembed(before[-1]).softmax(-1)
        if not said:
            probability = language.unembed(before[-1]).index_fill(-1, torch.tensor([Characters.eos]), -torch.inf)
            probability = probability.softmax(-1)
        best_score, chosen = -float("inf"), None
        for token in probability.topk(candidates).indices.tolist():
            state = states([*ids, *said, token])[-1]
            alike = max(torch.cosine_similarity(state, other, dim=0).item() for other in before)
            score = (1 - penalty) * probability[token].item() - penalty * alike
            if score > best_score:
                best_score, chosen = score, token
        if chosen == Characters.eos:
            break
        said.append(chosen)
    return said


def searched_states(language, ids_BT):
    text = Text(ids_BT, torch.ones_like(ids_BT, dtype=torch.bool), torch.ones_like(ids_BT))
    return language.hidden(text)


@torch.no_grad()
@pytest.mark.parametrize("number", range(6))
@pytest.mark.parametrize(("candidates", "penalty"), [(4, 0.6), (8, 0.1), (3, 0.9)])
def test_contrastive_search_is_its_equation(number, candidates, penalty):
    language, ids_BT = random_model(number)
    language, found = language.double(), []
    want = [contrasted(language, ids, candidates, penalty, 15) for ids in ids_BT.tolist()]
    found = searched(language, ids_BT, ContrastiveSearch(15, candidates, penalty))
    assert found == want
    greedy = searched(language, ids_BT, Greedy(15))
    assert searched(language, ids_BT, ContrastiveSearch(15, candidates, 0.0)) == greedy
    assert searched(language, ids_BT, ContrastiveSearch(15, 1, penalty)) == greedy


@torch.no_grad()
def test_contrastive_search_does_not_look_at_padding():
    """A prompt behind padding goes on as without."""
    language, ids_BT = random_model(2)
    language.double()
    decoder = ContrastiveSearch(10, 4, 0.6)
    want = searched(language, ids_BT, decoder)
    left_BT = torch.cat([torch.full((3, 2), Characters.pad), ids_BT], 1)
    valid_BT = torch.tensor([[False, False, True, True]] * 3)
    blind = Blind(None, language.spec)

    def step(memory, text, cache):
        hidden_BTD = blind.decode(language, memory, text, cache)
        return Seen(blind.readout(language, hidden_BTD[:, -1]), hidden_BTD)

    text = Text(left_BT, valid_BT, valid_BT.long(), ragged=True)
    assert decoder(step, Memory(rows=torch.zeros(3, 1)), text, Characters.eos) == want


def test_what_is_kept_follows_its_rows():
    cache = Cache(3, 4)
    cache.keep("state", torch.arange(3), torch.arange(6).view(3, 2))
    cache.repeat(2)
    cache.select(torch.tensor([4, 1]))
    one, other = cache.kept("state")
    assert one.tolist() == [2, 0] and other.tolist() == [[4, 5], [0, 1]]
    with pytest.raises(KeyError):
        cache.kept("nothing")


def test_sampling_repeats_with_its_seed_and_follows_the_probabilities():
    options = {"temperature": 0.7, "top_k": 0, "top_p": 1.0}
    step = History(pictures=3)
    assert run(Sample(5, seed=4, **options), step) == run(Sample(5, seed=4, **options), step)
    first = [run(Sample(1, seed=s, **options), step)[0] for s in range(600)]
    drawn = torch.tensor([sum(row == [token] for row in first) / 600 for token in range(V) if token != EOS])
    want = (step.logits(0, (BOS,))[[0, 2, 3, 4]] / 0.7).softmax(-1)
    assert (drawn - want).abs().max() < 0.07


def test_filters_keep_the_right_tokens():
    logits = torch.log(torch.tensor([[0.5, 0.05, 0.3, 0.15], [0.25, 0.25, 0.1, 0.4]]))

    def kept(**options):
        return (Sample(1, 1.0, seed=0, **{"top_k": 0, "top_p": 1.0, **options}).filter(logits) > -torch.inf).tolist()

    assert kept(top_k=2)[0] == [True, False, True, False]
    assert kept(top_p=0.6)[0] == [True, False, True, False]
    assert kept(top_p=0.01) == [[True, False, False, False], [False, False, False, True]]
    assert kept() == [[True] * 4] * 2


@pytest.mark.parametrize(
    "make",
    [
        lambda: Greedy(0),
        lambda: BeamSearch(5, beams=0, length_penalty=0.0),
        lambda: BeamSearch(5, beams=2, length_penalty=-1.0),
        lambda: Sample(5, temperature=0.0, top_k=0, top_p=1.0, seed=0),
        lambda: Sample(5, temperature=1.0, top_k=0, top_p=1.5, seed=0),
        lambda: ContrastiveSearch(5, candidates=0, penalty=0.5),
        lambda: ContrastiveSearch(5, candidates=4, penalty=1.5),
    ],
)
def test_senseless_options_are_refused(make):
    with pytest.raises(UserError, match=r"decode\."):
        make()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("V", [3, BLOCK, 7 * BLOCK + 5, 40 * BLOCK, 40 * BLOCK + 63])
@pytest.mark.parametrize("k", [1, 3, 10])
def test_the_best_are_those_of_torch(dtype, V, k):
    torch.manual_seed(k * V)
    scores_BV, k = torch.randn(6, V).to(dtype), min(k, V)  # in bfloat16 many are equal
    scores_BV[1] = scores_BV[1].sort().values  # the best in the last block, or behind it
    scores_BV[2] = scores_BV[2].sort(descending=True).values
    scores_BV[3] = -torch.inf
    scores_BV[4, 1:] = -torch.inf
    value_Bk, id_Bk = best_few(scores_BV, k)
    assert torch.equal(value_Bk, scores_BV.topk(k).values) and torch.equal(scores_BV.gather(1, id_Bk), value_Bk)
    assert all(len(set(row)) == k for row in id_Bk.tolist())
    assert torch.equal(best(scores_BV), scores_BV.float().argmax(-1))
