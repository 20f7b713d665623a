"""Accelerators and clusters: what is known about them, and how a user's cluster is read."""

from krzem.hardware.catalogue import Confidence, Device, device_ids, device_row, load_device
from krzem.hardware.cluster import Cluster
from krzem.hardware.cluster_reader import cluster_of, read_cluster
from krzem.hardware.processors import CPU, processors

__all__ = [
    "CPU",
    "Cluster",
    "Confidence",
    "Device",
    "cluster_of",
    "device_ids",
    "device_row",
    "load_device",
    "processors",
    "read_cluster",
]
