"""Slow, obviously correct float64 answers in plain NumPy, themselves tested in test_oracles.py."""
