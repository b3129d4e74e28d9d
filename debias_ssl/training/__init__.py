"""Training: settings, learner, loop, journal and checkpoints."""
