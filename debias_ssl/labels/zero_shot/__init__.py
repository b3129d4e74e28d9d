"""Zero-shot labels: images and class names become rows of logits by CLIP."""
