"""What pyproject.toml cannot say: a wheel holds the configs and the stages too, which lie beside the packages here."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

SHIPPED = ("conf", "dvc.yaml", "params.yaml", ".dvcignore")  # read through `pipeline.project.shipped`


class BuildWithConfigs(build_py):
    """Copies what is shipped to `pipeline/_data`; an editable installation reads it where it is."""

    def run(self):
        if self.editable_mode:
            super().run()
            return
        shutil.rmtree(self.build_lib, ignore_errors=True)  # modules of an earlier build that are gone
        super().run()
        for name in SHIPPED:
            source, place = Path(name), Path(self.build_lib, "pipeline", "_data", name.lstrip("."))
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copytree(source, place) if source.is_dir() else shutil.copyfile(source, place)


setup(cmdclass={"build_py": BuildWithConfigs})
