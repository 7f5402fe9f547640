"""What goes on around a step: checkpoints, signals, cost, sharding."""
