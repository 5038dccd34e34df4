"""What a codec is trained against: spectra, discriminators that judge them, losses, and the balance between losses."""
