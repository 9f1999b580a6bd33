"""Scores of a model on cases with a known truth, always with n and an interval over patients."""
