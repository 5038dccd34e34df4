"""Speech2Text, transcription and translation by an encoder and a decoder (Wang et al. 2020, arXiv:2010.05171)."""
