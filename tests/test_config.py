"""Wrong command lines: each is answered at once, by one sentence that names the option, its value and what is right."""

from __future__ import annotations

import ast
import inspect
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from copy import deepcopy
from types import SimpleNamespace

import pytest
from commands import run
from conftest import EVERY, ROOT
from omegaconf import OmegaConf

from src.config import checks, command_line, table
from src.config.checks import groups
from src.config.classes import flatten, static_method, trait
from src.config.earlier import use_earlier
from src.config.help import help_text
from src.config.make import data_sets
from src.contracts import LanguageSpec, VisionSpec
from src.errors import UserError
from src.fusion.base import Writer
from src.kinds import Seed, Size, rule
from src.language.load import tiny
from src.metrics.extra import METRICS
from src.objectives.next_token import NextToken
from src.projectors.mlp import MLP
from src.vision.vit import ViT

# Command line -> what the sentence must say.
WRONG = {
    # names
    "train fusion=sruu": "fusion=sruu is not in conf/fusion; did you mean fusion=srau?",
    "train logger=wandbb": "did you mean logger=wandb?",
    "train trainer=gpu": "trainer=gpu is not in conf/trainer; choose from default.",
    "train fusion=null": "choose from blind, clip, clipcap, coca",
    "train hydra/launcher=foo": "processes",
    "train data=mixture data@data.members.pairs=flickr": "Could not find 'data/flickr'",
    "train fusoin=srau": "did you mean fusion?",
    "train zzz=1": "zzz=1 is no option of src.train; the options are seed,",
    "train fusion.tua=0.1": "did you mean fusion.tau?",
    "train fusion=clipcap fusion.tau=0.1": "the options are fusion.mapper",
    "train optim.warmupp=0.1": "did you mean optim.warmup?",
    "train sede=1": "did you mean seed?",
    "train max_steps=3": "did you mean trainer.max_steps?",
    "train lr=1e-4": "did you mean regime.lr_fusion (and regime.lr_language, regime.lr_vision)?",
    "train +optim.lr=1e-4": "did you mean regime.lr_fusion (and",
    "train epochs=3": "did you mean trainer.max_epochs (with trainer.max_steps=-1)?",
    "train trainer.epochs=3": "did you mean trainer.max_epochs (with trainer.max_steps=-1)?",
    "train device=cuda": "did you mean trainer.accelerator (auto, gpu or cpu; how many: trainer.devices)?",
    "train steps=3": "did you mean trainer.max_steps?",
    "train seed=1 +seed=2": "seed is there already; leave out the +.",
    "train ~optim.betas": "can be changed, but not taken out",
    "train ~optim": "can be changed, but not taken out",
    "train api_key=hunter2hunter2": "api_key=*** is no option of src.train",
    "train api_key=(hunter2hunter2": "'api_key=***' cannot be read as option=value",
    "train seed": "cannot be read as option=value",
    "train seed=(": "cannot be read as option=value",
    "train seed=0,1": "several values are a sweep, which needs -m; a list is written [a,b].",
    "train name=${foo}": "'foo' not found",
    "train language=hub": "language.name= is missing",
    "train experiment=flickr8k": "experiment=flickr8k needs language.weights; say language.weights=<value>",
    "train -m experiment=flickr8k_tenth seed=0,1": "experiment=flickr8k_tenth needs language.weights",
    # word vectors alone
    "train fusion=srau language=words": "is nothing without a language model's blocks, and language=words has none",
    "train fusion=coca language=words": "leave language= out, or say fusion=show_attend_tell.",
    "train fusion=blind language=words": "is nothing without a language model's blocks",
    "train fusion=show_attend_tell regime=lora": "regime=lora adapts a language model's blocks, and language=words has",
    "train fusion=show_attend_tell language=tiny": "would leave out the 4 blocks of this language model",
    "train fusion=show_attend_tell language.model.layers=2": "language.model.layers",
    "train fusion=show_attend_tell language.tokenizer.least=0": "language.tokenizer.least must be a whole number of at",
    "train fusion=show_attend_tell fusion.score=cosine": "fusion.score must be additive, dot or scaled_dot",
    "train fusion=show_attend_tell fusion.doubly_stochastic=-1": "fusion.doubly_stochastic must be a number of",
    # names behind a plus
    "train +optim.lr=1": "optim.lr=1 is no option of src.train",
    "train ++optim.warmup_steps=10": "did you mean optim.warmup?",
    "train +fusion.tau2=0.1": "did you mean fusion.tau?",
    "train +regime.lr_lm=1": "regime.lr_lm=1 is no option",
    "train +decode.beam=3": "did you mean decode.beams?",
    "train +data.batchsize=8": "did you mean data.batch_size?",
    "train +data.source.trian=8": "did you mean data.source.train?",
    "train +trainer.max_step=8": "did you mean trainer.max_steps?",
    "train +trainer.fast_dev_run=true": "trainer.fast_dev_run=true is no option",
    "train +trainer.callbacks=[]": "trainer.callbacks=[] is no option",
    "train +hello.world=1": "hello.world=1 is no option of src.train",
    "train '+optim={lr: 1}'": "optim={lr: 1} is not in conf/optim; choose from adamw, guarded.",
    "train '+regime.more={lr: 1}'": "regime.more.lr=1 is no option",
    "train data=mixture +data.members.pairs.batchsize=4": "did you mean data.members.pairs.batch_size?",
    "train trainer.overfit_batches=1": "add it with +trainer.overfit_batches=...",
    "train +data.schedule=round_robin": "data.schedule belongs to data=mixture",
    "train +data.p_next=0.5": "data.p_next belongs to data of documents with several pictures",
    "train data=mixture +data.members.stories.image_tag=true": "data.members.stories.image_tag belongs to data of sin",
    "train data=shards data.root=x data.by_length=true": "data.by_length=true needs all captions at once",
    "train data=scenes_interleaved +data.cache_dir=x": "data.cache_dir belongs to data of single pictures",
    "train data=scenes_interleaved +data.by_length=true": "data.by_length belongs to data of single pictures",
    "train +language.init=pretrained": "language.init belongs to language models of others",
    "train data=mixture +data.weights.films=2": "data.weights must name the data sets of data.members, pairs, stories",
    # types
    "train trainer.max_steps=abc": "trainer.max_steps must be a whole number of at least 1 or -1 (no limit); got",
    "train trainer.max_steps=2.5": "got 2.5.",
    "train data.batch_size=2.5": "data.batch_size must be a whole number of at least 1; got 2.5.",
    "train data.batch_size=null": "got null.",
    "train seed=x": "seed must be a whole number from 0 to 4294967295; got 'x'.",
    "train seed=true": "got true.",
    "train regime.train_language=perhaps": "must be true or false; got 'perhaps'.",
    "train regime.train_vision=maybe": "must be true or false or auto; got 'maybe'.",
    "train optim.betas=0.9": "optim.betas must be a list",
    "train optim.betas=[0.9]": "optim.betas must be a list",
    "train data.source=5": "data.source must be a group of options; got 5.",
    "train optim.betas.a=5": "optim.betas.a=5 is no option of src.train",
    "train fusion.levels=many": "fusion.levels must be a whole number of at least 1; got 'many'.",
    "train fusion.share_ln=1": "fusion.share_ln must be true or false; got 1.",
    "train name=[a]": "name must be text; got ['a'].",
    "train +trainer.deterministic=3": "trainer.deterministic must be true or false",
    "train fusion=coca fusion.n_uni=half": "fusion.n_uni must be a whole number of at least 1 or null; got 'half'.",
    # ranges
    "train seed=-1": "got -1.",
    "train seed=1e20": "got 1e+20.",
    "train data.batch_size=0": "got 0.",
    "train data.max_tokens=2": "data.max_tokens must be a whole number of at least 3; got 2.",
    "train data.train_fraction=0": "data.train_fraction must be a number above 0 and at most 1; got 0.",
    "train data.train_fraction=1.5": "got 1.5.",
    "train data.workers=-1": "got -1.",
    "train data.max_skipped=2": "data.max_skipped must be",
    "train data.source.train=0": "data.source.train must be a whole number of at least 1; got 0.",
    "train regime.lr_fusion=-1e-3": "regime.lr_fusion must be a number of at least 0; got -0.001.",
    "train regime.lr_fusion=nan": "regime.lr_fusion must be a number of at least 0; got nan.",
    "train regime.lr_fusion=inf": "got inf.",
    "train optim.betas=[0.9,1.0]": "2 times a number of at least 0 and below 1; got [0.9, 1.0].",
    "train optim.warmup=1.1": "optim.warmup must be a share from 0.0 to 1.0, or a whole number of steps; got 1.1.",
    "train optim.reduction=mean": "optim.reduction must be token_mean or sequence_sum; got 'mean'.",
    "train +optim.loss_spike=0.5": "optim.loss_spike must be a number above 1 or null; got 0.5.",
    "train trainer.max_steps=0": "got 0.",
    "train trainer.accumulate_grad_batches=0": "got 0.",
    "train trainer.limit_val_batches=0": "trainer.limit_val_batches must be a share",
    "train trainer.val_check_interval=1.5": "trainer.val_check_interval must be a share",
    "train trainer.precision=fp8": "trainer.precision must be auto, 32-true",
    "train trainer.accelerator=cud": "trainer.accelerator must be auto, cpu",
    "train trainer.devices=0": "trainer.devices must be auto, -1 (all), how many",
    "train trainer.devices=[0,0]": "trainer.devices must be auto",
    "train trainer.strategy=dpp": "trainer.strategy must be auto, single_device, ddp",
    "train decode.beams=0": "decode.beams must be a whole number of at least 1; got 0.",
    "train decode=sample decode.top_p=0": "decode.top_p must be a number above 0 and at most 1; got 0.",
    "train decode=sample decode.temperature=0": "decode.temperature must be a number above 0; got 0.",
    "train fusion.tau=0.5": "fusion.tau must be a number of at least 0 and below 0.5; got 0.5.",
    "train fusion.cross_dropout=1": "fusion.cross_dropout must be a number of at least 0 and below 1; got 1.",
    "train fusion.gate=open": "fusion.gate must be concat, hidden or none; got 'open'.",
    "train fusion=clipcap fusion.prefix_length=0": "got 0.",
    "train fusion=coca fusion.temperature_init=0": "got 0.",
    "train language.model.dropout=1": "language.model.dropout must be",
    "train language.tokenizer.vocabulary=100": "language.tokenizer.vocabulary must be a whole number of at least 260",
    "train language=gpt2 language.init=maybe": "must be pretrained or random; got 'maybe'.",
    "train vision.stem=none": "vision.stem must be conv, patch or resnet; got 'none'.",
    "train regime=lora regime.lora.rank=0": "regime.lora.rank must be a whole number of at least 1; got 0.",
    "train regime=lora regime.lora.alpha=0": "regime.lora.alpha must be a number above 0; got 0.",
    "train regime=lora regime.lora.targets=attn": "regime.lora.targets must be attention, mlp or all; got 'attn'.",
    "train regime=lora regime.lora.ranks=4": "did you mean regime.lora.rank?",
    "train regime.lora.rank=4": "regime.lora.rank",
    "train samples=0": "samples must be",
    "train val_captions=-1": "val_captions must be",
    "train logger=wandb logger.mode=on": "logger.mode must be auto, online",
    # what does not go together
    "train regime=frozen_lm": "freeze a language model with random weights",
    "train regime=lora": "regime=lora would freeze a language model with random weights",
    "train fusion=frozen regime=through_frozen_lm": "regime=through_frozen_lm would freeze a language model",
    "train language=gpt2 language.init=random regime=lora": "regime=lora would freeze a language model with random",
    "train language=gpt2 regime=lora regime.lr_language=0": "regime.lr_language=0 would train no adapters",
    "train language=gpt2 regime=lora regime.train_language=true": "that regime.train_language=true trains; say regime=",
    "train language=gpt2 regime=frozen_lm +regime.lora.rank=4": "regime.lora.alpha is missing; say regime=lora, which",
    "train regime.lr_language=0": "regime.lr_language=0 while regime.train_language=true would train nothing",
    "train regime.train_vision=true regime.lr_vision=0": "use regime.train_vision=false",
    "train trainer.max_steps=-1": "Training would never end",
    "train trainer.max_steps=-1 +trainer.max_time=00:01:00:00": "set trainer.max_steps or trainer.max_epochs too.",
    "train data.max_tokens=129": "model reads 128 positions; lower data.max_tokens, or raise language.model.context.",
    "train language=gpt2 data.max_tokens=2000": "the language model reads 1024 positions; lower data.max_tokens.",
    "train decode.max_tokens=200": "decode.max_tokens=200 does not fit",
    "train fusion=clipcap fusion.prefix_length=100": "data.max_tokens=40 with fusion.prefix_length=100 does not fit",
    "train language.model.heads=3": "language.model.heads=3 must divide language.model.width=128.",
    "train vision.heads=3": "vision.heads=3 must divide vision.width=128.",
    "train vision.patch=7": "vision.patch=7 must divide vision.image_size=64",
    "train vision.patch=1": "vision.patch must be 2, 4, 8 or a further power of two; got 1.",
    "train fusion=clipcap fusion.mapper=transformer fusion.heads=7": "fusion.heads=7 must divide the language model's",
    "train fusion=coca language.model.layers=1": "needs a language model of at least 2 blocks, one per half",
    "train fusion=coca fusion.n_uni=4": "fusion.n_uni=4 leaves no block for the upper half: the language model has 4.",
    "train fusion=coca fusion.n_uni=24 language=gpt2 language.name=gpt2-medium": "the language model has 24.",
    "train fusion=coca fusion.pooler_heads=7": "fusion.pooler_heads=7 must divide the language model's width 128.",
    "train fusion=coca fusion.contrastive_weight=0 fusion.caption_weight=0": "are both 0; one of them must be above",
    "train fusion=flamingo fusion.gate=false fusion.gate_init=0.5": "fusion.gate_init=0.5 needs fusion.gate=true.",
    "train fusion.level_source=vision fusion.levels=5": "fusion.levels=5 is more than the 4 levels",
    "train vision=efficientnet_lite0 fusion.level_source=vision": "fusion.levels=3 is more than the 0 levels",
    "train fusion=frozen projector.pooled=100": "100 visual tokens in front of data.max_tokens=40 do not fit",
    "train fusion=frozen vision=open_clip vision.model=x projector.pooled=90": "90 visual tokens in front of data.max",
    "train vision=conv_vit vision.patch=8": "vision.stem=resnet makes a token of 16 x 16 pixels: say vision.patch=16",
    "train data=pairs_and_text data@data.members.pairs=captions_text": "data with pictures as the first",
    "train data=pairs_and_text fusion=visualbert": "Texts without pictures teach mechanisms that write",
    "train data=pairs_and_text trainer.strategy=ddp": "trainer.strategy=ddp_find_unused_parameters_true.",
    "train vision=efficientnet_lite0 projector=ldp": "encoder's 49 are 7 x 7, which has no half; use an encoder with",
    "train fusion=prefix vision=efficientnet_lite0 projector=pixel_shuffle": "7 x 7, which has no half",
    "train vision=efficientnet_lite0 projector=ldp_v2": "are 7 x 7, which has no half; give projector.side (below 7).",
    "train projector=ldp_v2 projector.side=9": "projector.side=9 is more than the 8 x 8 visual tokens",
    "train projector=perceiver projector.latents=0": "projector.latents must be a whole number of at least 1; got 0.",
    "train fusion=vcgpt fusion.self_ensemble=false": "the language model's logits; add fusion.start=paper.",
    "train data=captions_text": "This fusion reads pictures and the data has none; use fusion=blind",
    "train data=mixture fusion=clipcap": "fusion=clipcap reads one picture per text, and these data have several",
    "train data=mixture data.weights.pairs=0 data.weights.stories=0": "data.weights must be 0 or more and not all 0",
    "train metrics=[meteorr]": "metrics must be meteor, spice or clipscore",
    "train trainer.strategy=single_device trainer.devices=2": "exclude each other",
    "train trainer.strategy=fsdp compile=true": "compile=true needs all weights on one device",
    "train trainer.strategy=fsdp trainer.precision=16-mixed": "does not support trainer.precision=16-mixed",
    "train trainer.strategy=fsdp val_captions=8": "val_captions=8 needs all weights on one device",
    "train trainer.accelerator=cpu trainer.devices=[0,1]": "say how many processes",
    "train optim=guarded trainer.precision=16-mixed": "optim.loss_spike does not work with trainer.precision=16-mixed",
    "train resume=/nowhere": "/nowhere is not a run folder",
    "train task=captions": "task must be caption, stories, retrieval, vqa, match or zero_shot or null",
    "train task=stories": "task=stories needs documents with several pictures",
    "train data=scenes_interleaved fusion=flamingo task=caption": "task=caption needs captioned pictures",
    "train data=captions_text fusion=blind data.source.files=[x] task=caption": "task=caption needs captioned pictures",
    "train task=vqa": "task=vqa needs pictures with questions",
    "train data=scenes_questions task=caption": "task=caption needs captioned pictures",
    "train task=match": "task=match needs a mechanism that is a Reader",
    "evaluate run=x task=few": "task must be caption, stories, retrieval, vqa, match or zero_shot or null",
    "train hydra.run.dir=/dev/null/x": "/dev/null is no folder; choose another place with hydra.run.dir=<folder>.",
    "train -m hydra.sweep.dir=/dev/null/x seed=0,1": "/dev/null/x cannot be made: /dev/null is no folder",
    "train fusion._target_=src.fusion.srau.SRUA": "src/fusion/srau.py has SRAU, and no SRUA.",
    "train fusion._target_=src.fusion.sruu.SRAU": "cannot be found: there is no src/fusion/sruu.py.",
    "train logger._target_=src.tracking.Wnadb": "src/tracking.py has Wandb, and no Wnadb.",
    "train fusion._partial_=false": "fusion needs the line _partial_: true below its _target_",
    "train language.model._partial_=false": "language.model needs the line _partial_: true",
    "train +vision._partial_=true": "vision is made of its options alone; leave out the line _partial_: true.",
    "train +data.source._partial_=true": "data.source is made of its options alone",
    "train logger=wandb logger.project=team/ours": "(a team is named by logger.entity=, src.dashboard entity=); got",
    f"train logger=wandb logger.project={'x' * 129}": "logger.project must be at most 128 characters",
    "dashboard project=team/ours": "(a team is named by logger.entity=, src.dashboard entity=); got 'team/ours'.",
    # sweeps
    "train -m fusion=srau,clipcapp": "did you mean fusion=clipcap?",
    "train -m fusion=srau,clipcap seed=0,x": "got 'x'.",
    "train -m fusion=srau,clipcap fusion.tau=0.1": "fusion.tau=0.1 is no option",
    # the other commands
    "evaluate rum=a": "rum=a is no option of src.evaluate; did you mean run?",
    "evaluate run=a metrics=cider": "metrics must be meteor, spice or clipscore",
    "evaluate run=a decode=gredy": "did you mean decode=greedy?",
    "evaluate run=a shots=-1": "shots must be a whole number of at least 0 or null; got -1.",
    "evaluate run=a decode=beam decode.beams=none": "decode.beams must be a whole number of at least 1; got 'none'.",
    "evaluate run=a data=cocoo": "did you mean data=coco?",
    "evaluate run=a data=coco data.wrokers=0": "did you mean data.workers?",
    "evaluate run=a data=coco data.batch_size=0": "data.batch_size must be a whole number of at least 1; got 0.",
    "evaluate run=a data.wrokers=0": "did you mean data.workers?",
    "caption run=a images=b batch_size=0": "batch_size must be",
    "caption fusion=srau": "no option of src.caption; the options are run, images, output, batch_size, decode.",
    "explain run=a samples=few": "samples must be",
    "seeing run=a captions=0": "captions must be a whole number of at least 1; got 0.",
    "seeing run=a shuffled=0": "shuffled must be a whole number of at least 1; got 0.",
    "seeing run=a pictures=9": "pictures=9 is no option of src.seeing",
    "preserve run=a of_category=1": "of_category must be a whole number of at least 2; got 1.",
    "preserve run=a token=9": "did you mean tokens?",
    "score predictions=a references=b clip.mdoel=x": "did you mean clip.model?",
    "compare runs=a resamples=0": "resamples must be a whole number of at least 1; got 0.",
    "compare runs=a +resample=9": "did you mean resamples?",
    "report runs=a gallery=x": "gallery must be a whole number of at least 0 or null; got 'x'.",
    "report runs=a pictures=some": "pictures must be true or false; got 'some'.",
    "export run=a to=b frozen=includ": "frozen must be reference or include; got 'includ'.",
    "benchmark repeats=0": "repeats must be",
    "benchmark device=tpu": "device must be auto, cpu or cuda; got 'tpu'.",
    "benchmark precision=16-mixed": "precision must be auto, 32-true or bf16-mixed",
    "benchmark seconds=soon": "seconds must be a number of at least 0; got 'soon'.",
    "benchmark decode.batches=[4,0]": "decode.batches must be a list [...] with a whole number of at least 1",
    "benchmark size.tiny.width=0": "size.tiny.width must be a whole number of at least 1; got 0.",
    "benchmark size.tiny.wdith=3": "did you mean size.tiny.width?",
    "dashboard +team=me": "team='me' is no option of src.dashboard",
    "doctor run=3": "did you mean runs?",
}

BESIDE = {  # what else the data of conf/data/<name>.yaml need
    "captions_text": "fusion=blind",
    "package_prose": "fusion=blind",
    "documents": "fusion=flamingo language.model.context=256",
    "mixture": "fusion=flamingo",
    "scenes_interleaved": "fusion=flamingo",
}
RIGHT = [
    *(f"train debug=smoke data={data} {BESIDE.get(data, '')}" for data in checks.choices("data")),
    *(f"train debug=overfit data={data} {BESIDE.get(data, '')}" for data in checks.choices("data")),
    "train debug=smoke experiment=flickr8k language.weights=/nowhere fusion=clipcap",
    *(f"train fusion={fusion}" for fusion in EVERY),
    "train debug=smoke",
    "train debug=overfit",
    "train optim=guarded optim.loss_spike=3 trainer.devices=auto",
    "train trainer.devices=2 trainer.strategy=ddp_find_unused_parameters_true trainer.accelerator=cpu",
    "train +trainer.deterministic=true +trainer.max_time=00:01:00:00 trainer.max_steps=-1 trainer.max_epochs=9",
    "train data=mixture fusion=flamingo data@data.members.pairs=flickr8k data.weights.pairs=0.2",
    "train data=documents fusion=flamingo language.model.context=256",
    "train data=captions_text fusion=blind regime.lr_fusion=0",
    "train language=gpt2 regime=frozen_lm",
    "train fusion=coca fusion.n_uni=3",
    "train fusion=coca fusion.n_uni=30 language=hub language.name=some/model",  # whose sizes only the hub knows
    "train fusion.levels=5",
    "train data=shards data.root=x data.source.train=64 data.source.val=[64,65]",  # folders may have such names
    "train fusion.levels=20 fusion.level_source=vision vision=open_clip",
    "train fusion=clipcap fusion.heads=7",
    "train vision.image_size=63 vision.patch=21 vision.stem=patch",
    "train language=hub language.name=some/model vision=open_clip logger=tensorboard",
    "train fusion='\"srau\"' -m seed=1",
    "train metrics=[meteor,spice] name=2024 seed=3 vision=efficientnet_lite0 logger=wandb",
    "train hydra.run.dir='a b/c' data.root=somewhere data=folder",
    "train -m fusion=glob(*) debug=smoke",
    "train -m hydra/sweeper=search fusion=srau 'regime.lr_fusion=tag(log,interval(1e-4,1e-2))'",
    "train hydra.sweep.dir=/dev/null/x",
    "train --cfg job nonsense=1",  # Hydra's own business
    "evaluate",  # the command says itself what is missing
    "evaluate run=a decode=sample decode.top_k=5 shots=2 data_set=x",
    "evaluate run=a data=coco data.root=elsewhere data.source.images=pictures",
    "evaluate run=a data.root=elsewhere +data.workers=0",
    "evaluate run=a data=mixture data_set=pairs",
    "caption run=2024 images=[a,b]",
    "explain run=a images=x.jpg",
    "seeing run=[a,b] shuffled=3 captions=200 samples=0 split=val",
    "preserve run=[a,b] tokens=30000 pictures=4 of_category=8 split=val output=c",
    "score predictions=a references=b metrics=[meteor] images=c",
    "compare runs=[a,b] allow=split scores=[CIDEr-D]",
    "report runs=a gallery=0 pictures=false",
    "export run=a to=b frozen=include",
    "benchmark sizes=[big] +size.big={layers:1,width:8,heads:1,vocabulary:5,context:9,visual_tokens:3,visual_width:8}",
    f"dashboard project={'x' * 128}",
    "doctor",
]


@pytest.fixture(autouse=True, scope="module")
def read_once():
    """Files of conf/ are parsed once for all these command lines, which takes most of the time."""
    read = {}

    def load(file):
        name = getattr(file, "name", file)  # Hydra hands in open files
        if not str(name).startswith(f"{ROOT / 'conf'}/"):
            return original(file)
        if name not in read:
            read[name] = original(file)
        return deepcopy(read[name])

    original = OmegaConf.load
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(OmegaConf, "load", staticmethod(load))
        yield


@pytest.mark.parametrize("data", checks.choices("data"))
def test_a_smoke_test_takes_a_part_of_whatever_data(data):
    words = f"data={data} {BESIDE.get(data, '')}".split()
    cfg, whole = (command_line.compose("train", [*words, *more], []) for more in (["debug=smoke"], []))
    for one, all_of_it in zip(data_sets(cfg).values(), data_sets(whole).values(), strict=True):
        assert (one.batch_size, one.workers) == (8, 0)
        assert one.source.keys() == all_of_it.source.keys()
        drawn = one.source.get("pairs", one.source)
        less = one.train_fraction < 1 or drawn.get("train", 99) == 64
        assert less or data in (
            "folder",
            "documents",
            "shards",
            "class_folders",
        )  # which are as large as their owner made them


def ask(line: str) -> None:
    command, *words = shlex.split(line)
    command_line.check_words(command, words)


EXPERIMENTS = sorted(path.stem for path in (ROOT / "conf" / "experiment").glob("*.yaml"))


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_what_an_experiment_leaves_open_is_asked_for(name):
    """To OmegaConf ??? is nothing, over which a default below it wins; it is what the experiment is about."""
    written = OmegaConf.load(ROOT / "conf" / "experiment" / f"{name}.yaml")
    started_from = [entry for entry in written.get("defaults", []) if entry in EXPERIMENTS]
    texts = [OmegaConf.load(ROOT / "conf" / "experiment" / f"{one}.yaml") for one in started_from] + [written]
    left_open = {key for text in texts for key, value in flatten(OmegaConf.to_container(text)) if value == "???"}
    left_open -= {key for key, value in flatten(OmegaConf.to_container(written)) if value != "???"}  # filled in
    assert checks.required(name) == left_open
    values = [f"{key}=/nowhere" for key in left_open]
    ask(f"train experiment={name} {' '.join(values)}")
    for value in values:
        for sweep in ("", "-m seed=0,1 "):
            with pytest.raises(UserError, match=re.escape(f"experiment={name} needs {value.partition('=')[0]}")):
                ask(f"train {sweep}experiment={name} {' '.join(set(values) - {value})}")


def test_what_an_experiment_starts_from_may_be_filled_in(tmp_path, monkeypatch):
    (tmp_path / "conf" / "experiment").mkdir(parents=True)
    texts = {
        "open": "{a: {b: '???', c: 1}}",
        "filled": "{defaults: [open, _self_], a: {b: 2}}",
        "opened": "{defaults: [filled, override /data: coco], a: {c: '???'}}",
        "swept": "{defaults: [open], hydra: {sweeper: {params: {a.b: '1,2'}}}}",
    }
    for name, text in texts.items():
        (tmp_path / "conf" / "experiment" / f"{name}.yaml").write_text(text)
    monkeypatch.setattr(checks, "HOME", tmp_path)
    asked = {name: checks.required(name) for name in texts}
    assert asked == {"open": {"a.b"}, "filled": set(), "opened": {"a.c"}, "swept": {"a.b"}}
    assert checks.required("swept", sweep=True) == set()


@pytest.mark.parametrize("line", WRONG)
def test_a_wrong_command_is_one_sentence(line):
    began = time.process_time()
    with pytest.raises(UserError) as caught:
        ask(line)
    assert time.process_time() - began < 1.5  # the rest of two seconds is Python's and Hydra's start
    assert WRONG[line] in str(caught.value) and "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("line", RIGHT)
def test_a_right_command_is_let_through(line):
    ask(line)


def test_every_choice_of_conf_is_known():
    """Whoever adds an option to a yaml file adds nothing else."""
    words = {"language": {"hub": ["language.name=some/model"]}}
    for group in checks.groups():
        for choice in checks.choices(group):
            if group not in ("experiment", "debug"):
                line = [f"{group}={choice}", *words.get(group, {}).get(choice, [])]
                checks.check_options("train", command_line.compose("train", line, command_line.parse(line)))


def seconds(*command: str) -> tuple[subprocess.CompletedProcess, float]:
    """The answer of a command and the processor time that it took: wall time is other people's, too."""
    before = os.times()
    answer = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, timeout=60)
    after = os.times()
    return answer, after.children_user + after.children_system - before.children_user - before.children_system


@pytest.mark.parametrize(
    "line",
    [
        "train fusion=sruu",
        "train +trainer.max_step=3",
        "train -m fusion=srau decode.beams=0,1",
        "train -m fusion=coca fusion.n_uni=2,9",
        "train fusion=flamingo fusion.gate=false fusion.gate_init=0.5",
        "train fusion.level_source=vision fusion.levels=9",
        "caption run=a imagse=b",
    ],
)
def test_the_command_answers_within_two_seconds_and_leaves_nothing(line, tmp_path):
    command, *words = line.split()
    folder = [f"hydra.run.dir='{tmp_path}/run'", f"hydra.sweep.dir='{tmp_path}/sweep'"] if command == "train" else []
    answer, spent = seconds(f"src.{command}", *words, *folder)
    assert answer.returncode == 2 and not answer.stdout and spent < 2
    (sentence,) = answer.stderr.splitlines()
    assert sentence.startswith("error: ") and not list(tmp_path.iterdir())


def test_the_task_itself_checks_too():
    """Under launchers that begin jobs in ways of their own."""
    seen = []

    def main(cfg):
        seen.append(cfg)

    main = command_line.verb(main)  # of a command that is called like this file
    table.COMMANDS["test_config"] = {"seed": Seed}
    try:
        main(OmegaConf.create({"seed": 1}))
        with pytest.raises(SystemExit) as caught:
            main(OmegaConf.create({"seed": -1}))
    finally:
        del table.COMMANDS["test_config"]
    assert len(seen) == 1 and caught.value.code == 2


def test_metrics_of_the_table_are_those_there_are():
    asked = rule(table.Metrics)
    assert all(map(asked.fits, METRICS)) and asked.fits(list(METRICS))
    assert all(name in asked.description for name in METRICS)


MINE = """
from typing import Annotated, Literal

from src.fusion.base import Writer
from src.kinds import Ge, Lt, Size


class Mine(Writer):
    def __init__(self, vision, language, layers: Size | None, width: int | None, tau: Annotated[float, Ge(0), Lt(0.5)],
                 mode: Literal["mean", "last"]):
        super().__init__(vision, language)

    @staticmethod
    def refusals(fusion, language, vision):
        if fusion.mode == "last" and fusion.layers is None:
            yield "fusion.mode=last needs fusion.layers."
        if fusion.layers is not None and fusion.layers > language.layers:
            yield f"fusion.layers={fusion.layers} is more than the language model's {language.layers}."
        if vision.width != language.width:
            yield f"fusion=mine needs vision.width={language.width}; got {vision.width}."

    def encode(self, lm, visual, aux=None): ...

    def decode(self, lm, memory, text, cache=None, aux=None): ...
"""
CONF = """
_target_: src.fusion.mine.Mine
_partial_: true
layers: null
width: null
tau: 0.2
mode: mean
"""
# What is said after fusion=mine -> how the sentence begins; none where nothing is wrong.
ASKED = {
    "": "",
    "fusion.layers=4 fusion.width=0": "",
    "fusion.layers=0": "fusion.layers must be a whole number of at least 1 or null; got 0.",
    "fusion.width=0.5": "fusion.width must be a whole number or null; got 0.5.",
    "fusion.tau=0.5": "fusion.tau must be a number of at least 0 and below 0.5; got 0.5.",
    "fusion.mode=max": "fusion.mode must be mean or last; got 'max'.",
    "fusion.mode=last": "fusion.mode=last needs fusion.layers.",
    "fusion.layers=5": "fusion.layers=5 is more than the language model's 4.",
    "fusion.layers=30 language=hub language.name=some/model": "",  # only the hub knows
    "vision.width=64": "fusion=mine needs vision.width=128; got 64.",
    "vision.width=64 projector=mlp": "",
    "vision=open_clip": "",  # only the library knows
}


def test_a_mechanism_of_ones_own_is_one_file_and_its_yaml(tmp_path):
    """All that it refuses is answered before it, or torch, is imported."""
    for folder in ("src", "conf"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "src" / "fusion" / "mine.py").write_text(MINE)
    (tmp_path / "conf" / "fusion" / "mine.yaml").write_text(CONF)
    script = (
        "import json, sys\n"
        "from src.config.command_line import check_words\n"
        "from src.errors import UserError\n"
        "for line in json.load(sys.stdin):\n"
        "    try:\n        print(check_words('train', ['fusion=mine', *line.split()]) or '')\n"
        "    except UserError as error:\n        print(error)\n"
        "    assert not {'torch', 'src.fusion.mine'} & set(sys.modules)\n"
    )
    asked = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, input=json.dumps(list(ASKED)), capture_output=True, text=True
    )
    assert not asked.stderr and asked.stdout.splitlines() == list(ASKED.values())


def test_python_callers_are_told_the_same():
    names: dict = {}
    exec(MINE, names)
    vision, language = VisionSpec(8, 4, 8, 64), LanguageSpec(8, 4, 2, 100, 32, 0, 1, 2)
    options = {"layers": None, "width": None, "tau": 0.2, "mode": "mean"}

    class Wider(names["Mine"]):
        """Gives its base what it has not been asked for itself."""

        def __init__(self, vision, language, depth: Size):
            super().__init__(vision, language, layers=0, width=None, tau=0.2, mode="mean")

        @staticmethod
        def refusals(fusion):
            if fusion.depth == 3:
                yield "fusion.depth=3 brings bad luck."

    for made in (names["Mine"](vision, language, **options), Wider(vision, language, 2)):
        assert isinstance(deepcopy(made), Writer)
    assert list(inspect.signature(Wider).parameters) == ["vision", "language", "depth"]
    for change, sentence in (({"mode": "max"}, "must be mean or last"), ({"layers": 5}, "is more than the")):
        with pytest.raises(UserError, match=sentence):
            names["Mine"](vision, language, **{**options, **change})
    with pytest.raises(UserError, match=r"fusion\.depth must be a whole number of at least 1; got true\."):
        Wider(vision, language, depth=True)
    with pytest.raises(UserError, match=r"fusion\.depth=3 brings bad luck\."):
        Wider(vision, language, 3)
    with pytest.raises(TypeError, match="depth"):
        Wider(vision, language)
    with pytest.raises(UserError, match=r"objectives\.weight must be a number of at least 0; got -1\."):
        NextToken(weight=-1)
    with pytest.raises(UserError, match=r"language\.model\.dropout must be a number .* below 1; got 1\."):
        tiny(None, dropout=1)


def test_what_the_options_say_of_a_part_is_what_is_built():
    options = {"image_size": 32, "patch": 4, "width": 8, "layers": 3, "heads": 2}
    vit, language = ViT(**options), LanguageSpec(8, 4, 2, 100, 32, 0, 1, 2)
    assert vit.spec == VisionSpec(**static_method("src.vision.vit.ViT", "sizes")(SimpleNamespace(**options)))
    for pooled in (None, 3):
        projector = MLP(vit.spec, language, layers=1, pooled=pooled, dropout=0.0)
        told = static_method("src.projectors.mlp.MLP", "sizes")(SimpleNamespace(pooled=pooled), language, vit.spec)
        assert told.items() <= vars(projector.spec).items()
    assert static_method("src.vision.open_clip.OpenClip", "sizes") is None
    assert static_method("src.language.load.tiny", "refusals") is None


def test_rules_of_classes_find_no_other_names():
    """They are run before anything of their file is, and could be those of a stranger's file."""
    tree = ast.parse("class A:\n    @staticmethod\n    def refusals(fusion):\n        yield open('/etc/passwd').read()")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("src.config.classes._parsed", lambda file: tree)
        rules = static_method("src.fusion.blind.A", "refusals")
    with pytest.raises(NameError, match="open"):
        list(rules(None))


@pytest.mark.parametrize("command", table.COMMANDS)
def test_help_is_about_the_verb_alone(command):
    """Its options with the comments of its yaml, its choices, and neither other verbs' nor Hydra's."""
    text = help_text(command, f"The docstring of {command}.")
    assert text.startswith(f"The docstring of {command}.")
    options = {line.strip().partition(":")[0] for line in text.partition("Options:\n")[2].splitlines()}
    top = {key.partition(".")[0] for key in table.COMMANDS[command]}
    missing = top - options - {group.partition("/")[0] for group in groups(command)}
    assert not missing
    assert "\n  hydra:" not in text and ("fusion=" in text.partition("Choices")[2]) == (command == "train")


def test_help_of_evaluate():
    answer = run("src.evaluate", "--help")
    assert "python -m src.evaluate run=runs/... shots=4" in answer.stdout
    assert re.search(
        r"^  decode= +\(none\) \| beam \| contrastive \| fill \| greedy \| magic \| sample$", answer.stdout, re.M
    )
    assert re.search(r"^  samples: 16 +# pictures on the sheet$", answer.stdout, re.M)
    assert "powered by Hydra" not in answer.stdout


def test_what_classes_say_of_themselves():
    sees = {name: trait(f"src.fusion.{name}", "sees") for name in ("blind.Blind", "clipcap.ClipCap", "base.Fusion")}
    assert sees == {"blind.Blind": False, "clipcap.ClipCap": True, "base.Fusion": True}  # of a base, too
    assert trait("src.data.stories.ScenesInterleaved", "interleaved") is True
    assert trait("src.data.karpathy.Karpathy", "has_images") is True
    assert trait("src.data.captions_text.CaptionsText", "has_images") is False
    assert trait("src.fusion.blind.Blind", "nothing") is trait("src.language.load.tiny", "sees") is None


def test_options_that_only_conf_knows_have_the_type_of_their_default(monkeypatch):
    monkeypatch.setattr(table, "COMMANDS", {**table.COMMANDS, "score": {}})
    ask("score predictions=a references=b split=test")
    monkeypatch.setattr(table, "COMMANDS", {**table.COMMANDS, "evaluate": {}})
    with pytest.raises(UserError, match="samples must be a whole number; got 'x'"):
        ask("evaluate run=a samples=x")
    with pytest.raises(UserError, match=r"sampels=3 is no option of src.evaluate; did you mean samples\?"):
        ask("evaluate run=a +sampels=3")


def test_a_mechanism_of_ones_own_is_typed_by_its_annotations(tmp_path, monkeypatch):
    (tmp_path / "src" / "fusion").mkdir(parents=True)
    (tmp_path / "src" / "fusion" / "mine.py").write_text(
        "from src.fusion.base import Writer\n"
        "class Base(Writer):\n    def __init__(self, vision, language, depth: int, tau: float, mode: str | None,"
        " layers: Size | None = None): ...\n"
        "class Mine(Base):\n    pass\n"
        "class Sample(Writer):\n    def __init__(self, vision, language, temperature: float, seed: str): ...\n"
    )
    monkeypatch.setattr("src.config.classes.HOME", tmp_path)
    node = {"_target_": "src.fusion.mine.Mine", "_partial_": True, "depth": 2, "tau": 7, "mode": None}
    checks._check_class("fusion", node)  # names that other mechanisms use mean here what they mean here
    with pytest.raises(UserError, match=r"fusion.depth must be a whole number; got 'x'\."):
        checks._check_class("fusion", {**node, "depth": "x"})
    checks._check_class("fusion", {**node, "layers": None})
    with pytest.raises(UserError, match=r"fusion.layers must be a whole number of at least 1 or null; got 0\."):
        checks._check_class("fusion", {**node, "layers": 0})
    alike = {"_target_": "src.fusion.mine.Sample", "_partial_": True, "temperature": -1.0, "seed": "none"}
    checks._check_class("fusion", alike)  # nor has it the rules of another class of its name
    with pytest.raises(UserError, match=r"fusion has no option 'dept'; did you mean fusion.depth\?"):
        checks._check_class("fusion", {**node, "dept": 3})


@pytest.mark.parametrize(
    ("kind", "inside", "outside"),
    [
        ("BelowOne", (0, 0.5), (1, -0.1, True, "0", None, float("nan"))),
        ("Annotated[float, Gt(0), Le(1)]", (1, 1e-9), (0, 2)),
        ("Rate", (0, 1e300), (-1e-300, float("inf"))),
        ("Seed | None", (0, 2**32 - 1, None), (-1, 2**32, 1.0, False, "1")),
        ('Literal["a", "b"] | bool', ("a", True), ("c", None, 1, ["a"])),
        ("Sequence[str]", (["a"], (), ("a", "b")), ("a", [1], None)),
    ],
)
def test_kinds(kind, inside, outside):
    asked = rule(kind)
    assert all(map(asked.fits, inside)) and not any(map(asked.fits, outside))


def test_annotations_of_other_words_say_nothing():
    for kind in ("VisionSpec", "Size | VisionSpec", "__import__('os')", "Any", "", "Size +", Callable[[int], str]):
        assert rule(kind) is None


def test_the_language_model_of_an_earlier_run_has_its_own_sizes(tmp_path):
    earlier = command_line.compose("train", ["language.model.layers=2", "language.model.context=64"], [])
    (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml(earlier))
    ask(f"train fusion=coca language.weights={tmp_path} fusion.n_uni=1")
    with pytest.raises(UserError, match=r"fusion.n_uni=2 leaves .* the language model has 2\."):
        ask(f"train fusion=coca language.weights={tmp_path} fusion.n_uni=2")
    ask(f"train -m fusion=coca language.weights={tmp_path},/not/yet fusion.n_uni=1")


def test_a_checkpoint_that_an_earlier_run_kept_frozen_is_the_same_one_again(tmp_path):
    words = ["language=hub", "language.name=gpt2", "regime=frozen_lm"]
    (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml(command_line.compose("train", words, [])))
    cfg = use_earlier(command_line.compose("train", [*words, f"weights={tmp_path}"], []))
    assert cfg.weights == str(tmp_path) and cfg.language.weights is None
    with pytest.raises(UserError, match=r"trained with language.model.name=gpt2, and here it is gpt2-medium"):
        use_earlier(command_line.compose("train", [*words, "language.name=gpt2-medium", f"weights={tmp_path}"], []))


def test_a_run_in_the_home_folder_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "lm").mkdir()
    (tmp_path / "lm" / "config.yaml").write_text(OmegaConf.to_yaml(command_line.compose("train", [], [])))
    cfg = use_earlier(command_line.compose("train", ["language.weights='~/lm'"], []))
    assert cfg.language.weights == str(tmp_path / "lm")


def test_a_place_that_is_read_only(tmp_path, monkeypatch):
    command_line.check_place("hydra.run.dir", tmp_path / "a" / "b")
    monkeypatch.setattr(os, "access", lambda place, how: False)
    with pytest.raises(UserError, match=f"{tmp_path} cannot be written to; choose another place with hydra.run.dir="):
        command_line.check_place("hydra.run.dir", tmp_path / "a" / "b")
    assert not list(tmp_path.iterdir())


def test_devices_that_are_not_here(monkeypatch, capsys):
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def asked(accelerator="auto", devices="auto"):
        return OmegaConf.create({"accelerator": accelerator, "devices": devices})

    auto = asked()
    checks.check_device(auto)
    with pytest.raises(UserError, match=r"trainer.accelerator=gpu needs a GPU .* this machine has none"):
        checks.check_device(asked("gpu"))
    for accelerator in ("mps", "tpu"):
        with pytest.raises(UserError, match=f"trainer.accelerator={accelerator} is not available on this machine"):
            checks.check_device(asked(accelerator))
    assert not capsys.readouterr().out
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    with pytest.raises(UserError, match="CUDA_VISIBLE_DEVICES=7 names none that is here"):
        checks.check_device(asked("gpu", 1))
    checks.check_device(auto)
    assert capsys.readouterr().out.startswith("note: CUDA_VISIBLE_DEVICES=7 names no GPU")
    monkeypatch.setenv(checks.LEASED, "1")
    with pytest.raises(UserError, match="The GPU 7 that this job of a sweep was given does not answer"):
        checks.check_device(auto)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    checks.check_device(asked("gpu", [0, 1]))
    for devices in (3, [0, 2]):
        with pytest.raises(UserError, match="asks for more than the 2 GPUs"):
            checks.check_device(asked("gpu", devices))
