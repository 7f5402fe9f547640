"""One caption, read again word by word with all diagnostics on.

attention   what the mechanism itself notes: its weights over picture tokens, mean over heads, layers and levels.
            Weights are no explanation by themselves (Jain & Wallace 2019, arXiv 1902.10186); hence also
occlusion   how much the log-probability of each word falls when a square of the picture is painted grey (Zeiler &
            Fergus 2014, arXiv 1311.2901, section 2): works for every mechanism, with or without attention
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace

import torch
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor

from src.captioner import Captioner
from src.contracts import Batch, Memory, Target, Text
from src.fusion.base import Reader
from src.layers.notes import Aux, noted
from src.projectors.base import Projector
from src.text.normalise import normalise_caption

GREY = 128
END = "(end)"


@dataclass
class Reading:
    """W words of one caption; maps are (W, side, side). ``columns``: for each word, the text columns that made it.

    ``back``: how much the tokens of the picture look at each word, of who reads both ways; of these there is no
    ``occlusion``, which asks for the next word. ``aux``: everything noted by encode and decode (or read), as the
    mechanisms document it.
    """

    words: list[str]
    columns: list[list[int]]
    attention: Tensor | None
    occlusion: Tensor | None
    aux: dict[str, list[Tensor]]
    back: Tensor | None = None


@torch.no_grad()
def read(captioner: Captioner, pixels_3hw: Tensor, said: str | None = None, squares: int = 8) -> Reading:
    """Caption a picture, uint8 (3, size, size), and look at how. ``squares`` x ``squares`` of it are painted over.

    Who reads both ways reads what is ``said`` of it; None: the caption that it fills in. Raises UserError for one that
    can do neither.
    """
    captioner.eval()
    if isinstance(captioner.fusion, Reader):
        return _both_ways(captioner, pixels_3hw, said)
    batch = Batch(["picture"], captioner.start(1, captioner.device), pixels_3hw[None, None].to(captioner.device))
    with captioner.autocast():
        (ids,) = captioner.generate(batch)
    prompt = batch.text
    text = _continued(prompt, [*ids, captioner.tokenizer.eos])
    aux: dict[str, list[Tensor]] = {}
    memory = captioner.memory(batch, aux)
    captioner.fusion.decode(captioner.language, memory, text.columns(None, -1), aux=aux)
    words, tokens = words_of(captioner.tokenizer, ids)
    words, tokens = [*words, END], [*tokens, [len(ids)]]  # why a caption stops is worth a look too
    ahead = prompt.ids_BT.shape[1] - 1  # token j was made by column ahead + j
    columns = [[ahead + j for j in group] for group in tokens]
    _over_picture(captioner.projector, aux)
    attention_TN = _attention(aux)
    maps = None if attention_TN is None else grids(_by_word(attention_TN, columns))
    falls_XT = _occlusion(captioner, batch.pixels_IM3hw, text, squares)[:, ahead:]
    occlusion_WX = _by_word(falls_XT.T, tokens, total=True)
    reading = Reading(words, columns, maps, occlusion_WX.unflatten(-1, (squares, squares)), aux)
    return move_data_to_device(reading, torch.device("cpu"))  # where figures are drawn


def _both_ways(captioner: Captioner, pixels_3hw: Tensor, said: str | None) -> Reading:
    batch = Batch(["picture"], captioner.start(1, captioner.device), pixels_3hw[None, None].to(captioner.device))
    with captioner.autocast():
        ids = captioner.generate(batch)[0] if said is None else captioner.tokenizer.encode([normalise_caption(said)])[0]
    text, aux = _continued(batch.text, [*ids, captioner.tokenizer.eos]), {}
    memory = captioner.memory(batch, aux)
    captioner.fusion.read(captioner.language, memory, replace(text, open_BT=torch.ones_like(text.valid_BT)), aux)
    words, tokens = words_of(captioner.tokenizer, ids)
    columns = [[1 + j for j in group] for group in tokens]  # each where it stands
    aux["attention_back"] = [weights_BHNT.transpose(2, 3) for weights_BHNT in aux.get("attention_back", [])]
    _over_picture(captioner.projector, aux)
    maps = []
    for name in ("attention", "attention_back"):
        weights_TN = _attention(aux, name)
        maps.append(None if weights_TN is None else grids(_by_word(weights_TN, columns)))
    reading = Reading([*words, END], columns, maps[0], None, aux, maps[1])
    return move_data_to_device(reading, torch.device("cpu"))


def words_of(tokenizer, ids: list[int]) -> tuple[list[str], list[list[int]]]:
    """The caption's words, and which of its tokens spell each: a token that begins with a space begins a word."""
    words: list[str] = []
    tokens: list[list[int]] = []
    for j in range(len(ids)):
        piece = tokenizer.decode(ids[: j + 1])[len(tokenizer.decode(ids[:j])) :]
        if not words or piece.startswith(" "):
            words.append("")
            tokens.append([])
        words[-1] += piece
        tokens[-1].append(j)
    return [word.strip() for word in words], tokens


def _continued(prompt: Text, ids: list[int]) -> Text:
    """The prompt and the caption after it; the caption looks at the picture that the prompt ended with."""
    new_BT = torch.tensor([ids], device=prompt.ids_BT.device, dtype=torch.long)
    ones_BT = torch.ones_like(new_BT)
    return Text(
        torch.cat([prompt.ids_BT, new_BT], 1),
        torch.cat([prompt.valid_BT, ones_BT.bool()], 1),
        torch.cat([prompt.phi_BT, ones_BT * prompt.phi_BT[:, -1:]], 1),
    )


def _over_picture(projector: Projector | None, aux: Aux) -> None:
    """Weights over vectors that lie nowhere as weights over the encoder's tokens, of which these were made.

    Where nothing tells (vectors of the pooled feature) they are left out: so many vectors are no grid. What the
    projector's own queries look at is shown where the mechanism has none.
    """
    if projector is None or projector.laid_out:
        return
    projected_IPN = noted(aux, "projected")
    for name in ("attention", "attention_back", "pooler"):
        noted_here = aux.pop(name, [])
        if projected_IPN is not None and noted_here:
            aux[name] = [weights @ projected_IPN[0].to(weights.dtype) for weights in noted_here]
    if projected_IPN is not None:
        aux.setdefault("pooler", [projected_IPN])


def _attention(aux: Aux, name: str = "attention") -> Tensor | None:
    """Mean over everything that was noted, (T, N)."""
    noted = [weights_BHTN[0].float().mean(0) for weights_BHTN in aux.get(name, [])]
    return torch.stack(noted).mean(0) if noted else None


def _by_word(values_TX: Tensor, groups: list[list[int]], total: bool = False) -> Tensor:
    """Mean (or sum) over the tokens of each word, (W, X)."""
    if not groups:
        return values_TX[:0]
    return torch.stack([values_TX[group].sum(0) / (1 if total else len(group)) for group in groups])


def grids(maps_WN: Tensor) -> Tensor | None:
    """Tokens as the square grid that they are, (W, side, side); a leading class token is left out."""
    N = maps_WN.shape[-1]
    for extra in (0, 1):
        side = math.isqrt(N - extra)
        if side * side == N - extra:
            return maps_WN[:, extra:].unflatten(-1, (side, side))
    return None


def _occlusion(captioner: Captioner, pixels_IM3hw: Tensor, text: Text, squares: int) -> Tensor:
    """How far the log-probability of every next token falls with each square grey, (X, T-1), X = squares^2."""
    size = pixels_IM3hw.shape[-1]
    edges = [round(i * size / squares) for i in range(squares + 1)]
    covered = [pixels_IM3hw[0]]
    for top, bottom in itertools.pairwise(edges):
        for left, right in itertools.pairwise(edges):
            painted = pixels_IM3hw[0].clone()
            painted[..., top:bottom, left:right] = GREY
            covered.append(painted)
    rows = len(covered)
    many = Text(*(x.expand(rows, -1) for x in (text.ids_BT, text.valid_BT, text.phi_BT)))
    batch = Batch([str(i) for i in range(rows)], many, torch.stack(covered))
    with captioner.autocast():
        memory = captioner.memory(batch)
        logp_BT = log_probabilities(captioner, memory, many)
    return logp_BT[0] - logp_BT[1:]


def log_probabilities(captioner: Captioner, memory: Memory, text: Text) -> Tensor:
    """log p of every token given its pictures and what stands before it, (B, T-1); 0 where nothing is asked for."""
    target, T = Target.next(text), text.ids_BT.shape[1]
    b_X, t_X = target.at_X // T, target.at_X % T
    hidden_BTE = captioner.writer.decode(captioner.language, memory, text.columns(None, -1))
    logits_XV = captioner.fusion.readout(captioner.language, hidden_BTE[b_X, t_X]).float()
    found_X = logits_XV.log_softmax(-1).gather(-1, target.id_X[:, None])[:, 0]
    return found_X.new_zeros(hidden_BTE.shape[:2]).index_put((b_X, t_X), found_X)
