"""Where each word sees the picture: sums, sites, what is left when they are cut, and the command."""

from __future__ import annotations

import pytest
import torch
from conftest import FUSIONS, make_fusion, make_language, make_text, make_visual

from src.diagnostics.sites import depths, watched

SIGHTED = [name for name in FUSIONS if name != "blind"]
VARIANTS = [
    *[(name, ()) for name in SIGHTED],
    ("clipcap", ("fusion.mapper=transformer",)),
    ("clipcap", ("fusion.prefix_length=1",)),
    ("prefix", ("fusion.open=true",)),
    ("cross_attention", ("fusion.every=2",)),
    ("srau_paper", ("fusion.gate=none",)),
    ("flamingo", ("fusion.every=2",)),
]
BLOCKS = 3  # of the language model
DOORS = {"clipcap": {"input", "block"}, "prefix": {"block"}}  # of all others: crossings
EXACT = {"rtol": 0, "atol": 1e-10}


# --------------------------------------------------------------------------------------------------------------------
# sites
# --------------------------------------------------------------------------------------------------------------------
@pytest.fixture(params=VARIANTS, ids=lambda v: "-".join([v[0], *(o.split(".")[-1] for o in v[1])]))
def decoded(request):
    """Name of a mechanism; and of two texts, one of them short, with each of two pairs of pictures: what is decoded,
    (2, 2, T, D), and the sites, where some are changed."""
    name, overrides = request.param
    language = make_language(layers=BLOCKS)
    fusion = make_fusion(name, language, *overrides)
    text, memory = make_text(4, 7), fusion.encode(language, make_visual(4))
    text.ids_BT[2:] = text.ids_BT[:2].clone()
    text.valid_BT[::2, -2:] = False

    def decode(changed=(), swap=False):
        with torch.no_grad(), watched(fusion, language, changed, swap) as lm:
            hidden_BTE = fusion.decode(lm.language, memory, text)
        return (hidden_BTE * text.valid_BT[:, :, None]).unflatten(0, (2, 2)), lm.sites

    with torch.no_grad():
        plain_BTE = fusion.decode(language, memory, text) * text.valid_BT[:, :, None]
    return name, decode, plain_BTE.unflatten(0, (2, 2))


def test_watching_changes_nothing_and_finds_where_pictures_are_read(decoded):
    name, decode, plain = decoded
    found, sites = decode()
    torch.testing.assert_close(found, plain, **EXACT)
    assert [site.order for site in sites] == list(range(len(sites)))
    assert {site.kind for site in sites} == DOORS.get(name, {"crossing"})
    deep = depths(sites, BLOCKS)
    assert deep == sorted(deep) and 0 <= deep[0] <= deep[-1] <= 1


def test_every_site_matters_and_without_any_a_model_is_blind(decoded):
    _, decode, plain = decoded
    _, sites = decode()
    for site in sites:
        cut, again = decode([site])
        assert again == sites and (cut - plain).abs().max() > 1e-3
        assert (cut[0] - cut[1]).abs().max() > 1e-3 or len(sites) == 1
    blind, _ = decode(sites)
    torch.testing.assert_close(blind[0], blind[1], **EXACT)
    assert (plain[0] - plain[1]).abs().max() > 1e-2


def test_with_all_sites_swapped_a_picture_is_the_other(decoded):
    _, decode, plain = decoded
    _, sites = decode()
    torch.testing.assert_close(decode(sites, swap=True)[0][0], plain[1], **EXACT)
    for site in sites:
        swapped, again = decode([site], swap=True)
        assert again == sites and (swapped[0] - plain[0]).abs().max() > 1e-3


def test_whoever_does_not_see_has_no_site():
    language = make_language()
    fusion = make_fusion("blind", language)
    with watched(fusion, language) as lm:
        fusion.decode(lm.language, fusion.encode(language, make_visual(2)), make_text(2, 5))
    assert lm.sites == []


def test_what_reads_after_the_last_block_lies_deeper():
    language = make_language(layers=BLOCKS)
    fusion = make_fusion("vcgpt", language)
    memory = fusion.encode(language, make_visual(2))
    with watched(fusion, language) as lm:
        fusion.decode(lm.language, memory, make_text(2, 5))
    assert depths(lm.sites, BLOCKS) == pytest.approx([3 / 5, 4 / 5, 1])
