"""The PPP engine: one for every carrier, without I/O."""
