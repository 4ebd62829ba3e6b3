"""What the trainings share: the loop, checkpoints, augmentation, losses, differential privacy and scoring.

Imports from `metrics` and the rooms above it.
"""
