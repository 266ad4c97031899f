"""Our own PyTorch module, predicted: executed work, activation ledger, ranks, time on a calibrated CPU."""
