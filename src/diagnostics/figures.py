"""The figures of ``src.explain``. Each reads what mechanisms note by its name, never which mechanism noted it.

"attention", occlusion             where in the picture each word comes from
"visual_gate", "language_gate"     openness per layer and class of word
"logit_share"                      how much of the logits the picture moves, per word
"tanh_gate"                        gates over depth, and over training from the run's log
"prefix"                           prefix vectors as the nearest words
"pooler"                           what each pooled query looks at
"""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from src.diagnostics.reading import Reading
from src.records.files import verify, write_bytes
from src.text.word_classes import NAMES, word_class

COLUMNS = 6  # of a figure with one panel per word
QUERIES = 24  # pooled queries shown


def save(figure: Figure, path: Path) -> Path:
    """Write the figure as PNG, whole or not at all."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, bbox_inches="tight", facecolor="white")
    plt.close(figure)
    write_bytes(path, buffer.getvalue())
    return path


def word_maps(picture: Image.Image, words: Sequence[str], maps_Wyx: Tensor, title: str) -> Figure:
    """The picture once per word, lit where the map is high; every word has its own scale."""
    panels = len(words) + 1
    rows = -(-panels // COLUMNS)
    figure, axes = plt.subplots(rows, COLUMNS, figsize=(1.9 * COLUMNS, 2.15 * rows), squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    grey = picture.convert("L").convert("RGB")
    axes.flat[0].imshow(picture)
    axes.flat[0].set_title("picture", fontsize=9)
    for axis, word, map_yx in zip(axes.flat[1:], words, maps_Wyx, strict=False):
        axis.imshow(grey, alpha=0.55)
        shown = upsampled(map_yx.clamp_min(0), picture.size)
        axis.imshow(shown, cmap="inferno", alpha=0.6, vmin=0, vmax=max(float(shown.max()), 1e-9))
        axis.set_title(word, fontsize=11)
    figure.suptitle(title, fontsize=10, x=0.02, ha="left")
    return figure


def upsampled(map_yx: Tensor, size: tuple[int, int]) -> np.ndarray:
    """The map at the size (width, height) of a picture, bilinear."""
    return F.interpolate(map_yx[None, None].float(), size=size[::-1], mode="bilinear")[0, 0].cpu().numpy()


def gate_openness(readings: Sequence[Reading], name: str) -> Figure | None:
    """Mean of the gate and share that is exactly shut, per layer (rows) and class of the word being said (columns)."""
    rows = defaultdict(list)  # (layer, class) -> values
    for reading in readings:
        for layer, gate_BKTD in enumerate(reading.aux.get(name, [])):
            for word, columns in zip(reading.words, reading.columns, strict=True):
                rows[layer, word_class(word)].append(gate_BKTD[0][:, columns].float().flatten())
    if not rows:
        return None
    layers = 1 + max(layer for layer, _ in rows)
    classes = [c for c in NAMES if (0, c) in rows]
    mean, shut = np.zeros((layers, len(classes))), np.zeros((layers, len(classes)))
    for (layer, word_kind), values in rows.items():
        values = torch.cat(values)
        mean[layer, classes.index(word_kind)] = values.mean()
        shut[layer, classes.index(word_kind)] = (values == 0).float().mean()
    size = (4 + 1.4 * len(classes), 1.6 + 0.5 * layers)
    figure, axes = plt.subplots(1, 2, figsize=size, layout="constrained")  # else the right labels lie on the left map
    for axis, table, what in zip(axes, (mean, shut), ("mean", "share exactly shut"), strict=True):
        _table(axis, table, classes, f"{name.replace('_', ' ')}: {what}")
    return figure


def _table(axis, table: np.ndarray, classes: Sequence[str], title: str) -> None:
    axis.imshow(table, cmap="viridis", vmin=0, vmax=1, aspect="auto")
    for (y, x), value in np.ndenumerate(table):
        axis.text(x, y, f"{value:.2f}", ha="center", va="center", color="white" if value < 0.6 else "black", fontsize=9)
    axis.set_xticks(range(len(classes)), classes, rotation=30, ha="right")
    axis.set_yticks(range(len(table)), [f"block {i}" for i in range(len(table))])
    axis.set_title(title, fontsize=10)


def logit_share(readings: Sequence[Reading]) -> Figure | None:
    """The picture's share of the variance of the logits, by class of the word being said."""
    shares = defaultdict(list)
    for reading in readings:
        for share_BT in reading.aux.get("logit_share", []):
            for word, columns in zip(reading.words, reading.columns, strict=True):
                shares[word_class(word)] += share_BT[0, columns].tolist()
    if not shares:
        return None
    classes = [c for c in NAMES if c in shares]
    figure, axis = plt.subplots(figsize=(1.2 + 1.1 * len(classes), 3))
    axis.boxplot([shares[c] for c in classes], tick_labels=[f"{c}\n(n={len(shares[c])})" for c in classes])
    axis.set_ylim(0, 1)
    axis.set_ylabel("share of the logits' variance")
    axis.set_title("what the picture's logits contribute, by word", fontsize=10)
    return figure


def tanh_gates(readings: Sequence[Reading], run: Path) -> Figure | None:
    """tanh(alpha) and tanh(beta) over depth at the end, and over training."""
    gates = readings[0].aux.get("tanh_gate", [])
    if not gates:
        return None
    depth = torch.stack(gates).cpu()
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
    for column, name in enumerate(("attention", "feed-forward")):
        left.plot(range(len(depth)), depth[:, column].abs(), "o-", label=name)
    left.set(xlabel="inserted layer", ylabel="|tanh gate|", title="over depth")
    left.legend()
    for name, (steps, values) in logged(run, "fusion/tanh_").items():
        right.plot(steps, values, "-" if "alpha" in name else "--", label=name.removeprefix("fusion/tanh_"))
    right.set(xlabel="step", title="over training")
    if right.lines:
        right.legend(fontsize=7, ncols=2)
    return figure


def logged(run: Path, prefix: str) -> dict[str, tuple[list[float], list[float]]]:
    """Steps and values of every column of the run's log that begins with ``prefix``; empty without such a log."""
    path = run / "log" / "metrics.csv"
    verify(run, "log")
    curves: dict[str, tuple[list[float], list[float]]] = {}
    if not path.is_file():
        return curves
    with open(path, encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            for name, value in row.items():
                if name.startswith(prefix) and value:
                    steps, values = curves.setdefault(name, ([], []))
                    steps.append(float(row["step"]))
                    values.append(float(value))
    return curves


def prefix_words(readings: Sequence[Reading], embeddings_VD: Tensor, tokenizer) -> Figure | None:
    """Nearest word (cosine) of every prefix vector, one column per picture; similarity as the shade."""
    prefixes = [reading.aux["prefix"][0][0].detach().float() for reading in readings if "prefix" in reading.aux]
    if not prefixes:
        return None
    unit_VD = F.normalize(embeddings_VD.detach().float(), dim=-1)
    similarity, nearest = zip(*((F.normalize(p, dim=-1) @ unit_VD.T).max(-1) for p in prefixes), strict=True)
    table = torch.stack(similarity, 1).cpu().numpy()  # (P, pictures)
    figure, axis = plt.subplots(figsize=(1.5 + 1.3 * len(prefixes), 0.6 + 0.32 * len(table)))
    axis.imshow(table, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for (y, x), value in np.ndenumerate(table):
        word = tokenizer.decode([int(nearest[x][y])]).strip() or "(none)"
        axis.text(x, y, word, ha="center", va="center", fontsize=8, color="white" if value > 0.6 else "black")
    axis.set_xticks(range(len(prefixes)), [f"picture {i + 1}" for i in range(len(prefixes))])
    axis.set_yticks(range(len(table)), [f"{i + 1}" for i in range(len(table))])
    axis.set_ylabel("prefix vector")
    axis.set_title("nearest words (shade: cosine)", fontsize=10)
    return figure


def pooler_maps(picture: Image.Image, reading: Reading, grids) -> Figure | None:
    """What pooled queries look at: the first ones, each on its own scale. ``grids``: (Q, N) -> (Q, side, side)."""
    if "pooler" not in reading.aux:
        return None
    maps = grids(reading.aux["pooler"][0][0].float())
    if maps is None:
        return None
    kept = maps[torch.linspace(0, len(maps) - 1, min(QUERIES, len(maps))).round().long()]
    return word_maps(picture, [f"query {i + 1}" for i in range(len(kept))], kept, f"{len(maps)} pooled queries, some")
