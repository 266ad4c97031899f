"""Training with matmuls in fp8, emulated with torch's float8 formats: every operand is rounded as a GPU would."""
