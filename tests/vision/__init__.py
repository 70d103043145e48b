"""Every family of models that see, tiny and random, as a folder with a processor; and images made of numbers."""

from tests.vision.cases import FAMILIES, Family
from tests.vision.folder import vision_folder_of
from tests.vision.images import image

__all__ = ["FAMILIES", "Family", "image", "vision_folder_of"]
