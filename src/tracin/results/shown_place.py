"""Where on Earth an example is, in words."""

import math
from collections.abc import Mapping
from typing import Any

LATITUDE = ("latitude", "lat")
LONGITUDE = ("longitude", "lon", "lng", "long")


def place_in_words(place: tuple[float, float]) -> str:
    """A place such as "37.77 N, 122.4 W".

    Args:
        place: (latitude, longitude) in degrees; north and east are positive.

    Example:
        >>> place_in_words((37.7749, -122.4194))
        '37.77 N, 122.42 W'
    """
    latitude, longitude = (float(each) for each in place)
    north, east = "S" if latitude < 0 else "N", "W" if longitude < 0 else "E"
    return f"{abs(latitude):.2f} {north}, {abs(longitude):.2f} {east}"


def place_in(example: Mapping[Any, Any]) -> tuple[tuple[Any, Any], tuple[float, float]] | None:
    """The keys that say where an example is, and the place; None where there are none.

    Example:
        >>> place_in({"Latitude": 37.5, "Longitude": -122.0, "rooms": 4})
        (('Latitude', 'Longitude'), (37.5, -122.0))
        >>> place_in({"lat": 3700.0, "lon": 2.0})
    """
    keys = {str(key).lower(): key for key in example}
    north = next((keys[name] for name in LATITUDE if name in keys), None)
    east = next((keys[name] for name in LONGITUDE if name in keys), None)
    if north is None or east is None:
        return None
    try:
        latitude, longitude = float(example[north]), float(example[east])
    except (TypeError, ValueError, RuntimeError):
        return None
    if not (math.isfinite(latitude) and abs(latitude) <= 90 and abs(longitude) <= 360):
        return None
    return (north, east), (latitude, longitude)
