"""Package metadata comes from settings.ini alone; this file only hands it to setuptools."""

from configparser import ConfigParser
from pathlib import Path
from shutil import copy, copytree, ignore_patterns

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
cfg = ConfigParser(delimiters=["="])
cfg.read(ROOT / "settings.ini", encoding="utf-8")
meta = cfg["DEFAULT"]

extras = {
    key.removeprefix("extra_"): value.split()
    for key, value in meta.items()
    if key.startswith("extra_")
}
extras["all"] = sorted({package for packages in extras.values() for package in packages})


class WithReports(build_py):
    """A wheel carries the reports, which stand beside the package in a checkout; see
    `racing_core.config.shipped`."""

    def run(self):
        super().run()
        if not self.editable_mode:
            shipped = Path(self.build_lib) / "racing_core" / "_shipped"
            copytree(
                ROOT / "reports",
                shipped / "reports",
                dirs_exist_ok=True,
                ignore=ignore_patterns(".*", "__pycache__"),
            )
            copy(ROOT / "requirements.lock", shipped)


setup(
    cmdclass={"build_py": WithReports},
    name=meta["lib_name"],
    version=meta["version"],
    description=meta["description"],
    author=meta["author"],
    author_email=meta["author_email"],
    license=meta["license"],
    python_requires=f">={meta['min_python']},<3.12",
    packages=find_packages(include=["racing_core", "racing_core.*", "serve"]),
    package_data={"racing_core": ["*.toml", "data/*.toml", "data/*.csv", "pages/templates/*"]},
    install_requires=meta["requirements"].split(),
    extras_require=extras,
    entry_points={
        "console_scripts": meta["console_scripts"].split("\n"),
        "nbdev": [f"{meta['lib_path']}={meta['lib_path']}._modidx:d"],
    },
)
