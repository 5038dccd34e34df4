"""Each task learns the bundled clips by heart, through the loop, and its result loads here and in transformers."""

import pytest
import torch
from bundled_clips import NAMES, SEQ2SEQ, WAV2VEC2, recipe, table
from memorised import SENTENCES
from peers import peer

from phonograph import Wav2Vec2ForPreTraining, audio, transcribe
from phonograph.loading.hub import BUNDLED_SPEECH
from phonograph.training import Outcome, RunOptions, train

CLIPS = [BUNDLED_SPEECH / f"{name}.flac" for name in NAMES]
TEXTS = [SENTENCES[name].english for name in NAMES]


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def learn(folder, *arguments, **options) -> Outcome:
    made = recipe(*arguments, **options)
    return train(made, RunOptions(output=folder / "run", device="cpu", quiet=True))


def samples_of(clip):
    return audio.load(clip, sampling_rate=16000, mono=True).samples[0]


def test_ctc_makes_no_error_and_its_folder_transcribes_here_and_in_transformers(tmp_path):
    model = WAV2VEC2 | {"apply_spec_augment": False}
    outcome = learn(tmp_path, "ctc", table(tmp_path), 110, 3e-3, model=model, even_alignment_steps=50, intermediate_layers=[1])
    assert outcome.figures == {"wer": 0, "cer": 0}
    texts = [text.upper() for text in TEXTS]
    assert [transcribe(clip, model=outcome.model).text for clip in CLIPS] == texts
    transformers = peer("transformers")
    theirs = transformers.Wav2Vec2ForCTC.from_pretrained(outcome.model).eval()
    processor = transformers.Wav2Vec2Processor.from_pretrained(outcome.model)
    for clip, text in zip(CLIPS, texts, strict=True):
        inputs = processor(samples_of(clip), sampling_rate=16000, return_tensors="pt")
        with torch.no_grad():
            assert processor.batch_decode(theirs(**inputs).logits.argmax(-1)) == [text]
    said = (tmp_path / "run" / "samples" / "step-0000110.txt").read_text()
    assert all(f"said   {text}\nheard  {text}\n" in said for text in texts)


def test_seq2seq_repeats_its_sentences_here_and_in_transformers(tmp_path):
    generation = {"num_beams": 2, "max_length": 100}
    options = {"model": SEQ2SEQ, "pieces": 60, "ctc_weight": 0.3, "label_smoothing": 0.05, "generation": generation}
    outcome = learn(tmp_path, "seq2seq", table(tmp_path), 120, 3e-3, **options)
    assert (outcome.figures["wer"], outcome.figures["cer"]) == (0, 0)
    assert outcome.figures["bleu"] == pytest.approx(100)
    assert [transcribe(clip, model=outcome.model).text for clip in CLIPS] == TEXTS
    transformers = peer("transformers")
    theirs = transformers.Speech2TextForConditionalGeneration.from_pretrained(outcome.model).eval()
    processor = transformers.Speech2TextProcessor.from_pretrained(outcome.model)
    inputs = processor(list(map(samples_of, CLIPS)), sampling_rate=16000, padding=True, return_tensors="pt")
    assert processor.batch_decode(theirs.generate(**inputs), skip_special_tokens=True) == TEXTS


def test_pretraining_leaves_chance_far_behind_and_fine_tuning_starts_from_its_folder(tmp_path):
    negatives = 20
    model = WAV2VEC2 | {
        "num_negatives": negatives,
        "mask_time_prob": 0.4,
        "num_codevectors_per_group": 16,
        "codevector_dim": 32,
        "proj_codevector_dim": 32,
    }
    outcome = learn(tmp_path, "pretraining", table(tmp_path), 110, 2e-3, model=model, temperature_decay=0.99)
    assert outcome.figures["accuracy"] > 8 / (1 + negatives)
    assert outcome.figures["perplexity"] > 8  # of 32: the codebooks are in use
    assert Wav2Vec2ForPreTraining.from_pretrained(outcome.model).config.num_negatives == negatives
    peer("transformers").Wav2Vec2ForPreTraining.from_pretrained(outcome.model)
    tuned = learn(tmp_path / "tuned", "ctc", table(tmp_path), init=str(outcome.model), freeze_features=True)
    assert tuned.step == 1


@pytest.mark.parametrize("kind", ["sequence", "frames", "speaker"])
def test_classifiers_tell_the_clips_apart(kind, tmp_path):
    model = WAV2VEC2 | {"num_hidden_layers": 1, "apply_spec_augment": False, "tdnn_dim": [64, 64], "xvector_output_dim": 32}
    model |= {"tdnn_kernel": [3, 1], "tdnn_dilation": [1, 1], "classifier_proj_size": 32}
    label = "segments" if kind == "frames" else "speaker"
    segments = [[[0.2, 0.8, "a"]], [[0.0, 1.0, "b"]], [[0.5, 1.5, "c"]]]
    path = table(tmp_path, duration=1.5, segments=segments)
    if kind == "speaker":  # twice the same, so that there are pairs of one speaker
        path.write_text(path.read_text() + "\n" + path.read_text())
    options = {"kind": kind, "label": label, "model": model, "freeze_features": False}
    outcome = learn(tmp_path, "classification", path, 40, 2e-3, **options)
    if kind == "frames":
        assert outcome.figures["accuracy"] > 0.8
    else:
        assert outcome.figures == ({"eer": 0} if kind == "speaker" else {"accuracy": 1})
    names = {"sequence": "SequenceClassification", "frames": "AudioFrameClassification", "speaker": "XVector"}
    theirs = getattr(peer("transformers"), f"Wav2Vec2For{names[kind]}").from_pretrained(outcome.model)
    assert sorted(theirs.config.label2id) == (["a", "b", "c", "none"] if kind == "frames" else sorted(NAMES))
