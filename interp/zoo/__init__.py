"""The synthetic world, and the training of the models that ship with the library."""
