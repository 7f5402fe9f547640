"""From readings of pictures to PNG files."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from src.diagnostics import figures
from src.diagnostics.reading import grids


def draw(captioner, run: Path, named: dict, readings: dict, folder: Path) -> list[Path]:
    """All figures that the readings allow, in ``folder``: ``<kind>-<name>.png`` of one picture, ``<kind>.png`` of all.

    ``named``: pixels (3, size, size) by name, ``readings`` by the same names; ``run``: whose log knows how gates moved.
    """
    written = []

    def keep(figure, name: str) -> None:
        if figure is not None:
            written.append(figures.save(figure, folder / f"{name}.png"))

    for name, reading in readings.items():
        picture = Image.fromarray(named[name].permute(1, 2, 0).numpy()).resize((224, 224))
        caption = " ".join(reading.words[:-1])  # without the end
        if reading.attention is not None:
            keep(
                figures.word_maps(picture, reading.words, reading.attention, f"attention: {caption}"),
                f"attention-{name}",
            )
        if reading.back is not None:
            title = f"attention back, of the picture to each word: {caption}"
            keep(figures.word_maps(picture, reading.words, reading.back, title), f"attention_back-{name}")
        if reading.occlusion is not None:
            title = f"log-probability lost where grey: {caption}"
            keep(figures.word_maps(picture, reading.words, reading.occlusion, title), f"occlusion-{name}")
        keep(figures.pooler_maps(picture, reading, grids), f"pooler-{name}")
    every = list(readings.values())
    for gate in ("visual_gate", "language_gate"):
        keep(figures.gate_openness(every, gate), gate)
    keep(figures.logit_share(every), "logit_share")
    keep(figures.tanh_gates(every, run), "tanh_gates")
    keep(figures.prefix_words(every, captioner.language.unembedding().cpu(), captioner.tokenizer), "prefix_words")
    return written
