"""Labels of images or of rows of predictions, with the class bias removed; their files, exports and corrections."""
