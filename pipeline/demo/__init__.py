"""Embedded default: a lexicon of word translations, a small model trained on it, and the script that trains it."""
