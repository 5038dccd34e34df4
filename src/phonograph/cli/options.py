"""The options that several commands share, each declared once."""

from typing import Annotated

import typer

__all__ = [
    "AsJson",
    "Batch",
    "Channel",
    "Compile",
    "Device",
    "Dtype",
    "ModelOfTokens",
    "Output",
    "Overwrite",
    "Quiet",
    "Speech",
    "Threads",
]

Speech = Annotated[
    list[str], typer.Argument(metavar="SPEECH", help="Audio files, folders, patterns such as 'a/**/*.wav', - for stdin.")
]

Output = Annotated[
    str | None,
    typer.Option("--output", "-o", metavar="OUT", help="A file for one input, or a folder, or - for stdout. Folders are made."),
]
ModelOfTokens = Annotated[
    str | None, typer.Option("--model", "-m", help="The codec that made the tokens; by default the one that they name.")
]
Channel = Annotated[int | None, typer.Option("--channel", help="Take this channel, from 0; needed for files of more than two.")]
Device = Annotated[str, typer.Option("--device", help="Where to compute: cpu, cuda, cuda:1, mps.")]
Dtype = Annotated[
    str, typer.Option("--dtype", help="Type to compute in: float32, bfloat16, float16, float64, or auto for the file's own.")
]
Threads = Annotated[
    int | None, typer.Option("--threads", min=1, max=1024, help="Processor threads; PyTorch's choice by default.")
]
Compile = Annotated[
    bool, typer.Option("--compile", help="Compile for this processor first: half a minute and a C++ compiler, then faster.")
]
Batch = Annotated[int, typer.Option("--batch-size", min=1, help="Files shorter than 30 s that go through the model together.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace files that exist; otherwise that is refused at once.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout instead.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress and no summary, errors only.")]
