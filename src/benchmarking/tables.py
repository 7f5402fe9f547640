"""The results as tables that read well both in a terminal and as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from src.benchmarking.jobs import family

MISSING = "-"
TRAINING = (
    "model",
    "regime",
    "rows",
    "samples/s",
    "tokens/s",
    "ms a step",
    "data",
    "forward",
    "backward",
    "optimiser",
    "GFLOP",
    "of matrix rate",
    "MiB",
    "own MiB",
    "time / LM",
    "FLOP / LM",
)
LEGEND = (
    "Rounds: {rounds}; medians, quartiles in brackets; peers in italics. A sample is a caption, a token a real "
    "target (no padding). Rows: all captions of a picture in one (packed), or one caption each (apart), as other "
    "libraries have them. GFLOP: counted, of one step; of matrix rate: these per second over those of the machine's "
    "fastest matrix product, looked at between the steps. MiB: highest memory of the process; own: without what it "
    "held before the model was made. / LM: over the plain language model (blind) in the same regime and with the same "
    "rows. On a GPU the parts of a step are timed one by one and add up to more than the step."
)


def text(results: dict) -> str:
    """All tables."""
    about, machine, settings = results["on"], results["machine"], results["settings"]
    parts = [
        f"{about['device']}, {about['threads']} threads, {about['precision']}"
        f"{', compiled' if settings['compile'] else ''}; {settings['images']} pictures x {settings['captions']} "
        f"captions a step{' of about equal length' if settings['by_length'] else ''}, "
        f"lengths from {about['captions']['file']}.",
        "\n".join(_bullets(_machine(machine, results["features"], settings["encoder"]))),
    ]
    for size in settings["sizes"]:
        rows = [_training(row) for row in results["training"] if row["size"] == size]
        parts += [f"### Training, {size}: {_shape(settings['size'][size])}", table([TRAINING, *rows], left=3)]
        decoding = [row for row in results["decoding"] if row["size"] == size]
        heading = f"### Decoding, {size}: captions/s, {settings['decode']['tokens']} tokens each"
        parts += [heading, table(_decoding(decoding), left=2)]
    parts.append(LEGEND.format(rounds=results["rounds"]))
    notes = dict.fromkeys(row["note"] for row in (*results["training"], *results["decoding"]) if row["note"])
    notes |= dict.fromkeys(results["unsupported"].values())
    failures = [f"{job} failed: {reason}" for job, reason in results["failures"].items()]
    if notes or failures:
        parts.append("\n".join(_bullets([*notes, *failures])))
    return "\n\n".join(parts) + "\n"


def _shape(size: dict) -> str:
    return (
        f"{family(size)}, {size['layers']} layers of width {size['width']}, vocabulary {size['vocabulary']}, "
        f"{size['visual_tokens']} visual tokens of width {size['visual_width']}"
    )


def _machine(machine: dict, features: Sequence[dict], vision: str) -> list[str]:
    """What the machine does, as sentences; what could not be measured is left out."""
    lines = []
    if rate := machine["matrix_flops_per_second"]:
        lines.append(f"matrix products: {_spread(_scaled(rate, 1e-9))} GFLOP/s")
    if "decoded_per_second" in machine:
        lines.append(
            f"pictures decoded and resized: {_spread(machine['decoded_per_second'])} a second in one process "
            f"({number(machine['kilobytes_per_file']['median'])} kB each)"
        )
        lines.append(f"features extracted by {vision}: {_spread(machine['encoded_per_second'])} pictures a second")
    lines += [
        f"cached features read, {row['size']}: {_spread(row['read_per_second'])} pictures a second, "
        f"{number(row['bytes_per_second']['median'] / 1e6)} MB/s"
        for row in features
    ]
    return lines


def _training(row: dict) -> list[str]:
    return [
        _name(row),
        row["regime"],
        "packed" if row["pack"] else "apart",
        _spread(row["samples_per_second"]),
        _median(row["tokens_per_second"]),
        *(_median(_scaled(row["seconds"][part], 1e3)) for part in ("step", "data", "forward", "backward", "optimiser")),
        number(row["flops_per_step"] / 1e9),
        _median(row["utilisation"]),
        _median(row["peak_memory_mb"]),
        _median(row["own_memory_mb"]),
        _median(row["time_over_floor"]),
        MISSING if row["flops_over_floor"] is None else number(row["flops_over_floor"]),
    ]


def _decoding(rows: Sequence[dict]) -> list[list[str]]:
    """A line per model with cache and one without; a column per method and batch size."""
    columns = list(dict.fromkeys((rate["method"], rate["batch"]) for row in rows for rate in row["rates"]))
    lines = [["model", "cache", "first token, ms", *(f"{method}, batch {batch}" for method, batch in columns)]]
    for row in rows:
        rates = {(rate["method"], rate["batch"]): rate for rate in row["rates"]}
        for cache in ("cached", "uncached"):
            first = _median(row["first_token_ms"]) if cache == "cached" else ""
            cells = [_spread(rates[column][cache]) if column in rates else MISSING for column in columns]
            lines.append([_name(row), {"cached": "yes", "uncached": "no"}[cache], first, *cells])
    return lines


def _name(row: dict) -> str:
    return f"*{row['model']}*" if row["kind"] == "peer" else row["model"]


# --------------------------------------------------------------------------------------------------------------------
# cells
# --------------------------------------------------------------------------------------------------------------------
def number(value: float) -> str:
    """Three significant digits, and no exponent."""
    if value == 0:
        return "0"
    magnitude = f"{value:.2e}".split("e")
    return f"{float(f'{value:.2e}'):.{max(0, 2 - int(magnitude[1]))}f}"


def _scaled(spread: dict | None, by: float) -> dict | None:
    return None if spread is None else {name: spread[name] * by for name in ("median", "low", "high")}


def _median(spread: dict | None) -> str:
    return MISSING if spread is None else number(spread["median"])


def _spread(spread: dict | None) -> str:
    if spread is None:
        return MISSING
    return f"{number(spread['median'])} [{number(spread['low'])}, {number(spread['high'])}]"


def table(rows: Sequence[Sequence[str]], left: int) -> str:
    """A Markdown table whose columns stand below each other; the first ``left`` are flush left."""
    rows = [[cell.replace("_", "\\_") if place == 0 else cell for place, cell in enumerate(row)] for row in rows]
    widths = [max(3, *map(len, column)) for column in zip(*rows, strict=True)]
    rule = [f":{'-' * (width - 1)}" if i < left else f"{'-' * (width - 1)}:" for i, width in enumerate(widths)]
    return "\n".join(f"| {' | '.join(_padded(line, widths, left))} |" for line in [rows[0], rule, *rows[1:]])


def _padded(cells: Sequence[str], widths: Sequence[int], left: int) -> list[str]:
    return [
        f"{cell:<{width}}" if place < left else f"{cell:>{width}}"
        for place, (cell, width) in enumerate(zip(cells, widths, strict=True))
    ]


def _bullets(lines: Iterable[str]) -> list[str]:
    return [f"- {line}" for line in lines]
