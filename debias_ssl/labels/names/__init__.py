"""Names of classes, their hierarchy, and the files that list them."""
