"""Captions per second of open_clip's CoCa beam search at the size "tiny" of conf/benchmark.yaml.

It needs a transformers that still has BeamSearchScorer, so an environment of its own and nothing of this project:

    python -m venv old
    old/bin/pip install torch==2.15.0 torchvision==0.29.2 open_clip_torch==3.3.0 transformers==4.55.4
    old/bin/python experiments/speed/open_clip_beam.py [batch]

20 tokens per caption (the end token is suppressed), 5 beams, 50 visual tokens of width 256, bfloat16 by autocast.
"""

from __future__ import annotations

import os
import statistics
import sys
import time

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as src/__init__.py has it
os.environ.setdefault("GOMP_SPINCOUNT", "2000")

import torch
from open_clip.coca_model import CoCa

BATCH, BEAMS, TOKENS, TURNS = int(sys.argv[1]) if sys.argv[1:] else 16, 5, 20, 5
WIDTH, HEADS, LAYERS, VOCABULARY, CONTEXT = 256, 4, 4, 8192, 128


def make() -> CoCa:
    torch.manual_seed(0)
    text = {"context_length": CONTEXT, "vocab_size": VOCABULARY, "width": WIDTH, "heads": HEADS}
    model = CoCa(
        embed_dim=WIDTH,
        text_cfg={**text, "layers": LAYERS // 2, "embed_cls": True, "output_tokens": True},
        multimodal_cfg={**text, "layers": LAYERS - LAYERS // 2},
        vision_cfg={
            "image_size": 56,  # 7 x 7 patches and a class token: 50 visual tokens, at almost no cost
            "patch_size": 8,
            "layers": 0,
            "width": WIDTH,
            "head_width": WIDTH,
            "attentional_pool": True,
            "output_tokens": True,
        },
    )
    torch.nn.init.normal_(model.text_decoder.text_projection, std=WIDTH**-0.5)  # which the library leaves unset
    return model.eval()


def main() -> None:
    model, pixels_B3hw = make(), torch.randn(BATCH, 3, 56, 56)

    def caption() -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return model.generate(
                pixels_B3hw,
                seq_len=TOKENS + 1,
                min_seq_len=TOKENS,
                num_beams=BEAMS,
                num_beam_groups=1,
                sot_token_id=1,
                eos_token_id=2,
                pad_token_id=0,
            )

    shape = tuple(caption().shape)
    rates = []
    for _ in range(TURNS):
        started = time.perf_counter()
        caption()
        rates.append(BATCH / (time.perf_counter() - started))
    print(f"{statistics.median(rates):.2f} captions/s, beam {BEAMS}, batch {BATCH}, {shape[1]} columns; all: {rates}")


if __name__ == "__main__":
    main()
