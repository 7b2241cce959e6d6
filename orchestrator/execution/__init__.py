"""How a decision becomes a trained trial: plan, trial, run folder, progress."""
