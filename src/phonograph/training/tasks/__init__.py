"""What can be trained: CTC, pretraining, sequence to sequence, classification and the codec, each a `Task` of the loop."""
