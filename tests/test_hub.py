"""Where checkpoints are found, and what is said of those that are not found."""

from __future__ import annotations

import json

import huggingface_hub
import pytest
from huggingface_hub.errors import EntryNotFoundError
from safetensors import SafetensorError

from src import hub
from src.errors import UserError


@pytest.fixture
def requests(monkeypatch, tmp_path):
    """An empty local cache, and a hub that answers every request with the first of this list, raised if an error."""
    answers: list[Exception | None] = [None]

    def answer(url, timeout):
        if answers[0] is not None:
            raise answers[0]

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", answer)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    return answers


def cache(folder, repository: str, **files: str) -> None:
    """Files of a repository, as huggingface_hub keeps them below ``folder``."""
    place = folder / f"models--{repository.replace('/', '--')}"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text("0" * 40)
    (place / "snapshots" / ("0" * 40)).mkdir(parents=True)
    for name, content in files.items():
        (place / "snapshots" / ("0" * 40) / f"{name}.json").write_text(content)


def from_hub(local: bool) -> str:
    """What is not on this machine, and is on the hub."""
    if local:
        raise OSError("not here")
    return "found"


def fails(local: bool):
    raise RuntimeError("Error(s) in loading:\n\tsize mismatch\n")


def test_what_is_here_asks_no_network(requests):
    requests[0] = AssertionError("asked")
    assert hub.fetch(lambda local: local, "org/model", "model", "advice") is True


def test_the_hub_is_asked_for_what_is_not_here(requests):
    assert hub.fetch(from_hub, "org/model", "model", "advice") == "found"
    requests[0] = EntryNotFoundError("no config.json, but the repository is there")
    assert hub.fetch(from_hub, "org/model", "model", "advice") == "found"


def test_out_of_reach(requests):
    requests[0] = OSError("no\nnetwork")
    with pytest.raises(UserError) as caught:
        hub.fetch(from_hub, "org/model", "model", "give a folder")
    assert str(caught.value) == (
        "The model 'org/model' is neither a folder here nor in the local cache, and cannot be downloaded from the "
        "Hugging Face hub (no network); give a folder."
    )


def test_unreadable_in_the_cache_and_out_of_reach(requests, tmp_path):
    cache(tmp_path, "org/model", config="{}", tokenizer="[")
    requests[0] = OSError("no network")
    with pytest.raises(
        UserError, match=r"nor readable in the local cache \(tokenizer\.json: Expecting .*\(no network\)"
    ):
        hub.fetch(lambda local: json.loads("["), "org/model", "model", "give a folder")


def test_unreadable_on_the_hub_and_in_a_folder(requests, tmp_path):
    with pytest.raises(
        UserError, match=r"of the Hugging Face hub cannot be loaded: Error\(s\) in loading: size mismatch$"
    ):
        hub.fetch(fails, "org/model", "model", "advice")
    requests[0] = AssertionError("asked")
    with pytest.raises(
        UserError, match=r"The folder \S+ holds no readable model: Error\(s\) in loading: size mismatch$"
    ):
        hub.fetch(fails, str(tmp_path), "model", "advice")


def test_files_are_found_in_folder_and_cache(requests, tmp_path, monkeypatch):
    cache(tmp_path, "org/model", config="{}")
    kept = hub.find("org/model", "config.json")
    assert kept.read_text() == "{}" and hub.obtain(str(kept.parent), "config.json", local=False) == kept
    assert hub.find("org/model", "other.json") is hub.find("no name!", "config.json") is None
    assert hub.find(str(kept.parent), "other.json") is None

    def download(repository, file):
        raise EntryNotFoundError("no such file")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert hub.obtain("org/model", "other.json", local=False) is None
    assert hub.on_hub("org/model", "other.json")
    requests[0] = EntryNotFoundError("no such file")
    assert not hub.on_hub("org/model", "other.json")


def test_an_adapter_that_is_alone_on_the_hub(requests):
    """No config.json beside it: the library would say that the repository is no model."""
    from src.language.load import pretrained

    with pytest.raises(UserError, match="org/model holds an adapter"):
        pretrained(None, "org/model")


@pytest.mark.parametrize("family", ["gpt2", "qwen2"])
def test_a_configuration_in_the_cache_is_no_tokenizer(family, requests, tmp_path):
    """The library makes an empty one of it, instead of asking the hub for the rest."""
    from src.text.tokenizers import HubTokenizer

    cache(tmp_path, "org/model", config=json.dumps({"model_type": family}))
    requests[0] = OSError("no network")
    with pytest.raises(UserError, match=r"there is no tokenizer\.json and no vocabulary\), and .* \(no network\)"):
        HubTokenizer("org/model")


CODE = "it needs program code of its own, which is never run here"


def raised(error: Exception) -> Exception:
    try:
        raise error
    except type(error) as caught:
        return caught


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError("Two\n  lines:\n\tof it"), "Two lines: of it"),
        (KeyError("foo"), "KeyError 'foo'"),
        (raised(AssertionError()), "AssertionError at: raise error"),
        (RuntimeError(), "RuntimeError"),
        (ValueError("pass the argument `trust_remote_code=True`"), CODE),
        (SafetensorError("header too small"), "header too small"),
    ],
)
def test_reasons_are_one_line(error, said):
    assert hub.reason(error) == said
    assert len(hub.reason(ValueError("many words " * 100))) <= 400


def test_the_file_at_fault_is_named(tmp_path):
    for name, content in (("a.json", "{}"), ("b.safetensors", ""), ("c.json", "{")):
        (tmp_path / name).write_text(content)
    assert hub.reason(SafetensorError("header"), tmp_path) == "b.safetensors: header"
    (tmp_path / "b.safetensors").unlink()
    assert hub.reason(json.JSONDecodeError("Expecting", "{", 1), tmp_path).startswith("c.json: Expecting")
    assert hub.reason(ValueError("of something else"), tmp_path) == "of something else"


@pytest.mark.parametrize("home", ["~", "~/models/x"])
def test_a_tilde_is_the_home_folder(home, monkeypatch):
    monkeypatch.setenv("HOME", "/somewhere")
    assert hub.expanded(home) == home.replace("~", "/somewhere")
    assert hub.expanded("org/model") == "org/model"
