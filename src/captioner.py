"""The LightningModule shared by all mechanisms: batch -> loss, pictures -> captions, optimiser groups."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from functools import cached_property, partial
from itertools import chain

import lightning
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from src.contracts import Batch, Language, Memory, Target, Text, Tokenizer, UserError, View, Visual, present
from src.decoding.base import Decoder
from src.fusion.base import Fusion, Writer
from src.layers.cache import Cache
from src.layers.chunked_loss import summed_cross_entropy
from src.layers.notes import Aux
from src.layers.packed import packed
from src.loading.rows import Rows
from src.objectives.base import Loss, Objective, Walked
from src.projectors.base import Projector
from src.records.weights import tensor_hash
from src.training.loss_spikes import LossSpikes
from src.training.sharding import shard, whole
from src.vision.base import Vision

PARTS = ("vision", "projector", "fusion", "language", "heads")
BASE = ("vision", "language")  # what was there before; the regime says which of them train, all else always does


class Captioner(lightning.LightningModule):
    """One language model, one vision encoder (None for text without pictures), one fusion, and what it learns by.

    ``objectives``: by name; their own parameters lie in ``heads``. ``projector``: between vision and fusion, if any.
    ``regime`` says which parts train and at which learning rate; ``optim`` holds the AdamW and schedule settings.
    ``tagged``: captions begin with the image tag. Frozen parts have ``requires_grad`` False, stay in eval mode, and are
    left out of checkpoints (their hash is kept).
    """

    def __init__(
        self,
        vision: Vision | None,
        fusion: Fusion,
        language: Language,
        tokenizer: Tokenizer,
        regime: dict,
        optim: dict,
        decoder: Decoder,
        objectives: Mapping[str, Objective],
        projector: Projector | None = None,
        tagged: bool = False,
    ):
        super().__init__()
        self.vision, self.projector, self.fusion, self.language = vision, projector, fusion, language
        self.objectives = dict(objectives)
        heads = {name: objective.head(language.spec) for name, objective in self.objectives.items()}
        self.heads = nn.ModuleDict({name: head for name, head in heads.items() if head is not None})
        self.tokenizer, self.regime, self.optim, self.decoder = tokenizer, regime, optim, decoder
        self.tagged = tagged
        self._compiled: Callable[[Visual, Mapping[str, Text]], dict[str, Walked]] | None = None
        self._last_ids: list[str] = []  # of the batch at work, for messages
        self._fill_up = 1.0  # what the loss of the batch at work is multiplied by, see on_train_batch_start
        factor = optim.get("loss_spike")
        self.spikes = None if factor is None else LossSpikes(factor)
        self.strict_loading = False  # frozen parts are absent from checkpoints; load_state_dict checks the rest
        for part in self.frozen_parts():
            part.requires_grad_(False)
            part.eval()

    # ------------------------------------------------------------------------------------------------- what trains
    def trains(self, part: str) -> bool:
        """Whether a part, one of ``PARTS``, trains."""
        return part not in BASE or bool(self.regime[f"train_{part}"])

    def frozen_parts(self) -> list[nn.Module]:
        return [getattr(self, part) for part in PARTS if getattr(self, part) is not None and not self.trains(part)]

    def train(self, mode: bool = True) -> Captioner:
        super().train(mode)
        for part in self.frozen_parts():
            part.eval()  # no dropout in what does not learn
        return self

    def configure_model(self) -> None:
        """Called by Lightning before training: with trainer.strategy=fsdp there is a mesh of devices to shard over."""
        if self.device_mesh is not None:
            shard(self, self.device_mesh["data_parallel"])

    # ------------------------------------------------------------------------------------------------- loss
    def memory(self, batch: Batch, aux: Aux | None = None) -> Memory:
        """What the fusion keeps of the batch's pictures."""
        return self.fusion.encode(self.language, self.visual(batch), aux)

    @property
    def writer(self) -> Writer:
        """The fusion, for all that has to do with words. Raises UserError for one that writes none."""
        if not isinstance(self.fusion, Writer):
            raise UserError(f"fusion={type(self.fusion).__name__} does not write, and cannot be asked for captions.")
        return self.fusion

    @property
    def needs_tokens(self) -> bool:
        """Whether the encoder's tokens are read, or its pooled vector only."""
        return self.fusion.needs_tokens if self.projector is None else self.projector.needs_tokens

    @property
    def needs_levels(self) -> int:
        """How many levels of the encoder are read."""
        return self.fusion.needs_levels if self.projector is None else 0

    def visual(self, batch: Batch) -> Visual:
        """The batch's pictures as the fusion gets them: none for one that does not see."""
        if not self.fusion.sees:
            return Visual.nothing(len(batch.ids))
        encoded = self._encoded(batch)
        return encoded if self.projector is None else self.projector(encoded)

    def _encoded(self, batch: Batch) -> Visual:
        if batch.visual is not None:
            return _float(batch.visual)
        if self.vision is None or batch.pixels_IM3hw is None:
            raise UserError("This fusion reads pictures and the data has none; use fusion=blind or data with pictures.")
        if batch.image_valid_IM is None:
            return self.vision(batch.pixels_IM3hw, levels=self.needs_levels)
        return self._encode_valid(self.vision, batch.pixels_IM3hw, batch.image_valid_IM)

    def _encode_valid(self, vision: Vision, pixels_IM3hw: Tensor, valid_IM: Tensor) -> Visual:
        """Only real pictures are encoded: blank ones would cost time and move the statistics of batch norms."""
        kept_IM = valid_IM.clone()
        kept_IM[0, 0] |= ~valid_IM.any()  # a batch without pictures still has to say how wide they would be
        found: Visual = vision(pixels_IM3hw[kept_IM][:, None], levels=self.needs_levels)  # (X, 1, ...)
        spread = partial(_spread, kept_IM=kept_IM)
        levels = found.levels_IMKNC
        return Visual(
            spread(found.tokens_IMNC),
            spread(found.pooled_IMC),
            None if levels is None else spread(levels),
            image_valid_IM=valid_IM,
        )

    def losses(self, batch: Batch) -> dict[str, Loss]:
        """The loss of every view that the loader made of the batch, by objective. Pictures are encoded once for all.

        Raises ValueError for a batch without views.
        """
        if not batch.views:
            raise ValueError("The batch has no views; they are made where it is loaded (objectives.base.with_views).")
        walk = self._compiled if self.training and self._compiled else self.walk
        walked = walk(self.visual(batch), {name: view.text for name, view in batch.views.items()})
        return {name: self.objectives[name].loss(self, walked[name], view) for name, view in batch.views.items()}

    def walk(self, visual: Visual, texts: Mapping[str, Text]) -> dict[str, Walked]:
        """The whole way of training through fusion and language model, for the text of every objective."""
        memory = self.fusion.encode(self.language, visual)
        return {
            name: self.objectives[name].walk(self.fusion, self.language, memory, text) for name, text in texts.items()
        }

    def total(self, batch: Batch, losses: Mapping[str, Loss]) -> Tensor:
        """What training follows: all losses of a batch in their reductions, weighted."""
        total = torch.zeros(())  # which adds to numbers of any device
        for name, (mean, count, terms) in losses.items():
            scale = self._reduction(count, len(present(batch.text, "text in the batch").ids_BT))
            total = total + self.objectives[name].share(self.fusion) * scale * mean
            total = total + sum(weight * value for value, weight in terms.values())
        return batch.weight * total

    def cross_entropy(self, hidden_BTE: Tensor, target: Target) -> tuple[Tensor, Tensor]:
        """Mean nats per target, 0 where there is none (documents of pictures only), and how many there are.

        Logits are made at the targets alone, whose places the loader knows: counting them on a GPU would wait for it.
        """
        hidden_XE = hidden_BTE.flatten(0, 1).index_select(0, target.at_X)
        readout, vocabulary = partial(self.fusion.readout, self.language), self.language.spec.vocabulary
        total = summed_cross_entropy(readout, hidden_XE, target.id_X, self.readout_parameters(), vocabulary)
        return total / max(1, len(target.id_X)), target.id_X.new_full((), len(target.id_X))

    def text_loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Mean nats per token of the batch's text as it stands, whatever is trained, and how many tokens."""
        text = present(batch.text, "text in the batch")
        view = Rows(pack=False, ends=self.writer.reads_ends).lay(View(text, Target.next(text)), len(batch.ids))
        hidden_BTE, _ = self.writer.learn(self.language, self.memory(batch), view.text)
        return self.cross_entropy(hidden_BTE, present(view.target, "target in the view"))

    def log_probabilities(self, memory: Memory, text: Text) -> Tensor:
        """log p of every token given its pictures and what stands before it, (B, T-1); 0 where nothing is asked for."""
        target, T = Target.next(text), text.ids_BT.shape[1]
        b_X, t_X = target.at_X // T, target.at_X % T
        hidden_BTE = self.writer.decode(self.language, memory, text.columns(None, -1))
        logits_XV = self.fusion.readout(self.language, hidden_BTE[b_X, t_X]).float()
        found_X = logits_XV.log_softmax(-1).gather(-1, target.id_X[:, None])[:, 0]
        return found_X.new_zeros(hidden_BTE.shape[:2]).index_put((b_X, t_X), found_X)

    def compile_training(self) -> None:
        """Compile the way of training, once for all lengths of text. Validation and captioning stay as they are.

        Where the machine cannot compile, the first step raises UserError.
        """
        from torch._dynamo.exc import BackendCompilerFailed

        compiled = torch.compile(self.walk, dynamic=True)

        def walk(visual: Visual, texts: Mapping[str, Text]) -> dict[str, Walked]:
            try:
                return compiled(visual, texts)
            except BackendCompilerFailed as error:
                raise UserError(
                    f"compile=true does not work on this machine ({str(error.inner_exception).splitlines()[0]}); "
                    "say compile=false, or install a C++ compiler (on a GPU: Triton)."
                ) from error

        self._compiled = walk

    def readout_parameters(self) -> Iterable[nn.Parameter]:
        return chain(self.fusion.parameters(), self.language.parameters())

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Lightning divides every loss by the batches that an update adds up, also where an epoch has fewer left."""
        wanted = self.trainer.accumulate_grad_batches
        self._fill_up = wanted / min(wanted, self.trainer.num_training_batches - batch_idx // wanted * wanted)

    def training_step(self, batch: Batch, index: int) -> Tensor:
        self._last_ids = batch.ids
        if index == 0:
            self._check_rows(batch)
        losses = self.losses(batch)
        total = self.total(batch, losses)
        terms = {name: value for loss in losses.values() for name, (value, _) in loss.terms.items()}
        self._require_finite("training loss", {**{name: loss.mean for name, loss in losses.items()}, **terms})
        headline = next(iter(losses.values())).mean if len(losses) == 1 else total
        if self.spikes is not None:
            self._watch(self.spikes, batch, headline.detach().clone())
        where = f"train/{batch.dataset}/" if batch.dataset else "train/"
        self.log(f"{where}loss", headline, prog_bar=True, batch_size=len(batch.ids))
        for name, value in terms.items():
            self.log(f"{where}{name}", value, batch_size=len(batch.ids))
        if len(losses) > 1:
            for name, loss in losses.items():
                self.log(f"{where}{name}", loss.mean, batch_size=len(batch.ids))
        if self.trainer.is_global_zero and self._at_a_log():
            self.log_dict({f"fusion/{name}": value for name, value in self.fusion.scalars().items()})
        return self._fill_up * total

    def _check_rows(self, batch: Batch) -> None:
        for view in batch.views.values():
            check_rows(view.text, self.language.spec.vocabulary)

    def _watch(self, spikes: LossSpikes, batch: Batch, loss: Tensor) -> None:
        """Mark the update for leaving out when its loss is a spike; all processes decide by their mean."""
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(loss)
            loss = loss / torch.distributed.get_world_size()
        median = spikes.see(batch.dataset, loss.item())
        if median is not None and self.trainer.is_global_zero:
            print(
                f"note: the update at step {self.global_step} is left out: the loss {loss.item():.3g} on the batch of "
                f"{', '.join(batch.ids[:4])} ... is more than {spikes.factor:g} times the usual {median:.3g}.",
                flush=True,
            )

    def _at_a_log(self) -> bool:
        every: int = self.trainer.log_every_n_steps  # pyright: ignore[reportAttributeAccessIssue]: set out of its sight
        return self.global_step % every == 0

    def _require_finite(self, what: str, values: dict[str, Tensor], always: bool = False) -> None:
        """Stop before infinities reach a checkpoint. On a GPU looking at a number waits for it: only now and then."""
        if not always and self.device.type != "cpu" and not self._at_a_log():
            return
        for name, value in values.items():
            if not torch.isfinite(value):
                raise UserError(
                    f"The {what} ({name}) is {value.item()} at step {self.global_step}, on the batch of "
                    f"{', '.join(self._last_ids[:4])} ...; lower the learning rates (regime.lr_*) or use "
                    "trainer.precision=32-true; the last checkpoint is kept."
                )

    def _reduction(self, targets: Tensor, rows: int) -> Tensor | float:
        """What turns the mean over this process's tokens into the reduction that ``optim.reduction`` asks for.

        token_mean: the mean over the tokens of all processes, whose gradients are averaged afterwards: short captions
        on one of them must not weigh more. sequence_sum: summed over the tokens of a row, mean over rows, as in arXiv
        2204.14198.
        """
        if self.optim["reduction"] == "sequence_sum":
            return targets / rows
        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            return 1.0
        everywhere = targets.clone()
        torch.distributed.all_reduce(everywhere)
        return targets * torch.distributed.get_world_size() / everywhere

    def validation_step(self, batch: Batch, index: int) -> None:
        """val/loss chooses the best checkpoint: the mean of the only objective, or the weighted sum of the means."""
        self._last_ids = batch.ids
        if index == 0:
            self._check_rows(batch)
        losses = self.losses(batch)
        self._require_finite("validation loss", {name: loss.mean for name, loss in losses.items()}, always=True)
        for name, (mean, count, _) in losses.items():
            shown = "loss" if len(self.objectives) == 1 else name
            self.log(f"val/{shown}", mean, prog_bar=shown == "loss", batch_size=int(count), sync_dist=True)
            if batch.dataset:
                self.log(f"val/{batch.dataset}/{shown}", mean, batch_size=int(count), sync_dist=True)

    def on_validation_epoch_end(self) -> None:
        if len(self.objectives) > 1:
            means = self.trainer.callback_metrics
            total = sum(objective.weight * means[f"val/{name}"] for name, objective in self.objectives.items())
            self.log("val/loss", total, prog_bar=True)

    # ------------------------------------------------------------------------------------------------- captions
    def start(self, contexts: int, device: torch.device) -> Text:
        """The prompt of plain captioning: one start token per picture, and the image tag if captions carry it."""
        tag = self.tokenizer.image_tag if self.tagged else []
        ids_IT = torch.tensor([[self.tokenizer.bos, *tag]], device=device).repeat(contexts, 1)
        phi_IT = torch.ones_like(ids_IT)
        phi_IT[:, 0] = not self.tagged
        return Text(ids_IT, torch.ones_like(ids_IT, dtype=torch.bool), phi_IT)

    # no_grad rather than inference_mode: under autocast the latter casts every weight again at every step.
    @torch.no_grad()
    def generate(self, batch: Batch, decoder: Decoder | None = None, prompt: Text | None = None) -> list[list[int]]:
        """Token ids for every context of ``batch``, encoded once; they follow ``prompt`` if one is given."""
        memory = self.memory(batch)
        prompt = self.start(len(batch.ids), self.device) if prompt is None else prompt
        decode = decoder or self.decoder
        return decode(self.step, memory, prompt, self.tokenizer.eos, self.fusion.extra_positions)

    def step(self, memory: Memory, text: Text, cache: Cache) -> Tensor:
        """Logits (B, V) of the last column."""
        hidden_BTE = self.writer.decode(self.language, memory, text, cache)
        return self.fusion.readout(self.language, hidden_BTE[:, -1])

    def caption(
        self, batches: Iterable[Batch], decoder: Decoder | None = None, prompted: bool = False
    ) -> dict[str, str]:
        """Captions by id, made in eval mode. ``prompted``: go on with the text of the batches."""
        was_training = self.training
        self.eval()
        captions = {}
        with torch.no_grad(), ExitStack() as stack:
            with self.autocast():  # of the model alone: whoever makes the batches works in single precision
                stack.enter_context(packed(self.fusion, self.language))
            for batch in batches:
                batch = self.transfer_batch_to_device(batch, self.device, 0)
                with self.autocast():
                    ids = self.generate(batch, decoder, batch.text if prompted else None)
                captions.update({id: self.tokenizer.decode(row) for id, row in zip(batch.ids, ids, strict=True)})
        self.train(was_training)
        return captions

    def autocast(self):
        """The precision of training, for captioning outside the Trainer."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.optim.get("precision") == "bf16-mixed")

    # ------------------------------------------------------------------------------------------------- optimiser
    def parameter_groups(self) -> list[dict]:
        """Disjoint groups covering every trainable parameter: per part, with and without weight decay.

        Norms, biases, gates (all parameters with fewer than two axes) and learnt constants are not decayed. Raises
        AssertionError where a parameter that trains is in no group, or in two.
        """
        groups = []
        for part in PARTS:
            module = getattr(self, part)
            if module is None or not self.trains(part):
                continue
            constants = set(getattr(module, "undecayed", ()))
            split: dict[bool, list] = {True: [], False: []}
            for name, parameter in module.named_parameters():
                split[parameter.ndim >= 2 and name not in constants].append(parameter)
            for decayed, parameters in split.items():
                if parameters:
                    decay = self.optim["weight_decay"] if decayed else 0.0
                    lr = self.regime[f"lr_{part if part in BASE else 'fusion'}"]
                    name = part if decayed else f"{part}/no_decay"
                    groups.append({"name": name, "params": parameters, "lr": lr, "weight_decay": decay})
        self._require_all(groups)
        return groups

    def _require_all(self, groups: list[dict]) -> None:
        """A parameter outside of PARTS would be saved but never trained, one of two parts be trained twice."""
        times = Counter(id(parameter) for group in groups for parameter in group["params"])
        for name, parameter in self.named_parameters():
            if parameter.requires_grad and times[id(parameter)] != 1:
                raise AssertionError(
                    f"{name} is in {times[id(parameter)]} of the optimiser's groups, and must be in one to be trained: "
                    f"put its module into one of {', '.join(PARTS)}, or add that to captioner.PARTS."
                )

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer = torch.optim.AdamW(self.parameter_groups(), betas=tuple(self.optim["betas"]), fused=True)
        total = self.trainer.estimated_stepping_batches
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: warmup_cosine(step, total, self.optim["warmup"], self.optim["floor"])
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None) -> None:
        """Clip the global norm. Lightning's own refuses fused optimisers, which matters only for scaled float16."""
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        if self.spikes is not None and self.spikes.pending:
            self.spikes.pending = False
            self.spikes.skipped += 1
            for parameter in parameters:
                parameter.grad = None  # the optimiser passes over what has none: neither momentum nor decay moves it
        elif gradient_clip_val:
            norm = whole(nn.utils.clip_grad_norm_(parameters, gradient_clip_val))
            if self.trainer.precision != "16-mixed":  # whose scaler meets infinities and skips those steps
                self._require_finite("gradient", {"norm": norm})
            self.log("train/gradient_norm", norm)

    # ------------------------------------------------------------------------------------------------- checkpoints
    def state_dict(self, *args, **kwargs) -> dict:
        """Only what trains, and nothing that the frozen parts can give again."""
        frozen = tuple(f"{part}." for part in PARTS if not self.trains(part))
        state = super().state_dict(*args, **kwargs)
        return {name: tensor for name, tensor in state.items() if not name.startswith(frozen or ("\0",))}

    def load_state_dict(self, state_dict: Mapping[str, Tensor], strict: bool = True, assign: bool = False):
        """Load trained tensors; what is missing must be exactly what is frozen. Raises UserError otherwise."""
        expected = set(self.state_dict())
        missing, extra = sorted(expected - set(state_dict)), sorted(set(state_dict) - expected)
        if missing or extra:
            raise UserError(
                f"The checkpoint does not fit this model: {len(missing)} tensors missing, {len(extra)} unknown "
                f"(for example {(missing + extra)[0]}); use the config that it was trained with."
            )
        here = super().state_dict()
        for name, tensor in state_dict.items():
            if tensor.shape != here[name].shape:
                raise UserError(
                    f"The checkpoint does not fit this model: {name} has the shape {tuple(tensor.shape)} there and "
                    f"{tuple(here[name].shape)} here; use the config and the tokenizer that it was trained with."
                )
        return super().load_state_dict(state_dict, strict=False, assign=assign)

    def frozen_hashes(self) -> dict[str, str]:
        """sha256 of every frozen part."""
        return {
            part: tensor_hash({name: whole(x) for name, x in getattr(self, part).state_dict().items()})
            for part in PARTS
            if getattr(self, part) is not None and not self.trains(part)
        }

    @cached_property
    def tokenizer_hash(self) -> str:
        """sha256 of what every id means."""
        words = [self.tokenizer.decode([id]) for id in range(len(self.tokenizer))]
        specials = [self.tokenizer.bos, self.tokenizer.eos, self.tokenizer.pad]
        return hashlib.sha256(json.dumps([specials, words]).encode()).hexdigest()

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        checkpoint["frozen"] = self.frozen_hashes()
        checkpoint["tokenizer"] = self.tokenizer_hash
        if self.spikes is not None:
            checkpoint["loss_spikes"] = self.spikes.state_dict()

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        self.check_origin(checkpoint)
        if self.spikes is not None and "loss_spikes" in checkpoint:
            self.spikes.load_state_dict(checkpoint["loss_spikes"])

    def check_origin(self, checkpoint: dict) -> None:
        """Raises UserError unless frozen parts and tokenizer are those that the checkpoint was trained with."""
        check_frozen(checkpoint.get("frozen", {}), self.frozen_hashes())
        if checkpoint.get("tokenizer", self.tokenizer_hash) != self.tokenizer_hash:
            raise UserError(
                "The tokenizer differs from the one that this checkpoint was trained with, so its words would mean "
                "other ones; use the tokenizer/ of its run folder, and to go on with a run the same training captions."
            )


def check_rows(text: Text, vocabulary: int) -> None:
    """Raises UserError for rows that the language model would read wrongly, or could not: of the first batches only,
    since looking at a device's numbers waits for it."""
    begins_late_B = text.valid_BT.int().diff(dim=1).gt(0).any(1) | ~text.valid_BT[:, 0]
    if not text.ragged and begins_late_B.any():
        raise UserError("A row of the batch has padding before its text; texts to learn from are padded at their end.")
    if text.ids_BT.min() < 0 or text.ids_BT.max() >= vocabulary:
        raise UserError(
            f"The batch has token ids from {text.ids_BT.min()} to {text.ids_BT.max()}, and the language model knows "
            f"0 to {vocabulary - 1}; use the tokenizer that belongs to the model."
        )


def check_frozen(saved: dict[str, str], here: dict[str, str]) -> None:
    """Raises UserError when a frozen part is not the one that the checkpoint was trained with."""
    for part in sorted(set(saved) | set(here)):
        if saved.get(part) != here.get(part):
            raise UserError(
                f"The frozen {part} differs from the one that this checkpoint was trained with; "
                f"give the same {part} weights as in the run's config.yaml."
            )


def _float(visual: Visual) -> Visual:
    """Cached features are stored in half precision; the model computes in its own."""
    dtype = torch.get_default_dtype()
    levels = visual.levels_IMKNC
    return replace(
        visual,
        tokens_IMNC=visual.tokens_IMNC.to(dtype),
        pooled_IMC=visual.pooled_IMC.to(dtype),
        levels_IMKNC=None if levels is None else levels.to(dtype),
    )


def _spread(found: Tensor, kept_IM: Tensor) -> Tensor:
    """Rows of the pictures that were encoded, (X, 1, ...), at their places among all, (I, M, ...); zeros elsewhere."""
    spread = found.new_zeros(*kept_IM.shape, *found.shape[2:])
    spread[kept_IM] = found[:, 0]
    return spread


def warmup_cosine(step: int, total: float, warmup: float, floor: float) -> float:
    """Learning-rate factor: linear over the first ``warmup`` share of ``total`` steps, then a cosine down to ``floor``.

    Loshchilov & Hutter 2017, arXiv 1608.03983, without restarts.
    """
    rising = max(1, round(warmup * total))
    if step < rising:
        return (step + 1) / rising
    progress = min(1.0, (step - rising) / max(1, total - rising))
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))
