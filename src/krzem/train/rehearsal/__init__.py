"""A step of any one rank of any layout, run without its devices.

The real engine, FSDP, pipeline schedule and optimizer run on tensors that have shapes and no values
(``torch._subclasses.fake_tensor``) and on a process group that sends nothing (torch's ``fake``
back end), so that one process can be rank 777 of 2,048.  What is counted is what that rank's own
code asks for: bytes of every storage from allocation to release, each collective with its group,
host reads, and FLOPs.
"""
