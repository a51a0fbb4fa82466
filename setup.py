"""The packages of a wheel; everything else about it is in pyproject.toml."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["thinksound", "thinksound.*"]), "thinksound.bundled"],
    # The bundled weights lie beside the downloaded ones in a checkout, and inside the package in a wheel.
    package_dir={"thinksound.bundled": "weights"},
)
