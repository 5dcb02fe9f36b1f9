"""The commands of the command line, by what they are about; `fxloom.cli` has them all."""
