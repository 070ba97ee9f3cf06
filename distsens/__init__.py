"""Distributed adversarial training that shows its neurons."""
