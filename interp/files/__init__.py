"""Files: written whole or not at all, shipped with the library, or fetched once."""
