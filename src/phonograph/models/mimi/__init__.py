"""Mimi, the streaming neural audio codec of Moshi (Défossez et al. 2024, arXiv:2410.00037, section 3.3)."""
