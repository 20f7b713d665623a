"""The what-if page: a local server that answers while a slider moves."""
