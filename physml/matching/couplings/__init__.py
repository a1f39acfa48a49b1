"""Which source sample goes with which sample of the data."""
