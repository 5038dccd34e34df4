"""Speech to train on: from a folder to augmented batches on the device.

    store = AudioStore(16000, memory_bytes=8 << 30)
    report = validate(read_manifest("LibriSpeech/train-clean-100"), store=store)
    plans = BucketedBatches([item.duration_seconds for item in report.kept], 16000, rank=rank, world=world)
    for batch in SpeechLoader(report.kept, store, plans):
        batch = batch.to(device)
        waveforms, lengths = augment(batch.waveforms, batch.lengths)    # an Augmenter

Each part is of use alone: `manifest` finds utterances, `validate` says which are of use, `store` decodes, `batches` orders,
`loader` reads ahead, `augment` and `spec_augment` make more of them on the device. None of it knows a model.
"""

from phonograph.training.data.augment import Augmenter as Augmenter
from phonograph.training.data.augment import AugmentOptions as AugmentOptions
from phonograph.training.data.batches import BatchOptions as BatchOptions
from phonograph.training.data.batches import BatchPlan as BatchPlan
from phonograph.training.data.batches import BucketedBatches as BucketedBatches
from phonograph.training.data.loader import SpeechBatch as SpeechBatch
from phonograph.training.data.loader import SpeechLoader as SpeechLoader
from phonograph.training.data.manifest import Utterance as Utterance
from phonograph.training.data.manifest import hold_out as hold_out
from phonograph.training.data.manifest import read_dataset as read_dataset
from phonograph.training.data.manifest import read_manifest as read_manifest
from phonograph.training.data.manifest import write_manifest as write_manifest
from phonograph.training.data.spec_augment import SpecAugmentOptions as SpecAugmentOptions
from phonograph.training.data.spec_augment import mask_features as mask_features
from phonograph.training.data.store import AudioStore as AudioStore
from phonograph.training.data.store import Fault as Fault
from phonograph.training.data.validate import Limits as Limits
from phonograph.training.data.validate import Report as Report
from phonograph.training.data.validate import validate as validate

__all__ = [
    "AudioStore",
    "AugmentOptions",
    "Augmenter",
    "BatchOptions",
    "BatchPlan",
    "BucketedBatches",
    "Fault",
    "Limits",
    "Report",
    "SpecAugmentOptions",
    "SpeechBatch",
    "SpeechLoader",
    "Utterance",
    "hold_out",
    "mask_features",
    "read_dataset",
    "read_manifest",
    "validate",
    "write_manifest",
]
