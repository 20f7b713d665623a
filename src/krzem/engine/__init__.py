"""Training engines: what each can run, its switches, and the setup a step runs under.

Planner, validation, emitters and readers take the same :class:`krzem.engine.setup.Setup`; nothing
about an engine is known anywhere else.  The facts are ``facts/engines/*.toml``.
"""
