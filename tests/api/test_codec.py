"""encode and decode: every form of speech and tokens, lists in batches, long recordings in blocks, and refusals."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from memorised import CTC, S2T
from random_mimi import ODD, TINY, random_mimi

import phonograph
from phonograph import Audio, MimiConfig, MimiModel, SpeechTokens, audio
from phonograph.api import codebooks_for_bitrate, decode_stream, load_codec
from phonograph.errors import AudioError, CheckpointError, ConfigError, StreamError, TokenFileError

RATE = 24000


def chirp(seconds: float, channels: int = 1) -> np.ndarray:
    """(channels, time), different in each channel."""
    time = np.arange(round(seconds * RATE)) / RATE
    return np.stack([0.3 * np.sin(2 * np.pi * (200 + 90 * n + 300 * time) * time) for n in range(channels)]).astype(np.float32)


@pytest.fixture(scope="module")
def tiny() -> MimiModel:
    return random_mimi(**TINY)


def codes_of(model: MimiModel, samples: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return model.encode(torch.from_numpy(samples)[None]).audio_codes[0].numpy()


class TestEncode:
    def test_a_list_without_batches_is_never_whole_in_memory(
        self, tiny: MimiModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        paths = [tmp_path / f"{seconds}.wav" for seconds in (2, 1)]
        for path in paths:
            audio.save(path, chirp(float(path.stem)), RATE)
        expected = [phonograph.encode(path, tiny) for path in paths]
        monkeypatch.setattr(audio, "load", lambda *_, **__: pytest.fail("a file was read whole"))
        assert phonograph.encode(paths, tiny) == expected

    def test_path_audio_and_array_are_one(self, mini: MimiModel, clip: Path) -> None:
        tokens = phonograph.encode(clip, mini)
        loaded = audio.load(clip)
        assert tokens == phonograph.encode(str(clip), mini)
        assert tokens == phonograph.encode(loaded, mini)
        assert tokens == phonograph.encode(loaded.samples, mini, sampling_rate=loaded.sampling_rate)
        assert tokens.model_id == "mimi-mini"
        assert tokens.weights_hash == mini.codebook_hash()
        assert tokens.num_samples == loaded.resample(RATE).num_samples
        assert tokens.codes.dtype == np.int16

    def test_an_array_without_a_rate_has_the_models(self, tiny: MimiModel) -> None:
        samples = chirp(0.1)
        tokens = phonograph.encode(samples[0], tiny)
        np.testing.assert_array_equal(tokens.codes, codes_of(tiny, samples))
        assert tokens == phonograph.encode(samples.astype(np.float64), tiny, sampling_rate=RATE)
        assert tokens.num_samples == 2400

    def test_channels(self, tiny: MimiModel) -> None:
        samples = chirp(0.1, channels=2)
        mixed = phonograph.encode(samples, tiny)
        assert mixed == phonograph.encode(samples.mean(0), tiny)
        stereo = random_mimi(**ODD["stereo, attention bias, two semantic"])
        np.testing.assert_array_equal(phonograph.encode(samples, stereo).codes, codes_of(stereo, samples))

    @pytest.mark.parametrize("batch_size", [1, 2])
    def test_tensors_are_as_arrays(self, tiny: MimiModel, batch_size: int) -> None:
        samples = chirp(0.1, channels=2)
        expected = phonograph.encode(samples, tiny)
        for tensor in (torch.from_numpy(samples), torch.from_numpy(samples).double().requires_grad_()):
            assert phonograph.encode(tensor, tiny) == expected
            assert phonograph.encode([tensor, samples], tiny, batch_size=batch_size) == [expected, expected]
        half = torch.from_numpy(samples).bfloat16()
        assert phonograph.encode(half, tiny) == phonograph.encode(half.float().numpy(), tiny)

    @pytest.mark.parametrize("batch_size", [1, 2, 3, 10])
    def test_lists_keep_their_order(self, tiny: MimiModel, batch_size: int, tmp_path: Path) -> None:
        clips: list[Any] = [chirp(seconds) for seconds in (0.2, 0.013, 0.31, 0.2, 0.002)]
        alone = [phonograph.encode(clip, tiny) for clip in clips]
        clips[1] = Audio(clips[1], RATE)
        audio.save(tmp_path / "x.wav", Audio(clips[2], RATE))
        clips[2], alone[2] = tmp_path / "x.wav", phonograph.encode(tmp_path / "x.wav", tiny)
        assert phonograph.encode(clips, tiny, batch_size=batch_size) == alone
        assert phonograph.encode(tuple(clips), tiny, batch_size=batch_size) == alone

    def test_real_speech_in_batches(self, mini: MimiModel, speech: dict[str, torch.Tensor]) -> None:
        clips = [clip[0, :20_000].numpy() for clip in speech.values()]
        clips[0] = clips[0][:7777]
        assert phonograph.encode(clips, mini, batch_size=3) == [phonograph.encode(clip, mini) for clip in clips]

    def test_no_clips(self, tiny: MimiModel) -> None:
        assert phonograph.encode([], tiny) == []
        assert phonograph.decode([], tiny) == []

    @pytest.mark.parametrize("length", [1, 5999, 6000, 6001, 18_822])
    def test_blocks_equal_one_pass(self, tiny: MimiModel, length: int) -> None:
        """Blocks of 125 frames of 48 samples, and a window of five frames."""
        samples = np.random.default_rng(0).uniform(-0.3, 0.3, (1, length)).astype(np.float32)
        progress: list[float] = []
        tokens = phonograph.encode(samples, tiny, on_progress=progress.append)
        np.testing.assert_array_equal(tokens.codes, codes_of(tiny, samples))
        assert sum(progress) == pytest.approx(length / RATE)
        assert len(progress) == -(-length // 6000)

    def test_a_long_file_equals_one_pass(self, mini: MimiModel, speech: dict[str, torch.Tensor], tmp_path: Path) -> None:
        samples = torch.cat([clip[0] for clip in speech.values()]).numpy()
        audio.save(tmp_path / "long.wav", Audio(samples, RATE))
        progress: list[float] = []
        tokens = phonograph.encode(tmp_path / "long.wav", mini, on_progress=progress.append)
        assert tokens.num_frames > 250
        np.testing.assert_array_equal(tokens.codes, codes_of(mini, audio.load(tmp_path / "long.wav").samples))
        assert sum(progress) == pytest.approx(len(samples) / RATE)
        assert len(progress) > 2

    def test_progress_of_lists(self, tiny: MimiModel) -> None:
        progress: list[float] = []
        phonograph.encode([chirp(0.2), chirp(0.1), chirp(0.3)], tiny, batch_size=2, on_progress=progress.append)
        assert progress == pytest.approx([0.3, 0.3])

    @pytest.mark.parametrize(("bitrate", "number"), [(125, 1), (249, 1), (250, 2), (1000, 8), (2000, 16), (64_000, 16)])
    def test_bitrate(self, mini: MimiModel, bitrate: float, number: int) -> None:
        samples = chirp(0.2)
        tokens = phonograph.encode(samples, mini, bitrate=bitrate)
        assert tokens.num_codebooks == number == codebooks_for_bitrate(mini.config, bitrate)
        assert tokens.bitrate == 125 * number
        assert tokens == phonograph.encode(samples, mini, num_quantizers=number)
        assert tokens == phonograph.encode([samples], mini, bitrate=bitrate)[0]

    def test_names_and_folders_of_models(self, tiny: MimiModel, tmp_path: Path) -> None:
        tiny.save_pretrained(tmp_path)
        samples = chirp(0.1)
        expected = phonograph.encode(samples, tiny).codes
        for name in (tmp_path, str(tmp_path)):
            tokens = phonograph.encode(samples, name)
            np.testing.assert_array_equal(tokens.codes, expected)
            assert tokens.model_id == str(tmp_path)
        assert load_codec(tmp_path) is load_codec(str(tmp_path))
        assert load_codec(tiny) is tiny
        assert phonograph.encode(samples).model_id == "mimi-mini"

    def test_the_config_is_looked_for_once(self, tiny: MimiModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """And left to the model where there is none, or where it may be that of a model beside it, as the moshi package's."""
        tiny.save_pretrained(tmp_path / "a")
        tiny.save_pretrained(tmp_path / "b")
        (tmp_path / "b/config.json").unlink()
        given: list[Any] = []
        monkeypatch.setattr(MimiModel, "from_pretrained", lambda name, *, config, **_: given.append(config))
        for name in ("a", "b"):
            load_codec(tmp_path / name)
        load_codec(CTC / "model.safetensors")
        assert given[0].to_dict() == MimiConfig.from_pretrained(tmp_path / "a").to_dict()
        assert given[1:] == [None, None]


class TestDecode:
    def test_every_form(self, mini: MimiModel, clip: Path, tmp_path: Path) -> None:
        tokens = phonograph.encode(clip, mini)
        with torch.no_grad():
            expected = mini.decode(torch.from_numpy(tokens.codes)[None].long()).audio_values[0].numpy()
        expected = expected[:, : tokens.num_samples]
        tokens.save(tmp_path / "x.mimi")
        for form in (tokens, tmp_path / "x.mimi", str(tmp_path / "x.mimi")):
            speech = phonograph.decode(form, mini)
            assert speech.sampling_rate == RATE
            assert speech.samples.shape == expected.shape
            np.testing.assert_allclose(speech.samples, expected, atol=1e-5 * np.abs(expected).max())

    def test_the_model_that_the_tokens_name(self, tiny: MimiModel, tmp_path: Path) -> None:
        tiny.save_pretrained(tmp_path)
        tokens = phonograph.encode(chirp(0.1), tmp_path)
        np.testing.assert_array_equal(phonograph.decode(tokens).samples, phonograph.decode(tokens, tiny).samples)

    def test_long_tokens_and_progress(self, tiny: MimiModel) -> None:
        samples = chirp(1.0)
        tokens = phonograph.encode(samples, tiny)
        assert tokens.num_frames == 500
        progress: list[float] = []
        speech = phonograph.decode(tokens, tiny, on_progress=progress.append)
        with torch.no_grad():
            expected = tiny.decode(torch.from_numpy(tokens.codes)[None].long()).audio_values[0].numpy()
        np.testing.assert_allclose(speech.samples, expected, atol=1e-5 * np.abs(expected).max())
        assert progress == pytest.approx([0.25] * 4)

    def test_lists(self, tiny: MimiModel) -> None:
        tokens = phonograph.encode([chirp(0.1), chirp(0.2)], tiny)
        for ours, item in zip(phonograph.decode(tokens, tiny), tokens, strict=True):
            np.testing.assert_array_equal(ours.samples, phonograph.decode(item, tiny).samples)

    def test_fewer_codebooks(self, tiny: MimiModel) -> None:
        tokens = phonograph.encode(chirp(0.1), tiny)
        fewer = phonograph.encode(chirp(0.1), tiny, num_quantizers=2)
        np.testing.assert_array_equal(
            phonograph.decode(tokens.truncate(2), tiny).samples, phonograph.decode(fewer, tiny).samples
        )

    def test_unknown_length_gives_whole_frames(self, tiny: MimiModel) -> None:
        tokens = phonograph.encode(chirp(0.0011), tiny)
        assert phonograph.decode(tokens, tiny).num_samples == 26
        unknown = SpeechTokens(tokens.codes, tokens.header)
        assert phonograph.decode(unknown, tiny).num_samples == 48

    @pytest.mark.parametrize(("start", "end"), [(0.0, 0.5), (0.41, 0.9), (0.3333, None), (0.95, 5.0)])
    def test_a_part_is_that_of_the_whole(self, tiny: MimiModel, start: float, end: float | None) -> None:
        tokens = phonograph.encode(chirp(1.0), tiny)
        whole = phonograph.decode(tokens, tiny).samples
        part = phonograph.decode(tokens, tiny, start_seconds=start, end_seconds=end).samples
        expected = whole[:, round(start * RATE) : None if end is None else round(end * RATE)]
        assert part.shape == expected.shape
        np.testing.assert_allclose(part, expected, atol=1e-5 * np.abs(whole).max())


class TestDecodeStream:
    @pytest.mark.parametrize(("start", "end"), [(0.0, None), (0.0, 0.5), (0.41, 0.9), (0.3333, None)])
    def test_blocks_joined_are_the_whole(self, tiny: MimiModel, start: float, end: float | None) -> None:
        tokens = phonograph.encode(chirp(1.0), tiny)
        with torch.no_grad():
            whole = tiny.decode(torch.from_numpy(tokens.codes)[None].long()).audio_values[0].numpy()
        blocks = list(decode_stream(tokens, tiny, start_seconds=start, end_seconds=end))
        assert all(0 < block.num_samples <= 6000 for block in blocks)
        joined = np.concatenate([block.samples for block in blocks], axis=1)
        expected = whole[:, round(start * RATE) : None if end is None else round(end * RATE)]
        np.testing.assert_allclose(joined, expected, atol=1e-5 * np.abs(whole).max())
        decoded = phonograph.decode(tokens, tiny, start_seconds=start, end_seconds=end)
        np.testing.assert_array_equal(decoded.samples, joined)
        assert decoded.sampling_rate == blocks[0].sampling_rate == RATE

    def test_comes_as_it_is_asked_for(self, tiny: MimiModel) -> None:
        tokens = phonograph.encode(chirp(1.0), tiny)
        progress: list[float] = []
        blocks = decode_stream(tokens, tiny, on_progress=progress.append)
        assert progress == []
        next(blocks)
        next(blocks)
        assert progress == pytest.approx([0.25])
        assert sum(block.num_samples for block in blocks) == 12_000
        assert sum(progress) == pytest.approx(1.0)

    @pytest.mark.parametrize("name", ["wav", "flac", "ogg"])
    def test_into_a_file(self, tiny: MimiModel, tmp_path: Path, name: str) -> None:
        tokens = phonograph.encode(chirp(1.0), tiny)
        tokens.save(tmp_path / "x.mimi")
        audio.save_stream(tmp_path / f"blocks.{name}", decode_stream(tmp_path / "x.mimi", tiny))
        phonograph.decode(tokens, tiny).save(tmp_path / f"whole.{name}")
        blocks, whole = (audio.load(tmp_path / f"{stem}.{name}") for stem in ("blocks", "whole"))
        np.testing.assert_array_equal(blocks.samples, whole.samples)

    def test_one_model_many_streams(self, tiny: MimiModel) -> None:
        """Taken in turns."""
        tokens = [phonograph.encode(chirp(seconds), tiny) for seconds in (1.0, 0.9)]
        turns = list(zip(*(decode_stream(item, tiny) for item in tokens), strict=False))
        for item, blocks in zip(tokens, zip(*turns, strict=True), strict=True):
            joined = np.concatenate([block.samples for block in blocks], axis=1)
            np.testing.assert_array_equal(joined, phonograph.decode(item, tiny).samples[:, : joined.shape[1]])

    def test_refuses_when_the_first_block_is_asked_for(self, tiny: MimiModel, mini: MimiModel, tmp_path: Path) -> None:
        tokens = phonograph.encode(chirp(0.1), tiny)
        with pytest.raises(TokenFileError, match="got tokens of another model"):
            audio.save_stream(tmp_path / "x.wav", decode_stream(tokens, mini))
        with pytest.raises(ConfigError, match="expected"):
            next(decode_stream(tokens, tiny, start_seconds=0.2))
        assert list(tmp_path.iterdir()) == []


class TestRefusals:
    def test_both_codebooks_and_bitrate(self, tiny: MimiModel) -> None:
        with pytest.raises(ConfigError, match="expected num_quantizers or bitrate, got both; pass one"):
            phonograph.encode(chirp(0.1), tiny, num_quantizers=2, bitrate=1000)

    def test_too_low_a_bitrate(self, mini: MimiModel) -> None:
        with pytest.raises(ConfigError, match="a bitrate of at least 125 bit/s for this model, got 100; raise it"):
            phonograph.encode(chirp(0.1), mini, bitrate=100)

    @pytest.mark.parametrize("number", [0, 5])
    def test_num_quantizers(self, tiny: MimiModel, number: int) -> None:
        for speech in (chirp(0.1), [chirp(0.1)]):
            with pytest.raises(ConfigError, match=f"num_quantizers from 1 to 4, got {number}"):
                phonograph.encode(speech, tiny, num_quantizers=number)

    @pytest.mark.parametrize("batch_size", [0, -1])
    def test_batch_size(self, tiny: MimiModel, batch_size: int) -> None:
        with pytest.raises(ConfigError, match=f"a batch_size of at least 1, got {batch_size}"):
            phonograph.encode([chirp(0.1)], tiny, batch_size=batch_size)

    @pytest.mark.parametrize(
        ("samples", "match"),
        [
            (np.zeros((1, 0), np.float32), "got none"),
            (np.zeros((1, 10), np.int16), "got int16"),
            (np.zeros((5, 100), np.float32), "channels"),
            (chirp(0.1) * np.float32(np.nan), "expected finite samples, got NaN or infinite ones; repair this audio or export"),
            (chirp(0.1) * np.float32(1e30), r"expected samples in \[-1, 1\], got a peak of 3e\+29; divide integers by their"),
            (np.round(chirp(0.1) * 32767), r"expected samples in \[-1, 1\], got a peak of \d+; divide integers by their full"),
        ],
    )
    @pytest.mark.parametrize("batch_size", [1, 2])
    def test_audio(self, tiny: MimiModel, samples: np.ndarray, match: str, batch_size: int) -> None:
        with pytest.raises(AudioError, match=match):
            phonograph.encode(samples, tiny, sampling_rate=16000, batch_size=batch_size)
        with pytest.raises(AudioError, match=f"^item 1: .*{match}"):
            phonograph.encode([chirp(0.1), samples], tiny, batch_size=batch_size)

    @pytest.mark.parametrize("batch_size", [1, 2])
    def test_files_are_named(self, tiny: MimiModel, tmp_path: Path, batch_size: int) -> None:
        audio.save(tmp_path / "x.wav", chirp(0.1) * 1000, RATE, subtype="FLOAT")
        for speech in (tmp_path / "x.wav", [chirp(0.1), str(tmp_path / "x.wav")]):
            with pytest.raises(AudioError, match=r"x\.wav: expected samples in \[-1, 1\], got a peak of \d+"):
                phonograph.encode(speech, tiny, batch_size=batch_size)

    @pytest.mark.parametrize("batch_size", [1, 2])
    def test_something_else_than_speech(self, tiny: MimiModel, batch_size: int) -> None:
        for speech, match in (
            (None, "^expected a path, .* got NoneType"),
            (5, "got int; pass"),
            ([0.1], "^item 0: .* got float"),
        ):
            with pytest.raises(AudioError, match=match):
                phonograph.encode(speech, tiny, batch_size=batch_size)  # type: ignore[call-overload]

    def test_rates(self, tiny: MimiModel) -> None:
        with pytest.raises(AudioError, match="expected sampling_rate from 1000 to 768000 Hz, got 0; pass the rate in Hz"):
            phonograph.encode(chirp(0.1), tiny, sampling_rate=0)

    def test_missing_files(self, tiny: MimiModel, tmp_path: Path) -> None:
        for speech in (tmp_path / "no.wav", [tmp_path / "no.wav"]):
            with pytest.raises(AudioError, match=r"no\.wav"):
                phonograph.encode(speech, tiny)

    def test_models_that_cannot_be(self, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match=r"expected a bundled model, .* got 'nope'"):
            phonograph.encode(chirp(0.1), "nope")
        with pytest.raises(ConfigError, match=r"expected a device that works here .*got 'warp'"):
            load_codec("mimi-mini", device="warp")
        with pytest.raises(StreamError, match="run this model in one pass"):
            phonograph.encode(chirp(0.1), random_mimi(**TINY | {"use_causal_conv": False}))

    @pytest.mark.parametrize(("folder", "kind"), [(CTC, "wav2vec2"), (S2T, "speech_to_text")])
    def test_models_of_other_kinds(self, folder: Path, kind: str) -> None:
        """Without a warning before, and without reading the weights."""
        with pytest.raises(
            CheckpointError, match=f"^expected a Mimi codec, got .*{folder.name}, which is {kind}; pass another"
        ):
            load_codec(folder)

    def test_tokens_of_another_model(self, tiny: MimiModel, mini: MimiModel) -> None:
        tokens = phonograph.encode(chirp(0.1), tiny)
        other = random_mimi(seed=1, **TINY)
        for model in (mini, other):
            with pytest.raises(
                TokenFileError, match=r"got tokens of another model \(.*codebooks [0-9a-f]{12}\); pass the model"
            ):
                phonograph.decode(tokens, model)

    def test_tokens_that_name_no_model(self, tiny: MimiModel) -> None:
        with pytest.raises(TokenFileError, match=r"tokens that name their model, got tokens that don't; pass model="):
            phonograph.decode(phonograph.encode(chirp(0.1), tiny))

    def test_no_frames(self, tiny: MimiModel) -> None:
        tokens = phonograph.encode(chirp(0.1), tiny)
        empty = SpeechTokens(tokens.codes[:, :0], tokens.header)
        with pytest.raises(TokenFileError, match="at least one frame of tokens, got none; encode some speech first"):
            phonograph.decode(empty, tiny)

    def test_a_part_that_is_not_there(self, tiny: MimiModel) -> None:
        tokens = phonograph.encode(chirp(0.1), tiny)
        with pytest.raises(ConfigError, match="expected"):
            phonograph.decode(tokens, tiny, start_seconds=0.2)
