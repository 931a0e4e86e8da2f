"""Alignment: preferences to reward models, rejection sampling, PPO (Llama 2, section 3.2)."""
