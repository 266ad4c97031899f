"""What layer kinds share: gated products, allocation ledger, modules, parallel pieces."""
