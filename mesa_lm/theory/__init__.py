"""The theorems of arXiv 2410.15859 as transformers with real weights, and how far each of them holds."""
