"""Measuring a machine: rates, links, repeatability and numerics of its devices."""
