"""The command line: a thin skin over `hemolens.analyze`, one file per verb."""
