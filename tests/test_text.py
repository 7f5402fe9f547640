"""Who sees whom, and what is asked for where: Text, Target and the masks that come of them."""

from __future__ import annotations

import pytest
import torch
from conftest import Characters, make_language, make_text, text_of
from families import make_family

from src.contracts import Target, Text
from src.language.base import seen_bias
from src.layers.cache import Cache

EXACT = {"rtol": 0, "atol": 1e-12}


def padded(*lengths: int) -> Text:
    text = make_text(len(lengths), max(lengths))
    text.valid_BT = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return text


def test_the_label_shift_asks_every_column_for_the_next_token():
    text = padded(6, 4)
    target = Target.next(text)
    asked = [(b, t) for b, n in enumerate((6, 4)) for t in range(n - 1)]
    assert target.at_X.tolist() == [b * 6 + t for b, t in asked]
    assert target.id_X.tolist() == [text.ids_BT[b, t + 1].item() for b, t in asked]


def test_what_the_data_do_not_want_learnt_is_not_asked_for():
    text = padded(6, 4)
    text.target_BT = text.valid_BT.clone()
    text.target_BT[0, :3] = False  # a question
    assert Target.next(text).at_X.tolist() == [2, 3, 4, 6, 7, 8]


def test_no_text_of_a_row_is_asked_to_foretell_the_next_one():
    text = make_text(1, 6)
    text.segment_BT = torch.tensor([[1, 1, 1, 2, 2, 2]])
    assert Target.next(text).at_X.tolist() == [0, 1, 3, 4]


def test_masked_words_are_asked_for_where_they_stood():
    text = make_text(2, 4)
    chosen_BT = torch.zeros(2, 4, dtype=torch.bool)
    chosen_BT[1, 2] = True
    target = Target.here(text.ids_BT, chosen_BT)
    assert target.at_X.tolist() == [6] and target.id_X.tolist() == [text.ids_BT[1, 2].item()]


def test_columns_and_behind_keep_who_sees_whom():
    text = make_text(2, 5)
    text.open_BT, text.segment_BT = torch.rand(2, 5) > 0.5, torch.tensor([[1, 1, 2, 2, 2]] * 2)
    cut = text.columns(1, 4)
    for name in ("ids_BT", "valid_BT", "phi_BT", "open_BT", "segment_BT"):
        assert torch.equal(getattr(cut, name), getattr(text, name)[:, 1:4])
    more = text.behind(3, open=True)
    assert more.open_BT[:, :3].all() and torch.equal(more.columns(3, None).open_BT, text.open_BT)
    assert not more.segment_BT[:, :3].any() and torch.equal(more.columns(3, None).ids_BT, text.ids_BT)
    assert not more.targets()[:, :3].any() and not more.ragged
    assert text.behind(2, torch.tensor([[True, False]] * 2)).ragged


@pytest.mark.parametrize("T", [6, 2])
def test_the_mask_is_its_definition(T):
    """Every pair of columns, one by one."""
    torch.manual_seed(1)
    S = 6
    valid_BS, open_BT = torch.rand(8, S) > 0.2, torch.rand(8, T) > 0.6
    segment_BT = torch.randint(0, 3, (8, T)) if T == S else None
    bias = seen_bias(valid_BS, T, torch.float64, open_BT, segment_BT)[:, 0]
    for b in range(8):
        for q in range(S - T, S):
            for k in range(S):
                before = k <= q or (k >= S - T and bool(open_BT[b, k - (S - T)]))
                if segment_BT is not None:
                    before &= segment_BT[b, k].item() in (0, segment_BT[b, q].item())
                sees = k == q or (before and bool(valid_BS[b, k]))
                assert (bias[b, q - (S - T), k] == 0) == sees


def hidden(lm, text: Text) -> torch.Tensor:
    with torch.no_grad():
        return lm.hidden(text)


@pytest.fixture(params=["gpt2", "llama", "neox", "opt_350m", "gemma3"])
def lm(request):
    if request.param == "gpt2":
        return make_language()
    if request.param != "llama":
        return make_family(request.param)
    import transformers
    from conftest import nudge

    from src.language.llama import Llama

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48}
    config = transformers.LlamaConfig(
        **sizes, num_key_value_heads=2, vocab_size=131, bos_token_id=0, eos_token_id=1, pad_token_id=2
    )
    return nudge(Llama(transformers.LlamaForCausalLM(config), Characters()).double()).eval()


def test_texts_of_one_row_are_as_if_alone(lm):
    """Three texts in a row, with padding inside: states as in rows of their own, positions from 0 again."""
    alone = [make_text(1, n, seed=n) for n in (4, 6, 3)]
    states = [hidden(lm, text) for text in alone]
    ids = torch.cat([alone[0].ids_BT, torch.tensor([[2, 2]]), alone[1].ids_BT, alone[2].ids_BT], 1)
    segment = torch.tensor([[1] * 6 + [2] * 6 + [3] * 3])
    row = text_of(ids, ids != 2)
    row.segment_BT = segment
    together = hidden(lm, row)
    for state, columns in zip(states, (slice(0, 4), slice(6, 12), slice(12, 15)), strict=True):
        torch.testing.assert_close(together[:, columns], state, **EXACT)


def test_what_belongs_to_all_texts_stands_before_each(lm):
    common, texts = make_text(1, 3, seed=9), [make_text(1, n, seed=n) for n in (4, 6)]
    want = [hidden(lm, text_of(torch.cat([common.ids_BT, text.ids_BT], 1)))[:, 3:] for text in texts]
    row = text_of(torch.cat([common.ids_BT, *(text.ids_BT for text in texts)], 1))
    row.segment_BT = torch.tensor([[0] * 3 + [1] * 4 + [2] * 6])
    got = hidden(lm, row)
    torch.testing.assert_close(got[:, 3:7], want[0], **EXACT)
    torch.testing.assert_close(got[:, 7:], want[1], **EXACT)


def test_an_open_beginning_is_read_both_ways_and_nothing_behind_it_is(lm):
    text = make_text(1, 7)
    text.open_BT = torch.arange(7)[None] < 4
    before = hidden(lm, text)
    for changed, first in ((2, 0), (5, 5)):  # a token of the beginning moves all of it, a later one only what follows
        other = Text(text.ids_BT.clone(), text.valid_BT, text.phi_BT, open_BT=text.open_BT)
        other.ids_BT[0, changed] = 3 + (other.ids_BT[0, changed] + 1) % 100
        moved = (hidden(lm, other) - before).abs().amax(-1)[0] > 1e-9
        assert moved.tolist() == [t >= first for t in range(7)]


def test_nothing_open_is_plain(lm):
    text = make_text(2, 6)
    plain = hidden(lm, text)
    text.open_BT = torch.zeros_like(text.valid_BT)
    torch.testing.assert_close(hidden(lm, text), plain, **EXACT)


def test_an_open_text_with_padding_is_as_without(lm):
    text = make_text(1, 5)
    text.open_BT = torch.ones_like(text.valid_BT)
    want = hidden(lm, text)
    longer = text_of(torch.cat([text.ids_BT, torch.full((1, 3), 2)], 1))
    longer.valid_BT[:, 5:] = False
    longer.open_BT = torch.ones_like(longer.valid_BT)
    torch.testing.assert_close(hidden(lm, longer)[:, :5], want, **EXACT)


def test_a_cache_cannot_go_on_with_what_earlier_columns_should_have_seen(lm):
    text = make_text(1, 4)
    cache = Cache(1, 8)
    lm.hidden(text, cache)
    text.open_BT = torch.ones_like(text.valid_BT)
    with pytest.raises(ValueError, match="first pass"):
        lm.hidden(text, cache)
