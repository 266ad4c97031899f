"""Shared code of layer kinds: gated products, allocation ledger, modules, parallel pieces."""
