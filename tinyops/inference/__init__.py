"""Detection on images of any size, from files and from memory."""

try:
    import PIL  # noqa: F401
except ImportError as error:
    raise ImportError(
        'tinyops.inference needs the package pillow: pip install "tinyops[zoo]"'
    ) from error
