"""What does not learn: its weights are cast once, to the same numbers, and it costs neither gradients nor moments."""

from __future__ import annotations

import math

import lightning
import pytest
import torch
from conftest import (
    OBJECTIVES,
    VISION,
    Characters,
    make_fusion,
    make_language,
    make_text,
    make_visual,
    quiet_trainer,
    viewed,
)
from test_captioner import OPTIM
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader
from transformers.pytorch_utils import Conv1D

from src.captioner import Captioner
from src.contracts import Batch, Visual
from src.decoding.greedy import Greedy
from src.layers.cast_once import cast_once
from src.layers.forwards import replaced
from src.layers.laid_out import laid_out
from src.training.frozen_weights import FrozenWeights

HALVES = [torch.bfloat16, torch.float16]
REGIME = {"train_language": False, "train_vision": False, "lr_fusion": 0.01, "lr_language": 0.01, "lr_vision": 0.01}


class Casts(TorchDispatchMode):
    """How many numbers are brought to another type within."""

    def __init__(self):
        super().__init__()
        self.numbers = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._to_copy.default:
            self.numbers.append(args[0].numel())
        return func(*args, **(kwargs or {}))


def layers() -> nn.ModuleList:
    conv = Conv1D(24, 16)
    nn.init.normal_(conv.bias)
    return nn.ModuleList([nn.Linear(16, 40), nn.Linear(16, 8, bias=False), conv]).requires_grad_(False)


def overridden(module: nn.Module) -> list[nn.Module]:
    return [layer for layer in module.modules() if "forward" in vars(layer)]


# --------------------------------------------------------------------------------------------------------- layers
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("shape", [(16,), (5, 16), (2, 3, 7, 16)])
def test_frozen_layers_give_the_same_bits_forwards_and_backwards(dtype, shape):
    modules, x = layers(), torch.randn(shape, requires_grad=True)
    with torch.autocast("cpu", dtype):
        for layer in modules:
            plain = layer(x)
            (gradient,) = torch.autograd.grad(plain.float().square().sum(), x)
            with cast_once(modules, dtype):
                assert "forward" in vars(layer)
                found = layer(x)
            (mine,) = torch.autograd.grad(found.float().square().sum(), x)
            assert found.dtype == plain.dtype == dtype
            assert torch.equal(found, plain) and torch.equal(mine, gradient)


def test_frozen_convolutions_give_the_same_bits():
    conv = nn.Conv2d(3, 8, 5, stride=2, padding=2, groups=1).requires_grad_(False)
    pixels = torch.randn(2, 3, 16, 16, requires_grad=True).to(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        plain = conv(pixels)
        with cast_once([conv], torch.bfloat16):
            assert overridden(conv) and torch.equal(conv(pixels), plain)


def test_frozen_weights_are_cast_once_and_others_as_ever():
    frozen, trained, x = nn.Linear(16, 40).requires_grad_(False), nn.Linear(16, 50), torch.randn(3, 16)
    for kept in (False, True):
        with torch.autocast("cpu", torch.bfloat16), cast_once([frozen, trained] if kept else [], torch.bfloat16):
            with Casts() as casts:
                for _ in range(3):
                    frozen(x), trained(x)
        assert casts.numbers.count(40 * 16) == (0 if kept else 3)
        assert casts.numbers.count(50 * 16) == 1  # which autocast remembers


def test_elsewhere_layers_compute_as_ever():
    """Outside of autocast, and under autocast to another type."""
    modules, x = layers(), torch.randn(3, 16)
    for context in (torch.autocast("cpu", enabled=False), torch.autocast("cpu", torch.float16)):
        with context:
            plain = [layer(x) for layer in modules]
            with cast_once(modules, torch.bfloat16):
                assert all(torch.equal(layer(x), other) for layer, other in zip(modules, plain, strict=True))


def test_what_trains_is_sliced_or_has_another_precision_is_left_alone():
    class Slice(torch.Tensor):
        """As DTensor, which fsdp puts in the place of a parameter."""

    trained, double, half = nn.Linear(16, 4), nn.Linear(16, 4).double(), nn.Linear(16, 4).bfloat16()
    sliced = nn.Linear(16, 4)
    sliced.weight = nn.Parameter(sliced.weight.detach().as_subclass(Slice))
    for layer in (double, half, sliced):
        layer.requires_grad_(False)
    with cast_once([trained, double, half, sliced], torch.bfloat16):
        assert not any("forward" in vars(layer) for layer in (trained, double, half, sliced))


def test_a_bias_that_trains_beside_a_frozen_weight_gets_its_gradient():
    layer, x = nn.Linear(16, 4), torch.randn(3, 16)
    layer.weight.requires_grad_(False)
    with torch.autocast("cpu", torch.bfloat16), cast_once([layer], torch.bfloat16):
        layer(x).sum().backward()
    assert torch.equal(layer.bias.grad, torch.full((4,), 3.0)) and layer.weight.grad is None


def test_a_tied_output_matrix_stays_the_embedding_in_single_precision():
    embedding, head = nn.Embedding(9, 16), nn.Linear(16, 9, bias=False)
    head.weight = embedding.weight
    both = nn.ModuleList([embedding, head]).requires_grad_(False)
    state = {name: x.clone() for name, x in both.state_dict().items()}
    with torch.autocast("cpu", torch.bfloat16):
        plain = head(embedding(torch.tensor([4])))
        with cast_once(both.modules(), torch.bfloat16):
            assert head.weight is embedding.weight and embedding(torch.tensor([4])).dtype == torch.float32
            assert torch.equal(head(embedding(torch.tensor([4]))), plain)
            assert all(torch.equal(x, state[name]) for name, x in both.state_dict().items())


def test_other_ways_to_compute_end_with_their_context_and_may_be_nested():
    layer, x = nn.Linear(2, 2), torch.randn(2)
    plain = layer(x)
    with replaced({layer: torch.neg}):
        with pytest.raises(KeyboardInterrupt), replaced({layer: torch.abs}):
            assert torch.equal(layer(x), x.abs())
            raise KeyboardInterrupt
        assert torch.equal(layer(x), -x)
    assert torch.equal(layer(x), plain) and not overridden(layer)


def test_captions_within_a_training_leave_it_its_copies():
    large = nn.Linear(1024, 512).requires_grad_(False)
    with cast_once([large], torch.bfloat16):
        (own,) = (vars(layer)["forward"] for layer in overridden(large))
        with torch.no_grad(), laid_out(large):
            pass
        assert vars(large)["forward"] is own


# --------------------------------------------------------------------------------------------------------- trainings
class Watch(lightning.Callback):
    """The loss of every step, how many layers compute otherwise then, and the gradients that the optimiser gets."""

    def __init__(self, fail: bool = False):
        self.losses, self.overridden, self.gradients, self.fail = [], [], {}, fail

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.losses.append(outputs["loss"].item())
        self.overridden.append(len(overridden(module)))
        if self.fail:
            raise RuntimeError("enough")

    def on_before_optimizer_step(self, trainer, module, optimizer):
        self.gradients = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}


def make_captioner(name: str = "cross_attention", *options: str, vision: nn.Module | None = None) -> Captioner:
    """With a frozen language model, in single precision."""
    language = make_language(layers=2)
    fusion = make_fusion(name, language, *options)
    return Captioner(vision, fusion, language, Characters(), REGIME, OPTIM, Greedy(4), OBJECTIVES).float()


def batches() -> DataLoader:
    return DataLoader([viewed(Batch(["a"], make_text(2, 6, seed), visual=make_visual(1))) for seed in range(3)], None)


def train(captioner: Captioner, watch: Watch, precision: str = "bf16-mixed", callbacks=(), data=None):
    trainer = quiet_trainer(max_epochs=1, precision=precision, callbacks=[*callbacks, watch])
    trainer.fit(captioner, data or batches(), data or batches())
    return trainer


@pytest.mark.filterwarnings("ignore")  # Lightning's advice on workers
@pytest.mark.parametrize("options", [("cross_attention",), ("vcgpt",), ("vcgpt", "fusion.wg=tied")])
def test_a_training_is_the_same_to_the_last_bit(options):
    found = []
    for callbacks in ((), (FrozenWeights(),)):
        captioner, watch = make_captioner(*options), Watch()
        before = captioner.frozen_hashes()
        trainer = train(captioner, watch, callbacks=callbacks)
        assert watch.overridden == ([9] * 3 if callbacks else [0] * 3)  # 4 matrices a block, and the output
        assert not overridden(captioner) and captioner.frozen_hashes() == before
        found.append((watch.losses, captioner.state_dict(), trainer.callback_metrics))
    (losses, state, metrics), (mine, my_state, my_metrics) = found
    assert mine == losses and all(map(math.isfinite, losses)) and len(set(losses)) == 3
    assert list(my_state) == list(state) and all(torch.equal(my_state[name], state[name]) for name in state)
    assert my_metrics == metrics and "val/loss" in metrics


class Patches(nn.Module):
    """An encoder of one convolution and one matrix."""

    spec = VISION

    def __init__(self):
        super().__init__()
        self.stem, self.mix = nn.Conv2d(3, VISION.width, 4, stride=4), nn.Linear(VISION.width, VISION.width)

    def forward(self, pixels_IM3hw, levels=0):
        grid_ICyx = self.stem(pixels_IM3hw[:, 0] / 255)
        tokens_I1NC = self.mix(grid_ICyx.flatten(2).transpose(1, 2))[:, None].float()
        return Visual(tokens_I1NC, tokens_I1NC.mean(2)[..., : VISION.pooled_width])


@pytest.mark.filterwarnings("ignore")
def test_a_frozen_encoder_that_runs_in_training_is_cast_once():
    pixels = torch.randint(0, 256, (1, 1, 3, 8, 12), dtype=torch.uint8)  # 6 tokens
    data, found = DataLoader([viewed(Batch(["a"], make_text(2, 6), pixels))] * 2, None), []
    state = Patches().state_dict()
    for callbacks in ((), (FrozenWeights(),)):
        captioner, watch = make_captioner(vision=Patches()), Watch()
        captioner.vision.load_state_dict(state)
        train(captioner, watch, data=data, callbacks=callbacks)
        assert watch.overridden == [11 if callbacks else 0] * 2 and not overridden(captioner)
        found.append(watch.losses)
    assert found[0] == found[1]


@pytest.mark.filterwarnings("ignore")
def test_in_single_precision_nothing_is_cast():
    watch = Watch()
    train(make_captioner(), watch, precision="32-true", callbacks=[FrozenWeights()])
    assert watch.overridden == [0] * 3


@pytest.mark.filterwarnings("ignore")
def test_a_training_that_fails_leaves_the_model_as_it_was_and_may_be_begun_again():
    captioner, frozen = make_captioner(), FrozenWeights()
    watch = Watch(fail=True)
    with pytest.raises(RuntimeError, match="enough"):
        train(captioner, watch, callbacks=[frozen])
    assert watch.overridden == [9] and not overridden(captioner)
    captioner.language.requires_grad_(True)  # what trains next time is not cast
    again = Watch()
    captioner.regime = {**REGIME, "train_language": True}
    train(captioner, again, callbacks=[frozen])
    assert again.overridden == [0] * 3 and any(name.startswith("language.") for name in again.gradients)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["cross_attention", "vcgpt"])
def test_gradients_and_moments_are_of_trained_parts_only(name):
    captioner, watch = make_captioner(name), Watch()
    trainer = train(captioner, watch, callbacks=[FrozenWeights()])
    fusion = {f"fusion.{key}": p for key, p in captioner.fusion.named_parameters()}
    assert set(watch.gradients) == set(fusion)
    (optimizer,) = trainer.optimizers
    assert {id(p) for p in optimizer.state} == {id(p) for p in fusion.values()}
    assert all(p.grad is None for p in captioner.language.parameters())


def test_nothing_is_kept_for_frozen_layers_before_the_first_that_trains():
    """VC-GPT's stack stands on the finished language model: its walk makes no graph, whatever is above."""
    captioner = make_captioner("vcgpt").train()
    kept, language = [], captioner.language
    batch = viewed(Batch(["a"], make_text(2, 6), visual=make_visual(1)))
    seen = []
    norm = language.final_norm

    def final_norm(h_BTD):
        assert not kept, "something was saved for the backward pass before the language model's end"
        seen.append(norm(h_BTD))
        return seen[-1]

    language.final_norm = final_norm
    memory = captioner.fusion.encode  # the pictures' side trains, and may keep what it likes

    def encode(*arguments):
        found = memory(*arguments)
        kept.clear()
        return found

    captioner.fusion.encode = encode
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        losses = captioner.losses(batch)
    assert len(seen) == 1 and not seen[0].requires_grad and kept
    assert losses["next_token"].mean.requires_grad


def test_compiled_training_uses_the_copies_and_is_compiled_once(monkeypatch):
    torch._dynamo.reset()
    counter, plain_compile = CompileCounterWithBackend("eager"), torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, dynamic: plain_compile(f, dynamic=dynamic, backend=counter))
    captioner = make_captioner().train()
    for module in captioner.modules():  # torch draws other random numbers in compiled code
        for name in ("p", "dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
    texts = [viewed(Batch(["a"], make_text(2, length), visual=make_visual(1))) for length in (9, 12, 7)]
    with torch.autocast("cpu", torch.bfloat16):
        plain = [captioner.losses(batch)["next_token"].mean for batch in texts]
        captioner.compile_training()
        with cast_once(captioner.modules(), torch.bfloat16):
            for block in captioner.language.model.transformer.h:
                block.attn.c_attn.weight.zero_()  # which nothing reads any more
            found = [captioner.losses(batch)["next_token"].mean for batch in texts]
    assert counter.frame_count == 1
    torch.testing.assert_close(found, plain, rtol=0, atol=0)
