"""Many requests of a file, answered in passes that they share; what a kill interrupts goes on from where it was."""
