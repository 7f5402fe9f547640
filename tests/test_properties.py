"""What must hold of whatever goes in: generated cases, few by default and 10,000 with FUZZ=1.

FUZZ=1 python -m pytest tests/test_properties.py tests/test_bad_inputs.py
"""

from __future__ import annotations

import os
import pickle
from collections import Counter
from itertools import pairwise, zip_longest

import pytest
import torch
from conftest import Characters
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from test_tokenizers import BPE, GPT2, TEXT

from src.contracts import Chunk, Document, Example, Memory, Text
from src.data.order import EpochBatchSampler, InOrder, draw_captions, nested_share
from src.decoding.base import Seen
from src.decoding.beam import BeamSearch
from src.decoding.contrastive import ContrastiveSearch
from src.decoding.greedy import Greedy
from src.decoding.sample import Sample
from src.loading.batches import pad_rows, tagged, token_row
from src.loading.documents import collate, document_row, looking_ahead
from src.metrics.captions import CaptionScorer
from src.metrics.retrieval import recall_at_k
from src.text.normalise import normalise_caption
from src.text.tokenizers import load_tokenizer

FUZZ = os.environ.get("FUZZ") == "1"
LONG = 350  # cases of each property under FUZZ=1; the test at the end adds them up
PROPERTIES: list[str] = []  # every property of this file and of test_bad_inputs


def cases(few: int = 20):
    """Decorates a property: ``few`` cases, or ``LONG`` ones under FUZZ=1."""

    def decorate(test):
        PROPERTIES.append(test.__name__)
        return settings(max_examples=LONG if FUZZ else few, deadline=None, derandomize=not FUZZ)(test)

    return decorate


TAG, BOS, EOS, PAD = Characters.image_tag[0], Characters.bos, Characters.eos, Characters.pad
ROWS = st.lists(st.lists(st.integers(0, 130), min_size=1, max_size=9), min_size=1, max_size=6)
CHUNKS = st.lists(st.tuples(st.booleans(), st.text("abc ", max_size=7)), min_size=1, max_size=6)
DOCUMENTS = st.lists(CHUNKS, min_size=1, max_size=4)


def document(chunks) -> Document:
    """Text of its own may only begin a document; all other text follows a picture."""
    made = [Chunk(said, Example(f"p{i}", (), None) if shows or i else None) for i, (shows, said) in enumerate(chunks)]
    return Document("d", tuple(made))


# ------------------------------------------------------------------------------------------------------------- padding
@cases()
@given(ROWS, st.integers(0, 130), st.integers(0, 1))
def test_padding_gives_every_row_back(rows, pad, picture):
    """Also where padding is a token that occurs in captions, as in GPT-2's vocabulary."""
    text = pad_rows(rows, pad, picture)
    assert text.ids_BT.shape == text.valid_BT.shape == text.phi_BT.shape == (len(rows), max(map(len, rows)))
    assert text.ids_BT.dtype == text.phi_BT.dtype == torch.int64 and not text.ragged
    for i, row in enumerate(rows):
        assert text.ids_BT[i, text.valid_BT[i]].tolist() == row and text.valid_BT[i, : len(row)].all()
        assert (text.ids_BT[i, len(row) :] == pad).all()
    assert torch.equal(text.phi_BT, text.valid_BT.long() * picture) and torch.equal(text.targets(), text.valid_BT)


@cases()
@given(DOCUMENTS, st.integers(2, 40), st.integers(1, 5), st.booleans())
def test_collating_documents_gives_every_row_back(documents, max_tokens, max_images, left):
    rows = [document_row(document(chunks), Characters(), max_tokens, max_images) for chunks in documents]
    text = collate(rows, PAD, left)
    width = max(len(row.ids) for row in rows)
    assert text.ragged == (left and any(len(row.ids) < width for row in rows))
    for i, row in enumerate(rows):
        valid = text.valid_BT[i]
        own = slice(width - len(row.ids), None) if left else slice(0, len(row.ids))
        assert valid[own].all() and valid.sum() == len(row.ids)
        for tensor, values in ((text.ids_BT, row.ids), (text.phi_BT, row.phi), (text.target_BT, row.target)):
            assert tensor[i, own].tolist() == values
        assert (text.ids_BT[i, ~valid] == PAD).all() and not text.phi_BT[i, ~valid].any()
        assert not text.target_BT[i, ~valid].any()


@cases()
@given(st.lists(st.text("abc ", min_size=1, max_size=8), min_size=1, max_size=4), st.integers(4, 20))
def test_a_tagged_caption_is_a_document_of_one_picture(captions, max_tokens):
    tokenizer = Characters()
    rows = [token_row(ids, tokenizer, max_tokens - 1) for ids in tokenizer.encode(captions)]
    pages = [document_row(document([(True, said)]), tokenizer, max_tokens, 1) for said in captions]
    found, want = tagged(pad_rows(rows, PAD, picture=1), tokenizer.image_tag), collate(pages, PAD)
    for name in ("ids_BT", "valid_BT", "phi_BT", "target_BT"):
        assert torch.equal(getattr(found, name), getattr(want, name)), name


# ----------------------------------------------------------------------------------------------------------------- phi
@cases()
@given(CHUNKS, st.integers(1, 60), st.integers(1, 6))
def test_phi_is_the_number_of_pictures_so_far(chunks, max_tokens, max_images):
    """Counted anew from the tokens; looking ahead, it is the first picture that is still to come."""
    row = document_row(document(chunks), Characters(), max_tokens, max_images)
    assert len(row.ids) == len(row.phi) == len(row.target) <= max_tokens
    tags = [token == TAG for token in row.ids]
    assert row.phi == [sum(tags[: t + 1]) for t in range(len(tags))]
    assert sum(tags) == len(row.pictures) <= max_images
    assert row.target == [token not in (TAG, BOS) for token in row.ids]
    ahead = looking_ahead(row)
    for t, phi in enumerate(ahead.phi):
        assert phi == (sum(tags[: t + 1]) + 1 if any(tags[t + 1 :]) else 0)
    assert (ahead.ids, ahead.target, ahead.pictures) == (row.ids, row.target, row.pictures)


@cases()
@given(CHUNKS, st.integers(1, 40), st.integers(0, 30), st.integers(1, 6))
def test_a_shorter_row_is_the_beginning_of_a_longer_one(chunks, short, more, max_images):
    small, large = (document_row(document(chunks), Characters(), n, max_images) for n in (short, short + more))
    n = len(small.ids)
    assert (small.ids, small.phi, small.target) == (large.ids[:n], large.phi[:n], large.target[:n])
    assert small.pictures == large.pictures[: len(small.pictures)]
    assert max(small.phi, default=0) <= len(small.pictures)


# --------------------------------------------------------------------------------------------------------------- order
@cases()
@given(st.integers(1, 400), st.lists(st.floats(0.001, 1), min_size=2, max_size=4), st.integers(0, 9))
def test_shares_are_nested_sorted_and_repeatable(n, fractions, seed):
    torch.manual_seed(seed + 1)  # what else has been drawn does not matter
    shares = [nested_share(n, fraction, seed) for fraction in sorted(fractions)]
    for fraction, share in zip(sorted(fractions), shares, strict=True):
        assert share == sorted(set(share)) and 0 <= share[0] and share[-1] < n
        assert len(share) == max(1, round(fraction * n)) and share == nested_share(n, fraction, seed)
    assert all(set(a) <= set(b) for a, b in pairwise(shares))
    assert nested_share(n, 1.0, seed) == list(range(n))


@cases()
@given(st.integers(1, 60), st.integers(1, 9), st.integers(1, 4), st.integers(0, 3), st.integers(0, 5))
def test_ranks_share_the_batches_of_one_process(n, batch_size, world, seed, epoch):
    ranks = [EpochBatchSampler(n, batch_size, seed, rank, world).batches(epoch) for rank in range(world)]
    torch.rand(3)
    assert ranks == [EpochBatchSampler(n, batch_size, seed, rank, world).batches(epoch) for rank in range(world)]
    assert {len(share) for share in ranks} == {len(EpochBatchSampler(n, batch_size, seed, 0, world))}
    assert len({len(batch) for share in ranks for batch in share}) == 1
    seen = Counter(i for share in ranks for batch in share for i in batch)
    together = EpochBatchSampler(n, batch_size * world, seed).batches(epoch)
    steps = [sorted(i for batch in step for i in batch) for step in zip(*ranks, strict=True)]
    if n >= batch_size * world:  # a partition of the part that fills whole steps
        assert max(seen.values()) == 1 and steps == [sorted(batch) for batch in together]
    else:
        assert set(seen) == set(range(n)) == set(together[0]) and max(seen.values()) - min(seen.values()) <= 1


@cases()
@given(st.integers(1, 50), st.integers(1, 9), st.integers(0, 4), st.data())
def test_an_epoch_goes_on_where_it_stopped(n, batch_size, epoch, data):
    whole = EpochBatchSampler(n, batch_size, seed=1)
    whole.epoch = epoch
    rest = EpochBatchSampler(n, batch_size, seed=1)
    rest.epoch, rest.start = epoch, data.draw(st.integers(0, len(whole)))
    assert list(whole)[rest.start :] == list(rest)


@cases()
@given(st.integers(1, 60), st.integers(1, 9), st.integers(1, 4))
def test_in_order_nothing_is_left_out_or_moved(n, batch_size, world):
    shares = [list(InOrder(n, batch_size, rank, world)) for rank in range(world)]
    assert len({len(share) for share in shares}) == 1
    columns = zip_longest(*([i for epoch, batch in share for i in batch if epoch is None] for share in shares))
    assert [i for column in columns for i in column if i is not None] == list(range(n))


@cases()
@given(st.integers(0, 2**40), st.integers(0, 99), st.integers(0, 10**6), st.integers(1, 9), st.integers(1, 20))
def test_captions_take_turns(seed, epoch, index, available, wanted):
    drawn = draw_captions(seed, epoch, index, available, wanted)
    assert drawn == draw_captions(seed, epoch, index, available, wanted) and len(drawn) == wanted
    counts = Counter(drawn)
    assert set(counts) <= set(range(available)) and len(counts) == min(available, wanted)
    assert max(counts.values()) - min(counts.values()) <= 1


# ------------------------------------------------------------------------------------------------------------ decoding
V, END = 6, 1


class Drawn:
    """A language model whose logits are a fixed function of picture and tokens, scaled up to certainty or down to
    ties, and from which some tokens may be forbidden."""

    def __init__(self, pictures: int, seed: int, scale: float, forbidden: set[int]):
        self.memory = Memory(picture_I1=torch.arange(pictures, dtype=torch.float64)[:, None])
        self.seed, self.scale, self.forbidden = seed, scale, sorted(forbidden)

    def logits(self, picture: int, tokens: tuple[int, ...]) -> torch.Tensor:
        number = hash((self.seed, picture, tokens)) % 2**31  # hashes of ints are the same in every process
        logits = self.scale * torch.randn(V, generator=torch.Generator().manual_seed(number))
        logits[self.forbidden] = -torch.inf
        return logits

    def __call__(self, memory, text: Text, cache):
        cache.claim(text.valid_BT, text.ragged)
        ids_B1T1 = text.ids_BT[:, None, :, None].double()
        seen_B1S1, _ = cache.append("seen", ids_B1T1, ids_B1T1)
        rows = len(text.ids_BT) // len(memory["picture_I1"])
        pictures = memory["picture_I1"][:, 0].repeat_interleave(rows).int().tolist()
        seen = seen_B1S1[:, 0, :, 0].int().tolist()
        logits_BV = torch.stack([self.logits(p, tuple(tokens)) for p, tokens in zip(pictures, seen, strict=True)])
        return Seen(logits_BV, ids_B1T1[:, 0] + 1)  # any states

    def decode(self, decoder) -> list[list[int]]:
        ids = torch.zeros(len(self.memory["picture_I1"]), 1, dtype=torch.long)
        return decoder(self, self.memory, Text(ids, torch.ones_like(ids).bool(), torch.ones_like(ids)), END)

    def score(self, picture: int, caption: list[int], longest: int) -> float:
        """log p of the caption and of its end, if it was not cut."""
        seen, total = (0,), 0.0
        for token in (*caption, END)[:longest]:
            total += self.logits(picture, seen).log_softmax(-1)[token].item()
            seen = (*seen, token)
        return total


MODELS = st.builds(
    Drawn,
    st.integers(1, 4),
    st.integers(0, 10**6),
    st.sampled_from([0.0, 1e-3, 1.0, 5.0, 100.0, 1e4]),
    st.sets(st.integers(0, V - 1), max_size=3),  # three of six, so that there is always something to say
)
LENGTHS = st.integers(1, 6)
DECODERS = st.one_of(
    st.builds(Greedy, LENGTHS),
    st.builds(BeamSearch, LENGTHS, st.integers(1, 8), st.floats(0, 2)),
    st.builds(ContrastiveSearch, LENGTHS, st.integers(1, 8), st.floats(0, 1)),
    st.builds(Sample, LENGTHS, st.floats(0.05, 5), st.integers(0, 9), st.floats(0.01, 1), st.integers(0, 99)),
)


@cases(40)
@given(MODELS, DECODERS)
def test_every_caption_has_a_token_and_none_is_too_long(model, decoder):
    rows = model.decode(decoder)
    assert len(rows) == len(model.memory["picture_I1"])
    for row in rows:
        assert 1 <= len(row) <= decoder.max_tokens
        assert set(row) <= set(range(V)) - {END} - set(model.forbidden)
    assert model.decode(decoder) == rows


@cases()
@given(MODELS, LENGTHS, st.floats(0, 2))
def test_one_beam_is_greedy(model, length, penalty):
    assume(model.scale > 0)  # ties are broken by whatever comes first
    assert model.decode(BeamSearch(length, beams=1, length_penalty=penalty)) == model.decode(Greedy(length))


@cases()
@given(MODELS, LENGTHS)
def test_a_full_beam_is_never_less_probable_than_greedy(model, length):
    greedy, beam = model.decode(Greedy(length)), model.decode(BeamSearch(length, V**3, length_penalty=0.0))
    for picture, (plain, searched) in enumerate(zip(greedy, beam, strict=True)):
        if length <= 4:  # so short that nothing falls out of this beam
            assert model.score(picture, searched, length) >= model.score(picture, plain, length) - 1e-3


# ------------------------------------------------------------------------------------------------------------- metrics
WORDS = st.lists(st.sampled_from("a dog cat red runs on grass two".split()), min_size=1, max_size=9).map(" ".join)
CAPTIONED = st.dictionaries(
    st.integers(0, 99).map(str), st.tuples(WORDS, st.lists(WORDS, min_size=1, max_size=4)), min_size=1, max_size=6
)


def scored(pairs: dict):
    scorer = CaptionScorer({id: references for id, (_, references) in pairs.items()})
    return scorer.score({id: said for id, (said, _) in pairs.items()})


@cases()
@given(CAPTIONED, st.randoms(use_true_random=False))
def test_scores_depend_on_no_order(pairs, chance):
    """Neither of pictures nor of a picture's references."""
    ids = list(pairs)
    chance.shuffle(ids)
    moved = {id: (pairs[id][0], chance.sample(pairs[id][1], len(pairs[id][1]))) for id in ids}
    one, other = scored(pairs), scored(moved)
    assert other.corpus == pytest.approx(one.corpus, abs=1e-9)
    for id in pairs:
        assert other.per_image[id] == pytest.approx(one.per_image[id], abs=1e-9)


@cases()
@given(CAPTIONED)
def test_scores_stay_in_their_bounds(pairs):
    scores = scored(pairs)
    for named in (scores.corpus, *scores.per_image.values()):
        for name, value in named.items():
            top = {"CIDEr-D": 10, "vocabulary": 99, "length": 99}.get(name, 1)
            assert -1e-9 <= value <= top + 1e-9, (name, value)
    for name in ("ROUGE-L", "CIDEr-D"):
        assert scores.corpus[name] == pytest.approx(sum(s[name] for s in scores.per_image.values()) / len(pairs))


@cases()
@given(st.integers(2, 6), st.integers(4, 12), st.integers(1, 3))
def test_a_perfect_caption_gets_the_highest_score(pictures, length, references):
    """Every picture has words of its own, and its caption is its reference word by word."""
    said = {str(i): " ".join(f"w{i}x{k}" for k in range(length)) for i in range(pictures)}
    scores = CaptionScorer({id: [caption] * references for id, caption in said.items()}).score(said)
    for name, top in (("BLEU-1", 1), ("BLEU-4", 1), ("ROUGE-L", 1), ("CIDEr-D", 10)):
        assert scores.corpus[name] == pytest.approx(top, abs=1e-6), name
    assert scores.corpus["unique"] == scores.corpus["distinct-1"] == 1 and scores.corpus["length"] == length


@cases()
@given(CAPTIONED)
def test_one_of_the_references_is_a_perfect_caption_for_bleu_and_rouge(pairs):
    pairs = {id: (references[-1], references) for id, (_, references) in pairs.items()}
    for id, score in scored(pairs).per_image.items():
        assert score["ROUGE-L"] == pytest.approx(1)
        if len(pairs[id][0].split()) >= 4:
            assert score["BLEU-4"] == pytest.approx(1, abs=1e-6)


@cases()
@given(st.integers(1, 6), st.integers(1, 3), st.integers(0, 999))
def test_recall_has_bounds_and_no_order(pictures, per_picture, seed):
    generator = torch.Generator().manual_seed(seed)
    similarity_IB = torch.randn(pictures, pictures * per_picture, generator=generator)
    picture_B = torch.arange(pictures).repeat_interleave(per_picture)
    found = recall_at_k(similarity_IB, picture_B)
    assert all(0 <= share <= 1 for share in found.values())
    assert found["i2t/R@1"] <= found["i2t/R@5"] <= found["i2t/R@10"]
    order = torch.randperm(len(picture_B), generator=generator)
    assert recall_at_k(similarity_IB[:, order], picture_B[order]) == found
    rows = torch.randperm(pictures, generator=generator)
    assert recall_at_k(similarity_IB[rows], rows.argsort()[picture_B]) == found
    sure_IB = (picture_B == torch.arange(pictures)[:, None]).float()
    assert set(recall_at_k(sure_IB, picture_B, ks=(per_picture,)).values()) == {1.0}
    if pictures > 1:  # a model that has learnt nothing scores nothing
        assert not any(recall_at_k(torch.zeros_like(similarity_IB), picture_B, ks=(1,)).values())


# ----------------------------------------------------------------------------------------------------------- tokenizers
@pytest.mark.parametrize("tokenizer", [BPE, GPT2], ids=["bpe", "gpt2"])
@cases()
@given(st.lists(TEXT, min_size=1, max_size=4))
def test_a_caption_comes_back_from_a_training_row(tokenizer, texts):
    """Normalised, encoded, put between start and end, padded, and decoded; one row does not change another."""
    said = [normalise_caption(text) for text in texts]
    rows = [token_row(ids, tokenizer, max_tokens=10_000) for ids in tokenizer.encode(said)]
    padded = pad_rows(rows, tokenizer.pad, picture=1)
    assert [tokenizer.decode(row) for row in padded.ids_BT.tolist()] == said
    assert tokenizer.encode(said) == [tokenizer.encode([one])[0] for one in said]
    assert all(row.count(tokenizer.eos) == 1 + (tokenizer.bos == tokenizer.eos) for row in rows)


@cases(5)
@given(st.lists(TEXT, min_size=1, max_size=3))
def test_a_saved_tokenizer_says_the_same(tmp_path_factory, texts):
    if not (folder := tmp_path_factory.getbasetemp() / "saved-tokenizer").exists():
        BPE.save(folder)
    for other in (load_tokenizer(folder), pickle.loads(pickle.dumps(BPE))):
        assert other.encode(texts) == BPE.encode(texts)
        assert [other.decode(ids) for ids in other.encode(texts)] == texts


# --------------------------------------------------------------------------------------------------------- 10,000 cases
def test_the_long_version_has_ten_thousand_cases():
    import test_bad_inputs  # noqa: F401  its properties are counted too

    assert len(PROPERTIES) == len(set(PROPERTIES)) and len(PROPERTIES) * LONG >= 10_000
