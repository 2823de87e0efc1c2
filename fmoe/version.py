"""The library's version; part of what names a pre-trained expert."""

VERSION = "0.1.0"
