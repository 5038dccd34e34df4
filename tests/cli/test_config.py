"""config show, validate and diff."""

import json
from collections.abc import Callable
from pathlib import Path

from phonograph import MimiConfig

Run = Callable[..., "object"]


def test_show(run: Run) -> None:
    shown = run("config", "show", "mimi-mini").out.decode()
    assert "samples per second of the audio" in shown
    assert "13,538,209" in shown
    for text in ("12.5 Hz", "1920 samples", "2000 bit/s", "GFLOP"):
        assert text in shown
    facts = run("config", "show", "mimi-mini", "--json").json()
    assert facts["model_type"] == "mimi"
    assert facts["fields"]["num_quantizers"] == 16
    assert facts["computed"]["bitrates"]["8"] == 1000.0
    assert facts["computed"]["frame_rate"] == 12.5
    assert facts["computed"]["parameters"] + facts["computed"]["codebook_values"] == 15651761


def test_show_keeps_what_it_does_not_know(run: Run) -> None:
    MimiConfig(chunk_in_seconds=3).save_pretrained("m")
    shown = run("config", "show", "m").out.decode()
    assert "chunk_in_seconds" in shown
    assert "not a field of this model; kept as it is" in shown
    assert run("config", "show", "m/config.json", "--json").json()["fields"]["chunk_in_seconds"] == 3


def test_validate(run: Run) -> None:
    assert run("config", "validate", "mimi-mini").out == b"ok\n"
    assert run("config", "validate", "mimi-mini", "--json").json() == {"name": "mimi-mini", "valid": True, "faults": []}


def test_validate_gives_every_fault_a_line(run: Run, work: Path) -> None:
    wrong = {"sampling_rate": -1, "pad_mode": "mirror", "num_attention_heads": 3, "num_key_value_heads": 2, "hidden_act": 7}
    Path("config.json").write_text(json.dumps({"model_type": "mimi", "codebook_dim": 100, **wrong}))
    result = run("config", "validate", "config.json")
    assert result.code == 2
    lines = result.out.decode().splitlines()
    for start in (
        "sampling_rate=-1 must be",
        "pad_mode='mirror' must be one of",
        "hidden_act=7 must be one of",
        "num_attention_heads=3, num_key_value_heads=2: ",
    ):
        assert sum(line.startswith(start) for line in lines) == 1, lines
    # Rules that only building a model needs are among them.
    assert any("codebook_dim=100" in line for line in lines), lines
    told = run("config", "validate", "config.json", "--json")
    assert told.code == 2
    assert told.json()["faults"] == lines


def test_diff(run: Run) -> None:
    MimiConfig.from_pretrained("mimi-mini", num_filters=16, sampling_rate=16000).save_pretrained("m")
    shown = run("config", "diff", "mimi-mini", "m").out.decode()
    assert "num_filters" in shown
    assert "hidden_size" not in shown
    differences = run("config", "diff", "mimi-mini", "m", "--json").json()["differences"]
    assert differences == {"num_filters": [32, 16], "sampling_rate": [24000, 16000]}


def test_diff_against_the_defaults(run: Run) -> None:
    facts = run("config", "diff", "mimi-mini", "--json").json()
    assert facts["names"] == ["mimi-mini", "default"]
    assert facts["differences"]["num_quantizers"] == [16, 32]
    MimiConfig().save_pretrained("m")
    assert run("config", "diff", "m").out == b"m and default have the same fields and values\n"
