"""The command line: verbs, and nothing that computes."""
