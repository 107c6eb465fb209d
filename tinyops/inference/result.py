"""The objects of an image, as `tinyops.detect` gives them."""

import os
from typing import Any

from PIL import Image
from torch import Tensor

from tinyops.inference.formats import write_results
from tinyops.inference.source import ArraySource, open_source
from tinyops.inference.types import Found, Source
from tinyops.plot.picture import annotate, save


class Result(Found):
    """What was found in an image, to be saved and plotted; see `Found` for its content."""

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write COCO json, CSV or GeoJSON, as the suffix says: .json, .csv or .geojson.

        See `tinyops.inference.formats` for what is in the files, and for many results in one.

        Raises:
            ValueError: the suffix is another one, or the result is not finite.
        """
        write_results([self], path)

    def plot(
        self,
        image: Any = None,
        path: str | os.PathLike[str] | None = None,
        *,
        min_score: float = 0.3,
        stitching: bool = False,
        **options: Any,
    ) -> Image.Image:
        """Draw the objects in the image, with magnified places.

        Args:
            image: as `tinyops.detect` takes it: path, picture, array, tensor, or `Source`, which
                stays open; None: the file `name`.
            path: the picture is also written there, whole or not at all, as the suffix says.
            min_score: objects with less are left out.
            stitching: show the tiles, and dashed the boxes that stitching removed.
            options: of `tinyops.plot.picture.annotate`.

        Raises:
            ValueError: the image has another size, or as `annotate`.
            OSError: the image cannot be read, or the picture not be written.
        """
        if isinstance(image, Tensor) and image.is_floating_point():
            image = (image * 255).round().clamp(0, 255).byte()
        opened: Source | None = None
        if image is None or isinstance(image, str | os.PathLike):
            image = opened = open_source(os.fspath(image or self.name))
        elif not hasattr(image, "read"):
            image = ArraySource(image, name=self.name)
        try:
            if (image.width, image.height) != (self.width, self.height):
                raise ValueError(
                    f"image must be {self.width}x{self.height} like the result, "
                    f"got {image.width}x{image.height}"
                )
            if stitching:
                options = {"tiles": self.tiles, "removed": self.removed, **options}
            picture = annotate(
                image,
                self["boxes"],
                self["scores"],
                self["labels"],
                categories=self.categories,
                min_score=min_score,
                **options,
            )
        finally:
            if opened is not None:
                opened.close()
        if path is not None:
            save(picture, path)
        return picture
