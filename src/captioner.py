"""The LightningModule shared by all mechanisms: batch -> loss, pictures -> captions, optimiser groups."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import cached_property, partial
from itertools import chain

import lightning
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from src.contracts import Batch, Language, Memory, Target, Text, Tokenizer, UserError, View, Visual, present
from src.decoding.base import Decoder, Seen
from src.fusion.base import Fusion, Read, Reader, Writer
from src.layers.cache import Cache
from src.layers.chunked_loss import each_cross_entropy, summed_cross_entropy
from src.layers.laid_out import laid_out
from src.layers.notes import Aux
from src.layers.processes import averaged
from src.loading.rows import Rows
from src.objectives.base import Loss, Objective, Walked
from src.projectors.base import Projector
from src.records.weights import tensor_hash
from src.training.compiled import compiled
from src.training.loss_spikes import LossSpikes
from src.training.means import Means
from src.training.optimiser import adamw, parameter_groups, reduction, require_all
from src.training.origin import check_frozen, check_tensors, check_tokenizer, meaning_hash
from src.training.sharding import shard, whole
from src.training.soundness import Lasting, check_rows, require_finite
from src.vision.base import Vision
from src.vision.encoding import encoded

PARTS = ("vision", "projector", "fusion", "language", "heads")
BASE = ("vision", "language")  # what was there before; the regime says which of them train, all else always does


class Captioner(lightning.LightningModule):
    """One language model, one vision encoder (None for text without pictures), one fusion, and what it learns by.

    ``objectives``: by name; their own parameters lie in ``heads``. ``projector``: between vision and fusion, if any.
    ``regime`` says which parts train and at which learning rate; ``optim`` holds the AdamW and schedule settings.
    ``tagged``: captions begin with the image tag. Frozen parts have ``requires_grad`` False, stay in eval mode, and are
    left out of checkpoints (their hash is kept), but for ``adapters`` that somebody has put into them.
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
        self._compiled: Callable[[Visual, Mapping[str, View]], dict[str, Walked]] | None = None
        self._last_ids: list[str] = []  # of the batch at work, for messages
        self._validated = Means()
        self._lasting = Lasting({name: limit for one in self.objectives.values() for name, limit in one.limits.items()})
        self._fill_up = 1.0  # what the loss of the batch at work is multiplied by, see on_train_batch_start
        factor = optim.get("loss_spike")
        self.spikes = None if factor is None else LossSpikes(factor)
        self.strict_loading = False  # frozen parts are absent from checkpoints; load_state_dict checks the rest
        for part in self.parts(trained=False).values():
            part.requires_grad_(False)
            part.eval()

    # ------------------------------------------------------------------------------------------------- what trains
    def trains(self, part: str) -> bool:
        """Whether a part, one of ``PARTS``, trains."""
        return part not in BASE or bool(self.regime[f"train_{part}"])

    def parts(self, trained: bool) -> dict[str, nn.Module]:
        """Those that train, or those that are frozen, by name."""
        there = {part: getattr(self, part) for part in PARTS}
        return {part: module for part, module in there.items() if module is not None and self.trains(part) == trained}

    @property
    def adapters(self) -> dict[str, nn.Parameter]:
        """What learns inside of frozen parts, by its name in the captioner."""
        return {
            f"{part}.{name}": parameter
            for part, module in self.parts(trained=False).items()
            for name, parameter in module.named_parameters()
            if parameter.requires_grad
        }

    def train(self, mode: bool = True) -> Captioner:
        super().train(mode)
        for part in self.parts(trained=False).values():
            part.eval()  # no dropout in what does not learn
        return self

    def configure_model(self) -> None:
        """Called by Lightning before training: with trainer.strategy=fsdp there is a mesh of devices to shard over."""
        if self.device_mesh is not None:
            shard(self, self.device_mesh["data_parallel"])

    # ------------------------------------------------------------------------------------------------- loss
    def memory(self, batch: Batch, aux: Aux | None = None) -> Memory:
        """What the fusion keeps of the batch's pictures."""
        return self.fusion.encode(self.language, self.visual(batch, aux), aux)

    def no_picture(self, contexts: int) -> Memory:
        """The same of contexts that hold no picture: what the mechanism does by itself."""
        return self.fusion.encode(self.language, self._nothing_to_see(contexts))

    def _nothing_to_see(self, contexts: int) -> Visual:
        like = next(self.fusion.parameters(), next(self.language.parameters()))
        spec = present(self.vision if self.projector is None else self.projector, "part that looks").spec
        return Visual.no_picture(contexts, spec, like)

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

    def visual(self, batch: Batch, aux: Aux | None = None) -> Visual:
        """The batch's pictures as the fusion gets them: none for one that does not see. ``aux`` as in projectors."""
        if not self.fusion.sees:
            return Visual.nothing(len(batch.ids))
        if batch.image_valid_IM is not None and batch.image_valid_IM.shape[1] == 0:
            return self._nothing_to_see(len(batch.ids))
        pictures = encoded(batch, self.vision, self.needs_levels)
        return pictures if self.projector is None else self.projector(pictures, aux)

    def losses(self, batch: Batch) -> dict[str, Loss]:
        """The loss of every view that the loader made of the batch, by objective. Pictures are encoded once for all.

        Raises ValueError for a batch without views.
        """
        if not batch.views:
            raise ValueError("The batch has no views; they are made where it is loaded (loading.rows.with_views).")
        walk = self._compiled if self.training and self._compiled else self.walk
        walked = walk(self.visual(batch), {name: view.seen for name, view in batch.views.items()})
        return {name: self.objectives[name].loss(self, walked[name], view) for name, view in batch.views.items()}

    def live(self, batch: Batch) -> Batch:
        """The batch as a step learns from it: its views, or what the model itself makes of them now."""
        return replace(
            batch, views={name: self.objectives[name].live(self, batch, v) for name, v in batch.views.items()}
        )

    def walk(self, visual: Visual, views: Mapping[str, View]) -> dict[str, Walked]:
        """The whole way of training through fusion and language model, for what every objective shows."""
        memory = self.fusion.encode(self.language, visual)
        return {
            name: self.objectives[name].walk(self.fusion, self.language, memory, view) for name, view in views.items()
        }

    def total(self, batch: Batch, losses: Mapping[str, Loss]) -> Tensor:
        """What training follows: all losses of a batch in their reductions, weighted."""
        total = torch.zeros(())  # which adds to numbers of any device
        for name, (mean, count, terms, rows) in losses.items():
            rows = len(present(batch.text, "text in the batch").ids_BT) if rows is None else rows
            scale = reduction(self.optim["reduction"], count, rows)
            total = total + self.objectives[name].share(self.fusion) * scale * mean
            total = total + sum(weight * value for value, weight in terms.values())
        return batch.weight * total

    def cross_entropy(self, hidden_BTE: Tensor, target: Target) -> tuple[Tensor, Tensor]:
        """Mean nats per target by their weights, 0 where there is none (documents of pictures only), and how many.

        Logits are made at the targets alone, whose places the loader knows: counting them on a GPU would wait for it.
        """
        hidden_XE = hidden_BTE.flatten(0, 1).index_select(0, target.at_X)
        readout, vocabulary = partial(self.fusion.readout, self.language), self.language.spec.vocabulary
        parameters = self.readout_parameters()
        total = summed_cross_entropy(readout, hidden_XE, target.id_X, parameters, vocabulary, target.weight_X)
        return total / max(1, len(target.id_X)), target.id_X.new_full((), len(target.id_X))

    def nats(self, memory: Memory, view: View, language: Language | None = None) -> Tensor:
        """-log p of each of the view's targets, (X,), by the walk that captions are written by; no gradients.

        ``language``: what the fusion walks through in place of the language model itself, say to be watched.
        """
        target = present(view.target, "target in the view")
        with torch.no_grad():
            hidden_BTE = self.writer.decode(self.language if language is None else language, memory, view.text)
        hidden_XE = hidden_BTE.flatten(0, 1).index_select(0, target.at_X)
        readout = partial(self.fusion.readout, self.language)
        return each_cross_entropy(readout, hidden_XE, target.id_X, self.language.spec.vocabulary)

    def text_loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Mean nats per token of the batch's text as it stands, whatever is trained, and how many tokens."""
        text = present(batch.text, "text in the batch")
        view = Rows(pack=False, ends=self.writer.reads_ends).lay(View(text, Target.next(text)), len(batch.ids))
        hidden_BTE, _ = self.writer.learn(self.language, self.memory(batch), view.text)
        return self.cross_entropy(hidden_BTE, present(view.target, "target in the view"))

    def compile_training(self) -> None:
        """Compile the way of training. Validation and captioning stay as they are."""
        self._compiled = compiled(self.walk)

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
        losses = self.losses(self.live(batch))
        total = self.total(batch, losses)
        terms = {name: value for loss in losses.values() for name, (value, _) in loss.terms.items()}
        self._require_finite("training loss", {**{name: loss.mean for name, loss in losses.items()}, **terms})
        self._lasting.watch(terms, self.global_step)
        headline = next(iter(losses.values())).mean if len(losses) == 1 else total
        if self.spikes is not None:
            said = self.spikes.watch(headline, batch, self.global_step)
            if said and self.trainer.is_global_zero:
                print(said, flush=True)
        where = f"train/{batch.dataset}/" if batch.dataset else "train/"
        for name, (value, weight) in self._shown(losses, total, terms).items():
            if self._at_a_log():
                value = averaged(value, weight)
            self.log(f"{where}{name}", value, prog_bar=name == "loss", batch_size=len(batch.ids))
        if self.trainer.is_global_zero and self._at_a_log():
            self.log_dict({f"fusion/{name}": value for name, value in self.fusion.scalars().items()})
        return self._fill_up * total

    @staticmethod
    def _shown(
        losses: Mapping[str, Loss], total: Tensor, terms: Mapping[str, Tensor]
    ) -> dict[str, tuple[Tensor, Tensor | float]]:
        """What a step tells, and what it weighs beside other processes' own: means by how much they are of."""
        shown: dict[str, tuple[Tensor, Tensor | float]] = {name: (value, 1.0) for name, value in terms.items()}
        means = {name: (loss.mean, loss.count) for name, loss in losses.items()}
        if len(means) == 1:
            return {"loss": next(iter(means.values())), **shown}
        return {"loss": (total, 1.0), **shown, **means}

    def _check_rows(self, batch: Batch) -> None:
        for view in batch.views.values():
            check_rows(view.text, self.language.spec.vocabulary)

    def _at_a_log(self) -> bool:
        """Whether what is logged in this step is written; Lightning counts the step under way."""
        every: int = self.trainer.log_every_n_steps  # pyright: ignore[reportAttributeAccessIssue]: set out of its sight
        return (self.global_step + 1) % every == 0

    def _require_finite(self, what: str, values: Mapping[str, Tensor]) -> None:
        """On a GPU looking at a number waits for it: only now and then."""
        if self.device.type == "cpu" or self._at_a_log():
            require_finite(what, values, self.global_step, self._last_ids)

    def validation_step(self, batch: Batch, index: int) -> None:
        """val/loss chooses the best checkpoint: the mean of the only objective, or the weighted sum of the means."""
        if index == 0:
            self._check_rows(batch)
        losses = self.losses(batch)
        means = {name: loss.mean for name, loss in losses.items()}
        require_finite("validation loss", means, self.global_step, batch.ids)
        for name, (mean, count, *_) in losses.items():
            shown = "loss" if len(self.objectives) == 1 else name
            for where in ("val", *([f"val/{batch.dataset}"] if batch.dataset else [])):
                self._validated.add(f"{where}/{shown}", mean, count if batch.counts else 0)

    def on_validation_epoch_end(self) -> None:
        means = self._validated.taken()
        if len(self.objectives) > 1:
            weighted = (objective.weight * means[f"val/{name}"] for name, objective in self.objectives.items())
            means["val/loss"] = sum(weighted, torch.zeros_like(next(iter(means.values()))))
        for name, mean in means.items():
            self.log(name, mean, prog_bar=name == "val/loss")

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
        decode = decoder or self.decoder
        memory = decode.beside(self.memory(batch), batch.ids)
        prompt = self.start(len(batch.ids), self.device) if prompt is None else prompt
        return decode(self.step, memory, prompt, self.tokenizer.eos, self.fusion.extra_positions)

    def step(self, memory: Memory, text: Text, cache: Cache) -> Seen:
        """One walk over the columns of ``text``; who reads both ways reads all columns so far, and a hidden word."""
        if isinstance(self.fusion, Reader) and self.speaks:
            text = self._so_far(text, cache).and_hidden(present(self.tokenizer.mask, "mask token"))
            hidden_BTE = self.fusion.read(self.language, memory, text).hidden_BTD
        else:
            hidden_BTE = self.writer.decode(self.language, memory, text, cache)
        return Seen(self.fusion.readout(self.language, hidden_BTE[:, -1]), hidden_BTE)

    @staticmethod
    def _so_far(text: Text, cache: Cache) -> Text:
        """All columns that a decoder has handed out, which the cache keeps for who reads them anew at every step."""
        try:
            ids_BT, valid_BT, phi_BT = cache.kept("columns")
            text = text.behind_text(Text(ids_BT, valid_BT, phi_BT, cache.ragged))
        except KeyError:  # the first ones
            cache.ragged = text.ragged
        cache.keep("columns", text.ids_BT, text.valid_BT, text.phi_BT)
        return text

    @property
    def speaks(self) -> bool:
        """Whether it can be asked for words: it writes, or it has learnt what hidden words are."""
        return isinstance(self.fusion, Writer) or any(one.fills for one in self.objectives.values())

    def reading(self, batch: Batch) -> Read:
        """What a mechanism that reads makes of the pictures and texts of a batch. Raises UserError for another."""
        if not isinstance(self.fusion, Reader):
            raise UserError(f"fusion={type(self.fusion).__name__} does not read picture and text at once.")
        batch = self.transfer_batch_to_device(batch, self.device, 0)
        with self.autocast():
            return self.fusion.read(self.language, self.memory(batch), present(batch.text, "text in the batch"))

    def caption(
        self, batches: Iterable[Batch], decoder: Decoder | None = None, prompted: bool = False
    ) -> dict[str, str]:
        """Captions by id, made in eval mode. ``prompted``: go on with the text of the batches."""
        captions = {}
        with self._speaking():
            for batch in batches:
                batch = self.transfer_batch_to_device(batch, self.device, 0)
                with self.autocast():
                    ids = self.generate(batch, decoder, batch.text if prompted else None)
                captions.update({id: self.tokenizer.decode(row) for id, row in zip(batch.ids, ids, strict=True)})
        return captions

    def say(self, batch: Batch, *ways: tuple[Decoder, int]) -> list[list[list[int]]]:
        """For each decoder so many captions a picture, neighbours, as token ids; the pictures are encoded once."""
        with self._speaking(), self.autocast():
            memory, said = self.memory(batch), []
            for decoder, times in ways:
                rows_B = torch.arange(len(batch.ids), device=self.device).repeat_interleave(times)
                prompt, eos = self.start(len(rows_B), self.device), self.tokenizer.eos
                said.append(decoder(self.step, memory.select(rows_B), prompt, eos, self.fusion.extra_positions))
        torch.clear_autocast_cache()  # in a training step it holds weights cast without gradients by now
        return said

    @contextmanager
    def _speaking(self) -> Iterator[None]:
        """In eval mode and without gradients, with weights laid out for many small products."""
        was_training = self.training
        self.eval()
        with torch.no_grad(), ExitStack() as stack:
            with self.autocast():  # of the model alone: whoever makes the batches works in single precision
                stack.enter_context(laid_out(self.fusion, self.language))
            yield
        self.train(was_training)

    def autocast(self):
        """The precision of training, for captioning outside the Trainer."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.optim.get("precision") == "bf16-mixed")

    # ------------------------------------------------------------------------------------------------- optimiser
    def parameter_groups(self) -> list[dict]:
        """Disjoint groups covering every trainable parameter. Raises AssertionError where one is in none, or in two."""
        parts = self.parts(trained=True)
        rates = {part: self.regime[f"lr_{part if part in BASE else 'fusion'}"] for part in parts}
        if adapters := self.adapters:
            parts["adapters"], rates["adapters"] = nn.ParameterList(adapters.values()), self.regime["lr_language"]
        groups = parameter_groups(parts, rates, self.optim)
        require_all(self, groups)
        return groups

    def configure_optimizers(self) -> OptimizerLRScheduler:
        return adamw(self.parameter_groups(), self.optim, self.trainer.estimated_stepping_batches)

    def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None) -> None:
        """Clip the global norm. Lightning's own refuses fused optimisers, which matters only for scaled float16."""
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        if self.spikes is not None and self.spikes.pending:
            self.spikes.leave_out(parameters)
        elif gradient_clip_val:
            norm = whole(nn.utils.clip_grad_norm_(parameters, gradient_clip_val))
            if self.trainer.precision != "16-mixed":  # whose scaler meets infinities and skips those steps
                self._require_finite("gradient", {"norm": norm})
            self.log("train/gradient_norm", norm)

    # ------------------------------------------------------------------------------------------------- checkpoints
    def state_dict(self, *args, **kwargs) -> dict:
        """Only what trains, and nothing that the frozen parts can give again."""
        frozen, adapters = tuple(f"{part}." for part in self.parts(trained=False)), self.adapters
        state = super().state_dict(*args, **kwargs)
        return {name: tensor for name, tensor in state.items() if name in adapters or not name.startswith(frozen)}

    def load_state_dict(self, state_dict: Mapping[str, Tensor], strict: bool = True, assign: bool = False):
        """Load trained tensors; what is missing must be exactly what is frozen. Raises UserError otherwise."""
        check_tensors(state_dict, self.state_dict())
        return super().load_state_dict(state_dict, strict=False, assign=assign)

    def frozen_hashes(self) -> dict[str, str]:
        """sha256 of every frozen part, without its adapters."""
        adapters, parts = self.adapters, self.parts(trained=False)
        kept = {
            part: {name: whole(x) for name, x in module.state_dict().items() if f"{part}.{name}" not in adapters}
            for part, module in parts.items()
        }
        return {part: tensor_hash(tensors) for part, tensors in kept.items()}

    @cached_property
    def tokenizer_hash(self) -> str:
        """sha256 of what every id means."""
        return meaning_hash(self.tokenizer)

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
        check_tokenizer(checkpoint.get("tokenizer", self.tokenizer_hash), self.tokenizer_hash)
