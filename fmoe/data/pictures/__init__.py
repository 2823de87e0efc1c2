"""One decoder of pictures for every reader and for `fmoe predict`, by stated rules.

What a viewer would apply to show the picture is applied by a rule below, or the picture is refused.

- **Formats.** PNG, JPEG (of an MPO, as phones write it, the first picture), WebP, BMP, GIF, TIFF,
  PBM, PGM and PPM. What a file is, its bytes say, not its name. No other format is opened (Pillow
  would start Ghostscript for PostScript), and no program is started.
- **Depth.** Of 16 bits per channel the high eight are kept (v >> 8), with alpha or without. Fewer
  than 8 bits, and smaller maxima of PGM and PPM, are scaled to 0..255. Other depths, floats, signed
  and 32-bit numbers, and TIFF of 16 bits with white as zero are refused.
- **Colours.** Palettes are looked up (an index beyond the palette is refused), bilevel is 0 and
  255. YCbCr is RGB in JPEG, WebP and TIFF with JPEG; CMYK, Lab and others are refused.
- **Channels.** A model of one channel sees the luminance of ITU-R 601 (of grey stored as RGB just
  the grey), one of three channels sees grey three times.
- **Orientation.** The tag of EXIF or TIFF is applied, where there is none XMP's. Values beyond
  1..8 are ignored, and so is an EXIF block that cannot be read.
- **Transparency.** Alpha, a transparent colour or palette entry: accepted where every pixel is
  opaque, refused otherwise. A further channel that TIFF declares to be no alpha is dropped. A BMP's
  fourth byte without a mask is padding where it is always 0 or always 255, else alpha.
- **Colour profile.** One that moves no colour by more than 2 of 255 from sRGB changes nothing;
  another is applied (littleCMS, perceptual intent, after the scaling to 8 bits); a damaged one, or
  one that is not for such a picture, is refused. Without a profile a PNG whose gAMA, cHRM or cICP
  is not sRGB's is refused. BMP's and TIFF's calibration is ignored.
- **Whole and single.** Truncated, damaged, animated and multi-page files are refused.
- **Size.** At most 2^26 pixels, by the header, and 2^26 bytes.
"""

from fmoe.data.pictures.decoder import decode, in_channels
from fmoe.data.pictures.limits import LARGEST

__all__ = ["LARGEST", "decode", "in_channels"]
