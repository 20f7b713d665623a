"""Launchers: who starts the processes of a pool, finds them again, and ends them."""
