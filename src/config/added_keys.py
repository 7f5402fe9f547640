"""Options that were added after commit 25be8f1: the value that computes what was computed without them."""

from __future__ import annotations

ABSENT: dict[str, object] = {
    "src.fusion.srau.SRAU.encoder_form": "early",
}
