"""Worked studies: ``python -m krzem.supply.studies docs/studies`` writes them anew."""
