"""What the device module says on a machine without an accelerator."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from krzem.errors import InputError
from krzem.train import device

alone = pytest.mark.skipif(device.accelerator_type() is not None, reason="has an accelerator")


@alone
def test_auto_is_the_processor_and_says_why() -> None:
    found = device.find_device()
    assert found.device == torch.device("cpu")
    assert found.is_cpu
    assert found.reason == "no accelerator is visible to torch"
    assert found.name
    assert device.find_device("cpu").reason == "asked for"


@alone
def test_a_device_that_is_not_there_is_refused() -> None:
    with pytest.raises(InputError, match="torch sees no accelerator"):
        device.find_device("cuda")


@pytest.mark.skipif(importlib.util.find_spec("torch_npu") is not None, reason="has torch_npu")
def test_ascend_without_its_plug_in_names_the_extra() -> None:
    with pytest.raises(InputError, match=r"needs torch_npu: install krzem\[npu\]"):
        device.find_device("npu")


def test_peak_memory_of_the_process_and_no_float8_on_it() -> None:
    cpu = torch.device("cpu")
    peak = device.peak_memory(cpu)
    assert peak is not None
    assert peak > 2**20
    assert not device.has_float8(cpu)
    device.synchronize(cpu)
    device.start_ranks(device.find_device("cpu"))
