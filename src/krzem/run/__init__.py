"""Runs: pools in order of preference, gates, moves, and a ledger of everything that happened."""
