"""Architectures by the dozen: a row of cost for each variant of a spec."""
