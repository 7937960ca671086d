"""Self-supervised learning by redundancy reduction: Barlow Twins and Mixed Barlow Twins."""
