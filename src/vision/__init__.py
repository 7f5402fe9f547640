"""Vision encoders: uint8 pictures -> tokens, a pooled vector, and the last levels."""
