"""Optuna decides: the study, the pruner, and their thin adapters to Tune."""
