"""Building blocks of detectors; needs torchvision."""
