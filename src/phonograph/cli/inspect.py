"""`phonograph info` and `phonograph models`: what files hold, and which models there are, without loading any model."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from phonograph.cli.console import print_json, print_lines, print_table, say_error
from phonograph.cli.options import AsJson
from phonograph.cli.paths import AUDIO_SUFFIXES, STANDARD, TOKEN_SUFFIXES, find_inputs
from phonograph.errors import ConfigError, PhonographError

if TYPE_CHECKING:
    from phonograph.tokens import TokenFileHeader

__all__ = ["info", "models"]

_Facts = dict[str, Any]

_UNITS = {
    "seconds": "{:.3f} s",
    "sampling_rate": "{} Hz",
    "frame_rate": "{:g} Hz",
    "bitrate": "{:.0f} bit/s",
    "size_bytes": "{} bytes",
    "frame_samples": "{} samples",
}


def info(
    files: Annotated[list[str], typer.Argument(metavar="FILE", help="Token files and audio files, folders, patterns.")],
    as_json: AsJson = False,
) -> None:
    """Show what token and audio files hold.

    Of a token file: the model, rates, frames, duration, bitrate, and every damaged place; of an audio file what its header
    says. A file that is neither is reported, the others are shown, and the exit code is 2.
    """
    inputs, refused = find_inputs(files, (*TOKEN_SUFFIXES, *AUDIO_SUFFIXES))
    if any(item.source == STANDARD for item in inputs):
        raise ConfigError("expected names of files, got - (stdin); save it to a file first")
    found, errors = [], [{"file": None, "error": str(error)} for error in refused]
    for error in refused:
        say_error(error)
    for item in inputs:
        facts = _facts(item.source)
        if isinstance(facts, PhonographError):
            say_error(facts)
            errors.append({"file": item.source, "error": str(facts)})
        else:
            found.append(facts)
    if as_json:
        print_json({"files": found, "errors": errors})
    else:
        for facts in found:
            _print_facts(facts)
    if errors:
        raise typer.Exit(2)


def _facts(path: str) -> _Facts | PhonographError:
    """What a file holds, or why that can't be told."""
    suffix = Path(path).suffix.lower()
    read = _token_file_facts if suffix == ".mimi" else _foreign_token_facts if suffix in TOKEN_SUFFIXES else _audio_facts
    try:
        return read(path)
    except PhonographError as error:
        return error


def _audio_facts(path: str) -> _Facts:
    from phonograph import audio

    header = audio.info(path)
    return {
        "file": path,
        "kind": "audio",
        "format": header.format,
        "codec": header.codec,
        "sampling_rate": header.sampling_rate,
        "channels": header.num_channels,
        "samples": header.num_samples,
        "seconds": header.duration_seconds,
        "size_bytes": Path(path).stat().st_size,
    }


def _token_file_facts(path: str) -> _Facts:
    from phonograph.tokens import TokenReader

    with TokenReader(path) as reader:
        facts = _token_facts(path, reader.header, reader.num_frames, reader.num_samples)
        places = [*reader.damage, *([reader.incomplete_tail] if reader.incomplete_tail else [])]
        return {**facts, "blocks": reader.num_blocks, "finished": reader.finished, "damage": list(map(str, places))}


def _foreign_token_facts(path: str) -> _Facts:
    from phonograph.tokens import SpeechTokens

    tokens = SpeechTokens.load(path)
    return _token_facts(path, tokens.header, tokens.num_frames, tokens.num_samples)


def _token_facts(path: str, header: "TokenFileHeader", num_frames: int, num_samples: int | None) -> _Facts:
    samples = num_frames * header.frame_samples if num_samples is None else num_samples
    return {
        "file": path,
        "kind": "tokens",
        "model": header.model_id,
        "weights_hash": header.weights_hash,
        "sampling_rate": header.sampling_rate,
        "frame_rate": header.frame_rate,
        "frame_samples": header.frame_samples,
        "codebooks": header.num_codebooks,
        "codebook_size": header.codebook_size,
        "bitrate": header.bitrate,
        "frames": num_frames,
        "samples": num_samples,
        "seconds": samples / header.sampling_rate,
        "size_bytes": Path(path).stat().st_size,
    }


def _print_facts(facts: _Facts) -> None:
    shown = {name: value for name, value in facts.items() if name not in ("file", "damage")}
    rows = [(name.removesuffix("_bytes").replace("_", " "), _shown(name, value)) for name, value in shown.items()]
    rows += [("damage", place) for place in facts.get("damage", [])] or ([("damage", "none")] if "damage" in facts else [])
    print_table(("", ""), rows, title=facts["file"])


def _shown(name: str, value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "unknown" if value is None or value == "" else _UNITS.get(name, "{}").format(value)


def models(as_json: AsJson = False) -> None:
    """List the models in the package.

    With their size, rates, bitrate and licence, and how other models are named.
    """
    from phonograph.loading.hub import bundled_models

    found = [_model_facts(name, folder) for name, folder in bundled_models().items()]
    if as_json:
        print_json({"models": found})
        return
    columns = ("name", "size", "rate", "frame rate", "codebooks", "bitrate", "licence")
    rows = [
        (
            facts["name"],
            f"{facts['size_bytes'] / 1e6:.1f} MB",
            f"{facts['sampling_rate']} Hz",
            f"{facts['frame_rate']:g} Hz",
            str(facts["codebooks"]),
            f"{facts['bitrate']:.0f} bit/s",
            facts["licence"],
        )
        for facts in found
    ]
    print_table(columns, rows, right=columns[1:6])
    print_lines(
        "Wherever a model is asked for, name one of these, a folder with config.json and model.safetensors, or a model of the",
        "Hugging Face hub as owner/name, such as kyutai/mimi; that one is downloaded once and kept in the hub's cache.",
    )


def _model_facts(name: str, folder: Path) -> _Facts:
    from phonograph.models.mimi.configuration_mimi import MimiConfig

    config = MimiConfig.from_json_file(folder / "config.json")
    return {
        "name": name,
        "size_bytes": sum(file.stat().st_size for file in folder.glob("*.safetensors")),
        "sampling_rate": config.sampling_rate,
        "frame_rate": config.frame_rate,
        "codebooks": config.num_quantizers,
        "bitrate": config.frame_rate * config.num_quantizers * (config.codebook_size - 1).bit_length(),
        "licence": _licence(folder / "README.md"),
    }


def _licence(card: Path) -> str:
    """From the front matter of a model card: lines between two of `---`."""
    front = card.read_text(encoding="utf-8").split("---\n")[1] if card.is_file() else ""
    found = [line.partition(":")[2].strip() for line in front.splitlines() if line.startswith("license:")]
    return found[0] if found else "unknown"
