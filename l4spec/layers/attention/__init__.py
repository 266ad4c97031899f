"""Shared code of attention kinds: masks, positions, compute, ledger, rope, ring attention."""
