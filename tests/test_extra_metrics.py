"""The metrics that may be missing: names, reasons instead of errors, and scores that stay with their pictures."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT

from src.errors import UserError
from src.metrics import extra
from src.metrics.extra import CLIP, CLIP_REPOSITORY, METRICS, available, check_names, extra_scores

REFERENCES = {"b": ["a dog", "one dog"], "a": ["a cat"]}
PREDICTIONS = {"a": "cat", "b": "dog"}


@pytest.fixture
def random_clip(tmp_path) -> dict:
    """A small CLIP model without weights."""
    config = {
        "embed_dim": 8,
        "vision_cfg": {"image_size": 16, "layers": 1, "width": 16, "head_width": 8, "patch_size": 8},
        "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 8, "heads": 1, "layers": 1},
    }
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
    return {"model": f"local-dir:{tmp_path}", "pretrained": None}


def test_names_are_checked_without_loading_anything():
    assert check_names(["meteor", "spice"]) == ["meteor", "spice"] and check_names("clipscore") == ["clipscore"]
    with pytest.raises(UserError, match=r"no extra metric 'bertscore'; .* knows meteor, spice, clipscore"):
        check_names(["meteor", "bertscore"])
    with pytest.raises(UserError, match="no extra metric"):
        extra_scores(["bertscore"], PREDICTIONS, REFERENCES)
    code = "import sys, src.metrics.extra; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=60).returncode == 0


def test_nothing_asked_for_is_nothing():
    scores = extra_scores([], PREDICTIONS, REFERENCES)
    assert (scores.corpus, scores.per_image, scores.reasons) == ({}, {"b": {}, "a": {}}, {})


def test_what_cannot_run_is_none_with_a_reason(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    scores = extra_scores(METRICS, PREDICTIONS, REFERENCES)
    assert scores.corpus == {"METEOR": None, "SPICE": None, "CLIPScore": None, "RefCLIPScore": None}
    assert scores.per_image == {"b": {}, "a": {}}
    assert scores.reasons["METEOR"].startswith("METEOR needs Java")
    assert scores.reasons["SPICE"].startswith("SPICE needs Java")
    assert scores.reasons["RefCLIPScore"] == "CLIPScore looks at the pictures, and none are given."
    assert scores.reasons["METEOR"] == available("meteor") and scores.reasons["SPICE"] == available("spice")


def test_an_unexpected_error_is_a_reason_and_the_others_go_on(monkeypatch):
    def broken(*arguments):
        raise RuntimeError("out of\nmemory")

    monkeypatch.setattr(extra, "meteor_statistics", broken)
    monkeypatch.setattr(extra, "spice", lambda said, known: [0.25, 0.75])
    scores = extra_scores(["meteor", "spice"], PREDICTIONS, REFERENCES)
    assert scores.corpus == {"METEOR": None, "SPICE": 0.5}
    assert scores.reasons == {"METEOR": "METEOR failed unexpectedly (RuntimeError: out of)."}
    assert scores.per_image == {"b": {"SPICE": 0.25}, "a": {"SPICE": 0.75}}


def test_captions_meet_their_references_and_meteor_is_no_mean(monkeypatch):
    seen = []
    counts = np.zeros((2, 23), dtype=int)
    counts[0, [0, 1, 4, 5, 21, 22]] = 1  # one word, matched
    counts[1, [0, 1]] = 3  # three words, none matched
    monkeypatch.setattr(extra, "meteor_statistics", lambda said, known: seen.append((said, known)) or counts)
    scores = extra_scores(["meteor"], PREDICTIONS, REFERENCES)
    assert seen == [(["dog", "cat"], [["a dog", "one dog"], ["a cat"]])]
    assert scores.per_image == {
        "b": {"METEOR": 1.0, "METEOR counts": counts[0].tolist()},
        "a": {"METEOR": 0.0, "METEOR counts": counts[1].tolist()},
    }
    assert scores.corpus == {"METEOR": pytest.approx(0.25)}  # a quarter of the words


def test_random_weights_are_called_meaningless(random_clip):
    asked = []

    def pictures(id, preprocessing):
        asked.append(id)
        generator = torch.Generator().manual_seed(ord(id))
        side = preprocessing["size"]
        return torch.randint(0, 256, (3, side, side), dtype=torch.uint8, generator=generator)

    scores = extra_scores(["clipscore"], PREDICTIONS, REFERENCES, pictures, random_clip)
    assert asked == ["b", "a"] and set(scores.per_image["a"]) == {"CLIPScore", "RefCLIPScore"}
    for name in ("CLIPScore", "RefCLIPScore"):
        mean = (scores.per_image["a"][name] + scores.per_image["b"][name]) / 2
        assert scores.corpus[name] == pytest.approx(mean) and "means nothing" in scores.notes[name]
    assert scores.reasons == {}


def test_a_picture_that_cannot_be_read_is_a_reason(random_clip):
    def pictures(id, preprocessing):
        raise UserError(f"The picture {id} is damaged.")

    scores = extra_scores(["clipscore"], PREDICTIONS, REFERENCES, pictures, random_clip)
    assert scores.corpus["CLIPScore"] is None and scores.reasons["CLIPScore"] == "The picture b is damaged."


def test_availability_of_clipscore(monkeypatch, tmp_path):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda repository, file: None)
    assert available("clipscore").startswith("CLIPScore's weights ViT-B-32:openai are not on this machine; its first")
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda repository, file: str(Path(tmp_path) / file))
    assert available("clipscore") is None
    monkeypatch.setattr(extra, "find_spec", lambda name: None)
    assert available("clipscore") == "CLIPScore needs a package: pip install open_clip_torch."


def test_the_usual_weights_are_where_open_clip_looks():
    import open_clip
    from open_clip.constants import HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME

    assert open_clip.get_pretrained_cfg(CLIP["model"], CLIP["pretrained"])["hf_hub"] == f"{CLIP_REPOSITORY}/"
    source = Path(extra.__file__).read_text(encoding="utf-8")
    assert f'"{HF_SAFE_WEIGHTS_NAME}"' in source and f'"{HF_WEIGHTS_NAME}"' in source
