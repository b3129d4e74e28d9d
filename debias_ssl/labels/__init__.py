"""Labels from predictions, with the class bias removed."""
