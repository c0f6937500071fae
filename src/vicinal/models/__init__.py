"""Models built on neighborhood attention: NAT, DiNAT, DiNAT_s, the isotropic ones, and StyleNAT's generator.

Importing this registers them with timm, so that `timm.create_model("nat_mini")` makes one.
"""

from vicinal.extras import need
from vicinal.models.torchvision import import_torchvision

need("vicinal.models", "timm")
import_torchvision()  # which timm imports

from vicinal.models import dinat, dinat_s, isotropic, nat  # noqa: E402, F401 -- registers them
from vicinal.models.architecture import Architecture  # noqa: E402
from vicinal.models.dinat_s import DiNATs  # noqa: E402
from vicinal.models.huggingface import from_transformers, to_transformers  # noqa: E402
from vicinal.models.isotropic import Isotropic, ViTrpb  # noqa: E402
from vicinal.models.nat import NAT  # noqa: E402
from vicinal.models.stylenat import FFHQ_256, FFHQ_1024, Generator  # noqa: E402

__all__ = [
    "FFHQ_256",
    "FFHQ_1024",
    "NAT",
    "Architecture",
    "DiNATs",
    "Generator",
    "Isotropic",
    "ViTrpb",
    "from_transformers",
    "to_transformers",
]
