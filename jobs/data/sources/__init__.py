"""Where images come from: one file per dataset, with its settings and its reader."""

from typing import Annotated

from pydantic import Field

from jobs.data.sources.cars3d import Cars3dConfig
from jobs.data.sources.celeba import CelebaConfig
from jobs.data.sources.digits import DigitsConfig
from jobs.data.sources.dsprites import DspritesConfig
from jobs.data.sources.image_folder import ImagesConfig
from jobs.data.sources.mnist import FashionMnistConfig, MnistConfig
from jobs.data.sources.mpi3d import Mpi3dConfig
from jobs.data.sources.rooms import RoomsConfig
from jobs.data.sources.shapes3d import Shapes3dConfig
from jobs.data.sources.smallnorb import SmallNorbConfig
from jobs.data.sources.sprites import SpritesConfig
from jobs.data.sources.svhn import SvhnConfig
from jobs.data.sources.webdataset_tars import WebdatasetConfig

DataConfig = Annotated[
    DigitsConfig
    | FashionMnistConfig
    | MnistConfig
    | SvhnConfig
    | CelebaConfig
    | SmallNorbConfig
    | Cars3dConfig
    | DspritesConfig
    | SpritesConfig
    | Shapes3dConfig
    | RoomsConfig
    | Mpi3dConfig
    | ImagesConfig
    | WebdatasetConfig,
    Field(discriminator="name"),
]
