"""Detection on images of any size, from files and from memory."""
