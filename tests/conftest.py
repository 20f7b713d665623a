"""Property tests run without a deadline: a busy machine is not a fault of the product."""

from hypothesis import settings

settings.register_profile("krzem", deadline=None)
settings.load_profile("krzem")
