# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""Packaging of cait-hf."""

import os
import platform
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError


ROOT = Path(__file__).parent
NATIVE = "src/cait_hf/native"
AMX = f"{NATIVE}/kernel_amx.cpp"
AVX512 = "-mavx512f -mavx512bw -mavx512vl -mavx512dq -mfma -mprefer-vector-width=512"
# Each instruction set is compiled from the same kernel.h; the library takes the best one that the CPU has.
INSTRUCTION_SETS = {
    "x86_64": {
        "kernel_avx2.cpp": "-mavx2 -mfma -mf16c",
        "kernel_avx512.cpp": AVX512,
        "kernel_avx512_bf16.cpp": f"{AVX512} -mavx512bf16",
        "kernel_amx.cpp": f"{AVX512} -mavx512bf16 -mamx-tile -mamx-bf16",
    },
    "aarch64": {"kernel_neon.cpp": ""},
}
FLAGS = "-O3 -std=c++17 -fPIC -fvisibility=hidden -fno-math-errno -fno-strict-aliasing"
FLAGS += " -Wno-uninitialized -Wno-maybe-uninitialized -Wno-unused-function"


class BuildNative(build_ext):
    """Builds the attention kernels: a plain library without Python or PyTorch inside, one for all their versions."""

    def get_ext_filename(self, name):
        return os.path.join(*name.split(".")) + ".so"

    def get_export_symbols(self, extension):
        return []

    def build_extension(self, extension):
        def compile(source, more=""):
            flags = f"{FLAGS} {kernels.get(Path(source).name, '')} {more}".split()
            return self.compiler.compile(
                [source], output_dir=self.build_temp, extra_postargs=flags, depends=extension.depends
            )[0]

        objects, sources, more = [], list(extension.sources), ""
        if AMX in sources:
            sources.remove(AMX)
            try:
                objects.append(compile(AMX))
            except CompileError:
                self.warn("the compiler is older than GCC 11 or Clang 12: the attention is built without AMX")
                more = "-DWITHOUT_AMX"
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            objects += pool.map(lambda source: compile(source, more), sources)
        flags = [] if platform.system() == "Darwin" else ["-static-libstdc++", "-static-libgcc", "-s"]
        path = self.get_ext_fullpath(extension.name)
        self.compiler.link_shared_object(objects, path, extra_postargs=flags, target_lang="c++")


class Wheel(bdist_wheel):
    """For every Python, and for every platform if the library could not be built."""

    def get_tag(self):
        built = Path(self.bdist_dir, "cait_hf", "native", "attention.so").is_file()
        return "py3", "none", super().get_tag()[2] if built else "any"


machine = {"AMD64": "x86_64", "arm64": "aarch64"}.get(platform.machine(), platform.machine())
kernels = INSTRUCTION_SETS.get(machine, {})
native = Extension(
    "cait_hf.native.attention",  # a folder, no package: nothing takes the library for a module of Python
    [f"{NATIVE}/{name}" for name in ("attention.cpp", *kernels)],
    depends=[
        f"{NATIVE}/{name}" for name in ("attention.h", "kernel.h", "kernel_pairs.h", "kernel_table.h", "vectors.h")
    ],
    optional=True,  # without a compiler a warning, and PyTorch's operations in its place
)
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
    # a wheel for every platform, on request
    ext_modules=[native] if kernels and os.environ.get("CAIT_HF_NATIVE") != "0" else [],
    cmdclass={"build_ext": BuildNative, "bdist_wheel": Wheel},
    package_data={
        "cait_hf": ["*.json", "py.typed", "recipes/*.yaml", "recipes/*/*.yaml", "searches/*.yaml"],
        "cait_hf.app": ["*.css", "*.js"],
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
        "numpy>=1.24",
        "pillow>=10.1",
        "safetensors>=0.5",
        "torch>=2.11",
        "tqdm",
        "transformers>=5.17",
    ],
    extras_require={
        "app": ["gradio>=6.31"],
        "train": ["timm>=1.0.21", "torchvision"],
        "benchmark": [
            *("matplotlib>=3.8", "timm>=1.0.21", "torchvision"),
            *("onnx>=1.21", "onnxruntime>=1.20", "onnxscript>=0.7", "openvino>=2026.3"),
        ],
        "export": ["onnx>=1.21", "onnxruntime>=1.20", "onnxscript>=0.7"],
        "notebook": [
            "ipykernel>=6.29",
            "matplotlib>=3.8",
            "nbclient>=0.10",
            "nbformat>=5.10",
            "peft>=0.18",
            "scikit-learn>=1.5",
            "torchvision",
        ],
        "openvino": ["openvino>=2026.3"],
        "peft": ["peft>=0.18"],
        "quantization": ["bitsandbytes>=0.48", "torchao>=0.17"],
        "search": ["optuna>=4.2"],
        "trackers": ["tensorboard>=2.18"],
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
