"""Tests of target networks, of any library; needs NumPy alone."""
