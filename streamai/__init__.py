"""streamai: every event scored, in a millisecond, by a small language model."""

__version__ = "0.1.0"
