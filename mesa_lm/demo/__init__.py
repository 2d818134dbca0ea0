"""The demo model that ships with the package: a small Llama trained by `pipelines/demo_model.py`."""

from pathlib import Path

MODEL_PATH = Path(__file__).parent / "model"
