"""Many trainings: the pool of processes, and Hydra's plugins for sweeps and searches."""
