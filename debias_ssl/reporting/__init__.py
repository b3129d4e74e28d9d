"""HTML pages, each one file: of a run, of several runs, of labels, and of a calibration."""
