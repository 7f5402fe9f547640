"""``python -m src.benchmark``: once as a user types it, at a very small size; and its parts."""

from __future__ import annotations

import itertools
import json
import math
import os
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
import torch
from conftest import FUSIONS, ROOT, language_of, make_fusion, make_visual
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from transformers import LlamaConfig, LlamaForCausalLM

from src import benchmark
from src.benchmark import checked
from src.benchmarking import timing
from src.benchmarking.jobs import Alone, Failure, Job, Unsupported, plan
from src.benchmarking.languages import llama_options
from src.benchmarking.measure import PARTS, prepare, take
from src.benchmarking.peers import PEERS
from src.benchmarking.summary import spread, summarise
from src.benchmarking.tables import number, table, text
from src.benchmarking.workloads import WINDOW, Endless, Own, Workload
from src.contracts import Text
from src.decoding.base import Seen
from src.decoding.beam import BeamSearch
from src.decoding.greedy import Greedy
from src.errors import UserError

WORDS = "a the dog cat man woman ball park street runs sits jumps red blue big small on near with two children".split()
LAYERS, WIDTH, VOCABULARY, TOKENS = 2, 32, 300, 5
SHAPE = f"layers: {LAYERS}, width: {WIDTH}, heads: 4, vocabulary: {VOCABULARY}, context: 64, visual_tokens: 6"
MLP, SHARED = 48, 2  # of the Llama: width of its MLP, key-value heads
SMALL = (
    f"size.tiny={{{SHAPE}, visual_width: 24}}",
    f"size.smol={{{SHAPE}, visual_width: 24, family: llama, key_value_heads: {SHARED}, mlp: {MLP}}}",
    "images=2",
    "captions=2",
    "decode.batches=[1,3]",
    f"decode.tokens={TOKENS}",
    "encoder=vit",
    "seconds=0.01",
    "device=cpu",
    "precision=32-true",
)


@pytest.fixture(scope="module")
def captions(tmp_path_factory) -> Path:
    """A file of captions of very different lengths."""
    chance, file = Random(0), tmp_path_factory.mktemp("captions") / "captions.txt"
    file.write_text("".join(f"{' '.join(chance.choices(WORDS, k=chance.randint(2, 14)))}\n" for _ in range(300)))
    return file


@pytest.fixture(scope="module")
def output(captions, tmp_path_factory) -> Path:
    """The command with two mechanisms, one peer and two rounds."""
    folder = tmp_path_factory.mktemp("benchmark") / "results"
    arguments = ["fusions=cross_attention", "peers=[vision_encoder_decoder]", "repeats=2", f"lengths={captions}"]
    answer = subprocess.run(
        [sys.executable, "-m", "src.benchmark", *SMALL, *arguments, f"output={folder}"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert (folder / "table.md").read_text() in answer.stdout
    return folder


@pytest.fixture(scope="module")
def results(output) -> dict:
    return json.loads((output / "benchmark.json").read_text())


def settings_of(*overrides: str) -> dict:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return checked(compose("benchmark", list(overrides)))


@pytest.fixture(scope="module")
def prepared(captions, tmp_path_factory) -> dict:
    """Settings and folder of the same batches as those of the command."""
    settings = settings_of(*SMALL, "sizes=[tiny,smol]", f"lengths={captions}")
    settings["folder"] = str(tmp_path_factory.mktemp("prepared"))
    prepare(Job("prepare"), settings)
    return settings


@pytest.fixture
def workload(prepared) -> Workload:
    return Workload(prepared, "tiny")


@pytest.fixture
def llamas(prepared) -> Workload:
    return Workload(prepared, "smol")


def training(results: dict, model: str, regime: str = "finetune_lm", pack: bool = False) -> dict:
    wanted = (model, regime, pack)
    (row,) = (row for row in results["training"] if (row["model"], row["regime"], row["pack"]) == wanted)
    return row


def own(model: str, workload: Workload, regime: str = "finetune_lm", pack: bool = False) -> Own:
    return Own(Job("train", "tiny", model, regime, pack=pack), workload, "32-true")


# ------------------------------------------------------------------------------------------------------- the command
def test_everything_asked_for_is_measured(results):
    ours, peer = ["blind", "cross_attention"], "vision_encoder_decoder"
    rows = [(row["regime"], row["model"], row["pack"]) for row in results["training"]]
    assert rows == [
        (regime, model, pack)
        for regime in ("finetune_lm", "frozen_lm")
        for model, pack in [*itertools.product(ours, (True, False)), (peer, False)]
    ]
    assert [row["model"] for row in results["decoding"]] == [*ours, peer]  # once, whatever the rows of training
    assert [row["kind"] for row in results["decoding"]] == ["floor", "fusion", "peer"]
    assert results["failures"] == {}
    assert results["environment"]["command"].startswith("python -m src.benchmark")
    for name in ("matrix_flops_per_second", "decoded_per_second", "encoded_per_second"):
        assert len(results["machine"][name]["values"]) == 2 and results["machine"][name]["low"] > 0


def test_parts_sum_to_the_step_and_the_step_gives_the_rates(results):
    for row in results["training"]:
        for turn, step in enumerate(row["seconds"]["step"]["values"]):
            parts = sum(row["seconds"][part]["values"][turn] for part in PARTS)
            assert parts == pytest.approx(step, rel=0.02, abs=1e-3)
            assert row["samples_per_second"]["values"][turn] * step == pytest.approx(4)  # 2 pictures x 2 captions
            assert row["tokens_per_second"]["values"][turn] * step == pytest.approx(row["tokens_per_step"])
        assert all(row["seconds"][part]["low"] > 0 for part in PARTS)


def test_flops_are_those_of_the_formula_and_of_the_captioner(results, workload):
    """The plain GPT-2: 12 D^2 weights a block; attention's two products, of which the backward pass makes five."""
    for pack in (False, True):
        want = counted_of(own("blind", workload, pack=pack), workload, 12 * WIDTH**2)
        assert training(results, "blind", pack=pack)["flops_per_step"] == want
    for regime, pack in itertools.product(("finetune_lm", "frozen_lm"), (True, False)):
        model = own("cross_attention", workload, regime, pack)
        counted = sum(model.flops(batch) for batch in workload.window()) / WINDOW
        assert training(results, "cross_attention", regime, pack=pack)["flops_per_step"] == counted


def test_flops_of_a_llama_are_those_of_its_form(llamas):
    """Queries and output D^2 each, keys and values less by the heads that share them, three matrices in the MLP."""
    model = own("blind", llamas, pack=True)
    want = counted_of(model, llamas, 2 * WIDTH**2 * (1 + SHARED / 4) + 3 * WIDTH * MLP)
    assert sum(model.flops(batch) for batch in llamas.window()) / WINDOW == want


def counted_of(model: Own, workload: Workload, weights_of_block: float) -> float:
    """Of a step of the plain language model, which has read the workload's rows before."""
    want = 0
    for batch in workload.window():
        B, T = batch.views["next_token"].text.ids_BT.shape
        weights = 2 * B * T * weights_of_block * LAYERS
        product = 2 * B * T * T * WIDTH * LAYERS
        logits = 2 * int(batch.text.targets()[:, 1:].sum()) * WIDTH * VOCABULARY
        want += (3 * (weights + logits) + 7 * product) / WINDOW
    return want


def test_ratios_stand_on_the_floor_of_the_same_regime(results):
    for row in results["training"]:
        floor = training(results, "blind", row["regime"], row["pack"])
        assert row["flops_over_floor"] == row["flops_per_step"] / floor["flops_per_step"]
        pairs = zip(row["seconds"]["step"]["values"], floor["seconds"]["step"]["values"], strict=True)
        assert row["time_over_floor"]["values"] == pytest.approx([mine / its for mine, its in pairs])
        rates = row["matrix_flops_per_second"]["values"]
        assert 0.1 < min(rates) / results["machine"]["matrix_flops_per_second"]["median"] < 10
        used = [
            row["flops_per_step"] / s / rate for s, rate in zip(row["seconds"]["step"]["values"], rates, strict=True)
        ]
        assert row["utilisation"]["values"] == pytest.approx(used)
    assert training(results, "blind")["flops_over_floor"] == 1
    for model in ("blind", "cross_attention", "vision_encoder_decoder"):
        frozen, tuned = training(results, model, "frozen_lm"), training(results, model)
        assert frozen["flops_per_step"] < tuned["flops_per_step"] and frozen["trainable"] < tuned["trainable"]


def test_all_train_on_the_same_tokens(results, workload):
    assert len({row["tokens_sha256"] for row in results["training"]}) == 1
    lengths = [n for batch in workload.window() for n in batch.text.valid_BT.sum(1).tolist()]
    assert len(set(lengths)) > 3  # real lengths, not one
    assert training(results, "blind")["tokens_per_step"] == (sum(lengths) - len(lengths)) / WINDOW


def test_of_questions_the_answers_are_learnt(tmp_path):
    settings = settings_of(*SMALL, "lengths=questions", "captions=1", "peers=[]") | {"folder": str(tmp_path)}
    prepare(Job("prepare"), settings)
    workload = Workload(settings, "tiny")
    for batch in workload.window():
        for row, one in zip(batch.text.ids_BT, batch.text.targets(), strict=True):
            learnt = workload.tokenizer.decode(row[one].tolist()).strip()
            assert learnt in {answer for answers in batch.captions for answer in answers}
            assert "?" in workload.tokenizer.decode(row.tolist())


def test_captions_are_full_and_the_same_with_and_without_cache(results):
    for row in results["decoding"]:
        assert [(rate["method"], rate["batch"]) for rate in row["rates"]] == [
            (method, batch) for method in ("greedy", "beam 5") for batch in (1, 3)
        ]
        assert row["first_token_ms"]["low"] > 0
        for rate in row["rates"]:
            assert rate["equal"] == 1.0 and rate["tokens"] == TOKENS
            assert rate["cached"]["low"] > 0 and rate["uncached"]["low"] > 0


def test_memory_of_a_model_is_part_of_the_process(results):
    for row in results["training"]:
        assert 0 <= row["own_memory_mb"]["low"] < row["peak_memory_mb"]["low"]


def test_tables_stand_in_line(output):
    blocks = (output / "table.md").read_text().split("\n\n")
    tables = [block.splitlines() for block in blocks if block.startswith("|")]
    assert [len(lines) for lines in tables] == [2 + 10, 2 + 6]
    assert all(len(set(map(len, lines))) == 1 for lines in tables)
    assert [sum(f"| {rows} |" in line for line in tables[0]) for rows in ("packed", "apart ")] == [4, 6]
    assert any("gradients flow back to the word vectors" in block for block in blocks)


# ------------------------------------------------------------------------------------------------------- contestants
def peer_of(name: str, workload: Workload, regime: str = "finetune_lm"):
    torch.manual_seed(0)
    return PEERS[name](Job("train", "tiny", name, regime, peer=True), workload)


@pytest.mark.parametrize("name", PEERS)
def test_peers_get_our_tokens_and_no_padding(name, workload):
    ours, peer = own("blind", workload, pack=True), peer_of(name, workload)
    peer.module.eval()
    for batch in workload.window():
        assert peer.rows(batch) == ours.rows(batch)
        assert not batch.text.valid_BT.all()
        loss = peer.loss(batch)
        assert math.isfinite(loss.item())
        batch.text.ids_BT[~batch.text.valid_BT] = 7
        torch.testing.assert_close(peer.loss(batch), loss, rtol=0, atol=0)


@pytest.mark.parametrize("name", PEERS)
def test_peers_see_the_picture_and_learn_what_the_regime_says(name, workload):
    batch = next(workload.window())
    for regime in ("finetune_lm", "frozen_lm"):
        peer = peer_of(name, workload, regime)
        peer.train()
        peer.loss(batch).backward()
        learnt = {n for n, p in peer.module.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
        words = {n for n in learnt if "token_embedding" in n or "wte" in n or "word_embeddings" in n}
        assert bool(words) == (regime == "finetune_lm")
        assert {id(p) for group in peer.groups() for p in group["params"]} >= {
            id(p) for n, p in peer.module.named_parameters() if n in learnt
        }
    peer.module.eval()
    before = peer.loss(batch)
    batch.visual.tokens_IMNC.mul_(-1)
    assert (peer.loss(batch) - before).abs() > 1e-6


def test_a_frozen_peer_keeps_dropout_where_it_learns(workload):
    peer = peer_of("vision_encoder_decoder", workload, "frozen_lm")
    peer.train()
    modes = {name: part.training for name, part in peer.module.named_modules()}
    assert modes["decoder.transformer.h.0.crossattention.resid_dropout"]
    assert not modes["decoder.transformer.h.0.attn.resid_dropout"] and not modes["decoder.transformer.drop"]


def test_open_clip_says_why_it_is_not_decoded(workload):
    with pytest.raises(Unsupported, match="BeamSearchScorer"):
        peer_of("open_clip_coca", workload).generate(workload.pictures(1), 1, 1, cached=True)


@pytest.mark.parametrize("name", FUSIONS)
@pytest.mark.parametrize("decoder", [Greedy(6), BeamSearch(6, 3, 0.0)])
def test_recomputing_gives_the_captions_of_the_cache(name, decoder):
    language = language_of(name)
    fusion = make_fusion(name, language)
    memory = fusion.encode(language, make_visual(4))
    start = torch.zeros(4, 1, dtype=torch.long)
    prompt = Text(start, start == 0, start + 1)
    walked = []

    def step(memory, text, cache):
        walked.append(text.ids_BT.shape[1])
        hidden_BTE = fusion.decode(language, memory, text, cache)
        return Seen(fusion.readout(language, hidden_BTE[:, -1]), hidden_BTE)

    with torch.no_grad():
        cached, whole = (
            Endless(decoder, kept)(step, memory, prompt, 1, fusion.extra_positions) for kept in (True, False)
        )
    assert walked == [1] * 6 + [1, 2, 3, 4, 5, 6]
    assert whole == cached
    assert all(len(ids) == 6 and 1 not in ids for ids in cached)
    assert len({tuple(ids) for ids in cached}) > 1 or not fusion.sees


@pytest.mark.parametrize("size", ["tiny", "smol"])
def test_the_floor_of_a_frozen_model_walks_back_through_it(size, prepared):
    """Backward passes through activations alone: twice the forward pass's work, where training needs three times."""
    workload = Workload(prepared, size)
    batch = next(workload.window())
    frozen, tuned = (own("blind", workload, regime) for regime in ("frozen_lm", "finetune_lm"))
    assert frozen.groups() == [] and frozen.loss(batch).requires_grad
    assert 0.6 < frozen.flops(batch) / tuned.flops(batch) < 0.75


def test_a_llama_is_trained_and_decoded(prepared):
    """And the table says which it was, and why peers were not."""
    jobs = [Job("train", "smol", "blind", "frozen_lm", pack=True), Job("decode", "smol", "blind", "frozen_lm")]
    trained, decoded = (take(job, {**prepared, "count": True}) for job in jobs)
    assert trained["samples_per_second"] > 0 and trained["parameters"] > trained["trainable"] == 0
    assert [rate["equal"] for rate in decoded["rates"]] == [1.0] * 4
    found = dict(zip(jobs, [[trained], [decoded]], strict=True)) | {Job("matrix"): [], Job("pictures"): []}
    blip = {Job("train", "smol", "blip", "frozen_lm", peer=True): Failure("blip is not measured", unsupported=True)}
    about = {"device": "cpu", "threads": 1, "precision": "32-true", "captions": {"file": "words"}}
    settings = {**prepared, "sizes": ["smol"]}
    said = text({"settings": settings, "on": about, "rounds": 1, **summarise(jobs, found, blip)})
    assert "### Training, smol: llama, 2 layers of width 32" in said and "- blip is not measured\n" in said
    assert "| blind | frozen_lm | packed |" in said and "failed" not in said


@pytest.mark.parametrize("name", PEERS)
def test_peers_say_which_language_models_they_do_not_know(name, llamas):
    with pytest.raises(Unsupported, match=f"{name} is not measured at the size smol: its language model is a"):
        PEERS[name](Job("train", "smol", name, "finetune_lm", peer=True), llamas)


@pytest.mark.parametrize("name", FUSIONS)
def test_rows_of_all_captions_give_the_same_loss_from_fewer_columns(name, workload):
    """And the peers' text stays as it is, whatever was trained before."""
    found, columns = {}, {}
    for pack in (True, False):
        torch.manual_seed(0)
        contestant = own(name, workload, pack=pack)
        contestant.module.eval()
        batches = list(workload.window())
        found[pack] = [contestant.loss(batch) for batch in batches]
        columns[pack] = sum(batch.views["next_token"].text.ids_BT.numel() for batch in batches)
        assert all(len(batch.text.ids_BT) == 4 for batch in batches)  # 2 pictures x 2 captions
    torch.testing.assert_close(found[True], found[False], rtol=1e-5, atol=1e-5)
    assert columns[True] < columns[False]


def test_a_llama_is_smollms_at_the_size_smol(prepared):
    """30 layers, three key-value heads, an output tied to the input: 134.5 million weights."""
    size = settings_of("sizes=[smol]")["size"]["smol"]
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**llama_options(size)))
    assert sum(p.numel() for p in model.parameters()) == 134_515_008
    made = own("blind", Workload(prepared, "smol"))
    config = made.module.language.model.config
    assert (config.num_key_value_heads, config.intermediate_size) == (SHARED, MLP)
    assert made.module.language.unembedding() is made.module.language.model.model.embed_tokens.weight


def test_frozen_weights_are_cast_once_where_the_product_is_in_half_precision(workload):
    for precision, kept in (("bf16-mixed", 9), ("32-true", 0)):  # 4 matrices in each of two blocks, and the output
        contestant = Own(Job("train", "tiny", "blind", "frozen_lm"), workload, precision)
        with contestant.fitting():
            assert sum("forward" in vars(layer) for layer in contestant.module.modules()) == kept


# --------------------------------------------------------------------------------------------------- rounds, refusals
def test_every_round_starts_with_the_floor():
    settings = {"fusions": ["coca", "blind"], "peers": ["blip"], "sizes": ["tiny"], "regimes": ["finetune_lm"]}
    assert [str(job) for job in plan({**settings, "pack": [True, False]})] == [
        "matrix",
        "pictures",
        "features tiny",
        "train tiny blind finetune_lm packed",
        "train tiny blind finetune_lm",
        "train tiny coca finetune_lm packed",
        "train tiny coca finetune_lm",
        "train tiny blip (peer) finetune_lm",
        *(f"decode tiny {model} finetune_lm" for model in ("blind", "coca", "blip (peer)")),
    ]
    trained = [job for job in plan({**settings, "pack": [True]}) if job.kind == "train"]
    assert [(job.model, job.pack) for job in trained] == [("blind", True), ("coca", True), ("blip", False)]


def test_summary_takes_medians_quartiles_and_ratios_round_by_round():
    floor, mine = (Job("train", "tiny", model, "finetune_lm") for model in ("blind", "coca"))
    turns = {
        Job("matrix"): [{"flops_per_second": 5.0}] * 3,
        Job("pictures"): [],
        floor: [_turn(1.0, 8.0), _turn(2.0, None), _turn(4.0, None)],
        mine: [_turn(2.0, 12.0, rate=10.0), _turn(3.0, None, rate=20.0)],  # it drifts
    }
    blip = Job("decode", "tiny", "blip", "finetune_lm", peer=True)
    apart = Job("train", "tiny", "blip", "finetune_lm", peer=True)  # whose floor was not measured
    floor, mine = (replace(job, pack=True) for job in (floor, mine))
    turns = {replace(job, pack=job.kind == "train"): found for job, found in turns.items()} | {apart: [_turn(1.0, 4.0)]}
    failures = {mine: Failure("it fell over"), blip: Failure("it cannot", unsupported=True)}
    found = summarise([*turns], turns, failures)
    row = found["training"][1]
    assert row["seconds"]["step"]["median"] == 2.5 and row["seconds"]["step"]["low"] == 2.25
    assert row["time_over_floor"]["values"] == [2.0, 1.5] and row["flops_over_floor"] == 1.5
    assert row["utilisation"]["values"] == [12 / 2 / 10, 12 / 3 / 20]
    assert found["failures"] == {"train tiny coca finetune_lm packed": "it fell over"}
    assert found["unsupported"] == {"decode tiny blip (peer) finetune_lm": "it cannot"}
    assert row["pack"] and found["training"][2]["time_over_floor"] is None
    assert not found["training"][2]["pack"] and found["training"][2]["flops_over_floor"] is None
    assert spread([1.0, 2.0, 4.0, 8.0])["median"] == statistics.median([1.0, 2.0, 4.0, 8.0])
    assert spread([]) is None and spread([None]) is None and spread([3.0])["high"] == 3.0


def test_the_limit_follows_a_machine_that_drifts(monkeypatch):
    """From 10 to 30 within two seconds, then two more at 30: a mean over time, not over looks."""
    clock, rates = [0.0], iter([10.0, 30.0, 30.0])
    monkeypatch.setattr(timing, "matrix_rates", lambda settings: {"4": 1.0, "8": 2.0})
    monkeypatch.setattr(timing, "product", lambda side, settings: (None, side))
    monkeypatch.setattr(timing, "repeated", lambda call, seconds, warm: (next(rates), 8.0))  # 8: the fastest side
    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock[0])
    limit = timing.Limit({})
    watch = timing.Stopwatch(lambda: None, limit)
    for now in (0.5, 2.0, 2.5):  # only the second is more than a second behind the look before it
        clock[0] = now
        watch.lap("forward")
        watch.rest()
    clock[0] = 4.0
    limit.look(always=True)
    assert limit.mean() == (2 * 20 + 2 * 30) / 4
    assert watch.seconds["forward"] == 2.5 and watch.paused == 0


def test_looks_belong_to_no_step():
    class Slow:
        def look(self) -> None:
            time.sleep(0.1)

    watch = timing.Stopwatch(lambda: None, Slow())
    passes, elapsed = timing.timed_passes(lambda watch: (watch.lap("forward"), watch.rest()), 0.0, watch)
    assert passes == 1 and elapsed < 0.05 < 0.1 <= watch.paused and watch.seconds["forward"] < 0.05


def _turn(step: float, flops: float | None, rate: float = 1.0) -> dict:
    rates = dict.fromkeys(("samples_per_second", "tokens_per_second", "peak_memory_mb", "own_memory_mb"), 1.0)
    rates["matrix_flops_per_second"] = rate
    shared = dict.fromkeys(("parameters", "trainable", "tokens_per_step", "tokens_sha256", "note"), "")
    return {**rates, **shared, "seconds": {"step": step}, "flops_per_step": flops}


def test_processes_that_fail_or_die_are_told_and_user_errors_raised():
    alone = Alone("src.errors")
    assert alone(max, 3, 5) == 5
    assert alone(_fail, "no such kernel\nmore") == Failure("RuntimeError: no such kernel")
    assert alone(_cannot, "no such model") == Failure("no such model", unsupported=True)
    assert "status 3" in alone(os._exit, 3).reason
    with pytest.raises(UserError, match="put this right"):
        alone(_refuse, "put this right")
    assert alone(os.getpid) != alone(os.getpid)


def _fail(message: str):
    raise RuntimeError(message)


def _cannot(message: str):
    raise Unsupported(message)


def _refuse(message: str):
    raise UserError(message)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("fusions=[blind,nothing]", "fusions: choose from blind, clipcap.*got 'nothing'"),
        ("peers=[git]", "peers: choose from vision_encoder_decoder, blip, open_clip_coca; got 'git'"),
        ("sizes=[huge]", "sizes: choose from tiny, small, base, smol"),
        ("pack=[]", "pack=\\[\\] leaves nothing"),
        ("sizes=[smol] size.smol.mlp=null", "size.smol needs key_value_heads and mlp with family: llama"),
        ("+size.tiny.mlp=4", "size.tiny needs key_value_heads and mlp with family: llama, and has neither without it"),
        ("sizes=[smol] size.smol.key_value_heads=2", "size.smol.key_value_heads must divide size.smol.heads"),
        ("sizes=[]", "sizes=\\[\\] leaves nothing"),
        ("encoder=resnet", "encoder: choose from conv_vit, efficientnet_lite0"),
        ("decode.batches=[]", "decode.batches=\\[\\] leaves nothing to measure"),
        ("size.tiny.heads=7", "size.tiny.heads must divide"),
        ("lengths=nowhere.json", "nowhere.json is no file"),
        ("lengths=questions", "asks one question a picture, of no peer: captions=1 peers=\\[\\]"),
    ],
)
def test_refusals(override, message):
    with pytest.raises(UserError, match=message):
        settings_of(*override.split(" "))


def test_too_few_captions_are_named(captions, tmp_path):
    settings = {**settings_of(*SMALL, "images=40", f"lengths={captions}"), "folder": str(tmp_path)}
    with pytest.raises(UserError, match=r"holds 2\d\d training captions and this benchmark needs 320"):
        prepare(Job("prepare"), settings)


def test_numbers_have_three_digits():
    assert [number(x) for x in (0, 0.00123456, 0.999, 1, 12.345, 123456.0)] == [
        "0",
        "0.00123",
        "0.999",
        "1.00",
        "12.3",
        "123000",
    ]
    assert table([["a_b", "c"], ["1", "2"]], left=1).splitlines() == [
        "| a\\_b |   c |",
        "| :--- | --: |",
        "| 1    |   2 |",
    ]


def test_rounds_that_are_done_are_written(tmp_path, monkeypatch):
    done = []

    def measured(settings):
        for turn in range(2):
            done.append(json.loads((tmp_path / "benchmark.json").read_text())["rounds"] if turn else 0)
            yield {"rounds": turn + 1, "failures": {}}
        raise KeyboardInterrupt

    monkeypatch.setattr(benchmark, "measure", measured)
    monkeypatch.setattr(benchmark, "text", lambda content: f"{content['rounds']} rounds")
    cfg = OmegaConf.merge(OmegaConf.load(ROOT / "conf" / "benchmark.yaml"), {"output": str(tmp_path)})
    with pytest.raises(KeyboardInterrupt):
        benchmark.main.__wrapped__.__wrapped__(cfg)
    assert done == [0, 1] and (tmp_path / "table.md").read_text() == "2 rounds"
