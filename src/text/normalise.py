"""The one form of a caption that models read and write."""


def normalise_caption(text: str) -> str:
    """Lower case, single spaces, no final full stop; punctuation inside the caption stays.

    Captioning work trains on lower-case captions without the final stop (Karpathy & Fei-Fei 2015, arXiv 1412.2306), and
    the scorers drop both, so that a model would spend its capacity on what is not measured. Applying it twice changes
    nothing.
    """
    return " ".join(text.lower().split()).rstrip(" .")
