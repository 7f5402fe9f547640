"""CLIP: against open_clip's loss and classifier, what a batch may hold, retrieval and names of classes."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import open_clip
import pytest
import torch
from commands import run
from conftest import VISION, Characters, make_fusion, make_language, make_text, make_visual
from PIL import Image

from src.contracts import Batch, Labelled, Memory, Text, UserError, VisionSpec
from src.data.class_folders import ClassFolders
from src.data.scenes import Scenes
from src.fusion.clip import CLIP, START
from src.layers.contrast import contrastive_loss
from src.loading.batches import chance
from src.loading.module import CaptionData
from src.objectives.contrastive import Contrastive
from src.tasks import zero_shot
from src.tasks.zero_shot import ZeroShot, name_vectors, prompts
from src.vision.vit import ViT

LEARNER = SimpleNamespace(training=False)
SMALL = ("debug=smoke", "logger=csv", "trainer.accelerator=cpu", "language.model.width=32", "language.model.layers=1")


def clip(language, **options) -> CLIP:
    return make_fusion("clip", language, *(f"fusion.{name}={value}" for name, value in options.items()))


def walked(fusion: CLIP, language, visual, text):
    return Contrastive().walk(fusion, language, fusion.encode(language, visual), Contrastive().view(batch_of(text), of))


def batch_of(text: Text, pictures: int | None = None) -> Batch:
    return Batch([f"p{i}" for i in range(pictures or len(text.ids_BT))], text)


def of(row: int):
    return SimpleNamespace(random=lambda: 0.0)


def test_the_loss_is_open_clips():
    language = make_language()
    fusion = clip(language, embed_width=12)
    x, y, scale = walked(fusion, language, make_visual(6), make_text(6, 5))
    assert x.shape == y.shape == (6, 12)
    torch.testing.assert_close(x.norm(dim=1), torch.ones(6, dtype=x.dtype))
    loss = Contrastive().loss(LEARNER, (x, y, scale), None)
    torch.testing.assert_close(loss.mean, open_clip.ClipLoss()(x, y, scale), rtol=0, atol=1e-12)
    other = contrastive_loss(y, x, scale, gathered=False)[0]
    torch.testing.assert_close(other, loss.mean, rtol=0, atol=1e-12)  # roles may be exchanged


def test_who_knows_nothing_pays_log_of_all_and_a_caption_of_the_same_picture_is_a_false_wrong_answer():
    same = torch.nn.functional.normalize(torch.ones(6, 4, dtype=torch.float64), dim=1)
    assert contrastive_loss(same, same, torch.tensor(14.0), False)[0].item() == pytest.approx(math.log(6))
    perfect = torch.eye(3, dtype=torch.float64).repeat_interleave(2, 0)  # every picture twice
    assert contrastive_loss(perfect, perfect, torch.tensor(1e3), False)[0].item() == pytest.approx(math.log(2))


def test_the_scale_starts_at_the_papers_and_comes_back_to_its_bound():
    fusion = clip(make_language()).train()
    with torch.no_grad():
        fusion.t.fill_(START)
    assert fusion.scale().item() == pytest.approx(1 / 0.07)
    with torch.no_grad():
        fusion.t.fill_(9.0)
    fusion.scale().backward()
    assert fusion.scale().item() == pytest.approx(100) and fusion.t.grad is not None and fusion.t.grad > 0


def test_a_text_is_read_at_its_end_whatever_stands_behind():
    language = make_language()
    fusion, text = clip(language), make_text(3, 7)
    alone = fusion.embed_texts(language, text.columns(0, 5))
    padded = Text(text.ids_BT, text.valid_BT & (torch.arange(7) < 5), text.phi_BT)
    torch.testing.assert_close(fusion.embed_texts(language, padded), alone, rtol=0, atol=1e-10)
    h_BTD, _ = language.read(text)
    want = torch.nn.functional.normalize(h_BTD[:, -1] @ fusion.W_t.weight.T, dim=1)
    torch.testing.assert_close(fusion.embed_texts(language, text), want, rtol=0, atol=1e-12)


def test_one_caption_of_each_picture_takes_part_and_another_in_every_epoch():
    source = Scenes(train=8, val=2, test=2)
    data = CaptionData(source, Characters(), None, 8, captions_per_image=3, objectives={"contrastive": Contrastive()})
    loader = data.train_dataloader()
    seen = []
    for _ in range(3):
        (batch,) = list(loader)
        text = batch.views["contrastive"].text
        assert len(text.ids_BT) == len(set(batch.ids)) == 8  # as many distinct pictures as texts
        order = sorted(range(8), key=batch.ids.__getitem__)
        rows = [text.ids_BT[i][text.valid_BT[i]].tolist() for i in order]
        own = {Characters().decode(ids): batch.ids[i] for ids, i in zip(rows, order, strict=True)}
        for said, id in own.items():
            assert any(
                caption.startswith(said[:20]) for caption in dict(zip(batch.ids, batch.captions, strict=True))[id]
            )
        seen.append(rows)
    assert seen[0] != seen[1]


def test_documents_are_not_compared():
    batch = batch_of(make_text(2, 4))
    batch.image_valid_IM = torch.ones(2, 2, dtype=torch.bool)
    with pytest.raises(UserError, match="compares single pictures"):
        Contrastive().view(batch, chance(0, 0, batch))


@pytest.mark.parametrize("size", [1, 3, 64])
def test_pictures_encoded_in_pieces_have_the_same_gradients(size):
    torch.manual_seed(0)
    whole = ViT(image_size=16, patch=8, width=16, layers=2, heads=2, stem="patch").double()
    pieces = ViT(image_size=16, patch=8, width=16, layers=2, heads=2, stem="patch", recompute=size).double()
    pieces.load_state_dict(whole.state_dict())
    pixels = torch.randint(0, 256, (7, 1, 3, 16, 16), dtype=torch.uint8)
    kept = {"whole": 0, "pieces": 0}
    for name, vision in (("whole", whole), ("pieces", pieces)):

        def count(x, name=name):
            kept[name] += x.numel()
            return x

        with torch.autograd.graph.saved_tensors_hooks(count, lambda x: x):
            visual = vision(pixels, levels=1)
        loss = (visual.pooled_IMC**2).sum() + visual.levels_IMKNC.sin().sum()
        loss.backward()
    for one, other in zip(whole.parameters(), pieces.parameters(), strict=True):
        torch.testing.assert_close(other.grad, one.grad, rtol=0, atol=1e-10)
    assert kept["pieces"] < kept["whole"] / 5  # what the backward pass needs is computed again
    with torch.no_grad():
        torch.testing.assert_close(pieces(pixels).tokens_IMNC, whole(pixels).tokens_IMNC, rtol=0, atol=1e-12)


# ------------------------------------------------------------------------------------------------------------ zero shot
class Judge:
    """Knows the vectors of names by heart; pictures look like the names that their ids hold."""

    def __init__(self, names):
        self.names = list(names)
        self.fusion, self.language, self.device = self, None, "cpu"

    def eval(self):
        return self

    def autocast(self):
        return torch.autocast("cpu", enabled=False)

    def transfer_batch_to_device(self, x, device, index):
        return x

    def memory(self, batch):
        return Memory(x=torch.stack([self._vector(id) for id in batch.ids]))

    def embed_pictures(self, memory):
        return memory["x"]

    def embed_texts(self, language, text):
        said = [Characters().decode(ids[valid].tolist()) for ids, valid in zip(text.ids_BT, text.valid_BT, strict=True)]
        return torch.stack([self._vector(one) for one in said])

    def _vector(self, text):
        return torch.tensor([float(name in text) for name in self.names])


def folders(root, *names, pictures=2):
    for name in names:
        (root / name).mkdir()
        for number in range(pictures):
            Image.new("RGB", (8, 8)).save(root / name / f"{number}.png")
    return ClassFolders(str(root))


def test_what_is_on_a_picture_is_the_name_most_alike(tmp_path):
    source = folders(tmp_path, "dog", "black_cat")
    (tmp_path / "notes.txt").write_text("no folder")
    assert source.classes() == {"class": ["black cat", "dog"]} and isinstance(source, Labelled)
    data = CaptionData(source, Characters(), None, 2, captions_per_image=1)
    judge = Judge(["dog", "cat"])
    result = ZeroShot().evaluate(SimpleNamespace(captioner=judge, source=source, data=data), "test")
    assert result.scores == {"zero_shot/class": 1.0, "zero_shot/class/chance": 0.5}
    assert [row["caption"] for row in result.rows] == ["black cat", "black cat", "dog", "dog"]
    blind = Judge([])
    blind._vector = lambda text: torch.ones(1)
    result = ZeroShot().evaluate(SimpleNamespace(captioner=blind, source=source, data=data), "test")
    assert result.scores["zero_shot/class"] == 0.5  # ties: the first name for all


def test_vectors_of_names_are_open_clips_classifier():
    language, names = make_language(), ["dog", "black cat", "ring"]
    fusion = clip(language)
    captioner = Judge([])
    captioner.fusion, captioner.language = fusion, language
    data = CaptionData(Scenes(train=2, val=2, test=2), Characters(), None, 2, captions_per_image=1)
    got = name_vectors(SimpleNamespace(captioner=captioner, data=data), "class", names)

    class Theirs:
        def encode_text(self, texts, normalize):
            return fusion.embed_texts(language, texts)

    templates = [lambda name, one=one: one.format(name) for one in prompts("class")]

    def tokenizer(texts):
        text = data.texts([SimpleNamespace(said=one, given="") for one in texts])
        return SimpleNamespace(**{**vars(text), "to": lambda device: text})

    want = open_clip.build_zero_shot_classifier(Theirs(), tokenizer, names, templates, num_classes_per_batch=None)
    torch.testing.assert_close(got.double(), want.T, rtol=0, atol=1e-6)


def test_scenes_say_which_names_are_true():
    source = Scenes(train=2, val=2, test=20)
    for example in source.examples("test"):
        things = example.extra["scene"]["things"]
        assert source.labels(example)["colour"] == {thing["colour"] for thing in things}
    assert len(source.classes()["shape"]) == 6


def test_names_of_imagenets_folders(tmp_path):
    numbers = [f"n{i:08d}" for i in range(1000)]
    for number in numbers:
        (tmp_path / number).mkdir()
    for number in numbers:
        (tmp_path / number / "a.jpg").write_bytes(b"")
    names = ClassFolders(str(tmp_path)).classes()["class"]
    assert set(names) == set(open_clip.IMAGENET_CLASSNAMES) and names[1] == "goldfish" and len(names) < 1000


def test_folders_that_are_none(tmp_path):
    with pytest.raises(UserError, match="does not exist; put a folder of pictures for every name there"):
        ClassFolders(str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="holds no folders with pictures"):
        ClassFolders(str(tmp_path))
    assert folders(tmp_path, "black_cat", "black cat").classes() == {"class": ["black cat"]}


def test_refused_where_nobody_knows_what_is_on_the_pictures(tmp_path):
    fusion = CLIP(VISION, make_language().spec, None)
    captioner, unlabelled = SimpleNamespace(fusion=fusion), SimpleNamespace(name="mine", interleaved=False)
    with pytest.raises(UserError, match="which data=mine does not tell"):
        ZeroShot().check(SimpleNamespace(captioner=captioner, source=unlabelled), "test")
    alone = folders(tmp_path, "dog")
    with pytest.raises(UserError, match="has fewer than two names of kind class"):
        ZeroShot().check(SimpleNamespace(captioner=captioner, source=alone), "test")
    assert set(prompts("colour")).isdisjoint(prompts("class")) and zero_shot.PROMPTS.is_file()


def test_trained_and_asked_by_the_commands(tmp_path):
    run("src.train", *SMALL, "fusion=clip", f"hydra.run.dir='{tmp_path}/clip'")
    said = run("src.evaluate", f"run='{tmp_path}/clip'", "task=zero_shot").stdout
    assert "zero_shot/shape" in said and "zero_shot/colour/chance" in said
    told = run("src.compare", f"runs=['{tmp_path}/clip']", f"output='{tmp_path}/compared'").stdout
    assert "t2i/R@5" in told
    run("src.export", f"run='{tmp_path}/clip'", f"to='{tmp_path}/judge'")
    run("src.evaluate", f"run='{tmp_path}/judge'", f"output='{tmp_path}/judged'")
    before, after = (json.loads((tmp_path / one / "metrics.json").read_text())["scores"] for one in ("clip", "judged"))
    assert before == after and "i2t/R@1" in before
    refused = run("src.evaluate", f"run='{tmp_path}/clip'", "task=caption", ok=False)
    assert "needs a mechanism that writes" in refused.stderr


def test_sizes():
    assert make_fusion("clip", make_language()).W_v.weight.shape == (32, VISION.pooled_width)
    assert clip(make_language(), embed_width=8).W_t.weight.shape == (8, 32)
    assert CLIP(VisionSpec(8, 1, 8, 16), make_language().spec, None).needs_tokens is False
