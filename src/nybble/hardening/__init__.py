"""Harden a model so that a 4-bit KV cache stops hurting: the closed-form fold, and training."""
