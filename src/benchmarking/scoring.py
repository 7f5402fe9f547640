"""How long scoring takes: BLEU, ROUGE-L and CIDEr-D of 5,000 predictions with 5 references each, tokenisation included.

python -m src.benchmarking.scoring

Ours against pycocoevalcap 1.2 in the same process, on COCO captions that its package carries. Where there is no Java
for pycocoevalcap's tokenizer, it gets our tokens, and only our time includes tokenisation. Exit status 1 where ours
takes a third of the other's time or more, or where scores differ by more than .001.
"""

from __future__ import annotations

import contextlib
import io
import json
import random
import shutil
import sys
import time
import zipfile
from collections import defaultdict
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

from src.data.captions_text import JAR_ENTRY
from src.metrics.captions import CaptionScorer
from src.metrics.ptb import tokenize

PICTURES, CAPTIONS = 5000, 5
SHARE = 1 / 3
NAMES = ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE-L", "CIDEr-D")

References, Predictions = dict[str, list[str]], dict[str, str]


def main() -> None:
    references, predictions = captions()
    java = shutil.which("java") is not None
    if not java:
        print("There is no Java: pycocoevalcap gets our tokens, and its time is without tokenisation.")
    ours, own_time = timed(lambda: CaptionScorer(references).score(predictions).corpus)
    tokens = None if java else our_tokens(references, predictions)
    theirs, their_time = timed(lambda: pycocoevalcap(*(tokens or coco_tokens(references, predictions))))
    print(f"{PICTURES:,} predictions, {CAPTIONS} references each\n")
    print(f"{'':<16}{'ours':>10}{'pycocoevalcap':>16}")
    for name in NAMES:
        print(f"{name:<16}{ours[name]:>10.4f}{theirs[name]:>16.4f}")
    print(f"{'seconds':<16}{own_time:>10.2f}{their_time:>16.2f}")
    print(f"\nours takes {own_time / their_time:.2f} of pycocoevalcap's time; it must be under {SHARE:.2f}")
    if own_time >= SHARE * their_time or any(abs(ours[name] - theirs[name]) > 1e-3 for name in NAMES):
        sys.exit(1)


def captions() -> tuple[References, Predictions]:
    """Captions of COCO train2014. A prediction is a reference with one word exchanged, of every second picture that of
    the picture before, so that there are high and low scores."""
    jar = Path(find_spec("pycocoevalcap").submodule_search_locations[0]) / "spice" / "spice-1.0.jar"
    by_picture = defaultdict(list)
    with zipfile.ZipFile(jar) as archive:
        for annotation in json.loads(archive.read(JAR_ENTRY))["annotations"]:
            by_picture[str(annotation["image_id"])].append(annotation["caption"])
    chance = random.Random(0)
    ids = chance.sample(sorted(id for id, own in by_picture.items() if len(own) >= CAPTIONS), PICTURES)
    references = {id: by_picture[id][:CAPTIONS] for id in ids}
    words = [word for id in ids for word in references[id][0].split()]
    predictions = {}
    for number, id in enumerate(ids):
        said = references[ids[number - number % 2]][0].split()
        said[chance.randrange(len(said))] = chance.choice(words)
        predictions[id] = " ".join(said)
    return references, predictions


def timed(work: Callable[[], dict[str, float]]) -> tuple[dict[str, float], float]:
    """What ``work`` returns, its prints held back, and the seconds that it took."""
    started = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        result = work()
    return result, time.perf_counter() - started


def coco_tokens(references: References, predictions: Predictions) -> tuple[References, References]:
    """By pycocoevalcap's tokenizer, a Java program."""
    given = {id: [{"caption": text} for text in own] for id, own in references.items()}
    said = {id: [{"caption": text}] for id, text in predictions.items()}
    return PTBTokenizer().tokenize(given), PTBTokenizer().tokenize(said)


def our_tokens(references: References, predictions: Predictions) -> tuple[References, References]:
    given = {id: [tokenize(text) for text in own] for id, own in references.items()}
    return given, {id: [tokenize(text)] for id, text in predictions.items()}


def pycocoevalcap(references: References, predictions: References) -> dict[str, float]:
    """Scores of tokenised captions by the original code."""
    bleu, _ = Bleu(4).compute_score(references, predictions, verbose=0)
    rouge, _ = Rouge().compute_score(references, predictions)
    cider, _ = Cider().compute_score(references, predictions)
    return dict(zip(NAMES, [*bleu, rouge, cider], strict=True))


if __name__ == "__main__":
    main()
