"""What a run or a study costs before it is started. Nothing is trained here."""
