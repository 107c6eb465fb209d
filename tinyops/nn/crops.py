"""Parts of images around boxes, all resized to one size."""

import torch
from torch import Tensor
from torchvision.ops import roi_align


def crop_boxes(
    pixels: Tensor,
    boxes: Tensor,
    image_ids: Tensor,
    size: int,
    *,
    context: float = 1.0,
    samples: int = 1,
) -> Tensor:
    """Cut boxes out of images.

    A crop of `size` with k * `samples` is the mean over k x k pixels of one of k * `size` with
    `samples`. Beyond the images is 0, which is the mean colour of normalised ones.

    Args:
        pixels: [N, C, H, W].
        boxes: [S, 4] x1 y1 x2 y2 in pixels.
        image_ids: [S] int64.
        size: height and width of the crops, whatever the shape of the box.
        context: sides of what is cut out / sides of the box, about its centre.
        samples: points per pixel of a crop and axis, bilinear, that are averaged.

    Returns:
        [S, C, size, size] in the dtype of the pixels; coordinates are float32 at least.
    """
    dtype = torch.promote_types(pixels.dtype, torch.float32)
    boxes = boxes.to(dtype)
    centres, halves = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]) / 2
    halves = context * halves
    rois = torch.cat([image_ids[:, None].to(dtype), centres - halves, centres + halves], 1)
    crops = roi_align(pixels.to(dtype), rois, size, sampling_ratio=samples, aligned=True)
    return crops.to(pixels.dtype)
