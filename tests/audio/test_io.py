"""Audio files in and out: the same samples however they are read, one line for all that can't be."""

import contextlib
import io
import os
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import phonograph.loading
from phonograph import audio
from phonograph.audio import io as io_module
from phonograph.errors import AudioError, OutputError

RATE = 24000
SPEECH = sorted((Path(phonograph.loading.__file__).parent / "bundled" / "speech").glob("*.flac"))


def chirp(seconds: float = 1.0, rate: int = RATE, channels: int = 1) -> np.ndarray:
    """A rising tone with a little noise, (channels, time), within [-0.6, 0.6]."""
    time = np.arange(round(seconds * rate)) / rate
    noise = np.random.default_rng(len(time)).uniform(-0.1, 0.1, (channels, len(time)))
    return (0.5 * np.sin(2 * np.pi * (200 + 300 * time) * time) + noise).astype(np.float32)


def encoded(samples: np.ndarray, name: str = "wav", rate: int = RATE, subtype: str | None = None) -> bytes:
    """The bytes of a file that libsndfile itself writes; samples (channels, time)."""
    buffer = io.BytesIO()
    soundfile.write(buffer, samples.T, rate, format=name.upper(), subtype=subtype)
    return buffer.getvalue()


def muxed(path: Path, container: str, codec: str, rate: int, samples: np.ndarray, **options: str) -> Path:
    """A file that FFmpeg writes; samples (channels, time) at RATE."""
    layout = "stereo" if len(samples) == 2 else "mono"
    with av.open(str(path), "w", format=container, options=options) as file:
        track = file.add_stream(codec, rate=rate, layout=layout)
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples), format="fltp", layout=layout)
        frame.sample_rate, frame.pts = RATE, 0
        resampler = av.AudioResampler(
            format=track.codec_context.format, layout=layout, rate=rate, frame_size=track.frame_size or 1024
        )
        for piece in [*resampler.resample(frame), *resampler.resample(None)]:
            file.mux(track.encode(piece))
        file.mux(track.encode(None))
    return path


@pytest.fixture
def wav(tmp_path: Path) -> Path:
    path = tmp_path / "speech.wav"
    path.write_bytes(encoded(chirp()))
    return path


class TestLoad:
    def test_equals_libsndfile(self, wav: Path) -> None:
        expected, rate = soundfile.read(wav, dtype="float32", always_2d=True)
        loaded = audio.load(wav)
        assert loaded.sampling_rate == rate
        assert loaded.samples.dtype == np.float32
        np.testing.assert_array_equal(loaded.samples, expected.T)

    @pytest.mark.parametrize("kind", ["path", "str", "bytes", "bytearray", "file", "BytesIO", "unseekable"])
    def test_every_kind_of_source(self, wav: Path, kind: str) -> None:
        data = wav.read_bytes()
        expected = audio.load(wav).samples
        with open(wav, "rb") as file:
            source = {
                "path": wav,
                "str": str(wav),
                "bytes": data,
                "bytearray": bytearray(data),
                "file": file,
                "BytesIO": io.BytesIO(data),
                "unseekable": Unseekable(data),
            }[kind]
            np.testing.assert_array_equal(audio.load(source).samples, expected)
            assert not file.closed

    def test_a_pipe(self) -> None:
        data = encoded(chirp(0.1))
        read_end, write_end = os.pipe()
        with os.fdopen(read_end, "rb") as reader:
            with os.fdopen(write_end, "wb") as writer:
                writer.write(data)
            np.testing.assert_array_equal(audio.load(reader).samples, audio.load(data).samples)

    @pytest.mark.skipif(not SPEECH, reason="the bundled speech is not there")
    def test_bundled_speech(self) -> None:
        for path in SPEECH:
            header = audio.info(path)
            loaded = audio.load(path)
            assert (loaded.sampling_rate, loaded.num_samples) == (header.sampling_rate, header.num_samples)
            assert 0.05 < np.abs(loaded.samples).max() <= 1
            assert audio.load(path, sampling_rate=RATE).duration_seconds == pytest.approx(header.duration_seconds, abs=1 / RATE)

    @pytest.mark.parametrize(
        ("container", "codec", "rate", "suffix", "tolerance"),
        [
            ("ipod", "aac", RATE, "m4a", 0.12),
            ("mp4", "alac", RATE, "mp4", 1e-4),
            ("webm", "libopus", 48000, "webm", 0.12),
            ("matroska", "flac", RATE, "mkv", 1e-4),
            ("mp3", "libmp3lame", RATE, "mp3", 0.12),
            ("mov", "pcm_s16le", RATE, "mov", 1e-4),
        ],
    )
    @pytest.mark.parametrize("channels", [1, 2])
    def test_what_only_ffmpeg_reads(
        self,
        tmp_path: Path,
        container: str,
        codec: str,
        rate: int,
        suffix: str,
        tolerance: float,
        channels: int,
    ) -> None:
        samples = chirp(2, channels=channels)
        path = muxed(tmp_path / f"speech.{suffix}", container, codec, rate, samples)
        header = audio.info(path)
        assert (header.sampling_rate, header.num_channels) == (rate, channels)
        assert header.duration_seconds == pytest.approx(2, abs=0.1)
        loaded = audio.load(path, sampling_rate=RATE)
        assert loaded.num_channels == channels
        # Encoders pad the end to a whole frame; the start must be where it was.
        assert samples.shape[1] <= loaded.num_samples < samples.shape[1] + 2048
        error = loaded.samples[:, : samples.shape[1]] - samples
        assert np.sqrt((error[:, 1000:-3000] ** 2).mean()) < tolerance

    def test_mp3_without_a_length_in_its_header(self) -> None:
        samples = np.concatenate([np.zeros((1, 48000), np.float32), chirp(2)], axis=1)
        data = encoded(samples, "mp3")
        first_frame = data.index(b"\xff", 4)
        loaded = audio.load(data[first_frame:])
        assert loaded.duration_seconds == pytest.approx(4, abs=0.1)

    @pytest.mark.parametrize("size", [b"\xff\xff\xff\xff", b"\0\0\0\0"])
    def test_wav_written_into_a_pipe(self, size: bytes) -> None:
        data = bytearray(encoded(chirp()))
        expected = audio.load(bytes(data)).samples
        data[4:8] = data[40:44] = size
        np.testing.assert_array_equal(audio.load(bytes(data)).samples, expected)

    def test_flac_of_unknown_length(self) -> None:
        data = bytearray(encoded(chirp(), "flac"))
        expected = audio.load(bytes(data)).samples
        data[21] &= 0xF0
        data[22:26] = bytes(4)
        assert audio.info(bytes(data)).num_samples is None
        np.testing.assert_array_equal(audio.load(bytes(data)).samples, expected)

    def test_header_that_counts_itself(self) -> None:
        data = bytearray(encoded(chirp()))
        size = int.from_bytes(data[40:44], "little")
        data[40:44] = (size + 44).to_bytes(4, "little")
        assert audio.load(bytes(data)).num_samples == RATE

    @pytest.mark.parametrize("name", ["wav", "flac", "ogg", "mp3"])
    def test_a_part_is_a_slice_of_the_whole(self, name: str) -> None:
        data = encoded(chirp(2), name)
        whole = audio.load(data).samples
        part = audio.load(data, start_seconds=0.5, duration_seconds=0.25).samples
        np.testing.assert_array_equal(part, whole[:, RATE // 2 : RATE // 2 + RATE // 4])
        tail = audio.load(data, start_seconds=1.75, duration_seconds=10).samples
        np.testing.assert_array_equal(tail, whole[:, RATE * 7 // 4 :])

    def test_channels(self) -> None:
        stereo = chirp(channels=2)
        data = encoded(stereo, subtype="FLOAT")
        np.testing.assert_array_equal(audio.load(data).samples, stereo)
        np.testing.assert_array_equal(audio.load(data, channel=1).samples, stereo[1:])
        np.testing.assert_allclose(audio.load(data, mono=True).samples, stereo.mean(0, keepdims=True), atol=1e-7)
        np.testing.assert_array_equal(audio.load(data).mono().samples, audio.load(data, mono=True).samples)
        eight = encoded(chirp(0.1, channels=8), subtype="FLOAT")
        np.testing.assert_array_equal(audio.load(eight, channel=5).samples, chirp(0.1, channels=8)[5:6])
        assert audio.info(eight).num_channels == 8

    def test_resampling_keeps_what_both_rates_hold(self) -> None:
        time = np.arange(48000) / 48000
        tone = np.sin(2 * np.pi * 1000 * time).astype(np.float32)[np.newaxis]
        loaded = audio.load(encoded(tone, rate=48000, subtype="FLOAT"), sampling_rate=RATE)
        assert loaded.num_samples == RATE
        expected = np.sin(2 * np.pi * 1000 * np.arange(RATE) / RATE)
        np.testing.assert_allclose(loaded.samples[0, 500:-500], expected[500:-500], atol=1e-4)

    @pytest.mark.parametrize("name", ["wav", "flac", "m4a"])
    def test_a_short_part_decodes_no_more_than_that(self, name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        decoded: list[int] = []
        trimmed = io_module._trimmed

        def counted(decoder: Any, *others: Any) -> Iterator[np.ndarray]:
            blocks = decoder.blocks

            def counting(stop: float) -> Iterator[np.ndarray]:
                for block in blocks(stop):
                    decoded.append(block.shape[1])
                    yield block

            monkeypatch.setattr(decoder, "blocks", counting)
            return trimmed(decoder, *others)

        if name == "m4a":
            path = tmp_path / "a.m4a"
            with av.open(str(path), "w") as container:
                stream = container.add_stream("aac", rate=RATE, layout="mono")
                frame = av.AudioFrame.from_ndarray(chirp(5), format="fltp", layout="mono")
                frame.sample_rate = RATE
                container.mux(stream.encode(frame))
                container.mux(stream.encode(None))
            data = path.read_bytes()
        else:
            data = encoded(chirp(5), name)
        whole = audio.load(data).samples
        monkeypatch.setattr(io_module, "_trimmed", counted)
        part = audio.load(data, start_seconds=0.5, duration_seconds=0.25).samples
        np.testing.assert_array_equal(part, whole[:, 12000:18000])
        assert sum(decoded) < (6001 if name != "m4a" else 18000 + 2048)


class TestStream:
    @settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(
        num_samples=st.integers(1, 70_000),
        channels=st.sampled_from([1, 2]),
        rates=st.sampled_from([(24000, None), (16000, 24000), (44100, 24000), (48000, 8000), (8000, 44100)]),
        block_samples=st.integers(50, 100_000),
        mono=st.booleans(),
    )
    def test_blocks_are_the_file(
        self, num_samples: int, channels: int, rates: tuple[int, int | None], block_samples: int, mono: bool
    ) -> None:
        rate, target = rates
        samples = np.random.default_rng(num_samples).uniform(-1, 1, (channels, num_samples)).astype(np.float32)
        data = encoded(samples, rate=rate, subtype="FLOAT")
        try:
            whole = audio.load(data, sampling_rate=target, mono=mono)
        except AudioError:
            assert target is not None
            assert num_samples * target / rate < 1
            return
        assert whole.num_samples == pytest.approx(num_samples * (target or rate) / rate, abs=1)
        blocks = list(audio.stream(data, block_samples=block_samples, sampling_rate=target, mono=mono))
        assert [block.num_samples for block in blocks[:-1]] == [block_samples] * (len(blocks) - 1)
        assert 0 < blocks[-1].num_samples <= block_samples
        assert {block.sampling_rate for block in blocks} == {target or rate}
        np.testing.assert_array_equal(np.concatenate([block.samples for block in blocks], 1), whole.samples)

    def test_one_shot_resampling_is_the_same(self) -> None:
        samples = chirp(3, rate=44100)
        loaded = audio.load(encoded(samples, rate=44100, subtype="FLOAT"), sampling_rate=RATE)
        np.testing.assert_array_equal(audio.Audio(samples, 44100).resample(RATE).samples, loaded.samples)

    def test_what_only_ffmpeg_reads(self, tmp_path: Path) -> None:
        path = muxed(tmp_path / "a.m4a", "ipod", "aac", RATE, chirp(2))
        blocks = list(audio.stream(path, block_seconds=0.08, sampling_rate=16000))
        assert blocks[0].num_samples == 1280
        whole = audio.load(path, sampling_rate=16000)
        np.testing.assert_array_equal(np.concatenate([block.samples for block in blocks], 1), whole.samples)

    def test_stopping_early_closes_the_file(self, wav: Path) -> None:
        blocks = audio.stream(wav, block_seconds=0.01)
        next(blocks)
        blocks.close()  # a file left open would be a ResourceWarning, which is an error here
        assert list(blocks) == []

    def test_memory_does_not_grow_with_the_file(self, tmp_path: Path) -> None:
        def peak_bytes(minutes: int) -> int:
            path = tmp_path / f"{minutes}.wav"
            with soundfile.SoundFile(path, "w", 48000, 1, "PCM_16") as file:
                for _ in range(minutes):
                    file.write(np.zeros(60 * 48000, np.int16))
            tracemalloc.start()
            seconds = sum(block.duration_seconds for block in audio.stream(path, block_seconds=1, sampling_rate=RATE))
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            assert seconds == pytest.approx(60 * minutes)
            return peak

        assert peak_bytes(10) < peak_bytes(1) + 1_000_000
        assert peak_bytes(1) < 8_000_000

    @pytest.mark.parametrize("arguments", [{}, {"block_seconds": 1, "block_samples": 24000}])
    def test_refuses_not_exactly_one_length(self, wav: Path, arguments: dict[str, float]) -> None:
        with pytest.raises(AudioError, match="both or neither; pass exactly one"):
            audio.stream(wav, **arguments)

    @pytest.mark.parametrize("length", [0, -1, float("inf"), float("nan")])
    def test_refuses_lengths_that_are_none(self, wav: Path, length: float) -> None:
        with pytest.raises(AudioError, match="expected a positive block length"):
            audio.stream(wav, block_seconds=length)

    def test_refuses_when_the_first_block_is_asked_for(self, tmp_path: Path) -> None:
        blocks = audio.stream(tmp_path / "none.wav", block_seconds=1)
        with pytest.raises(AudioError, match="does not exist"):
            next(blocks)


class TestSave:
    @pytest.mark.parametrize(
        ("name", "subtype", "step"),
        [
            ("wav", "PCM_16", 2.0**-15),
            ("wav", "PCM_24", 2.0**-23),
            ("wav", "FLOAT", 0),
            ("wav", "PCM_U8", 2.0**-7),
            ("flac", None, 2.0**-15),
            ("flac", "PCM_24", 2.0**-23),
            ("aiff", None, 2.0**-15),
        ],
    )
    @pytest.mark.parametrize("channels", [1, 2])
    def test_round_trip(self, tmp_path: Path, name: str, subtype: str | None, step: float, channels: int) -> None:
        samples = chirp(channels=channels)
        path = tmp_path / f"out.{name}"
        audio.save(path, samples, RATE, subtype=subtype)
        loaded = audio.load(path)
        assert loaded.sampling_rate == RATE
        np.testing.assert_allclose(loaded.samples, samples, rtol=0, atol=step / 2)
        # What has been through the file once stays as it is.
        audio.save(path, loaded, subtype=subtype)
        np.testing.assert_array_equal(audio.load(path).samples, loaded.samples)
        assert list(tmp_path.iterdir()) == [path]

    @pytest.mark.parametrize("name", ["ogg", "opus", "mp3"])
    def test_lossy_formats(self, tmp_path: Path, name: str) -> None:
        samples = chirp(2)
        audio.Audio(samples, RATE).save(tmp_path / f"out.{name}")
        loaded = audio.load(tmp_path / f"out.{name}", sampling_rate=RATE)
        assert loaded.num_samples == pytest.approx(2 * RATE, abs=1)
        length = min(loaded.num_samples, 2 * RATE)
        assert np.corrcoef(loaded.samples[0, :length], samples[0, :length])[0, 1] > 0.9

    def test_clips_to_the_ends_of_the_scale(self, tmp_path: Path) -> None:
        audio.save(tmp_path / "out.wav", [-2.0, -1.0, 0.0, 1.0, 2.0], RATE)
        stored, _ = soundfile.read(tmp_path / "out.wav", dtype="int16")
        assert stored.tolist() == [-32768, -32768, 0, 32767, 32767]
        audio.save(tmp_path / "out.wav", [-2.0, 2.0], RATE, subtype="FLOAT")
        assert audio.load(tmp_path / "out.wav").samples.tolist() == [[-2.0, 2.0]]

    def test_file_objects_and_formats(self, tmp_path: Path) -> None:
        buffer = io.BytesIO()
        audio.save(buffer, chirp(), RATE, format="flac")
        assert audio.info(buffer.getvalue()).format == "flac"
        audio.save(tmp_path / "out.bin", chirp(), RATE, format="WAV")
        assert audio.info(tmp_path / "out.bin").format == "wav"
        with open(tmp_path / "named.flac", "wb") as file:
            audio.save(file, chirp(), RATE)
        assert audio.info(tmp_path / "named.flac").format == "flac"

    def test_an_older_file_survives_a_refusal(self, wav: Path) -> None:
        before = wav.read_bytes()
        with pytest.raises(AudioError):
            audio.save(wav, [0.0, float("nan")], RATE)
        assert wav.read_bytes() == before
        assert [path.name for path in wav.parent.iterdir()] == [wav.name]

    @pytest.mark.parametrize(
        ("samples", "match"),
        [
            ([], "expected at least one sample, got none"),
            (np.zeros((2, 0)), "expected at least one sample, got none"),
            (np.zeros((100, 2)), r"got \(100, 2\); pass its transpose"),
            (np.zeros((3, 100)), r"got \(3, 100\); pass one clip of 1 or 2 channels"),
            (np.zeros((1, 1, 9)), r"got \(1, 1, 9\)"),
            (np.zeros(9, np.int16), "expected float samples in .*, got int16; divide integers"),
            ([0.0] * 12000 + [np.nan, np.inf], "got 2 NaN or infinite samples in .* the first at 0.500 s"),
        ],
    )
    def test_refuses_samples(self, tmp_path: Path, samples: np.ndarray, match: str) -> None:
        with pytest.raises(AudioError, match=match):
            audio.save(tmp_path / "out.wav", samples, RATE)
        assert not any(tmp_path.iterdir())

    @pytest.mark.parametrize(
        ("name", "options", "match"),
        [
            ("out.m4a", {}, "among wav, flac, ogg, opus, mp3, aiff, got 'm4a'; rename"),
            ("out", {}, "among wav, .* got none; rename the file or pass format='wav'"),
            ("out.wav", {"format": "mp9"}, "got 'mp9'"),
            ("out.flac", {"subtype": "FLOAT"}, "subtype of flac among PCM_S8, PCM_16, PCM_24, got 'FLOAT'"),
            ("out.opus", {"sampling_rate": 44100}, "OGG OPUS cannot hold 1 channels at 44100 Hz; resample"),
            ("out.wav", {"sampling_rate": None}, "expected a sampling_rate with bare samples"),
            ("out.wav", {"sampling_rate": 1}, "sampling_rate from 1000 to 768000 Hz, got 1; pass"),
            ("out.wav", {"sampling_rate": 24000.5}, "whole number of Hz, got 24000.5"),
        ],
    )
    def test_refuses_formats(self, tmp_path: Path, name: str, options: dict[str, object], match: str) -> None:
        with pytest.raises(AudioError, match=match):
            audio.save(tmp_path / name, chirp(0.1), **{"sampling_rate": RATE, **options})
        assert not any(tmp_path.iterdir())

    def test_refuses_two_rates(self, tmp_path: Path) -> None:
        with pytest.raises(AudioError, match="own 24000 Hz, got sampling_rate=16000; resample it first"):
            audio.save(tmp_path / "out.wav", audio.Audio(chirp(), RATE), 16000)

    def test_refuses_a_folder_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(OutputError, match="No such file or directory"):
            audio.save(tmp_path / "none" / "out.wav", chirp(), RATE)


def cut(sound: audio.Audio, *places: int) -> list[audio.Audio]:
    """The sound in blocks that end at these samples."""
    return [audio.Audio(part, sound.sampling_rate) for part in np.split(sound.samples, places, axis=1)]


class Pipe(io.RawIOBase):
    """Takes bytes and can't go back."""

    def __init__(self) -> None:
        self.data = b""

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return False

    def write(self, data: "bytes | memoryview") -> int:
        self.data += bytes(data)
        return len(data)


class TestSaveStream:
    @pytest.mark.parametrize("name", ["wav", "flac", "ogg", "aiff"])
    @pytest.mark.parametrize("channels", [1, 2])
    def test_equals_saving_the_whole(self, tmp_path: Path, name: str, channels: int) -> None:
        sound = audio.Audio(chirp(4, channels=channels), RATE)
        audio.save(tmp_path / f"whole.{name}", sound)
        audio.save_stream(tmp_path / f"blocks.{name}", iter(cut(sound, 1, 2, 5000, 90_001)))
        whole, blocks = (audio.load(tmp_path / f"{stem}.{name}") for stem in ("whole", "blocks"))
        assert blocks.sampling_rate == RATE
        np.testing.assert_array_equal(blocks.samples, whole.samples)
        if name != "ogg":  # a stream of Ogg pages has a serial number of its own
            assert (tmp_path / f"blocks.{name}").read_bytes() == (tmp_path / f"whole.{name}").read_bytes()

    @pytest.mark.parametrize("name", ["wav", "flac"])
    def test_into_what_cannot_seek(self, tmp_path: Path, name: str) -> None:
        sound = audio.Audio(chirp(), RATE)
        audio.save(tmp_path / f"whole.{name}", sound)
        pipe = Pipe()
        audio.save_stream(pipe, cut(sound, 100, 5000), format=name)
        assert pipe.data == (tmp_path / f"whole.{name}").read_bytes()

    def test_into_a_real_pipe(self) -> None:
        script = (
            "import sys, numpy; from phonograph import Audio, audio; "
            "audio.save_stream(sys.stdout.buffer, (Audio(numpy.full(1000, n / 8), 8000) for n in range(3)), format='wav')"
        )
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
        samples = audio.load(done.stdout).samples[0]
        assert samples[::1000].tolist() == [0, 0.125, 0.25]
        assert len(samples) == 3000

    def test_memory_does_not_grow_with_the_file(self, tmp_path: Path) -> None:
        def peak_bytes(blocks: int) -> int:
            tracemalloc.start()
            audio.save_stream(tmp_path / "x.wav", (audio.Audio(chirp(), RATE) for _ in range(blocks)))
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            return peak

        assert peak_bytes(100) < peak_bytes(10) + 100_000

    @pytest.mark.parametrize(
        ("other", "match"),
        [
            (audio.Audio(chirp(rate=16_000), 16_000), r"blocks like the first, .*24000.*, got .*16000.*; convert them first"),
            (audio.Audio(chirp(channels=2), RATE), r"blocks like the first, .*num_channels=1.*, got .*num_channels=2"),
            (audio.Audio([0.0, float("nan")], RATE), "NaN|nan|finite"),
        ],
    )
    def test_refuses_blocks_and_leaves_nothing(self, tmp_path: Path, other: audio.Audio, match: str) -> None:
        with pytest.raises(AudioError, match=match):
            audio.save_stream(tmp_path / "x.wav", [audio.Audio(chirp(), RATE), other])
        assert list(tmp_path.iterdir()) == []

    def test_refuses_no_blocks(self, wav: Path) -> None:
        before = wav.read_bytes()
        for target in (wav, wav.with_name("new.wav")):
            with pytest.raises(AudioError, match="at least one block of audio to write, got none"):
                audio.save_stream(target, iter([]))
        with pytest.raises(AudioError, match="at least one block of audio to write, got none"):
            audio.save_stream(io.BytesIO(), [], format="wav")
        assert list(wav.parent.iterdir()) == [wav]
        assert wav.read_bytes() == before

    def test_refuses_formats_before_the_first_block_is_asked_for(self, tmp_path: Path) -> None:
        def blocks() -> Iterator[audio.Audio]:
            raise AssertionError("asked")
            yield

        with pytest.raises(AudioError, match="expected a suffix or format among"):
            audio.save_stream(tmp_path / "x.txt", blocks())

    def test_a_source_that_fails_leaves_nothing(self, tmp_path: Path) -> None:
        def blocks() -> Iterator[audio.Audio]:
            yield audio.Audio(chirp(), RATE)
            raise KeyError("mine")

        with pytest.raises(KeyError, match="mine"):
            audio.save_stream(tmp_path / "x.flac", blocks())
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("name", ["wav", "flac", "ogg"])
    def test_a_full_disk_leaves_nothing(self, tmp_path: Path, name: str) -> None:
        """A writer that may write 20,000 bytes, as a disk that is full after them; blocks after that are not asked for."""
        script = (
            "import resource, sys, numpy; from phonograph import Audio, audio; from phonograph.errors import OutputError\n"
            "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))\n"
            "asked = []\n"
            "noise = numpy.random.default_rng(0).uniform(-0.5, 0.5, 24000)\n"
            "blocks = (asked.append(n) or Audio(noise, 24000) for n in range(100))\n"
            "try: audio.save_stream(sys.argv[1], blocks)\n"
            "except OutputError as error: print(error, len(asked))\n"
        )
        path = tmp_path / f"x.{name}"
        done = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=True)
        message, _, asked = done.stdout.strip().rpartition(" ")
        assert message == f"cannot write {path}: File too large; choose another place or make room there"
        assert int(asked) < 10
        assert list(tmp_path.iterdir()) == []


class TestAudio:
    def test_reversed_samples_are_no_view_that_pytorch_refuses(self) -> None:
        samples = chirp()
        sound = audio.Audio(samples[:, ::-1], RATE)
        assert sound.samples.flags.c_contiguous
        np.testing.assert_array_equal(sound.samples, samples[:, ::-1])

    def test_properties(self) -> None:
        sound = audio.Audio(np.zeros((2, 36000)), np.int64(RATE))
        assert (sound.num_channels, sound.num_samples, sound.duration_seconds) == (2, 36000, 1.5)
        assert sound.samples.dtype == np.float32
        assert repr(sound) == "Audio(num_channels=2, sampling_rate=24000, duration_seconds=1.500)"
        assert sound.resample(RATE) is sound
        assert sound.mono().mono().num_channels == 1
        assert audio.Audio([0.5, 0.25], RATE).samples.shape == (1, 2)

    def test_refuses(self) -> None:
        with pytest.raises(AudioError, match="from 1000 to 768000 Hz, got 999"):
            audio.Audio(chirp(), 999)
        with pytest.raises(AudioError, match="shorter than one sample at the new rate"):
            audio.Audio([0.1], 768000).resample(1000)


class TestInfo:
    @pytest.mark.parametrize(("name", "codec"), [("wav", "pcm_16"), ("flac", "pcm_16"), ("ogg", "vorbis"), ("aiff", "pcm_16")])
    def test_header(self, name: str, codec: str) -> None:
        header = audio.info(encoded(chirp(1.5, channels=2), name))
        assert header == audio.AudioInfo(RATE, 2, 36000, 1.5, name, codec)

    def test_ffmpeg_header(self, tmp_path: Path) -> None:
        header = audio.info(muxed(tmp_path / "a.m4a", "ipod", "aac", RATE, chirp(2)))
        assert (header.format, header.codec, header.num_samples) == ("m4a", "aac", None)


class Unseekable(io.RawIOBase):
    """Bytes that come once, as from a socket."""

    def __init__(self, data: bytes) -> None:
        self._data = io.BytesIO(data)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray) -> int:
        return self._data.readinto(buffer)


def cut_mp4(folder: Path) -> bytes:
    path = muxed(folder / "whole.m4a", "ipod", "aac", RATE, chirp(4), movflags="faststart")
    data = path.read_bytes()
    path.unlink()
    return data[: len(data) // 2]


def video_only(folder: Path) -> bytes:
    path = folder / "video.mp4"
    with av.open(str(path), "w") as file:
        track = file.add_stream("mpeg4", rate=10)
        track.width = track.height = 64
        track.pix_fmt = "yuv420p"
        for _ in range(3):
            file.mux(track.encode(av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")))
        file.mux(track.encode(None))
    data = path.read_bytes()
    path.unlink()
    return data


def damaged_flac() -> bytes:
    data = bytearray(encoded(chirp(5), "flac"))
    data[len(data) // 2 :] = bytes(len(data) - len(data) // 2)
    return bytes(data)


def with_bad_samples() -> bytes:
    samples = chirp(5)
    samples[0, 12000] = np.nan
    samples[0, -3:] = np.inf
    return encoded(samples, subtype="FLOAT")


BAD_FILES = {
    "empty": (lambda _: b"", r"is empty \(0 bytes\); expected an audio file"),
    "text": (lambda _: b"Hello, I am no sound.\n" * 99, "got text in .*; check what it holds"),
    "short text": (lambda _: b"hi", "got text in "),
    "noise": (lambda _: np.random.default_rng(0).bytes(9999), "got something else, or a damaged file"),
    "header alone": (lambda _: encoded(chirp())[:44], "has no samples; expected at least one"),
    "cut header": (lambda _: encoded(chirp())[:30], "got something else, or a damaged file"),
    "cut wav": (
        lambda _: encoded(chirp())[:20000],
        "cut short: its header promises 48000 bytes of audio, 19956",
    ),
    "cut aiff": (lambda _: encoded(chirp(), "aiff")[:20000], "cut short: its header promises"),
    "cut flac": (
        lambda _: encoded(chirp(5), "flac")[:99999],
        "damaged or cut short: no audio can be decoded",
    ),
    "damaged flac": (lambda _: damaged_flac(), "damaged or cut short"),
    "cut m4a": (cut_mp4, "damaged or cut short: no audio can be decoded after 1"),
    "video alone": (video_only, "has no audio track; expected a file with sound in it"),
    "NaN": (lambda _: with_bad_samples(), "got 4 NaN or infinite samples in .*the first at 0.500 s"),
    "1 Hz": (lambda _: encoded(chirp(), rate=1), "from 1000 to 768000 Hz, got 1 Hz in "),
    "1 MHz": (lambda _: encoded(chirp(), rate=1_000_000), "from 1000 to 768000 Hz, got 1000000 Hz in "),
    "8 channels": (lambda _: encoded(chirp(channels=8)), "got 8 in .*; pass channel=0 to 7 to pick one"),
    "concat script": (lambda _: b"ffconcat version 1.0\nfile secret.wav\n", "got text in "),
}


@pytest.mark.parametrize("case", BAD_FILES)
@pytest.mark.parametrize("read", ["load path", "load bytes", "stream"])
def test_refuses_bad_files(tmp_path: Path, case: str, read: str) -> None:
    make, match = BAD_FILES[case]
    data = make(tmp_path)
    path = tmp_path / "speech.wav"
    path.write_bytes(data)
    readers = {
        "load path": lambda: audio.load(path),
        "load bytes": lambda: audio.load(data),
        "stream": lambda: list(audio.stream(path, block_seconds=0.5, sampling_rate=16000)),
    }
    with pytest.raises(AudioError, match=match) as refusal:
        readers[read]()
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("name", ["wav", "flac", "ogg", "mp3", "aiff", "au", "w64", "m4a", "webm", "aac"])
def test_mutated_files_are_read_or_refused(tmp_path: Path, name: str, capfd: pytest.CaptureFixture[str]) -> None:
    containers = {
        "m4a": ("ipod", "aac", RATE),
        "webm": ("webm", "libopus", 48000),
        "aac": ("adts", "aac", RATE),
    }
    if name in containers:
        whole = muxed(tmp_path / "whole", *containers[name], chirp(0.3)).read_bytes()
    else:
        whole = encoded(chirp(0.3), name)
    random = np.random.default_rng(0)
    for _ in range(60):
        data = bytearray(whole)
        for position in random.integers(0, random.choice([100, len(data)]), 3):
            data[position] = random.integers(256)
        if random.random() < 0.3:
            del data[random.integers(1, len(data)) :]
        for read in (audio.info, lambda source: audio.load(source, sampling_rate=16000, channel=0)):
            with contextlib.suppress(AudioError):
                read(data)
    assert "Traceback" not in capfd.readouterr().err


def test_scripts_do_not_open_other_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "secret.wav").write_bytes(encoded(chirp()))
    monkeypatch.chdir(tmp_path)
    script = b"ffconcat version 1.0\nfile secret.wav\n"
    with av.open(io.BytesIO(script)) as opened:
        assert opened.format.name == "concat", "FFmpeg no longer follows such scripts by itself"
    with pytest.raises(AudioError, match="got text in "):
        audio.load(script)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"sampling_rate": 1}, "sampling_rate from 1000 to 768000 Hz, got 1; pass"),
        ({"sampling_rate": "24k"}, "whole number of Hz, got '24k'"),
        ({"start_seconds": -1}, "start_seconds of at least 0, got -1; count"),
        ({"start_seconds": 1}, "start_seconds=1 lies after the end of .*, which has 1.00 s; start earlier"),
        ({"start_seconds": 99}, "start_seconds=99 lies after the end of .*, which has 1.00 s"),
        ({"duration_seconds": 0}, "positive duration_seconds, got 0; leave it out"),
        ({"channel": -1}, "channel number from 0, got channel=-1"),
        ({"channel": 1}, "expected a channel below 1, got channel=1"),
    ],
)
def test_refuses_options(wav: Path, options: dict[str, float], match: str) -> None:
    with pytest.raises(AudioError, match=match):
        audio.load(wav, **options)


def test_refuses_sources_that_are_none(tmp_path: Path, wav: Path) -> None:
    with pytest.raises(AudioError, match=r"none\.wav does not exist; check the name"):
        audio.load(tmp_path / "none.wav")
    with pytest.raises(AudioError, match="is a folder; name a file in it"):
        audio.load(tmp_path)
    with pytest.raises(AudioError, match="expected a path, bytes or a binary file object, got ndarray"):
        audio.load(chirp())
    with open(wav) as file, pytest.raises(AudioError, match="in text mode; open it with mode 'rb'"):
        audio.load(file)
    raw = tmp_path / "speech.raw"
    raw.write_bytes(bytes(100))
    with pytest.raises(AudioError, match="no header that tells its rate"):
        audio.load(raw)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_refuses_files_without_permission(wav: Path) -> None:
    wav.chmod(0)
    with pytest.raises(AudioError, match="Permission denied; check its permissions"):
        audio.load(wav)


def test_needs_no_torch_and_no_ffmpeg_for_what_libsndfile_reads(wav: Path) -> None:
    program = (
        "import sys; from phonograph import audio; audio.load(sys.argv[1], sampling_rate=16000); "
        "assert not {'torch', 'av'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program, str(wav)], check=True)
