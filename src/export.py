"""Hand a trained captioner on: one folder with its tensors, configuration, tokenizer and model card.

python -m src.export run=runs/... to=exported/srau frozen=include

It captions like the run: python -m src.caption run=exported/srau images=photos/, or src.pretrained.load in Python.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import hydra
from omegaconf import DictConfig, OmegaConf

from src.config.added_keys import run_config
from src.config.command_line import verb
from src.errors import UserError
from src.records.exported import EXPORTED_CONFIG, HERE
from src.records.files import verify, write_json, write_text
from src.records.folder import Saved, checkpoint_path
from src.records.secrets import MASK, is_secret, masked, names_secret

if TYPE_CHECKING:
    from src.captioner import Captioner
    from src.records.exported import Frozen

LEFT_OUT = ("logger", "resume", "weights")  # of the configuration: what only a training uses
PICTURES = 4  # of noise, which the exported captioner must caption like the run's


@hydra.main(version_base="1.3", config_path=str(Path(__file__).resolve().parents[1] / "conf"), config_name="export")
@verb
def main(cfg: DictConfig) -> None:
    """Run folder -> exported folder, which is read back before it gets its name."""
    run, to = Path(cfg.run), Path(cfg.to)
    checkpoint_path(run)
    check_empty(to)
    frozen = export(run, to, include=cfg.frozen == "include")
    for part, about in frozen.items():
        print(f"frozen {part}: {'included' if about.included else 'not included'}, from {about.source}")
    size = sum(path.stat().st_size for path in to.rglob("*") if path.is_file())
    print(f"written: {to} ({size / 1e6:.1f} MB)")


def check_empty(to: Path) -> None:
    """Nothing is ever overwritten. Raises UserError unless ``to`` is new, or an empty folder."""
    if to.exists() and not (to.is_dir() and next(to.iterdir(), None) is None):
        raise UserError(f"to={to} exists already and is not empty; give a new folder.")


def export(run: Path, to: Path, include: bool) -> dict[str, Frozen]:
    """Write the captioner of ``run`` into the new folder ``to``: all of it, or nothing. Returns the frozen parts.

    ``include``: with the tensors of frozen parts; those of an adapted language model, its adapters added to them, come
    in any case. Raises UserError when ``to`` cannot be written or does not read back.
    """
    with whole(to) as folder:  # first, so that a place that cannot be written to is found out at once
        return fill(folder, run, to.resolve().name, include)


def fill(folder: Path, run: Path, name: str, include: bool) -> dict[str, Frozen]:
    """Write everything into ``folder`` and read it back; ``name`` is what it is going to be called."""
    from src.build import parameter_counts
    from src.language.adapters import merge
    from src.pretrained import restore_captioner
    from src.records import exported
    from src.reporting.card import About, model_card

    captioner, cfg, known = restore_captioner(run), run_config(run), results(run)
    counts, adapted = parameter_counts(captioner), bool(captioner.adapters)
    if adapted:
        merge(captioner.language)
    hashes = captioner.frozen_hashes()
    frozen = {part: exported.Frozen(sha256, *source(part, cfg), include) for part, sha256 in hashes.items()}
    if adapted:  # what it came from cannot give it again
        merged = f"{frozen['language'].source} with the adapters of {run.resolve().name}"
        frozen["language"] = exported.Frozen(hashes["language"], merged, run=False, included=True)
    tensors = captioner.state_dict()
    for part in (part for part, about in frozen.items() if about.included):
        tensors |= getattr(captioner, part).state_dict(prefix=f"{part}.")
    own = {tensor.partition(".")[0] for tensor in tensors}
    captioner.tokenizer.save(folder / "tokenizer")
    write_text(folder / EXPORTED_CONFIG, OmegaConf.to_yaml(portable(cfg, captioner, own, folder)))
    for file, content in known.items():
        write_json(folder / file, content)
    exported.write(folder, tensors, frozen)
    about = About(name, cfg, known, frozen, counts)
    write_text(folder / exported.CARD, model_card(about))
    if not agree(captioner, restore_captioner(folder)):
        raise UserError(f"{run} cannot be exported: read back, it captions in another way.")
    return frozen


def results(run: Path) -> dict[str, dict]:
    """The JSON files of a run that say how it came about, what it scores and costs, by their names in its folder."""
    found = [run / "environment.json"]
    for pattern in ("metrics.json", "*/metrics.json", "evaluate/*/metrics.json"):
        found += sorted(run.glob(pattern))
    contents = {}
    for path in found:
        verify(path.parent, path.name)
        try:
            contents[path.relative_to(run).as_posix()] = without_secrets(json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            continue  # a run that was cut off has no scores yet
        except (OSError, ValueError) as error:
            raise UserError(f"{path} cannot be read ({error}); move it out of the way to export without it.") from error
    return contents


@contextmanager
def whole(to: Path) -> Iterator[Path]:
    """A folder beside ``to`` that takes its name when all is written, and is removed when anything fails."""
    to = to.resolve()
    folder = to.with_name(f".{to.name}.{os.getpid()}.tmp")
    try:
        folder.mkdir(parents=True)
        yield folder
        if to.is_dir():
            to.rmdir()  # an empty one; refused by the system if something has come into it meanwhile
        folder.rename(to)
    except OSError as error:
        raise UserError(f"to={to} cannot be written ({error.strerror or error}).") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def source(part: str, cfg: DictConfig) -> tuple[str, bool]:
    """Where the weights of a part came from, as its options say, and whether that is the folder of another run."""
    options = cfg[part]
    weights = options.get("weights")
    if weights:
        return str(weights), Saved.at(weights).is_there
    if options.get("pretrained"):
        return f"{options.model}:{options.pretrained}", False
    if isinstance(options.get("model"), str) and options.model.startswith(("local-dir:", "hf-hub:")):
        return options.model, False
    return options.get("name") or f"random weights of seed {cfg.seed}", False


def portable(cfg: DictConfig, captioner: Captioner, own: set[str], folder: Path) -> DictConfig:
    """The configuration for another place: parts in ``own``, whose tensors are in ``folder``, are made without weights.

    What a library needs for that is written into ``folder``. What only a training uses is left out.
    """
    plain = {
        key: value for key, value in OmegaConf.to_container(cfg).items() if key not in ("logger", "resume", "weights")
    }
    plain["regime"]["train_vision"] = captioner.regime["train_vision"]  # "auto" would look at where weights come from
    plain["regime"].pop("lora", None)  # merged
    for part in own - {"fusion"}:
        if "weights" in plain.get(part, {}):
            plain[part]["weights"] = None
    if "language" in own and plain["language"]["model"]["_target_"] == "src.language.load.pretrained":
        captioner.language.model.config.save_pretrained(folder / "language")
        plain["language"]["model"] |= {"name": f"{HERE}/language", "init": "random"}
    if "vision" in own and plain["vision"]["_target_"] == "src.vision.open_clip.OpenClip":
        write_json(folder / "vision" / "open_clip_config.json", tower_config(captioner.vision))
        plain["vision"] |= {"model": f"local-dir:{HERE}/vision", "pretrained": None}
    return OmegaConf.create(without_secrets(plain))


def tower_config(vision) -> dict:
    """What open_clip needs to build this image tower; the text tower beside it, which is dropped, is the smallest."""
    from src.vision.open_clip import SMALLEST_TEXT

    return {
        "model_cfg": {**json.loads(vision.architecture), "text_cfg": SMALLEST_TEXT},
        "preprocess_cfg": vision.preprocess_cfg,
    }


def without_secrets(node, key: str = ""):
    """The same values with secrets masked: runs of earlier versions may hold some, in the command line above all."""
    if isinstance(node, dict):
        return {name: without_secrets(value, str(name)) for name, value in node.items()}
    if isinstance(node, list):
        return [without_secrets(value, key) for value in node]
    if isinstance(node, str) and is_secret(key, node):
        return MASK if names_secret(key) else " ".join(map(masked, node.split(" ")))
    return node


def agree(one: Captioner, other: Captioner) -> bool:
    """Whether both caption the same pictures of noise alike, or see the same in them where they have no words."""
    import torch

    from src.contracts import Batch
    from src.fusion.base import Reader

    pixels_IM3hw = None
    if one.vision is not None:
        size = one.vision.spec.image_size
        noise = torch.Generator().manual_seed(0)
        pixels_IM3hw = torch.randint(256, (PICTURES, 1, 3, size, size), generator=noise, dtype=torch.uint8)
    batch = Batch([str(i) for i in range(PICTURES)], one.start(PICTURES, "cpu"), pixels_IM3hw)
    if one.speaks:
        return one.caption([batch]) == other.caption([batch])
    with torch.no_grad():
        if isinstance(one.fusion, Reader):
            seen = [captioner.eval().reading(batch) for captioner in (one, other)]
        else:
            seen = [captioner.eval().memory(batch).values() for captioner in (one, other)]
        return all(torch.equal(a, b) for a, b in zip(*seen, strict=True))


if __name__ == "__main__":
    main()
