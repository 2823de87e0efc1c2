"""Why a picture is not read, without the name of the file, which the decoder adds."""


class Refused(ValueError):
    """The rule that the picture breaks, and the remedy."""
