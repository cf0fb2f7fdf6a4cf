"""Training of the demo model: data, model, losses, evaluation, export."""
