"""What turns tiles into a distilled set: all steps, from loading tiles to publishing.

In this folder itself stand the scripts that Accelerate launches (`train_autoencoder`, `train_diffusion`,
`train_classifier`, `generate`) and `cli`. All else is in rooms. A module imports from its own room and from those that
come before it in this order, never from a later one: running, data, models, metrics, engine, the scripts,
distillation, evaluation, tables, reporting, end_to_end, publishing and demo_app, benchmarks, cli.
"""
