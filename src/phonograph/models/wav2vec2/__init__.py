"""Wav2Vec2, speech to vectors, text and classes (Baevski et al. 2020, arXiv:2006.11477)."""
