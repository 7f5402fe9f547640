"""Compare vision-language fusion mechanisms under one captioner."""

import os

# Threads that wait by spinning take the core that a data worker or a second run needs: on two shared cores a training
# step became forty times slower. Must be set before torch loads OpenMP; your own setting wins.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
