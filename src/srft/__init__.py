"""srft: Supervised Reinforcement Fine-Tuning of language models (arXiv 2506.19767)."""

__version__ = "0.1.0"
