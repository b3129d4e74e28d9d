"""Training of a run: settings, learner, loop, journal and checkpoints."""
