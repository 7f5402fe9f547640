"""CLIPScore and RefCLIPScore: the formulas, a small CLIP model with random weights, and weights that cannot be had."""

from __future__ import annotations

import json
import math
import socket
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

from src.data.images import load_picture
from src.errors import UserError
from src.metrics.clip_score import PROMPT, ClipScorer, clip_scores

MODEL = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}
CAPTIONS = ["a dog runs", "", "two cats on a red sofa and then many more words than the context holds \U0001f642"]
REFERENCES = [["the dog is running", "a dog runs"], ["nothing"], ["cats", "a sofa with cats", "red"]]


def cosine(one: list[float], other: list[float]) -> float:
    return sum(x * y for x, y in zip(one, other, strict=True)) / math.hypot(*one) / math.hypot(*other)


def slowly(image: list[float], caption: list[float], references: list[list[float]]) -> tuple[float, float]:
    """The two formulas of the paper's section 3, for one picture."""
    clip = 2.5 * max(cosine(image, caption), 0)
    text = max(max(cosine(caption, reference) for reference in references), 0)
    return clip, 0 if clip == 0 or text == 0 else 2 / (1 / clip + 1 / text)


def test_formulas():
    generator = torch.Generator().manual_seed(0)
    image_BE, caption_BE = torch.randn(2, 40, 3, generator=generator, dtype=torch.float64)
    references = [torch.randn(1 + n % 4, 3, generator=generator, dtype=torch.float64) for n in range(40)]
    triples = zip(image_BE.tolist(), caption_BE.tolist(), [own.tolist() for own in references], strict=True)
    expected = [slowly(*triple) for triple in triples]
    clip_B, both_B = clip_scores(image_BE, caption_BE, references)
    assert clip_B.tolist() == pytest.approx([clip for clip, _ in expected], abs=1e-12)
    assert both_B.tolist() == pytest.approx([both for _, both in expected], abs=1e-9)
    assert 0 in clip_B.tolist() and max(clip_B.tolist()) > 2 and 0 in both_B.tolist()


def test_known_values():
    """A caption that is its picture and its reference: 2.5, and 2 * 2.5 / 3.5."""
    one = torch.tensor([[3.0, 4.0]])
    assert [score.item() for score in clip_scores(one, 2 * one, [-one])] == pytest.approx([2.5, 0])
    assert [score.item() for score in clip_scores(one, 2 * one, [one])] == pytest.approx([2.5, 5 / 3.5])


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder with a small model (without weights) and three pictures."""
    folder = tmp_path_factory.mktemp("clip")
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": MODEL, "preprocess_cfg": {}}))
    for number in range(3):
        Image.effect_noise((50 + 9 * number, 40), 60 + 30 * number).convert("RGB").save(folder / f"{number}.png")
    return folder


def load(folder: Path):
    return lambda id, how: load_picture(folder / f"{id}.png", how)


@pytest.fixture
def scorer(folder) -> ClipScorer:
    """Random weights under which pictures and texts are on the same side, so that scores are not 0."""
    scorer = ClipScorer(f"local-dir:{folder}", None)
    image_BE = scorer.embed_pictures([load(folder)(str(n), scorer.preprocessing) for n in range(3)])
    sides_BE = image_BE.sign() * scorer.embed_texts(CAPTIONS).sign()
    with torch.no_grad():
        scorer.model.visual.proj.mul_(sides_BE.mean(0).sign())
    return scorer


def test_scores_of_a_model_are_those_of_the_library(folder, scorer):
    """One picture and one text at a time, through open_clip's own transforms, against batches through ours."""
    import open_clip
    from open_clip.transform import PreprocessCfg, image_transform_v2

    transform = image_transform_v2(PreprocessCfg(size=32), is_train=False)
    tokenizer = open_clip.SimpleTokenizer(context_length=12)

    def embed(text: str) -> list[float]:
        return scorer.model.encode_text(tokenizer([PROMPT + text]))[0].tolist()

    expected = []
    with torch.no_grad():
        for number, (caption, references) in enumerate(zip(CAPTIONS, REFERENCES, strict=True)):
            pixels_13hw = transform(Image.open(folder / f"{number}.png"))[None]
            image = scorer.model.encode_image(pixels_13hw)[0].tolist()
            expected.append(slowly(image, embed(caption), [embed(reference) for reference in references]))
    clip, both = scorer.score(["0", "1", "2"], CAPTIONS, REFERENCES, load(folder))
    assert PROMPT == "A photo depicts "
    assert clip == pytest.approx([one for one, _ in expected], abs=5e-3)  # pixels may differ by one rounding step
    assert both == pytest.approx([other for _, other in expected], abs=5e-3)
    assert min(clip) > 0.3 and max(clip) - min(clip) > 0.1 and not scorer.pretrained


def test_batches_do_not_mix_pictures(folder, scorer, monkeypatch):
    arguments = ["0", "1", "2"], CAPTIONS, REFERENCES, load(folder)
    together = scorer.score(*arguments)
    assert len(set(together[0])) == 3
    monkeypatch.setattr("src.metrics.clip_score.BATCH", 2)
    for one, other in zip(together, scorer.score(*arguments), strict=True):
        assert one == pytest.approx(other, abs=1e-5)


def test_weights_from_a_folder_and_from_a_file(folder, tmp_path, scorer):
    import open_clip

    torch.save(scorer.model.state_dict(), tmp_path / "weights.pt")
    (tmp_path / "small_test_model.json").write_text(json.dumps(MODEL))
    open_clip.add_model_config(tmp_path)
    again = ClipScorer("small_test_model", str(tmp_path / "weights.pt"))
    assert again.pretrained
    assert torch.equal(again.embed_texts(CAPTIONS), scorer.embed_texts(CAPTIONS))
    (tmp_path / "open_clip_config.json").write_text((folder / "open_clip_config.json").read_text())
    torch.save(scorer.model.state_dict(), tmp_path / "open_clip_pytorch_model.bin")
    third = ClipScorer(f"local-dir:{tmp_path}", None)
    assert third.pretrained and torch.equal(third.embed_texts(CAPTIONS), scorer.embed_texts(CAPTIONS))


def test_weights_from_a_repository_of_the_hub(folder, tmp_path, scorer, monkeypatch):
    """One in the local cache; nothing else can be had."""
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    (refs := tmp_path / "models--org--clip" / "refs").mkdir(parents=True)
    (refs / "main").write_text("0" * 40)
    (kept := refs.parent / "snapshots" / ("0" * 40)).mkdir(parents=True)
    (kept / "open_clip_config.json").write_text((folder / "open_clip_config.json").read_text())
    torch.save(scorer.model.state_dict(), kept / "open_clip_pytorch_model.bin")
    again = ClipScorer("hf-hub:org/clip", None)
    assert again.pretrained and torch.equal(again.embed_texts(CAPTIONS), scorer.embed_texts(CAPTIONS))


def test_a_folder_s_tokenizer_runs_no_code(folder, tmp_path, monkeypatch):
    """Nor is anybody asked, on the terminal, whether it may."""
    described = json.loads((folder / "open_clip_config.json").read_text())
    described["model_cfg"]["text_cfg"]["hf_tokenizer_name"] = "org/words"
    (tmp_path / "open_clip_config.json").write_text(json.dumps(described))
    (tmp_path / "config.json").write_text('{"model_type": "own", "auto_map": {"AutoConfig": "own.Own"}}')
    (tmp_path / "tokenizer_config.json").write_text('{"auto_map": {"AutoTokenizer": ["own.Own", null]}}')
    (tmp_path / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Own: pass\n")
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    with pytest.raises(UserError, match=r"tokenizer .*code of its own, which is never run here"):
        ClipScorer(f"local-dir:{tmp_path}", None)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("model", "pretrained", "message"),
    [
        ("ViT-of-nobody", "openai", "knows no architecture 'ViT-of-nobody'"),
        ("ViT-B-32", "nobodys_tag", "^clip.pretrained=nobodys_tag is neither a file nor one of the tags"),
        ("local-dir:/nowhere", None, "no open_clip_config.json"),
    ],
)
def test_mistakes_are_one_sentence(model, pretrained, message):
    with pytest.raises(UserError, match=message) as caught:
        ClipScorer(model, pretrained)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("model", "pretrained", "what"),
    [
        ("ViT-B-32", "openai", "weights ViT-B-32:openai"),
        ("ViT-B-16-SigLIP", None, "weights of ViT-B-16-SigLIP's token"),
    ],
)
def test_what_cannot_be_fetched_is_said_at_once(monkeypatch, tmp_path, model, pretrained, what):
    """The hub's own functions retry for most of a minute without a network."""
    import huggingface_hub

    def no_network(*arguments, **options):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    started = time.monotonic()
    with pytest.raises(UserError, match=what) as caught:
        ClipScorer(model, pretrained)
    assert time.monotonic() - started < 15
    assert "clip.model=local-dir:<folder>" in str(caught.value) and "vision." not in str(caught.value)
