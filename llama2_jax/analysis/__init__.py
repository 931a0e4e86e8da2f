"""What the paper computes and draws from data, models and metrics."""
