"""What `label` and `debias` write and print."""
