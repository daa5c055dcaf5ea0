"""California housing (Pace and Barry, 1997): homes by block group, where they lie, how dense."""

import gzip
import io
import tarfile
from dataclasses import dataclass

import numpy as np
import torch
from scipy.spatial import KDTree
from torch import Tensor

from experiments.real_data import downloaded, held
from tracin.errors import DataError

ARCHIVE = "https://ndownloader.figshare.com/files/5976036"  # the one that scikit-learn reads
CHECKSUM = "sha256:aaa5c9a6afe2225cc2aed2723682ae403280c4a3695a2ddda4ffb5d8215ea681"
MEMBER = "CaliforniaHousing/cal_housing.data"
FILE = "cal_housing.data.gz"
ROWS, COLUMNS = 20_640, 9

# South, north, west, east. A home belongs to the first box that holds it.
REGIONS = {
    "Palo Alto": (37.39, 37.46, -122.19, -122.10),
    "San Francisco": (37.70, 37.84, -122.53, -122.35),
    "rest of the Bay Area": (37.00, 38.40, -123.00, -121.50),
    "Sacramento": (38.35, 38.85, -121.75, -121.05),
    "Santa Catalina": (33.25, 33.50, -118.65, -118.25),
    "Los Angeles": (33.60, 34.45, -118.80, -117.60),
}
ELSEWHERE = "elsewhere"
PALO_ALTO = (37.4419, -122.1430)  # latitude and longitude of its centre
NEAR, EARTH, KM_A_DEGREE = 10.0, 6371.0, 111.2  # kilometres


@dataclass(frozen=True, eq=False)
class Homes:
    """Block groups of the census of 1990, some hundred homes each.

    Attributes:
        features: [homes, 8]: income, age, rooms and bedrooms per household, population, people per
            household, latitude, longitude.
        dollars: The median price: [homes].
        latitudes: [homes].
        longitudes: [homes].
        population: [homes].
    """

    features: Tensor
    dollars: Tensor
    latitudes: Tensor
    longitudes: Tensor
    population: Tensor

    def __len__(self) -> int:
        return len(self.dollars)

    def regions(self) -> np.ndarray:
        """The name of each home's region: [homes]."""
        found = np.full(len(self), ELSEWHERE, dtype=object)
        for name, (south, north, west, east) in reversed(REGIONS.items()):
            is_there = (self.latitudes >= south) & (self.latitudes <= north)
            is_there &= (self.longitudes >= west) & (self.longitudes <= east)
            found[is_there.numpy()] = name
        return found

    def density(self) -> Tensor:
        """People per square kilometre within 10 km of each home: [homes]."""
        # Distances along straight lines through the earth: a metre short at 10 km.
        across, up = self.longitudes.deg2rad(), self.latitudes.deg2rad()
        places = torch.stack([up.cos() * across.cos(), up.cos() * across.sin(), up.sin()], 1)
        tree = KDTree(EARTH * places.numpy())
        near = tree.query_ball_point(tree.data, NEAR)
        population = self.population.double().numpy()
        people = torch.tensor([population[homes].sum() for homes in near])
        return people / (torch.pi * NEAR**2)

    def from_palo_alto(self) -> Tensor:
        """Kilometres, roughly: [homes]."""
        ups = (self.latitudes - PALO_ALTO[0]) * KM_A_DEGREE
        across = (self.longitudes - PALO_ALTO[1]) * KM_A_DEGREE * 0.794  # the cosine there
        return (ups.square() + across.square()).sqrt()


def open_homes() -> Homes:
    """All 20,640 block groups.

    Raises:
        DataError: The file cannot be had, or holds something else.
    """
    folder = held("california_housing")
    if folder is not None:
        text = gzip.decompress((folder / FILE).read_bytes())
    else:
        with tarfile.open(downloaded(ARCHIVE, CHECKSUM)) as archive:
            member = archive.extractfile(MEMBER)
            text = member.read() if member is not None else b""
    table = np.loadtxt(io.BytesIO(text), delimiter=",", ndmin=2)
    if table.shape != (ROWS, COLUMNS):
        raise DataError(
            f"California housing has {ROWS:,} rows of {COLUMNS} numbers, but the file holds "
            f"{table.shape[0]:,} of {table.shape[-1]}. Download {ARCHIVE} again."
        )
    longitude, latitude, age, rooms, bedrooms, people, households, income, dollars = (
        torch.from_numpy(table).T
    )
    features = [
        income,
        age,
        rooms / households,
        bedrooms / households,
        people,
        people / households,
        latitude,
        longitude,
    ]
    return Homes(torch.stack(features, 1), dollars, latitude, longitude, people)
