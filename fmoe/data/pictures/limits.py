"""How much of a file is looked at, so that none takes more than seconds or a gigabyte or two."""

LARGEST = 2**26
"""Pixels of a picture, and bytes of its file."""
LARGEST_TEXT = 2**24
"""Bytes of a PPM of decimal numbers, which Python reads."""
LARGEST_RLE = 2**22
"""Pixels of a run-length BMP, which Python reads, too."""
LARGEST_EXIF = 2**20
LARGEST_PROFILE = 2**22
SCANS = 64
"""Of a JPEG. Encoders write about ten; each one can cost a pass over all pixels."""
LONGEST_LIST = 2**18
"""Strips or tiles of a TIFF, each of which Pillow makes an object of."""
READS = 2**20
"""From the file. A whole one takes two for each block of 255 bytes in the densest format, GIF."""
