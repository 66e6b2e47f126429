# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""Packaging of cait-hf."""

import re
from pathlib import Path

from setuptools import find_packages, setup


ROOT = Path(__file__).parent
VERSION = re.search(r'^__version__ = "(.+)"$', (ROOT / "src/cait_hf/__init__.py").read_text(), re.MULTILINE).group(1)

setup(
    name="cait-hf",
    version=VERSION,
    description='CaiT ("Going deeper with Image Transformers") as a native Hugging Face Transformers model',
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    package_dir={"": "src"},
    packages=find_packages("src"),
    py_modules=["cait_hf_cli"],
    package_data={
        "cait_hf": ["*.json", "py.typed"],
        "cait_hf.cards": ["*.md"],
        "cait_hf.fashion_mnist": ["*.json", "*.md", "*.parquet", "*.safetensors", "LICENSE-fashion-mnist"],
    },
    entry_points={"console_scripts": ["cait-hf = cait_hf_cli:main"]},
    python_requires=">=3.10",
    install_requires=[
        "accelerate>=1.1",
        "datasets>=4.0",
        "evaluate>=0.4.6",
        "huggingface-hub>=1.3",
        "jinja2",
        "numpy",
        "pillow>=10.1",
        "safetensors>=0.5",
        "torch>=2.11",
        "tqdm",
        "transformers>=5.17",
    ],
    extras_require={
        "train": ["timm>=1.0.20", "torchvision"],
        "benchmark": ["matplotlib>=3.8", "timm>=1.0.20", "torchvision"],
        "export": ["onnx>=1.21", "onnxruntime>=1.20", "onnxscript>=0.7"],
        "openvino": ["openvino>=2026.3"],
        "peft": ["peft>=0.18"],
        "quantization": ["bitsandbytes>=0.48", "torchao>=0.17"],
        "test": [
            "matplotlib>=3.8",
            "packaging",
            "parameterized",
            "pytest>=8",
            "pytest-xdist>=3.6",
            "pyyaml",
            "scikit-learn>=1.5",
        ],
    },
)
