"""What is compared with whom; every figure in the docs comes from here."""
